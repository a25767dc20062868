"""A merchant's own layer: what is bought together *here*, learned from its own events and from nothing else.

It never leaves the merchant, so it costs no epsilon; and for the same reason nothing that sends a message or computes a
gradient may import it. A kind of layer is a small class that implements `OwnLayer`, registered in `OWN_LAYERS`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

import numpy as np
from scipy.sparse import csr_array

from fedrec.data import Histories
from fedrec.model.adapter import Arrays
from fedrec.recommender.ease import Ease
from fedrec.recommender.item_knn import ItemKnn

__all__ = ["MOST_DENSE", "OWN_LAYERS", "OwnLayer", "Scores", "bought_by", "choose_kind"]

MOST_DENSE = 6000
"""Most items with a buyer for which all pairs are kept: EASE takes 9 s and 600 MB there, and grows with the cube."""


class Scores(Protocol):
    """Whatever scores a catalogue from a history of its items alone."""

    def scores(self, histories: csr_array) -> np.ndarray:
        """(users, items) float32 for histories (users, items); an item without a buyer has and gives none."""
        ...

    def between(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(held, items) what each item of a history adds to the score of each of some items; their sum is the score."""
        ...


class OwnLayer(Scores, Protocol):
    """An item-item model. Its scores are linear in a history, so that each item of it has an exact share of a score."""

    kind: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]]
    """What `fit` may be asked for, weakest smoothing first; which one is chosen on the merchant's choosing users."""

    @classmethod
    def fit(cls, bought: csr_array, strength: float) -> Self:
        """Learn from who bought what.

        Args:
            bought: (users, items) of zeros and ones.
            strength: of the smoothing.
        """
        ...

    def arrays(self) -> Arrays:
        """What `from_arrays` reads."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """A layer as it was."""
        ...


OWN_LAYERS: dict[str, type[OwnLayer]] = {layer.kind: layer for layer in (Ease, ItemKnn)}


def choose_kind(bought: csr_array) -> type[OwnLayer]:
    """The kind for data of this size: EASE is the better one wherever it fits (`docs/recommend.md`)."""
    return Ease if len(np.unique(bought.indices)) <= MOST_DENSE else ItemKnn


def bought_by(histories: Histories, items: int) -> csr_array:
    """(users, items) of ones where an item was a target of a user, which is to say bought, however often."""
    histories = histories.targets()
    ones = np.ones(len(histories.items), dtype=np.float32)
    # A copy, because what follows changes the offsets too.
    bought = csr_array((ones, histories.items, histories.offsets), shape=(len(histories), items), copy=True)
    bought.sum_duplicates()
    bought.data[:] = 1.0
    return bought
