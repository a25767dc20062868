"""Off-policy estimators: what a policy would have earned, from a log of another one; functions on arrays of rows.

A row is one place of one list: context x, shown item a, its propensity p = P(a | x) when it was shown, its reward r, and
pi = P(a | x) under the policy that is to be evaluated. With weights w = pi / p, a reward model q(x, a) and
v(x) = sum_a pi(a | x) q(x, a), the mean reward of a row under that policy is estimated by

    IPS    mean(w r)                  Horvitz and Thompson 1952: unbiased where p is right and positive wherever pi is
    SNIPS  sum(w r) / sum(w)          Swaminathan and Joachims, NeurIPS 2015: a little bias, mostly less variance
    DM     mean(v)                    as good as the model
    DR     mean(v + w (r - q))        Dudik, Langford and Li, ICML 2011: unbiased where p is right or the model is

Every function takes `counts`, (rows,) how often each row counts, which is how a bootstrap draws rows again.
"""

from __future__ import annotations

import numpy as np

__all__ = ["direct_method", "doubly_robust", "effective_sample_size", "ips", "snips"]


def ips(weights: np.ndarray, rewards: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Inverse propensity scoring.

    >>> ips(np.array([2.0, 0.5]), np.array([1.0, 1.0]))
    1.25
    """
    return float(np.average(weights * rewards, weights=counts))


def snips(weights: np.ndarray, rewards: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Self-normalised IPS; NaN where all weights are zero.

    >>> snips(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.75
    """
    drawn = weights if counts is None else weights * counts
    total = float(drawn.sum())
    return float((drawn * rewards).sum()) / total if total else float("nan")


def direct_method(values: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Direct method; `values` is v, (rows,)."""
    return float(np.average(values, weights=counts))


def doubly_robust(
    values: np.ndarray, weights: np.ndarray, rewards: np.ndarray, modelled: np.ndarray, counts: np.ndarray | None = None
) -> float:
    """Doubly robust; `modelled` is q of the shown items, (rows,), of a model that was not fitted on the row itself.

    >>> doubly_robust(np.array([0.2, 0.2]), np.array([2.0, 0.0]), np.array([1.0, 0.0]), np.array([0.5, 0.1]))
    0.7
    """
    return float(np.average(values + weights * (rewards - modelled), weights=counts))


def effective_sample_size(weights: np.ndarray) -> float:
    """How many rows of the policy itself would say as much: (sum w)^2 / sum w^2 (Kong 1992); 0 where all weights are zero.

    >>> effective_sample_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0
