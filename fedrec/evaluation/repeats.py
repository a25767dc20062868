"""The protocol where people buy again: the whole last basket is the truth, and nothing is taken out of the ranking.

Most of a grocery basket was bought before. A list that holds nothing but a person's own staples is then hard to beat,
so it is the baseline: *personal frequency* ranks what a person has bought by how often and how recently, and everything
else, after that, by how popular it is. What is bought again and what is new are also counted apart, since a list can be
good at one and blind for the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedrec.evaluation.metrics import PerUser, bootstrap_interval, metrics_from_ranks
from fedrec.evaluation.protocol import DECAYS, EvaluationSet, Group, joined, ranks_of, scored, summarise
from fedrec.model.towers import Scoring

__all__ = [
    "RepeatUsers",
    "best_decay",
    "evaluate_repeats",
    "frequencies",
    "global_frequency",
    "model_scores",
    "personal_frequency",
    "summarise_repeats",
]

Scored = Iterable[tuple[Group, np.ndarray]]
"""Blocks of users with their (users, items) scores."""
POPULARITY = 1e-6
"""What popularity adds at most to a frequency: it decides between items that were bought as often and as recently."""


@dataclass(frozen=True)
class RepeatUsers:
    """What is measured of each user.

    Attributes:
        metrics: of the whole last basket.
        repeat: (users,) share of what was bought again that is in the top k; NaN for who bought nothing again.
        explore: (users,) the same of what was new.
    """

    metrics: PerUser
    repeat: np.ndarray
    explore: np.ndarray


def evaluate_repeats(scores: Scored, k: int) -> RepeatUsers:
    """Metrics of every user of an evaluation set that was built with `repeats`."""
    metrics, repeat, explore = [], [], []
    for block, values in scores:
        ranks, user = ranks_of(block, values), block.relevant[:, 0]
        width = len(block.positions)
        again = np.isin(user * width + block.relevant[:, 1], block.masked[:, 0] * width + block.masked[:, 1])
        metrics.append(metrics_from_ranks(ranks, user, k))
        repeat.append(_share(ranks < k, user, again))
        explore.append(_share(ranks < k, user, ~again))
    return RepeatUsers(joined(metrics), np.concatenate(repeat), np.concatenate(explore))


def model_scores(
    dataset: EvaluationSet, history: np.ndarray, candidate: np.ndarray, scoring: Scoring, counts: np.ndarray, floor: float
) -> Scored:
    """The two towers and the prior; arguments as in `evaluate`."""
    for block, _, values in scored(
        dataset, history, candidate, counts, floor, scoring.temperature, scoring.decay, (scoring.prior_weight,)
    ):
        yield block, values


def frequencies(past: np.ndarray, shape: tuple[int, int], decay: float) -> np.ndarray:
    """(users, items) how often and how recently a user bought an item: the sum of exp(-decay * baskets ago) over its events.

    Args:
        past: (events, 3) user, item and baskets ago.
    """
    user, item, age = past.T
    found = np.zeros(shape)
    np.add.at(found, (user, item), np.exp(-decay * age))
    return found


def personal_frequency(dataset: EvaluationSet, counts: np.ndarray, decay: float) -> Scored:
    """What a user bought, an event counting exp(-decay * baskets ago); then everything else, by popularity.

    Args:
        counts: (items,) popularity of the central catalogue.
    """
    for group in dataset.groups:
        popularity = counts[group.positions].astype(np.float64)
        popularity = (popularity - popularity.min()) / max(float(np.ptp(popularity)), 1e-12)
        for block in group.blocks():
            assert block.past is not None
            values = frequencies(block.past, (len(block.items), len(group.positions)), decay)
            values[block.past[:, 0], block.past[:, 1]] += 1  # however long ago, and however little it weighs, it was bought
            yield block, values + POPULARITY * popularity


def global_frequency(dataset: EvaluationSet, counts: np.ndarray) -> Scored:
    """The popularity list, the same for everybody."""
    for group in dataset.groups:
        for block in group.blocks():
            yield block, np.broadcast_to(counts[group.positions], (len(block.items), len(group.positions)))


def best_decay(dataset: EvaluationSet, counts: np.ndarray, k: int) -> float:
    """The decay of personal frequency with the best NDCG@k on the calibration users."""

    def quality(decay: float) -> float:
        return float(evaluate_repeats(personal_frequency(dataset, counts, decay), k).metrics.ndcg.mean())

    return max(DECAYS, key=quality)


def summarise_repeats(found: RepeatUsers, k: int, resamples: int, seed: int) -> dict[str, float]:
    """What `summarise` gives, and `repeat_recall@k` and `explore_recall@k` over the users who have any, in the same form."""
    out = summarise(found.metrics, k, resamples, seed)
    for name, values in (("repeat_recall", found.repeat), ("explore_recall", found.explore)):
        having = values[~np.isnan(values)]
        if len(having):
            low, high = bootstrap_interval(having, resamples, seed)
            label = f"{name}@{k}"
            out |= {label: float(having.mean()), f"{label}_low": low, f"{label}_high": high, f"{label}_users": float(len(having))}
    return out


def _share(hit: np.ndarray, user: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(users,) share of each user's pairs that are hits, among those of `which`; NaN for a user without any."""
    users = int(user.max(initial=-1)) + 1
    total = np.bincount(user, weights=which, minlength=users)
    hits = np.bincount(user, weights=hit & which, minlength=users)
    return np.where(total > 0, hits / np.maximum(total, 1), np.nan)
