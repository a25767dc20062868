"""The privacy report: its figures are the accountants', its warnings come first, and a broken ledger is named."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dp_accounting as dp
import pytest
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from fedrec.cli import main
from fedrec.errors import InputError
from fedrec.privacy import ACCOUNTANTS, Ledger, Release, SampledGaussian, epsilon
from fedrec.privacy.accountants import merge
from fedrec.report.privacy_attacker import FALSE_POSITIVES, attacker, gaussian_tpr_bound, odds_bound, tpr_bound
from fedrec.report.privacy_report import privacy_report, remaining_rounds, to_html, to_json, write_privacy_report
from fedrec.report.privacy_sources import find_sources, read_ledger
from fedrec.report.privacy_words import plain_words

Fedrec = Callable[..., tuple[int, str, str]]
"""Arguments of `fedrec privacy report` to exit status, output and errors."""

DELTA = 1e-5
HISTOGRAM = Release("run-a", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", DELTA)
STEP = Release("run-a", 1, "dp-sgd", 3.0, 0.1, 2, 0.5, "user", DELTA)
RELEASES = [HISTOGRAM, STEP, replace(STEP, round=2), replace(STEP, run="run-b", noise_multiplier=2.5)]
EVENTS = [release.event for release in RELEASES]
POLICY = "[privacy]\nepsilon = {budget}\ndelta = 1e-5\npopulation = 1000\n"


def write_ledger(path: Path, releases: list[Release] = RELEASES) -> Path:
    ledger = Ledger(path, DELTA)
    for release in releases:
        ledger.append(release)
    return path


def write_policy(folder: Path, name: str, budget: float = 3.0, more: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merchant.toml").write_text(f'name = "{name}"\n{POLICY.format(budget=budget)}{more}')


@pytest.fixture
def merchant(tmp_path: Path) -> Path:
    """A merchant folder with a policy and a ledger of four releases in two runs."""
    write_policy(tmp_path / "shop", "shop")
    write_ledger(tmp_path / "shop" / "privacy" / "shop.ledger.jsonl")
    return tmp_path / "shop"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a simulated run with two merchants."""
    for name, budget in (("north", 3.0), ("south", 4.0)):
        write_policy(tmp_path / "federation" / "merchants" / name, name, budget)
        write_ledger(tmp_path / "run" / "privacy" / f"{name}.ledger.jsonl", RELEASES if name == "north" else RELEASES[:2])
    site = {"federation": str(tmp_path / "federation"), "run": str(tmp_path / "run"), "engine": "inline", "seed": 7}
    (tmp_path / "run" / "site.json").write_text(json.dumps(site))
    return tmp_path / "run"


def summary(*paths: Path) -> dict[str, str]:
    return dict(plain_words(privacy_report(find_sources(list(paths)))))


# Figures


def test_the_figures_are_the_accountants(merchant: Path) -> None:
    value = to_json(privacy_report(find_sources([merchant])))
    (one,) = value["merchants"]
    total = epsilon(EVENTS, DELTA, ACCOUNTANTS)
    assert (one["merchant"], one["unit"], one["budget"], one["delta"], one["population"]) == ("shop", "user", 3.0, DELTA, 1000)
    assert (one["epsilon"], one["accountant"], one["share"]) == (total.value, total.accountant, total.value / 3)
    assert one["accountants"] == {name: bound(merge(EVENTS), DELTA) for name, bound in ACCOUNTANTS.items()}
    assert one["epsilon"] == min(one["accountants"].values())
    assert value["total"] == {"merchants": 1, "epsilon": total.value, "delta": DELTA}
    json.dumps(value, allow_nan=False)


def test_by_round_they_are_compositions_of_prefixes(merchant: Path) -> None:
    (one,) = to_json(privacy_report(find_sources([merchant])))["merchants"]
    assert [line["epsilon"] for line in one["rounds"]] == [epsilon(EVENTS[:n], DELTA).value for n in (1, 2, 3, 4)]
    assert [line["recorded_epsilon"] for line in one["rounds"]] == [line["epsilon"] for line in one["rounds"]]
    assert [(line["run"], line["round"]) for line in one["rounds"]] == [("run-a", 0), ("run-a", 1), ("run-a", 2), ("run-b", 1)]


