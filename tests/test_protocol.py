"""The evaluation protocol: what is history, what is truth, who is evaluated, against which items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import CentralData, CentralGroup, Columns, Histories, load_central
from fedrec.errors import InputError
from fedrec.evaluation import METRICS, EvaluationSet, calibrate, evaluate, evaluate_popularity, summarise
from fedrec.evaluation.protocol import DECAYS, PRIOR_WEIGHTS
from fedrec.model import Scoring, ranking

from .conftest import make_catalogue, make_events
from .helpers import make_federation, naive_ranks

Baskets = dict[str, list[list[int]]]
CATALOGUE = make_catalogue(20)
ALMOST_NONE = 1e-12


def events_of(users: Baskets) -> pd.DataFrame:
    rows = [
        (user, f"i{item}", pd.Timestamp("2026-01-01") + pd.Timedelta(days=day))
        for user, baskets in users.items()
        for day, basket in enumerate(baskets)
        for item in basket
    ]
    return pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME])


def central_of(events: pd.DataFrame) -> CentralData:
    return CentralData(CATALOGUE, (CentralGroup("all", pd.RangeIndex(len(CATALOGUE)), Histories.from_table(events, CATALOGUE)),))


def built(users: Baskets, history: int = 50) -> EvaluationSet:
    return EvaluationSet.build(central_of(events_of(users)), history, ALMOST_NONE, 0)[0]


def of_user(rows: np.ndarray, user: int) -> list[int]:
    return sorted(rows[rows[:, 0] == user, 1].tolist())


def tables(seed: int, items: int = 20, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    history, candidate = (rng.normal(size=(items, width)) for _ in range(2))
    return history / np.linalg.norm(history, axis=1)[:, None], candidate / np.linalg.norm(candidate, axis=1)[:, None]


def test_history_is_every_basket_before_the_last_and_truth_is_what_is_new_in_it() -> None:
    (group,) = built({"a": [[3, 1], [5], [1, 7, 8]]}).groups
    valid = group.valid[0]
    assert list(zip(group.items[0][valid], group.ages[0][valid], strict=True)) == [(1, 1), (3, 1), (5, 0)]
    assert of_user(group.relevant, 0) == [7, 8]
    assert of_user(group.masked, 0) == [1, 3, 5]


def test_a_long_history_keeps_its_latest_events_and_masks_all_of_them() -> None:
    (group,) = built({"a": [[1], [2], [3], [9]]}, history=2).groups
    assert group.items[0].tolist() == [2, 3]
    assert of_user(group.masked, 0) == [1, 2, 3]


def test_users_with_nothing_new_in_the_last_basket_are_left_out_and_counted() -> None:
    dataset = built({"again": [[1], [2], [1, 2]], "one basket": [[4, 5]], "fine": [[1], [2]]})
    assert (dataset.users, dataset.left_out) == (1, 2)


def test_a_set_without_users_is_refused() -> None:
    dataset = built({"again": [[1], [1]]})
    assert (dataset.users, dataset.left_out) == (0, 1)
    with pytest.raises(InputError, match="anything new"):
        evaluate(dataset, *tables(0), Scoring(1, 0, 0), np.ones(20), 1.0, 10)
    with pytest.raises(InputError, match="calibrate"):
        calibrate(dataset, *tables(0), np.ones(20), 1.0, temperature=1.0, k=10)


def test_the_order_of_rows_and_inside_a_basket_means_nothing() -> None:
    events = make_events(30, CATALOGUE, 6)
    shuffled = events.sample(frac=1, random_state=3)
    for left, right in zip(*(EvaluationSet.build(central_of(frame), 3, 0.3, 0) for frame in (events, shuffled)), strict=True):
        for name in ("items", "ages", "valid", "masked", "relevant"):
            assert np.array_equal(getattr(left.groups[0], name), getattr(right.groups[0], name))


def test_calibration_users_are_never_evaluated(tmp_path: Path) -> None:
    for own in (False, True):
        central = load_central(make_federation(tmp_path / str(own), own_catalogues=own, users=60))
        total = sum(len(group.histories) for group in central.groups)
        evaluation, calibration = EvaluationSet.build(central, 50, 0.4, 0)
        assert evaluation.users and calibration.users
        assert evaluation.users + calibration.users + evaluation.left_out + calibration.left_out == total
        nobody = EvaluationSet.build(central, 50, ALMOST_NONE, 0)
        assert nobody[0].users == evaluation.users + calibration.users and nobody[1].users == 0


def test_who_calibrates_depends_on_the_user_alone() -> None:
    """The same person in two groups is on the same side of the split in both."""
    histories = Histories.from_table(make_events(40, CATALOGUE, 6), CATALOGUE)
    groups = tuple(CentralGroup(name, pd.RangeIndex(len(CATALOGUE)), histories) for name in ("m0", "m1"))
    for dataset in EvaluationSet.build(CentralData(CATALOGUE, groups), 50, 0.4, 0):
        assert np.array_equal(dataset.groups[0].relevant, dataset.groups[1].relevant)


def test_with_own_catalogues_only_the_groups_items_are_ranked() -> None:
    """The best item of all belongs to another merchant, and so cannot push the truth down."""
    own = pd.Index(range(5, 12))
    events = events_of({"a": [[6, 7], [11]]})
    central = CentralData(CATALOGUE, (CentralGroup("m0", own, Histories.from_table(events, CATALOGUE)),))
    dataset = EvaluationSet.build(central, 50, ALMOST_NONE, 0)[0]
    (group,) = dataset.groups
    assert group.positions[group.relevant[:, 1]].tolist() == [11]
    assert group.positions[group.masked[:, 1]].tolist() == [6, 7]
    assert group.items[0][group.valid[0]].tolist() == [6, 7], "embeddings are looked up in the central catalogue"
    counts = np.zeros(20)
    counts[[0, 1, 2, 15, 19]] = 100  # not this merchant's
    counts[[8, 11]] = 50, 10
    assert evaluate_popularity(dataset, counts, 10).mrr.tolist() == [1 / 2]


@pytest.mark.parametrize("seed", range(6))
def test_evaluate_equals_a_loop_over_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    central = central_of(make_events(25, CATALOGUE, 6, seed))
    length, k, floor = int(rng.integers(1, 8)), int(rng.integers(1, 8)), 0.7
    scoring = Scoring(float(rng.uniform(1, 9)), float(rng.uniform(0, 1)), float(rng.uniform(0, 2)))
    counts = np.round(rng.normal(2, 3, 20))
    history, candidate = tables(seed)
    dataset = EvaluationSet.build(central, length, ALMOST_NONE, 0)[0]
    got = evaluate(dataset, history, candidate, scoring, counts, floor, k)

    expected = []
    histories = central.groups[0].histories
    for user in range(len(histories)):
        items, baskets = histories.of(user)
        last = int(baskets[-1])
        before = [(int(i), int(b)) for i, b in zip(items, baskets, strict=True) if b < last]
        known = {i for i, _ in before}
        truth = sorted({int(i) for i, b in zip(items, baskets, strict=True) if b == last} - known)
        if not before or not truth:
            continue
        vector = sum(np.exp(-scoring.decay * (last - 1 - b)) * history[i] for i, b in before[-length:])
        vector = vector / np.linalg.norm(vector)
        popularity = [max(float(count), floor) for count in counts]
        prior = [np.log(count / sum(popularity)) for count in popularity]
        scores = np.array([scoring.temperature * vector @ candidate[j] + scoring.prior_weight * prior[j] for j in range(20)])
        ranks = naive_ranks(scores, sorted(known), truth)
        ideal = sum(1 / np.log2(r + 2) for r in range(min(k, len(truth))))
        top = [r for r in ranks if r < k]
        expected.append((bool(top), sum(1 / np.log2(r + 2) for r in top) / ideal, len(top) / len(truth), 1 / (1 + min(ranks))))
    assert np.stack([getattr(got, name) for name in METRICS], axis=1) == pytest.approx(np.array(expected, dtype=float), abs=1e-6)


def test_calibrate_finds_the_best_of_the_grid_on_the_calibration_users() -> None:
    for seed in range(3):
        _, users = EvaluationSet.build(central_of(make_events(40, CATALOGUE, 6, seed)), 50, 0.6, 0)
        counts = np.random.default_rng(seed).exponential(5, 20)

        def value(decay: float, weight: float) -> float:
            return float(evaluate(users, *tables(seed), Scoring(4.0, decay, weight), counts, 1.0, 5).ndcg.mean())

        grid = {(decay, weight): value(decay, weight) for decay in DECAYS for weight in PRIOR_WEIGHTS}
        chosen = calibrate(users, *tables(seed), counts, 1.0, temperature=4.0, k=5)
        assert chosen.temperature == 4.0
        assert grid[chosen.decay, chosen.prior_weight] == max(grid.values())
        plain = calibrate(users, *tables(seed), counts, 1.0, temperature=4.0, prior_weights=(0.0,), k=5)
        assert (plain.prior_weight, value(plain.decay, 0.0)) == (0.0, max(grid[decay, 0.0] for decay in DECAYS))


@pytest.mark.parametrize("rows", [1, 4])
def test_where_a_block_of_users_ends_changes_no_figure(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On numbers whose products are exact, so that ties are ties."""
    rng = np.random.default_rng(0)
    history, candidate = np.eye(6)[rng.integers(0, 6, 20)], rng.integers(-2, 3, (20, 6)) / 2
    dataset, _ = EvaluationSet.build(central_of(make_events(30, CATALOGUE, 6)), 1, ALMOST_NONE, 0)
    counts = np.ones(20)

    def figures() -> list[np.ndarray]:
        found = (
            evaluate(dataset, history, candidate, Scoring(2.0, 0.1, 1.0), counts, 1.0, 5),
            evaluate_popularity(dataset, np.arange(20) // 3 * 1.0, 5),
        )
        return [getattr(metrics, name) for metrics in found for name in METRICS]

    whole, chosen = figures(), calibrate(dataset, history, candidate, counts, 1.0, temperature=2.0, k=5)
    monkeypatch.setattr(ranking, "FLOATS", 1)
    monkeypatch.setattr(ranking, "ROWS", rows)
    assert [len(block.items) for block in dataset.groups[0].blocks()][:-1] == [rows] * (-(-dataset.users // rows) - 1)
    assert all(np.array_equal(a, b) for a, b in zip(whole, figures(), strict=True))
    assert calibrate(dataset, history, candidate, counts, 1.0, temperature=2.0, k=5) == chosen


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_of_a_loop_over_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 9))
    users = {
        f"u{user}": [rng.choice(20, rng.integers(1, 5), replace=False).tolist() for _ in range(rng.integers(1, 6))]
        for user in range(30)
    }
    expected = []
    for baskets in users.values():
        before = [
            (item, age) for age, basket in zip(range(len(baskets) - 2, -1, -1), baskets, strict=False) for item in sorted(basket)
        ]
        known = {item for item, _ in before}
        new = sorted(set(baskets[-1]) - known)
        if before and new:
            expected.append((before[-length:], sorted(known), new))
    dataset = built(users, length)
    (group,) = dataset.groups
    got = []
    for user in range(dataset.users):
        valid = group.valid[user]
        rows = list(zip(group.items[user][valid].tolist(), group.ages[user][valid].astype(int).tolist(), strict=True))
        got.append((rows, of_user(group.masked, user), of_user(group.relevant, user)))
    assert sorted(got) == sorted(expected)
    assert dataset.left_out == len(users) - len(expected)
    assert (np.diff(group.masked[:, 0]) >= 0).all() and (np.diff(group.relevant[:, 0]) >= 0).all()


def test_a_summary_names_its_cut_off_and_holds_its_means() -> None:
    dataset = built({"a": [[1], [2]], "b": [[3], [4, 5]]})
    metrics = evaluate(dataset, *tables(0), Scoring(1, 0, 0), np.ones(20), 1.0, 7)
    summary = summarise(metrics, 7, 200, 0)
    assert summary["users"] == 2
    for name in ("hr@7", "ndcg@7", "recall@7", "mrr"):
        assert summary[name] == pytest.approx(getattr(metrics, name.partition("@")[0]).mean())
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
