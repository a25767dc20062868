"""What is known of each item beside its text: what a filter asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fedrec.data.schema import Columns as C

__all__ = ["ItemDetails"]


@dataclass(frozen=True, eq=False)
class ItemDetails:
    """Columns in the order of a catalogue; a column that its table lacks is None.

    Attributes:
        brand, category: (items,) str, empty where missing.
        price: (items,) float64, NaN where there is no price that is a number.
    """

    brand: np.ndarray | None = None
    category: np.ndarray | None = None
    price: np.ndarray | None = None

    @classmethod
    def from_table(cls, items: pd.DataFrame) -> ItemDetails:
        """From a checked table of items, or from the catalogue that a run keeps."""

        def texts(column: str) -> np.ndarray | None:
            if column not in items:
                return None
            return items[column].fillna("").astype(str).str.strip().to_numpy(dtype=object)

        return cls(texts(C.BRAND), texts(C.CATEGORY), _prices(items[C.PRICE]) if C.PRICE in items else None)

    @cached_property
    def folded(self) -> dict[str, pd.Series]:
        """Brand and category for comparison: any case of letters is the same; a column that is not there is absent."""
        named = {C.BRAND: self.brand, C.CATEGORY: self.category}
        return {name: pd.Series([text.casefold() for text in column]) for name, column in named.items() if column is not None}

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name: what `from_table` reads again."""
        named = {C.BRAND: self.brand, C.CATEGORY: self.category, C.PRICE: self.price}
        return {name: values for name, values in named.items() if values is not None}


def _prices(column: pd.Series) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column):
        # A single comma and no point is how half of Europe writes a decimal; `1,299.00` is left for nobody to guess.
        column = column.str.strip().str.replace(r"^([+-]?\d+),(\d{1,2})$", r"\1.\2", regex=True)
    prices = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(prices), prices, np.nan)