def test_by_mechanism_and_by_run_they_are_of_those_releases_alone(merchant: Path) -> None:
    (one,) = to_json(privacy_report(find_sources([merchant])))["merchants"]
    alone = {part["name"]: (part["releases"], part["steps"], part["epsilon"]) for part in one["mechanisms"] + one["runs"]}
    assert alone == {
        "histogram": (1, 1, epsilon(EVENTS[:1], DELTA).value),
        "dp-sgd": (3, 6, epsilon(EVENTS[1:], DELTA).value),
        "run-a": (3, 5, epsilon(EVENTS[:3], DELTA).value),
        "run-b": (1, 2, epsilon(EVENTS[3:], DELTA).value),
    }


def test_a_long_ledger_is_composed_at_some_lines_only_and_at_the_last(merchant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.report.privacy_report.MOST_PREFIXES", 2)
    (one,) = privacy_report(find_sources([merchant])).merchants
    assert [line.epsilon is not None for line in one.rounds] == [False, True, False, True]
    assert one.rounds[-1].epsilon == epsilon(EVENTS, DELTA).value
    assert one.rounds[0].recorded_epsilon == epsilon(EVENTS[:1], DELTA).value


@pytest.mark.parametrize("budget", [0.5, 1.5, 3.0])
def test_so_many_rounds_fit_and_one_more_does_not(budget: float) -> None:
    def after(count: int) -> float:
        return epsilon([*EVENTS[:1], *[STEP.event] * count], DELTA).value

    count = remaining_rounds(EVENTS[:1], STEP.event, budget, DELTA)
    if count:
        assert after(count) <= budget
    assert after(count + 1) > budget
    assert (count == 0) == (budget == 0.5)


def test_the_search_for_rounds_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.report.privacy_report.MOST_ROUNDS", 100)
    assert remaining_rounds([], SampledGaussian(1000.0, 0.001), 8.0, DELTA) == 100


def test_a_budget_per_period_counts_what_is_recent(tmp_path: Path) -> None:
    write_policy(tmp_path, "shop", 3.0, "period_epsilon = 1.2\nperiod_days = 30\n")
    write_ledger(tmp_path / "shop.ledger.jsonl")
    sources, now = find_sources([tmp_path]), datetime.now(UTC)
    (today,), (later,) = privacy_report(sources, now).merchants, privacy_report(sources, now + timedelta(days=31)).merchants
    assert today.period and today.period.epsilon == epsilon(EVENTS, DELTA).value
    assert later.period and later.period.epsilon == 0
    assert today.remaining and today.remaining.rounds == remaining_rounds(EVENTS, EVENTS[-1], 1.2, DELTA)
    assert later.remaining and later.remaining.rounds == remaining_rounds([], EVENTS[-1], 1.2, DELTA) > today.remaining.rounds


# Attackers


def test_bounds_by_hand() -> None:
    ln = math.log
    assert odds_bound(ln(3)) == pytest.approx(3)
    assert odds_bound(1e4) == math.inf
    # min(2 * 1/100 + 1/1000, 1 - 1/2 * (1 - 1/1000 - 1/100))
    assert tpr_bound(ln(2), 0.001, 0.01) == pytest.approx(21 / 1000)
    # min(100 * 1/100 + 0, 1 - 1/100 * 99/100)
    assert tpr_bound(ln(100), 0.0, 0.01) == pytest.approx(1 - 99 / 10_000)
    assert tpr_bound(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert tpr_bound(1e4, 1e-5, 0.0) == 1e-5
    assert tpr_bound(1e4, 1e-5, 0.01) == 1.0
    assert gaussian_tpr_bound(0.0, 0.01) == pytest.approx(0.01)
    assert gaussian_tpr_bound(-norm.ppf(0.01), 0.01) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="false_positive_rate"):
        tpr_bound(1.0, 1e-5, 1.5)


def test_without_subsampling_the_gaussian_trade_off_is_used() -> None:
    # mu^2 = 4 / 2^2 + 3 / 1^2
    events = [SampledGaussian(2.0, 1.0, 4), SampledGaussian(1.0, 1.0, 3)]
    spent = epsilon(events, DELTA).value
    found = attacker(events, spent, DELTA)
    assert found.tighter_by == "gaussian"
    for rate in FALSE_POSITIVES:
        assert found.tighter_true_positives[f"{rate:g}"] == pytest.approx(norm.cdf(norm.ppf(rate) + 2))
        assert found.true_positives[f"{rate:g}"] == tpr_bound(spent, DELTA, rate) >= found.tighter_true_positives[f"{rate:g}"]
    assert found.odds == math.exp(spent)
    assert found.certainty == pytest.approx(found.odds / (1 + found.odds))


def test_the_profile_is_under_the_one_point_and_over_the_truth() -> None:
    """At a sampling rate of almost 1 the Gaussian trade-off is almost the truth."""
    exact, almost = SampledGaussian(1.0), SampledGaussian(1.0, 0.999999)
    found = attacker([almost], epsilon([almost], DELTA).value, DELTA)
    assert found.tighter_by == "profile"
    truth = attacker([exact], epsilon([exact], DELTA).value, DELTA).tighter_true_positives
    for rate, value in found.tighter_true_positives.items():
        assert truth[rate] - 1e-3 < value < 1.2 * truth[rate]
        assert value <= found.true_positives[rate]


def test_nothing_released_tells_nothing() -> None:
    found = attacker([], 0.0, DELTA)
    assert (found.odds, found.certainty) == (1.0, 0.5)
    assert found.true_positives == pytest.approx({"0.001": 0.001, "0.01": 0.01})
    assert found.tighter_true_positives == pytest.approx({"0.001": 0.001, "0.01": 0.01})


# Two trust models


SECURE = replace(
    STEP, run="run-c", trust="secure-aggregation", noise_multiplier=2.0, noise_multiplier_alone=0.7,
    members=12, dropouts=2, colluders=1,
)  # fmt: skip
MIXED = [HISTOGRAM, STEP, SECURE, replace(SECURE, round=2)]


def oracle(releases: list[tuple[float, float, int]], delta: float = DELTA) -> float:
    """dp-accounting's epsilon of noise multiplier, sampling rate and steps."""
    account = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for sigma, rate, steps in releases:
        account.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), steps))
    return account.get_epsilon(delta)


