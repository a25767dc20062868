"""Drift is seen where it was put, and not where it was not; its figures are those of the definition, and stay here."""

# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import Catalogue, Columns, Histories, ItemDetails, MerchantData
from fedrec.errors import InputError
from fedrec.privacy import Ledger, Release, head_file
from fedrec.recommender.blend import Blend, TextPart
from fedrec.recommender.drift import Drift, _change, _moved, _rate, measure_drift

from .conftest import make_catalogue
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop

DAY = pd.Timedelta(days=1)
START = pd.Timestamp("2026-01-01")


def shop(rows: list[tuple[str, int, int]], items: int = 12, categories: int = 3) -> MerchantData:
    """From (user, item, day): item `i` is of category `i % categories`."""
    catalogue = Catalogue(tuple(f"i{i:02}" for i in range(items)), tuple(f"thing {i}" for i in range(items)))
    frame = pd.DataFrame(
        [(user, catalogue.item_ids[item], START + day * DAY) for user, item, day in rows],
        columns=[Columns.USER, Columns.ITEM, Columns.TIME],
    )
    category = np.array([f"c{i % categories}" for i in range(items)], dtype=object)
    return MerchantData(catalogue, Histories.from_table(frame, catalogue), details=ItemDetails(category=category))


def vectors(items: int = 12) -> TextPart:
    """Item `i` is followed by item `i + 1`, for certain."""
    e = np.eye(items, dtype=np.float32)
    return TextPart(e, np.roll(e, 1, axis=0), {})


NEXT = Blend({0.0: 1.0, 5.0: 10.0}, {}, 0.0, 0.0)


def drift(data: MerchantData, part: TextPart | None = None, **changes: int) -> Drift:
    settings = {"weeks": 1, "windows": 12, "length": 10, "k": 1, **changes}
    return measure_drift(data, part or vectors(len(data.catalogue)), NEXT, np.zeros(0, dtype=np.int64), **settings)


def walkers(rng: np.random.Generator, weeks: int, users: int = 30, broken_after: int = 99) -> list[tuple[str, int, int]]:
    """Everybody buys the next item each week, until nobody does any more."""
    rows = []
    for user in range(users):
        first = int(rng.integers(12))
        for week in range(weeks):
            step = week if week < broken_after else week + 2
            rows.append((f"u{user}", (first + step) % 12, 7 * week))
    return rows


def test_the_figures_are_those_of_the_definition() -> None:
    """Everybody buys one thing in a window, so that nothing is left to the draw."""
    weeks = [[0, 1, 2], [3, 4, 2], [0, 5, 1]]
    rows = [(f"u{u}", week[u % 3], 7 * number + 1) for number, week in enumerate([[7, 7, 7], *weeks]) for u in range(30)]
    found = drift(shop(rows))
    assert [(window.baskets, window.buyers) for window in found.windows] == [(30, 30)] * 3, (
        "before the first window there is more"
    )
    counts = np.array([np.bincount([item % 3 for item in week], minlength=3) for week in weeks])

    def entropy(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(x * np.log2(2 * x / (x + y)) for x, y in zip(a, b, strict=True) if x))

    for number, window in enumerate(found.windows):
        here, others = counts[number] / 3, (counts.sum(0) - counts[number]) / 6
        assert window.mix == pytest.approx(np.sqrt((entropy(here, others) + entropy(others, here)) / 2), abs=1e-6)
        assert window.history == number + 1
    assert [window.unknown for window in found.windows] == [None, pytest.approx(2 / 3), 1.0]
    few = drift(shop([row for row in rows if int(row[0][1:]) < 29]))
    assert {(window.mix, window.unknown) for window in few.windows} == {(None, None)}


def test_hits_are_those_of_ranking_every_basket() -> None:
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", int(rng.integers(12)), int(rng.integers(60))) for u in range(25) for _ in range(8)]
    data, part = shop(rows), TextPart(*(rng.normal(size=(2, 12, 5)).astype(np.float32)), {})
    found = drift(data, part, k=3)
    end = pd.Timestamp(max(day for _, _, day in rows) * DAY + START) + pd.Timedelta(microseconds=1)
    frame = pd.DataFrame(rows, columns=["user", "item", "day"]).drop_duplicates()
    wanted: dict[int, dict[str, list[float]]] = {}
    for user, own in frame.groupby("user"):
        for day, basket in own.groupby("day"):
            before = own[own["day"] < day]
            new = set(basket["item"]) - set(before["item"])
            window = len(found.windows) - 1 - int((end - (START + day * DAY)) / (7 * DAY))
            if not len(before) or not new or window < 0:
                continue
            ages = before["day"].rank(method="dense", ascending=False).to_numpy() - 1
            recent = np.argsort(before["day"].to_numpy(), kind="stable")[-10:]
            score = np.zeros(12)
            for decay, weight in NEXT.pooling.items():
                pooled = (np.exp(-decay * ages[recent])[:, None] * part.history[before["item"].to_numpy()[recent]]).sum(0)
                score += weight * part.candidate @ (pooled / np.linalg.norm(pooled))
            score[before["item"]] = -np.inf
            hit = bool(new & set(np.argsort(-score)[:3].tolist()))
            wanted.setdefault(window, {}).setdefault(str(user), []).append(float(hit))
    for number, window in enumerate(found.windows):
        means = [np.mean(hits) for hits in wanted.get(number, {}).values()]
        assert (window.hits is None) == (not means)
        if window.hits is not None:
            assert window.hits.users == len(means)
            assert window.hits.mean == pytest.approx(np.mean(means))


