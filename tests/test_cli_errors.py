"""What a person sees who gives the command line something wrong: one message, status 2, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from fedrec import __version__
from fedrec.cli import main
from fedrec.config import RunConfig
from fedrec.data.split import split_source
from fedrec.merchant import read_merchant_file
from simulations.checks import check_federation

from .conftest import write_source
from .helpers import set_policy

SCRIPT = Path(sys.executable).with_name("fedrec")


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Fedrec = Callable[..., Answer]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two merchants with about 30 users each."""
    folder = tmp_path_factory.mktemp("cli")
    split_source(write_source(folder / "source", merchants=2), folder / "federation", 0.2, {"epsilon": 8.0, "delta": 1e-5})
    return folder / "federation"


@pytest.fixture
def fedrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedrec:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDREC_SITE", "")  # a run sets it; the fixture puts it back

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return Answer(int(stopped.value.code or 0), *capsys.readouterr())

    return call


def script(folder: Path, *arguments: object) -> Answer:
    """The installed console script, in a process of its own."""
    command, wide = [SCRIPT, *map(str, arguments)], {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=wide, capture_output=True, text=True, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr)


def assert_refused(answer: Answer, *named: object) -> None:
    assert answer.status == 2, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert re.findall("^error ", answer.err, re.MULTILINE) == ["error "]
    text = re.sub(r"\s+", " ", answer.err)
    assert all(str(part) in text for part in named), answer.err


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Settings and arguments of `simulate`: (arguments, what the message must name)

