"""The reasons of an item, as the merchant's people see them and as a shopper may.

Staff see every share to its last digit. A shopper gets one sentence, which names the largest of the shares that may be told, and
classes of these; no score and no number. Sentence, classes and the order of the list were computed from other customers'
purchases all the same, and who asks often enough reads them closely: `docs/reasons.md` says what is learnt. What may not be told:

    a pair in the own layer      with under `FEWEST_CUSTOMERS` customers behind it: all such pairs are one undivided share, for
                                 staff alone. However many stood behind all of it, histories made up for it would take it
                                 apart, down to one customer
    what is popular here         where as few ever bought the item
    a part of negative weight    since its name would say the opposite; an item of the history is told by its other parts

No share that may not be told enters sentence or classes: they do not show that something else was larger. But those that may be
are not free of the rest: a pair's is v B / s, where B was fitted on all customers and s is over all items, and a popularity is
counted from the mean over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrec.recommender.contest import HERE
from fedrec.recommender.past import Past
from fedrec.recommender.reasons.sentences import ago, quoted
from fedrec.recommender.reasons.shares import FEWEST_CUSTOMERS, OWN, Shares
from fedrec.recommender.reasons.words import Words

if TYPE_CHECKING:
    from fedrec.recommender.answers import Ranker

__all__ = [
    "BASE",
    "CLASSES",
    "FREQUENCY",
    "HISTORY",
    "POPULARITY",
    "QUERY",
    "SEARCHED",
    "TEXT",
    "Reasons",
    "Share",
    "Told",
    "class_of",
    "reasons_of",
]

HISTORY, SEARCHED, QUERY, POPULARITY, BASE = "history", "search", "query", "popularity", "base"
"""Kinds of shares, beside the own layer's."""
TEXT, FREQUENCY = "text", "frequency"
"""Through what an item of the history adds, beside the own layer."""
CLASSES = (("strong", 1 / 2), ("some", 1 / 5), ("slight", 1 / 20))
"""A share's class by what it is of the largest; what is smaller is not worth telling."""


@dataclass(frozen=True)
class Share:
    """A part of a score.

    Attributes:
        kind: `history`, `search` (an earlier one), `query`, `popularity`, `own layer` or `base`.
        name: the history's item, what was searched for, or the popularity (`own`, `federation`); empty for others.
        value: what it adds.
        through: what `value` is the sum of: the text by pooling decay, the own layer, frequency; of the query its words, their
            meaning, and that it names the item.
        sentence: how a shopper is told of it; None where a shopper is not.
        told: what of `value` that sentence and class go by: its parts of positive weight.
    """

    kind: str
    name: str
    value: float
    through: Mapping[str, float] = field(default_factory=dict)
    sentence: str | None = None
    told: float = 0.0


@dataclass(frozen=True)
class Told:
    """A share as a shopper may see it.

    Attributes:
        how: its class: `strong`, `some` or `slight`.
    """

    kind: str
    name: str
    how: str


@dataclass(frozen=True)
class Reasons:
    """Why an item is in a list. The numbers are there; they are put in words when they are looked at.

    Attributes:
        teller: the shares of the list.
        column: whose they are of it.
        words: what the words of its text carry, where that was asked for.
    """

    item_id: str
    score: float
    teller: Teller = field(repr=False, compare=False)
    column: int = field(repr=False)
    words: Words | None = None

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """They add up to the score; the largest first, the base last. Items of the history that add nothing are left out."""
        return self.teller.shares_of(self.column)

    @property
    def direction(self) -> np.ndarray:
        """(width,) see `Shares`."""
        found: np.ndarray = self.teller.shares.direction[self.column]
        return found

    @property
    def sentence(self) -> str | None:
        """Names the largest of the shares that may be told; None where there is none."""
        # They come in the order of all that they add: of two alike that order would tell what may not be told.
        told = self._may_be_told
        return max(told, key=lambda share: (share.told, share.kind, share.name)).sentence if told else None

    @property
    def told(self) -> tuple[Told, ...]:
        """The shares that may be told, by class; those of one class in an order that says nothing about their size."""
        most = max((share.told for share in self._may_be_told), default=0.0)
        found = [Told(one.kind, one.name, how) for one in self._may_be_told if (how := class_of(one.told, most))]
        places = [name for name, _ in CLASSES]
        return tuple(sorted(found, key=lambda one: (places.index(one.how), one.kind, one.name)))

    @property
    def _may_be_told(self) -> list[Share]:
        return [share for share in self.shares if share.sentence is not None and share.told > 0]

    def for_staff(self) -> dict[str, Any]:
        """For JSON: exact."""
        shares = [
            {"kind": one.kind, "name": one.name, "share": one.value, "through": dict(one.through)} for one in self.shares
        ]  # fmt: skip
        words = None if self.words is None else self.words.for_staff()
        return {"item_id": self.item_id, "score": self.score, "because": self.sentence, "shares": shares, "words": words}

    def for_shopper(self) -> dict[str, Any]:
        """For JSON: no number. Sentence and classes were computed from other customers' purchases, as the module says."""
        shares = [{"kind": one.kind, "name": one.name, "how": one.how} for one in self.told]
        words = None if self.words is None else self.words.for_shopper()
        return {"item_id": self.item_id, "because": self.sentence, "shares": shares, "words": words}


