"""Epsilon against dp-accounting's own, against the exact Gaussian, and the properties any accountant has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.stats import norm

from fedrec.privacy.accountants import ACCOUNTANTS, ALL, FAST, Epsilon, _renyi_of_a_step, epsilon, merge, pld, prv, rdp
from fedrec.privacy.events import SampledGaussian
from fedrec.privacy.noise_plan import gaussian_mu

PRV_SLACK = 0.02
"""Most that PRV may be over the true epsilon at delta less 0.2%: twice its eps_error."""
PRV_USUAL_SLACK = 0.012
"""What it is over by in fact, plus 5e-4 sqrt(epsilon) for the 0.1% of delta (measured to epsilon 500)."""
PLD_SLACK = 0.009
"""Measured between grids of 1e-4 and 1e-5: worst at 10,000 steps of nearly no loss each."""
PRV_NOISE = 2e-3
"""PRV's mesh, and the rounding of its Fourier transform: what may break monotony."""

GRID = [  # (sigma, q, steps)
    (0.5, 1e-4, 1_000), (0.3, 1.0, 1), (0.5, 1e-2, 100), (0.8, 1e-3, 1_000), (2.0, 0.5, 5), (1.0, 0.1, 18), (1.0, 1.0, 18),
    (2.0, 1e-4, 10_000), (2.0, 1e-2, 1_000), (2.0, 0.1, 100), (2.0, 1.0, 18), (5.0, 0.1, 1_000), (5.0, 1.0, 40),
    (20.0, 0.1, 100), (20.0, 1.0, 1_000), (100.0, 1.0, 1),
]  # fmt: skip
DELTAS = (1e-3, 1e-5, 1e-7, 1e-9)
WIDE = [
    (sigma, q, steps)
    for sigma in (0.3, 0.5, 0.8, 2.0, 5.0, 20.0, 100.0)
    for q in (1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0)
    for steps in (1, 100, 10_000)
]


class Oracle:
    """dp-accounting used on its own: composed once, asked at many deltas."""

    def __init__(self, events: Sequence[SampledGaussian], interval: float = 1e-4) -> None:
        self.account = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
        for event in events:
            step = dp.GaussianDpEvent(event.noise_multiplier)
            step = step if event.sample_rate == 1 else dp.PoissonSampledDpEvent(event.sample_rate, step)
            self.account.compose(dp.SelfComposedDpEvent(step, event.steps))

    def __call__(self, delta: float) -> float:
        return self.account.get_epsilon(delta)


def check(events: list[SampledGaussian], deltas: Sequence[float]) -> None:
    """All accountants against the oracle, each within its stated error."""
    oracle = Oracle(events)
    for delta in deltas:
        true, at_less = oracle(delta), oracle(0.998 * delta)
        by_prv, by_rdp = prv(events, delta), rdp(events, delta)
        assert true <= by_prv <= at_less + PRV_SLACK, (events, delta)
        assert by_prv <= true + PRV_USUAL_SLACK + 5e-4 * math.sqrt(true), (events, delta)
        # The oracle itself is over, by the rounding of each step's losses: up to 0.009 for 10,000 steps of nearly no loss.
        assert by_rdp >= true - 1e-6 * sum(event.steps for event in events), (events, delta)


def check_all(events: list[SampledGaussian], delta: float) -> None:
    """The same, and PLD, and the tightest of them."""
    check(events, (delta,))
    true = Oracle(events)(delta)
    bounds = {name: epsilon(events, delta, [name]).value for name in ALL}
    assert bounds["pld"] == pytest.approx(true, abs=1e-3), events  # its grid is coarser over epsilon 100
    assert epsilon(events, delta, ALL).value == min(bounds.values())


@pytest.mark.parametrize(("sigma", "q", "steps"), GRID)
def test_equals_dp_accounting_on_a_grid(sigma: float, q: float, steps: int) -> None:
    """16 mechanisms at 4 deltas: 64 points (`WIDE`, slow, has 378)."""
    check([SampledGaussian(sigma, q, steps)], DELTAS)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "q", "steps"), WIDE)
def test_equals_dp_accounting_on_a_wide_grid(sigma: float, q: float, steps: int) -> None:
    events, smallest = [SampledGaussian(sigma, q, steps)], max(1e-10, 1e-13 * steps)
    if rdp(events, 1e-10) > 25:
        # PRV is coarser or silent here; what it does say must still be an upper bound.
        for delta in (1e-3, 1e-6, smallest):
            found, true = epsilon(events, delta).value, pld(events, delta)
            assert found >= true - 1e-3 or math.isinf(true)  # dp-accounting overflows from epsilon 709 on
    else:
        check(events, (1e-3, 1e-6, smallest))


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_what_is_too_large_for_exp_is_no_smaller_for_it(delta: float) -> None:
    """Full steps are one Gaussian of mu 200, which is epsilon 20,000 and more: its exp overflows."""
    assert epsilon([SampledGaussian(0.5, 1.0, 10_000)], delta).value >= 20_000