BAD_SETTINGS = {
    "an unknown setting": (["--set", "epsilom=3"], ["'epsilom'", "did you mean 'epsilon'?"]),
    "a setting without a value": (["--set", "rounds"], ["--set", "'rounds'", "key=value"]),
    "a rank of nothing": (["--set", "rank=0"], ["rank = 0", "greater than or equal to 1"]),
    "a sample rate over one": (["--set", "sample_rate=1.5"], ["sample_rate = 1.5"]),
    "more encoder rounds than rounds": (["--set", "rounds=2", "--set", "encoder_rounds=4"], ["encoder_rounds (4)", "rounds (2)"]),
    "a config file that is not there": (["--config", "none.toml"], ["none.toml", "cannot be read"]),
    "an unknown option": (["--rounds", "3"], ["--rounds"]),
    "an unknown engine": (["--engine", "warp"], ["--engine", "'warp'", "inline"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_refused(case: str, fedrec: Fedrec, federation: Path, tmp_path: Path) -> None:
    arguments, named = BAD_SETTINGS[case]
    assert_refused(fedrec("simulate", federation, "--out", "run", *arguments), *named)
    assert names_in(tmp_path) == []


# Settings that only the encoder, the device or the data can refuse.

BAD_MODELS = {
    "a rank over the encoder's width": (["rank=33"], ["rank", "33", "at most 32"]),
    "a LoRA rank over the encoder's width": (["encoder_rank=33"], ["encoder_rank", "33", "at most 32"]),
    "more LoRA layers than the encoder has": (["encoder_layers=99"], ["encoder_layers", "99", "at most 3"]),
    "an encoder that is no BERT": (["encoder=gpt"], ["encoder", "gpt/config.json", "'gpt2'", "expected a BERT"]),
    "an encoder that is not there": (["encoder=/no/such/folder"], ["encoder", "/no/such/folder", "is no folder"]),
    "a text longer than the encoder's positions": (["max_tokens=65"], ["max_tokens", "65", "at most 64", "positions"]),
    "a device that torch does not know": (["device=nonsense"], ["device", "'nonsense'"]),
    "a device that is not in this machine": (["device=cuda:77"], ["device", "'cuda:77'"]),
    "a merchant that is too small": (["encoder_sample_rate=0.01"], ["merchant m0", "encoder_sample_rate", "min_lot = 5"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_run_that_cannot_start_leaves_nothing(
    case: str, fedrec: Fedrec, federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    changed, named = BAD_MODELS[case]
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    settings = [f"encoder={tiny_bert_folder}", "encoder_sample_rate=0.5", *changed]
    flags = [part for setting in settings for part in ("--set", setting)]
    assert_refused(fedrec("simulate", federation, "--out", "run", *flags), *named)
    assert names_in(tmp_path) == ["gpt"]


@pytest.mark.parametrize("command", ["simulate", "demo"])
def test_a_cache_that_cannot_be_written_stops_a_run_before_it_starts(
    command: str, fedrec: Fedrec, federation: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDREC_CACHE")
    monkeypatch.setenv("HOME", "/dev/null")
    where = [federation] if command == "simulate" else []
    flags = ["--set", f"encoder={tiny_bert_folder}", "--set", "encoder_sample_rate=0.5", "--out", "run"]
    assert_refused(fedrec(command, *where, *flags), "/dev/null/.cache/fedrec", "set FEDREC_CACHE")
    assert names_in(tmp_path) == []


# Secure aggregation: who would decline is known before anything is made

SECURE = ["--set", "trust=secure-aggregation", "--set", "min_lot=1"]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small merchants who all accept secure aggregation."""
    folder = tmp_path_factory.mktemp("secure")
    policy: dict[str, object] = {"epsilon": 8.0, "delta": 1e-5, "trust": "secure-aggregation"}
    split_source(write_source(folder / "source", merchants=5, users=8), folder / "federation", 0.2, policy)
    return folder / "federation"


BAD_TERMS = {
    "two who trust nobody": ({"m1": {"trust": "local"}, "m3": {"trust": "local"}}, [], ["m1/merchant.toml", "'local'", "2 of 5"]),
    "one, and none may be missing": ({"m2": {"trust": "local"}}, ["dropouts=0"], ["m2/merchant.toml", "at most dropouts = 0"]),
    "two who expect more colluders": ({"m0": {"colluders": 2}, "m4": {"colluders": 3}}, [], ["m0/merchant.toml", "policy's 2"]),
    "two who bear no dropouts": ({"m0": {"dropouts": 0}, "m4": {"dropouts": 0}}, [], ["m0/merchant.toml", "1 dropouts"]),
    "too few merchants": ({}, ["dropouts=2"], ["federation", "5 merchants are too few", "more than 5 merchants"]),
}


@pytest.mark.parametrize("case", BAD_TERMS)
def test_a_secure_sum_that_could_never_be_opened_is_refused(case: str, fedrec: Fedrec, five: Path, tmp_path: Path) -> None:
    policies, changed, named = BAD_TERMS[case]
    shutil.copytree(five, tmp_path / "federation")
    for merchant, values in policies.items():
        set_policy(tmp_path / "federation", merchant, **values)
    flags = [part for setting in changed for part in ("--set", setting)]
    assert_refused(fedrec("simulate", "federation", "--out", "run", *SECURE, *flags), *named)
    assert names_in(tmp_path) == ["federation"]


def test_as_many_may_decline_as_may_be_missing(five: Path, tmp_path: Path) -> None:
    shutil.copytree(five, tmp_path / "federation")
    set_policy(tmp_path / "federation", "m2", trust="local")
    terms = RunConfig(trust="secure-aggregation", min_lot=1, encoder_sample_rate=1.0)
    assert len(check_federation(tmp_path / "federation", terms)) == 5


# Folders


def test_a_missing_federation_says_what_to_give(fedrec: Fedrec, tmp_path: Path) -> None:
    assert_refused(fedrec("simulate"), "no federation folder", "fedrec simulate FOLDER")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("command", ["simulate", "check"])
def test_a_folder_that_is_no_federation_is_refused(command: str, fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    if command == "simulate":
        assert_refused(fedrec("simulate", "empty", "--out", "run"), "empty", "merchants/", "fedrec data split")
    else:
        assert_refused(fedrec("data", "check", "empty"), "empty", "merchant.toml")
    assert names_in(tmp_path) == ["empty"]


def test_a_run_folder_that_is_there_is_left_alone(
    fedrec: Fedrec, federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("keep")
    settings = (f"encoder={tiny_bert_folder}", "encoder_rounds=0", "noise_multiplier=2", "histogram_noise_multiplier=2")
    flags = [part for setting in settings for part in ("--set", setting)]
    assert_refused(fedrec("simulate", federation, "--out", "run", *flags), "run", "already there", "--resume")
    assert names_in(tmp_path / "run") == ["precious"]


def test_resume_needs_a_run(fedrec: Fedrec, tmp_path: Path) -> None:
    assert_refused(fedrec("simulate", "--resume"), "--resume", "--out")
    assert_refused(fedrec("simulate", "--resume", "--out", "none"), "none", "config.toml", "a run folder")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("arguments", [["recommend", "none", "--history", "i1"], ["evaluate", "none"]])
def test_a_folder_without_a_run_is_refused(arguments: list[str], fedrec: Fedrec, tmp_path: Path) -> None:
    assert_refused(fedrec(*arguments), "none", "expected a run folder")
    assert names_in(tmp_path) == []


def test_a_fault_in_one_merchants_table_stops_the_run(fedrec: Fedrec, tmp_path: Path) -> None:
    split_source(write_source(tmp_path / "source", merchants=2), tmp_path / "bad", 0.2, {"epsilon": 8.0, "delta": 1e-5})
    (tmp_path / "bad" / "merchants" / "m1" / "merchant.toml").unlink()
    for arguments in (["simulate", "bad", "--out", "run"], ["data", "check", "bad"]):
        answer = fedrec(*arguments, *(["--set", "min_lot=1"] if arguments[0] == "simulate" else []))
        assert_refused(answer, "m1/merchant.toml", "No such file")
    assert not (tmp_path / "run").exists()


def test_a_split_over_a_folder_that_is_there_is_refused(fedrec: Fedrec, federation: Path, tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    before = sorted(federation.rglob("*"))
    assert_refused(fedrec("data", "split", "source", federation), federation, "already there")
    assert sorted(federation.rglob("*")) == before


# What is right


def test_a_tidy_source_is_split_and_checked(fedrec: Fedrec, tmp_path: Path) -> None:
    write_source(tmp_path / "source", merchants=2)
    made = fedrec("data", "split", "source", "made", "--json")
    assert made.status == 0 and [row["merchant"] for row in json.loads(made.out)["merchants"]] == ["m0", "m1"]
    checked = fedrec("data", "check", "made/merchants/m1", "--json")
    assert checked.status == 0 and [row["merchant"] for row in json.loads(checked.out)["merchants"]] == ["m1"]


def test_each_kind_of_event_is_counted(fedrec: Fedrec, federation: Path, tmp_path: Path) -> None:
    shutil.copytree(federation, tmp_path / "federation")
    path = tmp_path / "federation" / "merchants" / "m0" / "events.parquet"
    events = pd.read_parquet(path)
    pd.concat([events, events.head(5).assign(event="\x1b[2Jview")]).to_parquet(path, index=False)
    answer = fedrec("data", "check", "federation")
    assert answer.status == 0 and f"m0: kinds of events: {len(events)} purchase, 5 \\x1b[2jview" in answer.out
    assert "m1: kinds" not in answer.out and "\x1b[2" not in answer.out.replace("\\x1b", "")
    kinds = json.loads(fedrec("data", "check", "federation", "--json").out)["kinds"]
    assert kinds["m0"] == {"purchase": len(events), "\x1b[2jview": 5} and list(kinds) == ["m0", "m1", "central/"]


def test_a_split_writes_the_trust_model_into_every_policy(fedrec: Fedrec, tmp_path: Path) -> None:
    write_source(tmp_path / "source", merchants=4)
    made = fedrec("data", "split", "source", "made", "--trust", "secure-aggregation")
    assert made.status == 0 and "next: fedrec simulate made --set trust=secure-aggregation" in made.out
    files = sorted((tmp_path / "made" / "merchants").glob("*/merchant.toml"))
    assert [read_merchant_file(path).privacy.trust for path in files] == ["secure-aggregation"] * 4
    assert_refused(fedrec("data", "split", "source", "other", "--trust", "everyone"), "--trust", "'everyone'")


def test_the_demo_is_made_with_policies_for_its_trust_model(fedrec: Fedrec, private_cache: Path) -> None:
    # Refused for its terms, which are looked at after the merchants' policies are written and before anything is trained.
    for flags in (["--trust", "secure-aggregation"], ["--set", "trust=secure-aggregation"]):
        answer = fedrec("demo", *flags, "--set", "dropouts=6", "--out", "run")
        assert answer.status == 2 and "12 merchants are too few for dropouts = 6" in " ".join(answer.err.split())
    made = sorted(private_cache.glob("demo-*-secure-aggregation/merchants/*/merchant.toml"))
    assert [read_merchant_file(path).privacy.trust for path in made] == ["secure-aggregation"] * 12


def test_the_version_is_printed(fedrec: Fedrec) -> None:
    assert fedrec("--version") == (0, f"{__version__}\n", "")


# The installed program


@pytest.mark.slow
@pytest.mark.integration
def test_the_program_refuses_an_encoder_that_is_no_bert(federation: Path, tmp_path: Path) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    flags = ["--set", "encoder=gpt", "--set", "encoder_sample_rate=0.5"]
    assert_refused(script(tmp_path, "simulate", federation, "--out", "run", *flags), "'gpt2'", "expected a BERT")
    assert names_in(tmp_path) == ["gpt"]


@pytest.mark.integration
def test_the_program_refuses_an_unknown_option(tmp_path: Path) -> None:
    assert_refused(script(tmp_path, "simulate", "--rounds", "3"), "--rounds")
    assert names_in(tmp_path) == []


@pytest.mark.integration
def test_the_program_checks_a_federation_as_json(federation: Path, tmp_path: Path) -> None:
    answer = script(tmp_path, "data", "check", federation, "--json")
    assert answer.status == 0, answer.err
    checked = json.loads(answer.out)
    assert checked["ok"] is True and checked["path"] == str(federation)
    assert {row["merchant"]: row["items"] for row in checked["merchants"]} == {"m0": 30, "m1": 30}
