"""Graded queries: how good a ranking is, and ways to join two scores, chosen by cross-validation over queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data import Catalogue, Columns
from fedrec.recommender.words.fusion import Fusion
from fedrec.recommender.words.lexical import Lexical

__all__ = ["FAMILIES", "MIN_MAX", "Folds", "K", "Queries", "held_out", "interval", "oracles", "reciprocal_rank"]

K = 10
WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
REPEATS = 10
"""Divisions into folds that a held-out figure is the mean of."""
MIN_MAX = "min-max sum"
"""What `fedrec search` does."""
Way = Callable[[Lexical, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Queries:
    """Graded queries over a catalogue.

    Attributes:
        words: the queries that have a relevant item.
        judged: of each, positions of its judged items.
        gains: of each of these, 2^grade - 1 (Burges et al., ICML 2005).
        without: queries that have none, which are left out.
    """

    catalogue: Catalogue
    words: list[str]
    judged: list[np.ndarray]
    gains: list[np.ndarray]
    without: int

    @classmethod
    def read(cls, folder: Path) -> Queries:
        """From `items.parquet` and `relevance.parquet`: query, item_id, rating."""
        catalogue = Catalogue.from_table(pd.read_parquet(folder / "items.parquet"))
        table = pd.read_parquet(folder / "relevance.parquet")
        words, judged, gains, without = [], [], [], 0
        for query, rows in table.groupby("query", sort=False):
            if not rows["rating"].any():
                without += 1
                continue
            words.append(str(query))
            judged.append(catalogue.index.get_indexer(rows[Columns.ITEM].astype(str)))
            gains.append(2.0 ** rows["rating"].to_numpy(float) - 1)
        return cls(catalogue, words, judged, gains, without)

    def ndcg(self, number: int, scores: np.ndarray, gains: np.ndarray | None = None) -> tuple[float, float]:
        """NDCG@10 of one ranking over the whole catalogue, where what was not judged is worth nothing, and of the judged alone.

        Equal scores are in the catalogue's order. The ideal is that of the judged items (Järvelin and Kekäläinen, TOIS 2002).

        Args:
            gains: (judged,) what else the judged items are worth.
        """
        judged, gains = self.judged[number], self.gains[number] if gains is None else gains
        worth = np.zeros(len(scores))
        worth[judged] = gains
        best = np.sort(gains)[::-1]
        least = np.partition(scores, -K)[-K]
        able = np.flatnonzero(scores >= least)
        whole = able[np.argsort(-scores[able], kind="stable")]
        order = np.lexsort((judged, -scores[judged]))
        return _dcg(worth[whole]) / _dcg(best), _dcg(gains[order]) / _dcg(best)


def _dcg(gains: np.ndarray) -> float:
    top = gains[:K]
    return float((top / np.log2(np.arange(2, len(top) + 2))).sum())


def reciprocal_rank(constant: float, weight: float) -> Way:
    """1 / (c + rank) of both (Cormack et al., SIGIR 2009); what has none of the words has no rank among them."""

    def scores(found: Lexical, cosines: np.ndarray) -> np.ndarray:
        words = np.where(found.scores > 0, 1 / (constant + _ranks(found.scores)), 0.0)
        return weight * words + 1 / (constant + _ranks(cosines))

    return scores


def _ranks(scores: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(scores))
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def min_max(weight: float) -> Way:
    """As `fedrec search` does it."""
    return lambda found, cosines: Fusion(weight).scores(found.scores, cosines)


def covered(weight: float, share: float) -> Way:
    """The same where an item's words count less if it lacks some of the query's."""
    return lambda found, cosines: Fusion(weight).scores(found.scores * (1 - share + share * found.coverage), cosines)


def plain(weight: float) -> Way:
    """BM25 and cosine as they are."""
    return lambda found, cosines: weight * found.scores + cosines


FAMILIES: Mapping[str, Mapping[str, Way]] = {
    "reciprocal rank": {
        f"constant {constant}, words {weight}": reciprocal_rank(constant, weight)
        for constant, weight in product((1, 5, 10, 30, 60), WEIGHTS)
    },
    "sum of scores as they are": {f"words {weight / 10}": plain(weight / 10) for weight in WEIGHTS},
    "min-max sum, words by coverage": {
        f"words {weight}, coverage {share}": covered(weight, share) for weight, share in product(WEIGHTS, (0.25, 0.5, 0.75, 1.0))
    },
    MIN_MAX: {f"words {weight}": min_max(weight) for weight in WEIGHTS},
}
"""Names of ways of each kind, of which one is chosen."""


@dataclass(frozen=True)
class Folds:
    """What a choice is worth on queries that had no part in it.

    Attributes:
        figures: (queries, 2) NDCG over the catalogue and among judged items, each query's mean over the divisions.
        chosen: which way is best for all queries.
        fitted: (2,) its means over all queries, which it was chosen on.
    """

    figures: np.ndarray
    chosen: int
    fitted: np.ndarray


def held_out(found: np.ndarray, groups: np.ndarray, folds: int) -> Folds:
    """Choose the way with the best mean of both figures on all folds but one, and measure it on that one.

    Args:
        found: (ways, queries, 2).
        groups: (queries,) each group of queries has a choice of its own; zeros for one choice.
    """
    queries = found.shape[1]
    total = np.zeros((queries, 2))
    for seed in range(REPEATS):
        fold = np.random.default_rng(seed).permutation(queries) % folds
        for number, group in product(range(folds), np.unique(groups)):
            test = (fold == number) & (groups == group)
            train = (fold != number) & (groups == group)
            total[test] += found[found[:, train].mean(axis=(1, 2)).argmax()][test]
    chosen = int(found.mean(axis=(1, 2)).argmax())
    return Folds(total / REPEATS, chosen, found[chosen].mean(axis=0))


def oracles(found: np.ndarray) -> dict[str, np.ndarray]:
    """(queries, 2) of the best way for each query: by the mean of both figures, and by each figure alone, which no one can do."""
    each = np.arange(found.shape[1])
    one = found[found.mean(axis=2).argmax(axis=0), each]
    return {"one ranking": one, "each figure alone": found.max(axis=0)}


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of a mean over queries."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
