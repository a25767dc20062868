"""Events that are history and no target, such as a view: pooled, and never trained on, counted, or taken for the truth."""

# ruff: noqa: F811

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.statistics import purchases
from fedrec.config import Unit
from fedrec.data import CentralGroup, Columns, DataSource, Histories, MerchantData, load_merchant
from fedrec.deploy.units import merchant_toml
from fedrec.evaluation import Group
from fedrec.evaluation.protocol import group_of
from fedrec.merchant import read_merchant_file
from fedrec.recommender import Recommender
from fedrec.recommender.blend import scores
from fedrec.recommender.contest import popularity_here, users_as_group
from fedrec.recommender.fitting import fit_merchant, up_to_date
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_layer import bought_by
from fedrec.recommender.own_model import OwnModel
from fedrec.training import build_examples, build_records
from simulations.audit.canaries import joined, make_canaries
from simulations.checks import nothing_to_learn
from simulations.reference import Pooled, plain_counts

from .conftest import make_catalogue
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_data import TOML, as_parquet, fault, same, write_csv
from .test_merchant_recommender import ITEMS, make_shop, with_settings

CATALOGUE = make_catalogue(9)
Event = tuple[int, int, bool]
"""Basket, item, and whether it is a target."""
Users = list[list[Event]]

users_ = st.lists(
    st.sets(st.tuples(st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=14).flatmap(
        lambda pairs: st.tuples(*[st.tuples(st.just(day), st.just(item), st.booleans()) for day, item in sorted(pairs)]).map(list)
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def table(users: Users) -> pd.DataFrame:
    rows = [
        (f"u{user}", CATALOGUE.item_ids[item], pd.Timestamp("2026-01-01") + pd.Timedelta(days=day), target)
        for user, events in enumerate(users)
        for day, item, target in events
    ]
    return pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME, "target"])


def histories_of(users: Users) -> Histories:
    frame = table(users)
    return Histories.from_table(frame, CATALOGUE, frame["target"])


def baskets_of(events: list[Event]) -> list[list[tuple[int, bool]]]:
    """The user's baskets in order, each of items and whether they are targets."""
    days = sorted({day for day, _, _ in events})
    return [[(item, target) for at, item, target in events if at == day] for day in days]


Position = tuple[dict[int, float], set[int], set[int]]
"""What is pooled and how much, what is to be predicted, what is masked."""


def positions_of(events: list[Event], history: int, most: int, decay: float) -> list[Position]:
    """A user's positions in loops, the latest first; one before which nothing is left of the window is none."""
    baskets, found = baskets_of(events), []
    for number in range(len(baskets) - 1, 0, -1):
        before = [(item, number - 1 - at) for at in range(number) for item, _ in baskets[at]]
        had = {item for at in range(number) for item, target in baskets[at] if target}
        new = {item for item, target in baskets[number] if target} - had
        if not new:
            continue
        if not found:
            unseen = max(0, len(before) - 2 * history)
        pooled: dict[int, float] = defaultdict(float)
        for item, age in before[unseen:][-history:]:
            pooled[item] += np.exp(-decay * age)
        total = sum(pooled.values())
        found.append(({item: weight / total for item, weight in pooled.items()}, new, had))
    return [position for position in found[:most] if position[0]]


def records_of(histories: Histories, history: int, most: int, decay: float) -> list[list[Position]]:
    """The same as the training has it."""
    examples = build_examples(histories, history=history, positions=most, decay=decay)
    found: list[list[Position]] = []
    for user in range(len(histories)):
        mine: list[Position] = []
        for place in range(most):
            new, had = (
                {int(item) for record, at, item in rows if (record, at) == (user, place)}
                for rows in (examples.target, examples.seen)
            )
            pooled: dict[int, float] = defaultdict(float)
            for item, weight in zip(examples.items[user], examples.weights[user, place], strict=True):
                if weight:
                    pooled[int(item)] += float(weight)
            if new:
                mine.append((pooled, new, had))
        found.append(mine)
    return found


@given(users_, st.integers(1, 4), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 2, 4, 30]))
@settings(max_examples=100, deadline=None)
def test_records_are_those_of_a_loop_over_users(users: Users, most: int, decay: float, history: int) -> None:
    found = records_of(histories_of(users), history, most, decay)
    for events, mine in zip(users, found, strict=True):
        wanted = positions_of(events, history, most, decay)
        assert [one[1:] for one in mine] == [one[1:] for one in wanted]
        for (pooled, _, _), (expected, _, _) in zip(mine, wanted, strict=True):
            assert pooled == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("unit", ["user", "event"])
