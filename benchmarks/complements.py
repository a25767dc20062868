"""What goes with a basket, learned privately: one release of basket statistics, or heads that are trained to complete baskets.

    python -m benchmarks.complements OUT federations/demo federations/online_retail --epsilon 1 8

Both at the same epsilon, each with all of it, on the same users of all merchants, beside a popularity histogram that all rows
share. Of each merchant's users a fifth is measured and a tenth chooses the weights with which popularity, text and what was
learned are joined (a conditional logit, pooled over merchants: they stand for consenting users). One item of a measured user's
last basket with two items or more is hidden, and all that the merchant sells but the rest of the basket is ranked. A fifth of the
items is *cold*: in no training basket, histogram or gradient. The noise is that of a sum of all merchants' releases.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from fedrec.aggregation import apply_update, noise_in_update
from fedrec.config import RunConfig
from fedrec.data import Histories, load_merchant, merchant_folders
from fedrec.merchant import read_merchant_file
from fedrec.model import Arrays, Scoring, init_trained, load_encoder, log_prior
from fedrec.model.adapter import CENTRE, HEAD_A, flat, unflat
from fedrec.model.complements import Complements, kinds_of, kinds_of_catalogue, numbers_of
from fedrec.model.towers import centred, role_table
from fedrec.objectives import Examples
from fedrec.privacy import clipped_sum, plan_noise, votes
from fedrec.privacy.noise_plan import gaussian_mu
from fedrec.privacy.pairs import basket_pairs
from fedrec.training.heads import HeadsTrainer

__all__ = ["main"]

MEASURED, CHOOSING, COLD = 0.2, 0.1, 0.2
"""Shares of the users, and of the items."""
HISTOGRAM_NOISE = 2.0
"""Of each merchant's popularity histogram, in every row."""
DELTA = 1e-5
FEW_USERS = 100
"""A merchant with fewer training users is a small one."""
LEAST_LIFT = 0.05
POSITIONS = 2
"""Baskets of a user that a step completes."""
Choice = tuple[np.ndarray, np.ndarray, int]
"""The rest of a basket, what is sold, and the place of the hidden item in it: rows of the pooled catalogue but the last."""


@dataclass(frozen=True)
class Shop:
    """A merchant as the benchmark splits it; items are rows of the pooled catalogue.

    Attributes:
        sold: (items,) ascending.
        rows: (3, events) user, basket and item of those who train, cold items left out.
        choosing, measured: what is asked of the others.
    """

    name: str
    users: int
    sold: np.ndarray
    rows: np.ndarray
    choosing: list[Choice]
    measured: list[Choice]


@dataclass(frozen=True)
class World:
    """All merchants, and what is public of their items."""

    shops: list[Shop]
    e: np.ndarray
    base: Arrays
    trained: Arrays
    cold: np.ndarray
    counts: np.ndarray

    @property
    def prior(self) -> np.ndarray:
        """(items,) log popularity."""
        return log_prior(self.counts, HISTOGRAM_NOISE)


def open_world(federation: Path, config: RunConfig, seed: int, most: int) -> World:
    """Read a federation, split its users, hide items and release the histogram that all rows share."""
    encoder = load_encoder(config.encoder, 0, config.encoder_rank, config.max_tokens, "cpu", config.texts_per_batch)
    generator = np.random.default_rng(seed)
    keys, vectors, read = np.zeros(0, np.uint64), [], []
    for folder in merchant_folders(federation):
        settings = read_merchant_file(folder / "merchant.toml")
        data = load_merchant(folder, settings.data)
        _, first = np.unique(data.catalogue.keys, return_index=True)
        new = first[~np.isin(data.catalogue.keys[first], keys)]
        keys = np.concatenate([keys, data.catalogue.keys[new]])
        if len(new):
            vectors.append(encoder.embed(data.catalogue)[torch.from_numpy(new)])
        place = dict(zip(keys.tolist(), range(len(keys)), strict=True))
        rows = np.array([place[key] for key in data.catalogue.keys.tolist()])
        read.append((settings.name, data.histories, rows))
    pooled = torch.cat(vectors)
    base: Arrays = {CENTRE: pooled.mean(0).numpy()}
    e = centred(pooled, base)
    base[HEAD_A] = np.linalg.eigh((e.T @ e).numpy().astype(np.float64))[1][:, ::-1][:, : config.rank].astype(np.float32).copy()
    cold = generator.random(len(keys)) < COLD
    shops = [split(name, histories, rows, cold, generator, most) for name, histories, rows in read]
    counts = generator.normal(0, HISTOGRAM_NOISE * math.sqrt(len(shops)), len(keys))
    for shop in shops:
        counts += votes(shop.rows[0], shop.rows[2], len(keys))
    trained = init_trained(encoder, True, config.rank)
    return World(shops, e.numpy(), base, trained, cold, counts)


