"""A small reward model for the direct method and for doubly robust estimates: means, drawn together where there are few rows.

    q(c, j) = m_c + k_sj u_sj + k_cj u_cj

`m_c` is the mean reward of the cell `c` (a stratum at a position); `u_sj` what item `j` differs by in the stratum `s`, over
its positions; `u_cj` what is left of that in the cell alone. `k = n / (n + within / between)` is how far a mean of `n` rows is
believed, from the variance within items and between them by the method of moments (Buhlmann and Straub 1970).
"""

from __future__ import annotations

import numpy as np

__all__ = ["fit_rewards"]

TINY = 1e-12


def fit_rewards(
    cell: np.ndarray, item: np.ndarray, reward: np.ndarray, stratum: np.ndarray, items: int, counts: np.ndarray | None = None
) -> np.ndarray:
    """The model's q, (cells, items).

    Args:
        cell, item: (rows,) numbers from 0.
        reward: (rows,).
        stratum: (cells,) which stratum a cell belongs to.
        items: how many there are.
        counts: (rows,) how often each row counts.
    """
    weight = np.ones(len(reward)) if counts is None else counts.astype(np.float64)
    cells, strata = len(stratum), int(stratum.max()) + 1
    seen = np.bincount(cell, weight, cells)
    overall = float(np.average(reward, weights=weight))
    mean = np.where(seen > 0, np.bincount(cell, weight * reward, cells) / np.maximum(seen, TINY), overall)
    left = reward - mean[cell]
    of_item = _believed(stratum[cell] * items + item, left, weight, strata * items).reshape(strata, items)[stratum]
    left = left - of_item[cell, item]
    of_cell = _believed(cell * items + item, left, weight, cells * items).reshape(cells, items)
    found: np.ndarray = mean[:, None] + of_item + of_cell
    return found


def _believed(key: np.ndarray, left: np.ndarray, weight: np.ndarray, keys: int) -> np.ndarray:
    """(keys,) the mean of each key, as far as it is believed; zero for one without rows."""
    rows = np.bincount(key, weight, keys)
    effect = np.bincount(key, weight * left, keys) / np.maximum(rows, TINY)
    shown = rows > 0
    within = float(np.average((left - effect[key]) ** 2, weights=weight))
    spare = float(rows.sum() - (rows**2).sum() / rows.sum())
    between = (float((rows * effect**2).sum()) - within * (int(shown.sum()) - 1)) / max(spare, TINY)
    if between <= 0:
        return np.zeros(keys)
    believed: np.ndarray = rows * between / np.maximum(rows * between + within, TINY) * effect
    return believed
