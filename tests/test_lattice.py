"""From vectors to integers and back: nothing is lost but rounding, and no user counts more than said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.secure import Lattice, finest
from fedrec.secure.lattice import _hadamard

SIZES = st.integers(1, 300)


def uniform(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**20), st.floats(1.0, 1e6))
def test_what_is_encoded_comes_back_up_to_rounding(size: int, seed: int, scale: float) -> None:
    vector = np.random.default_rng(seed).normal(size=size)
    lattice = Lattice(size, scale, "round 3")
    back = lattice.decode(lattice.encode(vector, uniform(size, seed)).astype(np.uint64).astype(np.uint32))
    assert np.linalg.norm(back - vector) <= math.sqrt(size) / scale + 1e-9


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 2**20), st.floats(0.5, 1e5), st.floats(0.01, 10))
def test_one_user_moves_the_integers_by_no_more_than_the_sensitivity(size: int, seed: int, scale: float, clip: float) -> None:
    rng = np.random.default_rng(seed)
    others, own = rng.normal(size=size) * 20, rng.normal(size=size)
    own *= clip / np.linalg.norm(own)
    lattice, u = Lattice(size, scale, "a"), uniform(size, seed)
    moved = lattice.encode(others + own, u) - lattice.encode(others, u)
    assert np.linalg.norm(moved) <= lattice.sensitivity(clip) * (1 + 1e-9)


def test_a_user_can_reach_nearly_all_of_the_rounding_part() -> None:
    """The root of the dimension in the sensitivity is not slack that could be dropped."""
    size = 64
    lattice, most = Lattice(size, 1e-3, "a"), 0.0
    for seed in range(200):
        u = uniform(size, seed)
        start = np.random.default_rng(seed).normal(size=size) * 1000
        moved = lattice.encode(start + lattice._back(np.full(size, 500.0)), u) - lattice.encode(start, u)
        most = max(most, float(np.linalg.norm(moved) - 0.5 * math.sqrt(size)))
    assert most > 0.1 * math.sqrt(size)


def test_rounding_is_right_on_average() -> None:
    vector = np.random.default_rng(0).normal(size=40)
    lattice = Lattice(40, 2.0, "a")
    rounds = [lattice.encode(vector, uniform(40, seed)) for seed in range(4000)]
    error = np.mean(rounds, axis=0) - lattice._rotated(vector) * 2.0
    assert np.abs(error).max() < 6 * 0.5 / math.sqrt(4000)


@given(SIZES, st.integers(0, 1000))
def test_the_rotation_keeps_lengths_and_angles(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=size), rng.normal(size=size)
    lattice = Lattice(size, 1.0, "b")
    assert np.dot(lattice._rotated(x), lattice._rotated(y)) == pytest.approx(np.dot(x, y), abs=1e-8)
    assert np.allclose(lattice._back(lattice._rotated(x)), x)


def test_the_transform_is_sylvesters() -> None:
    from scipy.linalg import hadamard

    x = np.random.default_rng(0).normal(size=16)
    assert np.allclose(_hadamard(x), hadamard(16) @ x / 4)


def test_a_spike_is_spread_over_all_coordinates() -> None:
    for size in (64, 100, 24_576):
        spike = np.zeros(size)
        spike[size // 2] = 1.0
        assert np.abs(Lattice(size, 1.0, "c")._rotated(spike)).max() <= 4 / math.sqrt(size)


@pytest.mark.parametrize(("size", "users", "sigma"), [(50, 1000, 1.0), (3000, 20_000, 5.0), (24_576, 200_000, 40.0)])
def test_at_the_finest_scale_the_worst_sum_does_not_wrap_around(size: int, users: int, sigma: float) -> None:
    clip = 0.1
    scale = finest(size, clip, users, sigma, 1e9)
    worst = np.zeros(size)
    worst[0] = users * clip  # all users at one coordinate, as far as they may go
    for seed in range(5):
        lattice = Lattice(size, scale, f"round {seed}")
        steps = lattice.encode(worst, uniform(size, seed)) + np.rint(
            np.random.default_rng(seed).normal(0, sigma * clip * scale, size)
        ).astype(np.int64)
        assert np.abs(steps).max() < 2**31
        back = lattice.decode(steps.astype(np.uint64).astype(np.uint32))
        assert np.linalg.norm(back - worst) < 1.1 * sigma * clip * math.sqrt(size) + math.sqrt(size) / scale
    # Rounding costs little: at most a fiftieth of the clipping norm where the federation is large.
    assert lattice.sensitivity(clip) <= 1.02 * clip * scale


@pytest.mark.parametrize("users", [1e7, 1e9])
def test_the_more_users_the_coarser_so_that_all_at_one_coordinate_fit(users: float) -> None:
    assert users * finest(1, 1.0, users, 1.0, 1e9) < 2**31
    assert finest(1, 1.0, users, 1.0, 1e9) == pytest.approx(0.9 * 2**31 / users, rel=0.01)


def test_the_noise_has_a_ceiling_in_steps() -> None:
    assert finest(100, 1.0, 10, 1e6, 1e7) * 1e6 <= 1e7
