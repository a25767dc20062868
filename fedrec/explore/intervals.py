"""Intervals of off-policy estimates: requests are drawn, so what happened in one list counts together.

`normal` linearises an estimator around its value (the delta method) and takes the standard error over requests; `positive` does
so for the logarithm, of an estimate that cannot be negative; `bootstrap` draws requests again and takes quantiles. Which of them
an estimator gets was decided by their coverage in a simulation with a known truth (`docs/exploration.md`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

__all__ = ["bootstrap", "normal", "positive"]


def normal(value: float, influence: np.ndarray, request: np.ndarray, confidence: float) -> tuple[float, float]:
    """Value and standard error, as an interval.

    Args:
        value: the estimate, a mean over rows.
        influence: (rows,) how far each row draws it away, mean zero.
        request: (rows,) numbers from 0.
        confidence: such as 0.95.
    """
    sums = np.bincount(request, influence)
    error = float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))) / len(influence)
    reach = float(ndtri((1 + confidence) / 2)) * error
    return value - reach, value + reach


def positive(value: float, influence: np.ndarray, request: np.ndarray, confidence: float) -> tuple[float, float]:
    """`normal` on the scale of the logarithm; where the value is not above zero, `normal` itself."""
    low, high = normal(value, influence, request, confidence)
    if value <= 0:
        return low, high
    factor = float(np.exp((high - value) / value))
    return value / factor, value * factor


def bootstrap(
    estimate: Callable[[np.ndarray], float], request: np.ndarray, confidence: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Quantiles of the estimate over requests that are drawn again (Efron 1979).

    Args:
        estimate: from how often each row counts, (rows,), to a value.
        request: (rows,) numbers from 0.
        confidence: such as 0.95.
        draws: how many.
    """
    count = int(request.max()) + 1
    even = np.full(count, 1 / count)
    found = [estimate(rng.multinomial(count, even)[request]) for _ in range(draws)]
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
