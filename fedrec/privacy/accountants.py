"""From events to epsilon, by more than one accountant.

Each accountant is a function registered by name that gives a valid upper bound; the
tightest is reported with its name. PRV (Gopi, Lee, Wutschitz, NeurIPS 2021) and RDP
(Mironov, Talwar, Zhang, 2019) are Opacus's, PLD (Doroshenko et al., PoPETs 2022) is Google's
dp-accounting. All take neighbouring data sets to differ by one record, added or removed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp as renyi

from fedrec.privacy.events import SampledGaussian

__all__ = ["ACCOUNTANTS", "ALL", "FAST", "Epsilon", "accountant", "epsilon"]

Accountant = Callable[[Sequence[SampledGaussian], float], float]
ACCOUNTANTS: dict[str, Accountant] = {}
ALL = ACCOUNTANTS.keys()
"""Every accountant's name, for reports."""
FAST = ("prv", "rdp")
"""The names for ledgers and planning. PLD, at up to 3 s, takes longer and gains about 0.01."""

SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP = 1e-10, 1e-13
"""Under the first, or the second times the steps, PRV and PLD are not asked: a Fourier transform to the
power of the steps is off by some 1e-16 a step. Measured: Opacus's PRV is 0.017 *under* PLD at delta 1e-10
(noise 0.3, rate 1e-4, 10,000 steps) and about 0.04 under the truth at 1e-14 (2, 0.1, 100 steps). At the
limit it is 3e-3 of delta, 0.001 in epsilon: well within PRV's margin of 0.01."""
PRV_ERROR, LARGEST_PRV_ERROR = 0.01, 0.1
PRV_POINTS = 2**21
"""Most points of PRV's grid, about 3 s: the error grows instead, and over 0.1 PRV gives up. Unbounded it
took 36 s at epsilon 349 over 10,000 steps, which a server could ask of every merchant."""
PLD_INTERVAL = 1e-4
"""Grid of the privacy loss: dp-accounting's default. It is coarser from epsilon 100 on, so that
memory stays bounded; the bound stays an upper one."""


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


def epsilon(events: Sequence[SampledGaussian], delta: float, names: Iterable[str] | None = None) -> Epsilon:
    """The tightest valid bound over some accountants for the composition of `events`.

    An accountant that fails on these events (PRV does, numerically, at extreme noise) is
    left out; RDP never does.

    Args:
        events: in any order; none at all cost nothing.
        delta: at which the bound holds.
        names: the accountants to ask; `FAST` when absent, `ALL` for a report.

    Raises:
        ValueError: there is no accountant of that name.
    """
    asked = FAST if names is None else tuple(names)
    if unknown := [name for name in asked if name not in ACCOUNTANTS]:
        raise ValueError(f"there is no accountant {unknown[0]!r}; expected one of {', '.join(ACCOUNTANTS)}")
    return _epsilon(tuple(merge(events)), delta, asked) if events else Epsilon(0.0, delta, "none")


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[SampledGaussian, ...], delta: float, names: tuple[str, ...]) -> Epsilon:
    bounds = []
    for name in names:
        try:
            value = ACCOUNTANTS[name](merged, delta)
        except (RuntimeError, ValueError, ArithmeticError, MemoryError, IndexError):
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
    """Opacus's PRV accountant: the upper end of its estimate.

    Error: at most 0.02 over the true epsilon at delta less 0.2% (theorem 5.5 of the paper, with
    eps_error 0.01 and delta_error delta/1000), and not under it. Measured against PLD: 0.0100 to
    0.0105 over up to epsilon 10, 0.02 at 500. Where the grid would have over two million points
    the 0.01 grows in proportion, up to 0.1.

    Raises:
        ValueError: delta is too small for its rounding, or the grid would be too large.
        RuntimeError: the discrete mean is off, or no point of the grid has that delta.
    """
    _check_rounding(events, delta)
    account = PRVAccountant()
    account.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    delta_error = delta / 1000
    steps = sum(event.steps for event in events)
    # As Opacus sets up its grid: from -L to L, L by RDP, the mesh by Gopi et al., theorem 5.5.
    points = 2 * (rdp(events, delta_error / 4) + 3) * math.sqrt(steps * math.log(12 / delta_error) / 2) / PRV_ERROR
    error = PRV_ERROR * max(1.0, points / PRV_POINTS)
    if error > LARGEST_PRV_ERROR:
        raise ValueError(f"a grid of {points:.0f} points is over the most, {PRV_POINTS}")
    with _quiet():
        return float(account.get_epsilon(delta, eps_error=error, delta_error=delta_error))


@accountant("rdp")
def rdp(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus's RDP accountant over its default orders (1.1 to 63).

    Error: none under; over by the conversion from Renyi DP, 4% to 15% at epsilon from 1 to 50,
    and a floor that no noise gets under, about 0.1 at delta 1e-5 (the largest order is 63).
    """
    orders = RDPAccountant.DEFAULT_ALPHAS
    spent = sum(event.steps * _renyi_of_a_step(event.noise_multiplier, event.sample_rate) for event in events)
    with _quiet():
        value, _ = renyi.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    return float(value)


@accountant("pld")
def pld(events: Sequence[SampledGaussian], delta: float) -> float:
    """dp-accounting's PLD accountant: pessimistic, so an upper bound.

    Error: none under; over by the rounding of each step's losses to a grid of 1e-4 ("connect the
    dots", section 4 of the paper). Measured: within 1e-4 at sample rate 1, and at most 0.009 over
    for 10,000 steps of nearly no loss each. Infinite where exp(epsilon) overflows, from 709 on.

    Raises:
        ValueError: delta is too small for its rounding.
    """
    _check_rounding(events, delta)
    interval = PLD_INTERVAL * max(1.0, rdp(events, delta) / 100)
    account = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)
    with _quiet():
        for event in events:
            account.compose(SelfComposedDpEvent(_dp_event(event), event.steps))
        return float(account.get_epsilon(delta))


def _dp_event(event: SampledGaussian) -> DpEvent:
    """One step as dp-accounting names it; a full step composes exactly, without its Fourier transform."""
    gaussian = GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sample_rate == 1 else PoissonSampledDpEvent(event.sample_rate, gaussian)


@lru_cache(maxsize=4096)
def _renyi_of_a_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Renyi DP of one step, at Opacus's orders; it adds up over steps (Mironov, 2017, proposition 1)."""
    orders = RDPAccountant.DEFAULT_ALPHAS
    return np.asarray(renyi.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders))


def _check_rounding(events: Sequence[SampledGaussian], delta: float) -> None:
    least = max(SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP * sum(event.steps for event in events))
    if delta < least:
        raise ValueError(f"delta {delta:g} is under {least:g}, too near to the rounding of a Fourier transform")
