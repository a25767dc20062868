"""What goes with a basket, from a merchant's own baskets: its parts, their weights, and what `fedrec merchant fit` keeps of them.

    score(j) = t (<u, c_j> + new_j) + m max_i <h_i, c_j> + b log p_j + l sum_i lift_ij / sqrt(n) + v layer_j / s

`u` is the mean text of the basket's `n` items and `p_j` the share of baskets with j. `lift` is `Lifts`; `layer` an item-item
model of `OWN_LAYERS` fitted on baskets in place of customers, over its standard deviation `s`. Both are linear in the basket;
the nearest text is one item's alone.
Items in no basket yet have neither: for them stands what is nearest by text, `new_j = NEW sum_w W_jw sum_i lift_iw / sqrt(n)`,
and the mean of `log p`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from fedrec.model.adapter import Arrays
from fedrec.model.ranking import best_items, blocks, products
from fedrec.model.towers import log_prior
from fedrec.recommender.baskets.lifts import Lifts
from fedrec.recommender.blend import TextPart, own_scores
from fedrec.recommender.own_layer import OWN_LAYERS, OwnLayer, Scores

__all__ = ["BasketModel", "BasketParts", "BasketWeights"]

NEW = 0.1
"""What co-purchases of the nearest texts count beside the text of a new item: `docs/baskets.md`."""
NEIGHBOURS, SHARPNESS = 10, 4
"""Of a new item: how many it is like, each by this power of its cosine."""
LAYER, LIFTS = "layer.", "lifts."


@dataclass(frozen=True)
class BasketWeights:
    """The weights of the formula above.

    Attributes:
        text: t; nearest: m; popularity: b; lifts: l; layer: v.
        strength: of the layer's smoothing.
        shrinkage: c of `Lifts`.
        baskets: how many the choice was made on; 0 for shared defaults.
    """

    text: float = 2.0
    nearest: float = 0.5
    popularity: float = 0.8
    lifts: float = 0.6
    layer: float = 0.15
    strength: float = 100.0
    shrinkage: float = 30.0
    baskets: int = 0

    @property
    def values(self) -> np.ndarray:
        """(5,) in the order of `BasketParts.features`."""
        return np.array([self.text, self.nearest, self.popularity, self.lifts, self.layer])

    @property
    def default(self) -> BasketWeights:
        """The shared defaults for layers of this smoothing: beside another text than the one these were chosen with."""
        return BasketWeights(strength=self.strength, shrinkage=self.shrinkage)


@dataclass(frozen=True)
class BasketModel:
    """What is fitted on a merchant's baskets.

    Attributes:
        layer: item-item model of baskets.
        lifts: see `Lifts`.
        weights: how they are joined.
        version: whose text they are joined with, of a run with objective basket; None for the text that ranks.
        by_hand: whether a person chose that.
    """

    layer: OwnLayer
    lifts: Lifts
    weights: BasketWeights
    version: str | None = None
    by_hand: bool = False

    def arrays(self) -> Arrays:
        """What `read` reads, with `said`."""
        found = {LAYER + name: value for name, value in self.layer.arrays().items()}
        return found | {LIFTS + name: value for name, value in self.lifts.arrays().items()}

    @property
    def said(self) -> dict[str, Any]:
        """For JSON: the kind of layer, the weights, and the version."""
        return {
            "kind": self.layer.kind, "weights": vars(self.weights).copy(), "version": self.version, "by_hand": self.by_hand,
        }  # fmt: skip

    @classmethod
    def read(cls, arrays: Arrays, said: Mapping[str, Any]) -> Self:
        """A model as it was."""

        def of(prefix: str) -> Arrays:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        layer = OWN_LAYERS[said["kind"]].from_arrays(of(LAYER))
        weights, version = BasketWeights(**said["weights"]), said.get("version")
        return cls(layer, Lifts.from_arrays(of(LIFTS)), weights, version, said.get("by_hand", False))


@dataclass(frozen=True)
class BasketParts:
    """What is joined, over a catalogue as it is now.

    Attributes:
        text: over this catalogue; its popularities have no part.
        layer, lifts: over this catalogue.
        prior: (items,) float32 log p.
        new: (items,) bool, in no basket yet.
        like: (items, items) W, rows of sum one for new items and empty for others.
    """

    text: TextPart
    layer: Scores
    lifts: Scores
    prior: np.ndarray
    new: np.ndarray
    like: csr_array

    @classmethod
    def of(cls, text: TextPart, layer: Scores, lifts: Scores, counts: np.ndarray) -> Self:
        """From the number of baskets of each item, (items,)."""
        prior, new = log_prior(counts, 1.0), counts == 0
        if not new.all():
            prior[new] = prior[~new].mean()
        return cls(text, layer, lifts, prior, new, _likeness(text.candidate, new))

    def features(self, held: csr_array) -> np.ndarray:
        """(5, baskets, items) float32: text, nearest text, popularity, lifts, layer.

        Args:
            held: (baskets, items) of ones, what each basket holds.
        """
        lifts = self.lifts.scores(held) / root_of(held)
        text, nearest = self._cosines(held)
        if self.like.nnz:
            text += np.float32(NEW) * (csr_array(lifts) @ self.like.T).toarray()
        prior = np.broadcast_to(self.prior, text.shape)
        return np.stack([text, nearest, prior, lifts, own_scores(self.layer, held)]).astype(np.float32, copy=False)

    def scores(self, weights: BasketWeights, held: csr_array) -> np.ndarray:
        """(baskets, items) float32 of the formula."""
        found: np.ndarray = np.tensordot(weights.values.astype(np.float32), self.features(held), 1)
        return found

    def _cosines(self, held: csr_array) -> tuple[np.ndarray, np.ndarray]:
        """(baskets, items) twice: with the mean of a basket, and with the nearest of its items."""
        history, candidate = self.text.history, self.text.candidate
        mean = held @ history[: held.shape[1]]
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        nearest = np.zeros(held.shape, dtype=np.float32)
        for row, (start, stop) in enumerate(pairwise(held.indptr.tolist())):
            best = [
                products(history[held.indices[start:stop][some]], candidate).max(axis=0)
                for some in blocks(stop - start, held.shape[1])
            ]
            if best:
                nearest[row] = np.maximum.reduce(best)
        return products(mean.astype(np.float32), candidate), nearest

    def nearest(self, held: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(items,) which of the held items is the nearest to each of some, and its cosine."""
        cosines = self.text.history[held].astype(np.float64) @ self.text.candidate[items].T.astype(np.float64)
        place = cosines.argmax(axis=0)
        return place, cosines[place, np.arange(len(items))]

    def lifts_between(self, weights: BasketWeights, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(held, items) what each item of one basket adds through lifts, those of the nearest texts included."""
        of_new = self.like[items]  # (items, catalogue)
        near = np.unique(of_new.indices)
        found = weights.lifts * self.lifts.between(held, items).astype(np.float64)
        found += weights.text * NEW * (of_new[:, near] @ self.lifts.between(held, near).T.astype(np.float64)).T
        return found / np.sqrt(max(len(held), 1))


def root_of(held: csr_array) -> np.ndarray:
    """(baskets, 1) float32 square root of how many items each holds."""
    return np.sqrt(np.maximum(np.diff(held.indptr), 1)).astype(np.float32)[:, None]


def _likeness(candidate: np.ndarray, new: np.ndarray) -> csr_array:
    known, rows = np.flatnonzero(~new), np.flatnonzero(new)
    shape = (len(new), len(new))
    if not len(known) or not len(rows):
        return csr_array(shape, dtype=np.float32)
    nearest, cosines = best_items(candidate[rows], table=candidate[known], k=NEIGHBOURS, masked=np.zeros((0, 2), dtype=np.int64))
    worth = np.maximum(cosines, 1e-3) ** SHARPNESS
    worth /= worth.sum(axis=1, keepdims=True)
    place = np.repeat(rows, nearest.shape[1]), known[nearest.ravel()]
    return csr_array((worth.ravel().astype(np.float32), place), shape=shape)
