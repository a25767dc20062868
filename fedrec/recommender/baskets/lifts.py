"""How much more often than by chance two items are in one basket, as what one adds to the logarithm of the other's probability.

    P(j | i) = (n_ij + c p_j) / (n_i + c),    log P(j | i) = log p_j + log(1 + n_ij / (c p_j)) + a term of i alone

`n_ij` counts the baskets that hold both and `p_j` is the share of baskets with j; `c` baskets of nothing but chance are added
to those of i (the Dirichlet prior of Zhai and Lafferty, TOIS 2004, section 3). The middle term is what is kept: it is zero where
two items were never bought together, so the table is sparse, and an order by `log p_j` and by it is that of P(j | i).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.sparse import csr_array

from fedrec.model.adapter import Arrays
from fedrec.recommender.item_knn import nearest_pairs

__all__ = ["Lifts"]

NEIGHBOURS = 400
"""Items that are kept of each: of what is bought with hundreds of others the last ones are hardly above chance."""


@dataclass(frozen=True)
class Lifts:
    """An `OwnLayer` of baskets.

    Attributes:
        lifts: (items, items) float32; row i holds what an item i in a basket adds, zero on the diagonal.
    """

    kind: ClassVar[str] = "lifts"
    strengths: ClassVar[tuple[float, ...]] = (10.0, 30.0, 100.0)

    lifts: csr_array

    @classmethod
    def fit(cls, bought: csr_array, strength: float) -> Self:
        """See `OwnLayer.fit`; `bought` is (baskets, items), `strength` is c, in baskets."""
        share = np.bincount(bought.indices, minlength=bought.shape[1]).astype(np.float32) / np.float32(max(bought.shape[0], 1))
        chance = np.float32(strength) * share
        return cls(nearest_pairs(bought, lambda _, column, both: np.log1p(both / chance[column]), NEIGHBOURS))

    def scores(self, histories: csr_array) -> np.ndarray:
        """See `OwnLayer.scores`: the sum over a basket's items."""
        found: np.ndarray = (histories @ self.lifts).toarray()
        return found.astype(np.float32, copy=False)

    def between(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `Scores.between`."""
        found: np.ndarray = self.lifts[held][:, items].toarray()
        return found

    def arrays(self) -> Arrays:
        """See `OwnLayer.arrays`."""
        return {"data": self.lifts.data, "indices": self.lifts.indices, "indptr": self.lifts.indptr}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """See `OwnLayer.from_arrays`."""
        items = len(arrays["indptr"]) - 1
        return cls(csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(items, items)))
