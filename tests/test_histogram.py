"""The private histogram's sensitivity, and the two sources of noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.privacy import NoiseSource, SeededNoise, SystemNoise, noisy, noisy_histogram, votes

ITEMS = 9
Events = list[tuple[int, int]]
events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, ITEMS - 1)), max_size=40)


def counted(rows: Events) -> np.ndarray:
    users, items = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return votes(users, items, ITEMS)


@given(events, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
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
