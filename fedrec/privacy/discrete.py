"""The noise of both trust models: a discrete Gaussian, of which each merchant adds all or a share.

What is released is a whole number of steps of a public grid: the vector is rounded to it, and the noise is
integers. So there is no floating-point number whose holes could betray the value under it (Mironov, CCS 2012).

**How it is drawn.** By rejection from a histogram that lies over the curve (Devroye, Non-Uniform Random Variate
Generation, 1986, sec. II.3), with whole numbers of random bits. A proposal is decided in float64 where float64
can tell, by a wide margin, and else in 60 decimal digits. What is left is that nothing far over 12 standard
deviations is ever drawn: a total variation of less than 4e-33 a number, which adds (1 + e^epsilon) times as
much to delta, less than 1e-19 at epsilon 8 over 10^4 rounds of 10^5 numbers.

**Why the accountants of the Gaussian hold for it.** Let h honest merchants (one, where each adds all of the
noise) add independent noise N_Z(0, s^2) each to integer vectors, and let one user move the sum by an integer
vector of L2 norm at most D.

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
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import Protocol

import numpy as np

__all__ = ["LARGEST_SHARE", "LEAST_SHARE", "below", "discrete_gaussian", "multiplier", "noise_share"]

LEAST_SHARE, LARGEST_SHARE = 16, 2**24
"""Bounds of one merchant's standard deviation, in steps: of the analysis above, and of exact arithmetic in 64 bits."""
CELLS, REACH = 64, 12
"""Fewest cells in a standard deviation of the noise, and after how many of those it ends."""
MARGIN = 2.0**-40
"""More than float64 can be wrong, relative to the curve."""
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
    """(size,) int64, each with probability proportional to exp(-x^2 / (2 sigma^2)), up to 12 sigma.

    Raises:
        ValueError: `sigma` is not a whole number from 1 to `LARGEST_SHARE`.
    """
    if not 1 <= sigma <= LARGEST_SHARE:
        raise ValueError(f"sigma: expected a whole number from 1 to {LARGEST_SHARE}, found {sigma}")
    width, scale, edges = _histogram(sigma)
    out = np.zeros(0, dtype=np.int64)
    while len(out) < size:
        drawn = below(np.full((size - len(out)) * 17 // 16 + 16, edges[-1]), bits)
        cell = np.searchsorted(edges, drawn, side="right") - 1
        word = bits.words(len(drawn))
        x = cell * width + (word & np.uint64(width - 1)).astype(np.int64)
        negative = word >> np.uint64(63) == 1
        kept = _under(drawn - edges[cell], x, sigma, scale, bits) & ~(negative & (x == 0))
        out = np.concatenate([out, np.where(negative, -x, x)[kept]])
    return out[:size]


@lru_cache(maxsize=8)
def _histogram(sigma: int) -> tuple[int, int, np.ndarray]:
    """The width of a cell, the height of the curve at zero, and (cells + 1,) the cells' heights added up, under 2^62."""
    width = 1 << max(0, (sigma // CELLS).bit_length() - 1)
    left = np.arange(0, REACH * sigma + 1, width) / sigma
    curve = np.exp(-(left**2) / 2)  # at its left end a cell's curve is highest
    scale = int(2**62 * (1 - 2**-10) / curve.sum())
    return width, scale, np.append(0, np.cumsum((scale * curve * (1 + MARGIN)).astype(np.int64) + 2))


def _under(height: np.ndarray, x: np.ndarray, sigma: int, scale: int, bits: Bits) -> np.ndarray:
    """Whether a number that is uniform on [height, height + 1) is under scale * exp(-x^2 / (2 sigma^2))."""
    curve = scale * np.exp(-((x / sigma) ** 2) / 2)
    out = height < curve
    for place in np.flatnonzero(_near(height, curve)):
        with localcontext(Context(prec=60)):
            exact = scale * (Decimal(-(int(x[place]) ** 2)) / (2 * sigma**2)).exp()
            high, low = bits.words(2).tolist()
            out[place] = int(height[place]) + Decimal((high << 64) + low) / 2**128 < exact
    return out


def _near(height: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Where float64 cannot tell which is higher."""
    return np.abs(height - curve) <= curve * MARGIN + 2


def below(high: np.ndarray, bits: Bits) -> np.ndarray:
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
