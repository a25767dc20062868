"""A person's search: words and whoever asks, as one score.

    score(j) = search(j) + WEIGHT * trust * among(j) * unit(person)(j)

    search      what the words alone find: `fedrec.recommender.words`
    person      what ranks for the history alone, in full: text, popularity, own layer; unit(x) = (x - min x) / (max x - min x)
                over what is offered
    among(j)    max(0, 2 fused(j) / max fused - 1), fused being words and meaning without what is named exactly: a history
                orders what the words find, and brings up nothing else
    trust       (cosine - TRUST_FROM) / (TRUST_WHOLE - TRUST_FROM), from 0 to 1; the cosine is the largest of those between the
                texts of the history's `LATEST` items and of the `FIRST` items that the words find first, through the encoder
                without heads. So a history of something else has no part

Without words a ranker's scores are as they are; without a history those of the search are. `docs/search.md` has the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self

import numpy as np

from fedrec.data import Catalogue, ItemDetails
from fedrec.model.ranking import blocks, pairs_of, products
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.past import Past
from fedrec.recommender.reasons.shares import Shares, held_items_of
from fedrec.recommender.selection import choose
from fedrec.recommender.shelf import Ranked, look_up
from fedrec.recommender.words import Found, Searcher

__all__ = ["WEIGHT", "Asking", "HistoryRanker", "listed", "trusted"]

WEIGHT = 0.5
"""Chosen by `python -m benchmarks.search_person`: `docs/search.md`. Far below `EXACT`, so what is named exactly stays first."""
FIRST = 30
LATEST = 50
"""Items of a history that say what it is about."""
TRUST_FROM, TRUST_WHOLE = 0.35, 0.6
FLATTEST = 1e-2
"""Least spread of a person's scores beside the largest: below it they differ by little but their rounding."""


class HistoryRanker(Protocol):
    """Who ranks for a history, and knows nothing of words. The properties are those of `Ranker`."""

    @property
    def source(self) -> str: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def details(self) -> ItemDetails: ...
    @property
    def vectors(self) -> np.ndarray: ...
    @property
    def frequency(self) -> PersonalFrequency: ...

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """(users, items) float32, -inf for what it does not offer. No past is empty."""

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """What each part adds to the scores of these items (positions of what it offers). An empty past has shares of the
        popularity list.
        """

    def popularity(self) -> np.ndarray:
        """(items,) float32, -inf for what it does not offer."""

    def past_of(self, user_id: str) -> Past | None:
        """What this user did here; None for a user it does not know."""


@dataclass(frozen=True)
class Asking:
    """A `Ranker` of words and histories, made anew for each call, so that no words outlast the answer.

    Attributes:
        ranker: who ranks for a history.
        searcher: of its catalogue; asked for where there are words.
        weight: of the person beside the words.
    """

    ranker: HistoryRanker
    searcher: Callable[[], Searcher]
    weight: float = WEIGHT
    _asked: dict[str, _Asked] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """See `Ranker`."""
        return self.ranker.source

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

    def popularity(self) -> np.ndarray:
        """See `Ranker`."""
        return self.ranker.popularity()

    def past_of(self, user_id: str) -> Past | None:
        """See `Ranker`."""
        return self.ranker.past_of(user_id)

    def notes(self, query: str | None) -> tuple[str, ...]:
        """See `Ranker`."""
        return self._of(query).found.notes if query else ()

    def scores(self, pasts: Sequence[Past], query: str | None) -> np.ndarray:
        """See `Ranker`; the formula is the module's.

        Raises:
            InputError: there are no words in the query.
        """
        if not query:
            return self.ranker.scores(pasts)
        found = np.tile(np.where(self._offered, self._of(query).found.scores, np.float32(-np.inf)), (len(pasts), 1))
        some = [user for user, past in enumerate(pasts) if len(past.items)]
        if some:
            person = self.ranker.scores([pasts[user] for user in some])[:, self._offered]
            least, per = _unit_of(person)
            factor = np.stack([self._factor(pasts[user], query) for user in some])[:, self._offered]
            added = np.zeros((len(some), len(self._offered)), dtype=np.float32)
            added[:, self._offered] = factor * per[:, None] * (person - least[:, None])
            found[some] += added
        return found

    def shares(self, past: Past, query: str | None, items: np.ndarray) -> Shares:
        """See `Ranker`. What the history and the popularity add is what they add without words, by the item's factor."""
        if not query:
            return self.ranker.shares(past, items)
        found = self._of(query).found
        asked = {name: value[items].astype(np.float64) for name, value in found.parts.items() if value[items].any()}
        meaning = np.tile(found.meaning.astype(np.float64), (len(items), 1))
        if not len(past.items):
            nothing, direction = np.zeros((0, len(items))), np.hstack([np.zeros((len(items), self.vectors.shape[1])), meaning])
            return Shares(held_items_of(past), {}, nothing, nothing, asked, {}, np.zeros(len(items)), direction)
        alone = self.ranker.shares(past, items)
        least, per = _unit_of(self.ranker.scores([past])[:, self._offered])
        factor = self._factor(past, query)[items].astype(np.float64) * float(per[0])
        return replace(
            _times(alone, factor),
            query=asked,
            base=(alone.base - float(least[0])) * factor,
            direction=np.hstack([alone.direction * factor[:, None], meaning]),
        )

    def _factor(self, past: Past, query: str) -> np.ndarray:
        """(items,) float32: WEIGHT * trust * among."""
        asked = self._of(query)
        return np.float32(self.weight * trusted(self.searcher().vectors, past.items, asked.first)) * asked.among

    def _of(self, query: str) -> _Asked:
        if query not in self._asked:
            self._asked[query] = _Asked.of(self.searcher().search(query), self._offered)
        return self._asked[query]

    @cached_property
    def _offered(self) -> np.ndarray:
        return self.ranker.popularity() > -np.inf


