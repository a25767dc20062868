"""Synthetic embeddings: unit vectors in clusters, and users who like a few of them."""

from __future__ import annotations

import numpy as np

__all__ = ["clustered", "tastes"]

SIZE = 100
"""Items of a cluster, about."""


def clustered(items: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items of clusters of about a hundred, whose cosines are about 0.6 inside and 0 between clusters.

    Returns:
        (items, width) float32 of unit length, and (items,) the cluster of each.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(items // SIZE, 1), width), dtype=np.float32)
    cluster = rng.integers(0, len(centres), items)
    table = np.empty((items, width), dtype=np.float32)
    for start in range(0, items, 2**15):  # a million items are 1.5 GB; no second array of that size
        rows = slice(start, start + 2**15)
        table[rows] = centres[cluster[rows]] + 0.8 * rng.standard_normal(table[rows].shape, dtype=np.float32)
        table[rows] /= np.linalg.norm(table[rows], axis=1, keepdims=True)
    return table, cluster


def tastes(cluster: np.ndarray, users: int, events: int, seed: int = 0) -> np.ndarray:
    """(users, events) distinct items of each user, from three clusters each."""
    rng = np.random.default_rng(seed)
    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(cluster.max() + 2))
    rows = []
    for _ in range(users):
        liked = rng.integers(0, len(starts) - 1, 3)
        near = np.concatenate([order[starts[c] : starts[c + 1]] for c in np.unique(liked)])
        near = near if len(near) >= events else np.arange(len(cluster))
        rows.append(rng.choice(near, events, replace=False))
    return np.array(rows)
