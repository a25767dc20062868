"""Who is asked for in `benchmarks.reasons`, what is explained, and how it is read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fedrec.data import Histories, load_central
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE
from fedrec.recommender import MerchantRecommender, Recommender
from fedrec.recommender.answers import Ranker
from fedrec.recommender.past import Past
from fedrec.recommender.reasons import reasons_of
from fedrec.recommender.reasons.reasons import HISTORY

__all__ = ["FEWEST", "MOST", "Case", "Subject", "cases_of", "deleted", "seen"]

MOST = 5
"""Items and words that are deleted."""
BEST = 5
"""Items of a user's list that are explained."""
FEWEST = 6
"""Of a history and of a text, so that something is left."""


@dataclass(frozen=True)
class Subject:
    """Who ranks, and for whom.

    Attributes:
        histories: users, items as positions in the ranker's catalogue.
    """

    name: str
    recommender: Recommender | MerchantRecommender
    histories: Histories

    @classmethod
    def parse(cls, text: str) -> Subject:
        """From NAME=FOLDER."""
        name, _, folder = text.partition("=")
        if not folder:
            raise InputError(f"found {text!r}", where="SUBJECT", expected="NAME=FOLDER")
        recommender = Recommender.load(folder)
        if (Path(folder) / MERCHANT_FILE).is_file():
            assert isinstance(recommender, MerchantRecommender)
            return cls(name, recommender, recommender.place.data().histories)
        central = load_central(Path(json.loads((Path(folder) / "site.json").read_text())["federation"]))
        if central.catalogue.item_ids != recommender.catalogue.item_ids:
            raise InputError("its catalogue is not that of its federation", where=folder)
        (histories, *_) = sorted((group.histories for group in central.groups), key=len, reverse=True)
        return cls(name, recommender, histories)

    @cached_property
    def ranker(self) -> Ranker:
        """Who scores."""
        return self.recommender._ranker(None)

    def pasts(self, users: int) -> list[Past]:
        """Of some users who have `FEWEST` items at least; what they searched for is left out."""
        found, histories = list[Past](), self.histories.without_searches(len(self.ranker.catalogue))
        for user in np.random.default_rng(0).permutation(len(self.histories)).tolist():
            one = histories.take(np.array([user]))
            if len(np.unique(one.items)) >= FEWEST:
                found.append(Past(one.items, one.baskets, one.target, one.times))
            if len(found) == users:
                break
        return found


@dataclass(frozen=True)
class Case:
    """A user and the best new items.

    Attributes:
        scores: (catalogue,) -inf for what the history holds.
        items: the best, best first.
        named: for each of them the items of the history, largest share first.
    """

    past: Past
    scores: np.ndarray
    items: list[int]
    named: list[np.ndarray]
    direction: np.ndarray


def cases_of(subject: Subject, pasts: Sequence[Past]) -> list[Case]:
    """The best new items of each user, and the reasons that are shown of them."""
    ranker, found = subject.ranker, []
    for past in pasts:
        scores = ranker.scores([past], None)[0]
        scores[past.items] = -np.inf
        best = [(int(item), float(scores[item])) for item in np.argsort(-scores, kind="stable")[:BEST]]
        reasons = reasons_of(ranker, past, best, None, False)
        ids = [[share.name for share in one.shares if share.kind == HISTORY] for one in reasons]
        named = [ranker.catalogue.index.get_indexer(names) for names in ids]
        if all(len(items) > MOST for items in named):
            found.append(Case(past, scores, [item for item, _ in best], named, reasons[0].direction))
    return found


def probability(scores: np.ndarray, item: int) -> float:
    """Softmax over what is offered."""
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    return float(shifted[item] / shifted.sum())


def seen(scores: np.ndarray, item: int) -> tuple[float, float, float]:
    """Score, rank from 1, probability."""
    return float(scores[item]), float((scores > scores[item]).sum() + 1), probability(scores, item)


def deleted(past: Past, items: np.ndarray, keep: bool) -> Past:
    """The past without these items, or with them alone."""
    kept = np.isin(past.items, items) == keep
    return Past(past.items[kept], past.baskets[kept], None if past.target is None else past.target[kept])
