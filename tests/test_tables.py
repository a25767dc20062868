"""One table in CSV, Parquet and SQL reads the same; what cannot be used is left out and counted, or named by its place."""

from __future__ import annotations

import csv
import io
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from clients.merchant import open_merchant
from fedrec.data import LeftOut, load_central, load_merchant
from fedrec.data.rows import check_events, check_items
from fedrec.data.source import DataSource
from fedrec.data.split import split_source
from fedrec.data.sql import read_queries
from fedrec.data.tables import Table, read_table
from fedrec.data.text import as_text, as_times
from fedrec.errors import InputError
from fedrec.wire import HistogramTask

from .conftest import write_source
from .merchants import open_shop, write_merchant
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_data import EVENTS, ITEMS, POLICY, TOML, fault, same, write_csv

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# The text of a value: (column, what a file or a driver holds, what a CSV file of it says)

ONE = UUID("12345678-1234-5678-1234-567812345678")
EAST = timezone(timedelta(hours=9))
VALUES: dict[str, tuple[str, Any, list[str | None]]] = {
    "strings": ("title", pa.array(["a", None, "", "NULL"]), ["a", None, None, "NULL"]),
    "large strings": ("title", pa.array(["a", None], pa.large_string()), ["a", None]),
    "string views": ("title", pa.array(["a", None], pa.string_view()), ["a", None]),
    "a categorical": ("brand", pa.array(["acme", None, "acme"]).dictionary_encode(), ["acme", None, "acme"]),
    "a categorical of numbers": ("brand", pa.array([7.0, None]).dictionary_encode(), ["7", None]),
    "a categorical that is not all used": ("item_id", pa.DictionaryArray.from_arrays([1], [2.0**53, 7.0]), ["7"]),
    "nullable integers": ("category", pa.array([12, None], pa.int16()), ["12", None]),
    "large integers": ("item_id", pa.array([2**53 + 1, 2**63 - 1]), ["9007199254740993", "9223372036854775807"]),
    "larger integers": ("item_id", pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
    "floats for integers": ("item_id", pa.array([12.0, None, float("nan"), -0.0]), ["12", None, None, "0"]),
    "floats": ("category", pa.array([0.1, 1e300, float("inf")]), ["0.1", str(int(1e300)), "inf"]),
    "short floats": ("category", pa.array([0.1, 12.0, None], pa.float32()), ["0.1", "12", None]),
    "shorter floats": ("category", pa.array([0.1, 12.0], pa.float16()), ["0.1", "12"]),
    "booleans": ("category", pa.array([True, None, False]), ["True", None, "False"]),
    "dates": ("category", pa.array([date(2026, 1, 31)]), ["2026-01-31"]),
    "moments": ("category", pa.array([datetime(2026, 1, 31, 9, 30)]), ["2026-01-31 09:30:00"]),
    "decimals": ("item_id", pa.array([Decimal("12.50"), Decimal("9007199254740993.00")]), ["12.50", "9007199254740993.00"]),
    "long decimals": ("item_id", pa.array([Decimal(10**30)], pa.decimal256(40, 0)), [str(10**30)]),
    "binary UUIDs": ("user_id", pa.array([ONE.bytes, None], pa.binary(16)), [str(ONE), None]),
    "bytes that are UUIDs": ("user_id", pa.array([ONE.bytes]), [str(ONE)]),
    "UUIDs": ("title", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ONE.bytes], pa.binary(16))), [str(ONE)]),
    "nothing": ("title", pa.nulls(2), [None, None]),
    "lists that are all missing": ("title", pa.nulls(2, pa.list_(pa.string())), [None, None]),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_has_one_text(case: str) -> None:
    column, values, texts = VALUES[case]
    assert as_text(pa.chunked_array([values[:1], values[1:]]), column, str).to_pylist() == texts
    if not pa.types.is_floating(values.type) or values.type == pa.float64():
        assert as_text(values.to_pylist(), column, str).to_pylist() == texts  # as a driver gives them


