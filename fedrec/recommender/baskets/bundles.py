"""Bundles: sets of two to five items that a merchant's customers buy together.

Frequent sets are found by Apriori (Agrawal and Srikant, VLDB 1994). A set is a bundle where every item belongs to it, which is
to say is bought with the rest of the set so many times more often than by chance,

    lift(S) = min over i in S of  n(S) N / (n(S without i) n(i))

and where at least `FEWEST_CUSTOMERS` customers bought all of it at once. `n` counts baskets, N of them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from efficient_apriori import itemsets_from_transactions

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.recommender.baskets.baskets import Baskets
from fedrec.recommender.reasons.shares import FEWEST_CUSTOMERS

__all__ = ["Bundle", "find_bundles", "title_of"]

LARGEST = 5
WORD = 2
"""Letters that a word has more of than a unit."""
Sets = Mapping[tuple[int, ...], int]


@dataclass(frozen=True)
class Bundle:
    """A set that sells together.

    Attributes:
        item_ids: in the catalogue's order.
        title: made from their texts.
        baskets: how many hold all of it.
        support: their share of all baskets.
        lift: of the item that belongs to it least.
        customers: how many bought all of it at once, each counted once.
    """

    item_ids: tuple[str, ...]
    title: str
    baskets: int
    support: float
    lift: float
    customers: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "item_ids": list(self.item_ids)}


def find_bundles(baskets: Baskets, catalogue: Catalogue, support: float, lift: float, k: int) -> list[Bundle]:
    """The bundles with most baskets beyond chance, those first that most customers bought; none is part of another.

    Args:
        support: least share of the baskets that a set is in; `FEWEST_CUSTOMERS` baskets in any case.
        lift: least.
        k: most bundles.

    Raises:
        InputError: a threshold that means nothing.
    """
    if not 0 < support <= 1:
        raise InputError(f"found {support}", where="support", expected="a share above 0, up to 1")
    if not lift >= 1:
        raise InputError(f"found {lift}", where="lift", expected="at least 1")
    fewest, counts = max(math.ceil(support * len(baskets)), FEWEST_CUSTOMERS), baskets.counts()
    frequent = baskets.bought[:, np.flatnonzero(counts >= fewest)]
    names = np.flatnonzero(counts >= fewest)[frequent.indices]
    joint = [row.tolist() for row in np.split(names, frequent.indptr[1:-1]) if len(row) > 1]
    if len(joint) < fewest:
        return []
    # Single items are counted over all baskets, sets over those that can hold one.
    found, _ = itemsets_from_transactions(joint, fewest / len(joint), max_length=LARGEST)
    sets: dict[tuple[int, ...], int] = {items: count for length in found if length > 1 for items, count in found[length].items()}
    sets |= {(item,): int(counts[item]) for item in np.unique(names).tolist()}
    lifts = {items: _lift(items, sets, len(baskets)) for items in sets if len(items) > 1}
    bundles: list[Bundle] = []
    taken: list[set[int]] = []
    # Larger ones first, so that what is part of one is seen to be.
    for items in sorted(lifts, key=lambda items: (-len(items), -sets[items], items)):
        if lifts[items] < lift or any(other.issuperset(items) for other in taken):
            continue
        if (customers := _customers(baskets, items)) < FEWEST_CUSTOMERS:
            continue
        taken.append(set(items))
        ids, texts = ([column[item] for item in items] for column in (catalogue.item_ids, catalogue.texts))
        count = sets[items]
        bundles.append(Bundle(tuple(ids), title_of(texts), count, count / len(baskets), lifts[items], customers))
    return sorted(bundles, key=lambda one: (-one.customers * math.log(one.lift), one.item_ids))[:k]


def title_of(texts: Sequence[str]) -> str:
    """What all have in common, then what each is called beside it.

    >>> title_of(["red retrospot mug, acme", "pink polkadot mug, acme"])
    'mug: red retrospot + pink polkadot'
    >>> title_of(["ground coffee", "milk, 1 l"])
    'ground coffee + milk'
    """
    titles = [text.split(",")[0].split() for text in texts]
    common = [word for word in titles[0] if all(word in title for title in titles)]
    rest = [" ".join(word for word in title if word not in common) for title in titles]
    shared = " ".join(common)
    # What is only a unit says nothing: `ct`, `12 oz`.
    if all(rest) and any(len(word) > WORD and word.isalpha() for word in common):
        return f"{shared}: {' + '.join(rest)}"
    return " + ".join(" ".join(title) for title in titles)


def _lift(items: tuple[int, ...], sets: Sets, baskets: int) -> float:
    without = ((items[:place] + items[place + 1 :], items[place]) for place in range(len(items)))
    return min(sets[items] * baskets / (sets[rest] * sets[item,]) for rest, item in without)


def _customers(baskets: Baskets, items: tuple[int, ...]) -> int:
    held = np.diff(baskets.bought[:, list(items)].indptr) == len(items)
    return len(np.unique(baskets.owner[held]))
