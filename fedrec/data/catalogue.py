"""A merchant's published product list, as texts with ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fedrec.data.schema import Columns as C

__all__ = ["Catalogue", "ambiguous_id", "text_key"]


def text_key(text: str) -> int:
    """A 64-bit key of a text, the same on every machine: how catalogues are matched."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def ambiguous_id(items: pd.DataFrame) -> str | None:
    """An item id that stands for more than one text in a table of several merchants' items, or None."""
    texts = pd.Series(Catalogue.from_table(items).texts, index=items[C.ITEM].astype(str).to_numpy())
    several = texts.groupby(level=0).nunique() > 1
    return str(several.idxmax()) if several.any() else None


@dataclass(frozen=True)
class Catalogue:
    """Items in a fixed order; position `i` is the item's index everywhere downstream."""

    item_ids: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def from_table(cls, items: pd.DataFrame) -> Catalogue:
        """Build from a checked items table; the text joins the columns of `Columns.TEXT`."""
        parts = [items[name].fillna("").astype(str).str.strip() for name in C.TEXT if name in items.columns]
        texts = [", ".join(part for part in row if part) for row in zip(*parts, strict=True)]
        return cls(tuple(items[C.ITEM].astype(str)), tuple(texts))

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def index(self) -> pd.Index:
        """`item_ids` for look-ups from id to position."""
        return pd.Index(self.item_ids)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.item_ids)}

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """(ids,) where each of them is, -1 where it is not: for a few ids many times faster than `index`."""
        places = self._places
        return np.fromiter((places.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))

    @cached_property
    def keys(self) -> np.ndarray:
        """Text keys, uint64 of shape (items,)."""
        return np.array([text_key(text) for text in self.texts], dtype=np.uint64)

    @cached_property
    def digest(self) -> str:
        """A hash of the texts in their order."""
        return hashlib.blake2b(self.keys.tobytes(), digest_size=16).hexdigest()

    def subset(self, positions: np.ndarray) -> Catalogue:
        """The items at `positions`, in that order."""
        return Catalogue(tuple(self.item_ids[i] for i in positions), tuple(self.texts[i] for i in positions))