REFUSED: dict[str, tuple[str, Any, str]] = {
    "lists": ("description", pa.array([None, ["a", "b"]]), "list"),
    "structs": ("description", pa.array([None, {"a": 1}]), "dict"),
    "maps": ("description", pa.array([None, [("a", 1)]], pa.map_(pa.string(), pa.int8())), "list"),
    "bytes": ("title", pa.array([None, b"lamp"]), "bytes"),
    "16 bytes in a text": ("title", pa.array([None, ONE.bytes]), "bytes"),
    "other bytes in an id": ("user_id", pa.array([None, b"lamp"]), "bytes"),
    "durations": ("category", pa.array([None, timedelta(1)]), "timedelta"),
    "floats that are too large for an id": ("item_id", pa.array([None, 2.0**53]), "9007199254740992.0"),
    "short floats that are too large for an id": ("item_id", pa.array([None, 2.0**24], pa.float32()), "16777216.0"),
    "a date that Python cannot hold": ("category", pa.array([None, 10**9], pa.int32()).cast(pa.date32()), "date32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_is_no_text_is_refused_by_its_row(case: str) -> None:
    column, values, named = REFUSED[case]
    where = lambda row: f"row {row}"
    message = fault(lambda: as_text(pa.chunked_array([values[:1], values]), column, where))
    assert message.startswith("row 2: ") and named in message


def test_strings_of_parquet_that_are_not_utf8_are_refused_by_row() -> None:
    broken = pa.array([b"a", b"caf\xe9"]).view(pa.string())
    message = fault(lambda: as_text(pa.chunked_array([broken]), "title", lambda row: f"row {row}"))
    assert message.startswith("row 1: the text is not UTF-8")


@quick
@given(
    data=st.data(),
    kind=st.sampled_from([pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.date32(),
        pa.date64(), pa.timestamp("s"), pa.timestamp("us", "Asia/Tokyo"), pa.timestamp("ns"), pa.time32("s"), pa.duration("ms"),
        pa.decimal128(20, 3), pa.binary(), pa.binary(16), pa.string(), pa.list_(pa.int8()), pa.month_day_nano_interval()]),
)  # fmt: skip
def test_any_column_is_text_or_refused(data: st.DataObject, kind: pa.DataType) -> None:
    numbers = data.draw(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5))
    try:
        values = pa.array(numbers, pa.int64()).cast(kind, safe=False)
    except pa.ArrowException:
        assume(kind == pa.list_(pa.int8()) or pa.types.is_interval(kind) or pa.types.is_decimal(kind) or pa.types.is_binary(kind))
        values = pa.nulls(len(numbers), kind)
    for read in (lambda: as_text(pa.chunked_array([values]), "item_id", str), lambda: as_times(pa.chunked_array([values]), str)):
        try:
            out = read()
        except InputError:
            continue
        assert len(out) == len(values)
        assert out.type in (pa.large_string(), pa.timestamp("us"))


# One table, three times

ROWS = [
    # item_id, title, brand, category, description
    (2**53 + 1, "lamp, red", "acme", 12, "a\nb"),
    (2**53, None, "best", None, 'a 5" pipe'),
    (7, "NULL", None, 3, "é"),
]
SALES = [
    # user, item, time, event, quantity
    (ONE, 2**53 + 1, datetime(2026, 1, 31, 9, 30, tzinfo=EAST), "purchase", 2),
    (ONE, 7, datetime(2026, 1, 31, 0, 30, tzinfo=UTC), None, None),
    (UUID(int=5), 7, datetime(2025, 12, 31, tzinfo=UTC), "return", 1),
]
ITEM_COLUMNS, SALE_COLUMNS = "item_id title brand category description", "user_id item_id timestamp event quantity"


def in_csv(folder: Path) -> tuple[Table, Table]:
    for name, columns, rows in (("items", ITEM_COLUMNS, ROWS), ("events", SALE_COLUMNS, SALES)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns.split(), *rows])
    return read_table(folder / "items.csv"), read_table(folder / "events.csv")


