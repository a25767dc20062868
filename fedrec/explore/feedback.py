"""What was learned of items by showing them: a Bayesian logistic regression of rewards, with an effect for each item.

    logit P(reward) = place effect + slope m_j + f_j,     f_j = b_j + (1 - r_j) gamma + x_j . beta

`m_j` is what was believed of the item for this person and `r_j` how far it was known (`beliefs`), `x_j` its leading components,
and b_j ~ N(0, D_j) what is its own, D_j being large for an item that is hardly known. `gamma` is what unknown items differ by,
all together: most of a catalogue that nobody bought is not worth trying, and a few tries of some say so of the others. So a new
item learns from its own showings and from its kind's. The posterior is Laplace's normal approximation at the mode (Chapelle and
Li, NeurIPS 2011), found by Newton's steps; the items' own effects are eliminated from each step by their Schur complement, so a
step costs rows x shared^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from fedrec.explore.beliefs import Prior

__all__ = ["Feedback", "Learned", "learn"]

KIND = 0.3
"""Standard deviation of what a whole kind of items may differ by, as a share of the spread of scores."""
LEAST = 0.25
"""The same of the best known item: that it is bought often does not say all of what happens when it is shown."""
LOOSE = 0.01
"""Precision of the place effects, which the data have to tell."""
UNKNOWN = 0.25
"""Precision of what unknown items differ by."""
FIRM = 16.0
"""Precision of the slope around 1: a few clicks must not turn a recommender's order around."""
APART = 50
"""Places with an effect of their own; those further down share the last, or there would be a column for each of them."""
STEPS, SMALLEST, ENOUGH = 20, 1e-3, 1e-3
"""Newton's steps at most, the shortest of them, and the gain in log likelihood under which no other follows."""


@dataclass(frozen=True)
class Feedback:
    """What was shown and what came of it.

    Attributes:
        item: (rows,) positions in the catalogue.
        place: (rows,) from 0.
        believed: (rows,) m of the item for the person it was shown to.
        reward: (rows,) 0 or 1.
    """

    item: np.ndarray
    place: np.ndarray
    believed: np.ndarray
    reward: np.ndarray


@dataclass(frozen=True)
class Learned:
    """The posterior.

    Attributes:
        slope: of what was believed before.
        effect, sd: (items,) of f.
        told: (items,) how much of an item's own uncertainty is gone, 0 to 1.
        kind: (2 + WIDTH,) gamma and beta.
    """

    slope: float
    effect: np.ndarray
    sd: np.ndarray
    told: np.ndarray
    kind: np.ndarray

    def ranked(self, scores: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """(items,) what the places go by that do not explore.

        A score counts as it is until showing the item has told something; the more it has, the more what was believed of the
        item and what was learned take its place.

        Args:
            scores: (items,) of the person.
            mean: (items,) what was believed of them before.
        """
        found: np.ndarray = self.slope * (scores + self.told * (mean - scores)) + self.effect
        return found


def learn(prior: Prior, feedback: Feedback) -> Learned:
    """The posterior after some feedback; `prior` is what was known of the items before it."""
    spread = prior.spread
    place = np.minimum(feedback.place, APART - 1)
    items, places = len(prior.known), int(place.max(initial=-1)) + 1
    own = spread**2 * (1 - prior.known + LEAST**2)  # D
    features = np.concatenate([1 - prior.known[:, None], prior.features], axis=1)  # (items, 2 + WIDTH)
    width = prior.features.shape[1]
    # The columns that all items share: places, what was believed, how unknown the item is, and its components.
    shared = np.zeros((len(feedback.item), places + 1 + features.shape[1]))
    shared[np.arange(len(feedback.item)), place] = 1.0
    shared[:, places] = feedback.believed
    shared[:, places + 1 :] = features[feedback.item]
    centre = np.zeros(shared.shape[1])
    centre[places] = 1.0
    kind = np.append(UNKNOWN, np.full(width, width / (KIND * spread) ** 2))
    precision = np.concatenate([np.full(places, LOOSE), [FIRM], kind])
    weights, effects = centre.copy(), np.zeros(items)
    weights[:places] = -2.0

    def objective(weights: np.ndarray, effects: np.ndarray) -> float:
        score = shared @ weights + effects[feedback.item]
        ridge = float((precision * (weights - centre) ** 2).sum() + (effects**2 / own).sum()) / 2
        return float((feedback.reward * score - np.logaddexp(0, score)).sum()) - ridge

    reached = objective(weights, effects)
    for _ in range(STEPS):
        chance = expit(shared @ weights + effects[feedback.item])
        left, curve = feedback.reward - chance, chance * (1 - chance)
        steep = np.bincount(feedback.item, curve, items) + 1 / own  # (items,)
        cross = _sums(feedback.item, curve[:, None] * shared, items)
        of_items = np.bincount(feedback.item, left, items) - effects / own
        of_shared = shared.T @ left - precision * (weights - centre)
        schur = (shared * curve[:, None]).T @ shared + np.diag(precision) - cross.T @ (cross / steep[:, None])
        step = np.linalg.solve(schur, of_shared - cross.T @ (of_items / steep))
        along = (of_items - cross @ step) / steep
        size, now = 1.0, objective(weights + step, effects + along)
        while now < reached and size > SMALLEST:
            size /= 2
            now = objective(weights + size * step, effects + size * along)
        weights, effects = weights + size * step, effects + size * along
        if now - reached < ENOUGH:
            break
        reached = now
    directions = np.concatenate([np.zeros((items, places + 1)), features], axis=1)
    moved = directions - cross / steep[:, None]
    variance = 1 / steep + np.einsum("is,st,it->i", moved, np.linalg.inv(schur), moved)
    before = own + features[:, 1:] ** 2 @ (1 / kind[1:])  # of the item itself, and not of all unknown ones
    kinds = weights[places + 1 :]
    sd, told = np.sqrt(np.minimum(variance, before + features[:, 0] ** 2 / UNKNOWN)), np.clip(1 - variance / before, 0, 1)
    return Learned(float(weights[places]), effects + features @ kinds, sd, told, kinds)


def _sums(key: np.ndarray, rows: np.ndarray, keys: int) -> np.ndarray:
    """(keys, columns) sums of the rows of each key."""
    return np.stack([np.bincount(key, column, keys) for column in rows.T], axis=1)
