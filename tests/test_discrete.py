"""The discrete Gaussian: sampled as it should be, and no less private than the Gaussian that stands for it."""

from __future__ import annotations

import math
import os
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from fedrec.privacy import SeededNoise, SystemNoise, discrete_gaussian, multiplier, noise_share
from fedrec.privacy.discrete import LARGEST_SHARE, LEAST_SHARE, _histogram, below

EPSILONS = (0.1, 0.5, 1.0, 2.0, 4.0)


def exact(sigma: float, tails: float = 14.0, centre: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The integers around `centre` and their probabilities under N_Z(centre, sigma^2)."""
    reach = math.ceil(tails * sigma)
    x = np.arange(round(centre) - reach, round(centre) + reach + 1)
    weights = np.exp(-((x - centre) ** 2) / (2 * sigma**2))
    return x, weights / weights.sum()


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    """delta(epsilon) of p against q, both over the same outcomes."""
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The exact trade-off of the Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""
    return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2))


def summed(share: float, honest: int) -> np.ndarray:
    """Probabilities of the sum of `honest` shares, centred."""
    _, one = exact(share, 30)
    out = one
    for _ in range(honest - 1):
        out = np.convolve(out, one)
    return out


# -- the sampler ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "discrete")])
@pytest.mark.parametrize("sigma", [1, 3, 17])
def test_samples_have_the_probabilities_of_the_discrete_gaussian(sigma: int, noise: SystemNoise | SeededNoise) -> None:
    drawn = discrete_gaussian(200_000, sigma, noise)
    x, probability = exact(sigma)
    expected = probability * len(drawn)
    keep = expected > 20
    counts = np.array([np.sum(drawn == value) for value in x[keep]])
    rest = len(drawn) - counts.sum()
    p = chisquare([*counts, rest], [*expected[keep], len(drawn) - expected[keep].sum()]).pvalue
    assert p > 1e-6


def test_a_large_share_has_the_moments_of_a_gaussian() -> None:
    sigma = LARGEST_SHARE
    drawn = discrete_gaussian(100_000, sigma, SeededNoise(1, "large")) / sigma
    assert abs(drawn.mean()) < 5 / math.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / len(drawn))
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / len(drawn))
    # All low bits occur: nothing was rounded to a coarser grid on the way.
    assert np.bincount(discrete_gaussian(4000, sigma, SystemNoise()) % 8, minlength=8).min() > 300


@pytest.mark.parametrize("sigma", [16, 100, 1000])
def test_what_float64_cannot_decide_is_decided_by_digits(sigma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin so wide that every proposal is left to them, and the same bits, the same numbers come out."""
    fast = discrete_gaussian(300, sigma, SeededNoise(sigma, "digits"))
    rest: list[int] = []
    real = SeededNoise.words

    def words(noise: SeededNoise, count: int) -> np.ndarray:
        if count != 2:
            return real(noise, count)
        rest.append(count)
        return np.zeros(2, dtype=np.uint64)

    monkeypatch.setattr(SeededNoise, "words", words)
    monkeypatch.setattr("fedrec.privacy.discrete._near", lambda height, curve: np.ones(len(height), dtype=bool))
    assert np.array_equal(discrete_gaussian(300, sigma, SeededNoise(sigma, "digits")), fast)
    assert len(rest) >= 300


def test_every_cell_lies_over_the_curve() -> None:
    """Else what is cut off would be too rare; exactly, where the curve is highest."""
    for sigma in (1, 3, 64, 127, 1000, 2**20 + 1, LARGEST_SHARE):
        width, scale, edges = _histogram(sigma)
        heights = np.diff(edges)
        assert edges[-1] < 2**62 and width * len(heights) > 12 * sigma and width & (width - 1) == 0
        with localcontext(Context(prec=60)):
            for cell in range(0, len(heights), 7):
                assert int(heights[cell]) >= scale * (Decimal(-((cell * width) ** 2)) / (2 * sigma**2)).exp()


def test_integers_below_a_bound_are_uniform() -> None:
    counts = np.bincount(below(np.full(120_000, 6, dtype=np.int64), SystemNoise()), minlength=6)
    assert len(counts) == 6 and chisquare(counts).pvalue > 1e-6
    assert set(below(np.full(100, 1, dtype=np.int64), SystemNoise())) == {0}
    huge = below(np.full(1000, 2**54 + 1, dtype=np.int64), SystemNoise())
    assert huge.min() >= 0 and huge.max() <= 2**54 and len(np.unique(huge)) == 1000


def test_the_seed_repeats_and_the_system_does_not() -> None:
    assert np.array_equal(discrete_gaussian(50, 99, SeededNoise(3, "a")), discrete_gaussian(50, 99, SeededNoise(3, "a")))
    assert not np.array_equal(discrete_gaussian(50, 99, SystemNoise()), discrete_gaussian(50, 99, SystemNoise()))
    assert discrete_gaussian(0, 99, SystemNoise()).shape == (0,)
    for sigma in (0, LARGEST_SHARE + 1):
        with pytest.raises(ValueError, match="sigma"):
            discrete_gaussian(1, sigma, SystemNoise())


def test_system_words_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda count: (asked.append(count), real(count))[1])
    discrete_gaussian(100, 1000, SystemNoise())
    assert sum(asked) > 800


# -- the share of each merchant ---------------------------------------------------------------------------------------------


