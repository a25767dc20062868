"""What tells a substitute from a complement: pairs of items by nearness of text and by what the fitted baskets say of them.

Of each group of pairs, how often they are in one basket of the *choosing* customers, over what independence there expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedrec.recommender.baskets import Baskets

__all__ = ["rule_pairs", "rule_table"]

COSINES, RATIOS = (-1.0, 0.2, 0.4, 0.6, 0.8, 1.01), (0.0, 0.5, 1.0, 2.0, np.inf)
FEWEST = 20
"""Baskets of each item of a pair: of rarer ones nothing is told apart."""


def rule_pairs(fitted: Baskets, choosing: Baskets, vectors: np.ndarray) -> np.ndarray:
    """(3, cosines, ratios) pairs, baskets of the choosing customers that hold one, and how many independence expects."""
    items = np.flatnonzero(fitted.counts() >= FEWEST)
    first, second = np.triu_indices(len(items), 1)
    counts, others = fitted.counts()[items], choosing.counts()[items]
    cosine = (vectors[items] @ vectors[items].T)[first, second]
    both = (fitted.bought[:, items].T @ fitted.bought[:, items]).toarray()[first, second]
    ratio = (both + 1) / (counts[first] * counts[second] / len(fitted) + 1)
    seen = (choosing.bought[:, items].T @ choosing.bought[:, items]).toarray()[first, second]
    expected = others[first] * others[second] / max(len(choosing), 1)
    bins = (np.asarray(COSINES), np.asarray(RATIOS))
    return np.stack([np.histogram2d(cosine, ratio, bins, weights=weights)[0] for weights in (np.ones(len(seen)), seen, expected)])


def rule_table(pairs: Sequence[np.ndarray]) -> str:
    """Of all merchants together, as Markdown: pairs and their lift."""
    count, seen, expected = np.sum(pairs, axis=0)
    names = [f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more" for low, high in pairwise(RATIOS)]
    rows = [f"| cosine of the texts | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row, (low, high) in enumerate(pairwise(COSINES)):
        said = "under 0.2" if low < 0 else f"{low:g} to {min(high, 1):g}"
        cells = [
            f"{seen[row, column] / expected[row, column]:.2f} ({int(count[row, column]):,})"
            if expected[row, column] > 0.5
            else "-"
            for column in range(len(names))
        ]
        rows.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(rows)
