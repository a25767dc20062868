"""Reading merchant folders, splitting a source into a federation, and the faults that are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import Catalogue, Columns, DataSource, Histories, ItemDetails, load_central, load_merchant, merchant_folders
from fedrec.data.roles import UserShares
from fedrec.data.rows import check_events, check_items
from fedrec.data.split import public_population, split_source
from fedrec.data.tables import read_table
from fedrec.deploy.units import merchant_toml
from fedrec.errors import InputError
from fedrec.merchant import read_merchant_file

from .conftest import make_catalogue, make_events, write_source

POLICY = {"epsilon": 8.0, "delta": 1e-5}

ITEMS = "item_id,title,brand\n007,red lamp,acme\n7,blue lamp,\n8,green mug,acme\n"
EVENTS = "user_id,item_id,timestamp\n01,007,2026-01-01\n01,8,2026-01-02T09:30:00\n1,7,2026-01-01\n"
TOML = 'name = "shop"\n\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\npopulation = 100\n'


def write_csv(folder: Path, items: str = ITEMS, events: str = EVENTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.csv").write_text(items)
    (folder / "events.csv").write_text(events)
    return folder


def as_parquet(source: Path, target: Path) -> Path:
    """The same tables with real timestamps, as another tool would write them."""
    target.mkdir(parents=True)
    pd.read_csv(source / "items.csv", dtype=str).to_parquet(target / "items.parquet")
    events = pd.read_csv(source / "events.csv", dtype=str)
    events["timestamp"] = pd.to_datetime(events["timestamp"], format="ISO8601")
    events.to_parquet(target / "events.parquet")
    return target


def same(left: Histories, right: Histories) -> bool:
    arrays = all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("offsets", "items", "baskets"))
    return arrays and left.user_ids == right.user_ids


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as raised:
        call()
    return str(raised.value)


# Reading


def test_csv_and_parquet_read_the_same(tmp_path: Path) -> None:
    csv = load_merchant(write_csv(tmp_path / "csv"))
    parquet = load_merchant(as_parquet(tmp_path / "csv", tmp_path / "parquet"))
    assert csv.catalogue == parquet.catalogue
    assert same(csv.histories, parquet.histories)


def test_ids_stay_text(tmp_path: Path) -> None:
    data = load_merchant(write_csv(tmp_path))
    assert data.catalogue.item_ids == ("007", "7", "8")
    assert data.histories.user_ids == ("01", "1")
    assert data.histories.of(0)[0].tolist() == [0, 2]
    assert data.histories.of(1)[0].tolist() == [1]


def test_whole_numbers_in_parquet_become_text(tmp_path: Path) -> None:
    pd.DataFrame({"item_id": [7, 8], "title": ["a", "b"]}).to_parquet(tmp_path / "items.parquet")
    events = pd.DataFrame({"user_id": [1, 1], "item_id": [8, 7], "timestamp": pd.to_datetime(["2026-01-01", "2026-01-02"])})
    events.to_parquet(tmp_path / "events.parquet")
    data = load_merchant(tmp_path)
    assert (data.catalogue.item_ids, data.histories.user_ids) == (("7", "8"), ("1",))
    assert data.histories.items.tolist() == [1, 0]


def test_a_text_joins_the_parts_that_are_there(tmp_path: Path) -> None:
    assert load_merchant(write_csv(tmp_path)).catalogue.texts == ("red lamp, acme", "blue lamp", "green mug, acme")


def test_titles_that_look_like_missing_values_are_titles(tmp_path: Path) -> None:
    items = ITEMS.replace("red lamp", "NA").replace("blue lamp", "null")
    assert load_merchant(write_csv(tmp_path, items)).catalogue.texts[:2] == ("NA, acme", "null")


# Baskets


def test_events_with_one_timestamp_are_one_basket() -> None:
    catalogue = make_catalogue(5)
    times = ["2026-01-02", "2026-01-01", "2026-01-02", "2026-01-01", "2026-01-05"]
    events = pd.DataFrame({"user_id": "u", "item_id": ["i4", "i3", "i0", "i2", "i3"], "timestamp": pd.to_datetime(times)})
    items, baskets = Histories.from_table(events, catalogue).of(0)
    assert items.tolist() == [2, 3, 0, 4, 3]
    assert baskets.tolist() == [0, 0, 1, 1, 2]


def test_the_same_item_twice_in_a_basket_counts_once() -> None:
    events = pd.DataFrame({"user_id": "u", "item_id": ["i1", "i1"], "timestamp": pd.to_datetime(["2026-01-01"] * 2)})
    assert Histories.from_table(events, make_catalogue(3)).items.tolist() == [1]


def test_basket_numbers_start_again_for_each_user() -> None:
    histories = Histories.from_table(make_events(20, make_catalogue(9), 6), make_catalogue(9))
    for user in range(len(histories)):
        baskets = histories.of(user)[1]
        assert baskets[0] == 0
        assert set(np.diff(baskets)) <= {0, 1}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30),
    random=st.randoms(use_true_random=False),
)
def test_the_order_of_rows_means_nothing(rows: list[tuple[int, int, int]], random: object) -> None:
    catalogue = make_catalogue(6)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left, right = (
        pd.DataFrame(
            [(f"u{user}", f"i{item}", pd.Timestamp("2026-01-01") + pd.Timedelta(hours=hour)) for user, item, hour in table],
            columns=[Columns.USER, Columns.ITEM, Columns.TIME],
        )
        for table in (rows, shuffled)
    )
    assert same(Histories.from_table(left, catalogue), Histories.from_table(right, catalogue))


# Faults in tables: (file that is broken, its content, what the message must name)

BAD_TABLES = {
    "items without a title column": ("items", "item_id,brand\n1,acme\n", ("items.csv", "'title'", "item_id, brand")),
    "events without a timestamp column": ("events", "user_id,item_id\n1,7\n", ("events.csv", "'timestamp'")),
    "a catalogue without rows": ("items", "item_id,title\n", ("items.csv", "empty")),
    "a merchant without events": ("events", "user_id,item_id,timestamp\n", ("events.csv", "no events")),
    "an item id that is there twice": (
        "items", "item_id,title\n7,a\n8,b\n7,c\n", ("items.csv", "column item_id", "line 4", "'7'")
    ),
    "an event on an unknown item": (
        "events", EVENTS + "1,nine,2026-01-01\n", ("events.csv", "column item_id", "line 5", "'nine'", "items.csv")
    ),
    "a timestamp that does not parse": (
        "events", EVENTS + "1,7,yesterday\n", ("events.csv", "column timestamp", "line 5", "'yesterday'", "ISO 8601")
    ),
    "a date that does not exist": ("events", EVENTS + "1,7,2026-02-30\n", ("events.csv", "column timestamp", "line 5")),
    "a user without an id": ("events", EVENTS + ",7,2026-01-01\n", ("events.csv", "column user_id", "line 5", "empty")),
    "an event without an item": ("events", EVENTS + "1,,2026-01-01\n", ("events.csv", "column item_id", "line 5", "empty")),
    "an event without a time": ("events", EVENTS + "1,7,\n", ("events.csv", "column timestamp", "line 5", "empty")),
    "an item id of blanks": ("items", ITEMS + "  ,grey mug,\n", ("items.csv", "column item_id", "line 5", "empty")),
    "an item without any text": ("items", ITEMS + "9,, \n", ("items.csv", "column title", "line 5", "empty", "title or brand")),
    "a file of no bytes": ("items", "", ("items.csv", "cannot be read")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_named_by_file_column_and_line(case: str, tmp_path: Path) -> None:
    broken, content, named = BAD_TABLES[case]
    write_csv(tmp_path, **{broken: content})
    message = fault(lambda: load_merchant(tmp_path, strict=True))
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("user_id", None, "row 2"), ("item_id", "nine", "row 2"), ("timestamp", None, "row 2")],
)
def test_a_fault_in_parquet_is_named_by_row(column: str, value: str | None, named: str, tmp_path: Path) -> None:
    folder = as_parquet(write_csv(tmp_path / "csv"), tmp_path / "parquet")
    events = pd.read_parquet(folder / "events.parquet")
    events.loc[2, column] = value
    events.to_parquet(folder / "events.parquet")
    message = fault(lambda: load_merchant(folder, strict=True))
    assert "events.parquet" in message and f"column {column}" in message and named in message


def test_both_kinds_of_a_table_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path)
    pd.read_csv(tmp_path / "items.csv").to_parquet(tmp_path / "items.parquet")
    message = fault(lambda: load_merchant(tmp_path))
    assert "items.parquet" in message and "items.csv" in message and str(tmp_path) in message


@pytest.mark.parametrize("name", ["items", "events"])
def test_a_table_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    (write_csv(tmp_path) / f"{name}.csv").unlink()
    message = fault(lambda: load_merchant(tmp_path))
    assert str(tmp_path) in message and f"{name}.parquet or {name}.csv" in message


def test_a_parquet_file_that_is_none_is_named(tmp_path: Path) -> None:
    (write_csv(tmp_path) / "items.csv").unlink()
    (tmp_path / "items.parquet").write_bytes(b"not parquet")
    assert "items.parquet: cannot be read" in fault(lambda: load_merchant(tmp_path))


# merchant.toml


def test_merchant_toml_is_read(tmp_path: Path) -> None:
    (tmp_path / "merchant.toml").write_text(TOML)
    read = read_merchant_file(tmp_path / "merchant.toml")
    assert (read.name, read.privacy.population) == ("shop", 100)


def test_merchant_toml_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "merchant.toml").write_text(TOML, encoding="utf-8-sig")
    assert read_merchant_file(tmp_path / "merchant.toml").name == "shop"


BAD_TOML = {
    "no file": (None, "No such file"),
    "unknown key": (TOML + "epsilom = 3.0\n", "privacy.epsilom"),
    "no population": (TOML.replace("population = 100\n", ""), "privacy.population"),
    "population of nobody": (TOML.replace("100", "0"), "privacy.population"),
    "a name that leaves the folder": (TOML.replace("shop", "../shop"), "name"),
    "not TOML": ("name = \n", "not valid TOML"),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_a_bad_merchant_file_is_named_with_its_key(case: str, tmp_path: Path) -> None:
    content, named = BAD_TOML[case]
    path = tmp_path / "merchant.toml"
    if content is not None:
        path.write_text(content)
    message = fault(lambda: read_merchant_file(path))
    assert str(path) in message and named in message


# Splitting


def users_of(path: Path) -> set[str]:
    return set(pd.read_parquet(path)[Columns.USER])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), merchants=3, users=200)


@pytest.fixture(scope="module")
def federation(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("split") / "federation"
    split_source(source, out, 0.2, POLICY)
    return out


def test_held_out_users_leave_their_merchant_with_all_their_events(source: Path, federation: Path) -> None:
    central, events = pd.read_parquet(federation / "central" / "events.parquet"), pd.read_parquet(source / "events.parquet")
    for name, all_rows in events.groupby("merchant"):
        held = central[central["merchant"] == name]
        kept = pd.read_parquet(federation / "merchants" / str(name) / "events.parquet")
        assert len(held) and not set(held["user_id"]) & set(kept["user_id"])
        assert len(held) + len(kept) == len(all_rows)
        assert len(held) == all_rows["user_id"].isin(held["user_id"]).sum()


def test_about_the_requested_share_is_held_out(source: Path, tmp_path: Path) -> None:
    for share in (0.1, 0.5):
        summary = split_source(source, tmp_path / f"{share}", share, POLICY)
        users = summary["held_out_users"].sum() + summary["users"].sum()
        # 600 independent draws: five standard deviations.
        assert abs(summary["held_out_users"].sum() / users - share) < 5 * (share * (1 - share) / 600) ** 0.5


def test_the_split_does_not_depend_on_the_order_of_rows(source: Path, federation: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "source"
    shuffled.mkdir()
    for name in ("events", "items"):
        pd.read_parquet(source / f"{name}.parquet").sample(frac=1, random_state=3).to_parquet(shuffled / f"{name}.parquet")
    split_source(shuffled, tmp_path / "out", 0.2, POLICY)
    for path in sorted(federation.glob("**/events.parquet")):
        assert users_of(path) == users_of(tmp_path / "out" / path.relative_to(federation))


def test_the_summary_tells_what_was_written(source: Path, tmp_path: Path) -> None:
    summary = split_source(source, tmp_path / "out", 0.2, POLICY).set_index("merchant")
    for folder in merchant_folders(tmp_path / "out"):
        data, row = load_merchant(folder), summary.loc[folder.name]
        assert (len(data.histories), len(data.catalogue)) == (row["users"], row["items"])
        policy = read_merchant_file(folder / "merchant.toml").privacy
        assert (policy.population, policy.epsilon) == (public_population(int(row["users"])), 8.0)


def test_a_folder_that_is_not_empty_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    assert str(tmp_path) in fault(lambda: split_source(source, tmp_path, 0.2, POLICY))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float, source: Path, tmp_path: Path) -> None:
    assert "--holdout" in fault(lambda: split_source(source, tmp_path / "out", share, POLICY))
    assert not (tmp_path / "out").exists()


def edited(source: Path, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    folder.mkdir()
    change(pd.read_parquet(source / "events.parquet")).to_parquet(folder / "events.parquet", index=False)
    pd.read_parquet(source / "items.parquet").to_parquet(folder / "items.parquet", index=False)
    return folder


def put(column: str, row: int, value: str | None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**{column: frame[column].where(frame.index != row, value)})


BAD_SOURCES = {
    "no merchant column": (lambda frame: frame.drop(columns="merchant"), ("events.parquet", "'merchant'")),
    "an event of no merchant": (put("merchant", 5, None), ("events.parquet", "column merchant", "row 5")),
    "a merchant whose name is no folder name": (put("merchant", 5, "a/b"), ("events.parquet", "column merchant", "row 5", "a/b")),
    "a merchant that would leave OUT": (put("merchant", 5, "../m"), ("events.parquet", "column merchant", "row 5", "../m")),
    "an unknown item": (put("item_id", 5, "nine"), ("events.parquet", "column item_id", "row 5")),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_named_and_nothing_is_written(case: str, source: Path, tmp_path: Path) -> None:
    change, named = BAD_SOURCES[case]
    bad = edited(source, tmp_path / "bad", change)
    message = fault(lambda: split_source(bad, tmp_path / "out", 0.2, POLICY, strict=True))
    assert all(part in message for part in named), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("holdout", [1e-9, 1 - 1e-9])
def test_a_split_with_one_empty_side_is_refused_and_leaves_nothing(holdout: float, source: Path, tmp_path: Path) -> None:
    assert "--holdout" in fault(lambda: split_source(source, tmp_path / "out", holdout, POLICY))
    assert not (tmp_path / "out").exists()


# Catalogues and central groups


def test_merchants_with_a_shared_catalogue_make_one_central_group(federation: Path) -> None:
    central = load_central(federation)
    assert [group.name for group in central.groups] == ["all"]
    assert list(central.groups[0].positions) == list(range(len(central.catalogue)))


def test_merchants_with_own_catalogues_keep_them_and_make_a_central_group_each(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", merchants=2, users=40, items=30, own_catalogues=True)
    items = pd.read_parquet(source / "items.parquet")
    events = pd.read_parquet(source / "events.parquet")
    # m1 sells only the later items, m0 all of them.
    late = {f"i{i}" for i in range(10, 30)}
    items = items[(items["merchant"] == "m0") | items["item_id"].isin(late)]
    events = events[(events["merchant"] == "m0") | events["item_id"].isin(late)]
    items.to_parquet(source / "items.parquet", index=False)
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, tmp_path / "out", 0.3, POLICY)

    own = {folder.name: load_merchant(folder).catalogue for folder in merchant_folders(tmp_path / "out")}
    assert {name: len(catalogue) for name, catalogue in own.items()} == {"m0": 30, "m1": 20}
    central = load_central(tmp_path / "out")
    assert len(central.catalogue) == 30
    for group in central.groups:
        subset = central.catalogue.subset(np.asarray(group.positions))
        assert sorted(subset.item_ids) == sorted(own[group.name].item_ids)
        assert set(group.histories.items) <= set(group.positions)


def test_merchants_that_are_numbers_split_and_load(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", merchants=2, users=40, own_catalogues=True)
    for name in ("items", "events"):
        frame = pd.read_parquet(source / f"{name}.parquet")
        frame.assign(merchant=frame["merchant"].str[1:].astype(int)).to_parquet(source / f"{name}.parquet", index=False)
    summary = split_source(source, tmp_path / "out", 0.3, POLICY)
    assert summary["items"].tolist() == [30, 30]
    assert [group.name for group in load_central(tmp_path / "out").groups] == ["0", "1"]


def test_an_event_on_another_merchants_item_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", merchants=2, own_catalogues=True)
    items = pd.read_parquet(source / "items.parquet")
    items[(items["merchant"] == "m0") | (items["item_id"] != "i3")].to_parquet(source / "items.parquet", index=False)
    message = fault(lambda: split_source(source, tmp_path / "out", 0.3, POLICY, strict=True))
    assert "'i3'" in message and "m1" in message and "events.parquet" in message
    assert not (tmp_path / "out").exists()


def test_central_events_need_a_merchant_where_the_items_have_one(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", merchants=2, own_catalogues=True)
    split_source(source, tmp_path / "out", 0.3, POLICY)
    path = tmp_path / "out" / "central" / "events.parquet"
    pd.read_parquet(path).drop(columns="merchant").to_parquet(path)
    message = fault(lambda: load_central(tmp_path / "out"))
    assert str(path) in message and "'merchant'" in message


def test_a_folder_without_merchants_says_how_to_make_one(tmp_path: Path) -> None:
    message = fault(lambda: merchant_folders(tmp_path))
    assert str(tmp_path) in message and "fedrec data split" in message


def test_catalogues_with_the_same_texts_have_the_same_keys_and_digest() -> None:
    left, right = Catalogue(("a", "b"), ("red mug", "tea")), Catalogue(("x", "y"), ("red mug", "tea"))
    assert left.digest == right.digest and left.keys.tolist() == right.keys.tolist()
    assert left.digest != Catalogue(("a", "b"), ("tea", "red mug")).digest


def test_events_keep_the_order_of_the_file(tmp_path: Path) -> None:
    catalogue = make_catalogue(9)
    events = make_events(10, catalogue, 4).sample(frac=1, random_state=1)
    pd.DataFrame({"item_id": catalogue.item_ids, "title": catalogue.texts}).to_csv(tmp_path / "items.csv", index=False)
    events.to_csv(tmp_path / "events.csv", index=False)
    items = check_items(read_table(tmp_path / "items.csv"), "items.csv")
    checked, _ = check_events(read_table(tmp_path / "events.csv"), items)
    assert checked[Columns.USER].tolist() == events[Columns.USER].tolist()


# Public population


@settings(max_examples=100, deadline=None)
@given(users=st.integers(1, 10**9))
def test_the_population_is_close_and_coarse(users: int) -> None:
    population = public_population(users)
    assert abs(population - users) <= 0.35 * users
    assert len(str(population).rstrip("0")) <= 2


def test_nobody_has_no_population() -> None:
    with pytest.raises(ValueError, match="positive"):
        public_population(0)


def test_ids_that_merchants_use_for_different_things_get_the_merchants_name_at_the_server(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", users=30, own_catalogues=True)
    items = pd.read_parquet(source / "items.parquet")
    items["title"] = items["merchant"] + " sells " + items["title"]
    items.to_parquet(source / "items.parquet", index=False)
    split_source(source, tmp_path / "out", 0.3, POLICY)
    central = load_central(tmp_path / "out")
    assert len(central.catalogue) == len(items)
    for group in central.groups:
        texts = [central.catalogue.texts[position] for position in group.positions]
        assert all(text.startswith(f"{group.name} sells") for text in texts)


def test_an_id_with_two_texts_in_the_central_catalogue_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", users=30, own_catalogues=True)
    split_source(source, tmp_path / "out", 0.3, POLICY)
    path = tmp_path / "out" / "central" / "items.parquet"
    items = pd.read_parquet(path)
    items.loc[0, "title"] = "something else"
    items.to_parquet(path, index=False)
    with pytest.raises(InputError, match="different texts"):
        load_central(tmp_path / "out")


# Kinds of events, and what is known of items

KINDS = (
    "user_id,item_id,timestamp,event\n1,007,2026-01-01,Purchase\n1,7,2026-01-02,view\n1,8,2026-01-03, VIEW \n1,8,2026-01-04,\n"
    "1,7,2026-01-05,rating\n1,,2026-01-06,search\n1,9,2026-01-07,click\n1,7,2026-01-08,Return\n1,7,2026-01-09,impression\n"
)


def bought(folder: Path, **settings: object) -> list[str]:
    data = load_merchant(folder, DataSource.model_validate(settings))
    return [data.catalogue.item_ids[item] for item in data.histories.of(0)[0]]


def test_what_was_only_shown_or_looked_for_is_no_history(tmp_path: Path) -> None:
    data = load_merchant(write_csv(tmp_path, events=KINDS), strict=True)  # none of it is a fault
    assert bought(tmp_path) == ["007", "8", "7"]
    assert data.kinds == {"purchase": 2, "view": 2, "rating": 1, "search": 1, "click": 1, "return": 1, "impression": 1}
    reasons = {one.reason: (one.rows, one.fault) for one in data.left_out}
    assert reasons.pop("event is a return") == (1, False)
    said = "event is of the kind {!r}, which is no history"
    assert reasons == {said.format(kind): (1 + (kind == "view"), False) for kind in ("view", "search", "click", "impression")}


def test_a_merchant_says_which_kinds_count(tmp_path: Path) -> None:
    write_csv(tmp_path, events=KINDS.replace("1,9,", "1,8,"))
    assert bought(tmp_path, history_events=["View", "click"]) == ["7", "8", "8"]
    assert bought(tmp_path, history_events=["purchase"]) == ["007", "8"]
    (tmp_path / "merchant.toml").write_text(TOML + '[data]\nhistory_events = ["return"]\n')
    assert "never a purchase" in fault(lambda: read_merchant_file(tmp_path / "merchant.toml"))
    nothing = fault(lambda: bought(tmp_path, history_events=["gift"]))
    assert "nothing is left of the events" in nothing and "history_events in [data]" in nothing


def test_a_deployment_writes_the_kinds_and_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / "merchant.toml").write_text(TOML + '[data]\nhistory_events = ["View", "click"]\n')
    file = read_merchant_file(tmp_path / "merchant.toml")
    (tmp_path / "merchant.toml").write_text(merchant_toml(file, guessed=False))
    assert read_merchant_file(tmp_path / "merchant.toml") == file and file.data.history_events == ("view", "click")


def test_a_deployment_writes_who_chooses_and_whether_the_own_layer_ranks(tmp_path: Path) -> None:
    path = tmp_path / "merchant.toml"
    path.write_text(TOML + "[users]\nchoose = 0.2\n[recommender]\nown_layer = false\n")
    file = read_merchant_file(path)
    path.write_text(merchant_toml(file, guessed=False))
    assert read_merchant_file(path) == file and (file.users, file.recommender.own_layer) == (UserShares(choose=0.2), False)
    path.write_text(TOML)
    without = read_merchant_file(path)
    path.write_text(merchant_toml(without, guessed=False))
    assert read_merchant_file(path) == without and without.users is None and "# choose = 0.1" in path.read_text()


def test_a_column_of_many_kinds_is_left_out_in_few_lines(tmp_path: Path) -> None:
    rows = "".join(f"1,7,2026-01-01,note {i}\n" for i in range(30))
    data = load_merchant(write_csv(tmp_path, events=KINDS + rows), DataSource(history_events=("purchase",)))
    many = [one.rows for one in data.left_out if "another kind" in one.reason]
    assert len(data.left_out) == 12 and len(many) == 1
    assert sum(one.rows for one in data.left_out) == 7 + 30


def test_the_server_and_a_split_leave_out_what_was_only_shown(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", merchants=2)
    events = pd.read_parquet(source / "events.parquet")
    viewed = events.assign(event="view", user_id="only-looks")
    pd.concat([events.assign(event="purchase"), viewed]).to_parquet(source / "events.parquet", index=False)
    split_source(source, tmp_path / "made", 0.3, POLICY)
    kept = pd.concat([pd.read_parquet(path) for path in (tmp_path / "made").rglob("events.parquet")])
    assert len(kept) == len(events) and set(kept["event"]) == {"purchase"} and "only-looks" not in set(kept["user_id"])
    path = tmp_path / "made" / "central" / "events.parquet"
    before = load_central(tmp_path / "made")
    central = pd.read_parquet(path)
    pd.concat([central, central.assign(event="click")]).to_parquet(path, index=False)
    after = load_central(tmp_path / "made")
    assert same(after.groups[0].histories, before.groups[0].histories)
    assert after.kinds == {"purchase": len(central), "click": len(central)}


def test_brand_category_and_price_are_kept_in_the_catalogues_order(tmp_path: Path) -> None:
    items = 'item_id,title,brand,price\n9,a,Acme,"12,50"\n8,b,,"1,299.00"\n7,c, acme ,3\n6,d,x,free\n5,e,x,inf\n'
    details = load_merchant(write_csv(tmp_path, items, EVENTS.replace("007", "9"))).details
    assert details.brand is not None and details.price is not None and details.category is None
    assert details.brand.tolist() == ["Acme", "", "acme", "x", "x"]
    np.testing.assert_array_equal(details.price, [12.5, np.nan, 3.0, np.nan, np.nan])
    again = ItemDetails.from_table(pd.DataFrame(details.columns()))
    np.testing.assert_array_equal(again.price, details.price)
    assert again.brand is not None and again.brand.tolist() == details.brand.tolist() and again.category is None
