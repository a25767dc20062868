"""The private histogram's sensitivity, from the noise-free votes to what leaves a merchant; and the two sources of noise."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.merchant import Merchant
from clients.site import Site
from clients.statistics import popularity
from fedrec import wire
from fedrec.data import Catalogue, Histories, MerchantData
from fedrec.data.catalogue import text_key
from fedrec.merchant import ModelSettings
from fedrec.privacy import NoiseSource, Policy, SeededNoise, SystemNoise, noisy, noisy_histogram, votes
from fedrec.wire import HistogramTask

ITEMS = 9
Events = list[tuple[int, int]]
events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, ITEMS - 1)), max_size=40)


def counted(rows: Events) -> np.ndarray:
    users, items = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return votes(users, items, ITEMS)


@given(events, st.integers(0, 5))
@settings(max_examples=70, deadline=None)
def test_removing_one_user_moves_the_vector_by_exactly_one(rows: Events, user: int) -> None:
    without = [row for row in rows if row[0] != user]
    distance = np.linalg.norm(counted(rows) - counted(without))
    assert distance == pytest.approx(1.0 if len(without) < len(rows) else 0.0, abs=1e-9)


@given(events)
@settings(max_examples=50, deadline=None)
def test_buying_again_counts_once(rows: Events) -> None:
    assert counted(rows + rows) == pytest.approx(counted(rows))


def test_a_vote_is_one_over_the_root_of_a_users_items() -> None:
    assert counted([(0, 1), (1, 1), (1, 2), (1, 3), (1, 4)])[[1, 2]] == pytest.approx([1.5, 0.5])


def test_a_merchant_without_events_still_sends_noise() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    assert np.all(noisy_histogram(nobody, nobody, ITEMS, 2.0, SystemNoise()) != 0)


def test_the_noise_on_the_histogram_has_its_standard_deviation() -> None:
    nobody, size = np.zeros(0, dtype=np.int64), 200_000
    noise = noisy_histogram(nobody, nobody, size, 3.0, SeededNoise(0, "histogram"))
    within_five_sigma(noise, 3.0)


TEXTS = ("lamp", "mug", "pen", "tea", "rope")
purchases_of = st.lists(st.lists(st.integers(0, 7), max_size=10), min_size=1, max_size=5)


def shop_of(folder: Path, texts: list[int], bought: list[list[int]]) -> Merchant:
    """A deployed merchant whose items have the texts of these numbers, so that several may have one."""
    catalogue = Catalogue(tuple(f"i{i}" for i in range(len(texts))), tuple(TEXTS[i] for i in texts))
    items = [np.array(own, dtype=np.int64) % len(texts) for own in bought]
    offsets = np.cumsum([0, *map(len, items)]).astype(np.int64)
    baskets = np.concatenate([np.arange(len(own), dtype=np.int64) for own in items])
    histories = Histories(tuple(f"u{u}" for u in range(len(items))), offsets, np.concatenate(items), baskets)
    site = Site(
        folder, folder / "ledger", folder / "replies", ModelSettings(), None, folder / "key", folder / "roster", folder / "model"
    )
    return Merchant("shop", MerchantData(catalogue, histories), Policy(epsilon=9.0, delta=1e-5, population=5), site)


def released(shop: Merchant, keys: np.ndarray) -> np.ndarray:
    """What leaves, when the operating system says the same each time: float32, the same noise on it."""
    with patch.object(os, "urandom", lambda count: hashlib.shake_256(b"noise").digest(count)):
        return shop.histogram(HistogramTask("run", 2.0, 1e-5, "user"), keys).arrays[wire.HISTOGRAM].astype(np.float64)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.permutations(range(5)), st.integers(1, 5), purchases_of, st.data())
@settings(max_examples=60, deadline=None)
def test_one_user_moves_what_leaves_by_at_most_one_however_many_items_share_a_text(
    texts: list[int], order: list[int], known: int, bought: list[list[int]], data: st.DataObject
) -> None:
    keys = np.array([text_key(TEXTS[i]) for i in order[:known]], dtype=np.uint64)
    user = data.draw(st.integers(0, len(bought) - 1))
    without = [[] if one == user else own for one, own in enumerate(bought)]
    distinct = {texts[item % len(texts)] for item in bought[user]} & set(order[:known])
    with tempfile.TemporaryDirectory() as folder:
        shops = [shop_of(Path(folder) / str(i), texts, rows) for i, rows in enumerate((bought, without))]
        asked = HistogramTask("run", 2.0, 1e-5, "user")
        moved = popularity(shops[0], asked, keys).total() - popularity(shops[1], asked, keys).total()
        left = released(shops[0], keys) - released(shops[1], keys)
    for distance in (np.linalg.norm(moved), np.linalg.norm(left)):
        assert distance <= 1.0 + 1e-5
        assert distance == pytest.approx(1.0 if distinct else 0.0, abs=1e-5)
    assert np.count_nonzero(moved) == len(distinct), "a text has one place, whatever its items"


def within_five_sigma(draws: np.ndarray, std: float) -> None:
    assert abs(draws.mean()) < 5 * std / np.sqrt(draws.size)
    assert abs(draws.std() - std) < 5 * std / np.sqrt(2 * draws.size)


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "x")], ids=["system", "seeded"])
def test_both_sources_draw_a_normal_distribution(noise: NoiseSource) -> None:
    from scipy.stats import kstest

    draws = noisy(np.zeros(200_000), 0.7, 1.0, noise)
    assert (draws.shape, draws.dtype) == ((200_000,), np.float64)
    within_five_sigma(draws, 0.7)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(draws.size)
    assert kstest(draws / 0.7, "norm").pvalue > 1e-6


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "x")], ids=["system", "seeded"])
def test_both_sources_sample_users_at_the_rate(noise: NoiseSource) -> None:
    records, rate = 100_000, 0.3
    drawn = noise.poisson(records, rate)
    assert abs(len(drawn) - records * rate) < 5 * np.sqrt(records * rate * (1 - rate))
    assert np.all(np.diff(drawn) > 0) and drawn[0] >= 0 and drawn[-1] < records
    assert len(noise.poisson(1000, 1.0)) == 1000
    assert len(noise.poisson(0, 0.5)) == 0


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "x")], ids=["system", "seeded"])
def test_both_sources_draw_integers_evenly(noise: NoiseSource) -> None:
    counts = np.bincount(noise.integers(7, 70_000), minlength=7)
    assert len(counts) == 7
    assert np.all(np.abs(counts - 10_000) < 5 * np.sqrt(10_000))


def test_the_systems_noise_never_repeats() -> None:
    one, two = SystemNoise(), SystemNoise()
    assert not np.any(one.uniform(50) == two.uniform(50))
    assert not np.any(one.uniform(50) == one.uniform(50))
    assert not SystemNoise.simulated and SeededNoise.simulated


@given(st.floats(0.3, 1e4), st.floats(1e-6, 10.0), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_what_is_released_lies_on_a_grid_that_depends_on_nothing_private(sigma: float, clip: float, seed: int) -> None:
    """In float64 alone the numbers that a Gaussian can give differ with what is under it, and where is the server's choice."""
    step = 2.0 ** (math.frexp(sigma * clip)[1] - 22)
    assert 2**21 * step <= sigma * clip <= 2**22 * step
    generator = np.random.default_rng(seed)
    total = generator.normal(0, 1000 * clip, 40)
    other = total + clip * generator.normal(0, 0.1, 40)
    first, second = (noisy(one, sigma, clip, SeededNoise(seed, "grid")) for one in (total, other))
    for released in (first, second, noisy(total, sigma, clip, SystemNoise()), noisy(np.zeros(40), sigma, clip, SystemNoise())):
        assert np.array_equal(released, np.rint(released / step) * step)
    assert np.array_equal((first - second) / step, np.rint(total / step) - np.rint(other / step))


def test_seeded_noise_repeats_and_differs_by_name() -> None:
    first = SeededNoise(0, "m0", "dp-sgd", 1).uniform(50)
    assert np.array_equal(first, SeededNoise(0, "m0", "dp-sgd", 1).uniform(50))
    others = [
        (1, "m0", "dp-sgd", 1),
        (0, "m1", "dp-sgd", 1),
        (0, "m0", "histogram", 1),
        (0, "m0", "dp-sgd", 2),
        (0, "m0", "dp-sgd"),
    ]
    for names in others:
        assert not np.any(first == SeededNoise(*names).uniform(50))


def test_numpys_global_seed_does_not_reach_the_systems_noise() -> None:
    np.random.seed(0)
    first = SystemNoise().uniform(20)
    np.random.seed(0)
    assert not np.any(first == SystemNoise().uniform(20))
