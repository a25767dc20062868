"""How much noise a budget asks for, and what a run can do with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedrec.config import Part, RunConfig, load_config
from fedrec.errors import InputError
from fedrec.privacy.accountants import epsilon
from fedrec.privacy.events import SampledGaussian

__all__ = ["NoisePlan", "Plan", "default_delta", "gaussian_mu", "plan_noise", "solve"]

TOLERANCE = 1e-3
"""Relative: the planned epsilon is at most the target and at least this close to it."""
HIDDEN = 384
"""Width of the packaged encoder."""
FREE = ("noise_multiplier", "rounds", "sample_rate")
"""What `solve` can solve for."""
MOST_ROUNDS = 10_000
"""As in `RunConfig.rounds`."""


@dataclass(frozen=True)
class NoisePlan:
    """The noise multiplier of each mechanism of a run, None for one that is not used."""

    histogram: float | None
    heads: float | None
    encoder: float | None

    def of(self, part: Part) -> float:
        """The noise multiplier of a step on `part`."""
        value = self.heads if part == "heads" else self.encoder
        if value is None:
            raise ValueError(f"the run does not train {part}")
        return value

    def events(self, config: RunConfig) -> list[SampledGaussian]:
        """What one merchant releases in the whole run."""
        events = [SampledGaussian(self.histogram)] if self.histogram else []
        for part in ("heads", "encoder"):
            if config.rounds_of(part):
                steps = config.rounds_of(part) * config.local_steps
                events.append(SampledGaussian(self.of(part), config.sample_rate_of(part), steps))
        return events


def plan_noise(config: RunConfig) -> NoisePlan:
    """Noise multipliers under which a run spends `config.epsilon`; given ones are kept.

    Shares are of squared Gaussian mu (Dong, Roth, Su, 2022, section 3), which adds up under
    composition: each mechanism is first set so that alone it spends its share, then all
    planned ones are scaled together until the accountants meet the target.

    Raises:
        InputError: the given noise multipliers alone exceed the target, or no noise meets it.
    """
    mu = gaussian_mu(config.epsilon, config.delta)
    has = {part: config.rounds_of(part) > 0 for part in ("heads", "encoder")}
    rest = 1 - config.histogram_share
    share = {"encoder": rest * (config.encoder_share if has["heads"] else 1.0) if has["encoder"] else 0.0}
    share["heads"] = rest - share["encoder"] if has["heads"] else 0.0
    given: dict[str, float | None] = {
        "histogram": config.histogram_noise_multiplier,
        "heads": config.noise_multiplier,
        "encoder": config.encoder_noise_multiplier or config.noise_multiplier,
    }
    start: dict[str, float | None] = {
        "histogram": 1 / (mu * math.sqrt(config.histogram_share)) if config.histogram_share else None
    }
    for part in ("heads", "encoder"):
        start[part] = _alone(config, part, mu * math.sqrt(share[part])) if has[part] else None

    def plan(factor: float) -> NoisePlan:
        values = {name: None if value is None else given[name] or _rounded_up(value * factor) for name, value in start.items()}
        return NoisePlan(values["histogram"], values["heads"], values["encoder"])

    if all(value is None or given[name] for name, value in start.items()):
        return plan(1.0)
    if epsilon(plan(1e3).events(config), config.delta).value > config.epsilon:
        what = "the given noise multipliers alone" if any(given.values()) else "even 1,000 times the usual noise"
        spent = epsilon(plan(1e3).events(config), config.delta).value
        raise InputError(
            f"{what} would spend epsilon {spent:.3g}", where="epsilon", expected=f"at most {config.epsilon:g}",
            hint="the accountants' own error is 0.01",
        )  # fmt: skip
    return plan(_smallest(lambda factor: epsilon(plan(factor).events(config), config.delta).value, config.epsilon))


def _rounded_up(sigma: float) -> float:
    """To six digits, so that a run which is resumed with other threads asks for the same noise, or merchants decline.

    The planned value differs in its last digits with the number of threads.
    """
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 5)
    return float(f"{math.ceil(sigma / unit) * unit:.6g}")


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
        epsilon_spent: what all rounds and the histogram cost.
        accountant: the one that gave `epsilon_spent`.
        epsilon_without_histogram: what the rounds alone cost.
        lot: expected users in a step.
        trainable: trained numbers in a step on the heads.
        signal_to_noise: of one merchant's step on the heads: lot over noise multiplier times
            sqrt(trainable). An upper bound: it is reached when all users' gradients are clipped
            and point the same way.
        merchants: how many such merchants' updates are averaged.
        signal_to_noise_of_mean: of that mean; their noise is independent, so sqrt(merchants) better.
        encoder_trainable: trained numbers in a step on the encoder's LoRA.
        encoder_signal_to_noise: of one merchant's step on the encoder with the same noise and lot.
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

    def spent_after(self, rounds: Iterable[int], *, histogram: bool = True) -> list[float]:
        """Epsilon after each number of rounds at this plan's noise, with or without the histogram."""
        sigma = self.histogram_noise_multiplier if histogram else None
        events = (_events(sigma, self.noise_multiplier, self.sample_rate, count * self.local_steps) for count in rounds)
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

    All rounds train the heads. The histogram gets its share of squared Gaussian mu; noise that
    is solved for is `plan_noise`'s, so that a run with these settings and encoder_rounds 0 plans the
    same.

    Args:
        users: of one merchant (its declared population).
        epsilon: target, a merchant and run.
        delta: target; `default_delta` when absent.
        noise_multiplier, rounds, sample_rate: exactly two of them.
        merchants: how many merchants' updates are averaged.
        settings: others of `RunConfig`: local_steps, histogram_share, rank, min_lot...

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
        return _plan(config.model_copy(update={"noise_multiplier": found.heads}), users, merchants, found.histogram, free[0])
    histogram = config.histogram_noise_multiplier
    if histogram is None and config.histogram_share:
        histogram = 1 / (gaussian_mu(epsilon, delta) * math.sqrt(config.histogram_share))
    value = _most_rounds(config, histogram) if free[0] == "rounds" else _largest_rate(config, histogram, users)
    return _plan(config.model_copy(update={free[0]: value}), users, merchants, histogram, free[0])


