"""The protocol: held-out users, the last basket as truth, the full catalogue ranked.

For each central user the history is every basket before the last, the truth is what the
last basket holds that is new. Users whose last basket holds nothing new are left out (and
counted). A share of the users serves only to choose `decay` and `prior_weight`; the
figures come from the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np

from fedrec.data import CentralData, CentralGroup
from fedrec.errors import InputError
from fedrec.evaluation.metrics import METRICS, PerUser, bootstrap_interval, metrics_from_ranks, pessimistic_ranks
from fedrec.model.towers import Scoring, log_prior, recency_weights

__all__ = ["DECAYS", "PRIOR_WEIGHTS", "EvaluationSet", "Group", "calibrate", "evaluate", "summarise", "user_vectors"]

DECAYS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Group:
    """Users ranked against the same items.

    Attributes:
        positions: (items,) into the central catalogue.
        items: (users, L) recent history as central positions, 0 where there is none.
        ages: (users, L) baskets ago, 0 for the latest.
        valid: (users, L) whether there is an event.
        masked: (pairs, 2) user and group item of the whole history.
        relevant: (pairs, 2) user and group item of the truth.
    """

    name: str
    positions: np.ndarray
    items: np.ndarray
    ages: np.ndarray
    valid: np.ndarray
    masked: np.ndarray
    relevant: np.ndarray


@dataclass(frozen=True)
class EvaluationSet:
    """The central users who are evaluated, or those who are calibrated on."""

    groups: tuple[Group, ...]
    left_out: int

    @property
    def users(self) -> int:
        """How many users have a truth."""
        return sum(len(group.items) for group in self.groups)

    @classmethod
    def build(
        cls, central: CentralData, history: int, calibration_share: float, seed: int
    ) -> tuple[EvaluationSet, EvaluationSet]:
        """The evaluation set and the calibration set, disjoint by user id across all groups."""
        parts: dict[bool, list[Group]] = {False: [], True: []}
        left_out = {False: 0, True: 0}
        for group in central.groups:
            chosen = np.array([_is_calibration(name, calibration_share, seed) for name in group.histories.user_ids])
            for calibration in (False, True):
                built, without = _group(group, np.flatnonzero(chosen == calibration), history)
                left_out[calibration] += without
                if built is not None:
                    parts[calibration].append(built)
        return (cls(tuple(parts[False]), left_out[False]), cls(tuple(parts[True]), left_out[True]))


def evaluate(
    dataset: EvaluationSet, history: np.ndarray, candidate: np.ndarray, scoring: Scoring, counts: np.ndarray, floor: float, k: int
) -> PerUser:
    """Metrics of every user, group after group.

    Args:
        history: (items, hidden) embeddings of the central catalogue as history, unit length.
        candidate: (items, hidden) the same as candidates.
        counts: (items,) popularity counts of the central catalogue.
        floor: least count.
    """
    if not dataset.users:
        raise InputError("no held-out user's last basket holds anything new", where="central/events", hint="hold out more users")
    parts = []
    for group in dataset.groups:
        cosines = user_vectors(group, history, scoring.decay) @ candidate[group.positions].T
        scores = scoring.temperature * cosines + scoring.prior_weight * log_prior(counts[group.positions], floor)
        parts.append(_metrics(group, scores, k))
    return _joined(parts)


def evaluate_popularity(dataset: EvaluationSet, counts: np.ndarray, k: int) -> PerUser:
    """The popularity list of each group's catalogue as a recommender."""
    return _joined(
        [_metrics(g, np.broadcast_to(counts[g.positions], (len(g.items), len(g.positions))), k) for g in dataset.groups]
    )


def calibrate(
    dataset: EvaluationSet,
    history: np.ndarray,
    candidate: np.ndarray,
    counts: np.ndarray,
    floor: float,
    *,
    temperature: float,
    prior_weights: tuple[float, ...] = PRIOR_WEIGHTS,
    k: int,
) -> Scoring:
    """The decay and prior weight with the best NDCG@k on the calibration users.

    Raises:
        InputError: no calibration user has a truth.
    """
    if not dataset.users:
        raise InputError(
            "no central user is left to calibrate on",
            where="calibration_share",
            hint="hold out more users, or set calibrate=false",
        )
    best: tuple[float, Scoring] | None = None
    for decay in DECAYS:
        cosines = [user_vectors(g, history, decay) @ candidate[g.positions].T for g in dataset.groups]
        for weight in prior_weights:
            metrics = [
                _metrics(g, temperature * c + weight * log_prior(counts[g.positions], floor), k)
                for g, c in zip(dataset.groups, cosines, strict=True)
            ]
            value = float(_joined(metrics).ndcg.mean())
            if best is None or value > best[0]:
                best = (value, Scoring(temperature, decay, weight))
    return cast(tuple[float, Scoring], best)[1]


def user_vectors(group: Group, history: np.ndarray, decay: float) -> np.ndarray:
    """(users, hidden) unit vectors of a group's users."""
    weights = recency_weights(group.ages, group.valid, decay)  # (users, L)
    pooled = np.einsum("ul,uld->ud", weights, history[group.items], optimize=True)
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def summarise(metrics: PerUser, k: int, resamples: int, seed: int) -> dict[str, float]:
    """Means with 95% bootstrap intervals, under names such as `ndcg@10`, `ndcg@10_low`, `ndcg@10_high`."""
    out: dict[str, float] = {"users": float(len(metrics.hr))}
    for name in METRICS:
        values = getattr(metrics, name)
        label = name if name == "mrr" else f"{name}@{k}"
        low, high = bootstrap_interval(values, resamples, seed)
        out |= {label: float(values.mean()), f"{label}_low": low, f"{label}_high": high}
    return out


def _metrics(group: Group, scores: np.ndarray, k: int) -> PerUser:
    return metrics_from_ranks(pessimistic_ranks(scores, group.masked, group.relevant), group.relevant[:, 0], k)


def _joined(parts: list[PerUser]) -> PerUser:
    return PerUser(*(np.concatenate([getattr(part, name) for part in parts]) for name in METRICS))


def _is_calibration(user: str, share: float, seed: int) -> bool:
    digest = hashlib.blake2b(f"{seed}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def _group(group: CentralGroup, users: np.ndarray, length: int) -> tuple[Group | None, int]:
    positions = np.asarray(group.positions, dtype=np.int64)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    relevant: list[tuple[int, int]] = []
    masked: list[tuple[int, int]] = []
    for user in users:
        items, baskets = group.histories.of(int(user))
        last = baskets == baskets[-1]
        new = np.setdiff1d(items[last], items[~last])
        if not len(new) or last.all():
            continue
        number = len(rows)
        rows.append((items[~last][-length:], baskets[-1] - 1 - baskets[~last][-length:]))
        relevant += [(number, item) for item in np.searchsorted(positions, new)]
        masked += [(number, item) for item in np.searchsorted(positions, np.unique(items[~last]))]
    if not rows:
        return None, len(users)
    items_array, ages, valid = (
        np.zeros((len(rows), length), np.int64),
        np.zeros((len(rows), length)),
        np.zeros((len(rows), length), bool),
    )
    for number, (items, age) in enumerate(rows):
        items_array[number, : len(items)], ages[number, : len(items)], valid[number, : len(items)] = items, age, True
    built = Group(
        group.name, positions, items_array, ages, valid, np.array(masked).reshape(-1, 2), np.array(relevant).reshape(-1, 2)
    )
    return built, len(users) - len(rows)
