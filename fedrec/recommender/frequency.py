"""Where people buy again: what a person's own past adds to the score of its items, and how much of it.

    score(j) + w log(1 + frequency(j)),   frequency(j) = sum of exp(-decay * baskets ago) over the person's events with j

It counts only where a list may hold what was bought before. The frequency is the one of `fedrec.evaluation.repeats`; its
logarithm, because a blend's scores are of that scale, and the tenth purchase says less than the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from fedrec.evaluation.protocol import metrics_of
from fedrec.evaluation.repeats import frequencies
from fedrec.recommender.blend import FEWEST, Blend, Fold, TextPart, scores

__all__ = ["NONE", "SHARED", "PersonalFrequency", "choose_frequency"]

CLEARLY = 2.0
"""Standard errors by which a pair has to be better before it replaces the shared defaults: choosing users are few."""
DECAYS, WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0), (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class PersonalFrequency:
    """The two numbers of the formula above.

    Attributes:
        decay: a basket.
        weight: w; 0 leaves the scores as they are.
        users: how many the choice was made on; 0 for shared defaults.
    """

    decay: float
    weight: float
    users: int = 0

    def scores(self, past: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """(users, items) float32, what is added; zero for what a user has not bought.

        Args:
            past: (events, 3) user, item and baskets ago.
        """
        return (self.weight * np.log1p(frequencies(past, shape, self.decay))).astype(np.float32)


SHARED = PersonalFrequency(0.2, 8.0)
"""For a run, and for a merchant with too few users to choose on: `docs/recommend.md` has the measurement."""
NONE = PersonalFrequency(0.0, 0.0)


def choose_frequency(
    folds: Sequence[Fold], part: TextPart, blend: Blend, k: int, default: PersonalFrequency = SHARED
) -> PersonalFrequency:
    """The decay and weight by NDCG@k of whole last baskets under this blend, nothing masked.

    It is the better of the default and no weight at all, unless another pair is clearly better than that. So on these users
    neither of the two ranks better than what is chosen.

    Args:
        default: what holds where there are too few users.
    """
    groups = [(fold, fold.again) for fold in folds if fold.again is not None]
    users = sum(len(again.items) for _, again in groups)
    if users < FEWEST:
        return default
    tried = [default, NONE, *(PersonalFrequency(decay, weight) for decay, weight in product(DECAYS, WEIGHTS))]
    found: list[list[np.ndarray]] = [[] for _ in tried]
    for fold, again in groups:
        for block in again.blocks():
            assert block.past is not None
            without = scores(block, fold.seen(part), fold.layers[blend.strength], blend)
            for one, values in zip(tried, found, strict=True):
                values.append(metrics_of(block, without + one.scores(block.past, without.shape), k).ndcg)
    ndcg = np.stack([np.concatenate(values) for values in found])  # (tried, users)
    first, best = int(ndcg[1].mean() >= ndcg[0].mean()), int(ndcg.mean(axis=1).argmax())
    gain = ndcg[best] - ndcg[first]
    clear = gain.mean() > CLEARLY * gain.std() / np.sqrt(users)
    return replace(tried[best if clear else first], users=users)
