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
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from fedrec.evaluation.metrics import PerUser
from fedrec.evaluation.protocol import Group, joined, metrics_of
from fedrec.model.ranking import products
from fedrec.model.towers import user_vectors
from fedrec.recommender.own_layer import OwnLayer, Scores

__all__ = [
    "FEWEST", "Blend", "Choices", "Fold", "TextPart", "choose_blend", "fit_logit", "held_items", "measure", "own_scores",
    "scores", "spread_of",
]  # fmt: skip

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
        history: (items, hidden) unit vectors as history, and after them those of searches that users' events may be.
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
    """Users to choose on, with the own layers, by strength, and the popularities, by name, that know nothing of them.

    Attributes:
        users: who has something new in the last basket; it may be nobody.
        again: the same users and those whose last basket holds nothing new, with all of it as the truth.
    """

    users: Group
    layers: Mapping[float, OwnLayer]
    priors: Mapping[str, np.ndarray] = field(default_factory=dict)
    again: Group | None = None

    def seen(self, part: TextPart) -> TextPart:
        """A text whose popularities know nothing of these users."""
        return replace(part, priors={name: self.priors.get(name, value) for name, value in part.priors.items()})


def held_items(users: Group) -> csr_array:
    """(users, items) of ones where a user's history holds an item."""
    ones = np.ones(len(users.masked), dtype=np.float32)
    return csr_array((ones, (users.masked[:, 0], users.masked[:, 1])), shape=(len(users.items), len(users.positions)))


def own_scores(layer: Scores, histories: csr_array) -> np.ndarray:
    """(users, items) of `own / s`; zero for a user for whom the layer tells no item from another."""
    found = layer.scores(histories)
    found /= spread_of(found)
    return found


def spread_of(found: np.ndarray) -> np.ndarray:
    """(users, 1) `s` of the own layer's scores (users, items); infinite for a user whose items it does not tell apart."""
    spread = found.std(axis=1, keepdims=True)
    # Below this the items differ by rounding alone, which must not be blown up.
    return np.where(spread > 1e-6 * np.abs(found).max(axis=1, keepdims=True, initial=0.0), spread, np.inf)


@dataclass(frozen=True)
class _Parts:
    """What a blend joins, for some users; every array (users, items), the popularities (items,)."""

    cosines: Mapping[float, np.ndarray]
    priors: Mapping[str, np.ndarray]
    own: np.ndarray | None

    @classmethod
    def of(cls, users: Group, part: TextPart, layer: OwnLayer | None, decays: Iterable[float]) -> _Parts:
        cosines = {decay: part.cosines(users, decay) for decay in decays}
        return cls(cosines, part.priors, None if layer is None else own_scores(layer, held_items(users)))

    def joined(self, blend: Blend, shape: tuple[int, int]) -> np.ndarray:
        out = np.zeros(shape, dtype=np.float32)
        for decay, weight in blend.pooling.items():
            out += np.float32(weight) * self.cosines[decay]
        for name, weight in blend.priors.items():
            out += np.float32(weight) * self.priors[name]
        if self.own is not None and blend.own:
            out += np.float32(blend.own) * self.own
        return out


def scores(users: Group, part: TextPart, layer: OwnLayer | None, blend: Blend) -> np.ndarray:
    """(users, items) of the formula above."""
    parts = _Parts.of(users, part, layer if blend.own else None, blend.pooling)
    return parts.joined(blend, _shape(users))


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
    shares = product(PRIOR_SHARES if part.priors else (1.0,), OWN_SHARES if own else (1.0,))
    others = [fitted.shared(priors, share) for priors, share in shares]
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
    random = np.random.default_rng(seed)
    choices = [
        _choices(block, fold.seen(part), fold.layers[default.strength] if own else None, decays, list(default.priors), random)
        for fold in folds
        for block in fold.users.blocks()
    ]
    found = fit_logit(choices, mean).tolist()
    pooling = dict(zip(decays, found, strict=False))
    priors = dict(zip(default.priors, found[len(decays) :], strict=False))
    return replace(default, pooling=pooling, priors=priors, own=found[-1] if own else 0.0)


