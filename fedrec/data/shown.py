"""What users were shown, and whether they responded: the labels of the objective `response`.

An impression is an event of kind `impression`. Its `value` says whether the user responded, 1 or 0. Where it says nothing, the
rule is: a `click` or `purchase` of the same user and item answers the latest impression at or before it, if that was no
more than `WITHIN` ago; a return answers nothing. Impressions are never history; what was clicked or bought has an event of its
own for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedrec.data.catalogue import Catalogue
from fedrec.data.kinds import ANSWERS, IMPRESSION, MISSING, kinds_of
from fedrec.data.rows import Items, LeftOut, check_rows, have_come_back
from fedrec.data.schema import Columns as C
from fedrec.data.tables import Table

__all__ = ["ANSWER", "WITHIN", "Shown", "as_events", "check_shown"]

WITHIN = pd.Timedelta(days=7)
"""How long after an impression a click or a purchase still answers it."""
ANSWER = "answer"
"""The column of what users said, in a table of impressions or of ratings."""


@dataclass(frozen=True)
class Shown:
    """Users' impressions, or ratings, in time order, in compressed rows beside their histories.

    Attributes:
        offsets: (users + 1,) user `u` was shown `offsets[u]:offsets[u + 1]`.
        items: (impressions,) index of the item in the catalogue.
        before: (impressions,) how many of the user's baskets came before it, at an earlier time.
        answer: (impressions,) whether the user responded, bool; or how it rated the item, float64 as in the table.
    """

    offsets: np.ndarray
    items: np.ndarray
    before: np.ndarray
    answer: np.ndarray

    @classmethod
    def beside(
        cls, shown: pd.DataFrame, user_ids: tuple[str, ...], offsets: np.ndarray, baskets: np.ndarray, times: np.ndarray,
        catalogue: Catalogue,
    ) -> Shown:  # fmt: skip
        """What `check_shown` or `check_rated` has found, for the users of histories; others, who have none, are left out.

        Args:
            offsets, baskets, times: of the histories' events.
        """
        user = pd.Index(user_ids).get_indexer(shown[C.USER])
        known = user >= 0
        user, shown = user[known], shown[known]
        moments = np.unique(times)
        moment = np.searchsorted(moments, shown[C.TIME].to_numpy(times.dtype))
        order = np.lexsort((shown[C.TIME].to_numpy(), user))
        owner = np.repeat(np.arange(len(user_ids)), np.diff(offsets))
        keys = owner * (len(moments) + 1) + np.searchsorted(moments, times)
        at = np.searchsorted(keys, user * (len(moments) + 1) + moment)
        before = np.where(at > offsets[user], baskets[at - 1] + 1, 0)
        ends = np.searchsorted(user[order], np.arange(len(user_ids) + 1))
        items = catalogue.index.get_indexer(shown[C.ITEM])
        return cls(ends, items[order], before[order], shown[ANSWER].to_numpy()[order])

    def __len__(self) -> int:
        return len(self.items)

    def take(self, users: np.ndarray) -> Shown:
        """Those users alone, in the order of their numbers `users`."""
        counts = np.diff(self.offsets)[users]
        offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], counts)
        return Shown(offsets, self.items[rows], self.before[rows], self.answer[rows])


def check_shown(
    table: Table, items: Items, *, merchants: bool = False, strict: bool = False
) -> tuple[pd.DataFrame | None, tuple[LeftOut, ...]]:
    """The impressions of a table of events, with a column `answer`; None where there are none that can be used.

    Args:
        items: the checked catalogue.
        merchants: the events have a column `merchant`.
        strict: refuse the first impression that would be left out.

    Returns:
        The impressions, `timestamp` as in `check_events`; and what was left out of them.

    Raises:
        InputError: `strict`, and one cannot be used.
    """
    kinds = kinds_of(table.frame)
    impressions, answers = table.only(kinds.eq(IMPRESSION)), table.only(kinds.isin(ANSWERS))
    if impressions.frame.empty:
        return None, ()
    found, left_out = check_rows(impressions, items, "impressions", merchants=merchants, strict=strict, answers=True)
    if found.empty:
        return None, left_out
    who = [C.USER, C.ITEM, *([C.MERCHANT] if merchants else [])]
    values = found[C.VALUE].fillna("").str.strip() if C.VALUE in found else pd.Series("", index=found.index)
    silent = values.isin(("", *MISSING)).to_numpy()
    answer = pd.to_numeric(values.mask(silent, "0")).to_numpy() == 1
    if silent.any() and not answers.frame.empty:
        followed, _ = check_rows(answers, items, "events", merchants=merchants, strict=False)
        answer |= silent & _answered(found, followed[~have_come_back(followed)], who)
    return found.assign(**{ANSWER: answer})[[*who, C.TIME, ANSWER]].reset_index(drop=True), left_out


def as_events(shown: pd.DataFrame) -> pd.DataFrame:
    """Impressions as rows of a table of events, each with a `value`."""
    return shown.drop(columns=ANSWER).assign(**{C.EVENT: IMPRESSION, C.VALUE: shown[ANSWER].astype(int).astype(str)})


def _answered(shown: pd.DataFrame, answers: pd.DataFrame, who: list[str]) -> np.ndarray:
    """(impressions,) bool: whether each is the latest before one of the answers, and near enough."""
    numbered = shown[[*who, C.TIME]].assign(row=np.arange(len(shown))).sort_values(C.TIME, kind="stable")
    later = answers[[*who, C.TIME]].sort_values(C.TIME, kind="stable")
    rows = pd.merge_asof(later, numbered, on=C.TIME, by=who, tolerance=WITHIN)["row"].dropna()
    return np.isin(np.arange(len(shown)), rows.to_numpy(np.int64))
