"""Baskets as they were bought, and those of them with a part hidden, to choose and measure on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from scipy.sparse import csr_array

from fedrec.data import Histories
from fedrec.evaluation.protocol import Group

__all__ = ["Baskets", "Hidden", "cases_of"]

Hidden = Literal["one", "half"]
LENGTH = 50
"""Items of a basket that the text pools: of one in a hundred baskets of a wholesaler it is not all."""


@dataclass(frozen=True)
class Baskets:
    """What was bought at one time by one customer.

    Attributes:
        bought: (baskets, items) float32 of ones.
        owner: (baskets,) number of the customer whose basket it was, ascending.
    """

    bought: csr_array
    owner: np.ndarray

    @classmethod
    def of(cls, histories: Histories, items: int) -> Self:
        """All baskets that hold something bought; what was only looked at is in none."""
        histories = histories.targets()
        user = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
        first = (np.diff(user, prepend=-1) != 0) | (np.diff(histories.baskets, prepend=-1) != 0)
        starts = np.append(np.flatnonzero(first), len(user))
        ones = np.ones(len(user), dtype=np.float32)
        bought = csr_array((ones, histories.items, starts), shape=(len(starts) - 1, items), copy=True)
        return cls(bought, user[first])

    def __len__(self) -> int:
        return len(self.owner)

    def take(self, rows: np.ndarray) -> Self:
        """Some of the baskets, by number or mask, in their order."""
        return type(self)(self.bought[rows], self.owner[rows])

    def joint(self) -> Self:
        """Those of two items at least: what else was bought can be asked of them."""
        return self.take(np.diff(self.bought.indptr) > 1)

    def counts(self) -> np.ndarray:
        """(items,) float64: in how many baskets each is."""
        return np.bincount(self.bought.indices, minlength=self.bought.shape[1]).astype(np.float64)

    def together(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(pairs,) int64: in how many baskets both items of a pair are."""
        found = np.zeros(len(first), dtype=np.int64)
        for item in np.unique(first).tolist():
            pairs = first == item
            beside = np.bincount(self.bought[self._numbers(item)].indices, minlength=self.bought.shape[1])
            found[pairs] = beside[second[pairs]]
        return found

    def customers(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(held, items) int64: how many customers had both in one basket, each counted once."""
        found = np.zeros((len(held), len(items)), dtype=np.int64)
        for row, item in enumerate(held.tolist()):
            having = self._numbers(item)
            beside = self.bought[having][:, items].tocoo()
            pairs = np.unique(np.stack([self.owner[having][beside.row], beside.col], axis=1), axis=0)
            found[row] = np.bincount(pairs[:, 1], minlength=len(items))
        return found

    def _numbers(self, item: int) -> np.ndarray:
        """Of the baskets that hold an item."""
        numbers: np.ndarray = self._by_item.indices[self._by_item.indptr[item] : self._by_item.indptr[item + 1]]
        return numbers

    @cached_property
    def _by_item(self) -> csr_array:
        """(items, baskets)."""
        return self.bought.T.tocsr()


def cases_of(
    baskets: Baskets, hidden: Hidden, rng: np.random.Generator, among: np.ndarray | None = None
) -> tuple[Group, np.ndarray]:
    """Baskets of two items at least, with one item or half of them hidden: a group whose users are the baskets.

    Args:
        among: (items,) bool, what may be hidden; a basket without such an item is left out. All by default.

    Returns:
        The group, and the number of the basket of each of its rows.
    """
    items, lengths = baskets.bought.shape[1], np.diff(baskets.bought.indptr)
    basket = np.repeat(np.arange(len(baskets)), lengths)
    item = baskets.bought.indices.astype(np.int64)
    may = np.ones(len(item), dtype=bool) if among is None else among[item]
    # Those that may be hidden come first, in an order of chance.
    order = np.lexsort((rng.random(len(item)), ~may, basket))
    basket, item, may = basket[order], item[order], may[order]
    place = np.arange(len(item)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    count = np.ones(len(baskets), dtype=np.int64) if hidden == "one" else lengths // 2
    hides = may & (place < count[basket])
    kept = (lengths > 1) & (np.bincount(basket[hides], minlength=len(baskets)) > 0)
    number = np.cumsum(kept) - 1

    def pairs(which: np.ndarray) -> np.ndarray:
        which = which & kept[basket]
        found = np.stack([number[basket[which]], item[which]], axis=1)
        return found[np.lexsort((found[:, 1], found[:, 0]))]

    masked, shape = pairs(~hides), (int(kept.sum()), LENGTH)
    of = np.bincount(masked[:, 0], minlength=shape[0])
    column = np.arange(len(masked)) - np.repeat(np.cumsum(of) - of, of)
    cells = masked[column < LENGTH, 0], column[column < LENGTH]
    group = Group(
        "", np.arange(items), np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape, dtype=bool), masked, pairs(hides)
    )
    group.items[cells], group.valid[cells] = masked[column < LENGTH, 1], True
    return group, np.flatnonzero(kept)