def test_a_model_that_misses_of_late_has_lost() -> None:
    found = drift(shop(walkers(np.random.default_rng(0), 9, 40, broken_after=8)))
    assert found.change is not None and found.change < -0.9
    assert found.p_value is not None and found.p_value < 1e-3
    assert not found.held_back
    steady = drift(shop(walkers(np.random.default_rng(0), 9, 40)))
    assert steady.change == 0.0 and steady.p_value == 1.0


def test_what_is_bought_has_shifted_or_not() -> None:
    rng = np.random.default_rng(1)
    rows = [(f"u{u}", int(rng.integers(10)), 7 * week) for week in range(9) for u in range(60)]
    assert "mix" in drift(shop([(u, 0 if day == 56 else item, day) for u, item, day in rows])).unusual
    assert "unknown" in drift(shop([(u, 10 + item % 2 if day == 56 else item, day) for u, item, day in rows])).unusual
    few = drift(shop([(u, 0 if day == 56 else item, day) for u, item, day in rows]), windows=3)
    assert few.unusual == (), "three windows are too few to call anything unusual"


@pytest.mark.parametrize("last", [30, 90])
def test_a_quiet_month_is_no_shift(last: int) -> None:
    """From one distribution; nine windows, so the last is the furthest one time in nine, however few buy in it."""
    rng, furthest = np.random.default_rng(2), 0
    window = np.repeat(np.arange(9), [90] * 8 + [last])
    for _ in range(30):
        item = rng.integers(10, size=len(window))
        mixes, _ = _moved(pd.DataFrame({"user": np.arange(len(window)), "item": item, "kind": item, "window": window}), 9)
        furthest += np.argmax(np.array(mixes, dtype=float)) == 8
    assert furthest <= 9


@pytest.mark.slow
def test_few_who_all_miss_are_no_loss() -> None:
    """Without any change: at a hit rate of a tenth a handful of users often miss together."""
    rng = np.random.default_rng(4)

    def hits(now: int) -> pd.DataFrame:
        users = np.arange(300 + now)
        return pd.DataFrame({"user": users, "window": users >= 300, "hit": (rng.random(len(users)) < 0.1).astype(float)})

    assert {_change(hits(20), 1) for _ in range(2)} == {(None, None)}
    alarms = [change[1] for _ in range(40) if (change := _change(hits(30), 1))[1] is not None and change[1] < 0.05]
    assert len(alarms) <= 7
    missed = _rate(np.zeros(40))
    assert missed is not None and missed.low == 0.0 and 0.05 < missed.high < 0.12


def test_only_those_who_are_held_back_are_ranked_for() -> None:
    data = shop(walkers(np.random.default_rng(0), 6, users=20))
    some = np.array([3, 7, 11])
    found = measure_drift(data, vectors(), NEXT, some, weeks=1, windows=12, length=10, k=1)
    assert found.held_back and {window.hits.users for window in found.windows if window.hits} == {3}


def test_too_short_a_time_is_said() -> None:
    with pytest.raises(InputError, match="less than 2 weeks"):
        drift(shop([("a", 0, 0), ("a", 1, 5)]))


def test_a_merchant_sees_it_and_nothing_is_kept(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, 40)
    assert_refused(fedrec("merchant", "drift", folder), "span less than 8 weeks", "--weeks")
    rng, catalogue = np.random.default_rng(0), make_catalogue(24)
    rows = [
        (f"customer-{u}-secret", f"i{int(rng.integers(24))}", START + 7 * week * DAY) for u in range(40) for week in range(12)
    ]
    pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME]).to_csv(folder / "events.csv", index=False)
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    answer = fedrec("merchant", "drift", folder, "--weeks", "2", "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["held_back"] and found["by"] == "item" and found["last_run"] is None
    assert len(found["windows"]) == 5 and found["windows"][-1]["end"] == "2026-03-19"
    assert "Nothing was ever released here" in found["sentence"]
    assert "customer-" not in answer.out and not any(text in answer.out for text in catalogue.texts)
    assert "yours alone" in fedrec("merchant", "drift", folder, "--weeks", "2").out
    made = {path.relative_to(folder) for path in folder.rglob("*")} - before
    assert {path.name.partition("-")[0] for path in made} <= {"items"}, "the embedded catalogue is kept, and nothing else"
    (folder / "state" / "privacy").mkdir(parents=True)
    (folder / "state" / "privacy" / "roles.json").write_text("x")
    assert "may have trained" in fedrec("merchant", "drift", folder, "--weeks", "2").out
    path = folder / "state" / "privacy" / "shop.ledger.jsonl"
    release = Release("4f78711d313c4a62", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5)
    Ledger(path, 1e-5, head_file(path)).append(release)
    path.unlink()
    gone = json.loads(fedrec("merchant", "drift", folder, "--weeks", "2", "--json").out)
    assert gone["last_run"] is None and "ledger is broken" in gone["sentence"], "its head says that something was released"
