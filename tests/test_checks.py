"""What `simulate` and `data check` know before anything starts: who would decline and why, and what cannot be learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedrec.config import RunConfig
from fedrec.data import Columns, Histories
from fedrec.data.split import split_source
from fedrec.errors import InputError
from fedrec.privacy import Ledger, Policy, Release
from server.progress import watching
from simulations.checks import check_merchant, check_run, not_advised, nothing_to_learn
from simulations.run import simulate

from .conftest import make_catalogue, make_events, write_source
from .helpers import make_federation, set_policy, settings_of
from .test_cli_errors import Fedrec, assert_refused, fedrec, names_in
from .test_shown import write

__all__ = ["fedrec"]

NOISE = {"noise_multiplier": 2.0, "histogram_noise_multiplier": 2.0}
ONCE = {"rounds": 2, "encoder_rounds": 0, **NOISE}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small merchants whose policies accept the default settings."""
    return make_federation(tmp_path_factory.mktemp("six"), merchants=6, users=12)


@pytest.fixture
def own(six: Path, tmp_path: Path) -> Path:
    """A federation whose policies a test may change."""
    return Path(shutil.copytree(six, tmp_path / "own"))


def names(federation: Path) -> list[str]:
    return sorted(path.name for path in (federation / "merchants").iterdir())


# Who would decline


def test_who_would_decline_is_who_declines(own: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    set_policy(own, "m0", delta=1e-7)
    set_policy(own, "m1", min_noise_multiplier=2.5)
    set_policy(own, "m2", max_clip_norm=0.01)
    set_policy(own, "m3", epsilon=0.5)
    set_policy(own, "m4", epsilon=2.5, period_epsilon=2.5)  # the histogram fits, and then no round does
    config, said = settings_of(tiny_bert_folder, **ONCE), []
    with watching(lambda event, fields: said.append(fields["what"]) if event == "data" else None):
        lines = simulate(own, config, tmp_path / "run").metrics()
    assert lines[0]["took_part"] == ["m4", "m5"] and lines[1]["took_part"] == ["m5"]
    declined = {**lines[1]["declined"], **lines[0]["declined"]}
    said.remove(*not_advised(own, config, 32))
    assert sorted(said) == [f"merchant {name} would decline: {reason}" for name, reason in sorted(declined.items())]


RULES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "delta": ({}, {"delta": 1e-4}, "policy: delta 0.0001 is over the policy's 1e-05"),
    "unit": ({}, {"unit": "event"}, "policy: unit 'event'"),
    "floor": ({"min_noise_multiplier": 2.5}, {}, "policy: noise_multiplier 2 is under"),
    "ceiling": ({"max_clip_norm": 0.01}, {}, "policy: clip_norm"),
    "budget": ({"epsilon": 0.5}, {}, "budget: epsilon"),
    "budget after the histogram": ({"epsilon": 2.5}, {}, "budget: epsilon"),
}


