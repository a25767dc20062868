"""What is expected of each item's rating, from released sums alone: public, so it costs no privacy.

Merchants release two noisy numbers for each item, of one mechanism (`fedrec.privacy.rated_votes`): how many rated it and the sum
of what they said, both weighted by user. A rare item's ratio of the two is mostly noise. So the ratios are taken for normal
around a linear function of the item's log count and its text, whose spread, and that of the ratings, are the most likely under
the sums themselves (empirical Bayes: Fay and Herriot, JASA 1979, section 3), and what is expected is the posterior mean.
A ratio is of how far the sum is from what the mean rating would give: a count under the noise is taken for as large as the noise,
which draws a ratio to 0.
"""

from __future__ import annotations

import itertools

import numpy as np

__all__ = ["expected_ratings"]

LEAST = 0.05
"""The least weighted count that a ratio is taken of, where there is no noise."""
OF_ITEMS, OF_RATINGS, OF_TEXTS = (0.01, 0.02, 0.04, 0.08), (0.01, 0.03, 0.06), (0.01, 0.03, 0.1)
"""Variances that are tried, in squared units: of items around the function, of a weighted rating, of a text's coefficients."""
FLAT = 1e-3
"""Precision of the coefficients of the constant and the log count, which are free."""


def expected_ratings(counts: np.ndarray, sums: np.ndarray, noise: float | np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The rating of each item by a user of whom nothing is known, in units: (items,) float32 within -1 and 1.

    Args:
        counts, sums: (items,) as released.
        noise: standard deviation of the noise in each of their numbers, of all alike or (items,).
        texts: (items, width) features of the public texts.
    """
    counts, sums = counts.astype(np.float64), sums.astype(np.float64)
    count = np.maximum(counts, np.maximum(noise, LEAST))
    mean = float(np.clip(sums.sum() / max(counts.sum(), LEAST), -1, 1))
    ratio, own = (sums - mean * counts) / count, noise**2 * (1 + mean**2) / count**2
    popularity = np.log(count)
    features = np.column_stack([np.ones(len(count)), popularity - popularity.mean(), texts.astype(np.float64)])
    free = np.arange(features.shape[1]) < 2
    best = (-np.inf, np.zeros(len(count)))
    for of_items, of_ratings in itertools.product(OF_ITEMS, OF_RATINGS):
        variance = of_items + of_ratings / count + own
        weighted = features / variance[:, None]
        gram, along = weighted.T @ features, weighted.T @ ratio
        for of_texts in OF_TEXTS:
            precision = gram + np.diag(np.where(free, FLAT, 1 / of_texts))
            fitted = np.linalg.solve(precision, along)
            likely = -0.5 * (
                np.square(ratio) @ (1 / variance) - along @ fitted + np.log(variance).sum()
                + np.linalg.slogdet(precision)[1] + texts.shape[1] * np.log(of_texts)
            )  # fmt: skip
            if likely > best[0]:
                around = features @ fitted
                best = likely, around + of_items / variance * (ratio - around)
    return np.clip(mean + best[1], -1, 1).astype(np.float32)
