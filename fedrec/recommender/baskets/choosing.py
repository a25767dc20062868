"""How a merchant's basket model is fitted, and how its weights are chosen on baskets with a part hidden.

The weights are those of a conditional logit (McFadden 1974) on what was hidden, drawn towards shared defaults by a ridge, as in
`fedrec.recommender.blend`. A negative one would turn what it weighs into its opposite and counts as zero. Of these weights and
the defaults the better on the same baskets is taken. So is the better of several texts, each under weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from fedrec.evaluation.protocol import Group, metrics_of
from fedrec.model.ranking import products
from fedrec.model.towers import user_vectors
from fedrec.recommender.baskets.baskets import Baskets, cases_of
from fedrec.recommender.baskets.lifts import Lifts
from fedrec.recommender.baskets.model import BasketModel, BasketParts, BasketWeights
from fedrec.recommender.blend import FEWEST, Choices, TextPart, fit_logit, held_items
from fedrec.recommender.own_layer import OwnLayer, Scores, choose_kind

__all__ = ["ChosenText", "choose_basket_weights", "choose_text", "fit_baskets", "model_under"]

MOST = 600
"""Baskets on which a choice is made: more of them cost time and change little."""


def fit_baskets(
    everyone: Baskets, known: Baskets, choosing: Baskets, part: TextPart, k: int, seed: int = 0
) -> BasketModel | None:
    """The model of all baskets, under weights chosen on those that the layers of the choice know nothing of.

    Args:
        known, choosing: baskets of the customers who train, and of those who choose.
        part: the text.

    Returns:
        None where nobody has ever bought two things at once: nothing goes with anything.
    """
    if not len(everyone.joint()):
        return None
    return model_under(choose_basket_weights(known, choosing, part, k, seed), everyone)


def model_under(weights: BasketWeights, everyone: Baskets, version: str | None = None, by_hand: bool = False) -> BasketModel:
    """The model of these baskets under weights that were chosen; see `BasketModel`."""
    layer = choose_kind(everyone.bought).fit(everyone.bought, weights.strength)
    return BasketModel(layer, Lifts.fit(everyone.bought, weights.shrinkage), weights, version, by_hand)


def choose_basket_weights(known: Baskets, choosing: Baskets, part: TextPart, k: int, seed: int = 0) -> BasketWeights:
    """The weights for these baskets; the shared defaults where they are too few."""
    return choose_text(known, choosing, {None: part}, k, seed).weights


@dataclass(frozen=True)
class ChosenText:
    """Which text baskets are completed by.

    Attributes:
        version: whose it is, None for that of what ranks.
        weights: beside it.
        compared: NDCG by version; empty where there are too few baskets.
    """

    version: str | None
    weights: BasketWeights
    compared: dict[str | None, float]


def choose_text(
    known: Baskets, choosing: Baskets, texts: Mapping[str | None, TextPart], k: int, seed: int = 0, stays: str | None = None
) -> ChosenText:
    """The best of these texts on baskets with one item hidden.

    Where under `FEWEST` baskets are there to choose on, no weight is chosen, and the texts alone are told apart on those of
    everybody: who trains favours what was trained on them, but can tell one that is spoilt.

    Args:
        stays: which one is taken where even those are too few.
    """
    kind, rng = choose_kind(known.bought), np.random.default_rng(seed)
    default = BasketWeights(strength=kind.strengths[len(kind.strengths) // 2])
    choosing = choosing.joint()
    few = len(choosing) < FEWEST or not len(known.joint())
    if few:
        everyone = known.joint()
        if len(texts) == 1 or len(everyone) < FEWEST:
            return ChosenText(stays if stays in texts else next(iter(texts)), default, {})
        choosing = everyone
    if len(choosing) > MOST:
        choosing = choosing.take(np.sort(rng.permutation(len(choosing))[:MOST]))
    cases, _ = cases_of(choosing, "one", rng)
    if few:
        found = {name: _ndcg_of_text(part, cases, k) for name, part in texts.items()}
        return ChosenText(max(found, key=lambda name: found[name]), default, found)
    layers: dict[float, OwnLayer] = {strength: kind.fit(known.bought, strength) for strength in kind.strengths}
    lifts: dict[float, OwnLayer] = {strength: Lifts.fit(known.bought, strength) for strength in Lifts.strengths}
    counts, nothing = known.counts(), np.zeros(known.bought.shape[1], dtype=np.float32)
    strength = _best(layers, cases, nothing, k)
    prior = BasketParts.of(next(iter(texts.values())), layers[strength], lifts[30.0], counts).prior
    shrinkage = _best(lifts, cases, prior, k)
    default = replace(default, strength=strength, shrinkage=shrinkage, baskets=len(cases.items))
    entered = {}
    for name, part in texts.items():
        parts = BasketParts.of(part, layers[strength], lifts[shrinkage], counts)
        entered[name] = _weights(parts, default, cases, k, deepcopy(rng))
    best = max(entered, key=lambda name: entered[name][0])
    return ChosenText(best, entered[best][1], {name: ndcg for name, (ndcg, _) in entered.items()})


def _weights(
    parts: BasketParts, default: BasketWeights, cases: Group, k: int, rng: np.random.Generator
) -> tuple[float, BasketWeights]:
    """The better of the fitted weights and the defaults, after its NDCG."""
    found = fit_logit([_choices(parts, block, rng) for block in cases.blocks()], default.values)
    text, nearest, popularity, lift, layer = np.maximum(found, 0.0).tolist()
    fitted = replace(default, text=text, nearest=nearest, popularity=popularity, lifts=lift, layer=layer)
    return max(((_ndcg(parts, weights, cases, k), weights) for weights in (fitted, default)), key=lambda one: one[0])


def _ndcg_of_text(part: TextPart, cases: Group, k: int) -> float:
    found = []
    for block in cases.blocks():
        users = user_vectors(part.history, block.items, block.ages, block.valid, 0.0)
        found.append(metrics_of(block, products(users, part.candidate), k).ndcg)
    return float(np.concatenate(found).mean())


def _best(layers: dict[float, OwnLayer], cases: Group, beside: np.ndarray, k: int) -> float:
    """The smoothing under which a layer ranks best, added to something (items,)."""

    def ndcg(layer: Scores) -> float:
        found = [metrics_of(block, layer.scores(held_items(block)) + beside, k).ndcg for block in cases.blocks()]
        return float(np.concatenate(found).mean())

    return max(layers, key=lambda strength: ndcg(layers[strength]))


def _choices(parts: BasketParts, block: Group, rng: np.random.Generator) -> Choices:
    sample, found = Choices.among(block, rng), parts.features(held_items(block))
    return replace(sample, features=np.stack([np.take_along_axis(one, sample.items, axis=1) for one in found]))


def _ndcg(parts: BasketParts, weights: BasketWeights, cases: Group, k: int) -> float:
    found = [metrics_of(block, parts.scores(weights, held_items(block)), k).ndcg for block in cases.blocks()]
    return float(np.concatenate(found).mean())
