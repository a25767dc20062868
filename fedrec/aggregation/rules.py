"""How merchants' updates become one: checks and averages, as pure functions on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedrec.model.adapter import Arrays, norm

__all__ = ["plausible_norm", "update_fault", "weighted_mean"]

SLACK = 10.0
"""How far over the plausible norm an update may be. The test is against mistakes and
vandalism by scale; clipping at the merchant is what bounds a user."""


def update_fault(update: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], most: float) -> str | None:
    """Why an update cannot be used, or None: names, shapes, finiteness, norm."""
    if set(update) != set(like):
        extra, missing = sorted(set(update) - set(like)), sorted(set(like) - set(update))
        return f"names: missing {missing}, unexpected {extra}"
    for name, value in update.items():
        if value.shape != like[name].shape:
            return f"{name}: expected shape {like[name].shape}, found {value.shape}"
        if value.dtype != np.float32:
            return f"{name}: expected float32, found {value.dtype}"
        if not np.isfinite(value).all():
            return f"{name}: holds NaN or infinity"
    size = norm(update)
    return f"norm {size:.3g} is over the plausible {most:.3g}" if size > most else None


def plausible_norm(
    *, steps: int, learning_rate: float, clip_norm: float, noise_multiplier: float, numbers: int, lot: float
) -> float:
    """A bound that an honest update stays under, from public quantities only.

    A step moves at most `clip_norm` times drawn over expected records, plus noise of norm
    about `noise_multiplier * clip_norm * sqrt(numbers) / lot`.
    """
    return SLACK * steps * learning_rate * clip_norm * (1 + noise_multiplier * np.sqrt(numbers) / lot)


def weighted_mean(updates: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> Arrays:
    """sum(w * update) / sum(w), summed in float64; exact averaging of B because A is shared and frozen.

    Raises:
        ValueError: there is nothing to average.
    """
    total = float(sum(weights))
    if not updates or total <= 0:
        raise ValueError("weighted_mean: expected at least one update of positive weight")
    shares = np.asarray(weights, dtype=np.float64) / total
    return {
        name: np.einsum("m,m...->...", shares, np.stack([u[name] for u in updates])).astype(np.float32) for name in updates[0]
    }
