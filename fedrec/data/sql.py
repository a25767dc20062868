"""A merchant's tables as the results of two queries; the database is never written to.

Import it only where a URL is given: it needs SQLAlchemy. A password is read when the
connection is opened and is kept nowhere. An error shows the first line of what the database
said: never the URL, a query's parameters or a password.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from sqlalchemy import URL, Connection, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from fedrec.data.schema import known_columns
from fedrec.data.source import DataSource
from fedrec.data.tables import Table
from fedrec.data.text import as_text
from fedrec.errors import InputError

__all__ = ["place_of", "read_queries"]

ROWS = 50_000
"""Rows that are fetched and converted at a time."""

TRANSACTION = {"postgresql": {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}}
"""How a dialect's transaction is made read-only, and both queries see the shop at one moment."""


def place_of(folder: Path, key: str) -> str:
    """What an error calls a setting of the `[data]` table."""
    return f"{folder / 'merchant.toml'}, [data] {key}"


def read_queries(source: DataSource, folder: Path) -> tuple[Table, Table]:
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


def _read(connection: Connection, query: str, where: str, password: str | None) -> Table:
    # As it is written: neither `%` nor `:name` stands for a parameter. The rows are streamed, on PostgreSQL
    # from a cursor of the server, which takes one SELECT and no second statement that could end the transaction.
    options = {"no_parameters": True, "stream_results": True, "max_row_buffer": ROWS}

    def place(row: int) -> str:
        return f"row {row + 1}"  # a database client numbers a result from 1

    chunks: dict[str, list[pa.Array]] = defaultdict(list)
    try:
        result = connection.exec_driver_sql(query, execution_options=options)
        if not result.returns_rows:
            raise InputError("the query has no result", where=where, expected="a SELECT")
        names = list(result.keys())
        known = known_columns(names, where, "rename one of them with AS")
        for number, rows in enumerate(result.partitions(ROWS)):
            values = dict(zip(names, zip(*rows, strict=True), strict=True))
            for name in known:
                at = lambda row, name=name, before=number * ROWS: f"{where}, column {name}, {place(before + row)}"  # noqa: E731
                chunks[name] += as_text(values[name], name, at).chunks
    except SQLAlchemyError as error:
        raise InputError(f"the query failed ({_reason(error, password)})", where=where) from None
    columns = {name: pa.chunked_array(chunks[name], pa.large_string()) for name in known}
    return Table(pa.table(columns).to_pandas(), where, tuple(names), place)


def _reason(error: Exception, password: str | None) -> str:
    """The first line of what the database or its driver says, unless that repeats the password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return type(cause).__name__ if not text or (password and password in text) else text
