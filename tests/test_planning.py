"""Plans: they use the budget and no more, each free quantity is found again, and the command says what it costs."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, cast

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedrec.cli.privacy import app
from fedrec.config import RunConfig
from fedrec.errors import InputError
from fedrec.privacy.accountants import epsilon
from fedrec.privacy.events import SampledGaussian
from fedrec.privacy.noise_plan import gaussian_mu, plan_noise
from fedrec.privacy.planning import Plan, default_delta, solve
from fedrec.privacy.worth import worth_in_users

SMALL: dict[str, Any] = {"users": 2_600, "epsilon": 8.0}
"""A plan of full steps: the accountants are quick there."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_layers": 0},
        {"encoder_layers": 0, "epsilon": 0.5, "delta": 1e-7, "rounds": 40},
        {"encoder_layers": 0, "histogram_share": 0.0, "local_steps": 5, "epsilon": 20.0},
        {"encoder_layers": 0, "sample_rate": 0.05, "rounds": 60, "epsilon": 3.0},
        {"heads": False, "encoder_sample_rate": 1.0, "rounds": 6},
        {"encoder_layers": 0, "histogram_noise_multiplier": 4.0},
    ],
    ids=str,
)
def test_the_noise_of_a_run_spends_the_budget_and_no_more(settings: dict[str, Any]) -> None:
    config = RunConfig(**settings)
    plan = plan_noise(config)
    spent = epsilon(plan.events(config), config.delta).value
    assert 0.98 * config.epsilon <= spent <= config.epsilon
    assert (plan.histogram is None) == (config.histogram_share == 0)
    if config.histogram_noise_multiplier:
        assert plan.histogram == config.histogram_noise_multiplier


def test_given_noise_is_kept_or_refused() -> None:
    config = RunConfig(encoder_layers=0, noise_multiplier=4.0, histogram_noise_multiplier=9.0)
    plan = plan_noise(config)
    assert (plan.heads, plan.histogram) == (4.0, 9.0)
    with pytest.raises(InputError, match="the given noise multipliers alone would spend epsilon"):
        plan_noise(RunConfig(encoder_layers=0, noise_multiplier=0.5))


@pytest.mark.parametrize(
    ("sample_rate", "rounds", "budget", "share"),
    [(1.0, 18, 8.0, 0.1), pytest.param(0.25, 12, 3.0, 0.0, marks=pytest.mark.slow)],
)
def test_each_free_quantity_is_found_again(sample_rate: float, rounds: int, budget: float, share: float) -> None:
    common: dict[str, Any] = {"users": 2_600, "epsilon": budget, "histogram_share": share}
    first = solve(**common, rounds=rounds, sample_rate=sample_rate)
    assert first.solved == "noise_multiplier"
    assert 0.98 * budget <= first.epsilon_spent <= budget
    common |= {"noise_multiplier": first.noise_multiplier, "histogram_noise_multiplier": first.histogram_noise_multiplier}
    again = solve(**common, sample_rate=sample_rate)
    assert (again.solved, again.rounds) == ("rounds", rounds)
    rate = solve(**common, rounds=rounds)
    assert rate.solved == "sample_rate" and rate.epsilon_spent <= budget
    assert rate.sample_rate == pytest.approx(sample_rate, rel=5e-3)


def test_the_most_rounds_are_the_most() -> None:
    plan = solve(**SMALL, noise_multiplier=6.0, sample_rate=1.0, local_steps=2)
    at, over = plan.spent_after([plan.rounds, plan.rounds + 1])
    assert at == plan.epsilon_spent <= 8.0 < over


def test_a_plan_is_what_a_run_with_its_settings_makes() -> None:
    plan = solve(**SMALL, rounds=18, sample_rate=1.0)
    run = plan_noise(RunConfig(encoder_rounds=0, epsilon=8.0, delta=plan.delta, rounds=18))
    assert (run.heads, run.histogram) == (plan.noise_multiplier, plan.histogram_noise_multiplier)


