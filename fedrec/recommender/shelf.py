"""What is ranked: the items that may be recommended, and the table that a user's vector is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.ranking import best_items

__all__ = ["Ranked", "Shelf", "look_up", "with_prior"]

Ranked = list[tuple[str, float]]


@dataclass(frozen=True)
class Shelf:
    """What is ranked.

    Attributes:
        catalogue: what a history may name.
        history: (catalogue, hidden) its items as history.
        positions: (items,) which of them may be recommended, ascending.
        table: (items, hidden + 1) `tau c` and `w log prior`; its product with a user's vector and
            a one is the score, with a zero the score without popularity.
        search: from queries (users, hidden + 1), k and masked pairs to the best rows of `table`.
    """

    catalogue: Catalogue
    history: np.ndarray
    positions: np.ndarray
    table: np.ndarray
    search: Callable[..., tuple[np.ndarray, np.ndarray]]

    @classmethod
    def stocked(
        cls,
        catalogue: Catalogue,
        history: np.ndarray,
        positions: np.ndarray,
        candidate: np.ndarray,
        prior: np.ndarray,
        temperature: float,
    ) -> Shelf:
        """A shelf that is searched exactly.

        Args:
            candidate: (catalogue, hidden) its items as candidates.
            prior: (items,) what popularity adds to a score.
        """
        table = np.empty((len(positions), candidate.shape[1] + 1), dtype=np.float32)
        table[:, :-1] = candidate if len(positions) == len(candidate) else candidate[positions]
        table[:, :-1] *= temperature
        table[:, -1] = prior
        return cls(catalogue, history, positions, table, partial(best_items, table=table))

    def best(self, users: np.ndarray, prior: float, asked: np.ndarray, k: int) -> list[Ranked]:
        """Lists of the `k` best for users (users, hidden) who have the (events, 2) `asked` behind them."""
        place = np.searchsorted(self.positions, asked[:, 1])
        held = np.append(self.positions, -1)[place] == asked[:, 1]  # others are not on the shelf anyway
        masked = np.unique(np.stack([asked[held, 0], place[held]], axis=1), axis=0)
        items, scores = self.search(with_prior(users, prior), k=k, masked=masked)
        ids = self.catalogue.item_ids
        return [
            [(ids[self.positions[item]], score) for item, score in zip(row, best, strict=True) if item >= 0]
            for row, best in zip(items.tolist(), scores.tolist(), strict=True)
        ]


def look_up(histories: Sequence[Sequence[str]], catalogue: Catalogue, where: str = "history") -> np.ndarray:
    """(events, 2) of history and position in the catalogue.

    Args:
        where: what an error calls them.

    Raises:
        InputError: an item is not in the catalogue.
    """
    items = [item for history in histories for item in history]
    positions = catalogue.index.get_indexer(items)
    if (positions < 0).any():
        raise InputError(f"item {items[int((positions < 0).argmax())]!r} is not in the catalogue", where=where)
    return np.stack([np.repeat(np.arange(len(histories)), [len(history) for history in histories]), positions], axis=1)


def with_prior(users: np.ndarray, prior: float) -> np.ndarray:
    """(users, hidden + 1): vectors of users and the weight of popularity for them."""
    return np.column_stack([users, np.full(len(users), prior, dtype=np.float32)])
