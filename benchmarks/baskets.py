"""Baskets with a part hidden: what goes with the rest, against popularity, item-kNN, association rules and text alone.

    python -m benchmarks.baskets OUT online_retail=FOLDER demo=FOLDER [--most 60]

FOLDER is a federation folder; each of its merchants is alone: untrained text, own baskets, nothing received. Customers are
split by a hash: some choose (smoothing and weights of ours, smoothing of item-kNN, support of the rules), others are
measured, all others are fitted on. Who is measured here had no part in anything that the model's form and constants were
found on. A tenth of the items that were sold are *new*: taken out of every basket but those that hide one of them.

    warm, one     one item hidden that others bought; all items ranked
    warm, half    half of the basket hidden, as far as others bought it
    new, shelf    a new item hidden; ranked among the items that nobody bought yet
    new, all      the same, among all items

Metrics are means over customers of the means over their baskets, four of each at most, brackets 95% bootstrap intervals over
customers. A *substitute* in a list is an item whose text has a cosine of .6 or more with one of the basket and that nobody,
measured or not, ever had in a basket with it. Writes OUT/baskets.md and OUT/baskets.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from benchmarks.baskets_rule import rule_pairs, rule_table
from benchmarks.baskets_tables import tables
from benchmarks.measure import environment
from fedrec.cli.terminal import err, quiet_libraries, quiet_models
from fedrec.data import Histories
from fedrec.data.roles import UserShares, roles_of
from fedrec.evaluation import lists_of
from fedrec.evaluation.protocol import Group, metrics_of
from fedrec.evaluation.repeats import evaluate_repeats, frequencies
from fedrec.recommender.baskets import BasketModel, BasketParts, Baskets, fit_baskets, substitutes
from fedrec.recommender.baskets.baskets import Hidden, cases_of
from fedrec.recommender.blend import TextPart, held_items
from fedrec.recommender.contest import users_as_group
from fedrec.recommender.frequency import SHARED
from fedrec.recommender.item_knn import ItemKnn
from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["main"]

K, EACH, LENGTH = 10, 4, 50
NEAR = 0.6
KEY, MEASURED_KEY = b"k" * 32, b"m" * 32
SUPPORTS = (2, 3, 5, 10)
BELOW = np.float32(-1e6)
Score = Callable[[Group], np.ndarray]
"""From cases to (baskets, items)."""


@dataclass(frozen=True)
class Shop:
    """A merchant's baskets by what they are for.

    Attributes:
        everyone: all of them, to tell what was never bought together.
        new: (items,) bool, the tenth that is taken out of `fitted` and `choosing`.
    """

    name: str
    everyone: Baskets
    fitted: Baskets
    choosing: Baskets
    measured: Baskets
    histories: Histories
    users: np.ndarray
    text: TextPart
    new: np.ndarray


def shop_of(folder: Path, most: int) -> Shop:
    """A merchant's folder, split."""
    place = MerchantPlace(folder)
    data = place.data()
    histories, items, rng = data.histories.without_searches(len(data.catalogue)), len(data.catalogue), np.random.default_rng(0)
    first = roles_of(histories.user_ids, UserShares(choose=0.15, measure=0.25), KEY)
    second = roles_of(histories.user_ids, UserShares(choose=0.0, measure=0.4), MEASURED_KEY)
    measured = np.intersect1d(first.train, second.measure)
    fitting = np.setdiff1d(np.arange(len(histories)), np.union1d(measured, first.choose))
    fitted, choosing, held = (Baskets.of(histories.take(users), items) for users in (fitting, first.choose, measured))
    sold = np.flatnonzero(fitted.counts())
    new = np.zeros(items, dtype=bool)
    new[rng.permutation(sold)[: len(sold) // 10]] = True
    text = place.plain(data.catalogue, fitted.counts().astype(np.float32))
    few = held.joint().take(_few_of_each(held.joint().owner, rng))
    few = few.take(few.owner < most) if most else few
    return Shop(
        folder.name, Baskets.of(histories, items), without(fitted, new), without(choosing, new), few,
        histories, measured, text, new,
    )  # fmt: skip


def _few_of_each(owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of up to `EACH` baskets of each customer."""
    order = np.lexsort((rng.random(len(owner)), owner))
    count = np.bincount(owner)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return np.sort(order[place < EACH])


def without(baskets: Baskets, gone: np.ndarray) -> Baskets:
    """The same baskets without some items, (items,) bool; what is empty then is none."""
    bought = baskets.bought.copy()
    bought.data[gone[bought.indices]] = 0
    bought.eliminate_zeros()
    left = np.diff(bought.indptr) > 0
    return Baskets(bought[left], baskets.owner[left])


class Rules:
    """Association rules from one item to another: the largest confidence of those that the basket fires, then popularity."""

    def __init__(self, baskets: Baskets, support: int) -> None:
        counts, together = baskets.counts(), (baskets.bought.T @ baskets.bought).tocsr()
        rows = np.repeat(np.arange(len(counts)), np.diff(together.indptr))
        kept = (together.data >= support) & (rows != together.indices)
        value = (together.data / np.maximum(counts[rows], 1))[kept]
        self.confidence = csr_array((value, (rows[kept], together.indices[kept])), shape=together.shape)
        self.popularity = 1e-6 * counts / max(counts.max(), 1)

    def scores(self, held: csr_array) -> np.ndarray:
        """(baskets, items)."""
        found = np.zeros(held.shape)
        for row, (start, stop) in enumerate(zip(held.indptr[:-1], held.indptr[1:], strict=True)):
            found[row] = self.confidence[held.indices[start:stop]].max(axis=0).toarray().ravel()
        return found + self.popularity


def ways(shop: Shop, model: BasketModel, parts: BasketParts) -> tuple[dict[str, Score], dict[str, Any]]:
    """Each way to score cases, everything chosen on the choosing customers; and what was chosen."""
    fitted, text = shop.fitted, shop.text
    cases, _ = cases_of(shop.choosing.joint(), "one", np.random.default_rng(0))

    def chosen(layers: Mapping[float, Any]) -> float:
        def ndcg(key: float) -> float:
            scores = [metrics_of(block, layers[key].scores(held_items(block)), K).ndcg for block in cases.blocks()]
            return float(np.concatenate(scores).mean())

        return max(layers, key=ndcg)

    neighbours = {strength: ItemKnn.fit(fitted.bought, strength) for strength in (1.0, *ItemKnn.strengths)}
    rules = {float(support): Rules(fitted, support) for support in SUPPORTS}
    nearest, rule = chosen(neighbours), chosen(rules)
    counts = fitted.counts()

    def own(block: Group, held_back: bool) -> np.ndarray:
        found = parts.scores(model.weights, held_items(block))
        if held_back:
            held = held_items(block)
            for row, (start, stop) in enumerate(zip(held.indptr[:-1], held.indptr[1:], strict=True)):
                found[row, substitutes(text.candidate, held.indices[start:stop], fitted)] += BELOW
        return found

    found: dict[str, Score] = {
        "popularity": lambda block: np.broadcast_to(counts, (len(block.items), len(counts))),
        "item-kNN": lambda block: neighbours[nearest].scores(held_items(block)),
        "association rules": lambda block: rules[rule].scores(held_items(block)),
        "text alone": lambda block: text.cosines(block, 0.0),
        "own baskets, nothing held back": partial(own, held_back=False),
        "own baskets": partial(own, held_back=True),
    }
    return found, {"item-kNN": nearest, "rules": rule, "own": model.said}


def measure(shop: Shop, model: BasketModel, parts: BasketParts) -> dict[str, Any]:
    """(customers,) means of one merchant, by case, way and metric."""
    found, said = ways(shop, model, parts)
    fresh = shop.fitted.counts() == 0
    kinds: dict[str, tuple[Hidden, np.ndarray, Baskets, bool]] = {
        "warm, one": ("one", ~fresh, without(shop.measured, shop.new), False),
        "warm, half": ("half", ~fresh, without(shop.measured, shop.new), False),
        "new, shelf": ("one", shop.new, shop.measured, True),
        "new, all": ("one", shop.new, shop.measured, False),
    }
    out: dict[str, Any] = {"merchant": shop.name, "chosen": said, "metrics": {}, "substitutes": {}}
    together = (shop.everyone.bought.T @ shop.everyone.bought).astype(bool).tocsr()
    for kind, (hidden, among, baskets, shelf) in kinds.items():
        cases, rows = cases_of(baskets, hidden, np.random.default_rng(1), among)
        if not len(rows):
            continue
        owner = baskets.owner[rows]
        scores: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in found}
        alike: dict[str, list[np.ndarray]] = {name: [] for name in found}
        for block in cases.blocks():
            for name, score in found.items():
                values = np.where(fresh, score(block), BELOW) if shelf else score(block)
                metrics = metrics_of(block, values, K)
                scores[name].append({"recall": metrics.recall, "ndcg": metrics.ndcg, "hr": metrics.hr})
                if kind == "warm, one":
                    alike[name].append(_substitutes(lists_of(block, values, K), block, shop.text.candidate, together))
        out["metrics"][kind] = {
            name: {metric: _by_customer(np.concatenate([one[metric] for one in some]), owner) for metric in some[0]}
            for name, some in scores.items()
        }
        if kind == "warm, one":
            out["substitutes"] = {name: _by_customer(np.concatenate(some), owner) for name, some in alike.items()}
    return out


def _by_customer(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    customers, place = np.unique(owner, return_inverse=True)
    found: np.ndarray = np.bincount(place, weights=values, minlength=len(customers)) / np.bincount(place)
    return found


def _substitutes(lists: np.ndarray, block: Group, vectors: np.ndarray, together: csr_array) -> np.ndarray:
    """(baskets,) share of each list that is near an item of the basket and was never in a basket with it."""
    held, found = held_items(block), np.zeros(len(lists))
    for row, items in enumerate(lists):
        of = held.indices[held.indptr[row] : held.indptr[row + 1]]
        near = vectors[of] @ vectors[items].T >= NEAR
        found[row] = (near & ~together[of][:, items].toarray()).any(axis=0).mean()
    return found


def next_baskets(shop: Shop, model: BasketModel, parts: BasketParts) -> dict[str, dict[str, np.ndarray]]:
    """(customers,) recall of whole last baskets: what a customer buys again and what is new."""
    group = users_as_group(shop.histories, shop.users, len(shop.new), LENGTH, repeats=True)
    if group is None:
        return {}
    counts = shop.fitted.counts()

    def goes_with(block: Group) -> np.ndarray:
        """What goes with the last basket before."""
        last = np.nonzero(block.valid & (block.ages == 0))
        ones = np.ones(len(last[0]), dtype=np.float32)
        held = csr_array((ones, (last[0], block.items[last])), shape=(len(block.items), len(counts)))
        held.data[:] = 1.0
        return parts.scores(model.weights, held)

    def frequency(block: Group) -> np.ndarray:
        assert block.past is not None
        shape = (len(block.items), len(counts))
        found = frequencies(block.past, shape, SHARED.decay)
        found[block.past[:, 0], block.past[:, 1]] += 1
        return found + 1e-6 * counts / counts.max()

    def both(block: Group) -> np.ndarray:
        assert block.past is not None
        return goes_with(block) + SHARED.scores(block.past, (len(block.items), len(counts)))

    rows: dict[str, Score] = {
        "global frequency": lambda block: np.broadcast_to(counts, (len(block.items), len(counts))),
        "personal frequency": frequency,
        "goes with the last basket": goes_with,
        "the same + personal frequency": both,
    }
    out = {}
    for name, score in rows.items():
        users = evaluate_repeats(((block, score(block)) for block in group.blocks()), K)
        metrics = {"recall": users.metrics.recall, "ndcg": users.metrics.ndcg, "hr": users.metrics.hr}
        out[name] = metrics | {"repeat recall": users.repeat, "explore recall": users.explore}
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--most", type=int, default=0, help="customers of each merchant that are measured; all by default")
    arguments = parser.parse_args()
    quiet_libraries()
    quiet_models()
    found: dict[str, Any] = {"environment": environment(), "sets": {}}
    for name, _, folder in (one.partition("=") for one in arguments.sets):
        merchants, again, pairs = [], [], []
        for path in sorted((Path(folder) / "merchants").iterdir()):
            shop = shop_of(path, arguments.most)
            if not len(shop.measured):
                continue
            model = fit_baskets(shop.fitted, shop.fitted, shop.choosing, shop.text, K)
            if model is None:
                continue
            parts = BasketParts.of(shop.text, model.layer, model.lifts, shop.fitted.counts())
            merchants.append(measure(shop, model, parts))
            again.append(next_baskets(shop, model, parts))
            pairs.append(rule_pairs(shop.fitted, shop.choosing, shop.text.candidate))
            err.print(f"{name}: {path.name}, {len(shop.measured):,} baskets measured")
        found["sets"][name] = {"rule": rule_table(pairs), **tables(merchants, again)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"## {name}\n\n{one['markdown']}\n\n{one['rule']}\n" for name, one in found["sets"].items())
    (arguments.out / "baskets.md").write_text(text, encoding="utf-8")
    (arguments.out / "baskets.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