def in_parquet(folder: Path) -> tuple[Table, Table]:
    items = pa.table({name: list(values) for name, values in zip(ITEM_COLUMNS.split(), zip(*ROWS, strict=True), strict=True)})
    brand = items["brand"].combine_chunks().dictionary_encode()
    items = items.set_column(2, "brand", brand).set_column(3, "category", items["category"].cast(pa.float64()))
    users, *rest = zip(*SALES, strict=True)
    columns = [pa.array([user.bytes for user in users], pa.binary(16)), *map(list, rest)]
    sales = dict(zip(SALE_COLUMNS.split(), columns, strict=True))
    sales["timestamp"] = pa.array(sales["timestamp"], pa.timestamp("ms", "Asia/Tokyo"))
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(pa.table(sales), folder / "events.parquet", row_group_size=2)
    return read_table(folder / "items.parquet"), read_table(folder / "events.parquet")


def in_sqlite(folder: Path) -> tuple[Table, Table]:
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        connection.execute("CREATE TABLE items (item_id integer, title text, brand text, category real, description text)")
        connection.execute("CREATE TABLE events (user_id blob, item_id integer, timestamp text, event text, quantity integer)")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", ROWS)
        sales = [(user.bytes, item, time.isoformat(), *rest) for user, item, time, *rest in SALES]
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", sales)
        connection.commit()
    source = DataSource(url="sqlite:///shop.db", items="SELECT * FROM items", events="SELECT * FROM events")
    return read_queries(source, folder)


@pytest.mark.parametrize("reader", [in_parquet, in_sqlite])
def test_csv_parquet_and_sql_give_the_same_frames(reader: Callable[[Path], tuple[Table, Table]], tmp_path: Path) -> None:
    expected, found = in_csv(tmp_path), reader(tmp_path)
    pd.testing.assert_frame_equal(found[0].frame, expected[0].frame)
    checked = []
    for items, events in (expected, found):
        catalogue = check_items(items, "items")
        checked.append((catalogue.frame, *check_events(events, catalogue)))
    for left, right in zip(checked[0][:2], checked[1][:2], strict=True):
        pd.testing.assert_frame_equal(left, right)
    assert checked[0][0]["item_id"].tolist() == ["9007199254740993", "9007199254740992", "7"]
    assert checked[0][1]["timestamp"].tolist() == [pd.Timestamp("2026-01-31T00:30")] * 2
    assert [(one.reason, one.rows, one.fault) for one in checked[1][2]] == [("event is a return", 1, False)]


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "+02:00"), pa.date32(), pa.date64()])
def test_times_of_any_kind_are_microseconds(kind: pa.DataType) -> None:
    values = pa.chunked_array([pa.array([None, datetime(2026, 1, 31)], kind)])
    assert as_times(values, str).cast(pa.timestamp("us", "UTC")).to_pylist() == [None, datetime(2026, 1, 31, tzinfo=UTC)]


def test_a_table_indexed_by_pandas_and_a_folder_that_looks_partitioned_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "title=lamp"
    folder.mkdir()
    frame = pd.DataFrame({"item_id": [7], "title": ["mug"], "ignored": [[1, 2]]}).set_index("item_id")
    frame.to_parquet(folder / "items.parquet")
    assert read_table(folder / "items.parquet").frame.to_dict("list") == {"item_id": ["7"], "title": ["mug"]}


# CSV: the file's own lines


