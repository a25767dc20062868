"""From a user's baskets to padded arrays: histories, targets, masks.

A user's *positions* are the most recent baskets that hold something new; for each, the
history is every basket before it, the targets are its new items, and items of the history
are masked out of the softmax, as the evaluation masks them out of the ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.config import Unit
from fedrec.data import Histories
from fedrec.model.towers import recency_weights

__all__ = ["Examples", "build_examples", "last_positions", "merged"]


@dataclass(frozen=True)
class Examples:
    """Records (users, or single examples) ready for training.

    Attributes:
        items: (records, L) item positions of the recent events, 0 where there is none.
        weights: (records, P, L) pooling weight of each event for each position.
        target: (targets, 3) rows of record, position and item, sorted by record.
        target_weight: (targets,) sums to 1 over a record that has any target.
        seen: (pairs, 3) rows of record, position and item to mask, sorted by record.
    """

    items: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    target_weight: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, records: np.ndarray) -> Examples:
        """The given records, renumbered from 0; `records` is ascending."""
        if len(records) and records[-1] - records[0] + 1 == len(records):
            first, last = int(records[0]), int(records[-1])
            target, seen = (slice(*np.searchsorted(rows[:, 0], (first, last + 1))) for rows in (self.target, self.seen))
            return Examples(
                self.items[first : last + 1],
                self.weights[first : last + 1],
                self.target[target] - (first, 0, 0),
                self.target_weight[target],
                self.seen[seen] - (first, 0, 0),
            )
        at_target, at_seen = _rows_of(self.target, records), _rows_of(self.seen, records)
        return Examples(
            self.items[records],
            self.weights[records],
            _renumbered(self.target[at_target], records),
            self.target_weight[at_target],
            _renumbered(self.seen[at_seen], records),
        )


def build_examples(histories: Histories, *, history: int, positions: int, decay: float, unit: Unit = "user") -> Examples:
    """Arrays for all users, or with `unit="event"` for every example as a record of its own.

    Args:
        history: most recent events pooled for a position.
        positions: most recent baskets used as targets.
        decay: recency decay a basket.

    Returns:
        Records in the order of users. Users with nothing to predict are kept, with zero
        weights: they are part of the population that is sampled from.
    """
    count, length = len(histories), 2 * history
    items = np.zeros((count, length), dtype=np.int64)
    baskets = np.full((count, length), np.iinfo(np.int64).max)
    at = np.full((count, positions), -1, dtype=np.int64)
    target, weight, seen = [], [], []
    for user in range(count):
        own, basket = histories.of(user)
        chosen = last_positions(own, basket, positions)
        if not chosen:
            continue
        before = np.flatnonzero(basket < chosen[0][0])[-length:]
        items[user, : len(before)], baskets[user, : len(before)] = own[before], basket[before]
        for place, (number, new) in enumerate(chosen):
            at[user, place] = number
            target += [(user, place, item) for item in new]
            weight += [1 / (len(new) * len(chosen))] * len(new)
            seen += [(user, place, item) for item in np.unique(own[basket < number])]
    ages = at[:, :, None] - 1 - baskets[:, None, :]  # (users, P, L)
    valid = (baskets[:, None, :] < at[:, :, None]) & _within(baskets, at, history)
    examples = Examples(
        items,
        recency_weights(ages.astype(np.float64), valid, decay),
        np.array(target, dtype=np.int64).reshape(-1, 3),
        np.array(weight, dtype=np.float32),
        np.array(seen, dtype=np.int64).reshape(-1, 3),
    )
    return examples if unit == "user" else _one_record_a_position(examples)


def merged(examples: Examples) -> Examples:
    """The same records with each item once, its weights added up; records with few items come first.

    Without LoRA in the encoder an event counts by its item alone, and most users buy few items many
    times. The heads' gradients are those of `examples`, from much smaller arrays.
    """
    record, slot = np.nonzero(examples.weights.max(axis=1, initial=0) > 0)
    width = int(examples.items.max(initial=0)) + 1
    pairs, pair = np.unique(record * width + examples.items[record, slot], return_inverse=True)
    owner = pairs // width
    count = np.bincount(owner, minlength=len(examples))
    order = np.argsort(count, kind="stable")
    place = np.argsort(order)
    column = np.arange(len(pairs)) - (np.cumsum(count) - count)[owner]
    items = np.zeros((len(examples), max(1, int(count.max(initial=0)))), dtype=np.int64)
    items[place[owner], column] = pairs % width
    weights = np.zeros((*examples.weights.shape[:2], items.shape[1]), dtype=examples.weights.dtype)
    for position in range(weights.shape[1]):
        weights[place[owner], position, column] = np.bincount(pair, examples.weights[record, position, slot], len(pairs))
    target, by_target = _moved(examples.target, place)
    return Examples(items, weights, target, examples.target_weight[by_target], _moved(examples.seen, place)[0])


def last_positions(items: np.ndarray, baskets: np.ndarray, most: int) -> list[tuple[int, np.ndarray]]:
    """A user's last baskets with something new: (basket number, its new items), latest first."""
    first = np.zeros(len(items), dtype=bool)
    first[np.unique(items, return_index=True)[1]] = True
    first &= baskets > 0  # the first basket has no history before it
    numbers = np.unique(baskets[first])[::-1][:most]
    return [(int(number), items[first & (baskets == number)]) for number in numbers]


def _within(baskets: np.ndarray, at: np.ndarray, history: int) -> np.ndarray:
    """Which events are among the last `history` before a position, (users, P, L)."""
    before = baskets[:, None, :] < at[:, :, None]
    rank_from_end = before.sum(-1, keepdims=True) - np.cumsum(before, axis=-1)
    return rank_from_end < history


def _one_record_a_position(examples: Examples) -> Examples:
    places = examples.weights.shape[1]

    def moved(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 0] * places + rows[:, 1], np.zeros(len(rows), dtype=np.int64), rows[:, 2]], axis=1)

    target, seen = moved(examples.target), moved(examples.seen)
    by_record = np.argsort(target[:, 0], kind="stable")
    used = np.unique(target[:, 0])
    per_record = np.bincount(target[:, 0], minlength=1)[target[:, 0]]
    flat = Examples(
        np.repeat(examples.items, places, axis=0),
        examples.weights.reshape(-1, 1, examples.weights.shape[2]),
        target[by_record],
        (1 / per_record[by_record]).astype(np.float32),
        seen[np.argsort(seen[:, 0], kind="stable")],
    )
    return flat.take(used)


def _rows_of(rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Indices of `rows` (sorted by record) that belong to `records`."""
    start, end = np.searchsorted(rows[:, 0], records), np.searchsorted(rows[:, 0], records, side="right")
    if not len(records) or not len(rows):
        return np.zeros(0, dtype=np.int64)
    lengths = end - start
    offsets = np.repeat(start - np.cumsum(lengths) + lengths, lengths)
    return offsets + np.arange(lengths.sum())


def _moved(rows: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows under the records' new places, sorted by them, and the order they were taken in."""
    order = np.argsort(place[rows[:, 0]], kind="stable")
    return np.column_stack([place[rows[order, 0]], rows[order, 1:]]), order


def _renumbered(rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    out = rows.copy()
    out[:, 0] = np.searchsorted(records, rows[:, 0])
    return out