@pytest.mark.parametrize("case", RULES)
def test_a_run_in_which_all_would_decline_does_not_start(case: str, own: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    policy, asked, reason = RULES[case]
    for name in names(own):
        set_policy(own, name, **policy)
    config = settings_of(tiny_bert_folder, **{**ONCE, **asked})
    with pytest.raises(InputError, match="6 of 6 merchants would decline: m0, m1, m2, m3, m4 and 1 more ") as refused:
        simulate(own, config, tmp_path / "run")
    assert reason in str(refused.value) and not (tmp_path / "run").exists()


def test_each_reason_is_listed_with_its_merchants(own: Path, tiny_bert_folder: Path) -> None:
    for name in ("m0", "m1", "m2"):
        set_policy(own, name, delta=1e-7)
    for name in ("m3", "m4", "m5"):
        set_policy(own, name, max_clip_norm=0.01)
    with pytest.raises(InputError, match=r"m0, m1, m2 \(policy: delta .*\), m3, m4, m5 \(policy: clip_norm .*\)"):
        check_run(own, settings_of(tiny_bert_folder, **{**ONCE, "histogram_share": 0.0}))


def test_ledgers_that_are_spent_are_seen(own: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    ledgers, config = tmp_path / "ledgers", settings_of(tiny_bert_folder, **ONCE)
    for name in names(own)[1:]:
        spent = Release("run", 1, "dp-sgd", 0.6, 1.0, 1, 0.1, "user", 1e-5)
        Ledger(ledgers / f"{name}.ledger.jsonl", 1e-5).append(spent)
    said = check_run(own, config, ledgers)
    assert [line.split()[1] for line in said] == names(own)[1:] and all("budget: epsilon" in line for line in said)
    assert check_run(own, config) == []
    shutil.copy(ledgers / "m1.ledger.jsonl", ledgers / "m0.ledger.jsonl")
    with pytest.raises(InputError, match=r"6 of 6 merchants would decline: .*budget: epsilon"):
        simulate(own, config, tmp_path / "run", ledgers=ledgers)
    assert not (tmp_path / "run").exists()


def test_in_a_secure_sum_as_many_may_decline_as_may_be_missing(own: Path) -> None:
    for name in names(own):
        set_policy(own, name, trust="secure-aggregation")
    config = RunConfig(trust="secure-aggregation", dropouts=1, **ONCE)
    set_policy(own, "m3", min_noise_multiplier=2.5)
    (said,) = check_run(own, config)
    assert said.startswith("merchant m3 would decline: policy: noise_multiplier 2 is under")
    set_policy(own, "m5", colluders=2)
    with pytest.raises(InputError, match=r"2 of 6 merchants would decline: m3 .*m5 .*at most dropouts = 1"):
        check_run(own, config)


# What cannot be learned


def histories(rows: list[tuple[str, str, int]]) -> Histories:
    frame = pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, "day"])
    frame[Columns.TIME] = pd.Timestamp("2026-01-01") + pd.to_timedelta(frame.pop("day"), unit="D")
    return Histories.from_table(frame, make_catalogue(5))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("a", "i0", 0), ("a", "i1", 0), ("b", "i1", 5)], "no user has two baskets"),
        ([("a", "i0", 0), ("a", "i0", 1), ("b", "i1", 5)], "no user has a second basket with anything new in it"),
        ([("a", "i0", 0), ("a", "i1", 1), ("a", "i0", 2)], None),
        ([("a", "i0", 0), ("b", "i1", 0), ("b", "i0", 1)], None),
    ],
)
def test_what_a_merchants_users_are_no_example_for(rows: list[tuple[str, str, int]], reason: str | None) -> None:
    assert nothing_to_learn(histories(rows)) == reason


def one_basket(source: Path) -> None:
    events = pd.read_parquet(source / "events.parquet")
    events[Columns.TIME] = pd.Timestamp("2026-01-01")
    events.to_parquet(source / "events.parquet", index=False)


def test_where_nobody_has_two_baskets_check_and_simulate_say_so(fedrec: Fedrec, tmp_path: Path) -> None:
    one_basket(write_source(tmp_path / "source", merchants=2))
    split_source(tmp_path / "source", tmp_path / "made", 0.2, {"epsilon": 8.0, "delta": 1e-5})
    for arguments in (["data", "check", "made"], ["simulate", "made", "--out", "run"]):
        flags = ["--set", "min_lot=1"] if arguments[0] == "simulate" else []
        assert_refused(fedrec(*arguments, *flags), "no user has two baskets", "look at the timestamps")
    # Which objective a merchant's run will have is not known: its baskets are of several items, which `basket` learns from.
    assert any("no user has two baskets" in note for note in checked(fedrec, "made/merchants/m0"))
    assert names_in(tmp_path) == ["made", "source"]


