"""Words and meaning as one score.

    score(j) = LEXICAL * bm25(j) / max bm25 + COVERAGE * coverage(j) + cosine(query, j) / max cosine

The maxima are over the whole catalogue, so a filter takes items out of a list and changes nothing of what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.recommender.words.lexical import Lexical

__all__ = ["FUSION", "Fusion"]


@dataclass(frozen=True)
class Fusion:
    """Weights of the words beside a meaning that weighs 1.

    Attributes:
        lexical: of BM25, scaled to at most 1.
        coverage: of the share of the words that an item holds.
    """

    lexical: float
    coverage: float

    def scores(self, found: Lexical, cosines: np.ndarray) -> np.ndarray:
        """(items,) float32 from what an index found and the (items,) cosines of query and items."""
        meaning = cosines / max(float(cosines.max(initial=0)), 1e-9)
        words = found.scores / max(float(found.scores.max(initial=0)), 1e-9)
        scores: np.ndarray = (self.lexical * words + self.coverage * found.coverage + meaning).astype(np.float32)
        return scores


FUSION = Fusion(lexical=0.75, coverage=0.5)
"""Chosen by `python -m benchmarks.search` on all its queries; what the choice is worth on others is measured by
cross-validation: `docs/search.md`."""
