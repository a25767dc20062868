"""Words and history of a merchant's own customers: is what they bought last found by a word of it?

Of customers with three baskets at least the last one is hidden. The query is a word of the text of something new in it, one
that `FEWEST` to `MOST` items hold; what of the hidden basket is new and holds the word is what was looked for. Own layer and
popularity here are of the other customers; the blend is that of the folder. As a control the history is that of another customer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_fusions import K, interval
from fedrec.data import Histories
from fedrec.model.towers import log_prior
from fedrec.recommender.asking import WEIGHT, Asking
from fedrec.recommender.contest import HERE, popularity_here
from fedrec.recommender.merchant_ranker import MerchantRanker
from fedrec.recommender.of_merchant import MerchantRecommender
from fedrec.recommender.own_layer import bought_by, choose_kind
from fedrec.recommender.own_model import Placed
from fedrec.recommender.past import Past
from fedrec.recommender.words import Tokeniser

__all__ = ["shoppers"]

FEWEST, MOST, SHORTEST = 10, 400, 3
CUSTOMERS = 300
ANOTHER = "with another customer's history"


def shoppers(folder: Path) -> list[dict[str, Any]]:
    """NDCG@10 of words, of the history, and of both, with and without parts of the person."""
    recommender = MerchantRecommender.load(folder)
    histories = recommender._data.histories.without_searches(len(recommender.catalogue))
    rng = np.random.default_rng(0)
    baskets = [len(np.unique(histories.of(user)[1])) for user in range(len(histories))]
    able = rng.permutation(np.flatnonzero(np.array(baskets) >= 3))[:CUSTOMERS]
    ranks = _without(recommender, histories, able)
    blend, searcher = ranks.blend, recommender._searcher("english")
    people = {
        "with the history": ranks,
        "without popularity": replace(ranks, blend=replace(blend, priors={})),
        "without popularity and own layer": replace(ranks, blend=replace(blend, priors={}, own=0.0)),
    }
    ways = {name: Asking(one, lambda: searcher) for name, one in people.items()}
    nobody = Past(*(np.zeros(0, dtype=np.int64),) * 2)
    found: dict[str, list[float]] = {name: [] for name in ("words", "history", *ways, ANOTHER)}
    words = [_words(text) for text in recommender.catalogue.texts]
    held = Counter(word for some in words for word in some)
    for user in able:
        asked = _asked(histories.take(np.array([user])), words, held, rng)
        if asked is None:
            continue
        past, query, true = asked
        scores = {"words": ways["with the history"].scores([nobody], query)[0], "history": ranks.scores([past])[0]}
        scores |= {name: way.scores([past], query)[0] for name, way in ways.items()}
        other = histories.take(rng.choice(np.setdiff1d(np.arange(len(histories)), able), 1))
        scores[ANOTHER] = ways["with the history"].scores([Past(other.items, other.baskets, other.target)], query)[0]
        for name, value in scores.items():
            value[past.items] = -np.inf
            found[name].append(_ndcg(value, true))
    plain = np.array(found["words"])
    return [
        {"way": name, "mean": float(np.mean(one)), "more": float((np.array(one) - plain).mean()), "users": len(one),
         "interval": interval(np.array(one) - plain), "weight": WEIGHT}
        for name, one in found.items()
    ]  # fmt: skip


def _without(recommender: MerchantRecommender, histories: Histories, users: np.ndarray) -> MerchantRanker:
    """The merchant's ranker as it would be without these customers."""
    ranks, items = recommender._ranks, len(recommender.catalogue)
    others = histories.take(np.setdiff1d(np.arange(len(histories)), users))
    bought = bought_by(others, items)
    layer, every = choose_kind(bought).fit(bought, ranks.blend.strength), np.arange(items)
    priors = {**ranks.part.priors, HERE: log_prior(popularity_here(others, items), 1.0)}
    return replace(ranks, layer=Placed(layer, every, every, items, items), part=replace(ranks.part, priors=priors))


def _asked(
    alone: Histories, words: Sequence[set[str]], held: Counter[str], rng: np.random.Generator
) -> tuple[Past, str, np.ndarray] | None:
    """What was done before the last basket, a word, and what was looked for; None where the basket has nothing new."""
    before = alone.baskets < alone.baskets.max()
    past = Past(alone.items[before], alone.baskets[before], None if alone.target is None else alone.target[before])
    new = np.setdiff1d(alone.items[~before], past.items)
    if not len(new):
        return None
    able = [word for word in sorted(words[int(rng.choice(new))]) if FEWEST <= held[word] <= MOST]
    if not able:
        return None
    query = str(rng.choice(able))
    return past, query, np.array([item for item in new if query in words[item]])


def _words(text: str) -> set[str]:
    return {word for word in Tokeniser("none").words(text) if len(word) >= SHORTEST and word.isalpha()}


def _ndcg(scores: np.ndarray, true: np.ndarray) -> float:
    gains = np.isin(np.argsort(-scores, kind="stable")[:K], true)
    worth = 1 / np.log2(np.arange(2, K + 2))
    return float((gains * worth).sum() / worth[: len(true)].sum())