def test_both_epsilons_of_a_mixed_ledger_are_dp_accountings(tmp_path: Path) -> None:
    write_ledger(tmp_path / "shop.ledger.jsonl", MIXED)
    (one,) = to_json(privacy_report(find_sources([tmp_path])))["merchants"]
    # Local lines count in full in both.
    local = [(4.0, 1.0, 1), (3.0, 0.1, 2)]
    assert one["epsilon"] == pytest.approx(oracle([*local, (2.0, 0.1, 4)]), abs=1e-3)
    assert one["epsilon_alone"] == pytest.approx(oracle([*local, (0.7, 0.1, 4)]), abs=1e-3)
    assert one["epsilon_alone"] > 2 * one["epsilon"] > 0
    assert one["trust"] == "secure-aggregation"
    assert one["secure_terms"] == [{"members": 12, "dropouts": 2, "colluders": 1, "honest": 9, "releases": 2}]
    assert [(line["trust"], line["noise_multiplier_alone"]) for line in one["rounds"]] == [
        ("local", 4.0), ("local", 3.0), ("secure-aggregation", 0.7), ("secure-aggregation", 0.7),
    ]  # fmt: skip


def test_the_trust_model_and_both_epsilons_are_in_the_first_words(tmp_path: Path) -> None:
    write_ledger(tmp_path / "shop.ledger.jsonl", [SECURE, replace(SECURE, round=2), replace(SECURE, run="d", dropouts=3)])
    report = privacy_report(find_sources([tmp_path]))
    words = plain_words(report)
    assert [label for label, _ in words][:6] == [
        "Origin", "Trust model", "Protected", "Against", "How much", "If all others collude",
    ]  # fmt: skip
    said = dict(words)
    for part in (
        "at least 9 of the 12 merchants",
        "at most 2 missing",
        "at most 1 telling",
        "at least 8 of",
        "compared the roster",
    ):
        assert part in said["Trust model"]
    (one,) = report.merchants
    assert said["How much"].startswith(f"against the server, epsilon {one.epsilon:.3f}")
    assert f"epsilon {one.epsilon_alone:.3f}" in said["If all others collude"]
    for part in ("look at the update", "prove nothing", "clipped by the merchant's own"):
        assert part in said["Lost by secure aggregation"]
    assert "for 3 of the" not in said["Trust model"]
    assert "need not cover" in said["Several merchants"]
    html = to_html(report)
    assert "if all others collude" in html and f"<td>{one.epsilon_alone:.3f}</td>" in html
    assert html.index("at least 9 of the 12") < html.index("<table")