@given(st.floats(0.3, 50), st.floats(200, 1e6), st.integers(1, 300))
@example(0.3046875, 200.0, 15)
def test_honest_shares_together_give_the_noise_that_was_asked_for(sigma: float, sensitivity: float, honest: int) -> None:
    try:
        share = noise_share(sigma, sensitivity, honest)
    except ValueError:
        exact = math.sqrt(((sigma * sensitivity) ** 2 + 4) / honest)
        assert not LEAST_SHARE * (1 + 1e-9) <= exact <= (LARGEST_SHARE - 1) * (1 - 1e-9)
        return
    assert sigma <= multiplier(share, sensitivity, honest) <= sigma * (1 + 1 / (share - 1))
    assert multiplier(share, sensitivity, 1) < multiplier(share, sensitivity, honest) or honest == 1


# -- the accounting, against exact distributions ----------------------------------------------------------------------------


@pytest.mark.parametrize("honest", [1, 2, 5])
@pytest.mark.parametrize("shift", [1, 4, 11])
@pytest.mark.parametrize("share", [2.5, 4.0])
def test_no_less_private_than_the_gaussian_that_stands_for_it(share: float, shift: int, honest: int) -> None:
    p = summed(share, honest)
    one, other = np.pad(p, (shift, 0)), np.pad(p, (0, shift))
    mu = shift / math.sqrt(honest * share**2 - 4)
    for epsilon in EPSILONS:
        found = max(hockey_stick(one, other, epsilon), hockey_stick(other, one, epsilon))
        assert found <= gaussian_delta(mu, epsilon) + 1e-12
    # And hardly more so: the four that are lost are all that the bound gives away.
    assert hockey_stick(one, other, 0.0) >= 0.8 * gaussian_delta(shift / math.sqrt(honest * share**2), 0.0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_same_under_poisson_sampling_and_composition(rate: float) -> None:
    share, honest, shift, steps = 3.0, 2, 5, 3
    p = summed(share, honest)
    without, present = np.pad(p, (0, shift)), np.pad(p, (shift, 0))
    mixed = (1 - rate) * without + rate * present
    joint, other = mixed, without
    for _ in range(steps - 1):  # outcomes of several steps: all pairs
        joint, other = np.outer(joint, mixed).ravel(), np.outer(other, without).ravel()
        keep = np.maximum(joint, other) > 1e-13
        joint, other = joint[keep], other[keep]
    sigma = math.sqrt(honest * share**2 - 4) / shift
    account = pld.privacy_loss_distribution.from_gaussian_mechanism(sigma, sampling_prob=rate).self_compose(steps)
    for epsilon in EPSILONS:
        found = max(hockey_stick(joint, other, epsilon), hockey_stick(other, joint, epsilon))
        assert found <= account.get_delta_for_epsilon(epsilon) + 1e-6


def test_the_same_for_a_shift_of_several_coordinates() -> None:
    share, shift = 2.5, (3, -2)
    p = summed(share, 2)
    planes = [(np.pad(p, (abs(d), 0)), np.pad(p, (0, abs(d)))) for d in shift]
    one, other = (np.outer(planes[0][side], planes[1][side]).ravel() for side in (0, 1))
    mu = math.hypot(*shift) / math.sqrt(2 * share**2 - 4)
    for epsilon in EPSILONS:
        assert hockey_stick(one, other, epsilon) <= gaussian_delta(mu, epsilon) + 1e-12


def test_a_modulus_takes_nothing_away() -> None:
    p, shift, modulus = summed(4.0, 2), 6, 40  # so small that most of the mass wraps around
    one, other = np.pad(p, (shift, 0)), np.pad(p, (0, shift))
    fold = [np.bincount(np.arange(len(side)) % modulus, weights=side) for side in (one, other)]
    for epsilon in EPSILONS:
        assert hockey_stick(*fold, epsilon) <= hockey_stick(one, other, epsilon) + 1e-15


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 1), st.sampled_from([0.25, 0.5, 1.0]))
def test_rounding_moves_a_difference_by_less_than_a_step(x: float, g: float, u: float, scale: float) -> None:
    difference = math.floor((x + g) * scale + u) - math.floor(x * scale + u)
    assert abs(difference - g * scale) < 1 + 1e-9


def test_the_divergence_of_a_rounded_gaussian_from_the_discrete_one() -> None:
    """Step 2 of the argument, by quadrature: y ~ N(v, s^2 - 4), z ~ N_Z(y, 4) is N_Z(v, s^2) but for 5 exp(-8 pi^2)."""
    sigma, v = 3.0, 2
    y = np.linspace(v - 14 * sigma, v + 14 * sigma, 40_001)
    density = norm.pdf(y, v, math.sqrt(sigma**2 - 4))
    z = np.arange(v - 12, v + 13)
    grid = np.arange(v - 80, v + 81)
    normaliser = np.exp(-((grid[:, None] - y) ** 2) / 8).sum(0)
    mass = np.array([np.trapezoid(density * np.exp(-((one - y) ** 2) / 8) / normaliser, y) for one in z])
    x, probability = exact(sigma, centre=v)
    wanted = probability[np.searchsorted(x, z)]
    assert np.max(np.abs(np.log(mass / wanted))) < 1e-9  # the quadrature's own error


def test_a_sum_of_shares_is_a_discrete_gaussian_but_for_the_published_divergence() -> None:
    share, honest = 1.0, 3
    p = summed(share, honest)
    _, whole = exact(share * math.sqrt(honest), 30 * share * honest / (share * math.sqrt(honest)))
    middle = len(p) // 2
    near = slice(middle - 8, middle + 9)
    centred = whole[len(whole) // 2 - 8 : len(whole) // 2 + 9]
    bound = 10 * (honest - 1) * math.exp(-(math.pi**2) * share**2)
    found = np.max(np.abs(np.log(p[near] / centred)))
    assert 0 < found <= bound < 2e-3
