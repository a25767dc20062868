"""Item-kNN: cosines of who bought what, shrunk where few did, the nearest neighbours of each item kept.

s_ij = n_ij / (sqrt(n_i n_j) + shrink)      (Aiolli, RecSys 2013, section 3; shrinkage as Bell and Koren, ICDM 2007)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
from scipy.sparse import csr_array, vstack

from fedrec.model.adapter import Arrays

__all__ = ["ItemKnn", "nearest_pairs"]

NEIGHBOURS = 100
PAIRS = 2**22
"""Pairs of items that are looked at at once, and those of one item: some 60 bytes each."""


@dataclass(frozen=True)
class ItemKnn:
    """Similarities of each item to its nearest neighbours.

    Attributes:
        similar: (items, items) float32; row i holds what an item i in a history adds, zero on the diagonal.
    """

    kind: ClassVar[str] = "item-knn"
    strengths: ClassVar[tuple[float, ...]] = (3.0, 10.0, 30.0, 100.0)

    similar: csr_array

    @classmethod
    def fit(cls, bought: csr_array, strength: float) -> Self:
        """See `OwnLayer.fit`; `strength` is the shrinkage, in buyers."""
        root = np.sqrt(np.bincount(bought.indices, minlength=bought.shape[1]).astype(np.float32))
        shrunk = np.float32(strength)
        return cls(nearest_pairs(bought, lambda row, column, both: both / (root[row] * root[column] + shrunk), NEIGHBOURS))

    def scores(self, histories: csr_array) -> np.ndarray:
        """See `OwnLayer.scores`."""
        found: np.ndarray = (histories @ self.similar).toarray()
        return found.astype(np.float32, copy=False)

    def between(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `Scores.between`."""
        found: np.ndarray = self.similar[held][:, items].toarray()
        return found

    def arrays(self) -> Arrays:
        """See `OwnLayer.arrays`."""
        found = self.similar
        return {"data": found.data, "indices": found.indices, "indptr": found.indptr}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """See `OwnLayer.from_arrays`."""
        items = len(arrays["indptr"]) - 1
        return cls(csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(items, items)))


def nearest_pairs(
    bought: csr_array, value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], neighbours: int
) -> csr_array:
    """(items, items) float32: what pairs of items that were bought together are worth, the largest of each row kept.

    Args:
        bought: (users, items) of ones.
        value: of pairs (row, column, how many bought both), none negative, float32.
    """
    bought = bought.astype(np.float32)
    by_item = bought.T.tocsr()
    parts = [csr_array((0, bought.shape[1]), dtype=np.float32)]
    for start, stop in _blocks(by_item, bought):
        together = (by_item[start:stop] @ bought).tocsr()
        together.sort_indices()
        row = np.repeat(np.arange(stop - start), np.diff(together.indptr))
        found = value(start + row, together.indices, together.data)
        found[together.indices == start + row] = 0.0
        kept = _nearest(row, found, neighbours)
        ends = np.cumsum(np.bincount(row[kept], minlength=stop - start))
        parts.append(csr_array((found[kept], together.indices[kept], np.append(0, ends)), shape=together.shape))
    return csr_array(vstack(parts, format="csr"))


def _blocks(by_item: csr_array, bought: csr_array) -> Iterator[tuple[int, int]]:
    """First item and end of each block. It goes by pairs and not by items, since popular ones have many neighbours."""
    most = np.minimum(by_item @ np.diff(bought.indptr), bought.shape[1])  # (items,) that were bought with each, at most
    ends = np.flatnonzero(np.diff(np.cumsum(most) // PAIRS, append=-1)) + 1
    return pairwise([0, *ends.tolist()])


def _nearest(row: np.ndarray, value: np.ndarray, most: int) -> np.ndarray:
    """Which of the entries are among the `most` largest of their row; of equal ones the earlier columns.

    Args:
        row: (entries,) ascending, their columns as well.
        value: (entries,) float32, none negative; zeros are not among them.
    """
    # Bits of floats that are not negative are in the order of the floats: one number says the row and how far down it is.
    key = row.astype(np.uint64) << np.uint64(32) | (np.uint64(2**32 - 1) - value.view(np.uint32))
    count = np.bincount(row)
    room = np.minimum(count, most)
    last = np.sort(key)[np.cumsum(count) - count + room - 1][row]  # (entries,) the key of the row's last that is kept
    better, equal = key < last, key == last
    room -= np.bincount(row[better], minlength=len(count))
    equals = np.bincount(row[equal], minlength=len(count))
    place = np.cumsum(equal) - (np.cumsum(equals) - equals)[row]  # from 1
    return np.flatnonzero((better | equal & (place <= room[row])) & (value > 0))
