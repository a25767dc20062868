"""What `recommend`, `explain` and `search` ask a person for: the options, declared once, and how their text is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fedrec.errors import InputError

__all__ = [
    "FILES", "Brand", "Category", "Exclude", "Folder", "History", "Json", "K", "Merchant", "PriceMax", "PriceMin", "Query",
    "Repeats", "Stock", "Times", "User", "comma_separated", "excluded", "ids_in", "times_of",
]  # fmt: skip

FILES = (".csv", ".parquet")

Folder = Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, or a merchant's folder.")]
History = Annotated[str | None, typer.Option("--history", help="Item ids, most recent last, separated by commas.")]
Times = Annotated[
    str | None,
    typer.Option("--times", help="A time for each of them, ISO 8601 or whole numbers; items of one time are one basket."),
]
User = Annotated[str | None, typer.Option("--user", help="A user whose events are known here.")]
Query = Annotated[str | None, typer.Option("--query", help="Words for what is looked for; a history orders what they find.")]
Merchant = Annotated[str | None, typer.Option("--merchant", help="Rank only this merchant's items.")]
K = Annotated[int, typer.Option("--k", min=1, help="How many.")]
Repeats = Annotated[bool, typer.Option("--repeats", help="The list may hold what is in the history.")]
Category = Annotated[list[str] | None, typer.Option("--category", help="Only items of this category; may be given again.")]
Brand = Annotated[list[str] | None, typer.Option("--brand", help="Only items of this brand; may be given again.")]
PriceMin = Annotated[float | None, typer.Option("--price-min", help="Only items that cost at least this.")]
PriceMax = Annotated[float | None, typer.Option("--price-max", help="Only items that cost at most this.")]
Stock = Annotated[Path | None, typer.Option("--stock", help="Only the items in this file: an id a line, or a table.")]
Exclude = Annotated[str, typer.Option("--exclude", help="None of these: such a file, or ids separated by commas.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def comma_separated(text: str) -> list[str]:
    """The parts of a text, without the empty ones."""
    return [part for part in (one.strip() for one in text.split(",")) if part]


def times_of(text: str) -> list[object]:
    """What `--times` gives: numbers where all of them are, else texts."""
    given = comma_separated(text)
    return [int(one) for one in given] if all(re.fullmatch(r"-?\d{1,18}", one) for one in given) else list(given)


def excluded(text: str) -> list[str]:
    """Item ids that `--exclude` gives: those in a file, or the text's own."""
    return ids_in(Path(text)) if _is_file(text) else comma_separated(text)


def ids_in(path: Path) -> list[str]:
    """Item ids of a file: the column of a table, or the lines of a text."""
    from fedrec.data import Columns
    from fedrec.data.tables import read_table

    if path.suffix in FILES:
        found = read_table(path)
        found.require((Columns.ITEM,))
        return [str(one) for one in found.frame[Columns.ITEM].dropna()]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), expected="a file of item ids") from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path), expected="an item id a line") from None
    return [line.strip() for line in lines if line.strip()]


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except OSError:  # ids in a row are soon too long for a name
        return False
