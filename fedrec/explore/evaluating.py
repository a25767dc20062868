"""What another policy would have earned, from a log: every estimator with its interval, and what speaks against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedrec.errors import InputError
from fedrec.explore.estimators import direct_method, doubly_robust, effective_sample_size, ips, snips
from fedrec.explore.intervals import bootstrap, normal, positive
from fedrec.explore.log import POSITION, REQUEST, LogTable
from fedrec.explore.rewards import fit_rewards
from fedrec.explore.steps import above
from fedrec.explore.targets import Rows, Target

__all__ = ["Estimate", "Evaluation", "evaluate"]

DRAWS = 300
UNSEEN = 0.05
"""The most probability that a policy may put on what the log never shows before there is no estimate."""
ERRORS, SLACK = 5.0, 0.02
"""How far from 1 the mean weight may be, in standard errors and beyond them, since propensities are rounded."""
ONE_ERROR = 0.6826895
"""Confidence of an interval that reaches one standard error."""
FEW = 50
"""Effective rewarded rows below which an interval may be too narrow: see `docs/exploration.md`."""


@dataclass(frozen=True)
class Estimate:
    """A mean reward of a row with its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What a log says of a policy.

    Attributes:
        rows, requests: of the log that was used.
        estimates: of the policy to be evaluated; the direct method and doubly robust where every item's probability is known.
        logged: what the policy of the log earned.
        on_policy: what the evaluated policy itself earned, where that is in the log.
        effective, effective_rewards: effective sample size, in rows and in rows that were rewarded.
        mean_weight, largest_weight: of pi / p, in a log of whole lists times those of the places above; the mean is near 1 where
            the propensities are right and support is there.
        unseen: probability on what the log never shows; None where that is not known.
        notes: what is to be said of them.
    """

    rows: int
    requests: int
    estimates: tuple[Estimate, ...]
    logged: Estimate
    on_policy: Estimate | None
    effective: float
    effective_rewards: float
    mean_weight: float
    largest_weight: float
    unseen: float | None
    notes: tuple[str, ...] = ()


def evaluate(
    table: LogTable, logged: str | None = None, target: str | None = None, by: Sequence[str] = (), confidence: float = 0.95
) -> Evaluation:
    """Estimate what a policy would have earned on the rows of a log.

    Args:
        logged: take the rows that this policy chose; all of them by default.
        target: the policy to evaluate, by its name in the column `policy`; by default the column `target` has its probabilities.
        by: columns on which propensities depend, such as a campaign; the position is always one.
        confidence: of the intervals.

    Raises:
        InputError: see `read_log`; an unknown policy, or an argument that means nothing; or the log does not support the policy.
    """
    if not 0 < confidence < 1:
        raise InputError(f"found {confidence:g}", where="confidence", expected="a number between 0 and 1")
    everything = Rows.of(table, by)
    rows = everything if logged is None else everything.take(_chosen_by(table, logged))
    theirs = None if target is None else everything.take(_chosen_by(table, target))
    if theirs is None:
        table.require(["target"])
        policy = Target.of_column(table, rows)
    else:
        policy = Target.of_policy(rows, theirs)
    _check_requests({"the log": rows, target: theirs}, table.name)
    steps = policy.probability / rows.propensity
    before = above(table, rows, steps)
    weights, unseen = before * steps, policy.unseen(rows)
    _check_support(steps, weights, unseen, rows, table.name)
    if not (weights * rows.reward).any():
        raise InputError(
            "no row that the policy would have shown was rewarded", where=table.name, expected="some rewards",
            hint="of a rate that was never seen a log says nothing: wait for more of it",
        )  # fmt: skip
    effective, rewards = effective_sample_size(weights), effective_sample_size(weights * rows.reward)
    notes = _notes(rows, theirs, policy, rewards, unseen, target)
    return Evaluation(
        len(rows.item), int(rows.request.max()) + 1, tuple(_estimates(rows, policy, before, weights, confidence)),
        _mean("logged", rows, confidence), None if theirs is None else _mean("on-policy", theirs, confidence),
        effective, rewards, float(weights.mean()), float(weights.max()), unseen, notes,
    )  # fmt: skip


def _notes(
    rows: Rows, theirs: Rows | None, policy: Target, rewards: float, unseen: float | None, target: str | None
) -> tuple[str, ...]:
    notes = [] if rewards >= FEW else [f"{rewards:.0f} effective rewards are few: the intervals may be too narrow"]
    if unseen:
        notes.append(f"{unseen:.1%} of the policy's probability is on what the log never shows, which counts as worth nothing in "
                     "IPS and as the model says in DM and DR")  # fmt: skip
    if policy.choices is None:
        notes.append("only the shown items' probabilities are known, so there is no direct method and no doubly robust estimate")
    if policy.varies:
        notes.append(f"the propensities of {target} for one item at one place vary: it is judged as a policy that shows each "
                     "item as often as it did there and does not look at who asks; a column `target` tells it")  # fmt: skip
    if missing := [name for name in (REQUEST, POSITION) if name not in rows.frame]:
        notes.append(f"without {' and '.join(missing)} every row stands alone, which is right where no propensity depends on "
                     "the places above")  # fmt: skip
    if theirs is not None and not theirs.reward.any():
        notes.append(f"nothing that {target} chose itself was rewarded, so the interval of that says nothing")
    return tuple(notes)


def _chosen_by(table: LogTable, policy: str) -> np.ndarray:
    table.require(["policy"])
    names = table.frame["policy"].map(str)
    chosen = (names == policy).to_numpy()
    if not chosen.any():
        raise InputError(
            f"there is no policy {policy!r}", where=f"{table.name}, column policy", expected=" or ".join(sorted(set(names)))
        )
    return chosen


def _check_requests(parts: dict[str | None, Rows | None], name: str) -> None:
    for whose, rows in parts.items():
        if rows is not None and not rows.request.any():
            raise InputError(f"there is one request of {whose}", where=name, expected="at least 2: an interval is over requests")


def _check_support(steps: np.ndarray, weights: np.ndarray, unseen: float | None, rows: Rows, name: str) -> None:
    if unseen is not None and unseen > UNSEEN:
        raise InputError(
            f"{unseen:.1%} of the policy's probability is on items that the log never shows at these places", where=name,
            expected=f"at most {UNSEEN:.0%}", hint="what was never tried cannot be estimated: log with a uniform floor",
        )  # fmt: skip
    _check_mean(steps, rows, np.ones(len(steps), dtype=bool), "the weights", name)
    if rows.place is not None:
        for place in range(1, int(rows.place.max()) + 1):
            _check_mean(weights, rows, np.equal(rows.place, place), f"down to position {place + 1} the weights", name)


def _check_mean(weights: np.ndarray, rows: Rows, kept: np.ndarray, what: str, name: str) -> None:
    mean = float(weights[kept].mean())
    request = np.unique(rows.request[kept], return_inverse=True)[1]
    error = normal(mean, weights[kept] - mean, request, ONE_ERROR)[1] - mean
    # Where a short log has none of the rare rows that weigh nothing, it varies less than its policy: the mean of w^2 - 1 says so.
    error = max(error, float(np.sqrt(max(float((weights[kept] ** 2).mean()) - 1, 0.0) / len(request))))
    if abs(mean - 1) > ERRORS * error + SLACK:
        raise InputError(
            f"{what} average {mean:.3f}", where=name, expected=f"1, with a standard error of {error:.3f}",
            hint="the propensities are not this log's, it never shows what the policy would, or a column for --by is missing",
        )  # fmt: skip


def _estimates(rows: Rows, policy: Target, before: np.ndarray, weights: np.ndarray, confidence: float) -> list[Estimate]:
    value, (own, influence) = ips(weights, rows.reward), _normalised(rows, weights)
    interval = positive if rows.reward.min() >= 0 else normal
    found = [
        Estimate("IPS", value, *interval(value, weights * rows.reward - value, rows.request, confidence)),
        Estimate("SNIPS", own, *interval(own, influence, rows.request, confidence)),
    ]
    if policy.choices is None:
        return found
    rng = np.random.default_rng(0)
    direct = _modelled(rows, policy, before)
    quantiles = bootstrap(lambda counts: direct_method(direct(counts), counts), rows.request, confidence, DRAWS, rng)
    found.append(Estimate("DM", direct_method(direct(None)), *quantiles))
    values, shown = _cross_fitted(rows, policy, rng)
    values = before * values
    robust = doubly_robust(values, weights, rows.reward, shown)
    influence = values + weights * (rows.reward - shown) - robust
    found.append(Estimate("DR", robust, *normal(robust, influence, rows.request, confidence)))
    return found


def _normalised(rows: Rows, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """SNIPS and its influence (rows,); in a log of whole lists each place is normalised alone, for its weights have mean 1."""
    influence, value = np.zeros(len(weights)), 0.0
    place = np.zeros(len(weights), dtype=np.int64) if rows.place is None else rows.place
    for number in np.unique(place):
        here = place == number
        own = snips(weights[here], rows.reward[here])
        influence[here] = weights[here] * (rows.reward[here] - own) / max(float(weights[here].mean()), 1e-12)
        value += float(here.mean()) * own
    return value, influence


def _modelled(rows: Rows, policy: Target, before: np.ndarray) -> Callable[[np.ndarray | None], np.ndarray]:
    """From how often rows count to v (rows,) of a model that is fitted on them, each as often as its places above come."""

    def values(counts: np.ndarray | None) -> np.ndarray:
        found = policy.values(fit_rewards(rows.cell, rows.item, rows.reward, rows.stratum, _items(rows, policy), counts))
        return np.zeros(len(rows.item)) if found is None else before * found

    return values


def _cross_fitted(rows: Rows, policy: Target, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """v and q of the shown items, (rows,) each, of a model fitted on the other half of the requests."""
    half = rng.permutation(int(rows.request.max()) + 1)[rows.request] % 2
    values, shown = np.zeros(len(half)), np.zeros(len(half))
    for number in (0, 1):
        here = half == number
        model = fit_rewards(rows.cell, rows.item, rows.reward, rows.stratum, _items(rows, policy), (~here).astype(np.float64))
        found = policy.values(model)
        if found is not None:
            values[here], shown[here] = found[here], model[rows.cell, rows.item][here]
    return values, shown


def _items(rows: Rows, policy: Target) -> int:
    return len(rows.items) if policy.choices is None else policy.choices.shape[1]


def _mean(name: str, rows: Rows, confidence: float) -> Estimate:
    value = float(rows.reward.mean())
    return Estimate(name, value, *normal(value, rows.reward - value, rows.request, confidence))