@dataclass(frozen=True)
class _Asked:
    """What words find, whoever asks.

    Attributes:
        among: (items,) float32 of the formula.
        first: positions of what is offered and found first.
    """

    found: Found
    among: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, found: Found, offered: np.ndarray) -> Self:
        fused = found.parts["words"] + found.parts["meaning"]
        most = float(fused.max(initial=0.0))
        among = np.maximum(2 * fused / np.float32(most) - 1, 0) if most else np.zeros_like(fused)
        first = np.flatnonzero(offered)
        if len(first) > FIRST:
            first = first[np.argpartition(-found.scores[first], FIRST - 1)[:FIRST]]
        return cls(found, among, first)


def listed(asking: Asking, histories: Sequence[Sequence[str]], k: int, query: str | None) -> list[Ranked]:
    """The `k` best items that each history does not hold; each item of one is a basket of its own.

    Raises:
        InputError: an unknown item, or there are no words in the query.
    """
    asked, lists = look_up(histories, asking.catalogue), []
    for rows in blocks(len(histories), len(asking.catalogue)):
        part = pairs_of(asked, rows)
        ends = np.cumsum([len(history) for history in histories[rows]])
        pasts = [Past(items, np.arange(len(items))) for items in np.split(part[:, 1], ends[:-1])]
        lists += choose(asking.scores(pasts, query), k, np.unique(part, axis=0))
    return [[(asking.catalogue.item_ids[item], score) for item, score in one] for one in lists]


def trusted(vectors: np.ndarray, held: np.ndarray, first: np.ndarray) -> float:
    """How far a history has a part in what words find, from 0 to 1.

    Args:
        vectors: (items, hidden) unit vectors of the catalogue's texts, without heads.
        held: (events,) of a history, the latest last; past searches, which are no items, have no part.
        first: (found,) what the words find first.
    """
    held = held[held < len(vectors)]
    nearest = float(products(vectors[np.unique(held[-LATEST:])], vectors[first]).max(initial=-1.0))
    return float(np.clip((nearest - TRUST_FROM) / (TRUST_WHOLE - TRUST_FROM), 0.0, 1.0))


def _unit_of(person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(users,) the least score and one over the spread, from (users, offered); zero where the items are not told apart."""
    least, most = person.min(axis=1, initial=np.inf), person.max(axis=1, initial=-np.inf)
    spread = most - least
    flat = ~(spread > FLATTEST * np.maximum(np.abs(least), np.abs(most)))
    return least, np.where(flat, 0.0, 1 / np.where(flat, 1.0, spread)).astype(np.float32)


def _times(shares: Shares, factor: np.ndarray) -> Shares:
    """All that a person adds, by a factor for each item (items,)."""

    text = {decay: value * factor for decay, value in shares.text.items()}
    popularity = {name: value * factor for name, value in shares.popularity.items()}
    return replace(shares, text=text, own=shares.own * factor, popularity=popularity)
