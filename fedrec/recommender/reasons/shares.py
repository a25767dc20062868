"""The exact share of a score that each item of a history, the words, and popularity have.

    <u_d, c_j> = sum over events e of  w_e <h_e, c_j> / |sum_e w_e h_e|        w = softmax(-decay * age)
    own(j) / s = sum over held items i of  B_ij / s

Given the weights `w`, the norm and the spread `s`, which are the person's and the same for all items, a score is a sum over the
history. So the terms are the shares: nothing is approximated, and they add up to the score but for its rounding.

A popularity is the logarithm of a probability, which is negative for every item. What all items have in common explains none
of them, so a popularity's share is counted from the mean over the catalogue, and the mean is `base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from fedrec.model.towers import recency_weights
from fedrec.recommender.blend import spread_of
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.own_layer import Scores
from fedrec.recommender.past import Past, bought_events
from fedrec.recommender.pooled import Pooled

__all__ = [
    "FEWEST_CUSTOMERS", "OWN", "Customers", "Shares", "TextShares", "count_customers", "held_items_of", "own_shares",
    "prior_shares", "text_shares",
]  # fmt: skip

OWN = "own layer"
FEWEST_CUSTOMERS = 10
"""Customers who stand behind what a shopper may be told of other customers, at least."""


@dataclass(frozen=True)
class Customers:
    """How many other customers stand behind what the own layer and the popularity here say; each counts once.

    Attributes:
        pairs: (held, items) who bought both.
        buyers: (items,) who bought the item.
    """

    pairs: np.ndarray
    buyers: np.ndarray


@dataclass(frozen=True)
class Shares:
    """What each part adds to the scores of some items; their sum is the scores. All are float64.

    Attributes:
        held: (held,) the distinct items of the history, the latest last, searches among them as `Past` numbers them.
        text: by pooling decay, (held, items) through the text.
        own: (held, items) through the own layer.
        frequency: (held, items) through how often and how recently it was bought.
        query: by name, (items,) of the words that were asked for: `words`, `meaning`, `named`.
        popularity: (items,) by name, counted from the mean over the catalogue.
        base: (items,) what is left: the mean of the popularities; with words also what the person's scores are counted from.
        direction: (items, width) whose product with an item's vector, as `Reader` reads texts, is the text's part of its score;
            the width is `hidden`, twice that where words were asked for, 0 where no text has a part.
        opposite: decays, popularities, and `OWN`, whose weight is negative: a share of theirs says the opposite of its name.
        customers: None where no part was computed from customers without noise.
        basket: whether what is held is a basket and not somebody's history: what goes with it is then told as that.
    """

    held: np.ndarray
    text: Mapping[float, np.ndarray]
    own: np.ndarray
    frequency: np.ndarray
    query: Mapping[str, np.ndarray]
    popularity: Mapping[str, np.ndarray]
    base: np.ndarray
    direction: np.ndarray
    opposite: frozenset[str | float] = frozenset()
    customers: Customers | None = None
    basket: bool = False

    @property
    def history(self) -> np.ndarray:
        """(held, items) all that each item of the history adds."""
        return sum(self.text.values(), self.own + self.frequency)

    @property
    def words(self) -> np.ndarray:
        """(items,) all that the words of the query add."""
        return sum(self.query.values(), np.zeros(self.own.shape[1]))

    @property
    def total(self) -> np.ndarray:
        """(items,) the scores."""
        return self.history.sum(0) + self.words + sum(self.popularity.values(), np.zeros(self.own.shape[1])) + self.base

    def with_frequency(self, frequency: PersonalFrequency, past: Past, items: np.ndarray, size: int) -> Shares:
        """Where a list may hold what was bought: what that adds to these items of a catalogue of `size`."""
        added = frequency.scores(bought_events([past]), (1, size))[0, items].astype(np.float64)
        return replace(self, frequency=np.where(self.held[:, None] == items, added, 0.0))


@dataclass(frozen=True)
class TextShares:
    """The text's part of `Shares`; its attributes are theirs."""

    text: Mapping[float, np.ndarray]
    direction: np.ndarray


