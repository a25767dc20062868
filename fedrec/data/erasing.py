"""Taking one person's rows out of a table on disk; all else in it stays as it was.

A file is replaced whole, so that whoever reads it or is interrupted finds the old one or the new one.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedrec.config import flush_folder
from fedrec.data.csv_file import without_rows
from fedrec.data.schema import Columns as C
from fedrec.data.schema import known_columns
from fedrec.data.text import as_text
from fedrec.errors import InputError

__all__ = ["erase_user", "rows_of_user"]


def rows_of_user(path: Path, user_id: str) -> int:
    """How many rows of a CSV, Parquet or JSON lines table are this user's: none where it has no column `user_id`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if path.suffix in _WITHOUT:
            return _WITHOUT[path.suffix](path, C.USER, user_id)[1]
        with pq.ParquetFile(path) as file:
            theirs = _theirs(file, path, user_id)
        return 0 if theirs is None else int(theirs.sum())
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def erase_user(path: Path, user_id: str) -> int:
    """Take this user's rows out of a CSV, Parquet or JSON lines table.

    Of a CSV or JSON lines file every other byte stays; of a Parquet file rows, columns, types, metadata and compression. A file
    without such rows is not touched.

    Returns:
        How many there were.

    Raises:
        InputError: it cannot be read or written, or was changed by somebody else meanwhile. It is then as it was.
    """
    path = path.resolve()  # the file that a link leads to, or the link would be replaced
    try:
        before = path.stat()
        if path.suffix in _WITHOUT:
            content, removed = _WITHOUT[path.suffix](path, C.USER, user_id)
        else:
            content, removed = _parquet_without(path, user_id)
        if removed:
            _replace(path, content, before)
    except PermissionError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    return removed


def _lines_without(path: Path, column: str, value: str) -> tuple[bytes, int]:
    """`without_rows` for JSON lines, of which each is an object."""
    kept, lines = list[bytes](), path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise InputError("is no JSON object", where=f"{path}, line {number}", hint="nothing was taken out of this file")
            if _id(row.get(column)) == value:
                continue
        kept.append(line)
    return b"".join(kept), len(lines) - len(kept)


def _id(value: object) -> str:
    """A user's id as `as_text` reads it from a table: 7 and 7.0 are "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_WITHOUT: dict[str, Callable[[Path, str, str], tuple[bytes, int]]] = {".csv": without_rows, ".jsonl": _lines_without}


def _theirs(file: pq.ParquetFile, path: Path, user_id: str) -> np.ndarray | None:
    """(rows,) whether a row is the user's; None where no column says so."""
    if C.USER not in known_columns(file.schema_arrow.names, str(path)):
        return None
    column = file.read(columns=[C.USER])[C.USER]
    ids = as_text(column, C.USER, lambda row: f"{path}, column {C.USER}, row {row}")
    same = pc.fill_null(pc.equal(ids, pa.scalar(user_id, pa.large_string())), False)
    found: np.ndarray = same.to_numpy()
    return found


def _parquet_without(path: Path, user_id: str) -> tuple[bytes, int]:
    with pq.ParquetFile(path) as file:
        theirs = _theirs(file, path, user_id)
        if theirs is None or not theirs.any():
            return b"", 0
        table, groups = file.read().unify_dictionaries(), [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    left, gone = table.filter(pa.array(~theirs)), table.filter(pa.array(theirs))
    columns = [_without_words(left.column(i), gone.column(i)) for i in range(table.num_columns)]
    first = [groups[0].column(i) for i in range(groups[0].num_columns)]
    codecs = {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in first}
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema=table.schema), buffer,
        row_group_size=max(group.num_rows for group in groups), compression=codecs,
        use_deprecated_int96_timestamps=any(column.physical_type == "INT96" for column in first),
    )  # fmt: skip
    return buffer.getvalue(), int(theirs.sum())


def _without_words(left: pa.ChunkedArray, gone: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without the categories that only rows in `gone` had: a file lists its categories, used or not."""
    if not pa.types.is_dictionary(left.type) or not left.num_chunks:
        return left
    words, index = left.chunk(0).dictionary, left.type.index_type
    used, freed = (
        np.unique(np.concatenate([chunk.indices.drop_null().to_numpy() for chunk in column.chunks])) for column in (left, gone)
    )
    kept = np.setdiff1d(np.arange(len(words)), np.setdiff1d(freed, used))
    places = np.zeros(len(words), dtype=np.int64)
    places[kept] = np.arange(len(kept))
    chunks = [
        pa.DictionaryArray.from_arrays(
            pc.take(pa.array(places, index), chunk.indices), words.take(pa.array(kept)), ordered=left.type.ordered
        )
        for chunk in left.chunks
    ]
    return pa.chunked_array(chunks, left.type)


def _replace(path: Path, content: bytes, before: os.stat_result) -> None:
    """Put `content` in the place of a file, with its permissions and its owner."""
    temporary = path.with_name(f".{path.name}.forget")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        now = path.stat()
        if (now.st_ino, now.st_mtime_ns, now.st_size) != (before.st_ino, before.st_mtime_ns, before.st_size):
            raise InputError("was changed meanwhile, so it stays as it is", where=str(path), hint="run this again")
        os.replace(temporary, path)
        flush_folder(path.parent)  # or a power cut could bring the person back
    finally:
        temporary.unlink(missing_ok=True)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot be read or written ({error})", where=str(path), expected=f"a {path.suffix[1:]} table")
