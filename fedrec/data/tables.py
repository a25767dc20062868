"""Reading the tables of a folder, CSV or Parquet: whatever the file is, ids and texts are the same text."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedrec.data.csv_file import read_csv
from fedrec.data.schema import Columns as C
from fedrec.data.schema import folded, known_columns
from fedrec.data.text import as_text, as_times
from fedrec.errors import InputError

__all__ = ["Table", "find_table", "read_table", "write_table"]

SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class Table:
    """A table as it was read, before anything in it was checked.

    Attributes:
        frame: the columns of `Columns.ALL` that are there, in text, an empty one missing; `timestamp` may hold
            times. Its index numbers the rows from 0.
        name: what an error calls the table: its file, or the setting that holds its query.
        columns: the names of all columns that are there.
        place: what an error calls a row.
    """

    frame: pd.DataFrame
    name: str
    columns: tuple[str, ...]
    place: Callable[[int], str]

    def at(self, column: str, row: int) -> str:
        """The place of a value."""
        return f"{self.name}, column {column}, {self.place(row)}"

    def only(self, rows: pd.Series) -> Table:
        """These rows, bool by number, under the numbers that they have."""
        return replace(self, frame=self.frame[rows])

    def require(self, columns: tuple[str, ...]) -> None:
        """Refuse a table that lacks one of `columns`.

        Raises:
            InputError: with the columns that were found.
        """
        for missing in columns:
            if missing in self.columns:
                continue
            alike = [name for name in self.columns if folded(name) == folded(missing)]
            raise InputError(
                f"column {missing!r} is missing; found {', '.join(self.columns) or 'none'}",
                where=self.name,
                expected=f"the columns {', '.join(columns)}",
                hint=f"rename {alike[0]!r} to {missing!r}" if alike else None,
            )


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


def read_table(path: Path) -> Table:
    """Read CSV or Parquet; ids stay text, so that `007` is not 7.

    Raises:
        InputError: the file is not what its name says, or holds a value that is no text.
    """
    try:
        if path.suffix != ".csv":
            return _read_parquet(path)
        columns, names, lines = read_csv(path)
        return Table(columns.to_pandas(), str(path), names, lambda row: f"line {lines[row]}")
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), expected=f"a {path.suffix[1:]} table") from None


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write Parquet to a temporary name and rename; what people searched for only the owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # what an interrupted one has left may have other permissions
    mode = 0o600 if C.QUERY in frame else 0o666
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        frame.to_parquet(file, index=False)
    temporary.replace(path)


def _read_parquet(path: Path) -> Table:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        read = file.read(columns=known_columns(names, str(path)))

    def at(column: str) -> Callable[[int], str]:
        return lambda row: table.at(column, row)

    # A row is numbered from 0, as pandas does.
    table = Table(pd.DataFrame(), str(path), tuple(names), lambda row: f"row {row}")
    columns = {
        name: as_times(read[name], at(name)) if name == C.TIME else as_text(read[name], name, at(name))
        for name in read.column_names
    }
    return Table(pa.table(columns).to_pandas(), table.name, table.columns, table.place)
