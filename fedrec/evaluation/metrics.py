"""Ranking metrics from the ranks of each user's relevant items, vectorised.

All take 0-based ranks on the *full* catalogue with the history masked. A user without any
relevant item has no metric and must be left out before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["METRICS", "PerUser", "bootstrap_interval", "metrics_from_ranks", "pessimistic_ranks"]

METRICS = ("hr", "ndcg", "recall", "mrr")


@dataclass(frozen=True)
class PerUser:
    """One number a user and metric; arrays of shape (users,)."""

    hr: np.ndarray
    ndcg: np.ndarray
    recall: np.ndarray
    mrr: np.ndarray


def pessimistic_ranks(scores: np.ndarray, masked: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Ranks of the relevant items, ties broken against the model.

    An item that is not relevant and has the same score as a relevant one is ranked before it;
    relevant items with equal scores take consecutive ranks.

    Args:
        scores: (users, items), finite.
        masked: (pairs, 2) user and item to take out of the ranking.
        relevant: (pairs, 2) user and item, none of them masked, sorted by user.

    Returns:
        (pairs,) 0-based ranks, in the order of `relevant`.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers")
    scores = scores.copy()
    scores[masked[:, 0], masked[:, 1]] = -np.inf
    user, own = relevant[:, 0], scores[relevant[:, 0], relevant[:, 1]]
    order = np.lexsort((-own, user))
    place = np.empty(len(user), dtype=np.int64)  # among the user's relevant items, best first
    first = np.r_[True, user[order][1:] != user[order][:-1]]
    starts = np.flatnonzero(first)
    place[order] = np.arange(len(user)) - starts[np.cumsum(first) - 1]
    scores[relevant[:, 0], relevant[:, 1]] = -np.inf  # what is left are the others
    ascending = np.sort(scores, axis=1)
    at_least = np.array([scores.shape[1] - np.searchsorted(ascending[u], s, side="left") for u, s in zip(user, own, strict=True)])
    return at_least.astype(np.int64) + place


def metrics_from_ranks(ranks: np.ndarray, users: np.ndarray, k: int) -> PerUser:
    """HR@k, NDCG@k, Recall@k and MRR of each user.

    HR@k is 1 if any relevant item is in the top k. Recall@k is the share of the relevant
    items there. NDCG@k = DCG@k / ideal DCG@k with DCG = sum of 1 / log2(rank + 2) (Jarvelin and
    Kekalainen, TOIS 2002, binary gains), the ideal having min(k, relevant) items. MRR is one over the
    1-based rank of the first relevant item, with no cut-off.

    Args:
        ranks: (pairs,) 0-based ranks.
        users: (pairs,) user numbers 0..n-1, every user present.
    """
    count = np.bincount(users)
    if (count == 0).any():
        raise ValueError("users: every user needs at least one relevant item")
    top = ranks < k
    hits = np.bincount(users, weights=top)
    dcg = np.bincount(users, weights=np.where(top, 1 / np.log2(ranks + 2.0), 0))
    ideal = np.cumsum(1 / np.log2(np.arange(k) + 2.0))[np.minimum(count, k) - 1]
    best = np.full(len(count), np.iinfo(np.int64).max)
    np.minimum.at(best, users, ranks)
    return PerUser(hr=(hits > 0).astype(float), ndcg=dcg / ideal, recall=hits / count, mrr=1 / (best + 1.0))


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron, 1979)."""
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    means = counts @ values / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