def test_a_mixed_ledger_says_how_many_releases_trust_others(tmp_path: Path) -> None:
    write_ledger(tmp_path / "shop.ledger.jsonl", MIXED)
    assert "for 2 of the 4 releases (in the others, under local," in summary(tmp_path)["Trust model"]


def test_a_local_ledger_reads_as_if_there_were_one_trust_model(merchant: Path) -> None:
    report = privacy_report(find_sources([merchant]))
    (one,) = report.merchants
    assert (one.trust, one.secure_terms, one.epsilon_alone) == ("local", (), one.epsilon)
    assert [label for label, _ in plain_words(report)] == [
        "Origin", "Protected", "Against", "How much", "Period", "Not covered", "Several merchants",
    ]  # fmt: skip
    html = to_html(report)
    assert "collude" not in html and "own share" not in html and "secure" not in html


@pytest.mark.parametrize(("merchants", "rate"), [(2, 1.0), (3, 0.1), (9, 1.0), (12, 1.0)])
def test_a_customer_of_all_merchants_of_a_secure_sum_has_one_noise_for_all(tmp_path: Path, merchants: int, rate: float) -> None:
    one = replace(SECURE, noise_multiplier=6.0, noise_multiplier_alone=2.0, sample_rate=rate, steps=3)
    for number in range(merchants):
        write_ledger(tmp_path / f"m{number}.ledger.jsonl", [one])
    report = privacy_report(find_sources([tmp_path]))
    delta = merchants * DELTA
    assert report.delta_sum == pytest.approx(delta)
    # All clipped contributions of one person may point the same way: k times the sensitivity under the noise of
    # the sum, which has 9 shares for certain, and as many as the person has merchants.
    noise = math.sqrt(max(9, merchants)) * 2.0 / merchants
    if rate == 1:
        assert oracle([(noise, 1.0, 3)], delta) <= report.epsilon_sum <= oracle([(noise, 1.0, 3)], 0.998 * delta) + 0.02
        assert report.epsilon_sum > sum(merchant.epsilon for merchant in report.merchants)
    else:
        # The draws are independent: each merchant's with its own part of the noise.
        assert report.epsilon_sum == pytest.approx(oracle([(6.0 / math.sqrt(merchants), rate, 3 * merchants)], delta), abs=0.03)
    words = summary(tmp_path)["Several merchants"]
    assert "need not cover" in words and f"epsilon {report.epsilon_sum:.3f} at delta {delta:g}" in words


