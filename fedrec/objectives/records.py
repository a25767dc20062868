"""A merchant's records before they are padded: memory that grows with its events and with nothing a server chooses.

A user's *positions* are the most recent baskets with a target that is new; for each, the history is every basket
before it, and earlier targets are masked out of the softmax, as the evaluation masks them out of the ranking. What is
history alone, such as a view, is pooled: it is no target, and makes no later one old. No more than the last `2 * history`
events before the latest position are looked at. A basket that has none of them before it is no position: without a history
it would teach popularity alone. Padded arrays have room for every event at every position, so they are made for a few
records at a time, or kept where all of them are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedrec.config import Unit
from fedrec.data import Histories
from fedrec.model.towers import recency_weights
from fedrec.objectives.examples import Examples, distinct_items, joined, merged, ragged

__all__ = ["Index", "Records", "build_examples", "build_records", "padded_where_small"]

NUMBERS_PADDED = 4_000_000
"""Most numbers (records, P, L) that are padded at once."""
NUMBERS_KEPT = 32_000_000
"""Most numbers of padded arrays that are kept for all records; where there would be more, each lot is padded anew."""


@dataclass(frozen=True)
class Index:
    """What users did, by user and by position.

    Attributes:
        start, end: (users,) which events may be pooled for a position of a user.
        basket: (positions,) number of the basket, a user's latest first.
        targets: (positions + 1,) position `p` is to predict `target[targets[p]:targets[p + 1]]`.
        target: (targets,) items.
        knowns: (users + 1,) `known[knowns[u]:knowns[u + 1]]` were targets of user `u`, each item once.
        known, first: (pairs,) items and the basket in which each was first.
        answer: (targets,) see `Examples`.
    """

    histories: Histories
    start: np.ndarray
    end: np.ndarray
    basket: np.ndarray
    targets: np.ndarray
    target: np.ndarray
    knowns: np.ndarray
    known: np.ndarray
    first: np.ndarray
    answer: np.ndarray | None = None


@dataclass(frozen=True)
class Records:
    """Records (users, or single examples), to be padded a few at a time.

    Attributes:
        user: (records,) of which user each is.
        at, until: (records,) which positions are each one's.
        positions: P, the most that one has.
        history: events that are pooled for a position.
        merge: whether `padded` has each item once, as `merged` does.
        back: how many baskets before a position are pooled and masked; None for all.
    """

    index: Index
    user: np.ndarray
    at: np.ndarray
    until: np.ndarray
    positions: int
    history: int
    decay: float
    merge: bool = False
    back: int | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def length(self) -> int:
        """L, the most events of a record."""
        return 2 * self.history

    def take(self, records: np.ndarray) -> Records:
        """The given records; nothing is copied but where they are."""
        return replace(self, user=self.user[records], at=self.at[records], until=self.until[records])

    def chunks(self) -> Iterator[Records]:
        """The records in pieces that are small when they are padded."""
        size = max(1, NUMBERS_PADDED // (self.positions * self.length))
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def padded(self) -> Examples:
        """All of these records, numbered from 0."""
        index, count = self.index, len(self)
        places = self.until - self.at
        lengths = np.where(places > 0, (index.end - index.start)[self.user], 0)
        record, column, event = ragged(index.start[self.user], lengths)
        items = np.zeros((count, self.length), dtype=np.int64)
        baskets = np.full((count, self.length), np.iinfo(np.int64).max)
        items[record, column], baskets[record, column] = index.histories.items[event], index.histories.baskets[event]
        owner, place, position = ragged(self.at, places)
        number = np.full((count, self.positions), -1, dtype=np.int64)  # (records, P)
        number[owner, place] = index.basket[position]
        before = self._before(baskets[:, None, :], number[:, :, None])  # (records, P, L)
        valid = before & (before.sum(-1, keepdims=True) - np.cumsum(before, axis=-1) < self.history)
        ages = (number[:, :, None] - 1 - baskets[:, None, :]).astype(np.float64)
        per_position = np.diff(index.targets)[position]
        at, _, target = ragged(index.targets[position], per_position)
        examples = Examples(
            items,
            recency_weights(ages, valid, self.decay),
            np.column_stack([owner[at], place[at], index.target[target]]),
            (1 / (per_position * places[owner])[at]).astype(np.float32),
            self._seen(number),
            None if index.answer is None else index.answer[target],
        )
        return merged(examples) if self.merge else examples

    def _seen(self, number: np.ndarray) -> np.ndarray:
        index = self.index
        record, _, pair = ragged(index.knowns[self.user], np.diff(index.knowns)[self.user])
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        step = max(1, NUMBERS_PADDED // self.positions)  # or the true number of items would say how much memory it takes
        for start in range(0, len(record), step):
            rows = slice(start, start + step)
            known, place = np.nonzero(self._before(index.first[pair[rows]][:, None], number[record[rows]]))
            found.append((known + start, place))
        known, place = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(record[known] * self.positions + place, kind="stable")
        return np.column_stack([record[known], place, index.known[pair[known]]])[order]

    def _before(self, baskets: np.ndarray, number: np.ndarray) -> np.ndarray:
        before: np.ndarray = baskets < number
        return before if self.back is None else before & (baskets >= number - self.back)


def build_records(
    histories: Histories, *, history: int, positions: int, decay: float, unit: Unit = "user", merge: bool = False
) -> Records | Examples:
    """What `build_examples` gives (`merge`: and `merged`), padded already where that is small, in the same order.

    Args:
        history: most recent events pooled for a position.
        positions: most recent baskets used as targets.
        decay: recency decay a basket.
    """
    return padded_where_small(_records(histories, history, positions, decay, unit), merge)


def padded_where_small(records: Records, merge: bool) -> Records | Examples:
    """The records, padded already where that is small, and with `merge` as `merged` has them."""
    if records.positions * (len(records) * records.length + 6 * len(records.index.known)) <= NUMBERS_KEPT:
        examples = joined([chunk.padded() for chunk in records.chunks()] or [records.padded()])
        return merged(examples) if merge else examples
    if not merge:
        return records
    counts = np.concatenate([distinct_items(chunk.padded()) for chunk in records.chunks()])
    return replace(records.take(np.argsort(counts, kind="stable")), merge=True)


def build_examples(histories: Histories, *, history: int, positions: int, decay: float, unit: Unit = "user") -> Examples:
    """Padded arrays for all users, or with `unit="event"` for every example as a record of its own.

    Args:
        history: most recent events pooled for a position.
        positions: most recent baskets used as targets.
        decay: recency decay a basket.

    Returns:
        Records in the order of users. Users with nothing to predict are kept, with zero
        weights: they are part of the population that is sampled from.
    """
    return _records(histories, history, positions, decay, unit).padded()


def _records(histories: Histories, history: int, positions: int, decay: float, unit: Unit) -> Records:
    users, width = len(histories), int(histories.items.max(initial=0)) + 1
    owner = np.repeat(np.arange(users), np.diff(histories.offsets))
    targets = np.flatnonzero(histories.is_target)
    pairs, first = np.unique((owner * width + histories.items)[targets], return_index=True)
    first = targets[first]
    new = np.sort(first[histories.baskets[first] > 0])  # the first basket has no history before it
    last = int(histories.baskets.max(initial=0)) + 2
    begins = np.flatnonzero(np.diff(owner[new] * last + histories.baskets[new], prepend=-1))
    count = np.diff(begins, append=len(new))
    of_user, basket = owner[new[begins]], histories.baskets[new[begins]]
    until = np.searchsorted(of_user, np.arange(users), side="right")
    from_end = until[of_user] - 1 - np.arange(len(of_user))
    latest = np.zeros(users, dtype=np.int64)  # before which basket events may be pooled
    latest[of_user[from_end == 0]] = basket[from_end == 0]
    end = np.searchsorted(owner * last + histories.baskets, np.arange(users) * last + latest)
    start = np.maximum(histories.offsets[:-1], end - 2 * history)
    kept = np.flatnonzero((from_end < positions) & (histories.baskets[start[of_user]] < basket))
    kept = kept[np.lexsort((from_end[kept], of_user[kept]))]  # a user's latest first
    at = np.searchsorted(of_user[kept], np.arange(users + 1))
    _, _, target = ragged(begins[kept], count[kept])
    index = Index(
        histories, start, end, basket[kept],
        np.append(0, np.cumsum(count[kept])), histories.items[new[target]],
        np.searchsorted(pairs, np.arange(users + 1) * width), pairs % width, histories.baskets[first],
    )  # fmt: skip
    if unit == "user":
        return Records(index, np.arange(users), at[:-1], at[1:], positions, history, decay)
    each = np.arange(len(kept))
    return Records(index, of_user[kept], each, each + 1, 1, history, decay)
