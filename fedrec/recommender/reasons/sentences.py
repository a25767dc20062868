"""Words for a shopper: how long ago something was, and what it is called."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from fedrec.text import visible

__all__ = ["ago", "quoted"]

LONGEST = 60
"""Characters of a text in a sentence."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
UNITS = ((730, 365, "year"), (61, 30, "month"), (14, 7, "week"), (2, 1, "day"))
"""From how many days on a time is told in which unit, of how many days."""


def ago(when: np.datetime64, now: datetime) -> str:
    """How long ago, to be put after a phrase; nothing where that is in the future.

    >>> ago(np.datetime64("2026-01-01"), datetime(2026, 1, 23, tzinfo=UTC))
    ' three weeks ago'
    """
    days = (np.datetime64(now.astimezone(UTC).replace(tzinfo=None), "D") - when.astype("datetime64[D]")).astype(int)
    if days < 2:
        return ("", " today", " yesterday")[max(int(days) + 1, 0)]
    length, unit = next(one[1:] for one in UNITS if days >= one[0])
    count = int(days) // length
    number = NUMBERS[count - 1] if count <= len(NUMBERS) else f"{count:,}"
    return f" {number} {unit}{'s' if count > 1 else ''} ago"


def quoted(text: str) -> str:
    """A text between quotation marks, in one visible line, cut between words where it is long.

    >>> quoted("red mug"), quoted("word " * 30)[-12:]
    ('“red mug”', 'word word …”')
    """
    shown = visible(" ".join(text.split()))
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST].rsplit(' ', 1)[0].rstrip(' ,;')} …"
    return f"“{shown}”"