def test_signal_to_noise_and_the_price_of_the_histogram() -> None:
    plan = solve(**SMALL, rounds=18, sample_rate=1.0, rank=16, merchants=9, encoder_layers=2, encoder_rank=4)
    assert plan.lot == 2_600 and plan.trainable == 2 * 16 * 384 and plan.encoder_trainable == 2 * 2 * 4 * 384
    assert plan.signal_to_noise == pytest.approx(2_600 / (plan.noise_multiplier * math.sqrt(12_288)))
    assert plan.signal_to_noise_of_mean == pytest.approx(3 * plan.signal_to_noise)
    assert plan.encoder_signal_to_noise == pytest.approx(2_600 / (plan.noise_multiplier * math.sqrt(6_144)))
    alone = epsilon([SampledGaussian(plan.noise_multiplier, 1.0, 18)], plan.delta).value
    assert plan.epsilon_without_histogram == alone < plan.epsilon_spent
    # The share is of squared mu: what the rounds spend alone is the budget of sqrt(0.9) mu.
    mu = gaussian_mu(plan.epsilon_without_histogram, plan.delta)
    assert mu**2 / gaussian_mu(plan.epsilon_spent, plan.delta) ** 2 == pytest.approx(0.9, abs=5e-3)
    without = solve(**SMALL, rounds=18, sample_rate=1.0, histogram_share=0.0, encoder_layers=0)
    assert without.histogram_noise_multiplier is None and without.encoder_signal_to_noise is None
    assert without.epsilon_spent == without.epsilon_without_histogram
    assert without.noise_multiplier < plan.noise_multiplier


@given(merchants=st.integers(2, 200), dropouts=st.integers(0, 8), colluders=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_one_noise_for_the_sum_is_worth_the_root_of_the_honest(merchants: int, dropouts: int, colluders: int) -> None:
    terms: dict[str, Any] = {"merchants": merchants, "dropouts": dropouts, "colluders": colluders}
    plan = solve(**SMALL, **terms, rounds=18, sample_rate=1.0)
    secure, honest = plan.secure_aggregation, merchants - dropouts - colluders
    assert (secure is None) == (2 * dropouts + colluders >= merchants) == (plan.no_secure_aggregation is not None)
    if secure is None:
        return
    # N lot / (sigma sqrt(N/h) sqrt(d)): h shares of variance sigma^2 / h are always there, N of them at most.
    of_sum = math.sqrt(merchants * secure.noise_multiplier_alone**2)
    assert secure.honest == honest and honest * secure.noise_multiplier_alone**2 == pytest.approx(plan.noise_multiplier**2)
    assert secure.noise_multiplier_of_sum == pytest.approx(of_sum)
    histogram = math.sqrt(merchants) * cast(float, secure.histogram_noise_multiplier_alone)
    assert secure.histogram_noise_multiplier_of_sum == pytest.approx(histogram)
    assert secure.signal_to_noise == pytest.approx(merchants * plan.lot / (of_sum * math.sqrt(plan.trainable)))
    assert secure.signal_to_noise == pytest.approx(math.sqrt(honest) * plan.signal_to_noise_of_mean)
    assert plan.noise_multiplier == solve(**SMALL, rounds=18, sample_rate=1.0).noise_multiplier


@pytest.mark.parametrize(("rate", "share"), [(1.0, 0.1), (1.0, 0.0), pytest.param(0.2, 0.1, marks=pytest.mark.slow)])
def test_what_holds_when_all_others_collude_is_dp_accountings(rate: float, share: float) -> None:
    plan = solve(**SMALL, merchants=12, dropouts=2, colluders=1, rounds=6, sample_rate=rate, histogram_share=share)
    secure = plan.secure_aggregation
    assert secure is not None and secure.honest == 9
    account = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    if plan.histogram_noise_multiplier is not None:
        account.compose(dp.GaussianDpEvent(plan.histogram_noise_multiplier / 3))
    step = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(plan.noise_multiplier / 3))
    account.compose(dp.SelfComposedDpEvent(step, 6))
    # PRV may be over by 0.02 (`tests/test_accountants.py`), and by its 0.2% of delta.
    assert account.get_epsilon(plan.delta) <= secure.epsilon_alone <= account.get_epsilon(0.998 * plan.delta) + 0.02
    assert secure.epsilon_alone > plan.epsilon_spent


