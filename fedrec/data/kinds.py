"""Kinds of events: which of them say what a user has, and which only say what a user was shown or looked for.

History is what a prediction goes by, and a target is what it is of; by default both are the same kinds. A search whose words
are there (the column `query`) is history by default too, and never a target.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from fedrec.data.schema import Columns as C

__all__ = [
    "ANSWERS", "IMPRESSION", "MISSING", "NO_HISTORY", "PURCHASE", "RATING", "RETURN", "SEARCH", "asks", "count_kinds",
    "counts_as_history", "counts_as_target", "kinds_of",
]  # fmt: skip

MISSING = ("\\N", "NULL")
"""What databases write for a missing value: no id, no time and no kind, but in a text it is a text."""
PURCHASE, RETURN, SEARCH = "purchase", "return", "search"
"""What an event without a kind is, what never is history, and the only kind whose `query` is read."""
IMPRESSION, ANSWERS = "impression", ("click", PURCHASE)
"""What a user was shown, and what answers it where the impression itself does not say."""
RATING = "rating"
"""What has a number as its `value`: how much a user liked the item. It is history too."""
NO_HISTORY = frozenset({IMPRESSION, "view", "click", RETURN, SEARCH})
"""Kinds that are no history unless a merchant says so; any other one is."""


def kinds_of(events: pd.DataFrame) -> pd.Series:
    """The kind of each event: the column `event` in lower case, `purchase` where there is none."""
    if C.EVENT not in events:
        return pd.Series(PURCHASE, index=events.index)
    codes, names = pd.factorize(events[C.EVENT])  # a column repeats its values, and -1, a missing one, takes the last
    folded = [PURCHASE if name in MISSING else name.strip().casefold() or PURCHASE for name in names]
    return pd.Series(np.array([*folded, PURCHASE], dtype=object)[codes], index=events.index)


def count_kinds(events: pd.DataFrame) -> dict[str, int]:
    """How many rows of each kind a table has, used or not, the most frequent first."""
    return {str(kind): int(rows) for kind, rows in kinds_of(events).value_counts().items()}


def asks(events: pd.DataFrame) -> pd.Series:
    """Whether each event is a search that has its words, so that they count and no item does."""
    if C.QUERY not in events:
        return pd.Series(False, index=events.index)
    words = events[C.QUERY]
    there = words.notna() & words.str.strip().ne("") & ~words.isin(MISSING)
    return kinds_of(events).eq(SEARCH) & there.astype(bool)


def counts_as_history(events: pd.DataFrame, history_events: Collection[str] | None) -> pd.Series:
    """Whether each event is of a kind that is history.

    Args:
        history_events: exactly these kinds, in lower case; by default all but `NO_HISTORY`, and searches where there is a
            column `query`.
    """
    kinds = kinds_of(events)
    if history_events is not None:
        return kinds.isin(set(history_events))
    return ~kinds.isin(NO_HISTORY - {SEARCH} if C.QUERY in events else NO_HISTORY)


def counts_as_target(events: pd.DataFrame, target_events: Collection[str] | None) -> pd.Series:
    """Whether each event of history is to be predicted; a search for words never is.

    Args:
        target_events: exactly these kinds, in lower case; by default all.
    """
    searches = asks(events)
    return ~searches if target_events is None else kinds_of(events).isin(set(target_events)) & ~searches
