"""From events to epsilon, by more than one accountant.

Each accountant is a function registered by name that gives a valid upper bound; the
tightest is reported with its name. PRV (Gopi, Lee, Wutschitz, NeurIPS 2021) and RDP
(Mironov, Talwar, Zhang, 2019) are Opacus's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from opacus.accountants import PRVAccountant, RDPAccountant

from fedrec.privacy.events import SampledGaussian

__all__ = ["ACCOUNTANTS", "Epsilon", "accountant", "epsilon"]

Accountant = Callable[[Sequence[SampledGaussian], float], float]
ACCOUNTANTS: dict[str, Accountant] = {}


@dataclass(frozen=True)
class Epsilon:
    """An upper bound on epsilon at a delta, and the accountant that gave it."""

    value: float
    delta: float
    accountant: str


def accountant(name: str) -> Callable[[Accountant], Accountant]:
    """Register an accountant: events and delta to an upper bound on epsilon."""

    def register(function: Accountant) -> Accountant:
        ACCOUNTANTS[name] = function
        return function

    return register


def epsilon(events: Sequence[SampledGaussian], delta: float) -> Epsilon:
    """The tightest valid bound over all accountants for the composition of `events`.

    An accountant that fails on these events (PRV does, numerically, at extreme noise) is
    left out; RDP never does.
    """
    return _epsilon(tuple(merge(events)), delta) if events else Epsilon(0.0, delta, "none")


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[SampledGaussian, ...], delta: float) -> Epsilon:
    bounds = []
    for name, bound in ACCOUNTANTS.items():
        try:
            value = bound(merged, delta)
        except (RuntimeError, ValueError, FloatingPointError, MemoryError, IndexError):
            continue
        if math.isfinite(value) and value >= 0:
            bounds.append((value, name))
    value, name = min(bounds, default=(math.inf, "none"))
    return Epsilon(value, delta, name)


def merge(events: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """Add up the steps of equal mechanisms; composition does not depend on their order."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        steps[key] = steps.get(key, 0) + event.steps
    return [SampledGaussian(sigma, rate, count) for (sigma, rate), count in sorted(steps.items())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns of log(1 - q) at q = 1 and of a best order at the end of its range; neither is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@accountant("prv")
def prv(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus's PRV accountant: the upper end of its estimate, error 0.01 in epsilon."""
    account = PRVAccountant()
    account.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    with _quiet():
        return float(account.get_epsilon(delta))


@accountant("rdp")
def rdp(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus's RDP accountant over its default orders."""
    account = RDPAccountant()
    account.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    with _quiet():
        return float(account.get_epsilon(delta))