def test_secure_aggregation_has_one_step_a_round() -> None:
    plan = solve(**SMALL, merchants=9, local_steps=2, rounds=3, sample_rate=1.0)
    assert plan.secure_aggregation is None and "local_steps is 2" in str(plan.no_secure_aggregation)


@pytest.mark.parametrize("users", [5, 6, 10, 25])
def test_a_few_users_are_planned_for_at_their_own_delta(users: int) -> None:
    plan = solve(users=users, epsilon=8.0, rounds=18, sample_rate=1.0)
    assert plan.delta == 1 / (10 * users)
    assert 0.98 * 8 <= plan.epsilon_spent <= 8


@pytest.mark.parametrize("budget", [0.5, 8.0])
def test_a_larger_delta_needs_less_noise(budget: float) -> None:
    """Whatever delta is: an accountant's bound under 0 is one of 0."""
    deltas = (1e-60, 1e-16, 1e-11, 1e-6, 1e-3, 0.01, 0.05, 0.0999)
    noise = [solve(users=10, epsilon=budget, delta=delta, rounds=18, sample_rate=1.0).noise_multiplier for delta in deltas]
    assert noise == sorted(noise, reverse=True)


def test_rdp_is_zero_where_delta_alone_covers_it() -> None:
    event = SampledGaussian(2_000.0)
    assert epsilon([event], 0.05, ("rdp",)).value == 0
    assert epsilon([event], 0.05).value <= 0.011


