"""Records of several objectives as one: a user's positions one part after the other, with their events side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrec.objectives.examples import Examples, distinct_items, joined, merged
from fedrec.objectives.records import NUMBERS_KEPT, NUMBERS_PADDED, Records

__all__ = ["JointRecords", "Lot", "beside", "is_of_part", "joint_records", "of_part"]


@dataclass(frozen=True)
class JointRecords:
    """Every user's record of each part, to be padded a few at a time; see `Records`.

    Attributes:
        parts: each in the same order of users.
        weights: of each part's loss.
    """

    parts: tuple[Lot, ...]
    weights: tuple[float, ...]
    merge: bool = False

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def positions(self) -> int:
        """P, of all parts."""
        return sum(part.positions for part in self.parts)

    @property
    def length(self) -> int:
        """L, of all parts."""
        return sum(part.length for part in self.parts)

    def take(self, records: np.ndarray) -> JointRecords:
        """The given records."""
        return replace(self, parts=tuple(part.take(records) for part in self.parts))

    def chunks(self) -> Iterator[JointRecords]:
        """The records in pieces that are small when they are padded."""
        size = max(1, NUMBERS_PADDED // (self.positions * self.length))
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def padded(self) -> Examples:
        """All of these records, numbered from 0."""
        examples = beside([part.padded() for part in self.parts], self.weights)
        return merged(examples) if self.merge else examples


Lot = Examples | Records | JointRecords
"""Records of users, padded or to be padded a few at a time."""


def joint_records(parts: Sequence[Lot], weights: Sequence[float], merge: bool) -> Lot:
    """Every user's records of all parts as one, padded already where that is small, and with `merge` as `merged` has them.

    Args:
        parts: each in the same order of users.
        weights: of each part's loss.
    """
    records = JointRecords(tuple(parts), tuple(weights))
    if len(records) * records.positions * records.length <= NUMBERS_KEPT:
        examples = joined([chunk.padded() for chunk in records.chunks()] or [records.padded()])
        return merged(examples) if merge else examples
    if not merge:
        return records
    counts = np.concatenate([distinct_items(chunk.padded()) for chunk in records.chunks()])
    return replace(records.take(np.argsort(counts, kind="stable")), merge=True)


def beside(parts: Sequence[Examples], weights: Sequence[float]) -> Examples:
    """The same records with the positions and the events of several parts, each target's weight times its part's.

    Args:
        parts: with as many records each.
        weights: of each part.
    """
    positions, lengths = (np.cumsum([0, *sizes]) for sizes in ([p.positions for p in parts], [p.length for p in parts]))
    records = len(parts[0])
    pooling = np.zeros((records, positions[-1], lengths[-1]), dtype=parts[0].weights.dtype)
    for number, part in enumerate(parts):
        pooling[:, positions[number] : positions[number + 1], lengths[number] : lengths[number + 1]] = part.weights
    target, seen = (
        np.concatenate([getattr(part, name) + np.array((0, first, 0)) for part, first in zip(parts, positions[:-1], strict=True)])
        for name in ("target", "seen")
    )
    by_target, by_seen = (np.argsort(rows[:, 0], kind="stable") for rows in (target, seen))
    weight = np.concatenate([np.float32(own) * part.target_weight for own, part in zip(weights, parts, strict=True)])
    none = [np.zeros(len(part.target), dtype=np.float32) if part.answer is None else part.answer for part in parts]
    return Examples(
        np.hstack([part.items for part in parts]), pooling, target[by_target], weight[by_target], seen[by_seen],
        np.concatenate(none)[by_target],
    )  # fmt: skip


def of_part(chunk: Examples, number: int, parts: int) -> Examples:
    """The records of one of so many parts: its positions, with the events of all."""
    positions = chunk.positions // parts
    own, seen = (is_of_part(rows, number, positions) for rows in (chunk.target, chunk.seen))
    first = (0, number * positions, 0)
    return Examples(
        chunk.items, chunk.weights[:, first[1] : first[1] + positions], chunk.target[own] - first, chunk.target_weight[own],
        chunk.seen[seen] - first, None if chunk.answer is None else chunk.answer[own],
    )  # fmt: skip


def is_of_part(rows: np.ndarray, number: int, positions: int) -> np.ndarray:
    """Which rows of record, position and item are of a part with so many positions."""
    found: np.ndarray = rows[:, 1] // positions == number
    return found