def test_a_ledger_of_the_time_before_trust_models_still_verifies(tmp_path: Path) -> None:
    fields = {
        "run": "old", "mechanism": "dp-sgd", "noise_multiplier": 3.0, "sample_rate": 0.1, "steps": 2, "clip_norm": 0.5,
        "unit": "user", "delta": DELTA, "simulated": False, "epsilon_before": 0.0, "epsilon_after": 0.1, "accountant": "prv",
        "time": "2026-01-02T03:04:05+00:00", "version": "0.1.0",
    }  # fmt: skip
    path, chain = tmp_path / "shop.ledger.jsonl", "0" * 64
    with open(path, "w") as file:
        for number in (1, 2):
            release = {**fields, "round": number}
            chain = hashlib.sha256(f"{chain}\n{json.dumps(release, sort_keys=True)}".encode()).hexdigest()
            file.write(json.dumps({"release": release, "chain": chain}, sort_keys=True) + "\n")
    old = path.read_bytes()
    assert [(one.trust, one.event_alone) for one in Ledger(path, DELTA).releases()] == [("local", STEP.event)] * 2
    Ledger(path, DELTA).append(SECURE)
    assert path.read_bytes().startswith(old)
    (one,) = privacy_report(find_sources([path])).merchants
    assert one.chain.intact and len(one.rounds) == 3
    assert one.epsilon_alone == pytest.approx(oracle([(3.0, 0.1, 4), (0.7, 0.1, 2)]), abs=1e-3)
    path.write_bytes(path.read_bytes().replace(b'"noise_multiplier_alone": 0.7', b'"noise_multiplier_alone": 1.7'))
    (one,) = privacy_report(find_sources([path])).merchants
    assert one.chain.broken_line == 3


# The chain


def change(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"noise_multiplier": 3.0', b'"noise_multiplier": 9.0'), *lines[2:]]


def remove(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3]]


def reorder(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def garble(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], b"\xff{\n"]


@pytest.mark.parametrize(("tamper", "line", "left"), [(change, 2, 4), (remove, 3, 3), (reorder, 2, 4), (garble, 4, 3)])
def test_a_broken_chain_is_reported_with_its_line(
    merchant: Path, tamper: Callable[[list[bytes]], list[bytes]], line: int, left: int
) -> None:
    path = merchant / "privacy" / "shop.ledger.jsonl"
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    report = privacy_report(find_sources([merchant]))
    (one,) = report.merchants
    assert not report.intact
    assert (one.chain.intact, one.chain.broken_line, len(one.rounds)) == (False, line, left)
    assert one.remaining is None
    label, text = plain_words(report)[0]
    assert label == "Warning" and f"broken at line {line}" in text
    assert f"BROKEN at line {line}" in to_html(report)
    value = to_json(report)
    assert (value["intact"], value["merchants"][0]["chain"]["broken_line"]) == (False, line)


def test_a_torn_end_costs_nothing_and_is_said(merchant: Path) -> None:
    path = merchant / "privacy" / "shop.ledger.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"chain": "12')
    (one,) = privacy_report(find_sources([merchant])).merchants
    assert one.chain.intact and one.chain.torn_end and one.rounds[-1].epsilon == epsilon(EVENTS, DELTA).value
    Ledger(path, DELTA).append(replace(STEP, round=9))
    (one,) = privacy_report(find_sources([merchant])).merchants
    assert not one.chain.torn_end and Path(one.chain.set_aside).exists() and len(one.rounds) == 5


@pytest.mark.parametrize("content", [b"hello\n", b'{"a": 1}\n', b"\x00\xff\n", b"[1]\n"])
def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ledger.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="no line of it is a ledger line"):
        read_ledger(tmp_path / "x.ledger.jsonl")


# Where the facts come from


def test_a_run_folder_brings_policies_and_says_that_it_is_a_simulation(run: Path) -> None:
    words = summary(run)
    assert next(iter(words)) == "This is a simulation" and "seed (7)" in words["This is a simulation"]
    report = privacy_report(find_sources([run]))
    assert {merchant.merchant: merchant.budget for merchant in report.merchants} == {"north": 3.0, "south": 4.0}
    both = epsilon(EVENTS, DELTA, ACCOUNTANTS).value + epsilon(EVENTS[:2], DELTA, ACCOUNTANTS).value
    assert report.epsilon_sum == pytest.approx(both)
    assert f"epsilon {both:.3f} at delta 2e-05 for one who shops at all 2" in words["Several merchants"]
    assert summary(run / "privacy" / "north.ledger.jsonl")["This is a simulation"]


