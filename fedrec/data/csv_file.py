"""Reading a CSV file: pyarrow reads the values, and a pass of the `csv` module finds faults and the lines of rows."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from fedrec.data.schema import Columns as C
from fedrec.data.schema import folded, known_columns
from fedrec.errors import InputError

__all__ = ["read_csv", "without_rows"]

DELIMITERS = ",;\t"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
BLOCK = 2**30
"""The most bytes that are parsed at a time; a row must fit into it."""
FIELD = 2**31 - 1
"""The most characters of a field, for the `csv` module: a quote that is not closed makes a field of the rest of the file."""
NO_VALUES = pa.array([], pa.large_string())


def read_csv(path: Path) -> tuple[pa.Table, tuple[str, ...], Sequence[int]]:
    """Read a CSV file in UTF-8, with commas, semicolons or tabs between its fields.

    Returns:
        The columns of `Columns.ALL` that are there, in text, an empty one null; the names of all columns; and the
        line of the file in which each row begins, counted from 1.

    Raises:
        InputError: another encoding, a quote that is not closed, or a row with more or fewer fields than the
            header, by the line of the file.
        OSError: the file cannot be opened.
    """
    data = path.read_bytes()
    _check_encoding(data, path)
    data = data.removeprefix(UTF8_BOM)
    delimiter, header = _header(data)
    if not (known := known_columns(header, str(path))):
        return pa.table({}), tuple(header), ()
    start, rows = _lines(data, path, delimiter, len(header))
    table = _values(data, delimiter, header, start, known) if rows else pa.table(dict.fromkeys(known, NO_VALUES))
    if len(table) != len(rows):
        raise InputError(f"cannot be read (are its rows {len(table)} or {len(rows)}?)", where=str(path), expected="a csv table")
    return table, tuple(header), rows


def without_rows(path: Path, column: str, value: str) -> tuple[bytes, int]:
    """A CSV file without the rows that hold `value` in `column`; every other byte is as it was.

    Returns:
        The bytes, and how many rows are out of them: none where there is no such column.

    Raises:
        InputError: see `read_csv`.
        OSError: the file cannot be opened.
    """
    data = path.read_bytes()
    _check_encoding(data, path)
    body = data.removeprefix(UTF8_BOM)
    delimiter, header = _header(body)
    if column not in known_columns(header, str(path)):
        return data, 0
    start, _ = _lines(body, path, delimiter, len(header))
    place, lines = header.index(column), _text_lines(body)
    kept, before, removed = [data[: len(data) - len(body)].decode()], 0, 0
    with _reader(body, delimiter, strict=True) as reader:
        for record in reader:
            if record and before >= start and record[place] == value:
                removed += 1
            else:
                kept += lines[before : reader.line_num]
            before = reader.line_num
    return "".join(kept).encode(), removed


def _values(data: bytes, delimiter: str, header: list[str], start: int, known: list[str]) -> pa.Table:
    # Columns by their number, for a header may repeat a name that is not read.
    names = [str(i) for i in range(len(header))]
    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        read_options=arrow_csv.ReadOptions(
            column_names=names, skip_rows=start - 1, skip_rows_after_names=1, block_size=min(len(data) + 1, BLOCK)
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_string()),
            include_columns=[str(header.index(name)) for name in known],
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    return table.rename_columns(known)


def _check_encoding(data: bytes, path: Path) -> None:
    if not data.removeprefix(UTF8_BOM).strip():
        raise InputError("cannot be read (it is empty)", where=str(path), expected="a header and rows")
    advice = {"expected": "UTF-8", "hint": "save as UTF-8 (in Excel: CSV UTF-8)"}
    if data.startswith(UTF16_BOMS):
        raise InputError("the encoding is UTF-16", where=f"{path}, line 1, byte 1", **advice)
    where, found = data.find(b"\0"), "a zero byte, as UTF-16 has them"
    try:
        if where < 0:
            data.decode()
            return
    except UnicodeDecodeError as error:
        where = error.start
        byte = data[where : where + 1]
        found = f"the byte 0x{byte.hex()}, which is {byte.decode('cp1252', 'replace')!r} in cp1252 (Windows) and not UTF-8"
    line = 1 + data.count(b"\n", 0, where) + data.count(b"\r", 0, where) - data.count(b"\r\n", 0, where)
    raise InputError(found, where=f"{path}, line {line}, byte {where + 1} of the file", **advice)


def _header(data: bytes) -> tuple[str, list[str]]:
    """The delimiter by which the header has an item_id, a comma where none does, and the names of the columns."""
    headers = {}
    for delimiter in DELIMITERS:
        with _reader(data, delimiter, strict=False) as reader:
            headers[delimiter] = next(record for record in reader if record)
    found = [one for one, names in headers.items() if folded(C.ITEM) in map(folded, names)]
    delimiter = (found or DELIMITERS)[0]
    return delimiter, headers[delimiter]


def _lines(data: bytes, path: Path, delimiter: str, fields: int) -> tuple[int, array[int]]:
    """The line of the header, and the line of every row, counted as an editor counts them."""
    lines, before = array("q"), 0
    with _reader(data, delimiter, strict=True) as reader:
        try:
            for record in reader:
                if record:
                    if len(record) != fields:
                        raise _wrong_count(record, fields, path, before + 1, reader.line_num)
                    lines.append(before + 1)
                before = reader.line_num
        except csv.Error as error:
            line = _open_quote(data, delimiter, before, reader.line_num)
            raise InputError(
                f"a quote opens a text here and is not closed before the next delimiter ({error})",
                where=f"{path}, line {line}",
                expected='a text in quotes ends in a quote, and one inside it is doubled: "a 5"" pipe"',
                hint="close the quote, or double those inside the text",
            ) from None
    return lines[0], lines[1:]


def _wrong_count(record: list[str], fields: int, path: Path, first: int, last: int) -> InputError:
    if last > first:
        hint = f"a text in quotes goes on to line {last}: is a closing quote missing?"
    elif len(record) == fields + 1 and not record[-1]:
        hint = "take the delimiter off the ends of the lines"
    elif len(record) > fields:
        hint = "put quotes around a text that holds the delimiter"
    else:
        hint = "fill the row up with delimiters, or remove it"
    return InputError(
        f"{len(record)} field{'s' * (len(record) != 1)} where the header has {fields}", where=f"{path}, line {first}", hint=hint
    )


def _open_quote(data: bytes, delimiter: str, before: int, last: int) -> int:
    """The line in which the quote opens at which a record, in the lines after `before` up to `last`, goes wrong."""
    line = opened = before + 1
    quoted, closed, fresh = False, False, True  # inside quotes; just after a closing one; where a field begins
    for text in _text_lines(data)[before:last]:
        for char in text:
            if quoted:
                quoted, closed, fresh = char != '"', char == '"', False
            elif char == '"' and (fresh or closed):
                opened = line if fresh else opened
                quoted, closed, fresh = True, False, False
            elif closed and char not in f"{delimiter}\r\n":
                return opened
            else:
                closed, fresh = False, char in f"{delimiter}\r\n"
        line += 1
    return opened


def _text_lines(data: bytes) -> list[str]:
    """The lines as the `csv` module counts them, with their ends."""
    return list(io.TextIOWrapper(io.BytesIO(data), "utf-8", newline=""))


@contextmanager
def _reader(data: bytes, delimiter: str, *, strict: bool) -> Iterator[Any]:
    limit = csv.field_size_limit(FIELD)  # the module's own, for every reader of the process
    try:
        with io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="") as text:
            yield csv.reader(text, delimiter=delimiter, strict=strict)
    finally:
        csv.field_size_limit(limit)
