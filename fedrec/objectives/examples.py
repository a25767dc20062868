"""Padded arrays of records: histories, targets, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Examples", "distinct_items", "joined", "merged", "ragged"]


@dataclass(frozen=True)
class Examples:
    """Records (users, or single examples) ready for training.

    Attributes:
        items: (records, L) item positions of the recent events, 0 where there is none.
        weights: (records, P, L) pooling weight of each event for each position.
        target: (targets, 3) rows of record, position and item, sorted by record.
        target_weight: (targets,) sums to 1 over a record that has any target.
        seen: (pairs, 3) rows of record, position and item to mask, sorted by record.
        answer: (targets,) what the user said to each; None where a target is what the user did.
    """

    items: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    target_weight: np.ndarray
    seen: np.ndarray
    answer: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def positions(self) -> int:
        """P."""
        return self.weights.shape[1]

    @property
    def length(self) -> int:
        """L."""
        return self.weights.shape[2]

    def padded(self) -> Examples:
        """These records: see `Records.padded`."""
        return self

    def take(self, records: np.ndarray) -> Examples:
        """The given records, renumbered from 0; `records` is ascending."""
        if len(records) == len(self):
            return self
        if len(records) and records[-1] - records[0] + 1 == len(records):
            first, last = int(records[0]), int(records[-1])
            target, seen = (slice(*np.searchsorted(rows[:, 0], (first, last + 1))) for rows in (self.target, self.seen))
            return Examples(
                self.items[first : last + 1],
                self.weights[first : last + 1],
                self.target[target] - (first, 0, 0),
                self.target_weight[target],
                self.seen[seen] - (first, 0, 0),
                _answers(self, target),
            )
        at_target, at_seen = _rows_of(self.target, records), _rows_of(self.seen, records)
        return Examples(
            self.items[records],
            self.weights[records],
            _renumbered(self.target[at_target], records),
            self.target_weight[at_target],
            _renumbered(self.seen[at_seen], records),
            _answers(self, at_target),
        )


def merged(examples: Examples) -> Examples:
    """The same records with each item once, its weights added up; records with few items come first.

    Without LoRA in the encoder an event counts by its item alone, and most users buy few items many
    times. The heads' gradients are those of `examples`, from much smaller arrays.
    """
    record, slot, owner, item, pair, count = _by_item(examples)
    order = np.argsort(count, kind="stable")
    place = np.argsort(order)
    column = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
    items = np.zeros((len(examples), max(1, int(count.max(initial=0)))), dtype=np.int64)
    items[place[owner], column] = item
    weights = np.zeros((*examples.weights.shape[:2], items.shape[1]), dtype=examples.weights.dtype)
    for position in range(weights.shape[1]):
        weights[place[owner], position, column] = np.bincount(pair, examples.weights[record, position, slot], len(owner))
    target, by_target = _moved(examples.target, place)
    seen, _ = _moved(examples.seen, place)
    return Examples(items, weights, target, examples.target_weight[by_target], seen, _answers(examples, by_target))


def _by_item(examples: Examples) -> tuple[np.ndarray, ...]:
    """The record and slot of each event that counts; the record and item of each pair of the two, and each event's
    pair; and how many pairs a record has."""
    record, slot = np.nonzero(examples.weights.max(axis=1, initial=0) > 0)
    width = int(examples.items.max(initial=0)) + 1
    pairs, pair = np.unique(record * width + examples.items[record, slot], return_inverse=True)
    owner = pairs // width
    return record, slot, owner, pairs % width, pair, np.bincount(owner, minlength=len(examples))


def distinct_items(examples: Examples) -> np.ndarray:
    """(records,) how many different items each pools."""
    return _by_item(examples)[-1]


def joined(parts: Sequence[Examples]) -> Examples:
    """The records of several, one after the other."""
    starts = np.cumsum([0, *map(len, parts)])

    def moved(name: str) -> np.ndarray:
        rows = zip((getattr(part, name) for part in parts), starts[:-1], strict=True)
        return np.concatenate([own + np.array((start, 0, 0)) for own, start in rows])

    items, weights, target_weight = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("items", "weights", "target_weight")
    )
    said = [part.answer for part in parts if part.answer is not None]
    return Examples(items, weights, moved("target"), target_weight, moved("seen"), np.concatenate(said) if said else None)


def ragged(start: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the given lengths: of each entry its row, its place in the row, and `start[row] + place`."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return row, place, start[row] + place


def _answers(examples: Examples, targets: np.ndarray | slice) -> np.ndarray | None:
    return None if examples.answer is None else examples.answer[targets]


def _rows_of(rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Indices of `rows` (sorted by record) that belong to `records`."""
    start, end = np.searchsorted(rows[:, 0], records), np.searchsorted(rows[:, 0], records, side="right")
    return ragged(start, end - start)[2]


def _moved(rows: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows under the records' new places, sorted by them, and the order they were taken in."""
    order = np.argsort(place[rows[:, 0]], kind="stable")
    return np.column_stack([place[rows[order, 0]], rows[order, 1:]]), order


def _renumbered(rows: np.ndarray, records: np.ndarray) -> np.ndarray:
    out = rows.copy()
    out[:, 0] = np.searchsorted(records, rows[:, 0])
    return out