def _plan(config: RunConfig, users: int, merchants: int, histogram: float | None, solved: str) -> Plan:
    sigma, rate, steps = config.noise_multiplier or math.nan, config.sample_rate, config.rounds * config.local_steps
    spent = epsilon(_events(histogram, sigma, rate, steps), config.delta)
    lot, trainable = rate * users, 2 * config.rank * HIDDEN
    encoder = 2 * config.encoder_layers * config.encoder_rank * HIDDEN
    signal_to_noise = lot / (sigma * math.sqrt(trainable))
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
        epsilon_spent=spent.value,
        accountant=spent.accountant,
        epsilon_without_histogram=epsilon(_events(None, sigma, rate, steps), config.delta).value,
        lot=lot,
        trainable=trainable,
        signal_to_noise=signal_to_noise,
        merchants=merchants,
        signal_to_noise_of_mean=signal_to_noise * math.sqrt(merchants),
        encoder_trainable=encoder,
        encoder_signal_to_noise=lot / (sigma * math.sqrt(encoder)) if encoder else None,
    )


def _events(histogram: float | None, sigma: float, rate: float, steps: int) -> list[SampledGaussian]:
    first = [SampledGaussian(histogram)] if histogram else []
    return [*first, SampledGaussian(sigma, rate, steps)]


def _most_rounds(config: RunConfig, histogram: float | None) -> int:
    """The largest number of rounds that fits; the most a run may have if even that does."""

    def fits(rounds: int, names: Iterable[str] | None = None) -> bool:
        events = _events(histogram, config.noise_multiplier or math.nan, config.sample_rate, rounds * config.local_steps)
        return epsilon(events, config.delta, names).value <= config.epsilon

    if not fits(1):
        raise _no_solution(config, histogram, config.sample_rate, "rounds", "one round")
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