def class_of(value: float, most: float) -> str | None:
    """The class of a share beside the largest; None for one that is too small to be told."""
    return next((name for name, least in CLASSES if most > 0 and value >= least * most), None)


def reasons_of(
    ranker: Ranker, past: Past, found: Sequence[tuple[int, float]], query: str | None, repeats: bool, now: datetime | None = None
) -> tuple[Reasons, ...]:
    """The reasons of a list.

    Args:
        found: positions in the catalogue and scores, in the list's order.
        now: what the sentences count time from; the present by default.
    """
    items = np.array([item for item, _ in found], dtype=np.int64)
    shares = ranker.shares(past, query, items)
    if repeats and not query and len(past.items):
        shares = shares.with_frequency(ranker.frequency, past, items, len(ranker.catalogue))
    teller = Teller(ranker, past, shares, items, query, now or datetime.now(UTC))
    return tuple(Reasons(ranker.catalogue.item_ids[item], score, teller, column) for column, (item, score) in enumerate(found))


@dataclass(frozen=True)
class Teller:
    """The shares of a list, and how they are put in words."""

    ranker: Ranker
    past: Past
    shares: Shares
    items: np.ndarray
    query: str | None
    now: datetime

    def shares_of(self, column: int) -> tuple[Share, ...]:
        """Of one item, the largest first and the base last."""
        shares, behind = self.shares, self.shares.customers
        named = np.ones(len(shares.held), dtype=bool) if behind is None else behind.pairs[:, column] >= FEWEST_CUSTOMERS
        found = self._of_history(column, named)
        if self.query:
            through = {name: float(value[column]) for name, value in shares.query.items()}
            value = sum(through.values())
            found.append(Share(QUERY, "", value, through, f"Because you asked for {quoted(self.query)}", value))
        if behind is not None and shares.own[:, column].any():
            found.append(Share(OWN, "", float(shares.own[~named, column].sum())))
        for name, values in shares.popularity.items():
            value = float(values[column])
            found.append(Share(POPULARITY, name, value, sentence=self._popular(name, column), told=value))
        found.sort(key=lambda share: -share.value)
        return (*found, Share(BASE, "", float(shares.base[column])))

    def _of_history(self, column: int, named: np.ndarray) -> list[Share]:
        shares = self.shares
        values: dict[str | float, np.ndarray] = {decay: value[:, column] for decay, value in shares.text.items()}
        values |= {OWN: np.where(named, shares.own[:, column], 0.0), FREQUENCY: shares.frequency[:, column]}
        parts = {part: value for part, value in values.items() if value.any()}
        if not parts:
            return []
        table, names = np.stack(list(parts.values())), [part if isinstance(part, str) else f"{TEXT} {part:g}" for part in parts]
        totals, told = table.sum(0), table[[part not in shares.opposite for part in parts]].sum(0)
        found = []
        for row in np.flatnonzero(table.any(0)).tolist():
            through = dict(zip(names, table[:, row].tolist(), strict=True))
            name, said = self._told(row, column, through.get(OWN, 0.0) > max(told[row], 0.0) / 2)
            kind = HISTORY if shares.held[row] < len(self.ranker.catalogue) else SEARCHED
            found.append(Share(kind, name, float(totals[row]), through, said, float(told[row])))
        return found

    def _told(self, row: int, column: int, together: bool) -> tuple[str, str]:
        """A held item's id, and the sentence about it; `together`: whether most of it is that both are bought."""
        name, did, what, when = self._phrases[row]
        if self.shares.basket:
            return name, f"Often bought together here: this and {what}" if together else f"Goes with {what}"
        what = "this" if self.shares.held[row] == self.items[column] else what
        return name, f"Because you {did} {what}{when}"

    @cached_property
    def _phrases(self) -> list[tuple[str, str, str, str]]:
        """Of each held item its id, what the person did with it, what it is called, and when that was."""
        catalogue, past = self.ranker.catalogue, self.past
        bought = np.ones(len(past.items), dtype=bool) if past.target is None else past.target
        last = {item: event for event, item in enumerate(past.items.tolist())}
        last |= {item: event for event, item in enumerate(past.items.tolist()) if bought[event]}
        found = []
        for item in self.shares.held.tolist():
            event = last[item]
            when = "" if past.times is None else ago(past.times[event], self.now)
            if item >= len(catalogue):
                query = past.queries[item - len(catalogue)]
                found.append((query, "searched for", quoted(query), when))
                continue
            did = "bought" if bought[event] else "looked at"
            found.append((catalogue.item_ids[item], did, quoted(catalogue.texts[item]), when))
        return found

    def _popular(self, name: str, column: int) -> str | None:
        if name in self.shares.opposite:
            return None
        if name != HERE:
            return "Popular"
        behind = self.shares.customers
        return "Popular here" if behind is not None and behind.buyers[column] >= FEWEST_CUSTOMERS else None