@dataclass(frozen=True)
class Choices:
    """What some users could have bought next: for each the items in its sample, and those that it did buy.

    Attributes:
        items: (users, offered) the items, any where `barred`.
        features: (features, users, offered) of theirs.
        barred: (users, offered) where a user has fewer than others.
        wanted: (users, offered) what was bought, rows of sum 1.
    """

    items: np.ndarray
    features: np.ndarray
    barred: np.ndarray
    wanted: np.ndarray

    @classmethod
    def among(cls, users: Group, random: np.random.Generator) -> Choices:
        """A sample of its own for every user, without features: with one for all, what it misses would be on offer only to
        those who bought it.
        """
        shape = _shape(users)
        offered = np.ones(shape, dtype=bool)
        if shape[1] > MOST_ITEMS:
            offered[:] = False
            drawn = random.random(shape, dtype=np.float32).argpartition(MOST_ITEMS)[:, :MOST_ITEMS]
            np.put_along_axis(offered, drawn, True, axis=1)
        if users.past is None:
            offered[users.masked[:, 0], users.masked[:, 1]] = False
        bought = np.zeros(shape, dtype=bool)
        bought[users.relevant[:, 0], users.relevant[:, 1]] = True
        user, item = np.nonzero(offered | bought)
        count = np.bincount(user)
        cells = user, np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        width = (shape[0], int(count.max()))
        items, barred, wanted = np.zeros(width, dtype=np.int64), np.ones(width, dtype=bool), np.zeros(width, dtype=np.float32)
        items[cells], barred[cells], wanted[cells] = item, False, bought[user, item]
        return cls(items, np.zeros((0, *width), dtype=np.float32), barred, wanted / wanted.sum(axis=1, keepdims=True))


def fit_logit(choices: Sequence[Choices], mean: np.ndarray) -> np.ndarray:
    """(features,) the weights of a conditional logit, drawn towards `mean` (features,) by the ridge."""
    found = minimize(_loss, mean, (choices, mean), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return np.asarray(found.x)


def _choices(
    users: Group,
    part: TextPart,
    layer: OwnLayer | None,
    decays: Sequence[float],
    priors: Sequence[str],
    random: np.random.Generator,
) -> Choices:
    """The features of a blend."""
    sample = Choices.among(users, random)
    kept, place = np.unique(sample.items, return_inverse=True)
    of_kept, place = replace(part, candidate=part.candidate[kept]), place.reshape(sample.items.shape)
    features = [np.take_along_axis(of_kept.cosines(users, decay), place, axis=1) for decay in decays]
    features += [part.priors[name][sample.items] for name in priors]
    if layer is not None:
        features.append(np.take_along_axis(own_scores(layer, held_items(users)), sample.items, axis=1))
    return replace(sample, features=np.stack(features))


def _loss(weights: np.ndarray, choices: Sequence[Choices], mean: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log likelihood with the ridge towards `mean`, and its gradient (features,)."""
    value, slope = RIDGE / 2 * float(((weights - mean) ** 2).sum()), RIDGE * (weights - mean)
    for part in choices:
        score = np.tensordot(weights.astype(part.features.dtype), part.features, 1)
        score[part.barred] = -np.inf
        score -= score.max(axis=1, keepdims=True)
        chance = np.exp(score)
        total = chance.sum(axis=1, keepdims=True)
        true = (part.wanted * np.where(part.barred, 0.0, score)).sum(axis=1, keepdims=True)
        value += float((np.log(total) - true).sum())
        slope = slope + np.tensordot(part.features, chance / total - part.wanted, ([1, 2], [0, 1]))
    return value, slope


def _best(blends: Sequence[Blend], folds: Sequence[Fold], part: TextPart, k: int) -> Blend:
    """The first of those with the best NDCG; all have one strength. The products, which cost most, are computed once."""
    decays = {decay for blend in blends for decay in blend.pooling}
    found: list[list[np.ndarray]] = [[] for _ in blends]
    for fold in folds:
        layer = fold.layers.get(blends[0].strength)
        for block in fold.users.blocks():
            parts = _Parts.of(block, fold.seen(part), layer, decays)
            for blend, values in zip(blends, found, strict=True):
                values.append(metrics_of(block, parts.joined(blend, _shape(block)), k).ndcg)
    means = [float(np.concatenate(values).mean()) for values in found]
    return blends[means.index(max(means))]


def _shape(users: Group) -> tuple[int, int]:
    return len(users.items), len(users.positions)