def mixture(seed: int) -> tuple[list[SampledGaussian], float]:
    """One to four mechanisms as a merchant's ledger might hold them."""
    rng = np.random.default_rng(seed)
    events = [
        SampledGaussian(
            float(10 ** rng.uniform(-0.1, 1.3)),
            1.0 if rng.random() < 0.4 else float(10 ** rng.uniform(-3, 0)),
            int(10 ** rng.uniform(0, 2)),
        )
        for _ in range(int(rng.integers(1, 5)))
    ]
    return events, float(10 ** rng.uniform(-9, -3))


@pytest.mark.parametrize("seed", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_mixtures_equal_dp_accounting(seed: int) -> None:
    check_all(*mixture(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 60))
def test_many_mixtures_equal_dp_accounting(seed: int) -> None:
    check_all(*mixture(seed))


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_full_steps_are_exactly_gaussian(mu: float, delta: float) -> None:
    """Full steps compose to sqrt(steps)/sigma-Gaussian DP (Dong, Roth, Su, 2022, corollary 3.3)."""
    events = [SampledGaussian(math.sqrt(7 + 5) / mu, 1.0, 7), SampledGaussian(math.sqrt(7 + 5) / mu, 1.0, 5)]
    exact = gaussian_epsilon(mu, delta)
    assert gaussian_mu(exact, delta) == pytest.approx(mu, rel=1e-6)
    assert exact <= pld(events, delta) <= exact + 1e-4
    assert exact + 0.009 <= prv(events, delta) <= exact + PRV_USUAL_SLACK
    assert rdp(events, delta) >= exact


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "q", "steps"), [(20.0, 1e-3, 10_000), (2.0, 1e-4, 10_000), (5.0, 0.01, 300)])
def test_the_grid_of_pld_costs_at_most_its_slack(sigma: float, q: float, steps: int) -> None:
    event = SampledGaussian(sigma, q, steps)
    for delta in (1e-5, 1e-9):
        finer = Oracle([event], 1e-5)(delta)
        assert finer - 1e-9 <= pld([event], delta) <= finer + PLD_SLACK
        assert prv([event], delta) >= finer + 0.009


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Bisection on theorem 8 of Balle and Wang (ICML 2018), written down apart from `gaussian_mu`."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = norm.cdf(mu / 2 - middle / mu) - math.exp(middle) * norm.cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def test_golden_values() -> None:
    """From elsewhere: who computed them, and of what."""
    # Abadi et al. (CCS 2016), section 3.2: noise 4, rate 0.01, 10,000 steps, delta 1e-5: epsilon 1.26. Their conversion is
    # the plain log(1/delta)/(order - 1); Opacus's (Balle et al., AISTATS 2020, theorem 21) gains 0.2, exact composition more.
    orders = np.asarray(RDPAccountant.DEFAULT_ALPHAS)
    moments = min(10_000 * _renyi_of_a_step(4.0, 0.01) + math.log(1e5) / (orders - 1))
    assert moments == pytest.approx(1.26, abs=0.01)
    event = SampledGaussian(4.0, 0.01, 10_000)
    assert pld([event], 1e-5) < prv([event], 1e-5) < rdp([event], 1e-5) < moments
    # One Gaussian of noise 1 at delta 1e-5: 4.3773, by root finding in Balle and Wang's theorem 8 (scipy 1.17).
    assert pld([SampledGaussian(1.0)], 1e-5) == pytest.approx(4.3773, abs=1e-3)
    # dp-accounting 0.6, PLD: noise 3, 18 full steps, delta 1e-5.
    assert pld([SampledGaussian(3.0, 1.0, 18)], 1e-5) == pytest.approx(6.5730, abs=1e-3)
    # Opacus 1.6, PRV and RDP: the same.
    assert prv([SampledGaussian(3.0, 1.0, 18)], 1e-5) == pytest.approx(6.5833, abs=1e-3)
    assert rdp([SampledGaussian(3.0, 1.0, 18)], 1e-5) == pytest.approx(7.0774, abs=1e-3)


sigmas = st.floats(0.6, 30)
rates = st.sampled_from([1e-3, 1e-2, 0.1, 0.4, 1.0])
counts = st.integers(1, 300)


def by_fast(events: list[SampledGaussian], delta: float = 1e-6) -> float:
    return epsilon(events, delta).value


@settings(max_examples=5, deadline=None, derandomize=True)
@given(sigmas, rates, counts, st.integers(1, 300))
def test_more_steps_cost_more(sigma: float, q: float, steps: int, more: int) -> None:
    assert by_fast([SampledGaussian(sigma, q, steps + more)]) >= by_fast([SampledGaussian(sigma, q, steps)]) - PRV_NOISE


@settings(max_examples=5, deadline=None, derandomize=True)
@given(sigmas, st.floats(1e-3, 1), st.floats(1e-3, 1), counts)
def test_a_larger_rate_costs_more(sigma: float, q: float, other: float, steps: int) -> None:
    low, high = sorted((q, other))
    assert by_fast([SampledGaussian(sigma, high, steps)]) >= by_fast([SampledGaussian(sigma, low, steps)]) - PRV_NOISE


