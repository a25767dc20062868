"""What users did, as a compact sequence of baskets for each user.

A basket is the set of a user's events that share a timestamp; the order inside a basket
means nothing, so it is made canonical (by item index) and never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fedrec.data.catalogue import Catalogue
from fedrec.data.schema import Columns as C

__all__ = ["Histories"]


@dataclass(frozen=True)
class Histories:
    """Users' baskets in time order, in compressed rows.

    Attributes:
        user_ids: (users,) the ids; they never leave the merchant.
        offsets: (users + 1,) user `u` owns events `offsets[u]:offsets[u + 1]`.
        items: (events,) index of the item in the catalogue.
        baskets: (events,) number of the basket within its user, from 0, ascending.
        target: (events,) whether each is a target or history alone, such as a view; None where all are targets.
        times: (events,) datetime64 of each, for people to read; None where that is not kept.
    """

    user_ids: tuple[str, ...]
    offsets: np.ndarray
    items: np.ndarray
    baskets: np.ndarray
    target: np.ndarray | None = None
    times: np.ndarray | None = None

    @classmethod
    def from_table(cls, events: pd.DataFrame, catalogue: Catalogue, target: pd.Series | None = None) -> Histories:
        """Build from checked events: one entry for each (user, timestamp, item), a target where any of its events is.

        Args:
            target: whether each event is a target; all by default.
        """
        frame = pd.DataFrame(
            {
                "user": events[C.USER].to_numpy(),
                "time": events[C.TIME].to_numpy(),
                "item": catalogue.index.get_indexer(events[C.ITEM]),
            }
        )
        frame["other"] = False if target is None else ~target.to_numpy()
        # Of the same item at the same time the target comes first, and stays.
        frame = frame.sort_values(["user", "time", "item", "other"], kind="stable")
        frame = frame.drop_duplicates(["user", "time", "item"], ignore_index=True)
        new_user = frame["user"].ne(frame["user"].shift()).to_numpy()
        new_basket = new_user | frame["time"].ne(frame["time"].shift()).to_numpy()
        starts = np.flatnonzero(new_user)
        basket = np.cumsum(new_basket) - 1
        user_of_event = np.cumsum(new_user) - 1
        return cls(
            user_ids=tuple(frame["user"].iloc[starts]),
            offsets=np.append(starts, len(frame)).astype(np.int64),
            items=frame["item"].to_numpy(np.int64),
            baskets=(basket - basket[starts][user_of_event]).astype(np.int64),
            target=~frame["other"].to_numpy() if frame["other"].any() else None,
            times=frame["time"].to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, users: np.ndarray) -> Histories:
        """Those users alone, in the order of their numbers `users`."""
        counts = np.diff(self.offsets)[users]
        offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], counts)
        target = None if self.target is None else self.target[rows]
        times = None if self.times is None else self.times[rows]
        names = tuple(self.user_ids[user] for user in users)
        return Histories(names, offsets, self.items[rows], self.baskets[rows], target, times)

    @property
    def is_target(self) -> np.ndarray:
        """(events,) whether each is a target."""
        return np.ones(len(self.items), dtype=bool) if self.target is None else self.target

    def targets(self) -> Histories:
        """The same users with their targets alone: what they have, and not what they only looked at."""
        if self.target is None:
            return self
        offsets = np.append(0, np.cumsum(self.target))[self.offsets].astype(np.int64)
        times = None if self.times is None else self.times[self.target]
        kept = self.items[self.target], self.baskets[self.target]
        return replace(self, offsets=offsets, items=kept[0], baskets=kept[1], target=None, times=times)

    def of(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and basket numbers of user number `user`, in time order."""
        rows = slice(self.offsets[user], self.offsets[user + 1])
        return self.items[rows], self.baskets[rows]
