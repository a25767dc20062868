"""EASE: the linear item-item model whose weights have a closed form (Steck, WWW 2019, equations 7 and 8).

P = (X'X + lambda I)^-1,    B = I - P / diag(P),    score = x B
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.sparse import csr_array

from fedrec.model.adapter import Arrays

__all__ = ["Ease"]


@dataclass(frozen=True)
class Ease:
    """Weights between the items that have a buyer.

    Attributes:
        items: how many the catalogue has.
        rows: (bought,) the items that have a buyer, ascending.
        weights: (bought, bought) float32, zero on the diagonal.
    """

    kind: ClassVar[str] = "ease"
    strengths: ClassVar[tuple[float, ...]] = (10.0, 100.0, 1000.0)

    items: int
    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, bought: csr_array, strength: float) -> Self:
        """See `OwnLayer.fit`; `strength` is lambda."""
        rows = np.unique(bought.indices)
        used = bought[:, rows]
        # An item that nobody bought would have the row and column of the identity: it is left out, and so is its cost.
        if 2 * used.shape[0] < used.shape[1]:
            return cls(bought.shape[1], rows.astype(np.int64), _of_few_users(used, strength))
        gram = torch.from_numpy((used.T @ used).toarray().astype(np.float64))
        gram.diagonal().add_(strength)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = inverse.div_(-inverse.diagonal().clone()).fill_diagonal_(0.0)
        # Row after row, as `scores` reads it: else SciPy copies all of it for every history.
        return cls(bought.shape[1], rows.astype(np.int64), np.ascontiguousarray(weights.float().numpy()))

    def scores(self, histories: csr_array) -> np.ndarray:
        """See `OwnLayer.scores`."""
        out = np.zeros(histories.shape, dtype=np.float32)
        out[:, self.rows] = histories[:, self.rows] @ self.weights
        return out

    def between(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `Scores.between`."""
        place = np.full(self.items, -1)
        place[self.rows] = np.arange(len(self.rows))
        of_held, of_items = place[held], place[items]
        found, known = np.zeros((len(held), len(items)), dtype=np.float32), (of_held >= 0, of_items >= 0)
        found[np.ix_(*known)] = self.weights[np.ix_(of_held[known[0]], of_items[known[1]])]
        return found

    def arrays(self) -> Arrays:
        """See `OwnLayer.arrays`."""
        return {"items": np.array([self.items]), "rows": self.rows, "weights": self.weights}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """See `OwnLayer.from_arrays`."""
        return cls(int(arrays["items"][0]), arrays["rows"], arrays["weights"])


def _of_few_users(used: csr_array, strength: float) -> np.ndarray:
    """The same weights from an inverse over the users, who are fewer than the items (Woodbury's identity).

    P = (I - X' (X X' + lambda I)^-1 X) / lambda
    """
    kernel = torch.from_numpy((used @ used.T).toarray().astype(np.float64))
    kernel.diagonal().add_(strength)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel)).numpy()
    shared = used.T.astype(np.float64) @ (inverse @ used)  # I - lambda P
    weights = shared / (1.0 - shared.diagonal())
    np.fill_diagonal(weights, 0.0)
    found: np.ndarray = np.ascontiguousarray(weights, dtype=np.float32)
    return found
