"""Impressions: what counts as one, as an answer, and as what came before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedrec.cli.main import app
from fedrec.data import Histories, load_central, load_merchant
from fedrec.data.demo_shown import NEGATIVE_SHARE, draw_pairs
from fedrec.data.split import split_source
from fedrec.errors import InputError

DAY = pd.Timestamp("2026-01-10")


def write(folder: Path, rows: list[tuple[object, ...]]) -> Path:
    """A merchant folder from (user, item, day, kind, value)."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"i{number}" for number in range(4)]
    pd.DataFrame({"item_id": ids, "title": [f"thing {one}" for one in ids]}).to_csv(folder / "items.csv", index=False)
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event", "value"])
    table["timestamp"] = [DAY + pd.Timedelta(days=day) for day in table["timestamp"]]
    table.to_csv(folder / "events.csv", index=False)
    (folder / "merchant.toml").write_text('name = "shop"\n[privacy]\nepsilon = 8.0\ndelta = 1e-5\npopulation = 10\n')
    return folder


def answers(folder: Path) -> list[tuple[str, int, int, bool]]:
    """(user, item, baskets before, answer) of each impression."""
    histories = load_merchant(folder).histories
    return of(histories)


def of(histories: Histories) -> list[tuple[str, int, int, bool]]:
    shown, names = histories.shown, np.repeat(histories.user_ids, np.diff(histories.shown.offsets))
    rows = zip(names, shown.items, shown.before, shown.answer, strict=True)
    return [(str(name), int(item), int(before), bool(answer)) for name, item, before, answer in rows]


BOUGHT = [("a", "i0", 0, "purchase", None), ("a", "i1", 3, "purchase", None), ("b", "i2", 1, "purchase", None)]


def test_value_is_the_answer_and_baskets_at_the_same_time_are_not_before(tmp_path: Path) -> None:
    shown = [
        ("b", "i1", 9, "impression", 1), ("a", "i2", 3, "Impression", 0), ("a", "i3", 4, "impression", "1.0"),
        ("a", "i0", 0, "impression", 1), ("nobody", "i0", 5, "impression", 1),
    ]  # fmt: skip
    folder = write(tmp_path, [*BOUGHT, *shown])
    assert answers(folder) == [("a", 0, 0, True), ("a", 2, 1, False), ("a", 3, 2, True), ("b", 1, 1, True)]
    histories = load_merchant(folder).histories
    assert len(histories.items) == 3  # an impression is no history
    assert of(histories.take(np.array([1]))) == answers(folder)[3:]


def test_without_a_value_a_click_or_purchase_answers_the_latest_impression_within_a_week(tmp_path: Path) -> None:
    events = [
        *BOUGHT,
        ("a", "i2", 4, "impression", None), ("a", "i2", 6, "impression", None), ("a", "i2", 8, "click", None),  # the later one
        ("a", "i3", 4, "impression", None), ("a", "i3", 12, "click", None),  # eight days
        ("b", "i3", 4, "impression", None), ("b", "i0", 4, "click", None),  # another item
        ("b", "i1", 5, "impression", 0), ("b", "i1", 6, "purchase", None),  # what it says itself counts
    ]  # fmt: skip
    found = answers(write(tmp_path, events))
    assert [one for one in found if one[3]] == [("a", 2, 2, True)]
    assert len(found) == 5


def test_what_comes_back_answers_nothing(tmp_path: Path) -> None:
    rows = [*BOUGHT, ("a", "i2", 4, "impression", None), ("a", "i2", 5, "purchase", None), ("a", "i3", 4, "impression", None)]
    folder = write(tmp_path, [*rows, ("a", "i3", 5, "purchase", None)])
    events = pd.read_csv(folder / "events.csv")
    events.assign(quantity=[1] * (len(events) - 1) + [-1]).to_csv(folder / "events.csv", index=False)
    assert [one for one in answers(folder) if one[3]] == [("a", 2, 2, True)]


