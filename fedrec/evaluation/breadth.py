"""What lists hold, beside how good they are: how much of a catalogue they reach, and how popular it is.

All take the lists as `lists_of` makes them: (users, k) items, best first, -1 where a catalogue has fewer.
"""

from __future__ import annotations

import numpy as np

from fedrec.evaluation.protocol import Group
from fedrec.model.ranking import top_k

__all__ = ["coverage", "lists_of", "novelty", "popular_share"]

POPULAR = 0.1
"""Share of a catalogue that counts as popular."""


def lists_of(group: Group, scores: np.ndarray, k: int) -> np.ndarray:
    """(users, min(k, items)) the group items that each user is shown: by score (users, items), of equal ones the earlier item.

    What the protocol takes out of a ranking is in no list.
    """
    scores = scores.astype(np.float32)
    if group.past is None:
        scores[group.masked[:, 0], group.masked[:, 1]] = -np.inf
    return top_k(scores, k)[0]


def coverage(lists: np.ndarray, items: int) -> float:
    """Share of a catalogue of `items` that is in any list (catalogue coverage; Ge, Delgado-Battenfeld and Jannach, RecSys 2010,
    section 3.1). It grows with the number of users: compare it for the same ones."""
    return len(np.unique(lists[lists >= 0])) / items


def novelty(lists: np.ndarray, counts: np.ndarray, users: int) -> np.ndarray:
    """(users,) the mean of `-log2(counts / users)` over a user's list, in bits: how surprising it is that somebody bought what is
    shown (Zhou et al., PNAS 107, 2010, "self-information"). An item that nobody bought counts as one with a single buyer.

    Args:
        counts: (items,) how many of `users` bought each.

    Raises:
        ValueError: a list is empty.
    """
    bits = -np.log2(np.maximum(counts, 1) / users)
    return _mean_over(lists, bits)


def popular_share(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(users,) share of a user's list that is among the most popular tenth of the catalogue, rounded up; of items with equal
    counts the earlier ones. One minus it is the share of the long tail (Abdollahpouri, Burke and Mobasher, FLAIRS 2019, APLT).

    Raises:
        ValueError: a list is empty.
    """
    popular = np.zeros(len(counts))
    popular[np.argsort(-counts, kind="stable")[: int(np.ceil(POPULAR * len(counts)))]] = 1.0
    return _mean_over(lists, popular)


def _mean_over(lists: np.ndarray, values: np.ndarray) -> np.ndarray:
    shown = lists >= 0
    length = shown.sum(axis=1)
    if (length == 0).any():
        raise ValueError("lists: every user needs at least one item")
    found: np.ndarray = np.where(shown, values[lists], 0.0).sum(axis=1) / length
    return found
