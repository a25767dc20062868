"""How a merchant's basket model is fitted, and how its weights are chosen on baskets with a part hidden.

The weights are those of a conditional logit (McFadden 1974) on what was hidden, drawn towards shared defaults by a ridge, as in
`fedrec.recommender.blend`. A negative one would turn what it weighs into its opposite and counts as zero. Of these weights and
the defaults the better on the same baskets is taken.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedrec.evaluation.protocol import Group, metrics_of
from fedrec.recommender.baskets.baskets import Baskets, cases_of
from fedrec.recommender.baskets.lifts import Lifts
from fedrec.recommender.baskets.model import BasketModel, BasketParts, BasketWeights
from fedrec.recommender.blend import FEWEST, Choices, TextPart, fit_logit, held_items
from fedrec.recommender.own_layer import OwnLayer, Scores, choose_kind

__all__ = ["choose_basket_weights", "fit_baskets"]

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
    weights = choose_basket_weights(known, choosing, part, k, seed)
    kind = choose_kind(everyone.bought)
    layer = kind.fit(everyone.bought, weights.strength)
    return BasketModel(layer, Lifts.fit(everyone.bought, weights.shrinkage), weights)


def choose_basket_weights(known: Baskets, choosing: Baskets, part: TextPart, k: int, seed: int = 0) -> BasketWeights:
    """The weights for these baskets; the shared defaults where they are too few."""
    kind, rng = choose_kind(known.bought), np.random.default_rng(seed)
    default = BasketWeights(strength=kind.strengths[len(kind.strengths) // 2])
    choosing = choosing.joint()
    if len(choosing) < FEWEST or not len(known.joint()):
        return default
    if len(choosing) > MOST:
        choosing = choosing.take(np.sort(rng.permutation(len(choosing))[:MOST]))
    cases, _ = cases_of(choosing, "one", rng)
    layers: dict[float, OwnLayer] = {strength: kind.fit(known.bought, strength) for strength in kind.strengths}
    lifts: dict[float, OwnLayer] = {strength: Lifts.fit(known.bought, strength) for strength in Lifts.strengths}
    counts, nothing = known.counts(), np.zeros(len(part.candidate), dtype=np.float32)
    strength = _best(layers, cases, nothing, k)
    shrinkage = _best(lifts, cases, BasketParts.of(part, layers[strength], lifts[30.0], counts).prior, k)
    parts = BasketParts.of(part, layers[strength], lifts[shrinkage], counts)
    default = replace(default, strength=strength, shrinkage=shrinkage, baskets=len(cases.items))
    found = fit_logit([_choices(parts, block, rng) for block in cases.blocks()], default.values)
    text, nearest, popularity, lift, layer = np.maximum(found, 0.0).tolist()
    fitted = replace(default, text=text, nearest=nearest, popularity=popularity, lifts=lift, layer=layer)
    return max((fitted, default), key=lambda weights: _ndcg(parts, weights, cases, k))


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
