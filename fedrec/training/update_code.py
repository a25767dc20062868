"""A merchant's update in int8: a quarter of the bytes of float32, right on average.

The values of an array are flattened and cut into buckets; each value is divided by the largest
magnitude in its bucket and rounded to one of 255 levels, up or down at random, so that the
expectation is the value itself. This is QSGD (Alistarh et al., NeurIPS 2017), in buckets and
scaled by the maximum instead of the norm. Buckets and not rows, because the encoder's `B` is
only `encoder_rank` wide. What is rounded has its noise already, and the rounding uses nothing
else of the merchant, so it is post-processing and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedrec.model.adapter import Arrays
from fedrec.privacy import NoiseSource

__all__ = ["BUCKET", "LEVELS", "SCALES", "CodeError", "buckets", "decode_update", "encode_update"]

BUCKET = 256
"""Values that share a scale: scales add 1/64 to the bytes, and a step is about a 45th of the noise."""
LEVELS = 127
SCALES = ".scales"
"""What the name of an array's scales ends with."""


class CodeError(ValueError):
    """An update that is not a well-formed code."""


def buckets(numbers: int) -> int:
    """How many scales an array of so many numbers has."""
    return -(-numbers // BUCKET)


def encode_update(update: Mapping[str, np.ndarray], noise: NoiseSource) -> Arrays:
    """Each float32 array as int8 under its name and shape, and its scales, (buckets,) float32, beside it.

    A decoded value is off by less than its scale over 127 and, but for the rounding of float32,
    by nothing on average. So a decoded update can be a little longer than the update was: by at
    most sqrt(numbers) / 127 of the largest magnitude, which is far inside the slack of
    `fedrec.aggregation`. A bucket that holds NaN or infinity keeps it as its scale.

    Args:
        noise: where the rounding is drawn from.
    """
    out: Arrays = {}
    for name, value in update.items():
        flat = value.ravel()
        scales = np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, BUCKET))
        scale = _each(scales, flat.size)
        level = LEVELS * np.divide(flat, scale, out=np.zeros(flat.size), where=np.isfinite(scale) & (scale > 0))
        below = np.floor(level)
        up = noise.uniform(flat.size) < level - below
        out[name] = (below + up).astype(np.int8).reshape(value.shape)
        out[name + SCALES] = scales
    return out


def decode_update(code: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> Arrays:
    """The float32 arrays of a code from elsewhere; memory is taken for the shapes of `like` only.

    Args:
        like: arrays of the names and shapes that the update must have.

    Raises:
        CodeError: a name, type, shape, scale or level is not as it must be; the array is named.
    """
    for name, value in like.items():
        _check(name, code.get(name), code.get(name + SCALES), value)
    if len(code) > 2 * len(like):
        raise CodeError(f"names: unexpected {sorted(set(code) - {*like, *(name + SCALES for name in like)})}")
    return {name: _decoded(code[name], code[name + SCALES]) for name in like}


def _check(name: str, levels: np.ndarray | None, scales: np.ndarray | None, like: np.ndarray) -> None:
    if levels is None:
        raise CodeError(f"{name}: is missing")
    if levels.dtype != np.int8:
        raise CodeError(f"{name}: expected int8, found {levels.dtype}")
    if levels.shape != like.shape:
        raise CodeError(f"{name}: expected shape {like.shape}, found {levels.shape}")
    if scales is None:
        raise CodeError(f"{name}: its scales are missing")
    expected = (buckets(like.size),)
    if scales.dtype != np.float32 or scales.shape != expected:
        raise CodeError(f"{name}: expected scales float32 {expected}, found {scales.dtype} {scales.shape}")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise CodeError(f"{name}: a scale is negative or not finite")
    if (levels < -LEVELS).any():
        raise CodeError(f"{name}: -128 is not a level")


def _decoded(levels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    value = levels.ravel() * _each(scales, levels.size) / LEVELS
    return value.astype(np.float32).reshape(levels.shape)


def _each(scales: np.ndarray, numbers: int) -> np.ndarray:
    return np.repeat(scales.astype(np.float64), BUCKET)[:numbers]
