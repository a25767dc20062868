"""What secure aggregation buys over local noise for the same epsilon, and what it stakes on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedrec.config import RunConfig
from fedrec.privacy.accountants import epsilon
from fedrec.privacy.events import SampledGaussian

__all__ = ["SecurePlan", "plan_secure_sum", "why_no_secure_sum"]


@dataclass(frozen=True)
class SecurePlan:
    """A plan's rounds under `trust = "secure-aggregation"`, with the noise multipliers of the plan.

    Of N merchants at least `honest` = h = N - dropouts - colluders add a share sigma / sqrt(h) of the
    noise to every sum that is opened. Rounding to the grid, which makes a share larger by less than
    one step of it, is left out.

    Attributes:
        dropouts: merchants that may be missing from a sum.
        colluders: merchants that may tell the server all they know.
        honest: the fewest honest merchants, itself included, in a sum.
        noise_multiplier_alone: one merchant's share of the noise of a step.
        noise_multiplier_of_sum: noise in the opened sum, at most, over `clip_norm`: all N shares.
        histogram_noise_multiplier_alone: one merchant's share of the noise of the histogram; None if it is not sent.
        histogram_noise_multiplier_of_sum: of the sum of all histograms, at most.
        complement_noise_multiplier_alone: the same as for the histogram, of which kinds of item share a basket.
        complement_noise_multiplier_of_sum: of the sum of all of these, at most.
        signal_to_noise: of the sum of all merchants' steps on the heads, which is that of the mean.
        worth_in_users: of the whole run: see `fedrec.privacy.worth`.
        epsilon_alone: what still holds if every other merchant tells the server all it knows.
        accountant_alone: the one that gave it.
    """

    dropouts: int
    colluders: int
    honest: int
    noise_multiplier_alone: float
    noise_multiplier_of_sum: float
    histogram_noise_multiplier_alone: float | None
    histogram_noise_multiplier_of_sum: float | None
    complement_noise_multiplier_alone: float | None
    complement_noise_multiplier_of_sum: float | None
    signal_to_noise: float
    worth_in_users: float
    epsilon_alone: float
    accountant_alone: str


def why_no_secure_sum(config: RunConfig, merchants: int) -> str | None:
    """Why a run with so many merchants cannot use secure aggregation, or None."""
    if 2 * config.dropouts + config.colluders >= merchants:
        return (
            f"{merchants} {'merchant is' if merchants == 1 else 'merchants are'} too few for dropouts = {config.dropouts} and "
            f"colluders = {config.colluders}: twice the dropouts and the colluders must be fewer than the merchants"
        )
    if config.local_steps != 1:
        return f"it has one step a round: local_steps is {config.local_steps}"
    return None


def plan_secure_sum(
    config: RunConfig,
    events: Sequence[SampledGaussian],
    histogram: float | None,
    complements: float | None,
    merchants: int,
    signal_to_noise: float,
) -> SecurePlan:
    """What these settings give when `merchants` of one size share the noise.

    Args:
        config: with the planned noise multiplier; `why_no_secure_sum` finds nothing.
        events: what one merchant releases, at the noise that holds against the server.
        histogram: noise multiplier of the histogram; None if it is not sent.
        complements: the same of which kinds of item share a basket.
        signal_to_noise: of one merchant's step with all of the noise.
    """
    honest = merchants - config.dropouts - config.colluders
    share, of_sum = 1 / math.sqrt(honest), math.sqrt(merchants / honest)
    sigma = config.noise_multiplier or math.nan
    alone = epsilon([SampledGaussian(one.noise_multiplier * share, one.sample_rate, one.steps) for one in events], config.delta)
    return SecurePlan(
        dropouts=config.dropouts,
        colluders=config.colluders,
        honest=honest,
        noise_multiplier_alone=sigma * share,
        noise_multiplier_of_sum=sigma * of_sum,
        histogram_noise_multiplier_alone=histogram * share if histogram else None,
        histogram_noise_multiplier_of_sum=histogram * of_sum if histogram else None,
        complement_noise_multiplier_alone=complements * share if complements else None,
        complement_noise_multiplier_of_sum=complements * of_sum if complements else None,
        # The signal of N merchants over the noise of one, times sqrt(N / h).
        signal_to_noise=signal_to_noise * merchants / of_sum,
        worth_in_users=config.rounds * config.local_steps * (signal_to_noise * merchants / of_sum) ** 2,
        epsilon_alone=alone.value,
        accountant_alone=alone.accountant,
    )