def test_a_position_that_has_lost_its_history_is_none(unit: Unit) -> None:
    """Many views between purchases, and one very large basket: what is trained on has a history, and all of the weight."""
    views = [(day, 8 if day % 20 else day // 20, day % 20 == 0) for day in range(61)]
    large = [(0, 1, True), (1, 2, True), *((2, item, True) for item in range(3, 8)), (3, 8, True)]
    for events, history, left in ((views, 5, 1), (views, 11, 2), (views, 80, 3), (large, 2, 1), (large, 3, 2), (large, 4, 3)):
        found = build_examples(histories_of([events]), history=history, positions=5, decay=0.1, unit=unit)
        at = {(record, place) for record, place, _ in found.target.tolist()}
        assert len(at) == left and all(found.weights[where].sum() == pytest.approx(1) for where in at)
        assert found.target_weight.sum() == pytest.approx(1 if unit == "user" else left)
        assert len(found) == (1 if unit == "user" else left)


@given(users_)
@settings(max_examples=60, deadline=None)
def test_a_record_depends_on_its_own_user_alone(users: Users) -> None:
    """So clipping bounds what one user moves, whatever the others looked at."""
    whole = records_of(histories_of(users), 5, 3, 0.1)
    for user, events in enumerate(users):
        assert records_of(histories_of([events]), 5, 3, 0.1)[0] == whole[user]


@given(users_)
@settings(max_examples=60, deadline=None)
def test_where_all_are_targets_nothing_is_kept_of_it(users: Users) -> None:
    frame = table(users)
    found = Histories.from_table(frame, CATALOGUE, pd.Series(True, index=frame.index))
    assert found.target is None and same(found, Histories.from_table(frame, CATALOGUE)) and found.targets() is found
    marked = replace(found, target=np.ones(len(found.items), dtype=bool))
    for merge in (False, True):
        one, other = (
            build_records(each, history=3, positions=2, decay=0.1, merge=merge).padded() for each in (found, marked)
        )  # fmt: skip
        for name in ("items", "weights", "target", "target_weight", "seen"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def evaluated(group: Group | None, user: int) -> tuple[list[tuple[int, int]], set[int], set[int], list[tuple[int, int]]]:
    assert group is not None
    valid = group.valid[user]
    pooled = list(zip(group.items[user][valid].tolist(), group.ages[user][valid].astype(int).tolist(), strict=True))
    masked, relevant = ({int(item) for at, item in rows if at == user} for rows in (group.masked, group.relevant))
    past = [] if group.past is None else [(int(item), int(age)) for at, item, age in group.past if at == user]
    return pooled, masked, relevant, past


@given(users_, st.booleans(), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_the_truth_is_the_last_basket_with_targets(users: Users, repeats: bool, length: int) -> None:
    histories, wanted = histories_of(users), []
    for events in users:
        baskets = baskets_of(events)
        last = max((at for at, basket in enumerate(baskets) if any(target for _, target in basket)), default=0)
        before = [(item, last - 1 - at, target) for at in range(last) for item, target in baskets[at]]
        had = {item for item, _, target in before if target}
        truth = {item for item, target in baskets[last] if target} - (set() if repeats else had)
        if before and truth:
            bought = [at for at in range(last) if any(target for _, target in baskets[at])]
            ago = {last - 1 - at: place for place, at in enumerate(reversed(bought))}
            past = [(item, ago[age]) for item, age, target in before if target] if repeats else []
            wanted.append(([(item, age) for item, age, _ in before][-length:], had, truth, past))
    group, left_out = group_of(CentralGroup("", pd.RangeIndex(9), histories), np.arange(len(users)), length, repeats)
    assert left_out == len(users) - len(wanted)
    assert (group is None) == (not wanted)
    for user, expected in enumerate(wanted):
        assert evaluated(group, user) == expected


VIEWS: Users = [[(0, 1, False), (1, 1, True), (2, 2, False), (3, 3, True), (4, 4, False)], [(0, 5, False), (1, 6, False)]]


def test_what_is_bought_is_the_targets(tmp_path: Path) -> None:
    histories = histories_of(VIEWS)
    assert popularity_here(histories, 9).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert bought_by(histories, 9).toarray().tolist() == [[0, 1, 0, 1, 0, 0, 0, 0, 0], [0] * 9]
    data = MerchantData(CATALOGUE, histories)
    users, bought, sold = purchases(data, CATALOGUE.keys)
    assert (users.tolist(), bought.tolist(), sold.tolist()) == ([0, 0], [1, 3], list(range(9)))
    with_settings(tmp_path)
    pooled = Pooled("shop", data, read_merchant_file(tmp_path / "merchant.toml").privacy)
    assert plain_counts([pooled], CATALOGUE.keys).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]


def test_nothing_to_learn_looks_at_targets() -> None:
    assert nothing_to_learn(histories_of(VIEWS)) is None
    assert "anything new" in str(nothing_to_learn(histories_of([[(0, 1, True), (1, 2, False)], [(0, 1, False), (0, 2, True)]])))


def test_some_of_the_users_and_others_besides_keep_what_is_a_target() -> None:
    histories = histories_of(VIEWS)
    taken = histories.take(np.array([1, 0]))
    assert taken.is_target.tolist() == [False, False, False, True, False, True, False]
    planted = make_canaries(CATALOGUE, 8, 0)
    assert joined(histories, planted).is_target.tolist() == [*histories.is_target, *[True] * len(planted.items)]
    assert joined(planted, planted).target is None


# From tables

EVENTS = (
    "user_id,item_id,timestamp,event\n1,007,2026-01-01,View\n1,007,2026-01-02,purchase\n1,8,2026-01-03,view\n"
    "1,8,2026-01-03,Purchase\n1,7,2026-01-04,click\n2,7,2026-01-01,view\n2,7,2026-01-02,view\n"
)
MIXED = {"history_events": ["view", "purchase"], "target_events": ["Purchase"]}


def as_database(source: Path, target: Path) -> dict[str, object]:
    """The same tables in a database, as `[data]` names it."""
    target.mkdir()
    with closing(sqlite3.connect(target / "shop.db")) as base:
        for name in ("items", "events"):
            pd.read_csv(source / f"{name}.csv", dtype=str).to_sql(name, base, index=False)
        base.commit()
    return {"url": "sqlite:///shop.db", "items": "SELECT * FROM items", "events": "SELECT * FROM events"}


def test_files_and_a_database_give_the_same(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "csv", events=EVENTS)
    places: list[tuple[Path, dict[str, object]]] = [(csv, {}), (as_parquet(csv, tmp_path / "parquet"), {})]
    places.append((tmp_path / "sql", as_database(csv, tmp_path / "sql")))
    for folder, where in places:
        data = load_merchant(folder, DataSource.model_validate({**where, **MIXED}))
        assert [data.catalogue.item_ids[item] for item in data.histories.items] == ["007", "007", "8", "7", "7"]
        assert data.histories.is_target.tolist() == [False, True, True, False, False], "the view beside a purchase is no other"
        assert data.histories.baskets.tolist() == [0, 1, 2, 0, 1]
        assert data.no_targets == {"view": 4}
        assert data.kinds == {"view": 4, "purchase": 2, "click": 1}
        assert load_merchant(folder, DataSource.model_validate(where)).histories.target is None


@pytest.mark.parametrize(("given", "said"), [
    ({"target_events": ["view"]}, "'view', which is no history"),
    ({"history_events": ["view"], "target_events": ["purchase"]}, "'purchase', which is no history"),
    ({"target_events": ["return"]}, "never a purchase"),
    ({"history_events": ["purchase", "Impression"]}, "says what was shown"),
    ({"target_events": ["impression"]}, "says what was shown"),
    ({"target_events": []}, "target_events"),
])  # fmt: skip
def test_a_target_that_is_no_history_is_refused(given: dict[str, list[str]], said: str, fedrec: Fedrec, tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "shop", events=EVENTS)
    (folder / "merchant.toml").write_text(TOML + tomli_w.dumps({"data": given}))
    assert said in fault(lambda: read_merchant_file(folder / "merchant.toml"))
    assert_refused(fedrec("data", "check", str(folder)), said)


def test_data_without_a_target_is_refused(tmp_path: Path) -> None:
    folder = write_csv(tmp_path, events=EVENTS)
    source = DataSource.model_validate({"history_events": ["view", "gift"], "target_events": ["gift"]})
    said = fault(lambda: load_merchant(folder, source))
    assert "events.csv: none of 4 events is of the kind gift" in said and "target_events in [data]" in said


def test_a_check_counts_what_is_history_alone(fedrec: Fedrec, tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "shop", events=EVENTS)
    (folder / "merchant.toml").write_text(TOML + tomli_w.dumps({"data": MIXED}))
    said = fedrec("data", "check", str(folder))
    assert said.status == 0 and "shop: kinds of events: 4 view, 2 purchase, 1 click\n" in said.out
    assert "shop: history that is no target: 4 view\n" in said.out
    assert "'click', which is no history" in said.out
    assert json.loads(fedrec("data", "check", str(folder), "--json").out)["no_targets"] == {"shop": {"view": 4}}
    (folder / "merchant.toml").write_text(TOML)
    assert "no target" not in fedrec("data", "check", str(folder)).out
    assert json.loads(fedrec("data", "check", str(folder), "--json").out)["no_targets"] == {}


def test_a_deployment_writes_the_targets(tmp_path: Path) -> None:
    path = tmp_path / "merchant.toml"
    path.write_text(TOML + tomli_w.dumps({"data": MIXED}))
    file = read_merchant_file(path)
    path.write_text(merchant_toml(file, guessed=False))
    assert read_merchant_file(path) == file and file.data.target_events == ("purchase",)


# At a merchant


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path) -> Path:
    """A shop that sees customers look at what they buy a day later, and at something else at the end."""
    folder = make_shop(tmp_path / "shop", tiny_bert_folder)
    bought = pd.read_csv(folder / "events.csv", parse_dates=["timestamp"]).assign(event="purchase")
    before = bought.assign(event="view", timestamp=bought["timestamp"] - pd.Timedelta(hours=5))
    last = bought.groupby("user_id").tail(1).assign(event="view", item_id="i0", timestamp=pd.Timestamp("2026-03-01"))
    pd.concat([bought, before, last]).to_csv(folder / "events.csv", index=False)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, data=MIXED)
    return folder


def test_views_are_history_and_never_taken_for_purchases(shop: Path, tiny_bert_folder: Path) -> None:
    place = MerchantPlace(shop)
    data = place.data()
    fit_merchant(place, data)
    assert up_to_date(place, data)
    own = OwnModel.read(place.own)
    assert own is not None
    found = Recommender.load(shop)
    histories = data.histories
    group = users_as_group(histories, np.arange(len(histories)), ITEMS, 50)
    assert group is not None
    expected = scores(group, found.part, own.layer, own.blend)  # type: ignore[attr-defined]
    # What is measured is what serves: the same scores for a user whose events end before its last purchase.
    pasts, at = [], 0
    for name, (user, has) in zip(histories.user_ids, _until_the_last_target(histories), strict=True):
        past = found._ranks.past_of(name)  # type: ignore[attr-defined]
        assert past is not None and past.target is not None
        cut = past._replace(items=past.items[user], baskets=past.baskets[user], target=past.target[user])
        if has:
            assert set(cut.bought.tolist()) == set(group.masked[group.masked[:, 0] == at, 1].tolist())
            pasts.append(cut)
            at += 1
    assert at == len(group.items) > 100
    np.testing.assert_allclose(found._ranks.scores(pasts), expected, atol=2e-5)  # type: ignore[attr-defined]
    # A change of the setting is a change of what the layer is made of.
    with_settings(shop, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, data={"history_events": ["view", "purchase"]})
    place = MerchantPlace(shop)
    assert not up_to_date(place, place.data())


def _until_the_last_target(histories: Histories) -> list[tuple[np.ndarray, bool]]:
    """Of each user which events are before the last basket with targets, and whether the user is evaluated."""
    found = []
    for user in range(len(histories)):
        alone = histories.take(np.array([user]))
        last = alone.baskets[alone.is_target].max()
        before, true = alone.baskets < last, alone.is_target & (alone.baskets == last)
        new = set(alone.items[true]) - set(alone.items[before & alone.is_target])
        found.append((before, bool(new) and bool(before.any())))
    return found


def test_a_known_user_may_be_shown_what_was_only_looked_at(shop: Path) -> None:
    data = MerchantPlace(shop).data()
    name = next(
        name for user, name in enumerate(data.histories.user_ids)
        if 0 not in data.histories.targets().of(user)[0].tolist()
    )  # fmt: skip
    listed = {item for item, _ in Recommender.load(shop).recommend(user_id=name, k=ITEMS).items}
    number = data.histories.user_ids.index(name)
    bought = {data.catalogue.item_ids[item] for item in data.histories.targets().of(number)[0]}
    assert "i0" in listed and listed == set(data.catalogue.item_ids) - bought
