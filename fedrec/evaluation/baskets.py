"""The protocol of baskets: one item of a held-out user's last basket is hidden, and is to be found from the rest of it.

The basket is the last with two items or more; which of its items is hidden is a fixed function of the user. All of the
catalogue but the rest of the basket is ranked. Users without such a basket are left out (and counted).
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedrec.data import CentralGroup
from fedrec.evaluation.protocol import Group

__all__ = ["hidden_items"]


def hidden_items(group: CentralGroup, users: np.ndarray, length: int) -> tuple[Group | None, int]:
    """The users with a basket that an item can be hidden of, and how many the others are.

    Args:
        users: (users,) numbers of users of the group's histories.
        length: most items of a basket that are pooled.
    """
    positions, histories = np.asarray(group.positions, dtype=np.int64), group.histories.take(users).targets()
    owner = np.repeat(np.arange(len(users)), np.diff(histories.offsets))
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(histories.baskets, prepend=-1) != 0))
    size = np.diff(begins, append=len(owner))
    begins, size = begins[size > 1], size[size > 1]
    last = np.flatnonzero(np.diff(owner[begins], append=-1) != 0)
    begins, size = begins[last], size[last]
    if not len(begins):
        return None, len(users)
    hidden = begins + [_drawn(histories.user_ids[owner[at]], int(many)) for at, many in zip(begins, size, strict=True)]
    row = np.repeat(np.arange(len(size)), size)
    event = np.repeat(begins - np.cumsum(size) + size, size) + np.arange(len(row))
    rest = event != hidden[row]
    place = np.searchsorted(positions, histories.items)
    masked = np.column_stack([row[rest], place[event[rest]]])
    column = np.arange(len(masked)) - np.searchsorted(masked[:, 0], masked[:, 0])
    recent, shape = column < length, (len(size), length)
    items, valid = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    cells = masked[recent, 0], column[recent]
    items[cells], valid[cells] = histories.items[event[rest][recent]], True
    relevant = np.column_stack([np.arange(len(size)), place[hidden]])
    return Group(group.name, positions, items, np.zeros(shape), valid, masked, relevant), len(users) - len(size)


def _drawn(user: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8, person=b"hidden").digest(), "big") % size
