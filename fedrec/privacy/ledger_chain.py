"""A ledger's bytes: lines of JSON, each chained to the one before by a hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedrec.privacy.ledger_head import HINT, LedgerError

__all__ = ["GENESIS", "follow", "line_of", "split"]

GENESIS = "0" * 64
"""What the first line follows."""
BEGINNING = b'{"chain": "'
"""What every line begins with."""


def split(content: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a ledger's content, and the beginning of a last one that breaks off.

    A last line that is whole but for its newline is a line. So is an end that cannot be the beginning of one:
    it is refused like any other line that is none.
    """
    *lines, end = content.split(b"\n")
    if end and not _breaks_off(end):
        return [*lines, end], b""
    return lines, end


def follow(lines: Iterable[bytes], path: Path, number: int = 0, chain: str = GENESIS) -> Iterator[tuple[dict[str, Any], str]]:
    """What each of `lines` says, and its hash; they follow line `number`, whose hash is `chain`.

    Raises:
        LedgerError: at the first that is no line, or does not follow from the one before.
    """
    for line in lines:
        number += 1
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            body, claimed = entry["release"], entry["chain"]
            # Over what the line says, which an older version wrote with fewer fields.
            chain = _hash(chain, body)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise LedgerError("is not a ledger line", where=where, hint=HINT) from None
        if claimed != chain:
            raise LedgerError("the chain is broken: a line was changed, removed or moved", where=where, hint=HINT)
        yield body, chain


def line_of(previous: str, body: dict[str, Any]) -> tuple[str, bytes]:
    """Hash and bytes of the line that says `body` and follows the one with the hash `previous`."""
    chain = _hash(previous, body)
    return chain, json.dumps({"release": body, "chain": chain}, sort_keys=True).encode() + b"\n"


def _hash(previous: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(f"{previous}\n{json.dumps(body, sort_keys=True)}".encode()).hexdigest()


def _breaks_off(end: bytes) -> bool:
    """Whether it can be the beginning of a line, and is not a whole one."""
    if end[: len(BEGINNING)] != BEGINNING[: len(end)] or not re.fullmatch(rb"[\x20-\x7e]*", end):
        return False
    try:
        json.JSONDecoder().raw_decode(end.decode())
    except ValueError:
        return True
    except RecursionError:
        pass
    return False
