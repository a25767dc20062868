"""The objective `basket`: what completes a basket, by a softmax over the catalogue.

Of each of a user's latest baskets with two items or more a half, drawn by a fixed function of user, basket and item, is the
history, and the other is to be predicted from it. A position knows that one basket: its items weigh the same, nothing of an
earlier basket is pooled, and what the user bought in another one is not masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pandas.util import hash_array

from fedrec.data import Histories
from fedrec.objectives.blocks import scattered
from fedrec.objectives.examples import Examples
from fedrec.objectives.next_item import NextItem
from fedrec.objectives.objective import Asked, Known
from fedrec.objectives.records import Index, Records, padded_where_small

__all__ = ["Basket"]


@dataclass(frozen=True)
class Basket(NextItem):
    """Weighted cross-entropy of a basket's hidden half; an `Objective`."""

    name: str = "basket"

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Examples | Records:
        """See `Objective`; a user without a basket of two items has an empty record."""
        return padded_where_small(_records(histories, asked), asked.merge)


def _records(histories: Histories, asked: Asked) -> Records:
    users, bought = len(histories), histories.targets()
    owner = np.repeat(np.arange(users), np.diff(bought.offsets))
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(bought.baskets, prepend=-1) != 0))
    size, of_user = np.diff(begins, append=len(owner)), owner[begins]
    positions = min(asked.positions, 2 * asked.history)  # `Records` has room for that many events in all
    chosen = _latest_first(np.flatnonzero(size > 1), of_user, positions)
    rank = np.full(len(size), -1)
    rank[chosen] = np.arange(len(chosen))
    row = np.repeat(np.arange(len(size)), size)
    place = _place(row, owner, bought)
    held, wanted = (np.flatnonzero((rank[row] >= 0) & which) for which in (place < (size // 2)[row], place >= (size // 2)[row]))
    wanted = wanted[np.argsort(rank[row[wanted]], kind="stable")]
    pooled = held[place[held] < min(asked.history, 2 * asked.history // positions)]
    offsets = np.searchsorted(owner[pooled], np.arange(users + 1))
    within = Histories(bought.user_ids, offsets, bought.items[pooled], bought.baskets[pooled])
    at = np.searchsorted(of_user[chosen], np.arange(users + 1))
    index = Index(
        within, offsets[:-1], offsets[1:], bought.baskets[begins[chosen]] + 1,
        np.append(0, np.cumsum((size - size // 2)[chosen])), bought.items[wanted],
        np.searchsorted(owner[held], np.arange(users + 1)), bought.items[held], bought.baskets[held],
    )  # fmt: skip
    return Records(index, np.arange(users), at[:-1], at[1:], asked.positions, asked.history, 0.0, back=1)


def _latest_first(baskets: np.ndarray, of_user: np.ndarray, most: int) -> np.ndarray:
    """The last so many of each user's, user after user."""
    users = of_user[baskets]
    after = np.searchsorted(users, users, side="right") - 1 - np.arange(len(baskets))
    kept = np.flatnonzero(after < most)
    return baskets[kept[np.lexsort((after[kept], users[kept]))]]


def _place(row: np.ndarray, owner: np.ndarray, bought: Histories) -> np.ndarray:
    """(events,) where in its basket each is, by an order that looks random: either of the same two is first for some."""
    user = hash_array(np.array(bought.user_ids, dtype=object))[owner]
    drawn = scattered(scattered(user + bought.baskets.astype(np.uint64)) ^ bought.items.astype(np.uint64))
    place = np.empty(len(row), dtype=np.int64)
    place[np.lexsort((drawn, row))] = np.arange(len(row)) - np.searchsorted(row, row)
    return place