def split(name: str, histories: Histories, rows: np.ndarray, cold: np.ndarray, generator: np.random.Generator, most: int) -> Shop:
    """Who trains, and what is asked of the others: of at most `most` that are measured, and half as many that choose."""
    drawn = generator.random(len(histories))
    user = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    bought = (histories.items < len(rows)) & (histories.target if histories.target is not None else True)
    user, basket, item = user[bought], histories.baskets[bought], rows[histories.items[bought]]
    trains = (drawn[user] >= MEASURED + CHOOSING) & ~cold[item]
    sold = np.unique(rows)

    def asked(low: float, high: float, most: int) -> list[Choice]:
        found = []
        for one in np.flatnonzero((drawn >= low) & (drawn < high)):
            own, its = item[user == one], basket[user == one]
            size = np.array([len(np.unique(own[its == b])) for b in np.unique(its)])
            if (size > 1).any():
                whole = np.unique(own[its == np.unique(its)[size > 1][-1]])
                hidden = int(generator.choice(whole))
                found.append((whole[whole != hidden], sold, int(np.searchsorted(sold, hidden))))
        return found[:most]

    return Shop(
        name, int((drawn >= MEASURED + CHOOSING).sum()), sold, np.stack([user, basket, item])[:, trains],
        asked(MEASURED, MEASURED + CHOOSING, most // 2), asked(0, MEASURED, most),
    )  # fmt: skip


def noise_of_sum(sigma: float, merchants: int, trust: str) -> float:
    """In a sum of all merchants' releases; one may be missing and one collude."""
    return sigma * math.sqrt(merchants if trust == "local" else merchants / max(1, merchants - 2))


def released(world: World, sigma: float, trust: str, seed: int) -> Complements:
    """The statistics of all merchants, with the noise of their sum, and what is made of them."""
    centres = kinds_of_catalogue(world.e, seed)
    kind, noise = kinds_of(world.e, centres), noise_of_sum(sigma, len(world.shops), trust)
    total = np.random.default_rng(seed + 1000).normal(0, noise, numbers_of(len(centres)))
    for shop in world.shops:
        total += basket_pairs(*shop.rows, kind, len(centres))
    sold = np.bincount(kind, np.maximum(world.counts, HISTOGRAM_NOISE), len(centres))
    return Complements.from_release(total, noise, centres, sold)


def completing(shop: Shop, seed: int) -> Examples:
    """Records of the objective: of each of a user's last baskets a random half is the history, and the rest the targets."""
    generator = np.random.default_rng(seed)
    rows = np.unique(shop.rows, axis=1)
    basket = np.unique(rows[:2], axis=1, return_inverse=True)[1].ravel()
    parts = [rows[:, basket == one] for one in range(basket.max(initial=-1) + 1)]
    by_user: dict[int, list[np.ndarray]] = {}
    for part in parts:
        if part.shape[1] > 1:
            by_user.setdefault(int(part[0, 0]), []).append(np.searchsorted(shop.sold, part[2]))
    chosen = [own[-POSITIONS:] for own in by_user.values()]
    length = max(sum(len(one) for one in own) for own in chosen)
    items, weights = np.zeros((len(chosen), length), np.int64), np.zeros((len(chosen), POSITIONS, length), np.float32)
    target, weight, seen = [], [], []
    for record, own in enumerate(chosen):
        used = 0
        for position, one in enumerate(own):
            mixed = generator.permutation(one)
            half = mixed[: max(1, len(mixed) // 2)]
            items[record, used : used + len(half)] = half
            weights[record, position, used : used + len(half)] = 1 / len(half)
            used += len(half)
            wanted = mixed[len(half) :]
            target += [(record, position, int(item)) for item in wanted]
            weight += [1 / (len(own) * len(wanted))] * len(wanted)
            seen += [(record, position, int(item)) for item in half]
    return Examples(items, weights, np.array(target), np.array(weight), np.array(seen))


def heads(world: World, config: RunConfig, scoring: Scoring, trust: str, seed: int) -> Arrays:
    """Heads after the run's rounds on baskets, all users in every step, with the noise of the merchants' sum."""
    examples = [completing(shop, seed) for shop in world.shops]
    trained, state, generator = dict(world.trained), dict[str, np.ndarray](), np.random.default_rng(seed + 2000)
    sigma = plan_noise(config).of("heads")
    noise, lot = noise_of_sum(sigma, len(world.shops), trust), sum(shop.users for shop in world.shops)
    for _ in range(config.rounds):
        total = 0.0
        for shop, records in zip(world.shops, examples, strict=True):
            e, prior = torch.from_numpy(world.e[shop.sold]), world.prior[shop.sold]
            trainer = HeadsTrainer(e, prior, world.base, trained, scoring)
            for gradients in trainer.gradients(records):
                sums = clipped_sum(gradients, config.clip_norm)
                total = total + flat(dict(zip(trainer.arrays(), (one.numpy() for one in sums), strict=True)))
        vector = total + generator.normal(0, noise * config.clip_norm, np.shape(total))
        update = unflat(-config.learning_rate * vector / lot, world.trained)
        spread = noise_in_update(
            steps=1, learning_rate=config.learning_rate, clip_norm=config.clip_norm, noise_multiplier=noise, lot=lot
        )
        moved, state = apply_update(config.server_optimizer, trained, update, state, config.server_learning_rate, spread)
        trained = {**trained, **moved}
    return trained


class Ranker:
    """Popularity, text and what was learned, joined by weights that the choosing users find most likely."""

    def __init__(self, world: World, learned: Complements | Arrays | None, text: bool = True) -> None:
        self.world, self.learned, self.text = world, learned, text
        if isinstance(learned, dict):
            e = torch.from_numpy(world.e)
            self.tables = {role: role_table(e, world.base, learned, role).numpy() for role in ("history", "candidate")}
        if isinstance(learned, Complements):
            self.kind = kinds_of(world.e, learned.centres)
        choices = [choice for shop in world.shops for choice in shop.choosing]
        known = [(self.features(*choice[:2]), choice) for choice in choices]
        known = [(found[barred(choice)], int(barred(choice)[: choice[2]].sum())) for found, choice in known]
        width = known[0][0].shape[1]

        def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = 0.0, np.zeros(width)
            for found, hidden in known:
                scores = found @ at
                scores -= scores.max()
                share = np.exp(scores) / np.exp(scores).sum()
                value -= math.log(max(share[hidden], 1e-300))
                slope -= found[hidden] - share @ found
            return value / len(known), slope / len(known)

        self.weights = minimize(loss, np.ones(width), jac=True, method="L-BFGS-B").x
        self.loss = loss(self.weights)[0]

    def features(self, basket: np.ndarray, sold: np.ndarray) -> np.ndarray:
        """(items, features) of what is sold."""
        world, learned = self.world, self.learned
        columns = [world.prior[sold].astype(np.float64)]
        if self.text:
            mean = world.e[basket].sum(0)
            columns.append(world.e[sold] @ (mean / max(float(np.linalg.norm(mean)), 1e-12)))
        if isinstance(learned, Complements):
            lift = learned.lift[self.kind[basket]].mean(0)[self.kind[sold]]  # as `Complements.scores`, with kinds looked up once
            columns.append(np.log(np.maximum(1 + lift, LEAST_LIFT)))
        elif learned is not None:
            mean = self.tables["history"][basket].sum(0)
            columns.append(self.tables["candidate"][sold] @ (mean / max(float(np.linalg.norm(mean)), 1e-12)))
        return np.column_stack(columns)

    def ranks(self, shop: Shop) -> Iterator[tuple[int, bool]]:
        """Of each measured user the place of the hidden item among all that is sold, from 0, and whether it is cold."""
        for choice in shop.measured:
            scores = self.features(*choice[:2]) @ self.weights
            scores[~barred(choice)] = -np.inf
            yield int((scores > scores[choice[2]]).sum()), bool(self.world.cold[choice[1][choice[2]]])


def barred(choice: Choice) -> np.ndarray:
    """(items,) False for what is in the basket already."""
    out: np.ndarray = ~np.isin(choice[1], choice[0])
    return out


def measure(world: World, ranker: Ranker, seed: int) -> dict[str, Any]:
    """Recall@10 and NDCG@10 with intervals of 95% over users: all, cold targets, users of small merchants."""
    found = [(rank, cold, shop.users < FEW_USERS) for shop in world.shops for rank, cold in ranker.ranks(shop)]
    rank, cold, small = (np.array(column) for column in zip(*found, strict=True))
    out: dict[str, Any] = {"weights": [round(float(w), 3) for w in ranker.weights], "loss": round(ranker.loss, 4)}
    generator = np.random.default_rng(seed)
    for name, which in (("all", rank >= 0), ("cold", cold), ("small", small)):
        own = rank[which]
        if not len(own):
            continue
        drawn = generator.integers(len(own), size=(1000, len(own)))
        for metric, value in (("recall", own < 10.0), ("ndcg", np.where(own < 10, 1 / np.log2(own + 2), 0))):
            low, high = np.quantile(value[drawn].mean(1), [0.025, 0.975])
            out[f"{name} {metric}"] = [round(float(one), 4) for one in (value.mean(), low, high)]
        out[f"{name} users"] = len(own)
    return out


def compare(world: World, options: argparse.Namespace, config: RunConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows, one after the other."""
    seed = options.seed
    yield "popularity", measure(world, Ranker(world, None, text=False), seed)
    text = Ranker(world, None)
    yield "popularity and text", measure(world, text, seed)
    scoring = Scoring(max(float(text.weights[1]), 0.1), 0.0, float(text.weights[0]))
    yield "release, no noise", measure(world, Ranker(world, released(world, 1e-9, "local", seed)), seed)
    for trust, target in itertools.product(options.trust, options.epsilon):
        known = released(world, 1 / gaussian_mu(target, DELTA), trust, seed)
        yield f"release, {trust}, epsilon {target:g}", measure(world, Ranker(world, known), seed)
    for trust, target in itertools.product(options.trust, options.heads_epsilon):
        at = config.model_copy(update={"epsilon": target, "delta": DELTA, "histogram_share": 0.0})
        trained = heads(world, at, scoring, trust, seed)
        yield f"heads, {trust}, epsilon {target:g}", measure(world, Ranker(world, trained), seed)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for a file of rows for each federation")
    parser.add_argument("federations", type=Path, nargs="+")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 8.0], help="of the release")
    parser.add_argument(
        "--heads-epsilon", type=float, nargs="*", default=[1.0, 8.0], help="of the heads, which take minutes each"
    )
    parser.add_argument("--trust", nargs="+", default=["local", "secure-aggregation"])
    parser.add_argument("--users", type=int, default=400, help="most measured users of a merchant; half as many choose")
    parser.add_argument("--rounds", type=int, default=18, help="of the heads")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = RunConfig(rounds=options.rounds, encoder_layers=0)
    options.out.mkdir(parents=True, exist_ok=True)
    for federation in options.federations:
        world = open_world(federation, config, options.seed, options.users)
        with open(options.out / f"{federation.name}-{options.seed}.jsonl", "w", encoding="utf-8") as file:
            for name, found in compare(world, options, config):
                file.write(json.dumps({"row": name, **found}) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