CSV_FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a comma without quotes": ("item_id,title\n7,lamp, red\n8,mug\n", ("line 2: 3 fields where the header has 2", "quotes")),
    "a trailing comma": ("item_id,title,brand\n7,red lamp,acme,\n8,mug,best,\n", ("line 2: 4 fields", "ends of the lines")),
    "a row that is too short": ("item_id,title,brand\n7,red lamp,acme\n\n8,mug\n", ("line 4: 2 fields", "header has 3")),
    "after a cell of lines": ('item_id,title\n7,"a\nb\r\nc"\n8,mug,x\n', ("line 5: 3 fields",)),
    "a blank line of spaces": ("item_id,title\n7,lamp\n  \n", ("line 3: 1 field where",)),
    "a quote that is never closed": ('item_id,title\n7,lamp\n8,"mug\n9,pen\n', ("line 3: a quote opens",)),
    "at the end of the file": ('item_id,title\n7,lamp\n8,"mug', ("line 3: a quote opens",)),
    "a quote that the next one closes": ('item_id,title\n7,"lamp\n8,"mug"\n', ("line 2: a quote opens", "close the quote")),
    "a quote late in a record": ('item_id,title,brand\n7,"a\nb","c\n8,"mug",d\n', ("line 3: a quote opens",)),
    "a quote that swallows a row": ('item_id,title,brand\n7,"lamp,acme\n8,mug,best"\n', ("line 2: 2 fields", "to line 3")),
    "a quote after which text goes on": ('item_id,title\n7,"lamp" red\n', ("line 2: a quote opens",)),
    "a column that is there twice": ("item_id,title,title\n7,a,b\n", ("'title' is there twice",)),
    "a header of other words": ("Item ID,TITLE\n7,lamp\n", ("found Item ID", "rename 'Item ID' to 'item_id'")),
    "a header with blanks": ("item_id, title\n7,lamp\n", ("'title' is missing", "rename ' title' to 'title'")),
    "only a header of strangers": ("a|b\n1|2\n", ("'item_id' is missing; found a|b",)),
    "only blank lines": ("\n\n", ("cannot be read (it is empty)",)),
    "only a byte order mark": ("\ufeff\n", ("cannot be read (it is empty)",)),
    "a long quote that is not closed": ('item_id,title\n7,"' + "lamp " * 40_000 + "\n", ("line 2: a quote opens",)),
}


@pytest.mark.parametrize("case", CSV_FAULTS)
def test_a_fault_of_a_csv_file_is_named_by_its_line(case: str, tmp_path: Path) -> None:
    content, named = CSV_FAULTS[case]
    (tmp_path / "items.csv").write_bytes(content.encode())
    message = fault(lambda: check_items(read_table(tmp_path / "items.csv"), "items.csv"))
    assert message.startswith(str(tmp_path / "items.csv")) and all(part in message for part in named), message


ENCODINGS = {
    "cp1252": ("item_id,title\r\n7,lamp\r\n8,café\r\n".encode("cp1252"), ("line 3, byte 29 of", "which is 'é'", "as UTF-8")),
    "latin-1 after a mark": (b"\xef\xbb\xbfitem_id,title\r7,caf\xe9\r", ("line 2, byte 23 of", "save as UTF-8")),
    "in the header": (b"item_id,title,pr\xe9s\n7,lamp,x\n", ("line 1, byte 17 of",)),
    "UTF-16": ("item_id,title\n7,lamp\n".encode("utf-16"), ("line 1, byte 1", "UTF-16", "save as UTF-8")),
    "UTF-16 of the other order": (b"\xfe\xff" + "item_id,title\n".encode("utf-16-be"), ("UTF-16",)),
    "UTF-16 without a mark": ("item_id,title\n7,lamp\n".encode("utf-16-le"), ("line 1, byte 2 of", "UTF-16")),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_another_encoding_is_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    content, named = ENCODINGS[case]
    (tmp_path / "items.csv").write_bytes(content)
    message = fault(lambda: read_table(tmp_path / "items.csv"))
    assert message.startswith(str(tmp_path / "items.csv")) and all(part in message for part in named), message


@pytest.mark.parametrize("content", [
    "\ufeffitem_id,title\n7,lamp\n8,mug\n",
    "\n\r\nitem_id,title\r\n7,lamp\r\n\r\n8,mug",
    "item_id\ttitle\n7\tlamp\n8\tmug\n",
    "title;item_id\nlamp;7\nmug;8\n",
    "item_id,title,,\n7,lamp,,\n8,mug,,\n",
    ',item_id,title,note,note\n0,7,lamp,"a\nb",c\n1,8,mug,,\n',
    'item_id,"title"\r7,"lamp"\r8,"mug"\r',
])  # fmt: skip
def test_ways_to_write_a_csv_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(content.encode())
    frame = read_table(tmp_path / "items.csv").frame
    assert frame[["item_id", "title"]].to_numpy().tolist() == [["7", "lamp"], ["8", "mug"]]


def test_a_long_text_is_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "items.csv").write_text(f"item_id,title\n7,{'lamp' * limit}\n")
    assert len(read_table(tmp_path / "items.csv").frame["title"][0]) == 4 * limit
    assert csv.field_size_limit() == limit