@settings(max_examples=5, deadline=None, derandomize=True)
@given(sigmas, st.floats(1, 4), rates, counts)
def test_more_noise_costs_less(sigma: float, factor: float, q: float, steps: int) -> None:
    assert by_fast([SampledGaussian(sigma * factor, q, steps)]) <= by_fast([SampledGaussian(sigma, q, steps)]) + PRV_NOISE


@settings(max_examples=5, deadline=None, derandomize=True)
@given(sigmas, rates, counts, sigmas)
def test_one_more_release_costs_more(sigma: float, q: float, steps: int, other: float) -> None:
    first = SampledGaussian(sigma, q, steps)
    assert by_fast([first, SampledGaussian(other)]) >= by_fast([first]) - PRV_NOISE


@pytest.mark.parametrize("name", list(ACCOUNTANTS))
class TestContract:
    """What every registered accountant keeps."""

    EVENTS = (SampledGaussian(2.0, 0.1, 20), SampledGaussian(5.0), SampledGaussian(1.5, 0.02, 3))

    def test_nothing_costs_nothing(self, name: str) -> None:
        assert epsilon([], 1e-5, [name]) == Epsilon(0.0, 1e-5, "none")

    def test_order_is_irrelevant(self, name: str) -> None:
        assert epsilon(self.EVENTS, 1e-5, [name]) == epsilon(self.EVENTS[::-1], 1e-5, [name])
        bound = ACCOUNTANTS[name]
        assert bound(self.EVENTS, 1e-5) == pytest.approx(bound(self.EVENTS[::-1], 1e-5), abs=5e-4)

    def test_equal_events_add_up_their_steps(self, name: str) -> None:
        split = [SampledGaussian(2.0, 0.1, 15), self.EVENTS[1], SampledGaussian(2.0, 0.1, 5), self.EVENTS[2]]
        assert epsilon(split, 1e-5, [name]) == epsilon(self.EVENTS, 1e-5, [name])
        # Not merged first either.
        assert ACCOUNTANTS[name](split, 1e-5) == pytest.approx(ACCOUNTANTS[name](self.EVENTS, 1e-5), abs=5e-4)

    def test_names_itself_and_bounds_the_truth(self, name: str) -> None:
        found = epsilon(self.EVENTS, 1e-5, [name])
        assert found.accountant == name and found.delta == 1e-5
        assert found.value >= Oracle(self.EVENTS)(1e-5) - 1e-9

    def test_a_smaller_delta_costs_more(self, name: str) -> None:
        bound = ACCOUNTANTS[name]
        assert bound(self.EVENTS, 1e-8) > bound(self.EVENTS, 1e-5) > bound(self.EVENTS, 1e-3)


def test_fast_accountants_are_the_default() -> None:
    events = [SampledGaussian(3.0, 1.0, 18)]
    assert epsilon(events, 1e-5).accountant in FAST
    assert epsilon(events, 1e-5, ALL).accountant == "pld"
    assert set(FAST) < set(ALL)


def test_an_unknown_accountant_is_named() -> None:
    with pytest.raises(ValueError, match="no accountant 'moments'"):
        epsilon([SampledGaussian(1.0)], 1e-5, ["moments"])


def test_merge_keeps_what_was_released() -> None:
    merged = merge([SampledGaussian(1.0, 0.5, 2), SampledGaussian(2.0), SampledGaussian(1.0, 0.5, 3)])
    assert merged == [SampledGaussian(1.0, 0.5, 5), SampledGaussian(2.0)]


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (SampledGaussian(0.01), 1e-5),  # Opacus: the discrete mean is off
        (SampledGaussian(0.3, 1.0, 10_000), 1e-8),  # PRV's grid would have 4.3e7 points
        (SampledGaussian(3.0, 1.0, 18), 1e-14),  # under SMALLEST_DELTA: PRV would be under the exact value
        (SampledGaussian(50.0, 0.99, 10_000), 5e-10),  # and under that of so many steps
    ],
)
def test_where_prv_fails_rdp_answers(event: SampledGaussian, delta: float) -> None:
    found = epsilon([event], delta)
    assert found.accountant == "rdp" and math.isfinite(found.value)
    assert found.value == pytest.approx(rdp([event], delta), rel=1e-12)
    assert found.value >= gaussian_epsilon_of(event, delta)


def gaussian_epsilon_of(event: SampledGaussian, delta: float) -> float:
    """A lower bound for (nearly) full steps: the exact value where `gaussian_epsilon` reaches it."""
    mu = event.sample_rate * math.sqrt(event.steps) / event.noise_multiplier
    return gaussian_epsilon(mu, delta) if mu < 5 else mu * mu / 2


@pytest.mark.slow
def test_a_grid_with_too_many_points_is_coarser_and_still_a_bound() -> None:
    events = [SampledGaussian(50.0, 0.1, 1_000_000)]
    assert pld(events, 1e-6) - 1e-9 <= prv(events, 1e-6) <= pld(events, 1e-6) + 0.2
