"""A merchant's tables from a database: the same data as from files, never a write, never a password shown."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import tomli_w
from pydantic import ValidationError

from fedrec.cli import main
from fedrec.data import MerchantData, load_merchant, sql
from fedrec.data.source import DataSource
from fedrec.errors import InputError
from fedrec.merchant import read_merchant_file
from simulations.audit import pick_merchant
from simulations.checks import check_federation
from simulations.reference import Pooled

from .helpers import make_federation
from .test_data import EVENTS, ITEMS, TOML, fault, same, write_csv

PASSWORD = "Tr0ub4dor&3/:@%"
"""Of every character that a URL would have to quote."""

ITEMS_SQL = "SELECT sku AS item_id, name AS title, brand FROM products"
EVENTS_SQL = "SELECT customer AS user_id, sku AS item_id, bought_at AS timestamp, price, basket AS basket_id FROM sales"
QUERIES = {"items": ITEMS_SQL, "events": EVENTS_SQL}

PRODUCTS = [("007", "red lamp", "acme"), ("7", "blue lamp", None), ("8", "green mug", "acme")]
SALES = [
    ("01", "007", "2026-01-01", "9.50", "b1"),
    ("01", "8", "2026-01-02T09:30:00", None, "b2"),
    ("1", "7", "2026-01-01", "1.00", None),
]


# The two databases


class Shop:
    """A database with the tables `products` and `sales`, and how a merchant is told of it."""

    def __init__(self, url: str, connect: Callable[[], Any], stamp: str) -> None:
        self.url, self._connect = url, connect
        self.run("CREATE TABLE products (sku text, name text, brand text)")
        self.run(f"CREATE TABLE sales (customer text, sku text, bought_at {stamp}, price numeric(9, 2), basket text)")
        for name, rows in (("products", PRODUCTS), ("sales", SALES)):
            for row in rows:
                self.run(f"INSERT INTO {name} VALUES ({', '.join('NULL' if v is None else repr(v) for v in row)})")

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Do something as the shop itself, which may write."""
        with closing(self._connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        return rows

    def source(self, **changes: Any) -> DataSource:
        """The shop as its merchant's settings name it."""
        password = {} if self.url.startswith("sqlite") else {"password_env": "SHOP_PASSWORD"}
        return DataSource(**{"url": self.url, **QUERIES, **password, **changes})

    def contents(self) -> list[tuple[Any, ...]]:
        return [*self.run("SELECT * FROM products ORDER BY 1"), *self.run("SELECT * FROM sales ORDER BY 1, 2")]


class Server(NamedTuple):
    """A running PostgreSQL."""

    port: int
    sockets: Path

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://keeper@127.0.0.1:{self.port}/postgres"

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(host="127.0.0.1", port=self.port, user="keeper", password=PASSWORD, dbname="postgres")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL server of the tests' own, which asks for a password, on a socket and on loopback."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("PostgreSQL's server is not installed")
    account: dict[str, Any] = {}
    if os.getuid() == 0:  # initdb refuses to be root
        try:
            found = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
        account = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    # Not in pytest's folder: another user must get in, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="fedrec-pg-"))
    try:
        secret, log = folder / "password", folder / "log"
        secret.write_text(PASSWORD)
        if account:
            for path in (folder, secret):
                os.chown(path, account["user"], account["group"])
        initdb = [binaries[-1], "-D", folder / "data", "-U", "keeper", "-A", "scram-sha-256", f"--pwfile={secret}"]
        made = subprocess.run(
            [*initdb, "--no-sync", "--locale=C", "--encoding=UTF8"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            **account,
        )
        assert made.returncode == 0, made.stderr
        port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        command = [binaries[-1].with_name("postgres"), "-D", folder / "data"]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, **account)
        try:
            answer = Server(port, folder)
            _wait_for(answer, process, log)
            yield answer
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


def _wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()}")
            time.sleep(0.05)


@pytest.fixture
def sqlite(tmp_path: Path) -> Shop:
    path = tmp_path / "shop.db"
    return Shop(f"sqlite:///{path}", lambda: sqlite3.connect(path), "text")