CELL = st.text(st.sampled_from("ab ,;\t\"\n\r'\\N\ufeffé\u2028"), max_size=6)


@quick
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=6), end=st.sampled_from(["\n", "\r\n"]), delimiter=st.sampled_from(",;\t"))
@example(rows=[("", "")], end="\n", delimiter=",")
@example(rows=[("7", "a\r\nb"), ("8", "\r")], end="\n", delimiter=";")
def test_what_a_csv_writer_wrote_is_read_with_its_lines(
    rows: list[tuple[str, str]], end: str, delimiter: str, tmp_path: Path
) -> None:
    parts = []
    for row in [("item_id", "title"), *rows]:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(row)  # which quotes a lone \r too
        parts.append(text.getvalue().removesuffix("\r\n") + end)
    (tmp_path / "items.csv").write_bytes("".join(parts).encode())
    table = read_table(tmp_path / "items.csv")
    found = [tuple(None if pd.isna(cell) else cell for cell in row) for row in table.frame.to_numpy().tolist()]
    assert found == [(item or None, title or None) for item, title in rows]
    before = ["".join(parts[: row + 1]).replace("\r\n", "\n").replace("\r", "\n") for row in range(len(rows))]
    assert [table.place(row) for row in range(len(rows))] == [f"line {1 + text.count(chr(10))}" for text in before]


@quick
@given(data=st.data())
def test_no_csv_file_ends_in_a_traceback(data: st.DataObject, tmp_path: Path) -> None:
    whole = {"items": ITEMS.encode(), "events": EVENTS.encode()}
    name = data.draw(st.sampled_from(["items", "events"]))
    content = whole[name]
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 3))
        put = data.draw(st.sampled_from(["", '"', ",", "\n", "\r", "\0", "\udce9", "\ufeff", ";", "7", "-", "NULL", "\\N"]))
        content = content[:at] + put.encode(errors="surrogateescape") + content[at + cut :]
    for other, text in {**whole, name: content}.items():
        (tmp_path / f"{other}.csv").write_bytes(text)
    try:
        load_merchant(tmp_path)
    except InputError as error:
        assert str(tmp_path) in str(error)


# What is left out

