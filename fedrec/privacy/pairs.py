"""Which kinds of item are in one basket: the sum of users' parts, of which each has a sum of 1."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

__all__ = ["basket_pairs", "packed"]


def packed(matrix: np.ndarray) -> np.ndarray:
    """A symmetric matrix (k, k) as its upper half, (k (k + 1) / 2,), with the same L2 norm."""
    rows, columns = np.triu_indices(len(matrix))
    found: np.ndarray = matrix[rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0))
    return found


def basket_pairs(users: np.ndarray, baskets: np.ndarray, items: np.ndarray, kind: np.ndarray, kinds: int) -> np.ndarray:
    """How often kinds of item share a basket, each user's part with a sum of 1; without noise.

    A user's part is the mean over its baskets with two items or more of the share of that basket's ordered pairs of different
    items that are of kinds k and l. It has no negative number and the sum 1, hence an L2 norm of at most 1: 1 where all its
    pairs are of one kind, 0 where no basket has two items. Scaled to a norm of 1 it would say more, but not how often: pairs
    of two kinds would count more than those of one. A part is computed from the user's own events and the public kinds alone.

    Args:
        users: (events,) user numbers, in ascending order.
        baskets: (events,) number of the basket within its user.
        items: (events,) item numbers.
        kind: (items,) of which kind each item is, below `kinds`.

    Returns:
        (kinds (kinds + 1) / 2,) float64, as `packed` has it.
    """
    order = np.lexsort((items, baskets, users))
    rows = np.stack([users, baskets, items])[:, order]
    rows = rows[:, np.diff(rows, axis=1, prepend=-1).any(0)]  # an item counts once a basket
    number = np.cumsum(np.diff(rows[:2], axis=1, prepend=-1).any(0)) - 1
    sizes = np.bincount(number)
    several = sizes[number] > 1
    user, number, of_kind = rows[0, several], number[several], kind[rows[2, several]]
    total = np.zeros((kinds, kinds))
    for start, end in pairwise(np.flatnonzero(np.diff(user, prepend=-1, append=-1)).tolist()):
        part, own = _part(number[start:end], of_kind[start:end], sizes)
        total[np.ix_(own, own)] += part
    return packed(total)


def _part(number: np.ndarray, of_kind: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One user's part, of sum 1, and the kinds that it is over.

    Args:
        number: (events,) of the basket, ascending.
        of_kind: (events,) the kind of each item.
        sizes: by number of a basket, how many items it has.
    """
    own, place = np.unique(of_kind, return_inverse=True)
    first = number[0]
    counts = np.zeros((number[-1] - first + 1, len(own)))  # (baskets, kinds of this user)
    np.add.at(counts, (number - first, place), 1.0)
    size = np.maximum(sizes[first : number[-1] + 1], 2).astype(np.float64)  # a basket of one is in no row here
    weighted = counts / (size * (size - 1))[:, None]
    part = counts.T @ weighted - np.diag(weighted.sum(0))
    return part / len(np.unique(number)), own