@pytest.fixture
def postgres(server: Server, monkeypatch: pytest.MonkeyPatch) -> Shop:
    with server.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    return Shop(server.url, server.connect, "timestamptz")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def shop(request: pytest.FixtureRequest) -> Shop:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def assert_equal(left: MerchantData, right: MerchantData) -> None:
    assert left.catalogue == right.catalogue and left.catalogue.digest == right.catalogue.digest
    assert same(left.histories, right.histories)


# The same data


def test_a_database_gives_what_files_give(shop: Shop, tmp_path: Path) -> None:
    assert_equal(load_merchant(tmp_path, shop.source()), load_merchant(write_csv(tmp_path / "csv", ITEMS, EVENTS)))


def test_the_order_of_a_database_means_nothing(shop: Shop, tmp_path: Path) -> None:
    backwards = {"items": f"{ITEMS_SQL} ORDER BY sku DESC", "events": f"{EVENTS_SQL} ORDER BY bought_at DESC"}
    assert_equal(load_merchant(tmp_path, shop.source(**backwards)), load_merchant(tmp_path, shop.source()))


def test_whole_numbers_stay_whole_next_to_missing_ones(shop: Shop, tmp_path: Path) -> None:
    shop.run("CREATE TABLE articles (number bigint, name text, category integer)")
    shop.run("INSERT INTO articles VALUES (9007199254740993, 'red lamp', 4), (9007199254740992, 'tea', NULL)")
    shop.run("CREATE TABLE orders (customer integer, number bigint, bought_at date)")
    shop.run("INSERT INTO orders VALUES (7, 9007199254740993, '2026-01-02'), (7, 9007199254740992, '2026-01-01')")
    queries = {
        "items": "SELECT number AS item_id, name AS title, category FROM articles",
        "events": "SELECT customer AS user_id, number AS item_id, bought_at AS timestamp FROM orders",
    }
    data = load_merchant(tmp_path, shop.source(**queries))
    assert data.catalogue.item_ids == ("9007199254740992", "9007199254740993")
    assert data.catalogue.texts == ("tea", "red lamp, 4")
    assert data.histories.user_ids == ("7",) and data.histories.items.tolist() == [0, 1]


@pytest.mark.integration
def test_long_decimals_are_ids_too(postgres: Shop, tmp_path: Path) -> None:
    ids = ("90071992547409930001", "90071992547409930002")
    items = " UNION ALL ".join(f"SELECT {one}::numeric AS item_id, 'tea' AS title" for one in ids)
    events = f"SELECT gen_random_uuid() AS user_id, {ids[1]}::numeric AS item_id, now() AS timestamp"
    data = load_merchant(tmp_path, postgres.source(items=items, events=events))
    assert data.catalogue.item_ids == ids and data.histories.items.tolist() == [1]
    assert len(data.histories.user_ids[0]) == 36


@pytest.mark.integration
def test_a_moment_is_one_basket_in_any_time_zone(postgres: Shop, tmp_path: Path) -> None:
    postgres.run("INSERT INTO sales VALUES ('01', '7', '2026-01-02T18:30:00+09:00', NULL, NULL)")
    far = load_merchant(tmp_path, postgres.source(url=f"{postgres.url}?options=-c%20timezone%3DAsia/Tokyo"))
    items, baskets = far.histories.of(0)
    assert (items.tolist(), baskets.tolist()) == ([0, 1, 2], [0, 1, 1])
    assert_equal(far, load_merchant(tmp_path, postgres.source()))


def test_signs_of_parameters_mean_nothing_in_a_query(shop: Shop, tmp_path: Path) -> None:
    shop.run("INSERT INTO products VALUES ('9', '50% :off lamp', NULL)")
    where = "WHERE name LIKE '%lamp' AND name <> ' :x %s ?'"
    data = load_merchant(tmp_path, shop.source(items=f"{ITEMS_SQL} {where}", events=f"{EVENTS_SQL} WHERE sku <> '8';"))
    assert data.catalogue.texts == ("red lamp, acme", "blue lamp", "50% :off lamp")


