"""What lists hold: fractions worked out by hand, and the lists against the metrics of the same ranking."""

from __future__ import annotations

from math import log2

import numpy as np
import pandas as pd
import pytest

from fedrec.data import CentralGroup
from fedrec.evaluation import coverage, lists_of, novelty, popular_share
from fedrec.evaluation.protocol import Group, group_of, metrics_of

from .conftest import make_catalogue, make_histories

LISTS = np.array([[0, 1], [1, 4], [2, -1]])


@pytest.fixture(scope="module")
def group() -> Group:
    catalogue = make_catalogue(30)
    histories = make_histories(40, catalogue)
    found, _ = group_of(CentralGroup("m", pd.RangeIndex(30), histories), np.arange(40), 50)
    assert found is not None
    return found


def test_coverage_counts_each_item_once_and_no_empty_place() -> None:
    assert coverage(LISTS, 8) == 4 / 8
    assert coverage(np.array([[-1, -1]]), 8) == 0


def test_novelty_is_the_mean_information_in_bits_of_a_users_list() -> None:
    counts = np.array([8, 4, 1, 0, 0])
    got = novelty(LISTS, counts, 8)
    assert got.tolist() == [(0 + 1) / 2, (1 + 3) / 2, 3], "an item that nobody bought counts as one with a single buyer"
    assert novelty(np.array([[1]]), np.array([3, 5]), 12)[0] == pytest.approx(log2(12 / 5))


def test_the_popular_tenth_is_rounded_up_and_of_equals_takes_the_earlier() -> None:
    counts = np.array([1, 5, 5, 0, 5] + [0] * 6)  # eleven items: the tenth is two
    assert popular_share(np.array([[1, 2], [2, 4], [0, 3], [1, -1]]), counts).tolist() == [1, 0.5, 0, 1]


@pytest.mark.parametrize("measure", [lambda lists: novelty(lists, np.ones(5), 2), lambda lists: popular_share(lists, np.ones(5))])
def test_a_user_without_a_list_is_rejected(measure: object) -> None:
    with pytest.raises(ValueError, match="every user"):
        measure(np.array([[1, 2], [-1, -1]]))  # type: ignore[operator]


def test_a_list_holds_what_the_metrics_count_and_nothing_that_is_masked(group: Group) -> None:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(30.0), (len(group.items), 1)), axis=1)
    lists, metrics = lists_of(group, scores, 5), metrics_of(group, scores, 5)
    assert lists.shape == (len(group.items), 5) and (lists >= 0).all()
    masked, relevant = ({(int(user), int(item)) for user, item in pairs} for pairs in (group.masked, group.relevant))
    hits = 0
    for user, shown in enumerate(lists.tolist()):
        assert not masked & {(user, item) for item in shown}
        assert metrics.hr[user] == any((user, item) in relevant for item in shown)
        assert (np.diff(scores[user, shown]) < 0).all()
        hits += int(metrics.hr[user])
    assert 0 < hits < len(lists), "the test tells hits from misses"


def test_the_callers_scores_are_left_alone(group: Group) -> None:
    scores = np.zeros((len(group.items), 30), dtype=np.float32)
    lists_of(group, scores, 3)
    assert not scores.any()
