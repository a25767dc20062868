"""How a merchant's parts are joined into one score, and how that is chosen on the merchant's own users.

    score(j) = sum_d a_d <u_d, c_j> + sum_p b_p log prior_p(j) + v own(j) / s

`u_d` is the user under pooling decay `d`; `prior_p` a popularity (the merchant's own, the federation's); `own` the own
layer's score, which has no scale of its own, over its standard deviation `s` over the items. The weights are those of
a conditional logit (McFadden 1974) on what choosing users bought next, drawn towards shared defaults by a ridge, so that
few users move them little. What makes users' purchases likely need not rank them best: of the fitted weights, the same with
less popularity or another share of the own layer, and the defaults, those with the best NDCG on the same users are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from fedrec.evaluation.metrics import PerUser
from fedrec.evaluation.protocol import Group, joined, metrics_of
from fedrec.model.ranking import products
from fedrec.model.towers import user_vectors
from fedrec.recommender.own_layer import OwnLayer

__all__ = ["Blend", "Fold", "TextPart", "choose_blend", "held_items", "measure", "own_scores", "scores"]

DECAYS = (0.0, 0.1, 1.0)
"""Pooling decays that are joined: all of the history, the last ten baskets or so, the last one."""
FEWEST = 30
"""Users whose last basket says something, below which nothing is chosen: the shared defaults are the better guess."""
RIDGE = 5.0
"""Weight of the defaults, in users."""
MOST_ITEMS = 800
"""Items beside the true ones among which a choice is fitted: a uniform sample keeps the estimate consistent (McFadden 1978)."""
PRIOR_SHARES, OWN_SHARES = (1.0, 0.5, 0.25, 0.1, 0.0), (1.0, 2.0, 0.0)


@dataclass(frozen=True)
class Blend:
    """The weights of the formula above.

    Attributes:
        pooling: a_d by decay.
        priors: b_p by name.
        own: v; 0 leaves the own layer out.
        strength: of the own layer's smoothing.
        users: how many the choice was made on; 0 for shared defaults.
    """

    pooling: Mapping[float, float]
    priors: Mapping[str, float]
    own: float
    strength: float
    users: int = 0

    def shared(self, priors: float, own: float) -> Blend:
        """With so much of the popularities and of the own layer."""
        return replace(self, priors={name: priors * weight for name, weight in self.priors.items()}, own=own * self.own)


@dataclass(frozen=True)
class TextPart:
    """A federated model over a merchant's catalogue.

    Attributes:
        history: (items, hidden) unit vectors as history.
        candidate: (items, hidden) as candidates.
        priors: (items,) log popularity, by name.
    """

    history: np.ndarray
    candidate: np.ndarray
    priors: Mapping[str, np.ndarray]

    def cosines(self, users: Group, decay: float) -> np.ndarray:
        """(users, items) of `<u_d, c>`."""
        return products(user_vectors(self.history, users.items, users.ages, users.valid, decay), self.candidate)


@dataclass(frozen=True)
class Fold:
    """Users to choose on, and the own layers, by strength, that were fitted without them."""

    users: Group
    layers: Mapping[float, OwnLayer]


def held_items(users: Group) -> csr_array:
    """(users, items) of ones where a user's history holds an item."""
    ones = np.ones(len(users.masked), dtype=np.float32)
    return csr_array((ones, (users.masked[:, 0], users.masked[:, 1])), shape=(len(users.items), len(users.positions)))


def own_scores(layer: OwnLayer, histories: csr_array) -> np.ndarray:
    """(users, items) of `own / s`; zero for a user of whom the layer knows nothing."""
    found = layer.scores(histories)
    found /= np.maximum(found.std(axis=1, keepdims=True), 1e-12)
    return found


def scores(users: Group, part: TextPart, layer: OwnLayer | None, blend: Blend) -> np.ndarray:
    """(users, items) of the formula above."""
    out = np.zeros((len(users.items), len(users.positions)), dtype=np.float32)
    for decay, weight in blend.pooling.items():
        out += np.float32(weight) * part.cosines(users, decay)
    for name, weight in blend.priors.items():
        out += np.float32(weight) * part.priors[name]
    if layer is not None and blend.own:
        out += np.float32(blend.own) * own_scores(layer, held_items(users))
    return out