def test_a_result_in_parts_is_the_same(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_merchant(tmp_path, shop.source())
    fetched: list[int] = []
    convert = sql.as_text
    monkeypatch.setattr(sql, "as_text", lambda *arguments: fetched.append(len(arguments[0])) or convert(*arguments))
    monkeypatch.setattr(sql, "ROWS", 2)
    assert_equal(load_merchant(tmp_path, shop.source()), whole)
    assert set(fetched) == {2, 1}
    odd = f"{EVENTS_SQL} UNION ALL SELECT 'u', '7', NULL, 1, NULL"
    assert "column timestamp, row 4: is empty" in fault(lambda: load_merchant(tmp_path, shop.source(events=odd), strict=True))


@pytest.mark.integration
def test_a_result_is_not_held_by_the_driver(postgres: Shop, tmp_path: Path) -> None:
    cursor = "SELECT name AS item_id, statement AS title FROM pg_cursors"
    missing = fault(lambda: load_merchant(tmp_path, postgres.source(items=cursor)))
    # The catalogue of open cursors is not empty: the query itself is one.
    assert "item_id '007' is not in the result of [data] items" in missing


@pytest.mark.integration
def test_both_queries_see_the_shop_at_one_moment(postgres: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = sql._read

    def then_sell_something_new(*arguments: Any) -> pd.DataFrame:
        frame = read(*arguments)
        postgres.run("INSERT INTO products VALUES ('new', 'soap', NULL)")
        postgres.run("INSERT INTO sales VALUES ('2', 'new', '2026-02-01', NULL, NULL)")
        return frame

    monkeypatch.setattr(sql, "_read", then_sell_something_new)
    assert len(load_merchant(tmp_path, postgres.source()).catalogue) == len(PRODUCTS)
    assert len(postgres.run("SELECT * FROM sales")) > len(SALES)


def test_a_relative_database_file_starts_at_the_merchant_folder(sqlite: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "50%41 #1?x=y"
    folder.mkdir()
    (tmp_path / "shop.db").rename(folder / "shop.db")
    assert len(load_merchant(folder, sqlite.source(url="sqlite:///shop.db")).catalogue) == len(PRODUCTS)


def test_a_relative_path_starts_at_the_merchant_folder(tmp_path: Path) -> None:
    write_csv(tmp_path / "shop" / "tables")
    assert len(load_merchant(tmp_path / "shop", DataSource(path=Path("tables"))).catalogue) == 3
    assert len(load_merchant(tmp_path, DataSource(path=tmp_path / "shop" / "tables")).catalogue) == 3


def test_files_do_not_import_a_database(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from fedrec.data import load_merchant; load_merchant(Path('.'))"
    found = [sys.executable, "-c", f"{code}; print('sqlalchemy' in sys.modules, 'pandas' in sys.modules)"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        found, cwd=write_csv(tmp_path), env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


# Faults in results: (query that is broken, its SQL, what the message must name)

BAD_RESULTS = {
    "no such table": ("items", "SELECT * FROM nowhere", ("[data] items", "the query failed", "nowhere")),
    "no such column": ("events", "SELECT nothing FROM sales", ("[data] events", "the query failed", "nothing")),
    "not SQL": ("items", "SELEKT 1", ("[data] items", "syntax error")),
    "a missing column": ("items", "SELECT sku AS item_id FROM products", ("[data] items", "'title' is missing", "item_id")),
    "a column that is there twice": ("events", f"SELECT *, 1 AS user_id FROM ({EVENTS_SQL}) AS s", ("'user_id' is there twice",)),
    "no rows": ("events", f"{EVENTS_SQL} WHERE sku = 'x'", ("[data] events", "there are no events")),
    "an id that is there twice": (
        "items", f"{ITEMS_SQL} UNION ALL SELECT '8', 'tea', NULL", ("[data] items, column item_id, row 4", "'8'", "twice")
    ),
    "an unknown item": (
        "events", f"{EVENTS_SQL} UNION ALL SELECT 'u', 'nine', NULL, 1, NULL".replace("NULL, 1", "'2026-01-01', 1"),
        ("[data] events, column item_id, row 4", "'nine'", "[data] items"),
    ),
    "text that is no timestamp": (
        "events", "SELECT '1' AS user_id, '7' AS item_id, '2026-01-01' AS timestamp UNION ALL SELECT '1', '7', 'yesterday'",
        ("[data] events, column timestamp, row 2", "'yesterday'", "ISO 8601"),
    ),
    "a number that is no timestamp": (
        "events", "SELECT 1 AS user_id, 7 AS item_id, 1767225600 AS timestamp",
        ("[data] events, column timestamp, row 1", "'1767225600'", "ISO 8601"),
    ),
    "a missing id": (
        "events", "SELECT NULL AS user_id, '7' AS item_id, '2026-01-01' AS timestamp", ("column user_id, row 1: is empty",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_a_bad_result_is_named_by_query_column_and_row(case: str, shop: Shop, tmp_path: Path) -> None:
    broken, query, named = BAD_RESULTS[case]
    message = fault(lambda: load_merchant(tmp_path, shop.source(**{broken: query}), strict=True))
    assert message.startswith(f"{tmp_path / 'merchant.toml'}, ")
    assert all(part in message for part in named), message
    assert "\n" not in message and "[SQL" not in message


def test_bytes_are_no_text(sqlite: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "ROWS", 2)  # the row is counted over all parts
    items = f"{ITEMS_SQL} UNION ALL SELECT '9', x'00ff', NULL"
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(items=items)))
    assert "[data] items, column title, row 4" in message and "bytes" in message


@pytest.mark.integration
def test_a_list_is_no_text(postgres: Shop, tmp_path: Path) -> None:
    items = "SELECT sku AS item_id, name AS title, ARRAY['a', 'b'] AS category FROM products"
    assert "column category, row 1: a value of the type list" in fault(
        lambda: load_merchant(tmp_path, postgres.source(items=items))
    )


@pytest.mark.integration
def test_a_time_that_python_cannot_hold_is_one_message(postgres: Shop, tmp_path: Path) -> None:
    postgres.run("INSERT INTO sales VALUES ('1', '7', 'infinity', NULL, NULL)")
    assert "[data] events: the query failed (timestamp too large" in fault(lambda: load_merchant(tmp_path, postgres.source()))


# A merchant's database is only read


def test_a_query_cannot_delete(shop: Shop, tmp_path: Path) -> None:
    before = shop.contents()
    query = "DELETE FROM sales RETURNING customer AS user_id, sku AS item_id, bought_at AS timestamp"
    assert "[data] events: the query failed" in fault(lambda: load_merchant(tmp_path, shop.source(events=query)))
    assert shop.contents() == before and len(before) == len(PRODUCTS) + len(SALES)


@pytest.mark.parametrize("statement", ["DROP TABLE sales", "INSERT INTO sales SELECT * FROM sales"])
def test_a_query_is_no_other_statement(statement: str, shop: Shop, tmp_path: Path) -> None:
    before = shop.contents()
    assert "[data] events: the query" in fault(lambda: load_merchant(tmp_path, shop.source(events=statement)))
    assert shop.contents() == before


def test_a_statement_without_a_result_is_named(sqlite: Shop, tmp_path: Path) -> None:
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(items="SAVEPOINT here")))
    assert "[data] items: the query has no result; expected a SELECT" in message


def test_sqlite_is_opened_for_reading(sqlite: Shop, tmp_path: Path) -> None:
    # Both would be there for good with the first row, whatever becomes of the transaction.
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(events="DELETE FROM sales RETURNING *")))
    assert "readonly" in message
    assert "read" in fault(lambda: load_merchant(tmp_path, sqlite.source(events="PRAGMA user_version = 7")))
    assert sqlite.run("PRAGMA user_version") == [(0,)]


def test_a_database_file_that_is_not_there_is_not_made(sqlite: Shop, tmp_path: Path) -> None:
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(url="sqlite:///typo.db")))
    assert "[data] url: there is no connection (unable to open database file)" in message
    assert not (tmp_path / "typo.db").exists()