def test_what_is_missing_in_parquet_is_empty_and_a_boolean_is_no_answer(tmp_path: Path) -> None:
    shown = [("a", "i2", day, "impression", None) for day in (4, 5)]
    folder = write(tmp_path, [*BOUGHT, *shown])
    events = pd.read_csv(folder / "events.csv", parse_dates=["timestamp"])
    (folder / "events.csv").unlink()
    found = []
    for values in (pd.Series([*[np.nan] * 4, 1.0]), pd.Series([*[None] * 4, True], dtype="boolean")):
        events.assign(value=values).to_parquet(folder / "events.parquet")
        found.append([one[3] for one in answers(folder)])
    assert found == [[False, True], [False]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("a", "i0", 5, "impression", "0.5"), "value is neither 0 nor 1"),
        (("a", "i0", 5, "impression", "nan"), "value is neither 0 nor 1"),
        (("a", "i0", 5, "impression", "yes"), "value is neither 0 nor 1"),
        (("a", "elsewhere", 5, "impression", 1), "the item is not in the catalogue"),
        ((None, "i0", 5, "impression", 1), "user_id is empty"),
    ],
)
def test_a_faulty_impression_is_left_out_and_counted_or_refused(tmp_path: Path, row: tuple[object, ...], reason: str) -> None:
    folder = write(tmp_path, [*BOUGHT, row, ("a", "i1", 6, "impression", 0)])
    data = load_merchant(folder)
    assert [(one.table, one.reason, one.rows) for one in data.left_out if one.fault] == [("impressions", reason, 1)]
    assert len(data.histories.shown) == 1
    with pytest.raises(InputError, match=r"events\.csv"):
        load_merchant(folder, strict=True)


def test_without_impressions_nothing_is_known(tmp_path: Path) -> None:
    assert load_merchant(write(tmp_path, BOUGHT)).histories.shown is None


def test_split_and_check_carry_impressions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(40):
        rows += [(f"u{user}", f"i{rng.integers(4)}", day, "purchase", None) for day in range(3)]
        for _ in range(3):
            day, answer = int(rng.integers(0, 9)), int(rng.random() < 0.5)
            rows.append((f"u{user}", f"i{rng.integers(4)}", day, "impression", answer))
    write(tmp_path / "source", [*rows, ("stranger", "i0", 1, "impression", 1)])
    events = pd.read_csv(tmp_path / "source" / "events.csv", dtype=str).assign(merchant="shop")
    events.to_csv(tmp_path / "source" / "events.csv", index=False)
    split_source(tmp_path / "source", tmp_path / "fed", 0.3, {"epsilon": 8.0, "delta": 1e-5})
    merchant = load_merchant(tmp_path / "fed" / "merchants" / "shop").histories
    central = load_central(tmp_path / "fed").groups[0].histories
    assert set(merchant.user_ids) | set(central.user_ids) == {f"u{user}" for user in range(40)}
    assert len(merchant.shown) + len(central.shown) == 120
    everything = events[(events.event == "impression") & (events.user_id != "stranger")]
    assert merchant.shown.answer.sum() + central.shown.answer.sum() == (everything["value"].astype(float) == 1).sum()

    found = json.loads(CliRunner().invoke(app, ["data", "check", str(tmp_path / "fed"), "--json"]).stdout)["impressions"]
    assert found["shop"]["impressions"] + found["central/"]["impressions"] == 120
    assert found["shop"]["share"] == pytest.approx(merchant.shown.answer.mean())
    assert found["shop"]["used"] == (merchant.shown.before > 0).sum()
    assert found["shop"]["users_without"] == 0


@pytest.mark.slow
def test_the_demo_draws_each_pair_of_a_visit_and_a_promotion_with_the_same_chance() -> None:
    """Pairs are counted against the product of the two tables, over many draws."""
    promoted = pd.DataFrame(
        [(store, week, "brand", f"p{one}") for store in (1, 2) for week in (1, 2) for one in range(20 * store)],
        columns=["store_id", "week", "merchant", "item_id"],
    )
    visits = pd.DataFrame([(h, s, w, DAY) for h in range(30) for s, w in ((1, 1), (2, 2), (3, 1))])
    visits.columns = ["household_id", "store_id", "week", "transaction_timestamp"]
    every = promoted.merge(visits)
    random = np.random.default_rng(0)
    draws = [draw_pairs(promoted, visits, random) for _ in range(60)]
    assert not any(one.duplicated().any() for one in draws)
    assert all(len(one.merge(every)) == len(one) for one in draws[:5])
    counts = np.array([len(one) for one in draws])
    mean, deviation = NEGATIVE_SHARE * len(every), np.sqrt(NEGATIVE_SHARE * (1 - NEGATIVE_SHARE) * len(every))
    assert abs(counts.mean() - mean) < 4 * deviation / np.sqrt(len(draws))
    assert 0.7 < counts.std() / deviation < 1.3
    by_store = pd.concat(draws)["store_id"].value_counts(normalize=True)
    assert by_store[2] == pytest.approx(2 / 3, abs=0.05)  # twice as many are promoted there
