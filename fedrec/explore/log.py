"""The log of what was shown: a row for each place of each list, as CSV, Parquet or JSON lines.

    item_id      what was shown
    propensity   P(this item at this place), above 0 and at most 1, as it was when it was shown
    reward       what came of it, such as 1 for a click; `click` does as well
    request_id   whose list it was; rows of one request are drawn again together. A row is a request of its own without it
    position     the place in the list; 1 without it. With `request_id` the log is of whole lists: see `fedrec.explore.steps`
    policy       who chose; needed where a policy is to be evaluated that is in the log too
    target       P(this item at this place) under the policy to be evaluated; in JSON lines also an object with the
                 probability of every item that it may show there

Open Bandit files have this form as they are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fedrec.errors import InputError

__all__ = ["FORMATS", "LogTable", "check_log", "read_log"]

FORMATS = (".csv", ".parquet", ".jsonl")
MOST_WHOLE = 2.0**53
"""Above it a float skips whole numbers."""
LARGEST = 2**1000
"""An integer of JSON above it is no number here: no float holds it."""
ITEM, PROPENSITY, REWARD, CLICK = "item_id", "propensity", "reward", "click"
REQUEST, POSITION = "request_id", "position"


@dataclass(frozen=True)
class LogTable:
    """A log as it was read and checked.

    Attributes:
        frame: `item_id` in text, `propensity` and `reward` as numbers, all other columns as they were; its index numbers the
            rows of the file from 0.
        name: the file.
        place: what an error calls a row.
    """

    frame: pd.DataFrame
    name: str
    place: Callable[[int], str]

    def at(self, column: str, row: int) -> str:
        """The place of a value, for an error."""
        return f"{self.name}, column {column}, {self.place(row)}"

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a log that lacks one of the columns.

        Raises:
            InputError: it does.
        """
        for name in columns:
            if name not in self.frame:
                found = ", ".join(map(str, self.frame.columns))
                raise InputError(f"column {name!r} is missing; found {found}", where=self.name, expected=f"the column {name}")

    def numbers(self, column: str, low: float, high: float, *, above: bool = False) -> np.ndarray:
        """A column as numbers, (rows,).

        Args:
            low, high: the range; both ends belong to it, `low` only where not `above`.

        Raises:
            InputError: one of them is missing, no number, or out of the range, by its row.
        """
        values = self.frame[column]
        sane = values.map(lambda one: not isinstance(one, int) or abs(one) <= LARGEST)
        found = pd.to_numeric(values.where(sane), errors="coerce").to_numpy(np.float64)
        wrong = ~(np.isfinite(found) & (found > low if above else found >= low) & (found <= high))
        if wrong.any():
            row = int(self.frame.index[int(wrong.argmax())])
            value = values.loc[row]
            said = "is missing" if pd.isna(value) or value == "" else f"found {str(value)!r}"
            expected = f"a number {'above' if above else 'from'} {low:g}"
            expected += "" if high == np.inf else f"{' and' if above else ''} {'at most' if above else 'to'} {high:g}"
            raise InputError(said, where=self.at(column, row), expected=expected)
        return found

    def whole(self, column: str, low: float, high: float = np.inf) -> np.ndarray:
        """A column as whole numbers, (rows,) int64; see `numbers`."""
        found = self.numbers(column, low, min(high, MOST_WHOLE))
        if (wrong := found != np.floor(found)).any():
            row = int(self.frame.index[int(wrong.argmax())])
            raise InputError(f"found {str(self.frame[column].loc[row])!r}", where=self.at(column, row), expected="a whole number")
        return found.astype(np.int64)

    def filled(self, column: str, expected: str) -> pd.Series:
        """A column as text, (rows,).

        Raises:
            InputError: one of them is missing, by its row.
        """
        values = self.frame[column]
        texts = values.map(str).str.strip()
        if (blank := (values.isna() | (texts == "")).to_numpy()).any():
            raise InputError("is missing", where=self.at(column, int(self.frame.index[int(blank.argmax())])), expected=expected)
        return texts


def read_log(path: Path) -> LogTable:
    """Read and check a log.

    Raises:
        InputError: the file cannot be read, a column is missing, or a value is none that it may hold, by column and line.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"found {path.name}", where="LOG", expected=f"a name that ends in {', '.join(FORMATS)}")
    try:
        table = _READERS[path.suffix](path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    except pa.ArrowException as error:
        raise InputError(f"cannot be read ({error})", where=str(path), expected="a parquet table") from None
    return check_log(table)


def check_log(table: LogTable) -> LogTable:
    """A log whose columns are what every log has to have, as numbers where they are that.

    Raises:
        InputError: a column is missing, or a value is none that it may hold, by column and line.
    """
    if REWARD not in table.frame and CLICK in table.frame:
        table.frame.rename(columns={CLICK: REWARD}, inplace=True)
    table.require((ITEM, PROPENSITY, REWARD))
    if table.frame.empty:
        raise InputError("there is no row", where=table.name)
    table.filled(ITEM, "an item")
    table.frame[ITEM] = table.frame[ITEM].map(str)
    table.frame[PROPENSITY] = table.numbers(PROPENSITY, 0.0, 1.0, above=True)
    table.frame[REWARD] = table.numbers(REWARD, -np.inf, np.inf)
    return table


def _csv(path: Path) -> LogTable:
    rows, lines = list[list[str]](), list[int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            for row in reader:
                if row and len(row) != len(header):
                    raise InputError(
                        f"{len(row)} fields where the header has {len(header)}", where=f"{path}, line {reader.line_num}"
                    )
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise InputError(f"cannot be read ({error})", where=f"{path}, line {reader.line_num}") from None
    _once(header, path)
    return LogTable(pd.DataFrame(rows, columns=header, dtype=object), str(path), lambda row: f"line {lines[row]}")


def _jsonl(path: Path) -> LogTable:
    rows, lines = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"is no JSON ({error})", where=f"{path}, line {number}") from None
        if not isinstance(row, dict):
            raise InputError("is no object", where=f"{path}, line {number}", expected='{"item_id": ..., "propensity": ...}')
        rows.append(row)
        lines.append(number)
    return LogTable(pd.DataFrame(rows, dtype=object), str(path), lambda row: f"line {lines[row]}")


def _parquet(path: Path) -> LogTable:
    frame = pd.read_parquet(path).reset_index(drop=True)
    _once(list(frame.columns), path)
    return LogTable(frame, str(path), lambda row: f"row {row}")


def _once(names: Sequence[str], path: Path) -> None:
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise InputError(f"column {twice[0]!r} is there twice", where=str(path), hint="rename one of them")


_READERS: dict[str, Callable[[Path], LogTable]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