def held_items_of(past: Past) -> np.ndarray:
    """(held,) the distinct items of a history, the latest last."""
    backwards = past.items[::-1]
    items, first = np.unique(backwards, return_index=True)
    return items[np.argsort(-first)]


def text_shares(
    past: Past, held: np.ndarray, history: np.ndarray, candidate: np.ndarray, length: int, pooling: Mapping[float, float]
) -> TextShares:  # fmt: skip
    """Through each pooling of the history.

    Args:
        history: (catalogue, hidden).
        candidate: (items, hidden) the items that are explained.
        length: how many of the latest events count.
        pooling: a decay's weight.
    """
    events = Pooled.of([past], history, length)
    vectors = events.vectors[events.rows[0]].astype(np.float64)  # (L, hidden)
    place = np.argsort(held)[np.searchsorted(np.sort(held), past.items[-length:][::-1])]  # (L,)
    cosines = vectors @ candidate.astype(np.float64).T  # (L, items)
    text, direction = {}, np.zeros(history.shape[1])
    for decay, weight in pooling.items():
        weights = recency_weights(events.ages, events.valid, decay)[0].astype(np.float64)
        pooled = weights @ vectors
        weights *= weight / max(float(np.linalg.norm(pooled)), 1e-12)
        terms = weights[:, None] * cosines
        text[decay] = np.zeros((len(held), len(candidate)))
        np.add.at(text[decay], place, terms)
        direction += weights @ vectors
    return TextShares(text, np.tile(direction, (len(candidate), 1)))


def own_shares(layer: Scores, past: Past, held: np.ndarray, items: np.ndarray, weight: float, size: int) -> np.ndarray:
    """(held, items) through the own layer; zero for what was only looked at.

    Args:
        weight: v.
        size: of the catalogue.
    """
    bought = past.bought
    row = csr_array((np.ones(len(bought), dtype=np.float32), bought, np.array([0, len(bought)])), shape=(1, size))
    spread = float(spread_of(layer.scores(row))[0, 0])
    found = np.zeros((len(held), len(items)))
    counts = np.isin(held, bought)
    found[counts] = layer.between(held[counts], items)
    return found * (weight / spread)


def prior_shares(
    priors: Mapping[str, np.ndarray], weights: Mapping[str, float], items: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(items,) by name what the popularities add, from their means, and the sum of the means, (items,) of one number.

    Args:
        priors: (catalogue,) log popularity by name.
    """
    found, base = {}, 0.0
    for name, weight in weights.items():
        if not weight:
            continue
        mean = float(priors[name].mean(dtype=np.float64))
        found[name] = weight * (priors[name][items] - mean)
        base += weight * mean
    return found, np.full(len(items), base)


def count_customers(by_item: csr_array, past: Past, held: np.ndarray, items: np.ndarray) -> Customers:
    """Who stands behind the shares of these items.

    Args:
        by_item: (catalogue, users) of ones, who bought each item. The one who asks may be among the users: where they have
            bought the item they count as one, and are taken off.
    """
    bought = held < by_item.shape[0]  # nobody buys a search
    of_held = by_item[held[bought]].T.tocsr()  # (users, bought)
    starts, counts = by_item.indptr[items], np.diff(by_item.indptr)[items]
    column = np.repeat(np.arange(len(items)), counts)  # (buyers of any,) whose buyers they are
    place = np.arange(len(column)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    both = of_held[by_item.indices[place]]  # (buyers of any, bought)
    row = np.repeat(np.arange(len(column)), np.diff(both.indptr))
    asking = np.isin(items, past.bought).astype(np.int64)
    cells = np.bincount(both.indices * len(items) + column[row], minlength=int(bought.sum()) * len(items))
    pairs = np.zeros((len(held), len(items)), dtype=np.int64)
    pairs[bought] = np.maximum(cells.reshape(int(bought.sum()), len(items)) - asking, 0)
    return Customers(pairs, np.maximum(counts - asking, 0))