LEFT_OUT: dict[str, tuple[str, str, int]] = {
    # a row of u9 that is added to the events, why it is left out, and how many rows that makes
    "an unknown item": ("u9,nine,2026-01-01\n", "the item is not in the catalogue", 1),
    "an item without a text": ("u9,bare,2026-01-01\n", "the item has no text", 1),
    "no user": (",7,2026-01-01\n", "user_id is empty", 1),
    "a user of MySQL": ("\\N,7,2026-01-01\nNULL,7,2026-01-01\n", "user_id is empty", 2),
    "no item": ("u9,,2026-01-01\n", "item_id is empty", 1),
    "no time": ("u9,7,\nu9,7,NULL\n", "timestamp is empty", 2),
    "no timestamp": ("u9,7,yesterday\n", "timestamp is not ISO 8601", 1),
    "a day that does not exist": ("u9,7,2026-02-30\n", "timestamp is not ISO 8601", 1),
    "a time that pandas would make up": ("u9,7,now\nu9,7,today\n", "timestamp is not ISO 8601", 2),
    "a time that is out of bounds": ("u9,7,0001-01-01T00:00+14:00\n", "timestamp is not ISO 8601", 1),
    "seconds": ("u9,7,1700000000\n", "timestamp is a number", 1),
    "a date in digits": ("u9,7,20260131\nu9,7,2026\n", "timestamp is a number", 2),
    "a float": ("u9,7,1.7e9\n", "timestamp is a number", 1),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_bad_row_is_left_out_and_counted_and_touches_nobody_else(case: str, tmp_path: Path) -> None:
    rows, reason, count = LEFT_OUT[case]
    items = ITEMS + "bare,, \n"
    healthy = load_merchant(write_csv(tmp_path / "healthy", items))
    first, *rest = EVENTS.splitlines(keepends=True)
    folder = write_csv(tmp_path / "bad", items, first + rows + "".join(rest))
    data = load_merchant(folder)
    assert same(data.histories, healthy.histories) and data.catalogue == healthy.catalogue
    own = [one for one in data.left_out if one.table == "events"]
    assert [(one.reason, one.rows, one.fault) for one in own] == [(reason, count, True)]
    assert own[0].first.startswith(f"{folder / 'events.csv'}, column ") and own[0].first.endswith(", line 2")
    (folder / "items.csv").write_text(ITEMS + "bare,lamp, \n" if "no text" not in reason else items)
    message = fault(lambda: load_merchant(folder, strict=True))
    assert "line 2: " in message if "no text" not in reason else "items.csv, column title, line 5: " in message


def test_an_item_is_known_by_any_text_and_left_out_without_one(tmp_path: Path) -> None:
    items = "item_id,title,brand,description\n7,,acme,\n8,NULL,,\n9, ,,a lamp\n10,,,\n,mug,,\n"
    data = load_merchant(write_csv(tmp_path, items, EVENTS + "1,10,2026-01-01\n"))
    assert data.catalogue.item_ids == ("7", "8", "9")
    assert data.catalogue.texts == ("acme", "NULL", "a lamp")
    found = [(one.table, one.reason, one.rows, one.first.rpartition(" ")[2]) for one in data.left_out]
    assert found == [
        ("items", "item_id is empty", 1, "6"),
        ("items", "the item has no text", 1, "5"),
        ("events", "the item has no text", 1, "5"),
        ("events", "the item is not in the catalogue", 1, "2"),
    ]


@pytest.mark.parametrize("header", ["event", "quantity"])
def test_a_return_is_no_purchase_and_no_fault(header: str, tmp_path: Path) -> None:
    bought, returned = (["purchase", ""], ["return", " Return"]) if header == "event" else (
        ["2", "0", "", "NULL", "two", "-", "-0.0", "1-"], ["-1", "-2.0", " -0,5", "\u22123", "-1e3"])  # fmt: skip
    rows = [f'u{number},7,2026-01-01,"{value}"\n' for number, value in enumerate([*bought, *returned])]
    folder = write_csv(tmp_path, ITEMS, f"user_id,item_id,timestamp,{header}\n" + "".join(rows))
    for strict in (False, True):
        data = load_merchant(folder, strict=strict)
        assert data.histories.user_ids == tuple(f"u{number}" for number in range(len(bought)))
        assert [(one.rows, one.fault) for one in data.left_out] == [(len(returned), False)]
        assert data.left_out[0].first.endswith(f"column {header}, line {len(bought) + 2}")


@pytest.mark.parametrize(("rows", "named"), [
    ("1,7,1700000000\n2,7,17000\n3,nine,2026-01-01\n", ("line 2", "'1700000000' is not a timestamp", "2 of 3", "convert it")),
    ("\\N,7,2026-01-01\n\\N,8,2026-01-01\n", ("column user_id, line 2: is empty", "\\N", "nothing is left of the events")),
    ("1,nine,2026-01-01\n", ("'nine'", "nothing is left")),
])  # fmt: skip
def test_a_table_of_which_nothing_is_left_is_refused(rows: str, named: tuple[str, ...], tmp_path: Path) -> None:
    message = fault(lambda: load_merchant(write_csv(tmp_path, ITEMS, "user_id,item_id,timestamp\n" + rows)))
    assert all(part in message for part in named), message


@pytest.mark.parametrize("values", [[1700000000, 1700000001], [1.7e9, 1.8e9], [20260131, 20260130], ["1700000000", "20260131"]])
def test_numbers_in_parquet_are_no_timestamps(values: list[Any], tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "events.csv").unlink()
    pq.write_table(pa.table({"user_id": ["1", "2"], "item_id": ["7", "8"], "timestamp": values}), tmp_path / "events.parquet")
    assert "row 0: '" in (message := fault(lambda: load_merchant(tmp_path))) and "is not a timestamp" in message


def test_a_time_that_nothing_can_hold_is_left_out_of_parquet(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "events.csv").unlink()
    times = pa.array([2**60, 0, None], pa.int64()).cast(pa.timestamp("ms"))
    pq.write_table(pa.table({"user_id": ["1"] * 3, "item_id": ["7"] * 3, "timestamp": times}), tmp_path / "events.parquet")
    data = load_merchant(tmp_path)
    assert len(data.histories.items) == 1
    assert [(one.reason, one.first.rpartition(" ")[2]) for one in data.left_out] == [
        ("timestamp is empty", "2"), ("timestamp is not ISO 8601", "0")
    ]  # fmt: skip


def test_mixed_zones_and_years_are_moments(tmp_path: Path) -> None:
    zones = ["2026-01-31T09:30:00+09:00", "2026-01-31T00:30:00Z", "2026-01-31 00:30"]
    rows = "".join(f"u,7,{time}\n" for time in [*zones, "9999-12-31T23:59:59.123456789", "0001-01-01"])
    data = load_merchant(write_csv(tmp_path, ITEMS, "user_id,item_id,timestamp\n" + rows))
    assert data.histories.baskets.tolist() == [0, 1, 2] and not data.left_out


# Who learns of it


BAD = "u9,nine,2026-01-01\n"


def test_the_log_of_a_merchant_has_the_counts_and_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from clients.site import Site
    from fedrec.merchant import ModelSettings

    (write_csv(tmp_path, ITEMS, EVENTS + BAD) / "merchant.toml").write_text(TOML)
    caplog.set_level(logging.INFO, "fedrec.merchant")
    ledger, replies, key, roster, model = (tmp_path / name for name in ("ledger", "replies", "key", "roster", "model"))
    open_merchant(Site(tmp_path, ledger, replies, ModelSettings(), 0, key, roster, model))
    [line] = [record.getMessage() for record in caplog.records if record.name == "fedrec.merchant"]
    assert line.startswith("merchant shop: left out 1 of the events, the item is not in the catalogue") and "line 5" in line
    assert "u9" not in line and "nine" not in line


def test_a_reply_is_the_same_whatever_was_left_out(tmp_path: Path, tiny_bert_folder: Path) -> None:
    replies = []
    for name in ("healthy", "bad"):
        folder = write_merchant(tmp_path / name)
        if name == "bad":
            events = pd.read_parquet(folder / "events.parquet")
            times = [pd.Timestamp("2026-01-01"), pd.NaT]
            bad = pd.DataFrame({"user_id": ["u9", None], "item_id": ["nine", "i1"], "timestamp": times})
            pd.concat([events, bad]).to_parquet(folder / "events.parquet")
        shop = open_shop(folder, tiny_bert_folder, tmp_path / name / "state")
        assert sum(one.rows for one in shop.data.left_out) == (2 if name == "bad" else 0)
        task = HistogramTask(run="run", noise_multiplier=20.0, delta=1e-5, unit="user")
        replies.append(shop.histogram(task, shop.data.catalogue.keys))
    assert replies[0].statement == replies[1].statement
    assert replies[0].arrays.keys() == replies[1].arrays.keys()
    assert all(np.array_equal(replies[0].arrays[key], replies[1].arrays[key]) for key in replies[0].arrays)


def one_bad(source: Path) -> Path:
    events = pd.read_parquet(source / "events.parquet")
    rows = [events.iloc[0].to_dict() | change for change in ({"item_id": "nine"}, {"merchant": None}, {"user_id": "NULL"})]
    pd.concat([pd.DataFrame(rows), events]).to_parquet(source / "events.parquet", index=False)
    return source


@pytest.mark.parametrize("own", [False, True])
def test_a_split_leaves_the_same_rows_out(own: bool, tmp_path: Path) -> None:
    healthy = split_source(write_source(tmp_path / "a", own_catalogues=own), tmp_path / "healthy", 0.3, POLICY)
    source, told = one_bad(write_source(tmp_path / "b", own_catalogues=own)), list[LeftOut]()
    pd.testing.assert_frame_equal(split_source(source, tmp_path / "out", 0.3, POLICY, tell=told.append), healthy)
    assert sorted((one.reason, one.rows, one.first.rpartition(" ")[2]) for one in told) == [
        ("merchant is empty", 1, "1"), ("the item is not in the catalogue", 1, "0"), ("user_id is empty", 1, "2")
    ]  # fmt: skip
    for path in (tmp_path / "healthy").rglob("*.parquet"):
        other = tmp_path / "out" / path.relative_to(tmp_path / "healthy")
        pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(other))


