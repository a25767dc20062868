"""Ranking metrics from the ranks of each user's relevant items, vectorised.

All take 0-based ranks on the *full* catalogue with the history masked. A user without any
relevant item has no metric and must be left out before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["METRICS", "PerUser", "bootstrap_interval", "metric_names", "metrics_from_ranks", "pessimistic_ranks"]

METRICS = ("hr", "ndcg", "recall", "mrr")


def metric_names(k: int) -> tuple[str, ...]:
    """The ranking's metrics as results have them, the most important first."""
    return (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr")


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
    users, items = scores.shape
    user, own = relevant[:, 0], scores[relevant[:, 0], relevant[:, 1]]
    count = np.bincount(user, minlength=users)
    # Users with most relevant items first, so that those who have a j-th one are always the first rows.
    by_count = np.argsort(-count, kind="stable")
    row = np.empty(users, dtype=np.int64)
    row[by_count] = np.arange(users)
    # Eight truth values make a machine word, whose ones the processor counts at once.
    words = -(-items // 8)
    others = np.full((users, 8 * words), -np.inf, dtype=scores.dtype)
    others[row, :items] = scores
    for pairs in (masked, relevant):
        others[row[pairs[:, 0]], pairs[:, 1]] = -np.inf
    as_good = np.empty((users, 8 * words), dtype=bool)
    order = np.lexsort((-own, row[user]))  # each user's relevant items, best first
    count = count[by_count]
    starts = np.cumsum(count) - count
    ranks = np.empty(len(user), dtype=np.int64)
    for place in range(count.max(initial=0)):
        having = int(np.searchsorted(-count, -place, side="left"))  # users with more than `place`
        pair = order[starts[:having] + place]
        np.greater_equal(others[:having], own[pair, None], out=as_good[:having])
        ranks[pair] = place + np.bitwise_count(as_good[:having].view(np.uint64)).sum(axis=1, dtype=np.int64)
    return ranks


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
