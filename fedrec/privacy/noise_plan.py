"""The noise multipliers under which a run spends its budget, and the root finding they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedrec.config import Part, RunConfig
from fedrec.errors import InputError
from fedrec.privacy.accountants import epsilon
from fedrec.privacy.events import SampledGaussian

__all__ = ["NoisePlan", "between", "gaussian_mu", "plan_noise"]

TOLERANCE = 1e-3
"""Relative: the planned epsilon is at most the target and at least this close to it."""


@dataclass(frozen=True)
class NoisePlan:
    """The noise multiplier of each mechanism of a run, None for one that is not used."""

    histogram: float | None
    heads: float | None
    encoder: float | None
    complements: float | None = None

    def of(self, part: Part) -> float:
        """The noise multiplier of a step on `part`."""
        value = self.heads if part == "heads" else self.encoder
        if value is None:
            raise ValueError(f"the run does not train {part}")
        return value

    def events(self, config: RunConfig) -> list[SampledGaussian]:
        """What one merchant releases in the whole run."""
        events = [SampledGaussian(sigma) for sigma in (self.complements, self.histogram) if sigma]
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
    rest = 1 - config.histogram_share - config.complement_share
    share = {"encoder": rest * (config.encoder_share if has["heads"] else 1.0) if has["encoder"] else 0.0}
    share["heads"] = rest - share["encoder"] if has["heads"] else 0.0
    given: dict[str, float | None] = {
        "complements": config.complement_noise_multiplier,
        "histogram": config.histogram_noise_multiplier,
        "heads": config.noise_multiplier,
        "encoder": config.encoder_noise_multiplier or config.noise_multiplier,
    }
    start: dict[str, float | None] = {
        name: 1 / (mu * math.sqrt(of_it)) if of_it else None
        for name, of_it in (("complements", config.complement_share), ("histogram", config.histogram_share))
    }
    for part in ("heads", "encoder"):
        start[part] = _alone(config, part, mu * math.sqrt(share[part])) if has[part] else None

    def plan(factor: float) -> NoisePlan:
        values = {name: None if value is None else given[name] or _rounded_up(value * factor) for name, value in start.items()}
        return NoisePlan(**values)

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
    return between(spent, target, low, high, tolerance)


def between(spent: Callable[[float], float], target: float, low: float, high: float, tolerance: float = TOLERANCE) -> float:
    """`_smallest`, known to lie over `low` and not over `high`; five evaluations rather than bisection's fifteen."""

    def gap(log_x: float) -> float:
        # Epsilon is near a power of noise and rate, so its logarithm is near a line.
        return math.log(max(spent(math.exp(log_x)), 1e-12) / target)

    # A root to half the tolerance, and half of it on top for the safe side of the root.
    value = math.exp(brentq(gap, math.log(low), math.log(high), xtol=tolerance / 2) + tolerance / 2)
    while value < high and spent(value) > target:
        value *= 1 + tolerance / 2
    return min(value, high)