def test_central_rows_are_left_out_and_counted_too(tmp_path: Path) -> None:
    split_source(write_source(tmp_path / "source", own_catalogues=True), tmp_path / "out", 0.3, POLICY)
    before = load_central(tmp_path / "out")
    one_bad(tmp_path / "out" / "central")
    after = load_central(tmp_path / "out")
    assert [one.rows for one in after.left_out] == [1, 1, 1] and not before.left_out
    assert all(same(left.histories, right.histories) for left, right in zip(before.groups, after.groups, strict=True))
    assert "row 1: is empty" in fault(lambda: load_central(tmp_path / "out", strict=True))


def test_the_commands_show_what_is_left_out(fedrec: Fedrec, tmp_path: Path) -> None:  # noqa: F811
    source = one_bad(write_source(tmp_path / "source"))
    split = fedrec("data", "split", source, "fed")
    assert split.status == 0 and "left out 1 of the events, the item is not in the catalogue" in split.out
    assert fedrec("data", "check", "fed", "--strict").status == 0
    assert_refused(fedrec("data", "split", source, "strict", "--strict"), "events.parquet, column merchant, row 1", "is empty")
    assert not (tmp_path / "strict").exists()
    one_bad(tmp_path / "fed" / "central")
    path = next((tmp_path / "fed" / "merchants").iterdir()) / "events.parquet"
    events = pd.read_parquet(path)
    events.assign(user_id=[r"\N", *events["user_id"][1:]]).to_parquet(path)
    check = fedrec("data", "check", "fed")
    assert check.status == 0 and "some rows cannot be used" in check.out
    merchant, place = path.parent.name, path.relative_to(tmp_path)
    assert f"{merchant}: left out 1 of the events, user_id is empty; the first: {place}, column user_id, row 0" in check.out
    assert "central/: left out 1 of the events, the item is not in the catalogue" in check.out
    assert_refused(fedrec("data", "check", "fed", "--strict"), "events.parquet, column user_id, row 0", r"\N")