def test_ledgers_that_a_run_keeps_elsewhere_are_found(run: Path, tmp_path: Path) -> None:
    (run / "privacy").rename(tmp_path / "ledgers")
    write_ledger(tmp_path / "ledgers" / "stranger.ledger.jsonl")
    site = json.loads((run / "site.json").read_text())
    (run / "site.json").write_text(json.dumps(site | {"ledgers": str(tmp_path / "ledgers")}))
    report = privacy_report(find_sources([run]))
    assert {merchant.merchant: merchant.budget for merchant in report.merchants} == {"north": 3.0, "south": 4.0}
    assert all(merchant.simulation for merchant in report.merchants)
    assert all(path.is_file() for path in write_privacy_report(run))


def test_a_federation_folder_shows_who_released_nothing(run: Path, tmp_path: Path) -> None:
    federation = tmp_path / "federation"
    assert "nothing was released" in summary(federation)["How much"]
    write_ledger(federation / "merchants" / "north" / "north.ledger.jsonl")
    words = summary(federation)
    assert "1 more released nothing" in words["How much"]
    assert "Origin" in words and "This is a simulation" not in words


def test_two_ledgers_of_one_name_are_composed_with_a_warning(tmp_path: Path) -> None:
    paths = [write_ledger(tmp_path / folder / "shop.ledger.jsonl") for folder in ("a", "b")]
    report = privacy_report(find_sources([*paths, paths[0]]))
    (same,) = report.same_name
    assert (same.ledgers, same.epsilon) == (2, epsilon([*EVENTS, *EVENTS], DELTA).value)
    assert f"epsilon {same.epsilon:.3f}" in plain_words(report)[0][1]
    assert "the budget is not known" in dict(plain_words(report))["How much"]


def test_a_weaker_unit_and_an_overspent_budget_are_named(tmp_path: Path) -> None:
    write_policy(tmp_path, "shop", 0.5)
    write_ledger(tmp_path / "shop.ledger.jsonl", [replace(STEP, unit="event"), *RELEASES])
    words = summary(tmp_path)
    assert "weaker than the whole user" in words["Protected"]
    assert "OVER THE BUDGET: shop" in words["How much"]


def test_the_audit_is_shown_and_a_refuted_claim_comes_first(merchant: Path) -> None:
    audit = {"epsilon_lower": 0.4, "confidence": 0.95, "epsilon_claimed": 3.0, "method": "one run, 1,000 canaries"}
    assert "The audit" not in to_html(privacy_report(find_sources([merchant])))
    (merchant / "privacy" / "audit.json").write_text(json.dumps(audit))
    report = privacy_report(find_sources([merchant]))
    assert to_json(report)["merchants"][0]["audits"] == [audit | {"noise": True, "mechanism": "heads", "noise_origin": "seed"}]
    assert "the claim stands" in to_html(report) and "one run, 1,000 canaries" in to_html(report)
    (merchant / "privacy" / "audit.json").write_text(json.dumps(audit | {"epsilon_lower": 3.5}))
    assert "refutes" in plain_words(privacy_report(find_sources([merchant])))[0][1]
    for other in ({"noise": "off"}, {"merchant": "another"}):
        (merchant / "privacy" / "audit.json").write_text(json.dumps(audit | {"epsilon_lower": 3.5} | other))
        report = privacy_report(find_sources([merchant]))
        assert plain_words(report)[0][0] != "Warning" and ("The audit" in to_html(report)) == ("noise" in other)
    (merchant / "privacy" / "audit.json").write_text("{}")
    with pytest.raises(InputError, match="not an audit's result"):
        find_sources([merchant])


def test_each_mechanism_that_was_attacked_is_shown_by_name(merchant: Path) -> None:
    audit = {"epsilon_lower": 0.4, "confidence": 0.95, "epsilon_claimed": 3.0, "method": "one run", "noise_origin": "system"}
    (merchant / "privacy" / "audit.json").write_text(json.dumps(audit))
    worse = audit | {"mechanism": "histogram", "epsilon_lower": 3.5}
    (merchant / "privacy" / "audit-histogram.json").write_text(json.dumps(worse))
    report = privacy_report(find_sources([merchant]))
    assert {one["mechanism"] for one in to_json(report)["merchants"][0]["audits"]} == {"heads", "histogram"}
    assert "audit of the histogram refutes" in plain_words(report)[0][1]
    assert "histogram, with the system&#39;s noise" in to_html(report) or "histogram, with the system's noise" in to_html(report)


