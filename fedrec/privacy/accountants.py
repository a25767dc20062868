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
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp as renyi
from opacus.accountants.analysis.prv import Domain
from scipy.special import gammaln

from fedrec.privacy.events import SampledGaussian
from fedrec.privacy.merging import MOST_SAMPLED, few, merge

__all__ = ["ACCOUNTANTS", "ALL", "FAST", "Epsilon", "accountant", "epsilon", "quick_rdp"]

Accountant = Callable[[Sequence[SampledGaussian], float], float]
ACCOUNTANTS: dict[str, Accountant] = {}
ALL = ACCOUNTANTS.keys()
"""Every accountant's name, for reports."""
FAST = ("prv", "rdp")
"""The names for ledgers and planning. PLD, at up to 6 s, takes longer and gains about 0.01."""

SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP = 1e-10, 1e-13
"""Under the first, or the second times the steps, PRV and PLD are not asked: a Fourier transform to the
power of the steps is off by some 1e-16 a step. Measured: Opacus's PRV is 0.017 *under* PLD at delta 1e-10
(noise 0.3, rate 1e-4, 10,000 steps) and about 0.04 under the truth at 1e-14 (2, 0.1, 100 steps). At the
limit it is 3e-3 of delta, 0.001 in epsilon: well within PRV's margin of 0.01."""
ORDERS = np.array([*range(2, 13), 14, 16, 20, 24, 32, 48, 63, 96, 128, 192, 256, 384, 512])
"""Integer orders of Renyi DP. Those over Opacus's are best where epsilon is small beside log(1/delta)."""
MOST_EPSILON = 700.0
PRV_ERROR, LARGEST_PRV_ERROR = 0.01, 0.1
PRV_POINTS = 2**21
"""Most points of PRV's grids, one for each different mechanism, together: about 3 s. The error grows instead,
and over 0.1 PRV gives up. With `MOST_SAMPLED` this bounds its work, whatever is in the ledger."""
PLD_INTERVAL = 1e-4
"""Grid of the privacy loss: dp-accounting's default. It is coarser from epsilon 100 on, so that
memory stays bounded; the bound stays an upper one."""
PLD_POINTS = 2**20
"""Most points of the grids of all mechanisms together, about 6 s: over it they are coarser too."""


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
    if not events:
        return Epsilon(0.0, delta, "none")
    try:
        merged = tuple(merge(events))
    except (ValueError, ArithmeticError):
        return Epsilon(math.inf, delta, "none")
    bounds = [(bound, name) for name in asked if math.isfinite(bound := _bound(name, merged, delta))]
    value, name = min(bounds, default=(math.inf, "none"))
    return Epsilon(value, delta, name)


@lru_cache(maxsize=256)
def _bound(name: str, merged: tuple[SampledGaussian, ...], delta: float) -> float:
    """One accountant's bound, at least 0: what holds at a negative epsilon holds there. Infinite where it fails."""
    try:
        value = ACCOUNTANTS[name](merged, delta)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError, IndexError):
        return math.inf
    return max(0.0, value) if math.isfinite(value) else math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns of log(1 - q) at q = 1 and of a best order at the end of its range; neither is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@accountant("prv")
