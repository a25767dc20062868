"""Which kind of thing goes with which, over all merchants: what is made of one release of `fedrec.privacy.pairs`.

A kind is a cluster of the public catalogue's texts. Of kinds k and l the *lift* is how much more often than by chance two items
of a basket are of them:

    C(k, l) / E(k, l),    E(k, l) = C(k) P(l),    C(k) = sum over l of C(k, l)

with C(k, l) the released sum and P(l) the share of kind l in the released popularity, so that lift times popularity is what is
bought with an item of kind k; where popularity was not released, C(l) over the sum of C. A user's part of C has the sum 1, so
the lift is 1 where the items of a basket are drawn one by one. Few users say little about two rare kinds, and the noise is
known; so a lift is pulled towards 1 by as much as it is uncertain. All of it is computed from what was released and from
public texts: it costs no privacy, and may be given to anyone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.model.adapter import Arrays

__all__ = [
    "KINDS", "LIFT", "MOST_KINDS", "PAIRS", "PAIRS_NOISE", "Complements", "kinds_of", "kinds_of_catalogue", "numbers_of",
    "unpacked",
]  # fmt: skip

KINDS, LIFT = "complements.kinds", "complements.lift"
"""The arrays of a model that knows this: (kinds, hidden) centres and (kinds, kinds)."""
PAIRS, PAIRS_NOISE = "complements.pairs", "complements.pairs_noise"
"""The release, and the deviation of its noise, as long as nothing is made of them."""
MOST_KINDS = 512
"""Ceiling of the kinds in a request."""
USUAL_KINDS, TEXTS_A_KIND = 128, 8
"""So many kinds, or fewer in a small catalogue."""
PASSES = 15
"""Of k-means over the catalogue."""


def kinds_of_catalogue(e: np.ndarray, seed: int) -> np.ndarray:
    """The centres of the kinds of a public catalogue, (kinds, hidden) float32 of unit length: spherical k-means on its texts.

    Kinds by cosine are more alike in size than by distance, and foretell more (Dhillon and Modha, Machine Learning 2001).

    Args:
        e: (items, hidden) centred embeddings of the untrained encoder, unit length.
        seed: of the items that the centres start from.
    """
    count = min(USUAL_KINDS, max(2, len(e) // TEXTS_A_KIND), len(e))
    centres = e[np.random.default_rng(seed).choice(len(e), count, replace=False)].astype(np.float32)
    for _ in range(PASSES):
        kind = kinds_of(e, centres)
        for one in np.unique(kind):  # a kind that has lost all its texts keeps its centre
            mean = e[kind == one].sum(0)
            centres[one] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return centres


def kinds_of(e: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(items,) the kind whose centre has the largest product with each of `e` (items, hidden)."""
    found: np.ndarray = (e.astype(np.float64) @ centres.T.astype(np.float64)).argmax(1)
    return found


def numbers_of(kinds: int) -> int:
    """How many numbers a release over so many kinds has."""
    return kinds * (kinds + 1) // 2


def unpacked(numbers: np.ndarray) -> np.ndarray:
    """The symmetric matrix that `fedrec.privacy.pairs.packed` has made into numbers."""
    size = int(np.sqrt(2 * len(numbers)))
    rows, columns = np.triu_indices(size)
    out = np.zeros((size, size))
    out[rows, columns] = out[columns, rows] = numbers / np.where(rows == columns, 1.0, np.sqrt(2.0))
    return out


@dataclass(frozen=True)
class Complements:
    """What goes with what.

    Attributes:
        centres: (kinds, hidden) of the kinds.
        lift: (kinds, kinds) lift less 1, shrunk, of a kind in the basket (row) and another: 0 where it is bought as by chance.
    """

    centres: np.ndarray
    lift: np.ndarray

    @classmethod
    def from_release(cls, released: np.ndarray, noise: float, centres: np.ndarray, sold: np.ndarray | None) -> Complements:
        """What a released sum says.

        A lift less 1 is taken to be drawn from a normal distribution of mean 0 and variance 1, and C(k, l) to be known up to its
        noise and to what E(k, l) users vary by, who each add at most 1. The posterior mean (Gelman et al., Bayesian Data
        Analysis, section 2.5) is

            (C - E) E / (E^2 + E + noise^2 / 2),    the noise's variance twice that on the diagonal.

        Args:
            released: (numbers,) the sum of merchants' `basket_pairs`, with noise.
            noise: its standard deviation in each number.
            centres: (kinds, hidden).
            sold: (kinds,) how popular each is, as it was released, 0 where it has no text; None where nothing was released.
        """
        pairs = unpacked(released)
        # The noise of a row's sum has about this deviation: a kind below it, or below one user, is as rare as can be said.
        rows = np.maximum(pairs.sum(1), max(1.0, noise * np.sqrt(len(pairs) / 2)))
        shares = rows if sold is None else np.maximum(sold, 1e-9 * sold.sum())
        expected = np.outer(rows, shares / shares.sum())
        variance = expected + noise**2 / 2 * (1 + np.eye(len(pairs)))
        lift = (pairs - expected) * expected / (np.square(expected) + variance)
        return cls(centres, np.maximum(lift, -1).astype(np.float32))

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Complements | None:
        """What a model knows of it; None where nothing was released."""
        return cls(arrays[KINDS], arrays[LIFT]) if LIFT in arrays else None

    def arrays(self) -> Arrays:
        """The same by name, float32."""
        return {KINDS: self.centres, LIFT: self.lift}

    def scores(self, basket: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """How much more often than by chance each candidate's kind is bought with those of a basket, less 1; (m,) float64.

        0 where it goes with the basket as with any other, and for an empty basket.

        Args:
            basket: (n, hidden) embeddings of its items, of the untrained encoder, centred and of unit length.
            candidates: (m, hidden) the same of the candidates.
        """
        if not len(basket):
            return np.zeros(len(candidates))
        with_basket = self.lift[kinds_of(basket, self.centres)].astype(np.float64).mean(0)  # (kinds,)
        found: np.ndarray = with_basket[kinds_of(candidates, self.centres)]
        return found
