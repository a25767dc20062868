"""Values of every kind as the text that a CSV file of them would hold: one rule for Parquet and SQL.

Items are matched by their text and users by their id, so a table must read the same however it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedrec.data.schema import Columns as C
from fedrec.errors import InputError

__all__ = ["as_text", "as_times"]

EXACT = {pa.float16(): 2**11, pa.float32(): 2**24}
"""Up to here a float of a type tells whole numbers apart; a double, which is also Python's float, does up to 2**53."""

YEARS = (np.datetime64("0001-01-01"), np.datetime64("10000-01-01"))
"""The years that a date can have, in Python and in ISO 8601."""


def as_text(values: pa.ChunkedArray | Sequence[Any], column: str, at: Callable[[int], str]) -> pa.ChunkedArray:
    """A column as text, missing values and empty texts as null.

    A whole float is the text of the integer (`12.0` is `12`: pandas makes floats of integers where one is
    missing), a boolean `True` or `False`, a decimal keeps its digits, a UUID is written with dashes; 16 bytes
    are a UUID in a column of ids.

    Args:
        values: a column of Arrow, or what a database's driver gave.
        column: its name, which says whether it holds ids.
        at: names the place of a row.

    Raises:
        InputError: a list, a struct, bytes or another value that is no text, with its row; or ids that are
            floats too large to be told apart.
    """
    if not isinstance(values, pa.ChunkedArray):
        return pa.chunked_array([_texts(values, column, at, 2**53)])
    chunks: list[pa.Array] = []
    for chunk in values.chunks:
        before = sum(map(len, chunks))
        chunks.append(_chunk(chunk, column, lambda row, before=before: at(before + row)))  # type: ignore[misc]
    return pa.chunked_array(chunks, pa.large_string())


def as_times(values: pa.ChunkedArray, at: Callable[[int], str]) -> pa.ChunkedArray:
    """A column of timestamps: in microseconds of UTC where it is one of times or dates, else as text.

    A time outside the years 1 to 9999 cannot be held, and makes a text of the column, as which it is refused.
    """
    kind = values.type
    if not pa.types.is_timestamp(kind) and not pa.types.is_date(kind):
        return as_text(values, C.TIME, at)
    unit = kind.unit if pa.types.is_timestamp(kind) else "D" if pa.types.is_date32(kind) else "ms"
    numbers = values.cast(pa.int32()).cast(pa.int64()) if unit == "D" else values.cast(pa.int64())
    if unit != "ns":
        first, end = (int(year.astype(f"datetime64[{unit}]").astype(np.int64)) for year in YEARS)
        if pc.any(pc.or_(pc.less(numbers, first), pc.greater_equal(numbers, end))).as_py():
            return values.cast(pa.large_string())
    empty = pc.is_null(numbers).to_numpy()
    times = pc.fill_null(numbers, 0).to_numpy().view(f"datetime64[{unit}]").astype("datetime64[us]")
    return pa.chunked_array([pa.array(times, pa.timestamp("us"), mask=empty)])


def _chunk(chunk: pa.Array, column: str, at: Callable[[int], str]) -> pa.Array:
    kind = chunk.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return _not_empty(_utf8(chunk, column, at))
    if pa.types.is_dictionary(kind):
        return _chunk(chunk.dictionary_decode(), column, at)
    exact = EXACT.get(kind, 2**53)
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        return _texts(_values(chunk, at), column, at, exact)
    # A column repeats its values: each is converted once.
    coded = chunk.dictionary_encode()

    def first_row(value: int) -> str:
        return at(pc.index(coded.indices, pa.scalar(value, coded.indices.type)).as_py())

    distinct = _values(coded.dictionary, first_row)
    if exact < 2**53:
        # The shortest digits that name this float: as a double it would have a tail.
        distinct = [None if value is None else float(str(kind.to_pandas_dtype()(value))) for value in distinct]
    return _texts(distinct, column, first_row, exact).take(coded.indices)


def _values(chunk: pa.Array, at: Callable[[int], str]) -> list[Any]:
    try:
        return chunk.to_pylist()
    except (ValueError, OverflowError):
        for row, value in enumerate(chunk):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                raise InputError(f"a value of the type {chunk.type} cannot be read ({error})", where=at(row)) from None
        raise


def _texts(values: Sequence[Any], column: str, at: Callable[[int], str], exact: int) -> pa.Array:
    texts: list[str | None] = []
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else _text(value, column in C.IDS, exact))
        except TypeError:
            raise InputError(
                f"a value of the type {type(value).__name__} is not text",
                where=at(row),
                hint="convert it where the table is made",
            ) from None
        except OverflowError:
            raise InputError(
                f"{value!r} is a float, and floats of this size do not tell whole numbers apart",
                where=at(row),
                hint="store the ids as integers or as text",
            ) from None
    return _not_empty(pa.array(texts, pa.large_string()))


def _text(value: Any, is_id: bool, exact: int) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            return str(value)
        if is_id and abs(value) >= exact:
            raise OverflowError
        return str(int(value))
    if isinstance(value, Decimal):
        return None if value.is_nan() else format(value, "f")
    if isinstance(value, bytes | memoryview) and is_id and len(value) == 16:
        return str(UUID(bytes=bytes(value)))
    if isinstance(value, int | UUID | date):
        return str(value)
    raise TypeError


def _not_empty(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _utf8(chunk: pa.Array, column: str, at: Callable[[int], str]) -> pa.Array:
    """A chunk of strings, which a file may call UTF-8 without their being it."""
    texts = chunk.cast(pa.large_string())
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        for row, value in enumerate(texts.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise InputError("the text is not UTF-8", where=at(row), hint="save the table with texts in UTF-8") from None
        raise