def measure(users: Group, part: TextPart, layer: OwnLayer | None, blend: Blend, k: int) -> PerUser:
    """Metrics of each user under a blend."""
    return joined([metrics_of(block, scores(block, part, layer, blend), k) for block in users.blocks()])


def choose_blend(folds: Sequence[Fold], part: TextPart, default: Blend, k: int, *, own: bool = True, seed: int = 0) -> Blend:
    """The weights for these users: see the head of this module.

    Args:
        default: what they are drawn towards, and what holds where there are too few users.
        own: whether there is an own layer.
        seed: of the sample of items.
    """
    users = sum(len(fold.users.items) for fold in folds)
    default = replace(default, priors={name: default.priors.get(name, 0.0) for name in part.priors}, own=default.own * own)
    if users < FEWEST:
        return default
    if own:
        default = replace(default, strength=_strength(folds, k))
    default = replace(default, users=users)
    fitted = _fitted(folds, part, default, own, seed)
    others = [fitted.shared(priors, share) for priors in PRIOR_SHARES for share in (OWN_SHARES if own else (1.0,))]
    return _best([default, *others], folds, part, k)


def _strength(folds: Sequence[Fold], k: int) -> float:
    """The smoothing under which the own layer alone ranks best."""

    def ndcg(strength: float) -> float:
        found = [metrics_of(block, fold.layers[strength].scores(held_items(block)), k).ndcg
                 for fold in folds for block in fold.users.blocks()]  # fmt: skip
        return float(np.concatenate(found).mean())

    return max(folds[0].layers, key=ndcg)


def _fitted(folds: Sequence[Fold], part: TextPart, default: Blend, own: bool, seed: int) -> Blend:
    """The conditional logit's weights."""
    decays = sorted({*DECAYS, *default.pooling})
    start = [default.pooling.get(decay, 0.0) for decay in decays] + list(default.priors.values()) + [default.own] * own
    mean = np.array(start, dtype=np.float64)
    tables = [_table(fold, part, decays, default, own, seed) for fold in folds]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = RIDGE / 2 * float(((weights - mean) ** 2).sum()), RIDGE * (weights - mean)
        for features, barred, wanted in tables:
            score = np.tensordot(weights.astype(np.float32), features, 1)
            score[barred] = -np.inf
            score -= score.max(axis=1, keepdims=True)
            chance = np.exp(score)
            total = chance.sum(axis=1, keepdims=True)
            value += float((np.log(total) - (wanted * np.where(barred, 0.0, score)).sum(axis=1, keepdims=True)).sum())
            slope = slope + np.tensordot(features, chance / total - wanted, ([1, 2], [0, 1]))
        return value, slope

    found = minimize(loss, mean, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x.tolist()
    pooling = dict(zip(decays, found, strict=False))
    priors = dict(zip(default.priors, found[len(decays) :], strict=False))
    return replace(default, pooling=pooling, priors=priors, own=found[-1] if own else 0.0)


def _table(
    fold: Fold, part: TextPart, decays: Sequence[float], default: Blend, own: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (features, users, items), what the history holds and what was bought next (users, items), of sampled items."""
    users = fold.users
    shape = (len(users.items), len(users.positions))
    barred, wanted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.float32)
    barred[users.masked[:, 0], users.masked[:, 1]] = True
    wanted[users.relevant[:, 0], users.relevant[:, 1]] = 1.0
    wanted /= wanted.sum(axis=1, keepdims=True)
    sampled = np.random.default_rng(seed).permutation(shape[1])[:MOST_ITEMS]
    kept = np.union1d(sampled, users.relevant[:, 1])
    parts = [part.cosines(users, decay)[:, kept] for decay in decays]
    parts += [np.broadcast_to(part.priors[name][kept], parts[0].shape) for name in default.priors]
    if own:
        parts.append(own_scores(fold.layers[default.strength], held_items(users))[:, kept])
    return np.stack(parts), barred[:, kept], wanted[:, kept]


def _best(blends: Iterable[Blend], folds: Sequence[Fold], part: TextPart, k: int) -> Blend:
    def ndcg(blend: Blend) -> float:
        found = [measure(fold.users, part, fold.layers.get(blend.strength), blend, k).ndcg for fold in folds]
        return float(np.concatenate(found).mean())

    return max(blends, key=ndcg)
