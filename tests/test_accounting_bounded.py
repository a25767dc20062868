"""Accounting stays quick and an upper bound, whatever a server has had written into a ledger."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from fedrec.privacy import Policy, Release, over_budget
from fedrec.privacy.accountants import ALL, ORDERS, _cumulants, _renyi_of_a_step, epsilon, pld, prv, quick_rdp, rdp
from fedrec.privacy.events import SampledGaussian
from fedrec.privacy.merging import MOST_SAMPLED, few, merge
from tests.test_accountants import PRV_NOISE, PRV_USUAL_SLACK, Oracle

SECONDS = 20.0
"""CPU seconds that a decision may take here; 2 to 4 on an idle machine. Minutes without a bound."""

sigmas = st.floats(0.3, 300)
rates = st.one_of(st.just(1.0), st.floats(1e-6, 0.999))
mechanisms = st.builds(SampledGaussian, sigmas, rates, st.integers(1, 1_000))
many = st.lists(mechanisms, min_size=MOST_SAMPLED + 2, max_size=40, unique_by=lambda event: event.noise_multiplier)


def hostile(kind: str, lines: int) -> list[SampledGaussian]:
    """Ledgers of different mechanisms only, each line cheap, as a server could ask for them."""
    rng = np.random.default_rng(7)
    if kind == "cheap":
        return [SampledGaussian(float(rng.uniform(20, 60)), float(rng.uniform(0.2, 0.9))) for _ in range(lines)]
    if kind == "wide":
        pairs = [(float(10 ** rng.uniform(0, 2)), float(10 ** rng.uniform(-4, -1.5))) for _ in range(lines)]
        return [SampledGaussian(sigma, rate, int(rng.integers(1, 30))) for sigma, rate in pairs]
    if kind == "of one cost":
        return [SampledGaussian(sigma, min(0.99, 0.01 * sigma)) for sigma in map(float, 10 ** rng.uniform(-0.3, 1.6, lines))]
    return [SampledGaussian(float(10 ** rng.uniform(1, 2)), float(10 ** rng.uniform(-3, -1)), 1_000) for _ in range(lines)]


HOSTILE = ("cheap", "wide", "of one cost", "many steps")


def honest(runs: int, rate: float = 0.1) -> list[SampledGaussian]:
    """A histogram, heads in full steps and four rounds on the encoder, each run with noise of its own."""
    rng = np.random.default_rng(3)
    events = []
    for _ in range(runs):
        scale = float(rng.uniform(0.6, 2))
        rounds = int(rng.integers(6, 30))
        noise = scale * 4.5 * math.sqrt(rounds)
        encoder = scale * float(rng.uniform(1.2, 2.2))
        events += [SampledGaussian(scale * 13), SampledGaussian(noise, 1.0, rounds), SampledGaussian(encoder, rate, 4)]
    return events


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_decision_over_a_thousand_different_lines_takes_seconds(kind: str) -> None:
    lines = [Release("r", i, "dp-sgd", e.noise_multiplier, e.sample_rate, e.steps, 1.0, "user", 1e-5)
             for i, e in enumerate(hostile(kind, 1_000))]  # fmt: skip
    policy = Policy(epsilon=50, delta=1e-5, population=1_000, max_rounds=2_000, period_epsilon=50)
    before = [Release(**{**vars(line), "time": "2026-01-01T00:00:00+00:00"}) for line in lines[:-1]]
    start = time.process_time()
    assert over_budget(policy, before, lines[-1]) is None
    assert time.process_time() - start < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_so_does_every_accountant(kind: str) -> None:
    start = time.process_time()
    bounds = {name: epsilon(hostile(kind, 1_000), 1e-5, (name,)).value for name in ALL}
    assert time.process_time() - start < SECONDS
    # What rounding loses there is bounded: RDP takes every line as it is.
    assert min(bounds.values()) <= bounds["rdp"] < 10


@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 0.01, 1e200, 1e308])
@pytest.mark.parametrize("rate", [5e-324, 1e-9, 0.5, math.nextafter(1, 0), 1.0])
@pytest.mark.parametrize("steps", [1, 10**9, 10**400])
def test_nothing_in_a_ledger_breaks_the_accounting(sigma: float, rate: float, steps: int) -> None:
    start = time.process_time()
    for event in ([SampledGaussian(sigma, rate, steps)], [SampledGaussian(sigma, rate, steps), *hostile("wide", 40)]):
        found = epsilon(event, 1e-5)
        assert found.value >= 0
        if steps > 10**9 or sigma < 0.01 < rate:
            assert found.value > 1e3
    assert time.process_time() - start < SECONDS


@given(many)
@settings(max_examples=50, deadline=None)
def test_rounding_is_towards_less_privacy(events: list[SampledGaussian]) -> None:
    """Every mechanism has one that is no more private, and no step is lost."""
    rounded = few(events)
    sampled = [event for event in rounded if event.sample_rate < 1]
    before = [event for event in events if event.sample_rate < 1]
    assert len(sampled) <= MOST_SAMPLED and len(rounded) <= len(sampled) + 1
    assert sum(event.steps for event in sampled) == sum(event.steps for event in before)
    for event in before:
        assert any(e.noise_multiplier <= event.noise_multiplier and e.sample_rate >= event.sample_rate for e in sampled)
    assert np.all(_cumulants(rounded, ORDERS) >= _cumulants(events, ORDERS) * (1 - 1e-9))


@given(many, mechanisms)
@settings(max_examples=10, deadline=None)
def test_one_more_line_lowers_nothing(events: list[SampledGaussian], more: SampledGaussian) -> None:
    """By rounding too: grids are halves of each other, so a coarser one only takes privacy away."""
    before, after = _cumulants(few(events), ORDERS), _cumulants(few([*events, more]), ORDERS)
    assert np.all(after >= before * (1 - 1e-9))
    assert quick_rdp(merge([*events, more]), 1e-5) >= quick_rdp(merge(events), 1e-5) - 1e-9


@pytest.mark.slow
def test_the_composed_epsilon_never_falls_as_a_ledger_grows() -> None:
    events, last = [], 0.0
    for event in hostile("of one cost", MOST_SAMPLED + 8):
        events.append(event)
        now = epsilon(events, 1e-5).value
        assert now >= last - PRV_NOISE
        last = now


@given(st.lists(mechanisms, min_size=1, max_size=3))
@settings(max_examples=6, deadline=None)
def test_quick_renyi_is_opacus(events: list[SampledGaussian]) -> None:
    """At integers; and over it by the straight lines between them, by less than a fifth where epsilon means anything.

    Opacus has no order 11, which may be the best one.
    """
    orders, whole = np.asarray(RDPAccountant.DEFAULT_ALPHAS), np.arange(12, 64)
    exact = sum(event.steps * _renyi_of_a_step(event.noise_multiplier, event.sample_rate) for event in events)
    quick = _cumulants(events, whole) / (whole - 1)
    assert np.allclose(quick, exact[orders >= 12], rtol=1e-6, atol=1e-9)
    bound = rdp(events, 1e-5)
    assert bound * (1 - 1e-3) <= quick_rdp(events, 1e-5)
    assert bound > 100 or quick_rdp(events, 1e-5) <= 1.2 * bound


def test_full_steps_of_any_noise_are_one_gaussian() -> None:
    events = [SampledGaussian(3.0, 1.0, 18), SampledGaussian(5.0, 1.0, 7), SampledGaussian(2.0, 0.1, 3), SampledGaussian(9.0)]
    (one, sampled) = merge(events)
    mu = math.sqrt(18 / 9 + 7 / 25 + 1 / 81)
    assert one.noise_multiplier == pytest.approx(1 / mu) and (one.sample_rate, one.steps) == (1.0, 1)
    assert sampled == events[2]
    assert Oracle(events)(1e-5) == pytest.approx(pld(merge(events), 1e-5), abs=1e-3)


@pytest.mark.parametrize(("rate", "most"), [(0.1, 1.01), (0.3, 1.02)])
def test_rounding_costs_ledgers_of_honest_runs_next_to_nothing(rate: float, most: float) -> None:
    """Sixty runs, each with noise of its own, by RDP; `test_ledgers_of_honest_runs_cost_what_they_should` by all."""
    events = honest(60, rate)
    assert len([event for event in merge(events) if event.sample_rate < 1]) == 60
    assert rdp(merge(events), 1e-5) < rdp(few(events), 1e-5) < most * rdp(merge(events), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [20, 50])
def test_ledgers_of_honest_runs_cost_what_they_should(runs: int) -> None:
    """Under 2% over dp-accounting's figure for every line as it is, PRV's own error apart."""
    events = honest(runs)
    true = Oracle(merge(events))(1e-5)
    assert true <= pld(events, 1e-5) < 1.02 * true
    assert true <= prv(events, 1e-5) < 1.02 * true + PRV_USUAL_SLACK


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_ledgers_cost_no_less_and_at_most_twice(kind: str) -> None:
    events = hostile(kind, 60)
    true, found = Oracle(events)(1e-5), epsilon(events, 1e-5).value
    assert true <= found + 1e-3 and found <= 2 * true + 0.15
