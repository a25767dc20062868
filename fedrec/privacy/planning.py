"""What a run can do with a budget: the noise, the rounds or the sampling rate that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedrec.config import RunConfig, load_config
from fedrec.errors import InputError
from fedrec.privacy.accountants import epsilon
from fedrec.privacy.events import SampledGaussian
from fedrec.privacy.noise_plan import between, gaussian_mu, plan_noise
from fedrec.privacy.secure_plan import SecurePlan, plan_secure_sum, why_no_secure_sum
from fedrec.privacy.worth import worth_in_users

__all__ = ["Plan", "default_delta", "solve"]

HIDDEN = 384
"""Width of the packaged encoder."""
Sigmas = tuple[float | None, float | None]
"""Noise multipliers of what goes with what, and of the histogram; None for one that is not sent."""
FREE = ("noise_multiplier", "rounds", "sample_rate")
"""What `solve` can solve for."""
MOST_ROUNDS = 10_000
"""As in `RunConfig.rounds`."""


@dataclass(frozen=True)
class Plan:
    """A run of rounds on the heads that fits a budget; the settings have their names in `RunConfig`.

    Attributes:
        solved: which of the settings was solved for.
        users: of one merchant (its declared population).
        epsilon: the target, a merchant and run.
        delta: the target.
        noise_multiplier: noise of a step over `clip_norm`.
        histogram_noise_multiplier: noise of the popularity histogram; None if it is not sent.
        complement_noise_multiplier: the same of which kinds of item share a basket.
        epsilon_spent: what all rounds and statistics cost.
        accountant: the one that gave `epsilon_spent`.
        epsilon_without_histogram: what all but the histogram costs.
        lot: expected users in a step.
        trainable: trained numbers in a step on the heads.
        signal_to_noise: of one merchant's step on the heads: lot over noise multiplier times
            sqrt(trainable). An upper bound: it is reached when all users' gradients are clipped
            and point the same way.
        merchants: how many such merchants' updates are averaged.
        signal_to_noise_of_mean: of that mean under `trust = "local"`: the noise of each is independent, so
            sqrt(merchants) better.
        encoder_trainable: trained numbers in a step on the encoder's LoRA.
        encoder_signal_to_noise: of one merchant's step on the encoder with the same noise and lot.
        worth_in_users: of the whole run under `trust = "local"`: see `fedrec.privacy.worth`.
        secure_aggregation: the same rounds and epsilon under `trust = "secure-aggregation"`; None where it cannot be.
        no_secure_aggregation: why it cannot be; None where it can.
    """

    solved: str
    users: int
    epsilon: float
    delta: float
    rounds: int
    local_steps: int
    sample_rate: float
    noise_multiplier: float
    histogram_share: float
    histogram_noise_multiplier: float | None
    complement_share: float
    complement_noise_multiplier: float | None
    epsilon_spent: float
    accountant: str
    epsilon_without_histogram: float
    lot: float
    trainable: int
    signal_to_noise: float
    merchants: int
    signal_to_noise_of_mean: float
    encoder_trainable: int
    encoder_signal_to_noise: float | None
    worth_in_users: float
    secure_aggregation: SecurePlan | None
    no_secure_aggregation: str | None

    def spent_after(self, rounds: Iterable[int], *, histogram: bool = True) -> list[float]:
        """Epsilon after each number of rounds at this plan's noise, with or without the histogram."""
        sigmas = (self.complement_noise_multiplier, self.histogram_noise_multiplier if histogram else None)
        events = (_events(sigmas, self.noise_multiplier, self.sample_rate, count * self.local_steps) for count in rounds)
        return [epsilon(made, self.delta).value for made in events]


def default_delta(users: int) -> float:
    """1 / (10 users): well under 1/users, at which publishing one user's whole record at random would be allowed."""
    return 1 / (10 * users)


def solve(
    *,
    users: int,
    epsilon: float,
    delta: float | None = None,
    noise_multiplier: float | None = None,
    rounds: int | None = None,
    sample_rate: float | None = None,
    merchants: int = 1,
    **settings: Any,
) -> Plan:
    """The least noise, the most rounds or the largest sampling rate that a budget allows, given the two others.

    All rounds train the heads. Each statistic gets its share of squared Gaussian mu; noise that
    is solved for is `plan_noise`'s, so that a run with these settings and encoder_rounds 0 plans the
    same.

    Args:
        users: of one merchant (its declared population).
        epsilon: target, a merchant and run.
        delta: target; `default_delta` when absent.
        noise_multiplier, rounds, sample_rate: exactly two of them.
        merchants: how many merchants' updates are averaged.
        settings: others of `RunConfig`: local_steps, histogram_share, complement_share, rank, min_lot, dropouts, colluders...

    Raises:
        InputError: a setting is out of range, or nothing fits the budget; it says what was tried.
    """
    given = {"noise_multiplier": noise_multiplier, "rounds": rounds, "sample_rate": sample_rate}
    free = [name for name in FREE if given[name] is None]
    if len(free) != 1:
        raise InputError(f"{len(free)} of {', '.join(FREE)} are left to solve for", where="plan", expected="exactly one")
    if users < 1 or merchants < 1:
        raise InputError(f"found {users} users and {merchants} merchants", where="plan", expected="at least 1 of each")
    delta = default_delta(users) if delta is None else delta
    if delta * users >= 1:
        raise InputError(
            f"{delta:g} is not under 1/users = {1 / users:g}: it would allow publishing one user's whole record",
            where="delta",
            hint=f"1/(10 users) is {default_delta(users):g}",
        )
    known = {name: value for name, value in given.items() if value is not None}
    config = load_config(overrides={**settings, **known, "encoder_rounds": 0, "epsilon": epsilon, "delta": delta})
    lot = config.sample_rate * users
    if lot < config.min_lot:
        raise InputError(
            f"a step would have {lot:g} expected users at sample rate {config.sample_rate:g}", where="sample_rate",
            expected=f"at least min_lot = {config.min_lot:g}", hint="a merchant this small cannot take part",
        )  # fmt: skip
    if free[0] == "noise_multiplier":
        found = plan_noise(config)
        sigmas = found.complements, found.histogram
        return _plan(config.model_copy(update={"noise_multiplier": found.heads}), users, merchants, sigmas, free[0])
    mu = gaussian_mu(epsilon, delta)
    pairs, histogram = (1 / (mu * math.sqrt(of)) if of else None for of in (config.complement_share, config.histogram_share))
    sigmas = pairs and (config.complement_noise_multiplier or pairs), config.histogram_noise_multiplier or histogram
    value = _most_rounds(config, sigmas) if free[0] == "rounds" else _largest_rate(config, sigmas, users)
    return _plan(config.model_copy(update={free[0]: value}), users, merchants, sigmas, free[0])


