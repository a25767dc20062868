"""Kinds of events: which of them say what a user has, and which only say what a user was shown or looked for.

History is what a prediction goes by, and a target is what it is of; by default both are the same kinds.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from fedrec.data.schema import Columns as C

__all__ = [
    "MISSING", "NO_HISTORY", "PURCHASE", "RETURN", "count_kinds", "counts_as_history", "counts_as_target", "kinds_of",
]  # fmt: skip

MISSING = ("\\N", "NULL")
"""What databases write for a missing value: no id, no time and no kind, but in a text it is a text."""
PURCHASE, RETURN = "purchase", "return"
"""What an event without a kind is, and what never is history."""
NO_HISTORY = frozenset({"impression", "view", "click", RETURN, "search"})
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


def counts_as_history(kinds: pd.Series, history_events: Collection[str] | None) -> pd.Series:
    """Whether an event of each kind is history.

    Args:
        history_events: exactly these kinds, in lower case; by default all but `NO_HISTORY`.
    """
    return ~kinds.isin(NO_HISTORY) if history_events is None else kinds.isin(set(history_events))


def counts_as_target(kinds: pd.Series, target_events: Collection[str] | None) -> pd.Series:
    """Whether an event of each kind of history is to be predicted.

    Args:
        target_events: exactly these kinds, in lower case; by default all.
    """
    return pd.Series(True, index=kinds.index) if target_events is None else kinds.isin(set(target_events))
