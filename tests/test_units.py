"""Units do not mix: one ledger protects one thing, and says which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from fedrec.privacy import Ledger, Policy, Release, SampledGaussian, over_budget
from fedrec.report.privacy_report import privacy_report
from fedrec.report.privacy_sources import find_sources
from fedrec.report.privacy_words import plain_words

from .merchants import open_shop, public_and_trained, task, write_merchant

Unit = Literal["user", "event"]
LINE = Release("a", 1, "dp-sgd", 20.0, 1.0, 1, 1.0, "user", 1e-5)
POLICY = Policy(epsilon=8, delta=1e-5, population=1_000, unit="event")


@pytest.mark.parametrize("first", ["user", "event"])
@pytest.mark.parametrize("then", ["user", "event"])
@pytest.mark.parametrize("trust", ["local", "secure-aggregation"])
def test_a_release_has_the_unit_of_its_ledger(first: Unit, then: Unit, trust: Literal["local", "secure-aggregation"]) -> None:
    known, asked = replace(LINE, unit=first, trust=trust, members=3), replace(LINE, unit=then, run="b")
    reason = over_budget(POLICY, [known], asked)
    assert reason is None if first == then else reason and reason.startswith(f"policy: unit '{then}' over")


def test_a_merchant_declines_and_its_statements_say_the_unit(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = write_merchant(tmp_path / "shop", epsilon=8.0, delta=1e-5, unit="event")
    shop = open_shop(folder, tiny_bert_folder, tmp_path / "state", seed=None)
    public, trained = public_and_trained(shop)
    asked = {"part": "heads", "noise_multiplier": 20.0, "sample_rate": 1.0, "local_steps": 1}
    first = shop.train(task(shop, run="a", round=1, unit="event", **asked), trained, public)
    assert (first.statement.status, first.statement.unit) == ("ok", "event")
    second = shop.train(task(shop, run="a", round=2, unit="user", **asked), trained, public)
    assert second.statement.status == "declined" and second.statement.reason.startswith("policy: unit 'user' over")
    assert not second.arrays and len(shop.ledger.releases()) == 1
    # The first is still answered again, for nothing.
    assert shop.train(task(shop, run="a", round=1, unit="event", **asked), trained, public).statement == first.statement


def test_a_report_on_an_older_ledger_of_both_units_bounds_no_user(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "shop.ledger.jsonl", 1e-5)
    for release in (LINE, replace(LINE, round=2, unit="event")):
        ledger.append(release)
    report = privacy_report(find_sources([ledger.path]))
    words = plain_words(report)
    assert report.merchants[0].unit == "event" and report.merchants[0].units_mixed
    assert words[0][0] == "Warning" and "of unit user and of unit event" in words[0][1]
    assert dict(words)["Protected"].startswith("one example")


def test_a_report_on_a_ledger_of_one_unit_has_no_such_warning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "shop.ledger.jsonl", 1e-5)
    ledger.append(LINE)
    report = privacy_report(find_sources([ledger.path]))
    assert not report.merchants[0].units_mixed and "Warning" not in dict(plain_words(report))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan")])
def test_a_rate_that_is_no_share_is_no_event(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        SampledGaussian(1.0, rate, 1)


def test_a_policy_of_noise_of_its_own_has_no_part_in_a_secure_sum() -> None:
    terms = {"dropouts": 0, "colluders": 1}
    local = Policy(epsilon=8, delta=1e-5, population=100)
    assert "weaker" in str(local.refusal_of_terms(**terms))
    secure = local.model_copy(update={"trust": "secure-aggregation", "colluders": 1})
    assert secure.refusal_of_terms(**terms) is None
    assert "colluders" in str(secure.refusal_of_terms(dropouts=0, colluders=0))
