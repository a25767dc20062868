"""Some places of a list for what is uncertain: whose value, of which items, and by which draw.

What may be shown is what the plain list may show; how it is drawn, and with which probabilities, is `fedrec.explore.places`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.explore.beliefs import Prior
from fedrec.explore.feedback import Feedback, Learned, learn
from fedrec.explore.log import LogTable
from fedrec.explore.places import draw_places

__all__ = ["Explorer", "Place", "Shown", "check_explore", "generator_for"]

MOST_PLACES = 1000
"""The last position that is learned from."""


@dataclass(frozen=True)
class Explorer:
    """What is believed of the items that a ranker offers.

    Attributes:
        offered: (offered,) their positions in the catalogue.
        prior: of them, in this order.
        learned: the same after what was shown; None where nothing was.
        notes: what is to be said of it, each a sentence.
    """

    offered: np.ndarray
    prior: Prior
    learned: Learned | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, vectors: np.ndarray, popularity: np.ndarray, shown: Shown | None = None) -> Explorer:
        """From item vectors (items, width) and how often each was bought (items,), -inf for what is not offered."""
        offered = np.flatnonzero(popularity > -np.inf)
        prior = Prior(vectors[offered], popularity[offered])
        return cls(offered, prior, None if shown is None else learn(prior, shown.among(offered)))

    def ranked(self, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(people, items) float32, what the places go by that do not explore: the scores, until something was learned.

        Args:
            scores: (people, items), -inf for what is not offered.
            counts: (people,) whether a person's scores are counts, of the popularity list, whose logarithms are values.
        """
        if self.learned is None:
            return scores
        found = scores.copy()
        for row, values, counted in zip(found, scores[:, self.offered], counts, strict=True):
            scale = _values(values, counted)
            row[self.offered] = self.learned.ranked(scale, self.prior.beliefs(scale)[0])
        return found

    def places(
        self,
        plain: list[tuple[int, float]],
        scores: np.ndarray,
        may: np.ndarray,
        share: float,
        rng: np.random.Generator,
        *,
        counts: bool = False,
    ) -> tuple[list[tuple[int, float]], tuple[Place, ...]]:
        """The list with its exploring places as (item, score), and what each place was given by.

        Args:
            plain: the list without them.
            scores: (items,) of the person.
            may: (items,) what the list may hold.
            share: of the places that explore.
            counts: see `ranked`.
        """
        if not plain:
            return [], ()
        mean, sd = self.prior.beliefs(_values(scores[self.offered], counts))
        drawn_mean, drawn_sd = mean, sd
        if self.learned is not None:
            drawn_mean, drawn_sd = self.learned.slope * mean + self.learned.effect, self.learned.sd
        kept = np.flatnonzero(may[self.offered])
        candidates = self.offered[kept]
        order = np.searchsorted(candidates, [item for item, _ in plain])
        drawn = draw_places(order.tolist(), drawn_mean[kept], drawn_sd[kept], share, rng)
        items = [int(candidates[place]) for place, _ in drawn]
        stands = _without_exploring([item for item, _ in plain], items)
        given = tuple(Place(chance, float(mean[kept[place]]), one) for (place, chance), one in zip(drawn, stands, strict=True))
        return [(item, float(scores[item])) for item in items], given


class Place(NamedTuple):
    """How a place of a list was given.

    Attributes:
        propensity: P(this item at this place, given the places above it).
        value: what was believed of the item for this person before anything was learned: with it a log can be learned from.
        target: the same probability, 1 or 0, were no place given by chance: in the list by what was learned, not in that by the
            scores, which is what is served without `explore`. With it a log can say what chance costs.
    """

    propensity: float
    value: float
    target: float


@dataclass(frozen=True)
class Shown:
    """A log of what was shown, as a recommender learns from it.

    Attributes:
        feedback: its rows, the items by their positions in the catalogue.
    """

    feedback: Feedback

    @classmethod
    def of(cls, table: LogTable, catalogue: Catalogue) -> Shown:
        """The rows of a log whose items are in the catalogue; it needs `position` and `value`.

        Raises:
            InputError: a column is missing, a reward is not in 0..1, or no row is of an item of this catalogue.
        """
        table.require(("position", "value"))
        place, value = table.whole("position", 1, MOST_PLACES), table.numbers("value", -np.inf, np.inf)
        reward = table.numbers("reward", 0.0, 1.0)
        item = catalogue.index.get_indexer(table.frame["item_id"].tolist())
        kept = item >= 0
        if not kept.any():
            raise InputError("none of its items is in the catalogue", where=table.name)
        return cls(Feedback(item[kept], place[kept] - 1, value[kept], reward[kept]))

    def among(self, offered: np.ndarray) -> Feedback:
        """The rows of some items of the catalogue (offered,), ascending, by their place among them."""
        found, kept = self.feedback, np.isin(self.feedback.item, offered)
        item = np.searchsorted(offered, found.item[kept])
        return Feedback(item, found.place[kept], found.believed[kept], found.reward[kept])


def _without_exploring(plain: Sequence[int], items: Sequence[int]) -> list[float]:
    """Whether each item is what the plain list has next, given those above it."""
    left, found = list(plain), list[float]()
    for item in items:
        found.append(float(item == left[0]))
        # What the plain list does not have pushes its last one out.
        left.remove(item) if item in left else left.pop()
    return found


def _values(scores: np.ndarray, counts: bool) -> np.ndarray:
    found: np.ndarray = np.log1p(np.maximum(scores, 0.0)) if counts else scores
    return found


def check_explore(share: float, seed: int | None, query: str | None = None) -> None:
    """Refuse a share or a seed that means nothing, and to explore where words say what is wanted.

    Raises:
        InputError: it does.
    """
    if not 0 <= share <= 1:
        raise InputError(f"found {share}", where="explore", expected="a number from 0 to 1")
    if share and query:
        # Beliefs and click effects are of items and know no words: they would put what does not match above what does.
        raise InputError("is asked for together with words", where="explore", expected="a query or exploring, not both")
    if seed is not None and seed < 0:
        raise InputError(f"found {seed}", where="seed", expected="a whole number from 0")


def generator_for(seed: int | None, user_id: str | None, items: Sequence[int]) -> np.random.Generator:
    """Random numbers for one person's list: with a seed the same for the same person, whoever is asked for beside them."""
    if seed is None:
        return np.random.default_rng()
    # The `None` is where lists with words had them: a seed gives the lists that it gave.
    return np.random.default_rng([seed, crc32(repr((user_id, list(items), None)).encode())])