# What a person sees


def test_the_page_begins_with_plain_words_and_asks_nobody(run: Path) -> None:
    json_path, html_path = write_privacy_report(run)
    html = html_path.read_text()
    body = html[html.index("<body>") :]
    places = [body.index(text) for text in ("This is a simulation", "Protected", "Against", "How much", "Period", "Not covered")]
    assert places == sorted(places) and places[-1] < body.index("<table")
    assert re.findall("<h2>(.*?)</h2>", body) == [
        "Spent against the budget", "By mechanism", "By round", "By run", "What still fits in the budget",
        "What it means for an attacker", "The ledger's chain",
    ]  # fmt: skip
    assert body.count("<svg") == 1 and 'src="' not in html and "<script" not in html and "@import" not in html
    assert json.loads(json_path.read_text())["summary"][0]["label"] == "This is a simulation"


def test_names_are_escaped(tmp_path: Path) -> None:
    write_ledger(tmp_path / "x.ledger.jsonl", [replace(STEP, run="<script>alert(1)</script>")])
    assert "<script" not in to_html(privacy_report(find_sources([tmp_path])))


@pytest.fixture
def fedrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedrec:
    """The command line in this process, in an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", "privacy", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return call


def test_text_begins_with_plain_words(fedrec: Fedrec, run: Path) -> None:
    status, out, _ = fedrec(run)
    assert status == 0 and out.startswith("This is a simulation: ")
    assert out.index("Protected: ") < out.index("Not covered: ") < out.index("Spent against the budget")


def test_text_shows_both_epsilons_of_a_secure_ledger(fedrec: Fedrec, tmp_path: Path) -> None:
    write_ledger(tmp_path / "x" / "shop.ledger.jsonl", MIXED)
    (one,) = privacy_report(find_sources([tmp_path / "x"])).merchants
    assert fedrec(tmp_path / "x", "--out", "a.txt")[0] == 0
    text = " ".join(Path("a.txt").read_text().split())
    assert text.index("Trust model: secure-aggregation") < text.index("Protected: ")
    assert f"{one.epsilon:.3f} │ {one.epsilon_alone:.3f}" in text and "own share" in text


def test_formats_and_files(fedrec: Fedrec, run: Path) -> None:
    status, out, _ = fedrec(run, "--json")
    assert status == 0 and json.loads(out) == json.loads(fedrec(run, "--format", "json")[1])
    assert fedrec(run, "--format", "html")[0] == 0
    assert Path("privacy-report.html").read_text().startswith("<!doctype html>")
    assert fedrec(run, "--format", "text", "--out", "a.txt")[0] == 0
    assert Path("a.txt").read_text().startswith("This is a simulation: ")
    assert fedrec(run, "--out", "no/such/folder/a.txt")[0] == 2


def test_exit_statuses(fedrec: Fedrec, merchant: Path, tmp_path: Path) -> None:
    assert fedrec(merchant)[0] == 0
    path = merchant / "privacy" / "shop.ledger.jsonl"
    path.write_bytes(b"".join(remove(path.read_bytes().splitlines(keepends=True))))
    for arguments in ((), ("--json",), ("--format", "html")):
        status, out, _ = fedrec(path, *arguments)
        assert status == 1
        assert arguments == ("--format", "html") or "broken at line 3" in " ".join(out.split())
    assert "broken at line 3" in Path("privacy-report.html").read_text()
    status, out, err = fedrec(merchant / "merchant.toml")
    assert (status, out) == (2, "") and "ledger" in err
    assert fedrec(tmp_path / "nowhere")[0] == 2
    assert fedrec(tmp_path / "cwd")[0] == 2
    assert fedrec()[0] == 2