def prv(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus's PRV accountant on at most `MOST_SAMPLED` sampled mechanisms (`few`): the upper end of its estimate.

    Error: at most 0.02 over the true epsilon of these at delta less 0.2% (theorem 5.5 of the paper, with
    eps_error 0.01 and delta_error delta/1000), and not under it. Measured against PLD: 0.0100 to
    0.0105 over up to epsilon 10, 0.02 at 500. Infinite from 700 on: near 709 exp(epsilon) overflows, and what PRV then says
    is no bound. Where the grids would have over two million points
    the 0.01 grows in proportion, up to 0.1.

    Raises:
        ValueError: delta is too small for its rounding, or the grids would be too large.
        RuntimeError: the discrete mean is off, or no point of the grid has that delta.
    """
    events = few(events)
    _check_rounding(events, delta)
    delta_error = delta / 1000
    account = _PRV(events, delta_error)
    points = len(events) * 2 * account.half_width / account.mesh(PRV_ERROR, delta_error)
    error = PRV_ERROR * max(1.0, points / PRV_POINTS)
    if error > LARGEST_PRV_ERROR:
        raise ValueError(f"grids of {points:.0f} points are over the most, {PRV_POINTS}")
    with _quiet():
        value = float(account.get_epsilon(delta, eps_error=error, delta_error=delta_error))
    return value if value < MOST_EPSILON else math.inf


class _PRV(PRVAccountant):  # type: ignore[misc]
    """Opacus's, with the Renyi DP that its grid is set up by computed once a mechanism rather than twice a call."""

    def __init__(self, events: Sequence[SampledGaussian], delta_error: float) -> None:
        super().__init__()
        self.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
        self.steps = sum(event.steps for event in events)
        single = [rdp([replace(event, steps=1)], delta_error / (8 * self.steps)) for event in events]
        # Gopi et al., remark 5.6, and Opacus's margin of 3.
        self.half_width = max(rdp(events, delta_error / 4), *single, PRV_ERROR) + 3

    def mesh(self, eps_error: float, delta_error: float) -> float:
        """Gopi et al., theorem 5.5."""
        return eps_error / math.sqrt(self.steps * math.log(12 / delta_error) / 2)

    def _get_domain(self, prvs: object, num_self_compositions: object, eps_error: float, delta_error: float) -> Domain:
        return Domain.create_aligned(-self.half_width, self.half_width, self.mesh(eps_error, delta_error))


@accountant("rdp")
def rdp(events: Sequence[SampledGaussian], delta: float) -> float:
    """Opacus's RDP accountant over its default orders (1.1 to 63) and larger ones; for many mechanisms `quick_rdp`.

    Error: none under; over by the conversion from Renyi DP, 4% to 15% at epsilon from 1 to 50,
    and a floor that no noise gets under, about log(1/delta)/511.
    """
    if len(events) > MOST_SAMPLED + 1:
        return quick_rdp(events, delta)
    larger = ORDERS[max(RDPAccountant.DEFAULT_ALPHAS) < ORDERS]
    with _quiet():
        spent = sum(event.steps * _renyi_of_a_step(event.noise_multiplier, event.sample_rate) for event in events)
        spent = np.append(spent, _cumulants(events, larger) / (larger - 1))
        value, _ = renyi.get_privacy_spent(orders=[*RDPAccountant.DEFAULT_ALPHAS, *larger], rdp=spent, delta=delta)
    return max(0.0, float(value))  # at a large order and delta the conversion goes below what any epsilon can be


def quick_rdp(events: Sequence[SampledGaussian], delta: float) -> float:
    """An upper bound by RDP in about 0.1 ms a mechanism, where `rdp` takes up to 90 for one that is new to it.

    Error: over `rdp`, measured by up to 0.5% for a ledger of runs and 10% for one step at a small rate. Renyi
    DP is computed at integer orders alone: (order - 1) times it is convex in the order and 0 at order 1, so the
    straight lines between are over it.
    """
    between = np.arange(1.1, 11, 0.1)
    with _quiet():
        cumulants = _cumulants(events, ORDERS)
        orders = np.concatenate([between, ORDERS])
        spent = np.interp(orders, [1, *ORDERS], [0.0, *cumulants]) / (orders - 1)
        value, _ = renyi.get_privacy_spent(orders=list(orders), rdp=spent, delta=delta)
    return float(value)


@accountant("pld")
def pld(events: Sequence[SampledGaussian], delta: float) -> float:
    """dp-accounting's PLD accountant on at most `MOST_SAMPLED` sampled mechanisms (`few`): pessimistic, so an upper bound.

    Error: none under; over by the rounding of each step's losses to a grid of 1e-4 ("connect the
    dots", section 4 of the paper). Measured: within 1e-4 at sample rate 1, and at most 0.009 over
    for 10,000 steps of nearly no loss each; coarser grids cost more. Infinite where exp(epsilon) overflows, from 709 on.

    Raises:
        ValueError: delta is too small for its rounding.
    """
    events = few(events)
    _check_rounding(events, delta)
    # Losses go up to that of an observation ten deviations from the mean.
    widths = sum(0.5 / event.noise_multiplier**2 + 10 / event.noise_multiplier for event in events)
    interval = max(PLD_INTERVAL * max(1.0, rdp(events, delta) / 100), widths / PLD_POINTS)
    with _quiet():
        return float(_loss(tuple(events), interval).get_epsilon(delta))


@lru_cache(maxsize=4)
def _loss(events: tuple[SampledGaussian, ...], interval: float) -> PLDAccountant:
    """The distribution of the privacy loss, which answers for any delta."""
    account = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)
    for event in events:
        account.compose(SelfComposedDpEvent(_dp_event(event), event.steps))
    return account


def _dp_event(event: SampledGaussian) -> DpEvent:
    """One step as dp-accounting names it; a full step composes exactly, without its Fourier transform."""
    gaussian = GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sample_rate == 1 else PoissonSampledDpEvent(event.sample_rate, gaussian)


@lru_cache(maxsize=4096)
def _renyi_of_a_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Renyi DP of one step, at Opacus's orders; it adds up over steps (Mironov, 2017, proposition 1)."""
    orders = RDPAccountant.DEFAULT_ALPHAS
    return np.asarray(renyi.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders))


def _cumulants(events: Sequence[SampledGaussian], orders: np.ndarray) -> np.ndarray:
    """(order - 1) times the Renyi DP of a composition, at integer orders: 0.1 ms a mechanism, where Opacus takes up to 90.

    For a step it is the logarithm of a binomial sum (Mironov, Talwar, Zhang, 2019, section 3.3), the cumulant
    generating function of the privacy loss.
    """
    steps, sigma, rate = np.array([(one.steps, one.noise_multiplier, one.sample_rate) for one in events], dtype=float).T
    full = rate == 1
    out = np.sum(steps[full] / sigma[full] ** 2) * orders * (orders - 1) / 2
    if np.all(full):
        return out
    q, variance = rate[~full, None], sigma[~full, None] ** 2  # (sampled, 1)
    for i, order in enumerate(orders):
        k, log_binomial = _binomials(int(order))
        terms = log_binomial + k * np.log(q) + (order - k) * np.log1p(-q) + (k * k - k) / (2 * variance)  # (sampled, k)
        largest = terms.max(axis=1)
        out[i] += steps[~full] @ (largest + np.log(np.exp(terms - largest[:, None]).sum(axis=1)))
    return out


@lru_cache(maxsize=128)
def _binomials(order: int) -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(order + 1)
    return k, gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)


def _check_rounding(events: Sequence[SampledGaussian], delta: float) -> None:
    least = max(SMALLEST_DELTA, SMALLEST_DELTA_OF_A_STEP * sum(event.steps for event in events))
    if delta < least:
        raise ValueError(f"delta {delta:g} is under {least:g}, too near to the rounding of a Fourier transform")
