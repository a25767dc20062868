"""What users did, padded for the user tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.model.towers import user_vectors
from fedrec.recommender.past import Past

__all__ = ["Pooled"]


@dataclass(frozen=True)
class Pooled:
    """Events as the user tower takes them.

    Attributes:
        vectors: (events, hidden) what is pooled.
        rows, ages, valid: (users, L) which of them, baskets ago, and whether there is one.
    """

    vectors: np.ndarray
    rows: np.ndarray
    ages: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, pasts: Sequence[Past], history: np.ndarray, length: int) -> Pooled:
        """The latest `length` events of each user.

        Args:
            history: (items, hidden) the catalogue as history.
        """
        last = [past.items[-length:] for past in pasts]
        vectors = history[np.concatenate([np.zeros(0, dtype=np.int64), *last])]  # (events, hidden)
        shape = (len(pasts), max(map(len, last), default=0))
        rows, ages, valid = np.full(shape, len(vectors) - 1), np.zeros(shape), np.zeros(shape, dtype=bool)
        start = 0
        for user, past in enumerate(pasts):
            baskets, count = past.baskets, len(last[user])
            events = slice(count)  # the latest first
            rows[user, events] = np.arange(start, start + count)[::-1]
            ages[user, events] = (baskets[-1:] - baskets[len(baskets) - count :])[::-1]
            valid[user, events] = True
            start += count
        return cls(vectors, rows, ages, valid)

    def users(self, decay: float) -> np.ndarray:
        """(users, hidden) their vectors."""
        return user_vectors(self.vectors, self.rows, self.ages, self.valid, decay)
