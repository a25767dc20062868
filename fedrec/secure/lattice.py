"""From a vector of real numbers to integers and back, so that a sum modulo 2^32 loses next to nothing.

A public random rotation spreads every vector over all coordinates (Suresh et al., ICML 2017,
section 3.2; Kairouz, Liu, Steinke, ICML 2021, section 4), so that coordinates are small beside the norm and
the grid can be fine. Then each is rounded at random to a multiple of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedrec.secure.keys import derive, expand

__all__ = ["MODULUS_BITS", "Lattice", "finest"]

MODULUS_BITS = 32
WRAP = 1e-9
"""Most probability that some coordinate of a round's sum leaves the range of the modulus."""
FINEST = 1000.0
"""Steps of the grid in a clipping norm, a root of the dimension; more gain nothing: rounding adds a thousandth."""
TAIL = 8.0
"""Standard deviations of the noise that the range has room for; over that with probability 1e-15 a coordinate."""


@dataclass(frozen=True)
class Lattice:
    """The grid and rotation of one secure sum; both are public.

    Attributes:
        size: numbers in the vector.
        scale: steps of the grid in one unit.
        label: what the rotation's signs are derived from.
    """

    size: int
    scale: float
    label: str

    def encode(self, vector: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """(size,) int64: the rotated vector in steps of the grid, floor(x + u) with `uniform` u in [0, 1).

        For given u two vectors at L2 distance r become integers at distance under r * scale +
        sqrt(size), whatever the vectors are: floor moves each coordinate's difference by less than 1.

        Raises:
            ValueError: one of the two has another shape.
        """
        if not np.shape(vector) == uniform.shape == (self.size,):
            raise ValueError(f"expected {self.size} numbers, found {np.shape(vector)} and {uniform.shape}")
        return np.floor(self._rotated(np.asarray(vector, dtype=np.float64)) * self.scale + uniform).astype(np.int64)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """(size,) float64: the vector behind an opened sum (uint32), read as signed."""
        return self._back(total.astype(np.uint32).view(np.int32).astype(np.float64) / self.scale)

    def sensitivity(self, clip_norm: float) -> float:
        """Largest L2 distance, in steps, that one user of clipped norm `clip_norm` can make."""
        return clip_norm * self.scale + math.sqrt(self.size)

    def _rotated(self, vector: np.ndarray) -> np.ndarray:
        out = vector.copy()
        for place, signs in self._blocks():
            out[place] = _hadamard(out[place] * signs)
        return out

    def _back(self, vector: np.ndarray) -> np.ndarray:
        out = vector.copy()
        for place, signs in reversed(self._blocks()):
            out[place] = _hadamard(out[place]) * signs
        return out

    def _blocks(self) -> list[tuple[slice, np.ndarray]]:
        """Two overlapping blocks of a power of two that cover the vector, each with signs of its own.

        Without padding: every coordinate is mixed with at least half of the vector, in a product of two
        orthogonal maps.
        """
        width = block(self.size)
        places = [slice(0, width)] if width == self.size else [slice(0, width), slice(self.size - width, self.size)]
        bits = expand(derive(self.label.encode(), b"rotation"), width * len(places)) >> np.uint32(31)
        signs = 1.0 - 2.0 * bits.astype(np.float64).reshape(len(places), width)
        return list(zip(places, signs, strict=True))


def block(size: int) -> int:
    """The largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)


def finest(size: int, clip_norm: float, users: float, noise_multiplier: float, most_steps_of_noise: float) -> float:
    """The finest scale under which a sum wraps around with probability at most 1e-9 a round.

    A rotated coordinate of a vector of norm r is subgaussian with variance r^2 / width over the choice of
    signs, r being at most `users * clip_norm`; each coordinate of the sum is therefore over
    r sqrt(2 ln(2 size / 1e-9) / width) with probability 1e-9 in all.

    Args:
        users: expected number of drawn users of all merchants together.
        noise_multiplier: standard deviation of all noise together over `clip_norm`.
        most_steps_of_noise: ceiling of that standard deviation, in steps.
    """
    spread = min(1.0, math.sqrt(2 * math.log(2 * size / WRAP) / block(size)))
    drawn = users + TAIL * math.sqrt(users)
    # Half of the range on each side; rounding and the rounding of the noise are small against a tenth.
    steps = 0.9 * 2 ** (MODULUS_BITS - 1) / (drawn * spread + TAIL * noise_multiplier)
    return min(steps, FINEST * math.sqrt(size), most_steps_of_noise / noise_multiplier) / clip_norm


def _hadamard(vector: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of a vector whose length is a power of two."""
    out, half = vector.reshape(1, -1), 1
    while half < len(vector):
        pairs = out.reshape(-1, 2, len(vector) // (2 * half))
        out = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return out.reshape(-1) / math.sqrt(len(vector))
