"""Who ranks at a merchant: the text over its catalogue, its own layer, and popularity, under its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from fedrec.data import Catalogue, ItemDetails, MerchantData
from fedrec.model.ranking import products
from fedrec.recommender.blend import Blend, TextPart, own_scores
from fedrec.recommender.contest import HERE, THEIRS
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.own_layer import bought_by
from fedrec.recommender.own_model import Placed
from fedrec.recommender.past import Past
from fedrec.recommender.pooled import Pooled
from fedrec.recommender.reasons.shares import OWN, Shares, count_customers, held_items_of, own_shares, prior_shares, text_shares

__all__ = ["MerchantRanker"]


@dataclass(frozen=True)
class MerchantRanker:
    """A catalogue ranked under a merchant's blend; a `HistoryRanker`.

    Attributes:
        data: catalogue, details and the users by name.
        part: the text over the catalogue.
        layer: the own layer; None where there is none.
        counts: (items,) how often each was bought here, or in the federation where the own layer is turned off.
        blend: how they are joined.
        length: how many of a history's latest events the text pools.
        said: from what users searched for to its vectors as history, (searches, hidden).
        source: what ranks.
        frequency: what is added where people buy again.
    """

    data: MerchantData
    part: TextPart
    layer: Placed | None
    counts: np.ndarray
    blend: Blend
    length: int
    said: Callable[[Sequence[str]], np.ndarray]
    source: str
    frequency: PersonalFrequency

    @property
    def catalogue(self) -> Catalogue:
        """The merchant's items."""
        return self.data.catalogue

    @property
    def details(self) -> ItemDetails:
        """Their brand, category and price."""
        return self.data.details

    @property
    def vectors(self) -> np.ndarray:
        """(items, hidden) the items as candidates."""
        return self.part.candidate

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """See `HistoryRanker`."""
        history, pasts = self._searched(pasts)
        events = Pooled.of(pasts, history, self.length)
        # The catalogue is read once: to join the users first is the same sum as to join their scores.
        joined = np.zeros((len(pasts), self.vectors.shape[1]), dtype=np.float32)
        for decay, weight in self.blend.pooling.items():
            joined += np.float32(weight) * events.users(decay)
        out = products(joined, self.vectors)
        for name, weight in self.blend.priors.items():
            out += np.float32(weight) * self.part.priors[name]
        if self.layer is not None and self.blend.own:
            out += np.float32(self.blend.own) * own_scores(self.layer, _bought(pasts, len(self.catalogue)))
        return out

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """See `HistoryRanker`."""
        held, own = held_items_of(past), HERE in self.blend.priors or bool(self.blend.own)
        nothing = np.zeros((len(held), len(items)))
        customers = count_customers(self._buyers, past, held, items) if own else None
        if not len(held):
            counts, none = {HERE if own else THEIRS: self.counts[items].astype(np.float64)}, np.zeros((len(items), 0))
            return Shares(held, {}, nothing, nothing, {}, counts, np.zeros(len(items)), none, customers=customers)
        candidate = self.part.candidate[items]
        history, (numbered,) = self._searched([past])
        text = text_shares(numbered, held_items_of(numbered), history, candidate, self.length, self.blend.pooling)
        popularity, base = prior_shares(self.part.priors, self.blend.priors, items)
        together = nothing
        if self.layer is not None and self.blend.own:
            together = own_shares(self.layer, past, held, items, self.blend.own, len(self.catalogue))
        weights: list[tuple[str | float, float]] = [
            *self.blend.pooling.items(),
            *self.blend.priors.items(),
            (OWN, self.blend.own),
        ]
        opposite = frozenset(part for part, weight in weights if weight < 0)
        return Shares(held, text.text, together, nothing, {}, popularity, base, text.direction, opposite, customers)

    def popularity(self) -> np.ndarray:
        """See `HistoryRanker`."""
        return self.counts

    def past_of(self, user_id: str) -> Past | None:
        """See `HistoryRanker`."""
        number = self._numbers.get(user_id)
        if number is None:
            return None
        alone, size = self.data.histories.take(np.array([number])), len(self.catalogue)
        own = np.unique(alone.items[alone.items >= size])
        items = np.where(alone.items < size, alone.items, size + np.searchsorted(own, alone.items))
        queries = tuple(alone.queries[number - size] for number in own)
        return Past(items, alone.baskets, alone.target, alone.times, queries)

    def _searched(self, pasts: Sequence[Past]) -> tuple[np.ndarray, Sequence[Past]]:
        """The catalogue as history, with what these people searched for after it, and their events numbered by that."""
        size = len(self.catalogue)
        searches: list[str] = []
        numbered: list[Past] = []
        for past in pasts:
            recent = np.unique(past.items[-self.length :])
            recent = recent[recent >= size] - size
            # What is too long ago to be pooled is numbered too, and not read.
            order = np.concatenate([recent, np.setdiff1d(np.arange(len(past.queries)), recent)])
            place = np.append(np.argsort(order), 0)[np.maximum(past.items - size, -1)]
            numbered.append(past._replace(items=np.where(past.items < size, past.items, size + len(searches) + place)))
            searches += [past.queries[number] for number in recent]
        if not searches:
            return self.part.history, pasts
        return np.concatenate([self.part.history, self.said(searches)]), numbered

    @cached_property
    def _buyers(self) -> csr_array:
        """(items, users) of ones, who bought what here."""
        return bought_by(self.data.histories, len(self.catalogue)).T.tocsr()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.data.histories.user_ids)}


def _bought(pasts: Sequence[Past], items: int) -> csr_array:
    """(users, items) of ones where an item was bought."""
    held = [past.bought for past in pasts]
    rows = np.repeat(np.arange(len(held)), [len(found) for found in held])
    columns = np.concatenate([np.zeros(0, dtype=np.int64), *held])
    return csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(pasts), items))
