"""The scoring under which what public users bought is most likely: the one that merchants train under.

    P(j) = exp(tau <u, c_j> + w log prior(j)) / sum over the items that the history does not hold

A softmax that is far from the probabilities it stands for has gradients that mend its scale instead of its directions. `tau`
and `w` are those of a conditional logit (McFadden 1974, section 2), which is concave in both; `decay` is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fedrec.evaluation.protocol import DECAYS, EvaluationSet, Group
from fedrec.model.ranking import products
from fedrec.model.towers import Scoring, log_prior, user_vectors

__all__ = ["FEWEST", "fit_scoring", "mean_loss"]

FEWEST = 30
"""Users under which nothing is fitted."""
MOST_FLOATS = 20_000_000
"""Bound on users times items: the first users that fit into it are enough for three numbers."""
TEMPERATURES, PRIOR_WEIGHTS = (1.0, 30.0), (0.0, 2.0)
"""Ranges: further out the few users that are fitted on say nothing for certain."""


@dataclass(frozen=True)
class _Choices:
    """Users of one block: cosines (users, items), log prior (items,), what is `barred`, and what was `wanted`, rows of sum 1."""

    cosines: np.ndarray
    prior: np.ndarray
    barred: np.ndarray
    wanted: np.ndarray

    def loss(self, temperature: float, weight: float) -> tuple[float, np.ndarray]:
        """Negative log likelihood, summed over the users, and its gradient by both."""
        score = np.float32(temperature) * self.cosines + np.float32(weight) * self.prior
        score[self.barred] = -np.inf
        score -= score.max(axis=1, keepdims=True)
        chance = np.exp(score)
        total = chance.sum(axis=1, keepdims=True)
        value = np.log(total).sum(dtype=np.float64) - (self.wanted * np.where(self.barred, 0, score)).sum(dtype=np.float64)
        off = chance / total - self.wanted
        return float(value), np.array([np.vdot(off, self.cosines), off.sum(axis=0) @ self.prior], dtype=np.float64)


def fit_scoring(
    dataset: EvaluationSet,
    history: np.ndarray,
    candidate: np.ndarray,
    counts: np.ndarray,
    floor: float,
    start: Scoring,
    decays: Sequence[float] = DECAYS,
) -> Scoring:
    """The most likely temperature, decay and prior weight; `start` where there are fewer than `FEWEST` users.

    Where catalogues are large, as many users as `MOST_FLOATS` allows, the first ones.

    Args:
        dataset: users who are measured nowhere.
        history: (items, hidden) embeddings of the central catalogue as history, unit length.
        candidate: (items, hidden) the same as candidates.
        counts: (items,) popularity counts of the central catalogue.
        floor: least count.
        decays: that are tried.
    """
    if dataset.users < FEWEST:
        return start
    found = []
    for decay in decays:
        choices = _choices(dataset, history, candidate, counts, floor, decay)
        users = sum(len(one.cosines) for one in choices)

        def loss(at: np.ndarray, choices: list[_Choices] = choices, users: int = users) -> tuple[float, np.ndarray]:
            values, slopes = zip(*(one.loss(*at) for one in choices), strict=True)
            return sum(values) / users, np.sum(slopes, axis=0) / users

        best = minimize(
            loss, [start.temperature, start.prior_weight], jac=True, method="L-BFGS-B", bounds=[TEMPERATURES, PRIOR_WEIGHTS]
        )
        found.append((float(best.fun), decay, *best.x.tolist()))
    _, decay, temperature, weight = min(found)
    return Scoring(temperature, decay, weight)


def mean_loss(
    dataset: EvaluationSet, history: np.ndarray, candidate: np.ndarray, counts: np.ndarray, floor: float, scoring: Scoring
) -> float:
    """The negative log likelihood of a user of `dataset`, in nats, over those whom `fit_scoring` would look at."""
    choices = _choices(dataset, history, candidate, counts, floor, scoring.decay)
    losses = [one.loss(scoring.temperature, scoring.prior_weight)[0] for one in choices]
    return sum(losses) / sum(len(one.cosines) for one in choices)


def _choices(
    dataset: EvaluationSet, history: np.ndarray, candidate: np.ndarray, counts: np.ndarray, floor: float, decay: float
) -> list[_Choices]:
    found: list[_Choices] = []
    left = MOST_FLOATS
    for group in dataset.groups:
        items, prior = candidate[group.positions], log_prior(counts[group.positions], floor)
        for block in group.blocks():
            if left <= 0:
                return found
            left -= len(block.items) * len(items)
            found.append(
                _of_block(block, products(user_vectors(history, block.items, block.ages, block.valid, decay), items), prior)
            )
    return found


def _of_block(block: Group, cosines: np.ndarray, prior: np.ndarray) -> _Choices:
    barred, wanted = np.zeros(cosines.shape, dtype=bool), np.zeros(cosines.shape, dtype=np.float32)
    barred[block.masked[:, 0], block.masked[:, 1]] = True
    wanted[block.relevant[:, 0], block.relevant[:, 1]] = 1
    return _Choices(cosines, prior, barred, wanted / wanted.sum(axis=1, keepdims=True))
