"""Where sampling and noise come from.

`SystemNoise` is what a deployed merchant uses: every bit from the operating system, no
seed anywhere. `SeededNoise` makes a simulation repeatable; who knows its seed can subtract
the noise, so a report of a simulation says that it is one. They differ by their bits only.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from fedrec.privacy.discrete import below

__all__ = ["NoiseSource", "SeededNoise", "SystemNoise"]


class NoiseSource(Protocol):
    """Randomness for one merchant and round."""

    simulated: bool

    def poisson(self, records: int, rate: float) -> np.ndarray:
        """Indices of a Poisson sample: each of `records` with probability `rate` or under 2^-53 less, on its own."""

    def integers(self, high: int, size: int) -> np.ndarray:
        """Uniform integers below `high`, for draws from public lists."""

    def uniform(self, size: int) -> np.ndarray:
        """Uniform on [0, 1), float64, for rounding."""

    def words(self, count: int) -> np.ndarray:
        """(count,) uint64, every bit a fair coin."""


class _FromWords(ABC):
    """All of it from fair coins."""

    @abstractmethod
    def words(self, count: int) -> np.ndarray:
        """See `NoiseSource`."""

    def poisson(self, records: int, rate: float) -> np.ndarray:
        """See `NoiseSource`."""
        # Not `uniform < rate`: that is true too often where `rate` is no multiple of 2^-53.
        return np.flatnonzero(self.uniform(records) + 2.0**-53 <= rate)

    def integers(self, high: int, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return below(np.full(size, high, dtype=np.int64), self)

    def uniform(self, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return (self.words(size) >> np.uint64(11)) * 2.0**-53


class SeededNoise(_FromWords):
    """Repeatable noise for a simulation, from a seed and the names of what it is for."""

    simulated = True

    def __init__(self, seed: int, *names: object) -> None:
        label = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=32).digest()
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(label, "big"))))

    def words(self, count: int) -> np.ndarray:
        """See `NoiseSource`."""
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


class SystemNoise(_FromWords):
    """Randomness from the operating system's entropy."""

    simulated = False

    def words(self, count: int) -> np.ndarray:
        """See `NoiseSource`."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
