"""How good predicted responses are: metrics of impressions, each with what its user adds to its error.

A metric's interval is from its influence values, summed by user, since a user's impressions are not independent: for AUC these
are the structural components of DeLong et al. (Biometrics 1988), clustered as in Obuchowski (Biometrics 1997); for means
the residuals. Differences of two models on the same users have the difference of the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

__all__ = [
    "RESPONSE_METRICS", "Judged", "average_precision", "calibration_error", "fit_logistic", "gain_in", "interval",
    "log_losses", "reliability", "summarise_responses",
]  # fmt: skip

RESPONSE_METRICS = ("auc", "log_loss", "gauc", "average_precision", "ece", "calibration_slope")
BINS = 10
QUANTILE = 1.959964
"""Of the normal distribution, for 95% intervals."""


@dataclass(frozen=True)
class Judged:
    """Impressions with what was predicted.

    Attributes:
        user: (impressions,) numbers from 0.
        answer: (impressions,) bool.
        logit: (impressions,) of the probability of a response among impressions as they are in the data.
        negative_share: share of the impressions without a response that are in the data.
    """

    user: np.ndarray
    answer: np.ndarray
    logit: np.ndarray
    negative_share: float = 1.0

    @property
    def probability(self) -> np.ndarray:
        """(impressions,) of a response where all impressions are there (King and Zeng 2001, section 4.1)."""
        found: np.ndarray = expit(self.logit + np.log(self.negative_share))
        return found

    @property
    def weight(self) -> np.ndarray:
        """(impressions,) how many each stands for."""
        return np.where(self.answer, 1.0, 1 / self.negative_share)


def log_losses(logit: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(impressions,) negative log likelihoods, in nats."""
    return np.logaddexp(0, logit) - answer * logit


def summarise_responses(judged: Judged) -> dict[str, float]:
    """Every one of `RESPONSE_METRICS` that is defined, with 95% intervals for the first three, and what it is of.

    `log_loss`, `auc`, `gauc` (mean over the users who have both answers) and `average_precision` are of the impressions in the
    data; `ece`, `calibration_slope` and `base_rate` are of all that they stand for. Where there is but one answer, AUC and
    what needs two is not defined and not there.
    """
    users = int(np.unique(judged.user).size)
    out = {"users": float(users), "impressions": float(len(judged.user)), "responses": float(judged.answer.sum())}
    out["base_rate"] = float(np.average(judged.answer, weights=judged.weight))
    for name, found in _with_influences(judged).items():
        value, low, high = interval(*found)
        out |= {name: value, f"{name}_low": low, f"{name}_high": high}
    out["ece"] = calibration_error(judged)
    if 0 < judged.answer.sum() < len(judged.answer):
        out["average_precision"] = average_precision(judged.logit, judged.answer)
        features = np.stack([judged.logit, np.ones(len(judged.logit))])
        out["calibration_slope"] = float(fit_logistic(features, judged.answer, [(None, None)] * 2, np.array([1.0, 0.0]))[0])
    return out


def gain_in(name: str, before: Judged, after: Judged) -> dict[str, float]:
    """A metric's change from one model to another on the same impressions, with the paired 95% interval.

    Raises:
        KeyError: the metric is not defined here.
    """
    first, second = _with_influences(before)[name], _with_influences(after)[name]
    mean, low, high = interval(second[0] - first[0], second[1] - first[1])
    return {"mean": mean, "low": low, "high": high}


def average_precision(score: np.ndarray, answer: np.ndarray) -> float:
    """Sum over thresholds of precision times what recall gains there; equal scores are one threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(answer[order])[last]
    return float((hits / (last + 1)) @ np.diff(hits, prepend=0) / hits[-1])


def reliability(judged: Judged) -> list[dict[str, float]]:
    """In `BINS` bins of about equally many impressions by their prediction: mean prediction, share of responses, impressions."""
    order = np.argsort(judged.logit, kind="stable")
    out = []
    for rows in np.array_split(order, min(BINS, len(order))):
        weight = judged.weight[rows]
        predicted, found = (float(np.average(one[rows], weights=weight)) for one in (judged.probability, judged.answer))
        out.append({"predicted": predicted, "found": found, "impressions": float(weight.sum())})
    return out


def calibration_error(judged: Judged) -> float:
    """Expected calibration error: mean over impressions of |prediction - share of responses| of their bin.

    Naeini et al. (AAAI 2015), with bins of equally many impressions.
    """
    bins = reliability(judged)
    total = sum(one["impressions"] for one in bins)
    return sum(abs(one["predicted"] - one["found"]) * one["impressions"] for one in bins) / total


def fit_logistic(
    features: np.ndarray, answer: np.ndarray, bounds: list[tuple[float | None, float | None]], start: np.ndarray,
    offset: np.ndarray | float = 0.0,
) -> np.ndarray:  # fmt: skip
    """The coefficients (features,) under which the answers are most likely; `features` is (features, impressions)."""

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        logit = at @ features + offset
        return float(log_losses(logit, answer).mean()), features @ (expit(logit) - answer) / len(answer)

    found: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def interval(value: float, influence: np.ndarray) -> tuple[float, float, float]:
    """A value with its 95% interval, from what each user adds to its error, (users,)."""
    users = len(influence)
    error = QUANTILE * float(np.sqrt(users / max(users - 1, 1) * np.square(influence).sum()))
    return value, value - error, value + error


def _with_influences(judged: Judged) -> dict[str, tuple[float, np.ndarray]]:
    """Metrics by name, each with the influence (users,) of each user."""
    _, user = np.unique(judged.user, return_inverse=True)
    losses = log_losses(judged.logit, judged.answer)
    out: dict[str, tuple[float, np.ndarray]] = {
        "log_loss": (float(losses.mean()), np.bincount(user, losses - losses.mean()) / len(losses))
    }
    answer, ranks = judged.answer, rankdata(judged.logit)
    positives, negatives = int(answer.sum()), int((~answer).sum())
    if not positives or not negatives:
        return out
    beaten = np.empty(len(answer))  # of each impression, the share of those with the other answer that are ordered rightly
    beaten[answer] = (ranks[answer] - rankdata(judged.logit[answer])) / negatives
    beaten[~answer] = 1 - (ranks[~answer] - rankdata(judged.logit[~answer])) / positives
    auc = float(beaten[answer].mean())
    influence = np.bincount(user, (beaten - auc) / np.where(answer, positives, negatives))
    out["auc"] = auc, influence
    own = _auc_by_user(judged.logit, answer, user)
    both = ~np.isnan(own)
    if both.any():
        out["gauc"] = float(own[both].mean()), np.where(both, own - own[both].mean(), 0) / both.sum()
    return out


def _auc_by_user(score: np.ndarray, answer: np.ndarray, user: np.ndarray) -> np.ndarray:
    """(users,) each user's AUC over its own impressions, nan where all answers are alike."""
    level = np.unique(score, return_inverse=True)[1]
    order = np.lexsort((level, user))
    user, level, answer = user[order], level[order], answer[order]
    counts = np.bincount(user)
    place = np.arange(len(user)) + 1.0
    ties = np.cumsum((np.diff(user, prepend=-1) != 0) | (np.diff(level, prepend=-1) != 0)) - 1
    ranks = (np.bincount(ties, place) / np.bincount(ties))[ties] - (np.cumsum(counts) - counts)[user]
    positives = np.bincount(user, answer)
    pairs = positives * (counts - positives)
    wins = np.bincount(user, ranks * answer) - positives * (positives + 1) / 2
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)
