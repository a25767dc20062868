"""What the outcome of an attack says about epsilon: pure statistics, no training.

An audit can show that a claim is false, never that it is true: a bound far under the claim
means that this attack, with this many guesses, found no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, rankdata

from fedrec.errors import InputError

__all__ = ["MembershipMetrics", "epsilon_lower_bound", "guess_p_value", "membership_metrics", "tpr_bound"]

RATES = (0.01, 0.001)
"""False positive rates at which a membership attack is judged."""


@dataclass(frozen=True)
class MembershipMetrics:
    """How well a score tells members from others.

    Attributes:
        auc: probability that a random member scores above a random other, ties counting half.
        tpr_at_1_percent: largest share of members found with at most 1% of the others accused.
        tpr_at_01_percent: the same at 0.1%.
    """

    auc: float
    tpr_at_1_percent: float
    tpr_at_01_percent: float


def guess_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely `correct` or more right guesses are at most, if training is (epsilon, delta)-DP.

    With m canaries, each included by a fair coin of its own, r guesses of such coins and v
    of them right (Steinke, Nasr, Jagielski, NeurIPS 2023, theorem 5.2):

        p = P[W >= v] + 2 m delta max_{1 <= i <= m} P[v - i <= W < v] / i,
        W ~ Binomial(r, e^epsilon / (1 + e^epsilon)).

    It holds whatever the attack is, as long as r was fixed before the coins were looked at.
    """
    w = binom(guesses, expit(epsilon))
    at_least = float(w.sf(correct - 1))
    if delta == 0 or correct == 0:
        return min(1.0, at_least)
    i = np.arange(1, correct + 1)  # a larger i adds nothing to the probability
    below = w.cdf(correct - 1) - w.cdf(correct - 1 - i)
    return min(1.0, at_least + 2 * canaries * delta * float((below / i).max()))


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute: at `confidence`, training is not (that, delta)-DP.

    Args:
        canaries: m, each included by an independent fair coin.
        guesses: r of them that the attack guessed, fixed in advance; it abstains on the rest.
        correct: v, how many guesses were right.
        delta: of the claim.
        confidence: probability of a bound that is not above the true epsilon.

    Returns:
        Epsilon at which `guess_p_value` reaches 1 - confidence; 0.0 if not even 0 is refuted.

    Raises:
        InputError: the counts contradict each other, or a probability is out of range.
    """
    if not 0 <= correct <= guesses <= canaries:
        found = f"found {correct} correct of {guesses} guesses on {canaries} canaries"
        raise InputError(found, where="audit", expected="0 <= correct <= guesses <= canaries")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise InputError(f"found delta {delta}, confidence {confidence}", where="audit", expected="probabilities")

    def gap(epsilon: float) -> float:
        return guess_p_value(canaries, guesses, correct, epsilon, delta) - (1 - confidence)

    if gap(0.0) > 0:
        return 0.0
    high = 1.0
    while gap(high) <= 0:
        high *= 2
    return float(brentq(gap, 0.0, high, xtol=1e-9))


def membership_metrics(members: np.ndarray, non_members: np.ndarray) -> MembershipMetrics:
    """AUC, and the true positive rate at 1% and 0.1% false positives.

    Args:
        members: (members,) scores, high where the attack says "member".
        non_members: (others,) scores.

    Raises:
        InputError: one side is empty, or a score is not finite.
    """
    if not len(members) or not len(non_members):
        raise InputError(f"found {len(members)} members and {len(non_members)} others", where="audit", expected="some of both")
    both = np.concatenate([members, non_members]).astype(np.float64)
    if not np.isfinite(both).all():
        raise InputError("a score is NaN or infinite", where="audit")
    # The rank sum of the members, less its least value, counts the pairs that they win.
    wins = rankdata(both)[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    descending = np.sort(non_members)[::-1]
    found = []
    for rate in RATES:
        accused = math.floor(rate * len(non_members) + 1e-9)
        # Above the first score that may not be accused, ties with it left out.
        found.append(float((members > descending[accused]).mean()) if accused < len(non_members) else 1.0)
    return MembershipMetrics(float(wins / (len(members) * len(non_members))), *found)


def tpr_bound(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """The largest true positive rate of any test of membership under (epsilon, delta)-DP.

    TPR <= min(e^eps FPR + delta, 1 - e^-eps (1 - delta - FPR)): Kairouz, Oh, Viswanath,
    ICML 2015, section 2 (differential privacy as a hypothesis test).

    Raises:
        ValueError: the rate is not between 0 and 1.
    """
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(f"false_positive_rate: expected a number in [0, 1], found {false_positive_rate}")
    odds = math.exp(epsilon) if epsilon < 700 else math.inf
    rising = odds * false_positive_rate + delta if false_positive_rate else delta
    return min(1.0, rising, 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate))
