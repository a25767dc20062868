"""The blocked product, its best items, and the approximate index."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.clusters import clustered, tastes
from fedrec.errors import InputError
from fedrec.model import ranking
from fedrec.model.ranking import best_items, blocks, products, top_k
from fedrec.recommender.index import ItemIndex

NOTHING = np.zeros((0, 2), dtype=np.int64)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranking, "FLOATS", 1)
    monkeypatch.setattr(ranking, "ROWS", 3)
    yield


def dyadic(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Numbers whose products and sums are exact in float32, and often equal."""
    return rng.integers(-4, 5, (rows, width)).astype(np.float32) / 4


def naive(scores: np.ndarray, masked: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """A stable sort of each user's row."""
    scores = scores.copy()
    scores[tuple(masked.T)] = -np.inf
    rows = [[int(i) for i in np.argsort(-row, kind="stable") if row[i] > -np.inf][:k] for row in scores]
    return rows, [[float(row[i]) for i in best] for row, best in zip(scores, rows, strict=True)]


def listed(found: tuple[np.ndarray, np.ndarray]) -> tuple[list[list[int]], list[list[float]]]:
    items, scores = found
    assert ((items < 0) == (scores == -np.inf)).all()
    return (
        [[item for item in row if item >= 0] for row in items.tolist()],
        [[score for score in row if score > -np.inf] for row in scores.tolist()],
    )


@given(seed=st.integers(0, 10**6), users=st.integers(0, 9), items=st.integers(1, 40), k=st.integers(1, 45))
@settings(max_examples=60, deadline=None)
def test_the_best_items_are_those_of_a_stable_sort(seed: int, users: int, items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    queries, table = dyadic(rng, users, 3), dyadic(rng, items, 3)
    masked = np.argwhere(rng.random((users, items)) < rng.choice([0.0, 0.3, 1.0]))
    assert listed(best_items(queries, table, k, masked)) == naive(queries @ table.T, masked, k)


def test_no_best_items_of_none_and_no_rows() -> None:
    assert top_k(np.zeros((2, 0)), 5)[0].shape == top_k(np.ones((2, 4)), 0)[0].shape == (2, 0)
    assert best_items(np.zeros((0, 2)), np.zeros((3, 2)), 2, NOTHING)[0].shape == (0, 2)


@pytest.mark.parametrize("users", [1, 3, 4, 10])
@pytest.mark.usefixtures("small_blocks")
def test_where_a_block_ends_does_not_matter(users: int) -> None:
    rng = np.random.default_rng(users)
    queries, table = dyadic(rng, users, 4), dyadic(rng, 30, 4)
    masked = np.argwhere(rng.random((users, 30)) < 0.2)
    assert [part.stop - part.start for part in blocks(users, 30)][:-1] == [3] * (-(-users // 3) - 1)
    assert listed(best_items(queries, table, 7, masked)) == naive(queries @ table.T, masked, 7)


@pytest.mark.parametrize("users", [1, 5, 17, 100])
def test_items_of_the_same_embedding_have_the_same_score(users: int) -> None:
    """Else the last bit would decide between two items of one text; with NumPy's product it does."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1001, 384), dtype=np.float32)
    table[::7] = table[0]
    scores = products(rng.standard_normal((users, 384), dtype=np.float32), table)[:, ::7]
    assert (scores == scores[:, :1]).all()


# The approximate index.


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    """Clustered embeddings and a column of popularity, as the recommender's table has."""
    embeddings, _ = clustered(4_000, 32)
    popularity = np.random.default_rng(0).normal(-8, 1, 4_000)
    return np.column_stack([3 * embeddings, popularity]).astype(np.float32)


@pytest.fixture(scope="module")
def queries(items: np.ndarray) -> np.ndarray:
    """Users' unit vectors and a one."""
    _, cluster = clustered(4_000, 32)
    vectors = items[:, :-1][tastes(cluster, 100, 6)].mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.column_stack([vectors, np.ones(100)]).astype(np.float32)


@pytest.fixture(scope="module")
def index(items: np.ndarray) -> ItemIndex:
    return ItemIndex.build(items)


def histories(users: int, items: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.unique(np.stack([rng.integers(0, users, 5 * users), rng.integers(0, items, 5 * users)], axis=1), axis=0)


def test_the_index_finds_nine_of_ten(index: ItemIndex, queries: np.ndarray) -> None:
    assert 1 <= index.probes < index.lists
    assert index.recall(queries, 10, histories(100, 4_000)) >= 0.9


def test_recall_is_the_share_of_the_exact_list(index: ItemIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, _ = best_items(queries, index.table, 10, NOTHING)
    monkeypatch.setattr(index, "probes", 1)
    found, _ = index.search(queries, 10, NOTHING)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert index.recall(queries, 10, NOTHING) == pytest.approx(share)
    assert share < 1, "one list does not hold all of the best"


def test_it_agrees_with_the_exact_search_when_it_searches_everything(
    index: ItemIndex, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "probes", index.lists)
    masked = histories(100, 4_000)
    (found, scores), (exact, best) = index.search(queries, 10, masked), best_items(queries, index.table, 10, masked)
    assert np.array_equal(found, exact)
    assert scores == pytest.approx(best, abs=1e-5)


def test_what_is_masked_is_never_found(index: ItemIndex, queries: np.ndarray) -> None:
    best, _ = index.search(queries, 20, NOTHING)
    masked = np.stack([np.repeat(np.arange(100), 20), best.ravel()], axis=1)
    others, _ = index.search(queries, 20, masked)
    assert not [user for user in range(100) if set(best[user]) & set(others[user])]
    assert (others >= 0).all()


def test_a_list_longer_than_what_was_read_is_filled_exactly(index: ItemIndex, queries: np.ndarray) -> None:
    masked = histories(100, 4_000)
    found, _ = index.search(queries, 3_999, masked)
    assert np.array_equal(found, best_items(queries, index.table, 3_999, masked)[0])


def test_an_index_of_very_few_items_and_no_query(queries: np.ndarray, items: np.ndarray) -> None:
    few = ItemIndex.build(items[:5])
    masked = np.array([[0, 2], [1, 0]])
    assert np.array_equal(few.search(queries, 10, masked)[0], best_items(queries, items[:5], 10, masked)[0])
    assert few.search(queries[:0], 3, NOTHING)[0].shape == (0, 3)


def test_it_is_written_once_and_again_when_the_items_are_others(items: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "items.faiss"
    built = ItemIndex.open(path, items, b"a" * 16)
    written = path.stat().st_mtime_ns
    again = ItemIndex.open(path, items, b"a" * 16)
    assert path.stat().st_mtime_ns == written
    assert np.array_equal(again.search(queries, 10, NOTHING)[0], built.search(queries, 10, NOTHING)[0])
    other = ItemIndex.open(path, items[:100], b"b" * 16)
    assert other.search(queries, 10, NOTHING)[0].max() < 100
    assert path.read_bytes().startswith(b"b" * 16)
    assert [entry.name for entry in tmp_path.iterdir()] == ["items.faiss"], "nothing temporary is left"


def test_a_missing_faiss_is_said_with_what_to_install(items: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'fedrec\[index\]'"):
        ItemIndex.build(items)
