"""What somebody did, as whoever ranks takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedrec.evaluation.protocol import baskets_ago

__all__ = ["Past", "bought_events"]


class Past(NamedTuple):
    """What somebody did, in time order, as `Histories.of` gives it.

    Attributes:
        items: (events,) positions in the catalogue, or `len(catalogue)` and more: of a text in `queries`.
        baskets: (events,) numbers of baskets, ascending.
        target: (events,) whether each was bought, or is history alone, such as a view; None where all were bought.
        times: (events,) datetime64 when each was; None where that is not known.
        queries: what they searched for; such an event is no target.
    """

    items: np.ndarray
    baskets: np.ndarray
    target: np.ndarray | None = None
    times: np.ndarray | None = None
    queries: tuple[str, ...] = ()

    @property
    def bought(self) -> np.ndarray:
        """Each item that was bought, once, ascending."""
        return np.unique(self.items if self.target is None else self.items[self.target])


def bought_events(pasts: Sequence[Past]) -> np.ndarray:
    """(events, 3) user, item and `baskets_ago` of what was bought."""
    parts = []
    for user, past in enumerate(pasts):
        rows = np.stack([np.full(len(past.items), user), past.items, past.baskets], 1)
        parts.append(rows if past.target is None else rows[past.target])
    user, item, basket = np.concatenate(parts).T
    return np.stack([user, item, baskets_ago(user, basket)], 1)