@pytest.mark.integration
@pytest.mark.parametrize("call", ["nextval('tickets')", "purge()"])
def test_a_postgresql_query_cannot_write_through_a_function(call: str, postgres: Shop, tmp_path: Path) -> None:
    # A sequence keeps its new value even where a transaction is rolled back.
    postgres.run("CREATE SEQUENCE tickets")
    postgres.run("CREATE FUNCTION purge() RETURNS integer LANGUAGE sql AS 'DELETE FROM sales; SELECT 1'")
    query = f"SELECT customer AS user_id, sku AS item_id, bought_at AS timestamp, {call} FROM sales"
    assert "read-only transaction" in fault(lambda: load_merchant(tmp_path, postgres.source(events=query)))
    assert postgres.run("SELECT is_called FROM tickets") == [(False,)]
    assert len(postgres.run("SELECT * FROM sales")) == len(SALES)


@pytest.mark.integration
def test_a_postgresql_query_cannot_leave_its_transaction(postgres: Shop, tmp_path: Path) -> None:
    for escape in ("COMMIT", "SET TRANSACTION READ WRITE"):
        query = f"{EVENTS_SQL}; {escape}; DELETE FROM sales; COMMIT; SELECT 1"
        fault(lambda query=query: load_merchant(tmp_path, postgres.source(events=query)))
        assert len(postgres.run("SELECT * FROM sales")) == len(SALES)


