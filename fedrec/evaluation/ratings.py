"""How good predicted ratings are: metrics with what each user adds to their error.

Intervals are from influence values, summed by user, as for responses (`fedrec.evaluation.responses`); that of RMSE, the root of a
mean, by the delta method. Differences of two models on the same users have the difference of the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from fedrec.evaluation.responses import interval

__all__ = ["Rated", "fit_ratings", "gain_in_ratings", "rating_metrics", "summarise_ratings"]


@dataclass(frozen=True)
class Rated:
    """Ratings with what was predicted, on the data's own scale.

    Attributes:
        user: (ratings,) numbers from 0.
        value, predicted: (ratings,) both within the range.
        lowest: of the range; a rating's gain in a ranking is what it is above that.
    """

    user: np.ndarray
    value: np.ndarray
    predicted: np.ndarray
    lowest: float


def rating_metrics(k: int) -> tuple[str, ...]:
    """The names of what `summarise_ratings` finds, the first three with intervals."""
    return ("rmse", "mae", f"ndcg@{k}")


def summarise_ratings(rated: Rated, k: int) -> dict[str, float]:
    """Root mean squared error, mean absolute error, and NDCG at `k` of each user's items by predicted rating, with 95% intervals.

    NDCG is the mean over users who rated two items or more and not all with the lowest rating there is: gain is the rating less
    the lowest, discount 1 / log2(place + 1), and items predicted alike share their places (McSherry and Najork, ECIR 2008,
    section 3), as `sklearn.metrics.ndcg_score` has it. Where there is no such user it is not defined and not there.
    """
    out = {"users": float(np.unique(rated.user).size), "ratings": float(len(rated.user)), "mean": float(rated.value.mean())}
    for name, found in _with_influences(rated, k).items():
        value, low, high = interval(*found)
        out |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return out


def gain_in_ratings(name: str, before: Rated, after: Rated, k: int) -> dict[str, float]:
    """A metric's change from one model to another on the same ratings, with the paired 95% interval.

    Raises:
        KeyError: the metric is not defined here.
    """
    first, second = _with_influences(before, k)[name], _with_influences(after, k)[name]
    mean, low, high = interval(second[0] - first[0], second[1] - first[1])
    return {"mean": mean, "low": low, "high": high}


def fit_ratings(
    features: np.ndarray,
    value: np.ndarray,
    bounds: list[tuple[float, float]],
    offset: np.ndarray | float = 0.0,
    weight: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The coefficients (features,) of weighted least squares within their bounds; `features` is (features, ratings)."""
    root = np.sqrt(weight)
    found: np.ndarray = lsq_linear((features * root).T, (value - offset) * root, tuple(np.array(bounds).T)).x
    return found


def _with_influences(rated: Rated, k: int) -> dict[str, tuple[float, np.ndarray]]:
    """Metrics by name, each with the influence (users,) of each user."""
    _, user = np.unique(rated.user, return_inverse=True)
    error, count = rated.predicted - rated.value, len(rated.value)
    square, size = float(np.square(error).mean()), float(np.abs(error).mean())
    rmse = float(np.sqrt(square))
    out: dict[str, tuple[float, np.ndarray]] = {
        "rmse": (rmse, np.bincount(user, np.square(error) - square) / count / (2 * max(rmse, 1e-12))),
        "mae": (size, np.bincount(user, np.abs(error) - size) / count),
    }
    own = _ndcg_by_user(user, rated.value - rated.lowest, rated.predicted, k)
    there = ~np.isnan(own)
    if there.any():
        mean = float(own[there].mean())
        out[f"ndcg@{k}"] = mean, np.where(there, own - mean, 0) / there.sum()
    return out


def _ndcg_by_user(user: np.ndarray, gain: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
    """(users,) nan where a user has one item, or none with a gain."""
    dcg, best = (_dcg_by_user(user, gain, by, k) for by in (score, gain))
    defined = (best > 0) & (np.bincount(user) > 1)
    return np.where(defined, dcg / np.where(defined, best, 1), np.nan)


def _dcg_by_user(user: np.ndarray, gain: np.ndarray, by: np.ndarray, k: int) -> np.ndarray:
    """(users,) discounted sums of gains in the order of `by`, the highest first; ties have the mean of their discounts."""
    order = np.lexsort((-by, user))
    user, gain, by = user[order], gain[order], by[order]
    counts = np.bincount(user)
    place = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
    discount = np.where(place < k, 1 / np.log2(place + 2.0), 0.0)
    ties = np.cumsum((np.diff(user, prepend=-1) != 0) | (np.diff(by, prepend=np.nan) != 0)) - 1
    shared = (np.bincount(ties, discount) / np.bincount(ties))[ties]
    return np.bincount(user, gain * shared)
