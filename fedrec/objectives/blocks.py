"""Records of labels: a user's impressions or ratings, cut into blocks that are predicted from what came before them.

Of a user's labels with a history before them at most `impressions` are drawn, by a fixed function of their places in the user's
own sequence, so that no other user changes which. In time order they are cut into `positions` blocks of about equal number. A
block is predicted from the baskets before its first label, and so never from a label of its own.
"""

from __future__ import annotations

import numpy as np

from fedrec.data import Histories
from fedrec.data.shown import Shown
from fedrec.objectives.examples import ragged
from fedrec.objectives.objective import Asked
from fedrec.objectives.records import Index, Records

__all__ = ["block_records", "scattered"]

STEP = np.uint64(0x9E3779B97F4A7C15)


def block_records(histories: Histories, shown: Shown | None, asked: Asked) -> Records:
    """Each user's labels as a record, in the order of the users; who has none has an empty one."""
    users, shown = len(histories), shown or _nothing(len(histories))
    owner, kept = _drawn(shown, asked.impressions)
    counts = np.bincount(owner, minlength=users)
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    block = place * asked.positions // np.maximum(counts[owner], 1)
    begins = np.flatnonzero(np.diff(owner * asked.positions + block, prepend=-1))
    of_user, basket = owner[begins], shown.before[kept[begins]]
    last = int(histories.baskets.max(initial=0)) + 2
    latest = np.zeros(users, dtype=np.int64)
    latest[of_user] = basket  # blocks are in time order, so the last one stays
    event_user = np.repeat(np.arange(users), np.diff(histories.offsets))
    end = np.searchsorted(event_user * last + histories.baskets, np.arange(users) * last + latest)
    start = np.maximum(histories.offsets[:-1], end - 2 * asked.history)
    first = histories.baskets[np.minimum(start, len(histories.baskets) - 1)]
    sizes = np.diff(begins, append=len(owner))
    near = np.flatnonzero(first[of_user] < basket)  # some of the events that are looked at come before it
    near = near[np.lexsort((-near, of_user[near]))]  # a user's latest first
    at = np.searchsorted(of_user[near], np.arange(users + 1))
    _, _, target = ragged(begins[near], sizes[near])
    none = np.zeros(0, dtype=np.int64)
    index = Index(
        histories, start, end, basket[near], np.append(0, np.cumsum(sizes[near])), shown.items[kept[target]],
        np.zeros(users + 1, dtype=np.int64), none, none, shown.answer[kept[target]].astype(np.float32),
    )  # fmt: skip
    return Records(index, np.arange(users), at[:-1], at[1:], asked.positions, asked.history, asked.decay)


def _drawn(shown: Shown, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Whose each impression that is used is, and which it is: those with a history, at most so many a user, in time order."""
    users = np.repeat(np.arange(len(shown.offsets) - 1), np.diff(shown.offsets))
    rows = np.flatnonzero(shown.before > 0)
    owner = users[rows]
    counts = np.bincount(owner, minlength=len(shown.offsets) - 1)
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    order = np.lexsort((scattered(place), owner))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - (np.cumsum(counts) - counts)[owner[order]]
    chosen = rank < most
    return owner[chosen], rows[chosen]


def scattered(numbers: np.ndarray) -> np.ndarray:
    """A fixed one-to-one function that looks random: splitmix64 (Steele et al., OOPSLA 2014, figure 17)."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * STEP
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: np.ndarray = z ^ (z >> np.uint64(31))
    return scattered


def _nothing(users: int) -> Shown:
    none = np.zeros(0, dtype=np.int64)
    return Shown(np.zeros(users + 1, dtype=np.int64), none, none, none.astype(bool))