# The password


def locked(path: Path, content: str | bytes = PASSWORD + "\n", mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.mark.integration
def test_the_password_comes_from_a_file(postgres: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_PASSWORD")
    locked(tmp_path / "secret")
    data = load_merchant(tmp_path, postgres.source(password_env=None, password_file="secret"))
    assert len(data.catalogue) == len(PRODUCTS)


@pytest.mark.integration
def test_a_socket_is_a_way_to_the_server(postgres: Shop, server: Server, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://keeper@/postgres?host={server.sockets}&port={server.port}"
    assert len(load_merchant(tmp_path, postgres.source(url=url)).catalogue) == len(PRODUCTS)


@pytest.mark.integration
def test_a_wrong_password_is_refused_and_not_shown(
    postgres: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SHOP_PASSWORD", "wr0ng-Horse")
    with pytest.raises(InputError) as raised:
        load_merchant(tmp_path, postgres.source())
    assert f"{tmp_path / 'merchant.toml'}, [data] url: there is no connection" in str(raised.value)
    assert 'password authentication failed for user "keeper"' in str(raised.value) and "\n" not in str(raised.value)
    assert_hidden("wr0ng-Horse", raised.value, caplog.text)


@pytest.mark.integration
def test_no_password_where_one_is_wanted_is_one_message(postgres: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    message = fault(lambda: load_merchant(tmp_path, postgres.source(password_env=None, url=f"{postgres.url}?passfile=/dev/null")))
    assert "there is no connection" in message and "no password supplied" in message


def assert_hidden(secret: str, error: BaseException, *texts: str) -> None:
    """Nothing that a log or a terminal could print of an error has the secret."""
    shown = [str(error), repr(error), *traceback.format_exception(error), *texts]
    assert not [text for text in shown if secret in text]


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda path: path, "No such file"),
        (lambda path: path.mkdir() or path, "Is a directory"),
        (lambda path: locked(path, mode=0o640), "0640"),
        (lambda path: locked(path, mode=0o604), "0604"),
        (lambda path: locked(path, mode=0o620), "0620"),
        (lambda path: locked(path, "\n"), "empty"),
        (lambda path: locked(path, b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_a_password_file_that_will_not_do_is_refused(
    made: Callable[[Path], Path], named: str, sqlite: Shop, tmp_path: Path
) -> None:
    path = made(tmp_path / "hunter2-in-the-wrong-place")
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(password_file=path)))
    assert message.startswith(f"{tmp_path / 'merchant.toml'}, [data] password_file: ") and named in message
    assert "hunter2" not in message and PASSWORD not in message
    assert ("chmod 600" in message) == (named[0] == "0")


@pytest.mark.parametrize("value", [None, ""])
def test_an_environment_variable_that_is_not_set_is_refused(
    value: str | None, sqlite: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("hunter2", raising=False)
    if value is not None:
        monkeypatch.setenv("hunter2", value)
    message = fault(lambda: load_merchant(tmp_path, sqlite.source(password_env="hunter2")))
    assert "[data] password_env: " in message and "not set" in message and "hunter2" not in message


def test_a_message_that_repeats_the_password_is_not_passed_on() -> None:
    error = ValueError("cannot parse 'PWD=hunter2'\nand more")
    assert sql._reason(error, "hunter2") == "ValueError"
    assert sql._reason(error, "something else") == "cannot parse 'PWD=hunter2'"
    assert sql._reason(ValueError(), None) == "ValueError"


@pytest.mark.parametrize("raised", [ValueError("PWD=hunter2"), ImportError("PWD=hunter2")])
def test_a_driver_that_repeats_the_password_is_not_passed_on(
    raised: Exception, sqlite: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_engine(*arguments: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(sql, "create_engine", create_engine)
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    with pytest.raises(InputError) as found:
        load_merchant(tmp_path, sqlite.source(password_env="SHOP_PASSWORD", url="sqlite+pysqlite:///shop.db"))
    assert type(raised).__name__ in str(found.value)
    assert_hidden("hunter2", found.value)


# No server, no driver


def test_no_server_is_one_message(tmp_path: Path) -> None:
    source = DataSource(url=f"postgresql+psycopg://keeper@127.0.0.1:{free_port()}/shop", **QUERIES)
    message = fault(lambda: load_merchant(tmp_path, source))
    assert "[data] url: there is no connection" in message and "refused" in message and "\n" not in message


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql+psycopg://u@h/d", ("psycopg", "pip install 'fedrec[sql]'")),
        ("carrierpigeon://u@h/d", ("carrierpigeon", "pip install 'fedrec[sql]'")),
        ("postgresql+psycopg_async://u@h/d", ("asynchronous", "postgresql+psycopg://")),
        ("postgresql+psycopg://u@h/d?connect_timeout=soon", ("there is no connection",)),
    ],
)
def test_a_driver_that_is_not_there_is_named(
    url: str, named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "fedrec[sql]" in named[-1]:
        monkeypatch.setitem(sys.modules, "psycopg", None)
    message = fault(lambda: load_merchant(tmp_path, DataSource(url=url, **QUERIES)))
    assert "[data] url: " in message and all(part in message for part in named), message


def test_sqlalchemy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert "pip install 'fedrec[sql]'" in fault(lambda: DataSource(url="sqlite:///shop.db", **QUERIES))


# The settings


URLS_WITH_PASSWORDS = [
    "postgresql+psycopg://keeper:hunter2@db/shop",
    "postgresql://keeper:hun/ter@hunter2@db/shop",
    "postgresql://keeper:@db/shop?password=hunter2",
    "postgresql://keeper@db/shop?password=hunter2",
    "postgresql://keeper@db/shop?sslmode=require&PassWord=hunter2",
    "postgresql://keeper@db/shop?%70assword=hunter2",
    "postgresql://keeper@db/shop?sslpassword=hunter2",
    "postgresql:///host=db password=hunter2",
    "mysql+pymysql://db/shop?passwd=hunter2",
    "mssql+pyodbc:///?odbc_connect=SERVER%3Ddb%3BPWD%3Dhunter2",
    "sqlite:///shop.db?token=hunter2",
]
MALFORMED_URLS = [
    "keeper:hunter2@db",
    "postgresql:/keeper:hunter2@db/shop",
    "postgresql:///keeper:hunter2@db/shop",
    "postgresql://keeper:hunter2@db:port/shop",
    "postgresql://keeper:hunter2@[::1/shop",
    "postgresql//keeper:hunter2@db/shop",
    "hunter2",
]


def merchant_toml(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "merchant.toml").write_text(TOML + "\n" + tomli_w.dumps({"data": data}))
    return folder / "merchant.toml"


@pytest.mark.parametrize("url", URLS_WITH_PASSWORDS + MALFORMED_URLS)
def test_a_url_with_a_password_is_refused_and_not_shown(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    path = merchant_toml(tmp_path / "shop", {"url": url, **QUERIES})
    with pytest.raises(InputError) as raised:
        read_merchant_file(path)
    known = "password_env or password_file" if url in URLS_WITH_PASSWORDS else "not a database url"
    assert str(path) in str(raised.value) and "data.url" in str(raised.value) and known in str(raised.value)
    with pytest.raises(ValidationError) as direct:
        DataSource(url=url, **QUERIES)
    assert_hidden("hunter2", direct.value)
    monkeypatch.setattr(sys, "argv", ["fedrec", "data", "check", str(tmp_path / "shop")])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "data.url" in printed.err and printed.out == ""
    assert_hidden("hunter2", raised.value, printed.err, caplog.text)


GOOD_URLS = [
    "postgresql+psycopg://fedrec@db.internal:5432/shop",
    "postgresql+psycopg://fedrec@/shop?host=/run/postgresql&passfile=/etc/fedrec/pgpass",
    "sqlite:////srv/shop@night/passwords.db",
    "mysql+pymysql://fedrec@[::1]:3306/shop?charset=utf8mb4",
]


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_url_without_a_password_is_kept(url: str, tmp_path: Path) -> None:
    data = {"url": url, **QUERIES, "password_env": "SHOP_DB_PASSWORD"}
    assert read_merchant_file(merchant_toml(tmp_path, data)).data == DataSource(**data)


BAD_SETTINGS = {
    "a folder and a database": ({"path": "data", "url": "sqlite:///a.db", **QUERIES}, "path and url"),
    "no items": ({"url": "sqlite:///a.db", "events": EVENTS_SQL}, "no query items"),
    "no events": ({"url": "sqlite:///a.db", "items": ITEMS_SQL}, "no query events"),
    "an empty query": ({"url": "sqlite:///a.db", "items": ITEMS_SQL, "events": " \n"}, "data.events"),
    "a query for a folder": ({"path": "data", "items": ITEMS_SQL}, "items is for a database"),
    "a password for a folder": ({"password_env": "A"}, "password_env is for a database"),
    "two passwords": ({"url": "sqlite:///a.db", **QUERIES, "password_env": "A", "password_file": "b"}, "both given"),
    "a password": ({"url": "sqlite:///a.db", **QUERIES, "password": "hunter2"}, "data.password"),
    "a password for a variable": ({"url": "sqlite:///a.db", **QUERIES, "password_env": "hunter2!"}, "data.password_env"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    data, named = BAD_SETTINGS[case]
    message = fault(lambda: read_merchant_file(merchant_toml(tmp_path, data)))
    assert named in message and "hunter2" not in message, message


# Everyone who reads a merchant's data


def moved_to_sqlite(folder: Path) -> None:
    """Put a merchant's tables into a database and take the files away."""
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        for name in ("items", "events"):
            path = folder / f"{name}.parquet"
            frame = pd.read_parquet(path)
            if "timestamp" in frame.columns:
                frame["timestamp"] = frame["timestamp"].map(pd.Timestamp.isoformat)
            frame.to_sql(name, connection, index=False)
            path.unlink()
    data = {"url": "sqlite:///shop.db", "items": "SELECT * FROM items", "events": "SELECT * FROM events"}
    with (folder / "merchant.toml").open("a") as file:
        file.write("\n" + tomli_w.dumps({"data": data}))


def test_every_reader_of_a_federation_reads_the_database(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, merchants=2)
    before = check_federation(federation)
    for folder in (federation / "merchants").iterdir():
        moved_to_sqlite(folder)
    read = {
        "check": check_federation(federation)["m0"],
        "reference": {one.name: one.data for one in Pooled.read(federation)}["m0"],
        "audit": pick_merchant(federation, "m0").data,
    }
    for data in read.values():
        assert sorted(data.catalogue.item_ids) == sorted(before["m0"].catalogue.item_ids)
        assert data.histories.user_ids == before["m0"].histories.user_ids
        assert len(data.histories.items) == len(before["m0"].histories.items) > 0


def test_a_node_reads_its_database(sqlite: Shop, tmp_path: Path) -> None:
    from clients.merchant import open_merchant
    from clients.site import Site
    from fedrec.merchant import ModelSettings

    merchant_toml(tmp_path, {"url": sqlite.url, **QUERIES})
    merchant = open_merchant(
        Site(
            tmp_path,
            tmp_path / "ledger",
            tmp_path / "replies",
            ModelSettings(),
            0,
            tmp_path / "node.key",
            tmp_path / "roster.txt",
            tmp_path / "model",
        )
    )
    assert merchant.data.catalogue.item_ids == ("007", "7", "8")


def test_the_command_checks_a_database(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "merchant"
    merchant_toml(folder, shop.source().model_dump(exclude_none=True))
    monkeypatch.setattr(sys, "argv", ["fedrec", "data", "check", str(folder), "--json"])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert not stopped.value.code
    row = {"merchant": "shop", "users": 2, "events": 3, "items": 3, "left_out": 0}
    assert json.loads(capsys.readouterr().out)["merchants"] == [row]
    shop.run("INSERT INTO products VALUES ('9', NULL, NULL)")
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out)["merchants"] == [row | {"left_out": 1}]
    monkeypatch.setattr(sys, "argv", ["fedrec", "data", "check", str(folder), "--strict"])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert stopped.value.code == 2
    assert "[data] items, column title, row 4: is empty" in " ".join(capsys.readouterr().err.split())
