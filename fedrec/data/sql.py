"""A merchant's tables as the results of two queries; the database is never written to.

Import it only where a URL is given: it needs SQLAlchemy. A password is read when the
connection is opened and is kept nowhere. An error shows the first line of what the database
said: never the URL, a query's parameters or a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pandas as pd
from sqlalchemy import URL, Connection, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from fedrec.data.schema import Columns as C
from fedrec.data.source import DataSource
from fedrec.errors import InputError

__all__ = ["place_of", "read_queries"]

ROWS = 50_000
"""Rows that are fetched and converted at a time."""

TRANSACTION = {"postgresql": {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}}
"""How a dialect's transaction is made read-only, and both queries see the shop at one moment."""

TEXT = frozenset({C.USER, C.ITEM, *C.TEXT})
AS_TEXT = (str, int, float, Decimal, UUID, date)


def place_of(folder: Path, key: str) -> str:
    """What an error calls a setting of the `[data]` table."""
    return f"{folder / 'merchant.toml'}, [data] {key}"


def read_queries(source: DataSource, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results of the queries `items` and `events`; ids and texts are text, as in a CSV file.

    Args:
        source: settings with a `url`.
        folder: the merchant folder, for relative paths and for the names of errors.

    Raises:
        InputError: no password, no driver, no connection, or a query that fails.
    """
    password = _password(source, folder)
    with _connected(source, folder, password) as connection:
        items = _read(connection, str(source.items), place_of(folder, "items"), password)
        return items, _read(connection, str(source.events), place_of(folder, "events"), password)


def _password(source: DataSource, folder: Path) -> str | None:
    # Messages do not repeat a setting's value: somebody may have put the password itself there.
    if source.password_env is not None:
        if not (password := os.environ.get(source.password_env)):
            raise InputError("the environment variable that it names is not set", where=place_of(folder, "password_env"))
        return password
    if source.password_file is None:
        return None
    where = place_of(folder, "password_file")
    try:
        with (folder / source.password_file).open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read()
        password = content.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", where=where) from None
    except UnicodeDecodeError:
        raise InputError("the file is not UTF-8 text", where=where, expected="the password and nothing else") from None
    if mode & 0o077:
        raise InputError(
            f"the file's mode is {mode & 0o777:04o}, so others than its owner may use it",
            where=where,
            expected="a file for its owner only",
            hint="chmod 600 it",
        )
    if not password:
        raise InputError("the file is empty", where=where, expected="the password and nothing else")
    return password


@contextmanager
def _connected(source: DataSource, folder: Path, password: str | None) -> Iterator[Connection]:
    """A connection that cannot write, as far as the database can be told; it is never committed."""
    where = place_of(folder, "url")
    url = make_url(str(source.url))
    try:
        engine = create_engine(_url(url, folder, password), poolclass=NullPool, hide_parameters=True)
        if engine.dialect.is_async:
            raise InputError("the driver is an asynchronous one", where=where, expected="such as postgresql+psycopg://")
        connection = engine.connect().execution_options(**TRANSACTION.get(url.get_backend_name(), {}))
    except InputError:
        raise
    except (ImportError, NoSuchModuleError) as error:
        raise InputError(
            f"the database driver cannot be loaded ({_reason(error, password)})",
            where=where,
            hint="for PostgreSQL, pip install 'fedrec[sql]' and begin the url with postgresql+psycopg://; "
            "another database needs a driver of its own",
        ) from None
    except Exception as error:  # a driver raises what it likes on a parameter that it does not like
        raise InputError(f"there is no connection ({_reason(error, password)})", where=where) from None
    with connection:
        yield connection


def _url(url: URL, folder: Path, password: str | None) -> URL:
    if url.get_backend_name() == "sqlite":
        # Opened by name alone, SQLite would make a file that is not there.
        file = (folder / (url.database or "")).absolute()
        url = url.set(database=f"file:{quote(str(file))}").update_query_dict({"mode": "ro", "uri": "true"})
    return url if password is None else url.set(password=password)


def _read(connection: Connection, query: str, where: str, password: str | None) -> pd.DataFrame:
    # As it is written: neither `%` nor `:name` stands for a parameter. The rows are streamed, on PostgreSQL
    # from a cursor of the server, which takes one SELECT and no second statement that could end the transaction.
    options = {"no_parameters": True, "stream_results": True, "max_row_buffer": ROWS}
    frames: list[pd.DataFrame] = []
    try:
        result = connection.exec_driver_sql(query, execution_options=options)
        if not result.returns_rows:
            raise InputError("the query has no result", where=where, expected="a SELECT")
        columns = list(result.keys())
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise InputError(f"column {twice[0]!r} is there twice", where=where, hint="rename one of them with AS")
        for number, rows in enumerate(result.partitions(ROWS)):
            values = zip(columns, zip(*rows, strict=True), strict=True)
            frames.append(pd.DataFrame({name: _column(name, column, where, number * ROWS) for name, column in values}))
    except SQLAlchemyError as error:
        raise InputError(f"the query failed ({_reason(error, password)})", where=where) from None
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _column(name: str, values: Sequence[Any], where: str, before: int) -> pd.Series:
    """A column whose types are those of a table from a file.

    Left alone, pandas would make floats of whole numbers where a value is missing, and of
    decimals: 7 would become `7.0`, and two long ids could become one.
    """
    if name == C.TIME:  # a number is read as the same digits in a CSV file would be
        return pd.Series([v if v is None or isinstance(v, str | date) else str(v) for v in values], dtype=object)
    if name not in TEXT:
        return pd.Series(values, dtype=object)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, AS_TEXT):
            raise InputError(
                f"a value of the type {type(value).__name__} is not text",
                where=f"{where}, column {name}, row {before + row + 1}",
                hint="convert it in the query",
            )
    return pd.Series([None if value is None else str(value) for value in values], dtype="string")


def _reason(error: Exception, password: str | None) -> str:
    """The first line of what the database or its driver says, unless that repeats the password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return type(cause).__name__ if not text or (password and password in text) else text
