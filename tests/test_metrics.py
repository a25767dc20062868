"""Metrics against torchmetrics, hand fractions and a naive loop."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from fedrec.evaluation import bootstrap_interval, metrics_from_ranks, pessimistic_ranks

from .helpers import naive_ranks

NOTHING = np.zeros((0, 2), dtype=np.int64)


def pairs(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


@pytest.mark.parametrize("seed", range(50))
def test_metrics_equal_torchmetrics_where_no_scores_are_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items, k = int(rng.integers(1, 6)), int(rng.integers(2, 40)), int(rng.integers(1, 15))
    # Positive: torchmetrics' recall does not count an item whose score is zero or less.
    scores = np.stack([rng.permutation(items) + 1 for _ in range(users)]).astype(float)
    truth = [np.sort(rng.choice(items, rng.integers(1, items + 1), replace=False)) for _ in range(users)]
    relevant = pairs([(user, item) for user, chosen in enumerate(truth) for item in chosen])
    ours = metrics_from_ranks(pessimistic_ranks(scores, NOTHING, relevant), relevant[:, 0], k)
    top = min(k, items)
    for user, chosen in enumerate(truth):
        preds, target = torch.tensor(scores[user]), torch.zeros(items, dtype=torch.bool)
        target[chosen] = True
        assert ours.hr[user] == pytest.approx(float(retrieval_hit_rate(preds, target, top_k=top)), abs=1e-6)
        assert ours.ndcg[user] == pytest.approx(float(retrieval_normalized_dcg(preds, target, top_k=top)), abs=1e-6)
        assert ours.recall[user] == pytest.approx(float(retrieval_recall(preds, target, top_k=top)), abs=1e-6)
        assert ours.mrr[user] == pytest.approx(float(retrieval_reciprocal_rank(preds, target)), abs=1e-6)


def test_metrics_equal_fractions_worked_out_by_hand() -> None:
    ranks, users = np.array([0, 2, 1, 3, 12]), np.array([0, 0, 1, 2, 2])
    got = metrics_from_ranks(ranks, users, 3)
    ideal_of_two = 1 + 1 / log2(3)
    assert got.ndcg == pytest.approx([(1 + 1 / log2(4)) / ideal_of_two, 1 / log2(3), 0])
    assert got.hr.tolist() == [1, 1, 0]
    assert got.recall.tolist() == [1, 1, 0]
    assert got.mrr == pytest.approx([1, 1 / 2, 1 / 4]), "the reciprocal rank has no cut-off"


def test_recall_divides_by_all_relevant_items_and_ndcg_by_the_best_list() -> None:
    got = metrics_from_ranks(np.array([0, 1, 2, 3]), np.zeros(4, dtype=int), 2)
    assert (got.recall[0], got.ndcg[0]) == (0.5, 1.0)


@pytest.mark.parametrize("seed", range(40))
def test_ranks_equal_a_naive_loop_on_scores_full_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = int(rng.integers(1, 7)), int(rng.integers(3, 15))
    scores = rng.integers(0, 3, (users, items)).astype(float)
    masked, relevant = [], []
    for user in range(users):
        order = rng.permutation(items)
        relevant += [(user, int(item)) for item in sorted(order[: rng.integers(1, items)])]
        taken = {item for owner, item in relevant if owner == user}
        masked += [(user, int(item)) for item in order if item not in taken and rng.random() < 0.4]
    got = pessimistic_ranks(scores, pairs(masked), pairs(relevant))
    for user in range(users):
        mine = pairs(relevant)[:, 0] == user
        expected = naive_ranks(scores[user], [i for u, i in masked if u == user], pairs(relevant)[mine, 1].tolist())
        assert sorted(got[mine]) == sorted(expected), "equal relevant items may take consecutive ranks in any order"


@given(seed=st.integers(0, 10**6), users=st.integers(1, 9), items=st.integers(2, 40), levels=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_ranks_are_counted_as_a_double_loop_counts_them(seed: int, users: int, items: int, levels: int) -> None:
    """Pair by pair and not only as a set: equal relevant items take their ranks in the order in which they are given."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (users, items)).astype(rng.choice([np.float32, np.float64]))
    of_user = [rng.permutation(items)[: rng.integers(0, items + 1)] for _ in range(users)]  # some have none
    masked = [
        (user, int(item))
        for user, taken in enumerate(of_user)
        for item in rng.permutation(items)
        if item not in taken and rng.random() < 0.4
    ]
    relevant = pairs([(user, int(item)) for user, taken in enumerate(of_user) for item in taken])
    expected = [
        rank
        for user, taken in enumerate(of_user)
        for rank in naive_ranks(scores[user], [i for u, i in masked if u == user], taken.tolist())
    ]
    assert pessimistic_ranks(scores, pairs(masked), relevant).tolist() == expected


def test_a_constant_score_ranks_the_truth_last() -> None:
    assert pessimistic_ranks(np.zeros((1, 6)), NOTHING, pairs([(0, 2)])).tolist() == [5]
    assert pessimistic_ranks(np.zeros((1, 6)), NOTHING, pairs([(0, 2), (0, 4)])).tolist() == [4, 5]


def test_masked_items_never_count() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 1.0]])
    assert pessimistic_ranks(scores, pairs([(0, 0), (0, 1), (0, 2)]), pairs([(0, 3)])).tolist() == [0]
    assert scores[0, 0] == 9, "the scores of the caller are left alone"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_numbers_raise(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        pessimistic_ranks(np.array([[0.0, bad]]), NOTHING, pairs([(0, 0)]))


def test_a_user_without_truth_is_rejected() -> None:
    with pytest.raises(ValueError, match="every user"):
        metrics_from_ranks(np.array([0, 1]), np.array([0, 2]), 10)


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_users() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for users in (50, 200, 800, 3200):
        values = rng.random(users)
        low, high = bootstrap_interval(values, 1000, 0)
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[-1] == pytest.approx(8, rel=0.3), "four times the users, half the width"
    assert widths[-1] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(users), rel=0.15), "the normal approximation"


def test_the_bootstrap_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(1).random(30)
    assert bootstrap_interval(values, 200, 3) == bootstrap_interval(values, 200, 3)
    assert bootstrap_interval(values, 200, 3) != bootstrap_interval(values, 200, 4)
