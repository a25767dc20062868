"""The page of reasons: a bar for each share, and the words of each text that carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrec.config import write_atomically
from fedrec.errors import InputError
from fedrec.report.pages import page

__all__ = ["write_reasons"]

STEPS = 4
"""How strongly a word is marked, at most."""


def write_reasons(path: Path, found: dict[str, Any]) -> None:
    """Write what `fedrec explain` found as a page that its owner alone may read.

    Args:
        found: as `fedrec explain --json` prints it; of `view` `staff`, or `shopper`, whose page has no number.

    Raises:
        InputError: it cannot be written.
    """
    items = [{**item, "bars": _bars(item["shares"]), "pieces": _pieces(item)} for item in found["items"]]
    html = page("reasons.html", found={**found, "items": items})
    try:
        write_atomically(path, html.encode(), mode=0o600)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=f"--html {path}") from None


def _bars(shares: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each share with where its bar starts and how long it is, in percent, zero being at the same place for all. The base, which
    all items have, has none: it would dwarf the others.
    """
    values = [share.get("share", 0.0) if share["kind"] != "base" else 0.0 for share in shares]
    low, high = min([0.0, *values]), max([0.0, *values])
    width = max(high - low, 1e-12)
    return [
        {**share, "left": 100 * (min(value, 0.0) - low) / width, "width": 100 * abs(value) / width}
        for share, value in zip(shares, values, strict=True)
    ]


def _pieces(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The text in pieces: what is between words, and words with a mark from 0 to `STEPS`, of which a negative one is against."""
    words, text = item["words"], item["text"]
    if words is None:
        return [{"text": text, "mark": 0}]
    most = max((abs(word.get("share", 1.0)) for word in words["words"]), default=0.0)
    pieces, last = [], 0
    for word in words["words"]:
        pieces.append({"text": text[last : word["start"]], "mark": 0})
        share = word.get("share", 1.0)
        mark = round(STEPS * share / most) if most else 0
        pieces.append({"text": text[word["start"] : word["end"]], "mark": mark, "share": word.get("share")})
        last = word["end"]
    return [*pieces, {"text": text[last:], "mark": 0}]