def _largest_rate(config: RunConfig, histogram: float | None, users: int) -> float:
    """The largest sampling rate that fits, at least the one with `min_lot` expected users."""
    steps = config.rounds * config.local_steps

    def spent(one_in: float) -> float:
        return epsilon(_events(histogram, config.noise_multiplier or math.nan, min(1.0, 1 / one_in), steps), config.delta).value

    most = users / config.min_lot
    if spent(most) > config.epsilon:
        raise _no_solution(config, histogram, 1 / most, "sample_rate", f"a run with {config.min_lot:g} expected users a step")
    if spent(1.0) <= config.epsilon:
        return 1.0
    return 1 / _between(spent, config.epsilon, 1.0, most)


def _no_solution(config: RunConfig, histogram: float | None, rate: float, where: str, what: str) -> InputError:
    steps = config.local_steps * (1 if where == "rounds" else config.rounds)
    sigma = config.noise_multiplier or math.nan
    spent = epsilon(_events(histogram, sigma, rate, steps), config.delta).value
    alone = epsilon([SampledGaussian(histogram)], config.delta).value if histogram else 0.0
    return InputError(
        f"nothing fits: {what} (steps: {steps}, sample_rate {rate:g}, noise_multiplier {sigma:g}) spends epsilon {spent:.3g} "
        f"at delta {config.delta:g}, the histogram alone {alone:.3g}",
        where=where,
        expected=f"at most {config.epsilon:g}",
        hint="more noise, a larger budget, or a smaller histogram share",
    )


def gaussian_mu(target: float, delta: float) -> float:
    """The mu for which mu-Gaussian DP is (target, delta)-DP: the exact Gaussian trade-off.

    delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)  (Balle and Wang, ICML 2018,
    theorem 8).

    Raises:
        InputError: mu would be under 1e-4 or over 1e3.
    """

    def gap(log_mu: float) -> float:
        mu = math.exp(log_mu)
        first, second = log_ndtr(-target / mu + mu / 2), target + log_ndtr(-target / mu - mu / 2)
        return float(first + math.log1p(-math.exp(min(second - first, -1e-15)))) - math.log(delta)

    ends = math.log(1e-4), math.log(1e3)
    if not gap(ends[0]) < 0 < gap(ends[1]):
        raise InputError(f"epsilon {target:g} at delta {delta:g} is out of reach of planning", where="epsilon")
    return math.exp(brentq(gap, *ends))


def _alone(config: RunConfig, part: Part, mu: float) -> float:
    """The noise multiplier at which all rounds of `part` alone are about mu-Gaussian DP."""
    steps, rate = config.rounds_of(part) * config.local_steps, config.sample_rate_of(part)
    if rate == 1:
        return math.sqrt(steps) / mu
    target = epsilon([SampledGaussian(1 / mu)], config.delta).value
    return _smallest(lambda sigma: epsilon([SampledGaussian(sigma, rate, steps)], config.delta).value, target, 0.02)


def _smallest(spent: Callable[[float], float], target: float, tolerance: float = TOLERANCE) -> float:
    """The smallest argument (to `tolerance`) at which the falling function `spent` is at most `target`."""
    low = high = 1.0
    while spent(high) > target:
        low, high = high, high * 1.5
        if high > 1e6:
            raise InputError(
                f"no noise reaches epsilon {target:g}: a factor of {low:.0f} on it still counts as {spent(low):.3g}",
                where="epsilon",
                hint="the accountants' own error is 0.01: ask for more than that, or for a larger delta",
            )
    while low == high or spent(low) <= target:
        low = low / 1.5
        if low < 1e-2:
            return low
    return _between(spent, target, low, high, tolerance)


def _between(spent: Callable[[float], float], target: float, low: float, high: float, tolerance: float = TOLERANCE) -> float:
    """`_smallest`, known to lie over `low` and not over `high`; five evaluations rather than bisection's fifteen."""

    def gap(log_x: float) -> float:
        # Epsilon is near a power of noise and rate, so its logarithm is near a line.
        return math.log(max(spent(math.exp(log_x)), 1e-12) / target)

    # A root to half the tolerance, and half of it on top for the safe side of the root.
    value = math.exp(brentq(gap, math.log(low), math.log(high), xtol=tolerance / 2) + tolerance / 2)
    while value < high and spent(value) > target:
        value *= 1 + tolerance / 2
    return min(value, high)
