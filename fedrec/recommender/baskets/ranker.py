"""Who ranks for a basket: whoever ranks otherwise, or a merchant's own baskets, without what would replace one of its items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from fedrec.data import Catalogue, ItemDetails
from fedrec.recommender.asking import HistoryRanker
from fedrec.recommender.baskets.baskets import Baskets
from fedrec.recommender.baskets.model import BasketParts, BasketWeights
from fedrec.recommender.contest import HERE
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.past import Past
from fedrec.recommender.reasons.shares import Customers, Shares, held_items_of, own_shares, prior_shares, text_shares

__all__ = ["BasketRanker", "OwnBaskets"]


@dataclass(frozen=True)
class OwnBaskets:
    """Scores of a merchant's catalogue under its own baskets.

    Attributes:
        parts, weights: of the formula.
        source: what it is called in an answer.
        reads: whether words are read by the adapter that this text is of: else those of an item have no part in its score.
    """

    parts: BasketParts
    weights: BasketWeights
    source: str
    reads: bool = True

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """(baskets, items) float32."""
        held = [past.bought for past in pasts]
        offsets = np.append(0, np.cumsum([len(one) for one in held]))
        shape = (len(pasts), len(self.parts.prior))
        row = csr_array((np.ones(offsets[-1], dtype=np.float32), np.concatenate(held), offsets), shape=shape)
        return self.parts.scores(self.weights, row)

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """See `HistoryRanker.shares`."""
        held, weights, part = held_items_of(past), self.weights, self.parts.text
        text = text_shares(past, held, part.history, part.candidate[items], len(past.items), {0.0: weights.text})
        place, cosine = self.parts.nearest(held, items)
        text.text[0.0][place, np.arange(len(items))] += weights.nearest * cosine
        direction = text.direction + weights.nearest * part.history[held[place]]
        direction = direction if self.reads else np.zeros_like(direction)
        own = self.parts.lifts_between(weights, held, items)
        own += own_shares(self.parts.layer, past, held, items, weights.layer, len(self.parts.prior))
        popularity, base = prior_shares({HERE: self.parts.prior}, {HERE: weights.popularity}, items)
        return Shares(held, text.text, own, np.zeros_like(own), {}, popularity, base, direction)


@dataclass(frozen=True)
class BasketRanker:
    """A `HistoryRanker` of one basket, which is the history it is asked about.

    Attributes:
        ranker: who ranks otherwise: for anything but the scores of this basket, and for these where there is no `own`.
        held_back: (items,) bool, what would replace an item of the basket: it is not offered.
        own: scores under the merchant's own baskets.
        baskets: what was bought here at one time; None where nothing may be told of it.
    """

    ranker: HistoryRanker
    held_back: np.ndarray
    own: OwnBaskets | None = None
    baskets: Baskets | None = None

    @property
    def source(self) -> str:
        """See `Ranker`."""
        return self.ranker.source if self.own is None else self.own.source

    @property
    def catalogue(self) -> Catalogue:
        """See `Ranker`."""
        return self.ranker.catalogue

    @property
    def details(self) -> ItemDetails:
        """See `Ranker`."""
        return self.ranker.details

    @property
    def vectors(self) -> np.ndarray:
        """See `Ranker`."""
        return self.ranker.vectors

    @property
    def frequency(self) -> PersonalFrequency:
        """See `Ranker`."""
        return self.ranker.frequency

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """See `HistoryRanker`."""
        return self._offered(self.ranker.scores(pasts) if self.own is None else self.own.scores(pasts))

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """See `HistoryRanker`."""
        plain = self.ranker.shares(past, items)
        found = plain if self.own is None or not len(past.items) else self.own.shares(past, items)
        if self.baskets is None:
            return replace(found, basket=True)
        # Who bought an item is the same whether it is asked for a person or for a basket; who bought two at once is not.
        buyers = plain.customers.buyers if plain.customers is not None else np.zeros(len(items), dtype=np.int64)
        return replace(found, customers=Customers(self.baskets.customers(found.held, items), buyers), basket=True)

    def popularity(self) -> np.ndarray:
        """See `HistoryRanker`."""
        return self._offered(self.ranker.popularity())

    def past_of(self, user_id: str) -> Past | None:
        """None: a basket is nobody's."""
        return None

    def _offered(self, values: np.ndarray) -> np.ndarray:
        """(..., items) with -inf for what is held back."""
        return np.where(self.held_back, np.float32(-np.inf), values)