def _plan(config: RunConfig, users: int, merchants: int, sigmas: Sigmas, solved: str) -> Plan:
    sigma, rate, steps = config.noise_multiplier or math.nan, config.sample_rate, config.rounds * config.local_steps
    (pairs, histogram), events = sigmas, _events(sigmas, sigma, rate, steps)
    spent = epsilon(events, config.delta)
    lot, trainable = rate * users, 2 * config.rank * HIDDEN
    encoder = 2 * config.encoder_layers * config.encoder_rank * HIDDEN
    signal_to_noise = lot / (sigma * math.sqrt(trainable))
    reason = why_no_secure_sum(config, merchants)
    return Plan(
        solved=solved,
        users=users,
        epsilon=config.epsilon,
        delta=config.delta,
        rounds=config.rounds,
        local_steps=config.local_steps,
        sample_rate=rate,
        noise_multiplier=sigma,
        histogram_share=config.histogram_share,
        histogram_noise_multiplier=histogram,
        complement_share=config.complement_share,
        complement_noise_multiplier=pairs,
        epsilon_spent=spent.value,
        accountant=spent.accountant,
        epsilon_without_histogram=epsilon(_events((pairs, None), sigma, rate, steps), config.delta).value,
        lot=lot,
        trainable=trainable,
        signal_to_noise=signal_to_noise,
        merchants=merchants,
        signal_to_noise_of_mean=signal_to_noise * math.sqrt(merchants),
        encoder_trainable=encoder,
        encoder_signal_to_noise=lot / (sigma * math.sqrt(encoder)) if encoder else None,
        worth_in_users=worth_in_users(
            steps=steps, lot=lot * merchants, noise_multiplier=sigma, numbers=trainable, sums=merchants
        ),
        secure_aggregation=None if reason else plan_secure_sum(config, events, histogram, pairs, merchants, signal_to_noise),
        no_secure_aggregation=reason,
    )


def _events(sigmas: Sigmas, sigma: float, rate: float, steps: int) -> list[SampledGaussian]:
    return [*(SampledGaussian(one) for one in sigmas if one), SampledGaussian(sigma, rate, steps)]


def _most_rounds(config: RunConfig, sigmas: Sigmas) -> int:
    """The largest number of rounds that fits; the most a run may have if even that does."""

    def fits(rounds: int, names: Iterable[str] | None = None) -> bool:
        events = _events(sigmas, config.noise_multiplier or math.nan, config.sample_rate, rounds * config.local_steps)
        return epsilon(events, config.delta, names).value <= config.epsilon

    if not fits(1):
        raise _no_solution(config, sigmas, config.sample_rate, "rounds", "one round")
    # RDP costs next to nothing and is an upper bound: what fits by it fits.
    low, high = 1, MOST_ROUNDS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle, ("rdp",)) else (low, middle)
    high, step = low + 1, max(1, low // 10)
    while high <= MOST_ROUNDS and fits(high):
        low, high, step = high, high + step, 2 * step
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _largest_rate(config: RunConfig, sigmas: Sigmas, users: int) -> float:
    """The largest sampling rate that fits, at least the one with `min_lot` expected users."""
    steps = config.rounds * config.local_steps

    def spent(one_in: float) -> float:
        return epsilon(_events(sigmas, config.noise_multiplier or math.nan, min(1.0, 1 / one_in), steps), config.delta).value

    most = users / config.min_lot
    if spent(most) > config.epsilon:
        raise _no_solution(config, sigmas, 1 / most, "sample_rate", f"a run with {config.min_lot:g} expected users a step")
    if spent(1.0) <= config.epsilon:
        return 1.0
    return 1 / between(spent, config.epsilon, 1.0, most)


def _no_solution(config: RunConfig, sigmas: Sigmas, rate: float, where: str, what: str) -> InputError:
    steps = config.local_steps * (1 if where == "rounds" else config.rounds)
    sigma = config.noise_multiplier or math.nan
    spent = epsilon(_events(sigmas, sigma, rate, steps), config.delta).value
    alone = epsilon([SampledGaussian(one) for one in sigmas if one], config.delta).value if any(sigmas) else 0.0
    shares = "histogram_share or complement_share" if sigmas[0] else "histogram_share"
    return InputError(
        f"nothing fits: {what} (steps: {steps}, sample_rate {rate:g}, noise_multiplier {sigma:g}) spends epsilon {spent:.3g} "
        f"at delta {config.delta:g}, {'the statistics' if sigmas[0] else 'the histogram'} alone {alone:.3g}",
        where=where,
        expected=f"at most {config.epsilon:g}",
        hint=f"more noise, a larger budget, or a smaller {shares}",
    )
