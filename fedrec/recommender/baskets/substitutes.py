"""Which items would replace one of a basket and not complete it.

Nearness of texts alone does not say: things of one kind are bought together more often than by chance (two colours of a bag, two
flavours of a yoghurt) as well as hardly ever (two sizes of one milk). What tells them apart is whether they were bought together:

    j replaces i  where  cosine(i, j) >= NEAR  and  n_ij + 1 < FEWER (n_i n_j / N + 1)

`n` counts baskets, N of them all. The ones keep two rare items, of which nothing can be said, from being told apart by chance.
On baskets that the counts know nothing of, such pairs come together a fifth as often as independence expects, where there are
enough of them to tell: `docs/baskets.md`. Where no counts are at hand only what is all but the same text counts as a substitute.
"""

from __future__ import annotations

import numpy as np

from fedrec.model.ranking import blocks, products
from fedrec.recommender.baskets.baskets import Baskets

__all__ = ["FEWER", "NEAR", "TWIN", "substitutes"]

NEAR, FEWER, TWIN = 0.6, 0.5, 0.9


def substitutes(vectors: np.ndarray, held: np.ndarray, baskets: Baskets | None) -> np.ndarray:
    """(items,) bool: what would replace one of the held items.

    Args:
        vectors: (items, hidden) unit vectors of the texts, without heads.
        held: (held,) positions of the basket's items.
        baskets: those that were bought here; None where they are not known or may not count.
    """
    found = np.zeros(len(vectors), dtype=bool)
    for rows in blocks(len(held), len(vectors)):
        cosines = products(vectors[held[rows]], vectors)  # (rows, items)
        if baskets is None:
            found |= (cosines >= TWIN).any(axis=0)
        else:
            row, item = np.nonzero(cosines >= NEAR)
            found[item[_rarely(baskets, held[rows][row], item)]] = True
    return found


def _rarely(baskets: Baskets, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(pairs,) bool: who are in one basket hardly ever."""
    counts = baskets.counts()
    most = FEWER * (counts[first] * counts[second] / max(len(baskets), 1) + 1)
    rarely = most > 1
    # Only of pairs that never being together would tell anything of: most items are too rare for that.
    rarely[rarely] = baskets.together(first[rarely], second[rarely]) + 1 < most[rarely]
    return rarely
