"""What `recommend` and `explain` ask a person for: the options, declared once, and how their text is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Folder", "History", "Json", "K", "Merchant", "Query", "Repeats", "Times", "User", "comma_separated", "times_of",
]  # fmt: skip

Folder = Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, or a merchant's folder.")]
History = Annotated[str | None, typer.Option("--history", help="Item ids, most recent last, separated by commas.")]
Times = Annotated[
    str | None,
    typer.Option("--times", help="A time for each of them, ISO 8601 or whole numbers; items of one time are one basket."),
]
User = Annotated[str | None, typer.Option("--user", help="A user whose events are known here.")]
Query = Annotated[str | None, typer.Option("--query", help="Words that count as one more item.")]
Merchant = Annotated[str | None, typer.Option("--merchant", help="Rank only this merchant's items.")]
K = Annotated[int, typer.Option("--k", min=1, help="How many.")]
Repeats = Annotated[bool, typer.Option("--repeats", help="The list may hold what is in the history.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def comma_separated(text: str) -> list[str]:
    """The parts of a text, without the empty ones."""
    return [part for part in (one.strip() for one in text.split(",")) if part]


def times_of(text: str) -> list[object]:
    """What `--times` gives: numbers where all of them are, else texts."""
    given = comma_separated(text)
    return [int(one) for one in given] if all(re.fullmatch(r"-?\d{1,18}", one) for one in given) else list(given)
