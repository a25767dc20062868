"""Recommending to one customer at a merchant with everything on, beside the same list made the obvious way, in one run.

    python -m benchmarks.one_user

5,000 items, 4,000 users, an EASE layer, federated text under three poolings, two popularities; the list is filtered by category,
price and stock, may hold what was bought before, and is diverse. The obvious way scores with whole matrices in float64, filters a
table in pandas, sorts everything, and picks by maximal marginal relevance from all that is left. Both are warm, on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.clusters import clustered
from benchmarks.measure import Way, alternate, options, report
from benchmarks.own_layer import Size, purchases
from fedrec.data import Catalogue, Histories, ItemDetails, MerchantData
from fedrec.model import log_prior
from fedrec.recommender.answers import Answer, Person, Wish, answer_many
from fedrec.recommender.asking import Asking
from fedrec.recommender.blend import Blend, TextPart
from fedrec.recommender.ease import Ease
from fedrec.recommender.frequency import SHARED
from fedrec.recommender.merchant_ranker import MerchantRanker
from fedrec.recommender.own_model import OwnModel
from fedrec.recommender.selection import Filter
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

__all__ = ["main"]

ITEMS, USERS, WIDTH, LENGTH, HISTORY, K, DIVERSITY = 5_000, 4_000, 384, 50, 30, 10, 0.3
BLEND = Blend({0.0: 1.0, 0.1: 3.0, 1.0: 1.0}, {"own": 0.5, "federation": 0.5}, 0.3, 100.0, 600)


@dataclass(frozen=True)
class Shop:
    """A merchant and what is asked of it."""

    ranker: MerchantRanker
    table: pd.DataFrame
    person: Person
    wish: Wish


def shop() -> Shop:
    """Synthetic items with Zipf popularity; the customer has bought thirty times."""
    rng = np.random.default_rng(0)
    bought = purchases(Size(Ease.kind, USERS, ITEMS, 30.0, (0.0, 0.0)))
    table = pd.DataFrame({
        "item_id": [f"i{number}" for number in range(ITEMS)], "title": [f"item {number}" for number in range(ITEMS)],
        "category": rng.choice(["kitchen", "garden", "toys", "books"], ITEMS), "price": rng.lognormal(2.5, 0.8, ITEMS).round(2),
    })  # fmt: skip
    catalogue = Catalogue.from_table(table)
    vectors, _ = clustered(ITEMS, WIDTH)
    counts = np.asarray(bought.sum(axis=0)).ravel().astype(np.float32)
    part = TextPart(vectors, vectors, {"own": log_prior(counts, 1.0), "federation": log_prior(counts + 1, 1.0)})
    layer = Ease.fit(bought, BLEND.strength)
    placed = OwnModel(layer, catalogue.item_ids, BLEND, None, SHARED, {}).placed(catalogue)
    nobody = Histories((), np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    data = MerchantData(catalogue, nobody, details=ItemDetails.from_table(table))
    ranker = MerchantRanker(
        data, part, placed, counts, BLEND, frequency=SHARED, length=LENGTH, said=lambda _: vectors[:1], source="benchmark"
    )
    items = rng.choice(ITEMS, HISTORY, p=counts / counts.sum())
    stock = tuple(table["item_id"][rng.random(ITEMS) < 0.8])
    wanted = Filter(category=("kitchen", "toys"), price_min=3.0, price_max=60.0, only=stock)
    asking = Asking(ranker, lambda: Searcher(catalogue, BM25Index(catalogue.texts, Tokeniser()), vectors, lambda _: vectors[:1]))
    return Shop(asking, table, Person([f"i{item}" for item in items]), Wish(K, filter=wanted, repeats=True, diversity=DIVERSITY))


def ours(made: Shop) -> Answer:
    """The answer."""
    return answer_many(made.ranker, [made.person], made.wish)[0]


def obvious(made: Shop, weights: np.ndarray) -> list[str]:
    """The ids of the same list, in its order.

    Args:
        weights: (items, items) of the own layer, float64.
    """
    ranker, wish, table = made.ranker, made.wish, made.table
    history = [int(name[1:]) for name in made.person.history or ()]
    vectors, ages = ranker.part.candidate.astype(np.float64), np.arange(len(history))[::-1]
    scores = np.zeros(ITEMS)
    for decay, weight in BLEND.pooling.items():
        pooled = np.exp(-decay * ages) @ vectors[history]
        scores += weight * vectors @ (pooled / np.linalg.norm(pooled))
    for name, weight in BLEND.priors.items():
        scores += weight * ranker.part.priors[name]
    held = np.zeros(ITEMS)
    held[history] = 1
    own = held @ weights
    scores += BLEND.own * own / own.std()
    again = np.zeros(ITEMS)
    np.add.at(again, history, np.exp(-SHARED.decay * ages))
    scores += SHARED.weight * np.log1p(again)
    wanted = wish.filter
    kept = table[
        table["category"].isin(wanted.category) & table["price"].between(wanted.price_min, wanted.price_max)
        & table["item_id"].isin(wanted.only)
    ].index.to_numpy()  # fmt: skip
    best = kept[np.argsort(-scores[kept])][:50]
    relevance = (scores[best] - scores[best].min()) / np.ptp(scores[best])
    picked: list[int] = []
    while len(picked) < K:
        near = (vectors[best] @ vectors[picked].T).max(axis=1) if picked else np.zeros(len(best))
        value = (1 - DIVERSITY) * relevance - DIVERSITY * near
        value[np.isin(best, picked)] = -np.inf
        picked.append(int(best[value.argmax()]))
    return [f"i{item}" for item in picked]


def main() -> None:
    """Print the table."""
    parser = options(__doc__, repeats=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = shop()
    layer = made.ranker.layer
    assert layer is not None and isinstance(layer.layer, Ease)
    weights = np.zeros((ITEMS, ITEMS))
    weights[np.ix_(layer.layer.rows, layer.layer.rows)] = layer.layer.weights
    same = [name for name, _ in ours(made).items] == obvious(made, weights)
    ways: dict[str, Way] = {"ours": lambda: ours(made), "obvious": lambda: obvious(made, weights)}
    seconds = alternate(ways, args.repeats)
    found: dict[str, Any] = {"items": ITEMS, "users": USERS, "same list": same, "seconds": seconds}
    rows = ["| way | ms for one customer | times faster |", "|---|---|---|"]
    rows += [f"| {name} | {1e3 * value:.1f} | {seconds['obvious'] / value:.1f} |" for name, value in seconds.items()]
    fast = seconds["ours"] < 0.02
    rows.append(f"\nBoth make the same list: {'yes' if same else 'no'}; under 20 ms: {'yes' if fast else 'no'}.")
    report(found, "\n".join(rows), args.json)


if __name__ == "__main__":
    main()
