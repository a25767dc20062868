"""Filters and lists against a reference that goes through items one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import Catalogue, ItemDetails
from fedrec.errors import InputError
from fedrec.recommender.selection import Filter, choose, intra_list_distance

NAMES = ["Acme", "acme", "", "Straße", "Bolt & Co", None]
PRICES = ["1", "2", "2.5", None, "3"]


def shop(rng: np.random.Generator, items: int) -> tuple[Catalogue, pd.DataFrame]:
    table = pd.DataFrame({name: rng.choice(np.array(NAMES, dtype=object), items) for name in ("brand", "category")})
    table["price"] = pd.Series(rng.choice(np.array(PRICES, dtype=object), items), dtype=object)
    ids = tuple(f"i{i}" for i in range(items))
    return Catalogue(ids, ids), table


def passes(wanted: Filter, item: str, row: pd.Series) -> bool:
    """One item at a time, as a person would read the filter."""

    def text(value: object) -> str:
        return value.casefold() if isinstance(value, str) else ""

    price = float(row["price"]) if isinstance(row["price"], str) else None
    if wanted.brand and text(row["brand"]) not in [one.casefold() for one in wanted.brand]:
        return False
    if wanted.category and text(row["category"]) not in [one.casefold() for one in wanted.category]:
        return False
    if wanted.price_min is not None and (price is None or price < wanted.price_min):
        return False
    if wanted.price_max is not None and (price is None or price > wanted.price_max):
        return False
    return (wanted.only is None or item in wanted.only) and item not in wanted.exclude


names = st.lists(st.sampled_from(["ACME", "strasse", "bolt & co", "none such"]), max_size=2)
price = st.sampled_from([None, 0.0, 2.0, 2.5, 9.0])
ids = st.lists(st.sampled_from([f"i{i}" for i in range(12)] + ["gone"]), max_size=6)
filters = st.builds(Filter, names, names, price, price, st.none() | ids, ids)


@given(seed=st.integers(0, 10**6), items=st.integers(1, 12), wanted=filters)
@settings(max_examples=60, deadline=None)
def test_a_filter_lets_through_what_passes_all_of_it(seed: int, items: int, wanted: Filter) -> None:
    catalogue, table = shop(np.random.default_rng(seed), items)
    found = wanted.mask(catalogue, ItemDetails.from_table(table))
    assert found.tolist() == [passes(wanted, item, table.iloc[i]) for i, item in enumerate(catalogue.item_ids)]


@pytest.mark.parametrize("wanted", [Filter(brand=["a"]), Filter(category=["a"]), Filter(price_min=1)])
def test_a_filter_on_a_column_that_is_not_there_says_so(wanted: Filter) -> None:
    catalogue = Catalogue(("a",), ("a",))
    with pytest.raises(InputError, match=r"no column '(brand|category|price)'"):
        wanted.mask(catalogue, ItemDetails())
    assert Filter(only=["a"]).mask(catalogue, ItemDetails()).all()


def test_a_filter_that_nobody_means_is_refused() -> None:
    for bad in ({"brand": "acme"}, {"only": "i1"}, {"price_min": float("nan")}):
        with pytest.raises(InputError):
            Filter(**bad)  # type: ignore[arg-type]


def naive(
    scores: np.ndarray, k: int, masked: np.ndarray, allowed: np.ndarray, diversity: float, vectors: np.ndarray
) -> list[list[int]]:
    """Greedy MMR, every quantity computed anew for every candidate."""
    lists = []
    for user, row in enumerate(scores):
        gone = {int(item) for of, item in masked if of == user}
        left = [i for i in np.argsort(-row, kind="stable").tolist() if allowed[i] and i not in gone and row[i] > -np.inf]
        left = left[: max(5 * k, 50)]
        if diversity == 0:
            lists.append(left[:k])
            continue
        high, low = (row[left[0]], row[left[-1]]) if left else (0, 0)
        chosen: list[int] = []
        while left and len(chosen) < k:

            def gain(item: int, row: np.ndarray = row, chosen: list[int] = chosen, low: float = low, high: float = high) -> float:
                relevance = (float(row[item]) - float(low)) / (float(high) - float(low)) if high > low else 0.0
                alike = [vectors[item] @ vectors[one] for one in chosen]
                return (1 - diversity) * relevance - diversity * max(alike, default=0.0)

            chosen.append(max(left, key=gain))  # the first of equals
            left.remove(chosen[-1])
        lists.append(chosen)
    return lists


@given(
    seed=st.integers(0, 10**6), users=st.integers(0, 4), items=st.integers(1, 70), k=st.integers(1, 12),
    diversity=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_lists_are_those_of_a_search_through_everything(seed: int, users: int, items: int, k: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    # Vectors of length one and scores whose sums are exact, so that equal values are equal on both sides.
    vectors = np.eye(4)[rng.integers(0, 4, items)] * rng.choice([1.0, -1.0], (items, 1))
    scores = (rng.integers(0, 5, (users, items)) / 4).astype(np.float32)
    scores[rng.random((users, items)) < 0.1] = -np.inf
    masked = np.argwhere(rng.random((users, items)) < 0.2)
    allowed = rng.random(items) < rng.choice([0.0, 0.5, 1.0])
    before = scores.copy()
    found = choose(scores, k, masked, allowed, diversity, vectors)
    assert [[item for item, _ in row] for row in found] == naive(scores, k, masked, allowed, diversity, vectors)
    assert all(score == scores[user, item] for user, row in enumerate(found) for item, score in row)
    np.testing.assert_array_equal(scores, before)


def test_diversity_takes_what_is_unlike_the_list_so_far() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    scores = np.array([[4, 3.9, 2, 1]], dtype=np.float32)
    nothing = np.zeros((0, 2), dtype=np.int64)

    def chosen(diversity: float) -> list[int]:
        return [item for item, _ in choose(scores, 2, nothing, None, diversity, vectors)[0]]

    assert chosen(0.0) == [0, 1] and chosen(0.7) == [0, 2] and chosen(1.0) == [0, 2]
    distances = [intra_list_distance(vectors, chosen(value)) for value in (0.0, 0.7)]
    assert distances == pytest.approx([1 - 1 / np.hypot(1, 0.1), 1.0])
    for diversity in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="diversity"):
            choose(scores, 2, nothing, None, diversity, vectors)


@given(seed=st.integers(0, 10**6), count=st.integers(0, 6))
@settings(max_examples=50, deadline=None)
def test_the_distance_of_a_list_is_the_mean_over_its_pairs(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, items = rng.standard_normal((9, 3)), rng.permutation(9)[:count].tolist()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[a] @ unit[b] for at, a in enumerate(items) for b in items[at + 1 :]]
    assert intra_list_distance(vectors, items) == (pytest.approx(np.mean(pairs)) if pairs else None)
