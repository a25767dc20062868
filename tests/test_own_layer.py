"""What every kind of own layer owes its callers, and each against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fedrec.data import Histories
from fedrec.model.adapter import load_arrays, save_arrays
from fedrec.recommender import item_knn, own_layer
from fedrec.recommender.ease import Ease
from fedrec.recommender.item_knn import ItemKnn
from fedrec.recommender.own_layer import OWN_LAYERS, OwnLayer, bought_by, choose_kind

KINDS = pytest.mark.parametrize("kind", OWN_LAYERS.values(), ids=OWN_LAYERS.keys())
FEW = settings(max_examples=25, deadline=None)


def sparse(rows: list[list[int]] | np.ndarray) -> csr_array:
    return csr_array(np.array(rows, dtype=np.float32))


def drawn(users: int, items: int, share: float, seed: int, unsold: int = 0) -> csr_array:
    """Who bought what at random; the last `unsold` items have no buyer."""
    found = np.random.default_rng(seed).random((users, items)) < share
    found[:, items - unsold :] = False
    return sparse(found)


@st.composite
def purchases(draw: st.DrawFn) -> csr_array:
    users, items = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    return drawn(
        users, items, draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])), draw(st.integers(0, 999)), draw(st.integers(0, items))
    )


def identity(items: int) -> csr_array:
    """Users with one item each."""
    return sparse(np.eye(items))


# The contract.


@KINDS
def test_its_name_and_its_strengths_are_in_order(kind: type[OwnLayer]) -> None:
    assert OWN_LAYERS[kind.kind] is kind
    assert list(kind.strengths) == sorted(set(kind.strengths)) and kind.strengths[0] > 0


@KINDS
@FEW
@given(bought=purchases(), seed=st.integers(0, 99))
def test_scores_are_the_sum_of_what_each_item_adds(kind: type[OwnLayer], bought: csr_array, seed: int) -> None:
    layer = kind.fit(bought, kind.strengths[1])
    histories = drawn(5, bought.shape[1], 0.5, seed)
    found, each = layer.scores(histories), layer.scores(identity(bought.shape[1]))
    assert found.dtype == np.float32 and found.shape == histories.shape
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, histories.toarray() @ each, rtol=1e-5, atol=1e-6)


@KINDS
@FEW
@given(bought=purchases())
def test_an_item_adds_nothing_to_itself_and_one_without_a_buyer_has_and_gives_nothing(
    kind: type[OwnLayer], bought: csr_array
) -> None:
    each = kind.fit(bought, kind.strengths[0]).scores(identity(bought.shape[1]))
    unsold = bought.sum(axis=0) == 0
    assert not each.diagonal().any()
    assert not each[unsold].any() and not each[:, unsold].any()


@KINDS
@FEW
@given(bought=purchases(), seed=st.integers(0, 99))
def test_the_order_of_users_is_nothing(kind: type[OwnLayer], bought: csr_array, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(bought.shape[0])
    histories = identity(bought.shape[1])
    one, other = (kind.fit(rows, kind.strengths[0]).scores(histories) for rows in (bought, csr_array(bought[order])))
    np.testing.assert_array_equal(one, other)


@KINDS
def test_what_is_bought_together_scores_more_than_what_is_not(kind: type[OwnLayer]) -> None:
    bought = sparse([[1, 1, 0, 0]] * 20 + [[0, 0, 1, 1]] * 20 + [[1, 0, 1, 0]])
    (scores,) = kind.fit(bought, kind.strengths[0]).scores(sparse([[1, 0, 0, 0]]))
    assert scores[1] > 0.5 and scores[1] > scores[2] + 0.3
    weak, strong = (
        kind.fit(bought, strength).scores(sparse([[1, 0, 0, 0]]))[0, 1] for strength in kind.strengths[:: len(kind.strengths) - 1]
    )
    assert 0 < strong < weak, "smoothing draws to zero"


@KINDS
@pytest.mark.parametrize(
    "bought",
    [
        pytest.param(drawn(40, 12, 0.3, 0, unsold=3), id="some"),
        pytest.param(sparse([[1, 0, 1, 1]]), id="one user"),
        pytest.param(sparse([[1], [0], [1]]), id="one item"),
        pytest.param(sparse([[1, 1, 1, 1], [0, 1, 0, 0]]), id="a user with everything"),
        pytest.param(sparse([[0, 0, 0], [0, 0, 0]]), id="no purchases"),
        pytest.param(csr_array((0, 3), dtype=np.float32), id="no users"),
        pytest.param(sparse([[1, 1, 1]] * 9), id="all bought by everyone"),
    ],
)
def test_what_is_kept_of_a_layer_is_the_layer(kind: type[OwnLayer], bought: csr_array, tmp_path: Path) -> None:
    layer = kind.fit(bought, kind.strengths[0])
    histories = sparse(np.vstack([np.eye(bought.shape[1]), np.zeros(bought.shape[1]), np.ones(bought.shape[1])]))
    expected = layer.scores(histories)
    assert np.isfinite(expected).all() and not expected[-2].any(), "a user without a history"
    save_arrays(layer.arrays(), tmp_path / "layer.safetensors")
    for arrays in (layer.arrays(), load_arrays(tmp_path / "layer.safetensors")):
        np.testing.assert_array_equal(kind.from_arrays(arrays).scores(histories), expected)
    assert kind.from_arrays(layer.arrays()).scores(histories[:0]).shape == (0, bought.shape[1])


@KINDS
def test_fitting_leaves_its_input_as_it_was(kind: type[OwnLayer]) -> None:
    bought, histories = drawn(20, 8, 0.4, 1), drawn(3, 8, 0.4, 2)
    before = bought.toarray(), histories.toarray()
    kind.fit(bought, 10.0).scores(histories)
    np.testing.assert_array_equal(bought.toarray(), before[0])
    np.testing.assert_array_equal(histories.toarray(), before[1])


# Against the definitions.


@FEW
@given(bought=purchases(), strength=st.sampled_from(Ease.strengths))
def test_ease_is_its_closed_form(bought: csr_array, strength: float) -> None:
    dense = bought.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + strength * np.eye(dense.shape[1]))  # of the whole catalogue
    weights = np.eye(dense.shape[1]) - inverse / inverse.diagonal()
    found = Ease.fit(bought, strength).scores(identity(dense.shape[1]))
    np.testing.assert_allclose(found, weights, atol=1e-5)


@pytest.mark.parametrize("users", [3, 40])
def test_ease_is_kept_as_it_is_read(users: int) -> None:
    """Row after row, or SciPy copies all of the weights for every history; both ways to fit it, many users and few."""
    bought = csr_array(np.random.default_rng(0).random((users, 12)) < 0.4, dtype=np.float32)
    assert Ease.fit(bought, 10.0).weights.flags.c_contiguous


def test_ease_is_its_closed_form_at_some_size() -> None:
    bought = drawn(300, 120, 0.08, 3, unsold=20)
    dense = bought.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 30.0 * np.eye(120))
    np.testing.assert_allclose(
        Ease.fit(bought, 30.0).scores(bought), dense @ (np.eye(120) - inverse / inverse.diagonal()), atol=1e-5
    )


def by_hand(bought: np.ndarray, shrink: float, neighbours: int) -> np.ndarray:
    """Item-kNN as a loop: what item i adds to item j."""
    users, items = bought.shape
    out = np.zeros((items, items))
    for i in range(items):
        similar = []
        for j in range(items):
            together = sum(bought[u, i] and bought[u, j] for u in range(users))
            if i != j and together:
                similar.append((-together / (np.sqrt(bought[:, i].sum() * bought[:, j].sum()) + shrink), j))
        for value, j in sorted(similar)[:neighbours]:
            out[i, j] = -value
    return out


@pytest.mark.parametrize("pairs", [1, 40, 2**22])
@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_item_knn_is_the_loop(pairs: int, neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_knn, "PAIRS", pairs)  # blocks of one item, of some, of all
    monkeypatch.setattr(item_knn, "NEIGHBOURS", neighbours)
    for seed, share in enumerate((0.1, 0.3)):
        bought = drawn(25, 14, share, seed, unsold=2)
        found = ItemKnn.fit(bought, 3.0).scores(identity(14))
        np.testing.assert_allclose(found, by_hand(bought.toarray(), 3.0, neighbours), atol=1e-5)


def test_item_knn_keeps_the_hundred_nearest_and_of_equal_ones_the_first() -> None:
    bought = np.zeros((3, 250), dtype=np.float32)
    bought[0], bought[1, [0, 7, 200, 240]], bought[2, [0, 240]] = 1, 1, 1
    found = ItemKnn.fit(sparse(bought), 10.0).scores(sparse(np.eye(250)[:1]))[0]
    nearest = np.flatnonzero(found)
    assert len(nearest) == item_knn.NEIGHBOURS == 100
    # 240 shares three users, 7 and 200 share two; the others one each.
    assert nearest.tolist() == sorted([240, 200, *range(1, 99)])
    assert found[240] > found[200] > found[1]


@pytest.mark.parametrize("pairs", [1, 100, 1000])
def test_blocks_of_items_are_all_of_them_and_none_has_too_many_pairs(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_knn, "PAIRS", pairs)
    bought = drawn(30, 40, 0.2, 5, unsold=10)
    blocks = list(item_knn._blocks(bought.T.tocsr(), bought))
    assert [item for start, stop in blocks for item in range(start, stop)] == list(range(40))
    most = np.minimum(bought.T @ np.diff(bought.indptr), 40)
    assert len(blocks) <= most.sum() // pairs + 1
    together = (bought.T @ bought).tocsr()
    largest = int(np.diff(together.indptr).max())
    assert max(together[start:stop].nnz for start, stop in blocks) < pairs + largest


# What they are fitted on.


def histories_of(rows: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    return Histories(tuple(f"u{n}" for n in range(len(rows))), offsets, items, np.arange(len(items)))


def test_a_purchase_counts_once_however_often_it_was_made() -> None:
    histories = histories_of([[2, 0, 2, 2], [1], [], [3, 3]])
    before = histories.items.copy(), histories.offsets.copy()
    bought = bought_by(histories, 5)
    assert bought.dtype == np.float32 and bought.toarray().tolist() == [
        [1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [0] * 5,
        [0, 0, 0, 1, 0],
    ]
    np.testing.assert_array_equal(histories.items, before[0])
    np.testing.assert_array_equal(histories.offsets, before[1], "of 32 bits, as scipy would have them")


def test_the_kind_goes_by_the_items_that_have_a_buyer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_layer, "MOST_DENSE", 3)
    assert choose_kind(bought_by(histories_of([[0, 5, 9], [5]]), 50)) is Ease
    assert choose_kind(bought_by(histories_of([[0, 5, 9], [6]]), 50)) is ItemKnn
    assert choose_kind(bought_by(histories_of([[], []]), 50)) is Ease