def test_held_out_users_without_two_baskets_are_named(fedrec: Fedrec, tmp_path: Path) -> None:
    split_source(write_source(tmp_path / "source", merchants=2), tmp_path / "made", 0.2, {"epsilon": 8.0, "delta": 1e-5})
    one_basket(tmp_path / "made" / "central")
    assert_refused(fedrec("data", "check", "made"), "made/central", "no user has two baskets among those held out")


# `data check`


def checked(fedrec: Fedrec, path: str) -> list[str]:
    answer = fedrec("data", "check", path, "--json")
    assert answer.status == 0, answer.err
    return json.loads(answer.out)["notes"]


def test_what_the_default_settings_would_refuse_is_noted(fedrec: Fedrec, own: Path) -> None:
    for name in names(own):
        set_policy(own, name, population=50)
    assert checked(fedrec, "own") == []
    set_policy(own, "m1", delta=1e-7)
    set_policy(own, "m2", population=40)
    small, declines = checked(fedrec, "own")
    default = "with a run's default settings merchant"
    assert small.startswith(f"{default} m2 declares 40 users: at encoder_sample_rate 0.1 a step expects 4.0 of them; expected ")
    assert declines == f"{default} m1 would decline: policy: delta 1e-05 is over the policy's 1e-07"
    assert checked(fedrec, "own/merchants/m2") == [small] and checked(fedrec, "own/merchants/m1") == [declines]
    said = " ".join(fedrec("data", "check", "own").out.split())
    assert small in said and declines in said


def test_a_merchant_of_whom_nothing_can_be_learned_is_noted_beside_others(fedrec: Fedrec, own: Path) -> None:
    for name in names(own):
        set_policy(own, name, population=50)
    one_basket(own / "merchants" / "m1")
    assert checked(fedrec, "own") == ["merchant m1: no user has two baskets"]


@pytest.mark.parametrize("kind", ["impression", "rating", "view"])
def test_a_merchant_that_any_objective_can_learn_from_passes_alone(tmp_path: Path, kind: str) -> None:
    """Nobody's second basket has anything new in it."""
    rows = [("a", "i0", 0, "purchase", None), ("a", "i0", 3, "purchase", None), ("a", "i0", 3, kind, 1)]
    folder = write(tmp_path / "shop", rows)
    settings = (folder / "merchant.toml").read_text()
    (folder / "merchant.toml").write_text(settings.replace("delta = 1e-5", "delta = 1e-6"))
    if kind == "view":
        with pytest.raises(InputError, match="no user has a second basket"):
            check_merchant(folder)
    else:
        assert check_merchant(folder)[0].name == "shop"


def test_a_run_on_ledgers_that_were_cut_does_not_start(own: Path, tmp_path: Path) -> None:
    from fedrec.privacy import LedgerError, head_file

    path = tmp_path / "ledgers" / "m0.ledger.jsonl"
    ledger = Ledger(path, 1e-5, head_file(path))
    for number in (1, 2):
        ledger.append(Release("before", number, "dp-sgd", 50.0, 1.0, 1, 0.1, "user", 1e-5))
    check_run(own, RunConfig(**ONCE), path.parent)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LedgerError, match="line 2 is missing"):
        check_run(own, RunConfig(**ONCE), path.parent)


def test_a_delta_that_protects_nobody_is_refused(fedrec: Fedrec, own: Path) -> None:
    set_policy(own, "m1", delta=1e-3, population=101)
    for path in ("own", "own/merchants/m1"):
        answer = fedrec("data", "check", path)
        assert_refused(answer, "own/merchants/m1/merchant.toml", "delta 0.001 times 101", "0.101, over 0.1")
    config = RunConfig(**ONCE)
    assert check_run(own, config) == ["merchant m1: delta 0.001 times 101 declared users is 0.101, over 0.1"]
    set_policy(own, "m1", delta=1e-3, population=100)
    assert fedrec("data", "check", "own/merchants/m1", "--json").status == 0


# `data split` refuses before it writes

