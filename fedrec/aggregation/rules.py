"""How merchants' updates become one: checks and aggregation rules, as pure functions on arrays.

`mean` and `norm-bound` weigh a merchant by `Updates.weights`. The others count every merchant once: a weight is the
merchant's own word, and half of the words could be one liar's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.config import Aggregation, least_updates
from fedrec.model.adapter import Arrays, flat, norm

__all__ = [
    "RULES", "SLACK", "Updates", "combine", "honest_norm", "honest_statistic_norm", "noise_in_combined", "noise_in_update",
    "update_fault", "weighted_mean",
]  # fmt: skip

SLACK = 10.0
"""How far over `honest_norm` the norm of an update may be. The test is against mistakes and
vandalism by scale; clipping at the merchant is what bounds a user."""


@dataclass(frozen=True)
class Updates:
    """A round's usable updates, as a rule sees them.

    Attributes:
        arrays: one update a merchant, all of the same names and shapes.
        weights: (merchants,) at least one of them positive.
        norms: (merchants,) the largest norm of an honest update, by `honest_norm`.
        byzantine: how many of them may be anything at all.
    """

    arrays: Sequence[Mapping[str, np.ndarray]]
    weights: Sequence[float]
    norms: Sequence[float]
    byzantine: int

    def __len__(self) -> int:
        return len(self.arrays)


Rule = Callable[[Updates], Arrays]
RULES: dict[Aggregation, Rule] = {}


def combine(name: Aggregation, updates: Updates) -> Arrays:
    """The one update that stands for all, float32, in the names and shapes of each.

    Raises:
        KeyError: no rule of that name.
        ValueError: there are fewer updates than the rule needs.
    """
    least = least_updates(name, updates.byzantine)
    if len(updates) < least:
        raise ValueError(f"{name} with byzantine = {updates.byzantine}: expected at least {least} updates, found {len(updates)}")
    return RULES[name](updates)


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


def honest_norm(
    *, steps: int, learning_rate: float, clip_norm: float, noise_multiplier: float, numbers: int, lot: float
) -> float:
    """What the norm of an honest update is about, or less, from public quantities only.

    A step moves at most `clip_norm` times drawn over expected records, plus noise of norm
    about `noise_multiplier * clip_norm * sqrt(numbers) / lot`.
    """
    return float(steps * learning_rate * clip_norm * (1 + noise_multiplier * np.sqrt(numbers) / lot))


def honest_statistic_norm(population: float, noise_multiplier: float, numbers: int) -> float:
    """The same of a sum over users whom each adds at most norm 1 to, such as a histogram, with its noise."""
    return float(population + noise_multiplier * np.sqrt(numbers))


def noise_in_update(*, steps: int, learning_rate: float, clip_norm: float, noise_multiplier: float, lot: float) -> float:
    """The standard deviation of an honest update's noise in each number, from public quantities only."""
    return float(np.sqrt(steps) * learning_rate * clip_norm * noise_multiplier / lot)


def noise_in_combined(name: Aggregation, deviations: Sequence[float], weights: Sequence[float]) -> float:
    """The same of what a rule makes of updates with such noise, drawn independently.

    Exact for `mean` and `norm-bound`; of many merchants of one size for `median` (asymptotic variance pi / 2 of the mean's),
    `trimmed-mean` and `multi-krum`, where it is taken as the mean's; an upper bound for `krum`, which takes one update as it is.
    """
    if name == "krum":
        return float(max(deviations))
    if name not in ("mean", "norm-bound"):
        weights = [1.0] * len(deviations)
    mean = float(np.linalg.norm(np.multiply(deviations, weights)) / sum(weights))
    return mean * (np.pi / 2) ** 0.5 if name == "median" else mean


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


def _rule(name: Aggregation) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register


@_rule("mean")
def mean(updates: Updates) -> Arrays:
    """`weighted_mean`. One merchant can move it as far as its update reaches."""
    return weighted_mean(updates.arrays, updates.weights)


@_rule("norm-bound")
def norm_bound(updates: Updates) -> Arrays:
    """The weighted mean of updates that are scaled down to their `norms` (Sun et al., 2019, "Can You Really Backdoor
    Federated Learning?", section 4). A direction is not judged.
    """
    factors = [min(1.0, most / max(norm(one), 1e-30)) for one, most in zip(updates.arrays, updates.norms, strict=True)]
    scaled = [{name: factor * value for name, value in one.items()} for one, factor in zip(updates.arrays, factors, strict=True)]
    return weighted_mean(scaled, updates.weights)


@_rule("median")
def median(updates: Updates) -> Arrays:
    """The median of each number (Yin et al., ICML 2018, definition 1)."""
    return _by_coordinate(updates, lambda stack: np.median(stack, axis=0))


@_rule("trimmed-mean")
def trimmed_mean(updates: Updates) -> Arrays:
    """The mean of each number without its `byzantine` smallest and largest (Yin et al., ICML 2018, definition 2)."""
    cut = updates.byzantine
    return _by_coordinate(updates, lambda stack: np.sort(stack, axis=0)[cut : len(stack) - cut].mean(axis=0))


@_rule("krum")
def krum(updates: Updates) -> Arrays:
    """The one update that is nearest to its neighbours (Blanchard et al., NeurIPS 2017, section 4); see `_krum_scores`."""
    best = updates.arrays[int(np.argmin(_krum_scores(updates)))]
    return {name: value.astype(np.float32) for name, value in best.items()}


@_rule("multi-krum")
def multi_krum(updates: Updates) -> Arrays:
    """The mean of all but the `byzantine` updates with the largest scores of Krum (the same paper, section 4)."""
    kept = np.argsort(_krum_scores(updates), kind="stable")[: len(updates) - updates.byzantine]
    return weighted_mean([updates.arrays[one] for one in kept], [1.0] * len(kept))


def _by_coordinate(updates: Updates, of: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    stacks = {name: np.stack([one[name] for one in updates.arrays]) for name in updates.arrays[0]}
    return {name: of(stack.astype(np.float64)).astype(np.float32) for name, stack in stacks.items()}


def _krum_scores(updates: Updates) -> np.ndarray:
    """(merchants,) sums of squared distances to the `merchants - byzantine - 2` nearest other updates."""
    values = np.stack([flat(one) for one in updates.arrays])  # (merchants, numbers)
    distances = np.array([np.square(values - one).sum(axis=1) for one in values])
    nearest = np.sort(distances, axis=1)[:, 1 : len(values) - updates.byzantine - 1]  # the first is the update itself
    return nearest.sum(axis=1)
