"""A run's model as `fedrec.recommender.answers` asks it: it knows items, and no user by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.data import Catalogue, ItemDetails
from fedrec.model.ranking import products
from fedrec.recommender.contest import THEIRS
from fedrec.recommender.frequency import SHARED, PersonalFrequency
from fedrec.recommender.past import Past
from fedrec.recommender.pooled import Pooled
from fedrec.recommender.reasons.shares import Shares, held_items_of, prior_shares, text_shares
from fedrec.recommender.shelf import Shelf, with_prior

__all__ = ["RunRanker"]


@dataclass(frozen=True)
class RunRanker:
    """The items of a shelf, ranked by the run's two towers; a
    `HistoryRanker`.

    Attributes:
        shelf: what may be recommended.
        details: (catalogue,) brand, category, price.
        vectors: (catalogue, hidden) its items as candidates.
        counts: (catalogue,) the run's central popularity.
        decay: of the pooling, a basket.
        length: how many of a history's latest events count.
        frequency: a run has the shared defaults.
    """

    shelf: Shelf
    details: ItemDetails
    vectors: np.ndarray
    counts: np.ndarray
    decay: float
    length: int
    source: str = "model"
    frequency: PersonalFrequency = SHARED

    @property
    def catalogue(self) -> Catalogue:
        """The run's whole catalogue: what a history may name."""
        return self.shelf.catalogue

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """See `HistoryRanker`."""
        users = Pooled.of(pasts, self.shelf.history, self.length).users(self.decay)
        return self._on_the_shelf(products(with_prior(users, 1.0), self.shelf.table))

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """See `HistoryRanker`."""
        held, place = held_items_of(past), np.searchsorted(self.shelf.positions, items)
        nothing = np.zeros((len(held), len(items)))
        if not len(held):
            counts = {THEIRS: self.counts[items].astype(np.float64)}
            return Shares(held, {}, nothing, nothing, {}, counts, np.zeros(len(items)), np.zeros((len(items), 0)))
        offered = self.shelf.table[place, :-1]  # tau c
        text = text_shares(past, held, self.shelf.history, offered, self.length, {self.decay: 1.0})
        popularity, base = prior_shares({THEIRS: self.shelf.table[:, -1]}, {THEIRS: 1.0}, place)
        return Shares(held, text.text, nothing, nothing, {}, popularity, base, text.direction)

    def popularity(self) -> np.ndarray:
        """See `HistoryRanker`: the counts that the run's merchants gave, with noise."""
        return self._on_the_shelf(self.counts[self.shelf.positions])

    def past_of(self, user_id: str) -> Past | None:
        """None: what a user did is known where it was done."""
        return None

    def _on_the_shelf(self, values: np.ndarray) -> np.ndarray:
        """(..., positions) to (..., catalogue), -inf for what is not on the shelf."""
        found = np.full((*values.shape[:-1], len(self.catalogue)), -np.inf, dtype=np.float32)
        found[..., self.shelf.positions] = values
        return found
