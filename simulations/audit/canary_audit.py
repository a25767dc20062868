"""The canary audit: plant made-up users, release as a merchant does, and guess which of them were there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.privacy import SeededNoise
from fedrec.privacy.audit import epsilon_lower_bound, membership_metrics
from simulations.audit.mechanisms import MECHANISMS, View, audit_config
from simulations.audit.target import Attacked, Origin, Switch, Target

__all__ = ["CanaryAudit", "canary_audit"]

GUESSED = 0.25
"""Share of the canaries that are guessed: the top eighth by score as "in", the bottom eighth as
"out". Fixed before any coin is tossed, as the bound needs. More guesses show more where the
attack is always right, fewer where only its extremes are; a quarter did best with the noise on."""


@dataclass(frozen=True)
class CanaryAudit:
    """What the canary audit found.

    Attributes:
        epsilon_claimed, delta: what the run claims to spend.
        epsilon_lower: at `confidence`, the run's epsilon is more than this.
        epsilon_most: the largest `epsilon_lower` that this many guesses could show.
        canaries, guesses, correct: planted, guessed, guessed right.
        auc: of the canaries' scores.
        noise: "off" for a check of the audit itself.
        noise_origin: "system" for that of a deployed merchant.
        noise_multiplier: of a step.
        mechanism: which of `MECHANISMS` was attacked.
    """

    epsilon_claimed: float
    delta: float
    epsilon_lower: float
    epsilon_most: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    auc: float
    rounds: int
    users: int
    noise: Switch
    noise_multiplier: float
    noise_origin: Origin
    merchant: str
    seed: int
    mechanism: str
    method: str

    @property
    def refuted(self) -> bool:
        """Whether the claim is shown to be false."""
        return self.epsilon_lower > self.epsilon_claimed

    def as_json(self) -> dict[str, Any]:
        """All fields by name, and `refuted`."""
        return {**asdict(self), "refuted": self.refuted}


def canary_audit(
    config: RunConfig,
    target: Target,
    *,
    mechanism: str = "heads",
    canaries: int = 500,
    noise: bool = True,
    origin: Origin = "seed",
    seed: int = 0,
    confidence: float = 0.95,
) -> CanaryAudit:
    """Plant canaries, release, guess which were included, and bound epsilon from below.

    Args:
        config: settings; unless given, the noise is planned for `epsilon` and `delta` with all of the budget in the mechanism.
        target: the merchant under attack.
        mechanism: which of `MECHANISMS`.
        canaries: how many made-up users, each included by a fair coin.
        noise: False releases with (practically) none, to see whether the audit finds the leak.
        origin: of sampling and noise; the canaries and their coins come from the seed.
        seed: of the canaries, the coins and the noise.

    Raises:
        InputError: no such mechanism, too few canaries, too many for the catalogue, or settings that leave nothing to attack.
    """
    config, data, attacked = audit_config(config, mechanism), target.merchant.data, MECHANISMS[mechanism]
    planted = attacked.canaries(config, data.catalogue, canaries, seed)
    included = SeededNoise(seed, target.merchant.name, "audit coins").poisson(canaries, 0.5)
    coins = np.isin(np.arange(canaries), included)
    sigma, claimed = attacked.plan(config, noise)
    population = target.merchant.policy.population + canaries // 2
    run = Attacked(config, target, "canaries", population, sigma, seed, origin)
    estimate, releases = _Estimate(canaries), 0
    for view in attacked.views(run, planted, included):
        estimate.see(view)
        releases += 1
    scores = estimate.scores()
    guesses = 2 * max(1, int(GUESSED * canaries / 2))
    order = np.argsort(scores, kind="stable")
    correct = int(coins[order[-guesses // 2 :]].sum() + (~coins[order[: guesses // 2]]).sum())
    return CanaryAudit(
        epsilon_claimed=claimed,
        delta=config.delta,
        epsilon_lower=epsilon_lower_bound(canaries, guesses, correct, config.delta, confidence),
        epsilon_most=epsilon_lower_bound(canaries, guesses, guesses, config.delta, confidence),
        confidence=confidence,
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        auc=membership_metrics(scores[coins], scores[~coins]).auc,
        rounds=releases,
        users=len(data.histories),
        noise="on" if noise else "off",
        noise_multiplier=sigma,
        noise_origin=origin,
        merchant=target.merchant.name,
        seed=seed,
        mechanism=mechanism,
        method=(
            f"one-run canary audit of {attacked.what} (Steinke, Nasr, Jagielski, NeurIPS 2023), user-level canaries, "
            "auditor sees every release and knows all other users"
        ),
    )


class _Estimate:
    """The linear estimate of who was included, from every release.

    A release says  y = q G' b + noise  as the mean of its steps, with b the coins, G the canaries' parts and
    y the release less what the known users add. Under Gaussian noise of variance s the least squares
    estimate of b, with variance 1/4 before anything is seen, solves

        (sum_t q^2 M_t K_t + 4 I) (b - 1/2) = sum_t q M_t G_t (y_t - q G_t' 1/2),
        K_t = G_t G_t',   M_t = (s I + q (1 - q) / 2 K_t)^-1,

    where the second term of M_t is that of sampling. It weighs directions by how well they
    tell one canary from the rest, so what canaries share is discounted.
    """

    def __init__(self, canaries: int) -> None:
        self.left = 4 * np.eye(canaries)
        self.right = np.zeros(canaries)

    def see(self, view: View) -> None:
        """Take in one release."""
        g, rate = view.parts, view.rate
        y = view.answer - rate * g.sum(0, dtype=np.float64) / 2
        k = (g @ g.T).astype(np.float64)
        whiten = (view.std**2 * np.eye(len(g)) + rate * (1 - rate) / 2 * k) / view.steps
        self.left += rate**2 * np.linalg.solve(whiten, k)
        self.right += rate * np.linalg.solve(whiten, g @ y)

    def scores(self) -> np.ndarray:
        """(canaries,) higher where more likely included."""
        return np.linalg.solve(self.left, self.right)
