"""The protocol: held-out users, the last basket as truth, the full catalogue ranked.

For each central user the history is every basket before the last that has a target, the truth
is those of its targets that are new: that were no target before. Users whose last basket holds
nothing new are left out (and counted). A share of the users serves only to choose `decay` and `prior_weight`; the
figures come from the others.

Where people buy again, `repeats` asks for the whole last basket: the truth is all of it, nothing
is taken out of the ranking, and only users without a history are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from fedrec.data import CentralData, CentralGroup
from fedrec.errors import InputError
from fedrec.evaluation.metrics import METRICS, PerUser, bootstrap_interval, metrics_from_ranks, pessimistic_ranks
from fedrec.model.ranking import blocks, pairs_of, products
from fedrec.model.towers import Scoring, log_prior, user_vectors

__all__ = [
    "DECAYS", "PRIOR_WEIGHTS", "EvaluationSet", "Group", "baskets_ago", "calibrate", "evaluate", "evaluate_popularity",
    "group_of", "is_calibration", "joined", "metrics_of", "ranks_of", "scored", "summarise",
]  # fmt: skip

DECAYS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Group:
    """Users ranked against the same items.

    Attributes:
        positions: (items,) into the central catalogue.
        items: (users, L) recent history as central positions, 0 where there is none; past the last item are searches.
        ages: (users, L) baskets ago, 0 for the latest.
        valid: (users, L) whether there is an event.
        masked: (pairs, 2) user and group item of the targets before the last basket, sorted by user; taken out of the ranking
            unless there is a `past`.
        relevant: (pairs, 2) user and group item of the truth, sorted by user.
        past: (events, 3) user, group item and `baskets_ago` of those targets, sorted by user, where what is bought again counts.
    """

    name: str
    positions: np.ndarray
    items: np.ndarray
    ages: np.ndarray
    valid: np.ndarray
    masked: np.ndarray
    relevant: np.ndarray
    past: np.ndarray | None = None

    def blocks(self) -> Iterator[Group]:
        """The same users in parts, whose scores of all items take a bounded memory."""
        for rows in blocks(len(self.items), len(self.positions)):
            yield self.part(rows)

    def part(self, rows: slice) -> Group:
        """Those users alone; `rows` has a start and a stop."""
        return replace(
            self,
            items=self.items[rows],
            ages=self.ages[rows],
            valid=self.valid[rows],
            masked=pairs_of(self.masked, rows),
            relevant=pairs_of(self.relevant, rows),
            past=None if self.past is None else pairs_of(self.past, rows),
        )


Asks = Callable[[CentralGroup, np.ndarray, int], tuple[Group | None, int]]
"""What is asked of users, by number, of a central group, with so many events of a history at most; how many are left out."""


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
        cls, central: CentralData, history: int, calibration_share: float, seed: int, *, asks: Asks | None = None
    ) -> tuple[EvaluationSet, EvaluationSet]:
        """The evaluation set and the calibration set, disjoint by user id across all groups.

        Args:
            history: recent events that are pooled.
            asks: makes a group of some users of a central group, `group_of` by default.
        """
        parts: dict[bool, list[Group]] = {False: [], True: []}
        left_out = {False: 0, True: 0}
        for group in central.groups:
            chosen = np.array([is_calibration(name, calibration_share, seed) for name in group.histories.user_ids])
            for calibration in (False, True):
                built, without = (asks or group_of)(group, np.flatnonzero(chosen == calibration), history)
                left_out[calibration] += without
                if built is not None:
                    parts[calibration].append(built)
        return (cls(tuple(parts[False]), left_out[False]), cls(tuple(parts[True]), left_out[True]))


def evaluate(
    dataset: EvaluationSet, history: np.ndarray, candidate: np.ndarray, scoring: Scoring, counts: np.ndarray, floor: float, k: int
) -> PerUser:
    """Metrics of every user, group after group.

    Args:
        history: (items, hidden) embeddings of the central catalogue as history, unit length, and then those of searches.
        candidate: (items, hidden) the same as candidates.
        counts: (items,) popularity counts of the central catalogue.
        floor: least count.
    """
    if not dataset.users:
        raise InputError("no held-out user's last basket holds anything new", where="central/events", hint="hold out more users")
    found = scored(dataset, history, candidate, counts, floor, scoring.temperature, scoring.decay, (scoring.prior_weight,))
    return joined([metrics_of(block, scores, k) for block, _, scores in found])


def evaluate_popularity(dataset: EvaluationSet, counts: np.ndarray, k: int) -> PerUser:
    """The popularity list of each group's catalogue as a recommender."""
    return joined(
        [
            metrics_of(block, np.broadcast_to(counts[group.positions], (len(block.items), len(group.positions))), k)
            for group in dataset.groups
            for block in group.blocks()
        ]
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
        found: dict[float, list[np.ndarray]] = {weight: [] for weight in prior_weights}
        for block, weight, scores in scored(dataset, history, candidate, counts, floor, temperature, decay, prior_weights):
            found[weight].append(metrics_of(block, scores, k).ndcg)
        for weight, values in found.items():
            value = float(np.concatenate(values).mean())
            if best is None or value > best[0]:
                best = (value, Scoring(temperature, decay, weight))
    return cast(tuple[float, Scoring], best)[1]


def summarise(metrics: PerUser, k: int, resamples: int, seed: int) -> dict[str, float]:
    """Means with 95% bootstrap intervals, under names such as `ndcg@10`, `ndcg@10_low`, `ndcg@10_high`."""
    out: dict[str, float] = {"users": float(len(metrics.hr))}
    for name in METRICS:
        values = getattr(metrics, name)
        label = name if name == "mrr" else f"{name}@{k}"
        low, high = bootstrap_interval(values, resamples, seed)
        out |= {label: float(values.mean()), f"{label}_low": low, f"{label}_high": high}
    return out


def scored(
    dataset: EvaluationSet,
    history: np.ndarray,
    candidate: np.ndarray,
    counts: np.ndarray,
    floor: float,
    temperature: float,
    decay: float,
    weights: tuple[float, ...],
) -> Iterator[tuple[Group, float, np.ndarray]]:
    """Blocks of users with their (users, items) scores under each weight of the prior; the product is computed once."""
    for group in dataset.groups:
        items = candidate if len(group.positions) == len(candidate) else candidate[group.positions]
        prior = log_prior(counts[group.positions], floor)
        for block in group.blocks():
            cosines = products(user_vectors(history, block.items, block.ages, block.valid, decay), items)
            cosines *= temperature
            for weight in weights:
                yield block, weight, cosines + weight * prior


def metrics_of(group: Group, scores: np.ndarray, k: int) -> PerUser:
    """Metrics of each of the group's users from (users, items) scores."""
    return metrics_from_ranks(ranks_of(group, scores), group.relevant[:, 0], k)


def ranks_of(group: Group, scores: np.ndarray) -> np.ndarray:
    """(pairs,) 0-based ranks of the truth, in the order of `relevant`, for scores (users, items)."""
    return pessimistic_ranks(scores, group.masked if group.past is None else group.masked[:0], group.relevant)


def joined(parts: list[PerUser]) -> PerUser:
    """The users of all parts, one after the other."""
    return PerUser(*(np.concatenate([getattr(part, name) for part in parts]) for name in METRICS))


def baskets_ago(user: np.ndarray, baskets: np.ndarray) -> np.ndarray:
    """(events,) how many later baskets of the same user are among these; 0 for the latest.

    Of targets alone it is how many purchases ago each was: what somebody only looked at since makes none of them older.

    Args:
        user, baskets: (events,) numbers, sorted by user and then by basket.
    """
    number = np.cumsum((np.diff(user, prepend=-1) != 0) | (np.diff(baskets, prepend=-1) != 0))
    return number[np.searchsorted(user, user, side="right") - 1] - number


def is_calibration(user: str, share: float, seed: int) -> bool:
    """Whether a central user serves to choose and is measured nowhere: by a hash, the same in every table of a seed."""
    digest = hashlib.blake2b(f"{seed}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def group_of(group: CentralGroup, users: np.ndarray, length: int, repeats: bool = False) -> tuple[Group | None, int]:
    """Those of the users whose last basket says something, and how many the others are.

    Args:
        users: (users,) numbers of users of the group's histories.
        length: most events of a history.
        repeats: whether what is bought again counts.
    """
    positions = np.asarray(group.positions, dtype=np.int64)
    if not len(users):
        return None, 0
    histories, starts = group.histories, group.histories.offsets[users]
    counts = histories.offsets[users + 1] - starts
    owner = np.repeat(np.arange(len(users)), counts)  # (events,)
    at = np.arange(len(owner)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    items, baskets, target = histories.items[at], histories.baskets[at], histories.is_target[at]
    latest = np.full(len(users), -1)  # of a user without a target, who has no history before it either
    np.maximum.at(latest, owner[target], baskets[target])
    before, true = baskets < latest[owner], target & (baskets == latest[owner])
    # User and item in one number, so that a set of them is a set of pairs.
    width = int(items.max()) + 1
    pairs = owner * width + items
    masked = np.unique(pairs[before & target])
    relevant = np.unique(pairs[true]) if repeats else np.setdiff1d(pairs[true], masked)
    kept = np.zeros(len(users), dtype=bool)
    kept[relevant // width] = True
    kept &= np.bincount(owner[before], minlength=len(users)) > 0
    if not kept.any():
        return None, len(users)
    number = np.cumsum(kept) - 1

    def numbered(of: np.ndarray) -> np.ndarray:
        user, item = np.divmod(of[kept[of // width]], width)
        return np.stack([number[user], np.searchsorted(positions, item)], axis=1)

    rows = before & kept[owner]
    owner, items, ages = owner[rows], items[rows], (latest[owner] - 1 - baskets)[rows]
    counts = np.bincount(owner, minlength=len(users))
    column = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - np.minimum(counts, length), counts)
    bought, past = target[rows], None
    if repeats:
        ago = baskets_ago(owner[bought], baskets[rows][bought])
        past = np.column_stack([number[owner[bought]], np.searchsorted(positions, items[bought]), ago])
    recent = column >= 0
    cells, shape = (number[owner[recent]], column[recent]), (int(kept.sum()), length)
    padded = Group(
        group.name,
        positions,
        items=np.zeros(shape, dtype=np.int64),
        ages=np.zeros(shape),
        valid=np.zeros(shape, dtype=bool),
        masked=numbered(masked),
        relevant=numbered(relevant),
        past=past,
    )
    padded.items[cells], padded.ages[cells], padded.valid[cells] = items[recent], ages[recent], True
    return padded, len(users) - len(padded.items)
