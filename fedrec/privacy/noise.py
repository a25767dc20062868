"""Where sampling and noise come from.

`SystemNoise` is what a deployed merchant uses: every bit from the operating system, no
seed anywhere. `SeededNoise` makes a simulation repeatable; who knows its seed can subtract
the noise, so a report of a simulation says that it is one.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
from scipy.special import ndtri

__all__ = ["NoiseSource", "SeededNoise", "SystemNoise"]


class NoiseSource(Protocol):
    """Randomness for one merchant and round."""

    simulated: bool

    def poisson(self, records: int, rate: float) -> np.ndarray:
        """Indices of a Poisson sample: each of `records` with probability `rate`, on its own."""

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """Independent N(0, std^2), float64."""

    def integers(self, high: int, size: int) -> np.ndarray:
        """Uniform integers below `high`, for draws from public lists."""

    def uniform(self, size: int) -> np.ndarray:
        """Uniform on [0, 1), float64, for rounding."""

    def words(self, count: int) -> np.ndarray:
        """(count,) uint64, every bit a fair coin."""


class SeededNoise:
    """Repeatable noise for a simulation, from a seed and the names of what it is for."""

    simulated = True

    def __init__(self, seed: int, *names: object) -> None:
        label = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=32).digest()
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(label, "big"))))

    def poisson(self, records: int, rate: float) -> np.ndarray:
        """See `NoiseSource`."""
        return np.flatnonzero(self._generator.random(records) < rate)

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """See `NoiseSource`."""
        return self._generator.normal(0.0, std, shape)

    def integers(self, high: int, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return self._generator.integers(0, high, size)

    def uniform(self, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return self._generator.random(size)

    def words(self, count: int) -> np.ndarray:
        """See `NoiseSource`."""
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


class SystemNoise:
    """Noise from the operating system's entropy, hardened against floating-point attacks.

    One Gaussian in floating point has holes that can betray the value under it (Mironov,
    CCS 2012). As Holohan and Braghin (2021, section 5) propose, each number is the sum of
    four, over two, and so is not the image of one known set of floats.
    """

    simulated = False

    def poisson(self, records: int, rate: float) -> np.ndarray:
        """See `NoiseSource`."""
        return np.flatnonzero(_uniform(records) < rate)

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """See `NoiseSource`."""
        count = int(np.prod(shape))
        draws = ndtri(_uniform(4 * count)).reshape(4, count)
        return (std * draws.sum(axis=0) / 2).reshape(shape)

    def integers(self, high: int, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return np.floor(_uniform(size) * high).astype(np.int64)

    def uniform(self, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return _uniform(size)

    def words(self, count: int) -> np.ndarray:
        """See `NoiseSource`."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def _uniform(count: int) -> np.ndarray:
    """Uniform on (0, 1): the midpoints of 2^53 cells, so that neither end is ever drawn."""
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53