def test_delta_is_a_tenth_of_one_over_users() -> None:
    assert default_delta(2_600) == 1 / 26_000
    assert solve(**SMALL, rounds=1, sample_rate=1.0).delta == 1 / 26_000
    with pytest.raises(InputError, match="publishing one user's whole record"):
        solve(**SMALL, delta=1 / 2_600, rounds=1, sample_rate=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_multiplier": 0.3, "sample_rate": 1.0, "epsilon": 1.0}, r"rounds: nothing fits: one round .* epsilon 1[0-9]"),
        ({"noise_multiplier": 0.3, "rounds": 50, "epsilon": 1.0}, r"sample_rate: nothing fits: a run with 5 expected users"),
        ({"rounds": 1, "sample_rate": 1.0, "epsilon": 0.005}, r"1,000 times the usual noise would spend epsilon 0.0"),
        ({"rounds": 1, "sample_rate": 1.0, "epsilon": 1e-7}, "out of reach"),
        ({"rounds": 1, "sample_rate": 1e-4}, "0.26 expected users"),
        ({"rounds": 1}, "2 of noise_multiplier, rounds, sample_rate"),
        ({"rounds": 1, "sample_rate": 1.0, "noise_multiplier": 3.0}, "0 of noise_multiplier"),
        ({"rounds": 0, "sample_rate": 1.0}, "rounds = 0"),
        ({"rounds": 1, "sample_rate": 1.0, "users": 0}, "found 0 users"),
    ],
    ids=str,
)
def test_no_solution_says_what_was_tried(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(**(SMALL | settings))


def test_limits_of_what_is_solved_for() -> None:
    assert solve(**SMALL, noise_multiplier=500.0, sample_rate=1.0).rounds == 10_000
    assert solve(**SMALL, noise_multiplier=500.0, rounds=1).sample_rate == 1.0


def test_gaussian_mu_of_a_known_value() -> None:
    # Noise 1 (mu 1) has epsilon 4.3773 at delta 1e-5 (Balle and Wang, 2018, theorem 8, solved with scipy).
    assert gaussian_mu(4.3773, 1e-5) == pytest.approx(1.0, abs=1e-4)


class TestCommand:
    """`fedrec privacy plan`."""

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["plan", "--users", "2600", *arguments])

    def test_json_has_the_names_of_the_plan(self) -> None:
        result = self.run("--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert list(found) == list(Plan.__dataclass_fields__)
        settings = {"epsilon", "delta", "rounds", "local_steps", "sample_rate", "noise_multiplier", "histogram_share"}
        assert settings | {"histogram_noise_multiplier"} <= found.keys() & RunConfig.model_fields.keys()
        assert (found["rounds"], found["sample_rate"], found["solved"]) == (18, 1.0, "noise_multiplier")

    def test_with_the_noise_given_the_rounds_are_solved_for(self) -> None:
        found = json.loads(self.run("--json", "--noise-multiplier", "4").stdout)
        assert found["solved"] == "rounds" and found["rounds"] > 18

    def test_the_table_names_the_trade(self) -> None:
        text = self.run("--merchants", "4").stdout
        for words in ("solved for", "histogram costs", "signal to noise", "mean of 4 merchants", "one user's", "1/(10 users)"):
            assert words in text.replace("\n", " "), text

    def test_several_merchants_are_shown_under_both_trust_models(self) -> None:
        arguments = ("--merchants", "12", "--dropouts", "2", "--colluders", "3")
        found, text = json.loads(self.run("--json", *arguments).stdout), self.run(*arguments).stdout
        secure = found["secure_aggregation"]
        assert (secure["dropouts"], secure["colluders"], secure["honest"]) == (2, 3, 7)
        assert found["no_secure_aggregation"] is None
        rows = [line for line in text.splitlines() if line.startswith("│")]
        for label, local, shared in (
            ("signal to noise, mean of 12", f"{found['signal_to_noise_of_mean']:.3g}", f"{secure['signal_to_noise']:.3g}"),
            ("every other merchant colludes", f"{found['epsilon_spent']:.3f}", f"{secure['epsilon_alone']:.3f}"),
        ):
            (row,) = [line for line in rows if label in line]
            assert [cell.strip() for cell in row.split("│")[2:4]] == [local, shared]
        assert "at least 7 of the 12 merchants are honest" in " ".join(text.split())

    def test_too_few_merchants_for_secure_aggregation_are_told_so(self) -> None:
        arguments = ("--merchants", "3")
        found = json.loads(self.run("--json", *arguments).stdout)
        assert found["secure_aggregation"] is None and "3 merchants are too few" in found["no_secure_aggregation"]
        text = " ".join(self.run(*arguments).stdout.split())
        assert "secure aggregation is not possible here: 3 merchants are too few for dropouts = 1" in text
        assert "trust models" not in self.run().stdout

    def test_plot_writes_a_real_picture(self, tmp_path: Path) -> None:
        for name in ("plan.svg", "again.svg", "plan.png"):
            assert self.run("--json", "--plot", str(tmp_path / "new" / name)).exit_code == 0
        picture = (tmp_path / "new" / "plan.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(picture)
        assert root.tag.endswith("svg") and "rounds" in picture
        assert len([node for node in root.iter() if node.tag.endswith("path")]) > 20
        assert (tmp_path / "new" / "again.svg").read_text(encoding="utf-8") == picture
        png = (tmp_path / "new" / "plan.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 5_000
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["again.svg", "plan.png", "plan.svg"]

    def test_another_kind_of_picture_is_refused_before_any_work(self, tmp_path: Path) -> None:
        result = self.run("--plot", str(tmp_path / "plan.gif"))
        assert isinstance(result.exception, InputError) and "a name in .svg" in str(result.exception)
        assert list(tmp_path.iterdir()) == []


def test_a_run_is_worth_the_consenting_users_whose_mean_is_as_certain() -> None:
    """The mean gradient of one sum with the whole run's noise, against the mean of so many users."""
    steps, lot, sigma, numbers, sums, clip = 9, 40.0, 2.0, 50, 3.0, 0.5
    worth = worth_in_users(steps=steps, lot=lot, noise_multiplier=sigma, numbers=numbers, sums=sums)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, sigma * clip * np.sqrt(sums), (4000, steps, numbers)).mean(1) / lot
    assert clip**2 / worth == pytest.approx(np.square(noise).sum(1).mean(), rel=0.02)
    plan = solve(users=40, epsilon=8.0, rounds=9, sample_rate=1.0, merchants=6)
    assert plan.worth_in_users == pytest.approx(plan.signal_to_noise_of_mean**2 * 9)
    assert plan.secure_aggregation is not None
    assert plan.secure_aggregation.worth_in_users == pytest.approx(plan.worth_in_users * 4)  # 6 sums of noise against 6/4
