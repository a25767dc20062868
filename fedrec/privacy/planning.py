"""How much noise a budget asks for."""

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

__all__ = ["NoisePlan", "gaussian_mu", "plan_noise"]

TOLERANCE = 1e-3
"""Relative: the planned epsilon is at most the target and at least this close to it."""


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
        InputError: the given noise multipliers alone exceed the target.
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
        values = {name: None if value is None else given[name] or value * factor for name, value in start.items()}
        return NoisePlan(values["histogram"], values["heads"], values["encoder"])

    if all(value is None or given[name] for name, value in start.items()):
        return plan(1.0)
    if epsilon(plan(1e3).events(config), config.delta).value > config.epsilon:
        raise InputError(
            f"the given noise multipliers alone spend more than epsilon {config.epsilon}", where="noise_multiplier"
        )
    return plan(_smallest(lambda factor: epsilon(plan(factor).events(config), config.delta).value, config.epsilon))


def gaussian_mu(target: float, delta: float) -> float:
    """The mu for which mu-Gaussian DP is (target, delta)-DP: the exact Gaussian trade-off.

    delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)  (Balle and Wang, ICML 2018,
    theorem 8).
    """

    def gap(log_mu: float) -> float:
        mu = math.exp(log_mu)
        first, second = log_ndtr(-target / mu + mu / 2), target + log_ndtr(-target / mu - mu / 2)
        return float(first + math.log1p(-math.exp(min(second - first, -1e-15)))) - math.log(delta)

    return math.exp(brentq(gap, math.log(1e-4), math.log(1e3)))


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
            raise InputError(f"no amount of noise reaches epsilon {target}", where="epsilon")
    while low == 1.0 and high == 1.0 or spent(low) <= target:
        low = low / 1.5
        if low < 1e-2:
            return low
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > target else (low, middle)
    return high
