"""What users did, as a compact sequence of baskets for each user.

A basket is the set of a user's events that share a timestamp; the order inside a basket
means nothing, so it is made canonical (by item index) and never read.

The words of a search are an event too: its number is that of a text after the catalogue's last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from fedrec.data.catalogue import Catalogue
from fedrec.data.kinds import asks
from fedrec.data.schema import Columns as C
from fedrec.data.shown import Shown

__all__ = ["Histories", "distinct_queries"]


def distinct_queries(events: pd.DataFrame) -> tuple[str, ...]:
    """The texts of all searches in checked events, each once, in the order of the alphabet.

    In that order two texts of one user come one after the other in the same way whatever others searched for.
    """
    searches = asks(events)
    return tuple(sorted(set(_words(events[searches])))) if searches.any() else ()


@dataclass(frozen=True)
class Histories:
    """Users' baskets in time order, in compressed rows.

    Attributes:
        user_ids: (users,) the ids; they never leave the merchant.
        offsets: (users + 1,) user `u` owns events `offsets[u]:offsets[u + 1]`.
        items: (events,) index of the item in the catalogue, or `len(catalogue)` and more: of a text in `queries`.
        baskets: (events,) number of the basket within its user, from 0, ascending.
        target: (events,) whether each is a target or history alone, such as a view; None where all are targets.
        times: (events,) datetime64 of each, for people to read; None where that is not kept.
        queries: the distinct texts that users searched for, all of them even where only some of the users are here.
        shown: what the users were shown, and how they responded; None where nothing is known of it.
        rated: how they rated items, the latest rating of each; None where they did not.
    """

    user_ids: tuple[str, ...]
    offsets: np.ndarray
    items: np.ndarray
    baskets: np.ndarray
    target: np.ndarray | None = None
    times: np.ndarray | None = None
    queries: tuple[str, ...] = field(default=(), repr=False)
    shown: Shown | None = None
    rated: Shown | None = None

    @classmethod
    def from_table(
        cls,
        events: pd.DataFrame,
        catalogue: Catalogue,
        target: pd.Series | None = None,
        queries: Sequence[str] | None = None,
        shown: pd.DataFrame | None = None,
        rated: pd.DataFrame | None = None,
    ) -> Histories:
        """Build from checked events: one entry for each (user, timestamp, item), a target where any of its events is.

        Args:
            target: whether each event is a target; by default all but searches for words.
            queries: the texts to number searches by, where others' histories have the same; by default these events' own.
            shown: impressions, as `check_shown` finds them.
            rated: ratings, as `check_rated` finds them.
        """
        searches = asks(events).to_numpy()
        items = catalogue.index.get_indexer(events[C.ITEM])
        if searches.any():
            queries = distinct_queries(events) if queries is None else queries
            items[searches] = len(catalogue) + pd.Index(queries).get_indexer(_words(events[searches]))
            target = pd.Series(~searches) if target is None else target & ~searches
        frame = pd.DataFrame(
            {
                "user": events[C.USER].to_numpy(),
                "time": events[C.TIME].to_numpy(),
                "item": items,
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
        user_ids, offsets = tuple(frame["user"].iloc[starts]), np.append(starts, len(frame)).astype(np.int64)
        baskets, times = (basket - basket[starts][user_of_event]).astype(np.int64), frame["time"].to_numpy()
        beside = [
            None if one is None else Shown.beside(one, user_ids, offsets, baskets, times, catalogue) for one in (shown, rated)
        ]
        return cls(
            user_ids,
            offsets,
            items=frame["item"].to_numpy(np.int64),
            baskets=baskets,
            target=~frame["other"].to_numpy() if frame["other"].any() else None,
            times=times,
            queries=tuple(queries or ()),
            shown=beside[0],
            rated=beside[1],
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
        shown, rated = (None if one is None else one.take(users) for one in (self.shown, self.rated))
        return Histories(names, offsets, self.items[rows], self.baskets[rows], target, times, self.queries, shown, rated)

    def renumbered(self, places: np.ndarray, size: int) -> Histories:
        """The same users in a catalogue of another order; what it does not have is left out, searches stay.

        What users were shown, and how they rated, is not taken along.

        Args:
            places: (items,) where each item is there, -1 for nowhere.
            size: how many items are there.
        """
        searched = self.items - len(places)
        items = np.where(searched < 0, np.append(places, -1)[np.minimum(self.items, len(places))], size + searched)
        return replace(self._where(items >= 0), items=items[items >= 0])

    def without_searches(self, size: int) -> Histories:
        """The same users with what they did to the `size` items of the catalogue alone."""
        return replace(self._where(self.items < size), queries=()) if self.queries else self

    def _where(self, kept: np.ndarray) -> Histories:
        offsets = np.append(0, np.cumsum(kept))[self.offsets].astype(np.int64)
        target, times = (None if one is None else one[kept] for one in (self.target, self.times))
        return Histories(self.user_ids, offsets, self.items[kept], self.baskets[kept], target, times, self.queries)

    @property
    def is_target(self) -> np.ndarray:
        """(events,) whether each is a target."""
        return np.ones(len(self.items), dtype=bool) if self.target is None else self.target

    def targets(self) -> Histories:
        """The same users with their targets alone: what they have, and not what they only looked at."""
        if self.target is None:
            return self
        return replace(self._where(self.target), target=None)

    def of(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and basket numbers of user number `user`, in time order."""
        rows = slice(self.offsets[user], self.offsets[user + 1])
        return self.items[rows], self.baskets[rows]


def _words(searches: pd.DataFrame) -> list[str]:
    return [" ".join(text.split()) for text in searches[C.QUERY]]