BAD_POLICIES: dict[str, tuple[list[str], list[str]]] = {
    "no epsilon": (["--epsilon", "0"], ["epsilon = 0", "greater than 0"]),
    "an epsilon that is no number": (["--epsilon", "nan"], ["epsilon = nan", "finite"]),
    "an infinite epsilon": (["--epsilon", "inf"], ["epsilon = inf", "finite"]),
    "a negative delta": (["--delta", "-1e-5"], ["delta = -1e-05", "greater than 0"]),
    "a certain delta": (["--delta", "1"], ["delta = 1", "less than 1"]),
    "a delta that protects nobody": (["--delta", "0.01"], ["the policy of merchant m0", "delta 0.01 times 30", "over 0.1"]),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_split_with_a_bad_policy_writes_nothing(case: str, fedrec: Fedrec, tmp_path: Path) -> None:
    arguments, named = BAD_POLICIES[case]
    write_source(tmp_path / "source", merchants=2)
    assert_refused(fedrec("data", "split", "source", "made", *arguments), *named)
    assert names_in(tmp_path) == ["source"]


def test_a_hint_for_delta_is_one_that_passes() -> None:
    with pytest.raises(InputError, match="such as 5e-07") as refused:
        Policy(epsilon=8, delta=1e-5, population=20_000).check_delta("here")
    assert "delta 1e-05 times 20,000 declared users is 0.2" in str(refused.value)
    Policy(epsilon=8, delta=5e-7, population=20_000).check_delta("here")


BAD_NAMES = {
    "one character too long": ("a" * 65, "cannot name a merchant"),
    "the folder itself": (".", "cannot name a merchant"),
    "the folder above": ("..", "cannot name a merchant"),
    "a folder further down": ("a/b", "cannot name a merchant"),
    "a new line at the end": ("shop\n", "cannot name a merchant"),
    "another case of a name before": ("M0", "differs from 'm0' only in case"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_split_with_a_bad_name_writes_nothing_and_says_where(case: str, fedrec: Fedrec, tmp_path: Path) -> None:
    name, found = BAD_NAMES[case]
    events = make_events(3, make_catalogue(30), 3).assign(merchant="m0")
    first = len(events)
    write_source(tmp_path / "source", merchants=1)
    more = pd.concat([events, make_events(3, make_catalogue(30), 3).assign(merchant=name)])
    more.to_parquet(tmp_path / "source" / "events.parquet", index=False)
    answer = fedrec("data", "split", "source", "made")
    assert_refused(answer, "source/events.parquet, column merchant, row " + str(first), found, "at most 64 letters")
    assert names_in(tmp_path) == ["source"]


def test_the_longest_name_is_split_and_checked(fedrec: Fedrec, tmp_path: Path) -> None:
    write_source(tmp_path / "source", merchants=1)
    events = pd.read_parquet(tmp_path / "source" / "events.parquet").assign(merchant="a" * 64)
    events.to_parquet(tmp_path / "source" / "events.parquet", index=False)
    assert fedrec("data", "split", "source", "made").status == 0
    assert fedrec("data", "check", "made").status == 0


@pytest.mark.parametrize(
    ("asked", "flags"),
    [([], ""), (["--epsilon", "4", "--delta", "1e-6"], " --set epsilon=4.0 --set delta=1e-06")],
)
def test_what_to_run_next_is_what_the_policies_accept(asked: list[str], flags: str, fedrec: Fedrec, tmp_path: Path) -> None:
    write_source(tmp_path / "source", merchants=2)
    made = fedrec("data", "split", "source", "made", *asked)
    assert f"next: fedrec simulate made{flags}\n" in made.out


def test_a_run_that_can_learn_next_to_nothing_is_not_advised(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "federation", users=60)
    (said,) = not_advised(federation, RunConfig(**ONCE), 384)
    assert "training is not advised" in said and "expected: 1)" in said
    assert not_advised(federation, RunConfig(**{**ONCE, "noise_multiplier": 0.01}), 384) == []
