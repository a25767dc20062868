"""Words and meaning as one score.

    score(j) = LEXICAL * unit(bm25)(j) + unit(cosine)(j),     unit(x) = (x - min x) / (max x - min x)

CombSUM after min-max (Fox and Shaw, TREC 1994; Lee, SIGIR 1997). The extremes are over the whole catalogue, so a filter takes
items out of a list and changes nothing of what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["FLATTEST", "FUSION", "Fusion", "unit"]

FLATTEST = 1e-4
"""The least spread of scores that is more than rounding, as a share of the largest."""


@dataclass(frozen=True)
class Fusion:
    """Weight of the words beside a meaning that weighs 1.

    Attributes:
        lexical: of BM25.
    """

    lexical: float

    def scores(self, lexical: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """(items,) float32 from an index's (items,) scores and the (items,) cosines of query and items."""
        words, meaning = self.parts(lexical, cosines)
        return words + meaning

    def parts(self, lexical: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each of the two adds, (items,) float32."""
        return (self.lexical * unit(lexical)).astype(np.float32), unit(cosines).astype(np.float32)


FUSION = Fusion(lexical=0.5)
"""Chosen by `python -m benchmarks.search` on all its queries; what the choice is worth on others is measured by
cross-validation: `docs/search.md`."""


def unit(scores: np.ndarray) -> np.ndarray:
    """Scores from 0 to 1; zeros where they are not told apart: rounding must not become a full spread."""
    least, most = float(scores.min(initial=np.inf)), float(scores.max(initial=-np.inf))
    told = most - least > FLATTEST * max(abs(least), abs(most))
    return (scores - least) / (most - least) if told else np.zeros(len(scores))
