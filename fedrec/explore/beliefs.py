"""How sure a score is: an item that was bought often is known, a new one could be worth anything.

An item that was bought `n` times is known to the degree `r = n / (n + HALF)`. What is known of a person's scores is carried over
to the other items along the item vectors: with `s` the scores, `fit` their ridge regression on the leading principal components
of the vectors, weighted by `n / (n + 1)`, and `spread` the standard deviation of what that leaves, weighted alike,

    mean_j = r_j s_j + (1 - r_j) fit_j          sd_j = spread sqrt(1 - r_j)

So a new item is believed to be worth what items of its kind are worth to this person, give or take what such items differ by,
and not what its score says, which lacks the purchases that it had no chance to get.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Prior"]

HALF = 10.0
"""Purchases that an item needs to be half known."""
WIDTH = 16
"""Principal components of the item vectors."""
RIDGE = 1.0
LEAST = 0.1
"""Of the spread of an item's value, whatever the counts say."""


class Prior:
    """What is known of the items of a catalogue before anything was tried out.

    Args:
        vectors: (items, width).
        counts: (items,) how often each was bought; noise may have made some negative.

    Attributes:
        known: (items,) r.
        centre, axes: (width,) and (width, WIDTH): `(vector - centre) @ axes` are an item's components.
        features: (items, 1 + WIDTH) a constant and the leading components, each of standard deviation 1.
        spread: of the popularity list, whose values are the logarithms of the counts.
    """

    def __init__(self, vectors: np.ndarray, counts: np.ndarray) -> None:
        bought = np.maximum(counts, 0.0).astype(np.float64)
        self.known = bought / (bought + HALF)
        self.centre = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors.astype(np.float64) - self.centre
        _, axes = np.linalg.eigh(centred.T @ centred)
        leading = axes[:, ::-1][:, :WIDTH]
        self.axes = leading / np.maximum((centred @ leading).std(axis=0), 1e-12)
        self.features = np.concatenate([np.ones((len(vectors), 1)), centred @ self.axes], axis=1)  # (items, 1 + WIDTH)
        self.sold = bought / (bought + 1)
        gram = self.features.T @ (self.sold[:, None] * self.features)
        self.solver = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), self.features.T * self.sold)  # (1 + WIDTH, items)
        values = np.log1p(bought)
        self.spread = max(float(np.sqrt(np.average(self._left(values)[2] ** 2, weights=self.sold + 1e-9))), LEAST)

    def beliefs(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the value of each item, (items,) each, from a person's scores (items,)."""
        level, fit, left = self._left(scores.astype(np.float64))
        spread = float(np.sqrt(np.average(left**2, weights=self.sold + 1e-9)))
        return level + fit + self.known * left, spread * np.sqrt(1 - self.known)

    def _left(self, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Mean, what the regression adds to it, and what is left, (items,) each."""
        level = float(np.average(scores, weights=self.sold + 1e-9))
        fit = self.features @ (self.solver @ (scores - level))
        return level, fit, scores - level - fit
