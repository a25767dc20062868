"""How users rated items: the labels of the objective `rating`.

A rating is an event of kind `rating` with a finite number as its `value`. It is history as well, like every event of a kind
that is not named in `NO_HISTORY`. What a run takes for the range of ratings is a public setting (`rating_min`, `rating_max`):
nothing here depends on it, and values are clamped to it before anything is computed from them (`in_units`). Of several ratings
of a user and item the latest counts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedrec.data.kinds import RATING, kinds_of
from fedrec.data.rows import NO_NUMBER, Items, LeftOut, check_rows
from fedrec.data.schema import Columns as C
from fedrec.data.shown import ANSWER
from fedrec.data.tables import Table

__all__ = ["SHRINK", "check_rated", "from_units", "in_units", "own_taste"]

SHRINK = 5.0
"""Ridge of `own_taste`: the variance of a rating over that of users' means is about that."""


def check_rated(
    table: Table, items: Items, *, merchants: bool = False, strict: bool = False
) -> tuple[pd.DataFrame | None, tuple[LeftOut, ...]]:
    """The ratings of a table of events, with a column `answer`; None where there are none that can be used.

    Args:
        items: the checked catalogue.
        merchants: the events have a column `merchant`.
        strict: refuse the first rating whose value is no finite number.

    Returns:
        The ratings, `timestamp` as in `check_events`; and how many have no value that can be used. Whatever else is wrong with a
        row is counted where events are checked.

    Raises:
        InputError: `strict`, and one cannot be used.
    """
    if C.VALUE not in table.frame:
        return None, ()
    ratings = table.only(kinds_of(table.frame).eq(RATING))
    if ratings.frame.empty:
        return None, ()
    found, left_out = check_rows(ratings, items, "ratings", merchants=merchants, strict=strict, numbers=True)
    faults = tuple(one for one in left_out if one.reason == NO_NUMBER)
    if found.empty:
        return None, faults
    who = [C.USER, C.ITEM, *([C.MERCHANT] if merchants else [])]
    found = found.assign(**{ANSWER: pd.to_numeric(found[C.VALUE]).astype(np.float64)})
    found = found.sort_values(C.TIME, kind="stable").drop_duplicates(who, keep="last")
    return found[[*who, C.TIME, ANSWER]].reset_index(drop=True), faults


def in_units(value: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Ratings clamped to their public range, -1 for the lowest and 1 for the highest: float64."""
    out: np.ndarray = (2 * (np.clip(value, lowest, highest) - lowest) / (highest - lowest)) - 1
    return out


def from_units(value: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """The rating that a prediction stands for, clamped to the range."""
    out: np.ndarray = lowest + (np.clip(value, -1, 1) + 1) * (highest - lowest) / 2
    return out


def own_taste(texts: np.ndarray, off: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How far from what is expected a user will rate some items, by how far its earlier ratings were: (asked,) float64.

    Ridge regression on a constant and the texts: the posterior mean of a user's own offset and tastes (Hoerl and Kennard,
    Technometrics 1970). Without texts it is the offsets' sum over their number and `SHRINK`, as in Koren (KDD 2008, section 2.1).

    Args:
        texts: (ratings, width) features of the items that were rated.
        off: (ratings,) the ratings less what was expected of them.
        asked: (asked, width) features of the items that are asked for.
    """
    known, new = (np.column_stack([np.ones(len(one)), one]).astype(np.float64) for one in (texts, asked))
    found: np.ndarray = new @ np.linalg.solve(known.T @ known + SHRINK * np.eye(known.shape[1]), known.T @ off)
    return found
