"""From the scores of all items to a list: what may be in it, the best of that, and how alike its items may be.

A plain list is the best `k` by `top_k`'s rule. A diverse one is made by maximal marginal relevance (Carbonell and
Goldstein, SIGIR 1998): item after item, the one with the largest

    (1 - diversity) * relevance - diversity * greatest cosine with an item that is already in the list

relevance being the score, scaled to 0..1 over the user's candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from fedrec.data import Catalogue, Columns, ItemDetails
from fedrec.errors import InputError
from fedrec.model.ranking import top_k

__all__ = ["Filter", "choose", "intra_list_distance"]

Column = TypeVar("Column", np.ndarray, pd.Series)
CANDIDATES = 50
TIMES = 5
"""A diverse list is made of the best `TIMES * k` items, and of `CANDIDATES` at least."""


@dataclass(frozen=True)
class Filter:
    """Which items a list may hold; an item has to pass everything that is given.

    Attributes:
        category, brand: one of these names, in any case of letters.
        price_min, price_max: both ends belong to the range; an item without a price is in no range.
        only: what is in stock, by item id; None is no such list, an empty one is an empty stock.
        exclude: item ids.
    """

    category: Sequence[str] = ()
    brand: Sequence[str] = ()
    price_min: float | None = None
    price_max: float | None = None
    only: Sequence[str] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("category", "brand", "only", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):  # its letters would be taken for names
                raise InputError(f"found the text {value!r}", where=name, expected="a list")
        for name in ("price_min", "price_max"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):
                raise InputError("found nan", where=name, expected="a number")

    def parts(self, catalogue: Catalogue, details: ItemDetails) -> dict[str, np.ndarray]:
        """What each part of the filter that is given lets through: bool of shape (items,) by its name.

        Raises:
            InputError: it asks for a column that the catalogue does not have.
        """
        found: dict[str, np.ndarray] = {}
        for name in (Columns.CATEGORY, Columns.BRAND):
            if wanted := {one.strip().casefold() for one in getattr(self, name)}:
                found[name] = _there(details.folded.get(name), name).isin(wanted).to_numpy()
        if self.price_min is not None or self.price_max is not None:
            price = _there(details.price, Columns.PRICE)
            low = -np.inf if self.price_min is None else self.price_min
            high = np.inf if self.price_max is None else self.price_max
            found["price"] = (price >= low) & (price <= high)  # false for NaN
        if self.only is not None:
            found["stock"] = _among(catalogue, self.only)
        if self.exclude:
            found["exclude"] = ~_among(catalogue, self.exclude)
        return found

    def mask(self, catalogue: Catalogue, details: ItemDetails) -> np.ndarray:
        """Which items pass, bool of shape (items,); raises what `parts` does."""
        allowed = np.ones(len(catalogue), dtype=bool)
        for part in self.parts(catalogue, details).values():
            allowed &= part
        return allowed


def choose(
    scores: np.ndarray,
    k: int,
    masked: np.ndarray,
    allowed: np.ndarray | None = None,
    diversity: float = 0.0,
    vectors: np.ndarray | None = None,
) -> list[list[tuple[int, float]]]:
    """Each user's list of (item, score), in the order in which it is to be shown.

    Args:
        scores: (users, items) float32; -inf for what cannot be recommended.
        masked: (pairs, 2) user and item that are not to be in the user's list.
        allowed: (items,) which items may be in any list; all by default.
        diversity: 0 for the best `k`, to 1 for the best item and then what is least like the list so far.
        vectors: (items, width) what likeness is measured on; needed where there is a diversity.

    Raises:
        InputError: the diversity is not in 0..1.
    """
    if not 0 <= diversity <= 1:
        raise InputError(f"found {diversity}", where="diversity", expected="a number from 0 to 1")
    scores = scores.copy()
    scores[masked[:, 0], masked[:, 1]] = -np.inf
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    columns, best = top_k(scores, max(TIMES * k, CANDIDATES) if diversity else k)
    lists = [
        [(item, score) for item, score in zip(row, values, strict=True) if item >= 0]
        for row, values in zip(columns.tolist(), best.tolist(), strict=True)
    ]
    if not diversity:
        return lists
    if vectors is None:
        raise ValueError("vectors: needed for a diverse list")
    return [_diverse(candidates, k, diversity, vectors) for candidates in lists]


def intra_list_distance(vectors: np.ndarray, items: Sequence[int]) -> float | None:
    """Mean of one minus the cosine over all pairs of a list; None for a list without a pair.

    Args:
        vectors: (items, width).
        items: rows of `vectors`.
    """
    if len(items) < 2:
        return None
    unit = _unit(vectors[list(items)])
    cosines = unit @ unit.T
    return float(1 - cosines[np.triu_indices(len(items), 1)].mean())


def _diverse(candidates: list[tuple[int, float]], k: int, diversity: float, vectors: np.ndarray) -> list[tuple[int, float]]:
    """`k` of the candidates, which are sorted best first; of equal values the better candidate."""
    if not candidates:
        return []
    unit = _unit(vectors[[item for item, _ in candidates]])
    values = np.array([score for _, score in candidates])
    relevance = (values - values[-1]) / max(values[0] - values[-1], 1e-12)
    alike = np.zeros(len(candidates))  # the first item has nothing to be like, so it is the best one
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    while left.any() and len(chosen) < k:
        gain = np.where(left, (1 - diversity) * relevance - diversity * alike, -np.inf)
        chosen.append(int(gain.argmax()))
        left[chosen[-1]] = False
        cosines = unit @ unit[chosen[-1]]
        alike = cosines if len(chosen) == 1 else np.maximum(alike, cosines)
    return [candidates[place] for place in chosen]


def _among(catalogue: Catalogue, ids: Sequence[str]) -> np.ndarray:
    """(items,) bool."""
    found, positions = np.zeros(len(catalogue), dtype=bool), catalogue.positions(ids)
    found[positions[positions >= 0]] = True
    return found


def _there(column: Column | None, name: str) -> Column:
    if column is None:
        raise InputError(
            f"the catalogue has no column {name!r}", where=f"the filter on {name}", expected=f"{name} in the table of items",
            hint="a run made before filters were there has to be made again",
        )  # fmt: skip
    return column


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
