"""The audit: its statistics against closed forms and naive counts, its attacks on training that leaks and that does not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from typer.testing import CliRunner

from fedrec.config import RunConfig
from fedrec.data import Catalogue, Histories, MerchantData
from fedrec.errors import InputError
from fedrec.model import init_base, init_trained
from fedrec.model.encoder import load_encoder
from fedrec.privacy import Policy, SampledGaussian, epsilon
from fedrec.privacy.audit import epsilon_lower_bound, guess_p_value, membership_metrics, tpr_bound
from fedrec.training import build_examples
from simulations.audit import (
    MECHANISMS,
    CanaryAudit,
    Target,
    audit_config,
    canary_audit,
    disjoint_canaries,
    make_canaries,
    membership_attack,
    shown_canaries,
)
from simulations.audit.canaries import joined
from simulations.audit.rounds import examples_of
from simulations.audit.target import Attacked, Origin
from simulations.reference import Pooled

from .conftest import make_catalogue, make_events, make_histories
from .helpers import make_federation, with_searches

CANARIES = 200


# The bound.


@pytest.mark.parametrize("guesses", [10, 100, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_all_right_with_delta_zero_has_a_closed_form(guesses: int, confidence: float) -> None:
    q = (1 - confidence) ** (1 / guesses)  # q^guesses = 1 - confidence
    assert epsilon_lower_bound(guesses, guesses, guesses, 0.0, confidence) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


@pytest.mark.parametrize(
    "m, r, v, epsilon, delta",
    [(50, 20, 17, 0.7, 1e-3), (100, 100, 80, 1.0, 1e-5), (9, 4, 1, 0.0, 0.01), (30, 30, 30, 3.0, 1e-4)],
)
def test_p_value_is_the_theorem_term_by_term(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    probability = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    tail = sum(probability[v:])
    worst = max(sum(probability[max(0, v - i) : v]) / i for i in range(1, m + 1))
    assert guess_p_value(m, r, v, epsilon, delta) == pytest.approx(min(1.0, tail + 2 * m * delta * worst), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(r=st.integers(1, 300), spare=st.integers(0, 300), delta=st.sampled_from([0.0, 1e-6, 1e-5, 1e-3]), data=st.data())
def test_bound_grows_with_right_guesses_and_falls_in_the_rest(r: int, spare: int, delta: float, data: st.DataObject) -> None:
    v = data.draw(st.integers(0, r))
    bound = epsilon_lower_bound(r + spare, r, v, delta)
    assert bound >= 0
    assert bound == 0 or guess_p_value(r + spare, r, v, bound, delta) == pytest.approx(0.05, abs=1e-5)
    assert epsilon_lower_bound(r + spare, r, max(0, v - 1), delta) <= bound + 1e-7
    assert epsilon_lower_bound(r + spare, r, v, 2 * delta + 1e-7) <= bound + 1e-7
    assert epsilon_lower_bound(r + spare + 50, r, v, delta) <= bound + 1e-7
    assert epsilon_lower_bound(r + spare, r, v, delta, 0.99) <= bound + 1e-7


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("guesses", [50, 400])
def test_randomized_response_is_not_accused_beyond_the_confidence(epsilon: float, guesses: int) -> None:
    rng = np.random.default_rng(guesses)
    coins = rng.random((200, guesses)) < 0.5
    said = coins ^ (rng.random(coins.shape) < 1 / (1 + math.exp(epsilon)))  # each answer is epsilon-DP
    bounds = [epsilon_lower_bound(guesses, guesses, int(v), 0.0) for v in (said == coins).sum(1)]
    # 200 repetitions that each exceed with at most 5%: 20 or more happen by chance once in 500 times.
    assert np.sum(np.array(bounds) > epsilon) <= 19
    assert binom.sf(19, 200, 0.05) < 0.003
    q = 1 / (1 + math.exp(-epsilon))
    assert np.median(bounds) > epsilon - 2.5 / math.sqrt(guesses * q * (1 - q))  # 1.645 and rounding: it says something


@pytest.mark.parametrize(
    "m, r, v, delta, confidence",
    [(5, 6, 3, 0, 0.95), (5, 5, 6, 0, 0.95), (5, 5, -1, 0, 0.95), (5, 5, 5, -1e-9, 0.95), (5, 5, 5, 0, 1.0)],
)
def test_contradicting_counts_are_refused(m: int, r: int, v: int, delta: float, confidence: float) -> None:
    with pytest.raises(InputError, match="expected"):
        epsilon_lower_bound(m, r, v, delta, confidence)


# The metrics.


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_rates_agree_with_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 40, 230) + 3.0, rng.integers(0, 40, 310) * 1.0  # many ties
    got = membership_metrics(members, others)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in members for b in others]
    assert got.auc == pytest.approx(np.mean(pairs))
    for rate, value in ((0.01, got.tpr_at_1_percent), (0.001, got.tpr_at_01_percent)):
        thresholds = [t for t in [*members, *others] if np.mean(others > t) <= rate]
        assert value == pytest.approx(max(np.mean(members > t) for t in thresholds))


def test_metrics_at_their_ends() -> None:
    apart = membership_metrics(np.arange(10.0) + 100, np.arange(10.0))
    assert (apart.auc, apart.tpr_at_1_percent, apart.tpr_at_01_percent) == (1.0, 1.0, 1.0)
    same = membership_metrics(np.ones(4), np.ones(3))
    assert (same.auc, same.tpr_at_1_percent) == (0.5, 0.0)
    with pytest.raises(InputError, match="some of both"):
        membership_metrics(np.ones(3), np.ones(0))
    with pytest.raises(InputError, match="NaN"):
        membership_metrics(np.array([np.nan]), np.ones(2))


def test_tpr_bound_by_hand_and_at_its_ends() -> None:
    assert tpr_bound(0.0, 0.0, 0.25) == 0.25
    assert tpr_bound(1.0, 1e-5, 0.01) == pytest.approx(math.e * 0.01 + 1e-5)
    assert tpr_bound(8.0, 0.0, 0.01) == pytest.approx(1 - math.exp(-8) * 0.99)
    assert tpr_bound(5.0, 0.1, 0.0) == 0.1
    assert tpr_bound(5000.0, 0.0, 0.01) == 1.0
    assert tpr_bound(0.0, 1.0, 0.5) == 1.0
    with pytest.raises(ValueError, match="false_positive_rate"):
        tpr_bound(1.0, 0.0, 1.5)


# The attacks. A random BERT 32 wide would tell few canaries apart; the packaged one has 384 dimensions.


@pytest.fixture(scope="module")
def target() -> Target:
    """A merchant of 60 users and 40 items."""
    catalogue = make_catalogue(40)
    data = MerchantData(catalogue, make_histories(60, catalogue, 6))
    encoder = load_encoder(layers=0)
    base = init_base(encoder, encoder.states(catalogue), True, 32, "principal", 0)
    merchant = Pooled("m0", data, Policy(epsilon=1.0, delta=1e-5, population=60))
    return Target(merchant, encoder, base, init_trained(encoder, True, 32), (60,) * 5)


@pytest.fixture(scope="module")
def small(target: Target, tiny_bert_folder: Path) -> Target:
    """The same merchant with an encoder that is quick to train."""
    encoder = load_encoder(str(tiny_bert_folder), 1, 8)
    base = init_base(encoder, encoder.states(target.merchant.data.catalogue), True, 32, "principal", 0)
    return replace(target, encoder=encoder, base=base, trained=init_trained(encoder, True, 32))


def claim(epsilon: float = 1.0, rounds: int = 4, **values: object) -> RunConfig:
    return RunConfig(epsilon=epsilon, rounds=rounds, encoder_layers=0, **values)  # type: ignore[arg-type]


def attack(mechanism: str, target: Target, small: Target, epsilon: float = 1.0, **changes: object) -> CanaryAudit:
    """The attack on one mechanism, with as many canaries as tests have time for."""
    if changes.get("objective") == "response":
        target, small = with_terms(target), with_terms(small)
    planted = {"heads": CANARIES, "encoder": 100, "histogram": 160, "complements": 100, "secure-sum": CANARIES}[mechanism]
    settings = {name: changes.pop(name) for name in list(changes) if name in RunConfig.model_fields}
    config = RunConfig(**{"epsilon": epsilon, "rounds": 4, "encoder_rounds": 4, "encoder_sample_rate": 1.0, **settings})  # type: ignore[arg-type]
    attacked = {"encoder": small, "histogram": wide(target), "complements": wide(small, 480)}.get(mechanism, target)
    return canary_audit(config, attacked, mechanism=mechanism, **{"canaries": planted, **changes})  # type: ignore[arg-type]


def with_terms(target: Target) -> Target:
    """The same at the start of a run with the objective `response`, where a third of the users were shown something."""
    data = target.merchant.data
    shown = shown_canaries(data.catalogue, 20, 5, 3).shown
    assert shown is not None
    offsets = np.append(shown.offsets, np.full(len(data.histories) - 20, shown.offsets[-1]))
    histories = replace(data.histories, shown=replace(shown, offsets=offsets))
    trained = init_trained(target.encoder, True, 32, terms=True)
    return replace(target, trained=trained, merchant=replace(target.merchant, data=MerchantData(data.catalogue, histories)))


def wide(target: Target, items: int = 160) -> Target:
    """The same users in a catalogue with room for more canaries."""
    data = MerchantData(make_catalogue(items), target.merchant.data.histories)
    return replace(target, merchant=replace(target.merchant, data=data))


def test_canaries_are_different_users_of_two_baskets(target: Target) -> None:
    catalogue = target.merchant.data.catalogue
    canaries = make_canaries(catalogue, 1560, 3)  # every ordered pair
    pairs = canaries.items.reshape(-1, 2)
    assert len({tuple(pair) for pair in pairs}) == 1560
    assert (pairs[:, 0] != pairs[:, 1]).all() and pairs.min() == 0 and pairs.max() == 39
    assert canaries.of(7)[1].tolist() == [0, 1]
    for count in (7, 1561):
        with pytest.raises(InputError, match="canaries"):
            make_canaries(catalogue, count, 3)


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_canaries_of_several_positions_are_different_users_with_as_many_targets(target: Target, positions: int) -> None:
    catalogue = target.merchant.data.catalogue
    canaries = make_canaries(catalogue, 300, 3, positions)
    rows = canaries.items.reshape(300, positions + 1)
    assert len({tuple(row[:2]) for row in rows}) == 300 and all(len(set(row)) == positions + 1 for row in rows)
    examples = build_examples(canaries, history=9, positions=positions, decay=0.1)
    assert np.array_equal(np.bincount(examples.target[:, 0]), np.full(300, positions))
    with pytest.raises(InputError, match="positions"):
        make_canaries(catalogue, 300, 3, 40)


def test_disjoint_canaries_share_no_text_and_use_all_items_of_theirs() -> None:
    texts = ("lamp", "mug", "lamp", "tea", *(f"pen {i}" for i in range(21)))
    catalogue = Catalogue(tuple(map(str, range(len(texts)))), texts)
    canaries = disjoint_canaries(catalogue, 8, 0)
    bought = [{texts[item] for item in canaries.of(user)[0]} for user in range(8)]
    assert all(len(own) == 3 for own in bought) and len(set.union(*bought)) == 24
    assert len(canaries.items) == 25, "both lamps are bought"
    with pytest.raises(InputError, match="24, the texts"):
        disjoint_canaries(catalogue, 25, 0)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_audit_puts_the_whole_budget_in_what_it_attacks(mechanism: str) -> None:
    config = audit_config(RunConfig(unit="event", positions=3), mechanism)
    assert (config.unit, config.positions) == ("user", 3)
    assert config.trust == ("secure-aggregation" if mechanism == "secure-sum" else "local")
    sigma, claimed = MECHANISMS[mechanism].plan(config, True)
    events = {
        "encoder": SampledGaussian(sigma, config.encoder_sample_rate, config.rounds),
        "histogram": SampledGaussian(sigma),
        "complements": SampledGaussian(sigma),
    }.get(mechanism, SampledGaussian(sigma, config.sample_rate, config.rounds))  # fmt: skip
    assert claimed == config.epsilon >= 0.98 * epsilon([events], config.delta).value


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("origin", ["seed", "system"])
def test_without_noise_the_canaries_refute_the_claim(target: Target, small: Target, mechanism: str, origin: Origin) -> None:
    found = attack(mechanism, target, small, noise=False, origin=origin)
    assert found.refuted and (found.noise, found.noise_origin, found.mechanism) == ("off", origin, mechanism)
    assert found.epsilon_lower > found.epsilon_claimed == 1.0
    assert found.auc > 0.95


@pytest.mark.parametrize("mechanism", ["heads", "encoder"])
@pytest.mark.parametrize("positions", [1, 4])
def test_canaries_of_any_number_of_positions_are_found_without_noise(
    target: Target, small: Target, mechanism: str, positions: int
) -> None:
    found = attack(mechanism, target, small, noise=False, positions=positions)
    assert found.refuted and found.auc > 0.95


def test_shown_canaries_are_different_users_with_one_record_each(target: Target) -> None:
    canaries = shown_canaries(target.merchant.data.catalogue, 300, 3, 5)
    config = RunConfig(objective="response", positions=2)
    examples = examples_of(config, canaries)
    assert canaries.shown is not None and examples.answer is not None
    rows = np.column_stack([canaries.items, canaries.shown.items.reshape(300, 5)])
    assert len({tuple(row[:2]) for row in rows}) == 300 and all(len(set(row)) == 6 for row in rows)
    assert np.array_equal(np.bincount(examples.target[:, 0]), np.full(300, 5)) and 0.4 < examples.answer.mean() < 0.6
    both = joined(target.merchant.data.histories, canaries)
    assert both.shown is not None and np.array_equal(both.shown.offsets[-301:], canaries.shown.offsets)
    assert [len(both), len(both.shown)] == [360, 1500]


@pytest.mark.parametrize("mechanism", ["heads", "encoder", "secure-sum"])
def test_shown_canaries_refute_the_claim_without_noise_and_not_with_it(target: Target, small: Target, mechanism: str) -> None:
    asked = {"objective": "response", "impressions": 3, "positions": 2, "canaries": 100}
    found = attack(mechanism, target, small, noise=False, **asked)
    assert found.refuted and found.auc > 0.95
    hidden = attack(mechanism, target, small, **asked)
    assert not hidden.refuted and hidden.epsilon_lower <= 1.0 < hidden.epsilon_most


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["heads", "encoder", "secure-sum"])
def test_canaries_among_users_who_searched_are_found_without_noise(target: Target, small: Target, mechanism: str) -> None:
    catalogue = target.merchant.data.catalogue
    histories = Histories.from_table(with_searches(make_events(60, catalogue, 6)), catalogue)
    assert len(histories.queries) > 60
    merchant = replace(target.merchant, data=MerchantData(catalogue, histories))
    found = attack(mechanism, replace(target, merchant=merchant), replace(small, merchant=merchant), noise=False)
    assert found.refuted and found.auc > 0.95
    if mechanism == "heads":
        hard = claim(rounds=30, server_learning_rate=0.05)
        assert membership_attack(hard, replace(target, merchant=merchant), noise=False).auc > 0.7


def test_without_noise_sampling_and_many_steps_hide_nothing(target: Target) -> None:
    config = claim(rounds=6, sample_rate=0.5, local_steps=2)
    assert canary_audit(config, target, canaries=100, noise=False).epsilon_lower > 1


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("claimed, positions", [(1.0, 2), (2.0, 4)])
def test_with_noise_the_bound_stays_under_the_claim(
    target: Target, small: Target, mechanism: str, claimed: float, positions: int
) -> None:
    found = attack(mechanism, target, small, claimed, positions=positions)
    assert not found.refuted and found.noise == "on" and found.noise_origin == "seed"
    assert found.epsilon_lower <= claimed < found.epsilon_most, "so many guesses could have refuted it"
    assert found.noise_multiplier > 0.3


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_the_systems_noise_the_bound_stays_under_the_claim(target: Target, small: Target, mechanism: str) -> None:
    """It differs each time: of 10,000 runs one may fail by chance, and those do whose noise is not what it should be."""
    found = attack(mechanism, target, small, 0.5, origin="system", confidence=0.9999, delta=1e-9)
    assert not found.refuted and (found.noise, found.noise_origin) == ("on", "system")
    assert found.epsilon_lower <= 0.5 < found.epsilon_most


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("origin", ["seed", "system"])
def test_what_many_attacks_find_with_noise_is_chance(target: Target, small: Target, mechanism: str, origin: Origin) -> None:
    bounds = [attack(mechanism, target, small, origin=origin, seed=seed).epsilon_lower for seed in range(20)]
    assert sum(bound > 1.0 for bound in bounds) <= 1 and np.median(bounds) < 0.5


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_noise_that_is_too_weak_for_epsilon_1_refutes_it(target: Target, small: Target, mechanism: str) -> None:
    """The audit is not blind to noise that is there; the claim is what the accountants say of it, not the setting."""
    weak = attack(mechanism, target, small, noise_multiplier=0.2, histogram_noise_multiplier=0.2, complement_noise_multiplier=0.2)
    assert weak.epsilon_claimed > 20 and not weak.refuted
    assert weak.epsilon_lower > 1


def test_an_opened_sum_holds_as_much_noise_as_is_claimed_and_no_more(target: Target) -> None:
    """With the fewest honest shares: the spread of what is opened, of a merchant without users."""
    config = audit_config(RunConfig(noise_multiplier=3.0, rounds=1, encoder_rounds=0), "secure-sum")
    nobody = Histories((), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    alone = replace(target, merchant=replace(target.merchant, data=MerchantData(target.merchant.data.catalogue, nobody)))
    run = Attacked(config, alone, "test", 60, 3.0, 0)
    planted = make_canaries(alone.merchant.data.catalogue, 8, 0)
    (view,) = MECHANISMS["secure-sum"].views(run, planted, np.zeros(0, dtype=np.int64))
    assert view.std == 3.0 * config.clip_norm
    # The grid is rounded on the safe side, by some thousandths.
    ratio, error = view.answer.std() / view.std, 4 / math.sqrt(2 * view.answer.size)
    assert 1.0 - error <= ratio <= 1.01 + error


def test_terms_that_no_sum_can_bear_are_refused(target: Target) -> None:
    few = replace(target, populations=(60,) * 3)
    with pytest.raises(InputError, match="3 merchants cannot bear"):
        canary_audit(claim(), few, mechanism="secure-sum", canaries=16)
    with pytest.raises(InputError, match="--mechanism"):
        canary_audit(claim(), target, mechanism="adapter", canaries=16)
    with pytest.raises(InputError, match="encoder_layers"):
        canary_audit(claim(), target, mechanism="encoder", canaries=16)


def test_result_is_json_with_what_the_report_reads(target: Target) -> None:
    found = canary_audit(claim(rounds=1), target, canaries=16)
    again = canary_audit(claim(rounds=1), target, canaries=16)
    values = json.loads(json.dumps(found.as_json()))
    assert found == again and CanaryAudit(**{k: v for k, v in values.items() if k != "refuted"}) == found
    assert {"epsilon_lower", "confidence", "epsilon_claimed", "method"} <= values.keys()
    assert found != canary_audit(claim(rounds=1), target, canaries=16, seed=1)


def test_membership_is_found_without_noise(target: Target) -> None:
    hard = claim(rounds=30, server_learning_rate=0.05)
    found = membership_attack(hard, target, noise=False)
    assert found.auc > 0.8, found
    assert 0 < found.members + found.non_members <= 60


@pytest.mark.parametrize("seed, origin", [(0, "seed"), (1, "seed"), (2, "system")])
def test_membership_stays_under_the_bound_with_noise(target: Target, seed: int, origin: Origin) -> None:
    found = membership_attack(claim(rounds=30, server_learning_rate=0.05), target, seed=seed, origin=origin)
    # Of n members the share found is within 3 standard deviations of what the claim allows; and the
    # threshold is set on few others, which moves the true rate of false positives by some 1/others.
    for rate, allowed in ((found.tpr_at_1_percent, 0.01), (found.tpr_at_01_percent, 0.001)):
        most = tpr_bound(1.0, 1e-5, allowed + 2 / found.non_members)
        assert rate <= most + 3 * math.sqrt(most * (1 - most) / found.members)
    assert found.bound_at_1_percent == tpr_bound(1.0, 1e-5, 0.01)


# The command.


@pytest.fixture(scope="module")
def command() -> typer.Typer:
    from fedrec.cli.privacy_audit import audit

    app = typer.Typer()
    app.command()(audit)
    return app


def test_command_writes_json_and_tells_by_its_status(command: typer.Typer, tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = make_federation(tmp_path)
    file = tmp_path / "audit.json"
    small = ["--set", f"encoder={tiny_bert_folder}", "--set", "rank=16", "--canaries", "120", "--rounds", "2", "--out", str(file)]
    on = CliRunner().invoke(command, [str(federation), *small, "--json", "--epsilon", "0.5"])
    assert on.exit_code == 0, on.output
    values = json.loads(file.read_text())
    assert json.loads(on.stdout) == values
    assert values["epsilon_claimed"] == 0.5 and values["noise"] == "on" and values["simulation"] is True
    assert values["membership"]["bound_at_1_percent"] == tpr_bound(0.5, 1e-5, 0.01)
    off = CliRunner().invoke(command, [str(federation), *small, "--no-noise", "--epsilon", "0.5", "--merchant", "m1"])
    assert off.exit_code == 1, off.output
    text = " ".join(off.stdout.split())
    assert "epsilon at least" in text and "the audit works" in text


@pytest.mark.parametrize("mechanism", ["encoder", "histogram", "secure-sum"])
def test_command_attacks_the_mechanism_that_is_asked_for(
    command: typer.Typer, tmp_path: Path, tiny_bert_folder: Path, mechanism: str
) -> None:
    federation = make_federation(tmp_path, merchants=4)
    file = tmp_path / "audit.json"
    small = ["--set", f"encoder={tiny_bert_folder}", "--set", "rank=16", "--canaries", "24", "--rounds", "2", "--out", str(file)]
    result = CliRunner().invoke(command, [str(federation), *small, "--mechanism", mechanism, "--system-noise"])
    assert result.exit_code == 0, result.output
    values = json.loads(file.read_text())
    assert (values["mechanism"], values["noise_origin"]) == (mechanism, "system") and "membership" not in values
    assert mechanism in result.stdout and "the operating system" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--merchant", "nobody"], "nobody"),
        (["--set", "encoder_layers=1"], "heads"),
        (["--set", "objective=rating"], "attacks are made for"),
        (["--out", "/nowhere/a.json"], "folder"),
        (["--mechanism", "adapter"], "histogram"),
        (["--mechanism", "encoder", "--set", "encoder_layers=0"], "encoder_layers"),
        (["--mechanism", "secure-sum"], "3 merchants cannot bear"),
        (["--mechanism", "secure-sum", "--set", "local_steps=2"], "local_steps"),
    ],
)
def test_command_says_what_is_wrong(command: typer.Typer, tmp_path: Path, arguments: list[str], words: str) -> None:
    federation = make_federation(tmp_path)
    result = CliRunner().invoke(command, [str(federation), *arguments])
    assert isinstance(result.exception, InputError) and words in str(result.exception)
