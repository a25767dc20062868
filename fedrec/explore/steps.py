"""What the places above change: weights of whole lists, place by place.

A list is drawn one place after the other, and a propensity is P(item | places above). What another policy would have shown at
place t depends on what it would have shown above, so a reward at t counts by the product over the places up to it,

    rho_t = prod_{s <= t} pi_s / p_s

which is per-decision importance sampling (Precup, Sutton and Singh, ICML 2000). Each rho_t has mean 1 under the policy of the
log. A doubly robust estimate is mean(rho_{t-1} v_t + rho_t (r_t - q_t)) (Jiang and Li, ICML 2016, with the rewards of one place
for a value).
"""

from __future__ import annotations

import numpy as np

from fedrec.errors import InputError
from fedrec.explore.log import LogTable
from fedrec.explore.targets import Rows

__all__ = ["above", "product_above"]


def above(table: LogTable, rows: Rows, weights: np.ndarray) -> np.ndarray:
    """(rows,) rho of the place above each; 1 at the first place, and everywhere in a log whose rows stand alone.

    Args:
        weights: (rows,) pi / p of each place, given those above.

    Raises:
        InputError: a request lacks a place, or has one twice, by its row.
    """
    if rows.place is None:
        return np.ones(len(weights))
    order = np.lexsort((rows.place, rows.request))
    ends = np.cumsum(np.bincount(rows.request))
    expected = np.arange(len(order)) - (ends - np.bincount(rows.request))[rows.request[order]]
    if (wrong := rows.place[order] != expected).any():
        at = int(wrong.argmax())
        row = int(rows.frame.index[order[at]])
        raise InputError(
            f"found {rows.place[order[at]] + 1}", where=table.at("position", row),
            expected=f"{expected[at] + 1} as the next place of this request",
            hint="keep all places of a list; where a propensity does not depend on the places above, leave out request_id",
        )  # fmt: skip
    return product_above(weights, rows.request, rows.place)


def product_above(weights: np.ndarray, request: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(rows,) product of the weights of the places above in the same request; places (rows,) run from 0 without a gap.

    >>> product_above(np.array([2.0, 0.5, 3.0]), np.array([0, 0, 0]), np.array([0, 1, 2])).tolist()
    [1.0, 2.0, 1.0]
    """
    order = np.lexsort((place, request))
    sorted_, found = weights[order], np.ones(len(weights))
    for number in range(1, int(place.max(initial=0)) + 1):
        here = np.flatnonzero(place[order] == number)
        found[here] = found[here - 1] * sorted_[here - 1]
    back = np.empty(len(weights))
    back[order] = found
    return back
