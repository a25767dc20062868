"""What an (epsilon, delta) means for somebody who attacks: bounds on odds and on detection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from fedrec.privacy import SampledGaussian, epsilon
from fedrec.privacy.audit import tpr_bound

__all__ = ["FALSE_POSITIVES", "Attacker", "attacker", "gaussian_tpr_bound", "odds_bound"]

FALSE_POSITIVES = (0.001, 0.01)
PROFILE_DELTAS = (1e-3, 1e-2, 0.03, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Attacker:
    """What epsilon leaves to an attacker who sees all that was released and knows everyone else's data.

    Attributes:
        odds: the most by which the odds that a person's data were used can rise.
        certainty: the most that 50:50 can become.
        true_positives: false positive rate (as text) to the largest true positive rate, from epsilon and delta alone.
        tighter_true_positives: the same from more than one point of the trade-off.
        tighter_by: `gaussian`, exact, where no release was subsampled; else `profile`, over several deltas.
    """

    odds: float
    certainty: float
    true_positives: dict[str, float]
    tighter_true_positives: dict[str, float]
    tighter_by: str


def attacker(events: Sequence[SampledGaussian], spent: float, delta: float) -> Attacker:
    """Bounds for the composition of `events`, whose epsilon at `delta` is `spent`."""
    rates = {f"{rate:g}": rate for rate in FALSE_POSITIVES}
    alone = {name: tpr_bound(spent, delta if events else 0.0, rate) for name, rate in rates.items()}
    if all(event.sample_rate == 1 for event in events) and math.isfinite(spent):
        # Full-participation Gaussians compose exactly: squared mu = steps / sigma^2 add up (Dong, Roth, Su, 2022, corollary 3.3).
        mu = math.hypot(*(math.sqrt(event.steps) / event.noise_multiplier for event in events))
        tighter, by = {name: gaussian_tpr_bound(mu, rate) for name, rate in rates.items()}, "gaussian"
    else:
        # Every (epsilon(delta), delta) holds at once, so the smallest of their bounds does.
        # One distribution of the loss answers for every delta, which a PRV's grid does not.
        points = [(epsilon(events, other, ("pld", "rdp")).value, other) for other in PROFILE_DELTAS] + [(spent, delta)]
        tighter, by = {name: min(tpr_bound(*point, rate) for point in points) for name, rate in rates.items()}, "profile"
    return Attacker(odds_bound(spent), 1 / (1 + math.exp(-spent)), alone, tighter, by)


def odds_bound(epsilon: float) -> float:
    """The most by which an observation multiplies anybody's odds for one person, up to delta: e^epsilon."""
    return math.exp(epsilon) if epsilon < 700 else math.inf


def gaussian_tpr_bound(mu: float, false_positive_rate: float) -> float:
    """The exact best true positive rate against a mu-Gaussian mechanism: Phi(Phi^-1(FPR) + mu).

    Dong, Roth, Su, "Gaussian differential privacy", 2022, section 2.2.
    """
    return float(ndtr(ndtri(false_positive_rate) + mu))
