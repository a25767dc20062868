"""Noise for a secure sum: a discrete Gaussian of which each merchant adds a share.

Everything is integers, sampled exactly (Canonne, Kamath, Steinke, NeurIPS 2020, algorithms
1 to 3), so there is no floating-point number whose holes could betray the value under it.

**Why the accountants of the Gaussian hold for it.** Let h honest merchants add independent
noise N_Z(0, s^2) each to integer vectors, and let one user move the sum by an integer vector
of L2 norm at most D.

1. The sum of the noise is within max-divergence t of N_Z(0, h s^2), a coordinate, with t = 10 (h - 1)
   exp(-pi^2 s^2) (Kairouz, Liu, Steinke, ICML 2021, on sums of discrete Gaussians, bounded from above).
2. Draw y from the continuous N(v, h s^2 - 4) and then z from the discrete Gaussian of variance 4
   around y: z is within max-divergence 5 exp(-8 pi^2) of N_Z(v, h s^2) for every integer v, since the
   normaliser of a discrete Gaussian of variance 4 hardly depends on its centre (Poisson
   summation; Peikert, CRYPTO 2010, theorem 3.1). So the opened sum is a post-processing of a
   Gaussian mechanism with noise multiplier sqrt(h s^2 - 4) / D, up to those divergences.

Whatever holds for the Gaussian, with Poisson sampling and composition, therefore holds here
with that multiplier. For s >= 16 the first divergence is below 10^-1000, and the second, 10^-33
a coordinate, adds less than 10^-24 to epsilon over 10^4 rounds of 10^5 numbers; both are far under the
accountants' own error. Reduction modulo 2^32 is post-processing. Both steps are checked
against exact distributions in `tests/test_discrete.py`.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

__all__ = ["LARGEST_SHARE", "LEAST_SHARE", "discrete_gaussian", "multiplier", "noise_share"]

LEAST_SHARE, LARGEST_SHARE = 16, 2**24
"""Bounds of one merchant's standard deviation, in steps: of the analysis above, and of exact arithmetic in 64 bits."""
_SMOOTHING = 4.0
"""Variance of the rounding in the analysis, lost from the noise."""


class Bits(Protocol):
    """Random bits."""

    def words(self, count: int) -> np.ndarray:
        """(count,) uniform uint64."""


def noise_share(noise_multiplier: float, sensitivity: float, honest: int) -> int:
    """The standard deviation each merchant adds, in steps, so that `honest` of them give `noise_multiplier`.

    Args:
        sensitivity: L2, in steps of the grid.
        honest: the fewest merchants in an opened sum who do not collude.

    Raises:
        ValueError: it would be outside of what the analysis and the sampler cover.
    """
    share = math.hypot(noise_multiplier * sensitivity, math.sqrt(_SMOOTHING)) / math.sqrt(honest)
    if not LEAST_SHARE <= share <= LARGEST_SHARE - 1:
        raise ValueError(f"a noise share of {share:.3g} steps is outside of {LEAST_SHARE} to {LARGEST_SHARE}")
    return math.ceil(share)


def multiplier(share: int, sensitivity: float, honest: int) -> float:
    """The noise multiplier of the Gaussian mechanism that stands for `honest` shares."""
    return math.sqrt(honest * share**2 - _SMOOTHING) / sensitivity


def discrete_gaussian(size: int, sigma: int, bits: Bits) -> np.ndarray:
    """(size,) int64, each with probability proportional to exp(-x^2 / (2 sigma^2)), exactly.

    Raises:
        ValueError: `sigma` is not a whole number from 1 to `LARGEST_SHARE`.
    """
    if not 1 <= sigma <= LARGEST_SHARE:
        raise ValueError(f"sigma: expected a whole number from 1 to {LARGEST_SHARE}, found {sigma}")
    out = np.zeros(0, dtype=np.int64)
    while len(out) < size:
        drawn = _laplace(2 * (size - len(out)) + 16, sigma, bits)
        # Algorithm 3 with t = sigma: accept with exp(-(|x| - sigma)^2 / (2 sigma^2)).
        kept = _exponential((np.abs(drawn) - sigma) ** 2, 2 * sigma**2, bits)
        out = np.concatenate([out, drawn[kept]])
    return out[:size]


def _laplace(count: int, scale: int, bits: Bits) -> np.ndarray:
    """About `count` discrete Laplace numbers, P(x) ~ exp(-|x| / scale) (algorithm 2)."""
    low = _below(np.full(count, scale, dtype=np.int64), bits)
    low = low[_small_exponential(low, scale, bits)]
    high = np.zeros(len(low), dtype=np.int64)
    going = np.arange(len(low))
    while len(going):
        going = going[_small_exponential(np.ones(len(going), dtype=np.int64), 1, bits)]
        high[going] += 1
    size = low + scale * high
    negative = bits.words(len(size)) >> np.uint64(63) == 1
    return np.where(negative, -size, size)[~(negative & (size == 0))]


def _exponential(numerator: np.ndarray, denominator: int, bits: Bits) -> np.ndarray:
    """True with probability exp(-numerator / denominator), each on its own (algorithm 1)."""
    whole, rest = np.divmod(numerator, denominator)
    out = _small_exponential(rest, denominator, bits)
    left = np.flatnonzero(out & (whole > 0))
    while len(left):
        # exp(-n) is n successes in a row of probability exp(-1).
        passed = _small_exponential(np.ones(len(left), dtype=np.int64), 1, bits)
        out[left[~passed]] = False
        left = left[passed]
        whole[left] -= 1
        left = left[whole[left] > 0]
    return out


def _small_exponential(numerator: np.ndarray, denominator: int, bits: Bits) -> np.ndarray:
    """`_exponential` for numerators up to the denominator: the parity of a run of shrinking chances."""
    run = np.ones(len(numerator), dtype=np.int64)
    going = np.arange(len(numerator))
    while len(going):
        going = going[_below(denominator * run[going], bits) < numerator[going]]
        run[going] += 1
    return run % 2 == 1


def _below(high: np.ndarray, bits: Bits) -> np.ndarray:
    """Uniform integers below each of `high` (int64, at least 1), without bias: what is too large is drawn again."""
    mask = high.astype(np.uint64) - np.uint64(1)
    for shift in (1, 2, 4, 8, 16, 32):
        mask |= mask >> np.uint64(shift)
    out = np.zeros(len(high), dtype=np.int64)
    left = np.arange(len(high))
    while len(left):
        out[left] = (bits.words(len(left)) & mask[left]).astype(np.int64)
        left = left[out[left] >= high[left]]
    return out
