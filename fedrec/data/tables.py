"""Reading the tables of a merchant folder, with errors that name file, column and row."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from fedrec.data.schema import Columns as C
from fedrec.errors import InputError

__all__ = ["check_events", "check_items", "check_merchants", "find_table", "read_table", "write_table"]

SUFFIXES = (".parquet", ".csv")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""A merchant's name is the name of its folder too."""

Table = Path | str
"""What an error calls a table: its file, or the setting that holds its query."""


def find_table(folder: Path, name: str) -> Path:
    """The one file `name.parquet` or `name.csv` in `folder`.

    Raises:
        InputError: there is none, or there are both.
    """
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise InputError(f"there is no {name}.parquet or {name}.csv", where=str(folder))
    if len(found) > 1:
        raise InputError(f"there are both {name}.parquet and {name}.csv", where=str(folder), hint="keep one of them")
    return found[0]


def read_table(path: Path) -> pd.DataFrame:
    """Read CSV or Parquet; ids stay text, so that `007` is not 7.

    Raises:
        InputError: the file is not what its name says.
    """
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise InputError(f"cannot be read ({error})", where=str(path), expected=f"a {path.suffix[1:]} table") from None


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write Parquet to a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    frame.to_parquet(temporary, index=False)
    temporary.replace(path)


def check_items(frame: pd.DataFrame, table: Table, key: tuple[str, ...] = (C.ITEM,)) -> pd.DataFrame:
    """Validate a catalogue: columns there, ids unique and present, a title in every row.

    Raises:
        InputError: the first thing that is wrong, with its row.
    """
    _require(frame, C.ITEM_REQUIRED, table)
    if frame.empty:
        raise InputError("the catalogue is empty", where=str(table))
    frame = frame.copy()
    for column in (*C.ITEM_REQUIRED, *(name for name in key if name != C.ITEM)):
        _forbid_blank(frame, column, table)
        frame[column] = frame[column].astype(str)
    repeated = frame.duplicated(list(key))
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        raise InputError(
            f"item_id {frame[C.ITEM].iloc[row]!r} is there twice", where=_at(table, C.ITEM, row), expected="unique item ids"
        )
    return frame.reset_index(drop=True)


def check_events(frame: pd.DataFrame, table: Table, item_ids: pd.Index, catalogue: str) -> pd.DataFrame:
    """Validate events: columns there, ids present, timestamps that parse, items that exist.

    Args:
        item_ids: the ids of the catalogue.
        catalogue: what to call the catalogue in an error.

    Returns:
        The events with `timestamp` parsed, in the order of the table.

    Raises:
        InputError: the first thing that is wrong, with its row.
    """
    _require(frame, C.EVENT_REQUIRED, table)
    if frame.empty:
        raise InputError("there are no events", where=str(table), expected="at least one row")
    frame = frame.copy()
    for column in C.EVENT_REQUIRED:
        _forbid_blank(frame, column, table)
    frame[C.USER], frame[C.ITEM] = frame[C.USER].astype(str), frame[C.ITEM].astype(str)
    if not pd.api.types.is_datetime64_any_dtype(frame[C.TIME]):
        parsed = pd.to_datetime(frame[C.TIME], errors="coerce", format="ISO8601", utc=True)
        if parsed.isna().any():
            row = int(parsed.isna().to_numpy().argmax())
            raise InputError(
                f"{frame[C.TIME].iloc[row]!r} is not a timestamp",
                where=_at(table, C.TIME, row),
                expected="ISO 8601, such as 2026-01-31 or 2026-01-31T09:30:00",
            )
        frame[C.TIME] = parsed
    unknown = ~frame[C.ITEM].isin(item_ids)
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise InputError(
            f"item_id {frame[C.ITEM].iloc[row]!r} is not in {catalogue} ({int(unknown.sum())} such events)",
            where=_at(table, C.ITEM, row),
            hint="add the items to the catalogue or remove the events",
        )
    return frame.reset_index(drop=True)


def check_merchants(events: pd.DataFrame, table: Table, items: pd.DataFrame | None = None) -> pd.DataFrame:
    """Validate the `merchant` column of checked events: there, a name in every row.

    Args:
        items: a checked catalogue with a `merchant` column; every item must be its merchant's.

    Returns:
        The events with `merchant` as text.

    Raises:
        InputError: the first thing that is wrong, with its row.
    """
    if C.MERCHANT not in events.columns:
        raise InputError("column 'merchant' is missing", where=str(table), expected="the merchant of every event")
    _forbid_blank(events, C.MERCHANT, table)
    events = events.assign(**{C.MERCHANT: events[C.MERCHANT].astype(str)})
    seen: dict[str, str] = {}
    for name in events[C.MERCHANT].unique():
        other = seen.setdefault(name.casefold(), name)
        if re.fullmatch(NAME, name) and other == name:
            continue
        # Some file systems would put names that differ in case into the same folder.
        what = "cannot name a merchant" if other == name else f"differs from {other!r} only in case"
        raise InputError(
            f"{name!r} {what}",
            where=_at(table, C.MERCHANT, int((events[C.MERCHANT] == name).to_numpy().argmax())),
            expected="at most 64 letters, digits, dots, dashes and underscores, the first a letter or a digit",
        )
    if items is not None:
        columns = [C.MERCHANT, C.ITEM]
        unknown = ~pd.MultiIndex.from_frame(events[columns]).isin(pd.MultiIndex.from_frame(items[columns]))
        if unknown.any():
            row = int(unknown.argmax())
            name, item = events[columns].iloc[row]
            raise InputError(
                f"item_id {item!r} is not one of merchant {name}'s items ({int(unknown.sum())} such events)",
                where=_at(table, C.ITEM, row),
                hint="add the items to the catalogue or remove the events",
            )
    return events


def _require(frame: pd.DataFrame, columns: tuple[str, ...], table: Table) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            f"column {missing[0]!r} is missing; found {', '.join(map(str, frame.columns))}",
            where=str(table),
            expected=f"the columns {', '.join(columns)}",
        )


def _forbid_blank(frame: pd.DataFrame, column: str, table: Table) -> None:
    blank = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
    if blank.any():
        raise InputError("is empty", where=_at(table, column, int(blank.to_numpy().argmax())), expected="a value")


def _at(table: Table, column: str, row: int) -> str:
    # Counted as the tool counts in which one looks: a CSV's first data row is line 2, Parquet's
    # is row 0, and a database client numbers a result from 1.
    if isinstance(table, str):
        return f"{table}, column {column}, row {row + 1}"
    place = f"line {row + 2}" if table.suffix == ".csv" else f"row {row}"
    return f"{table}, column {column}, {place}"
