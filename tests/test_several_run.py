"""Whole runs that rank and predict responses with one adapter, that stop early, and that start from another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fedrec.cli.main import app
from fedrec.config import RunConfig, load_config
from fedrec.deploy.server_folder import ServerFolder
from fedrec.errors import InputError
from fedrec.model import init_base, init_trained
from fedrec.model.adapter import HEAD_B, TERMS, digest, save_arrays
from fedrec.model.complements import KINDS, LIFT
from fedrec.model.saved import settings_of_run
from fedrec.privacy import epsilon
from fedrec.recommender import Recommender
from fedrec.report.run_report import write_report
from server import deployed
from server.given_start import check_start, copy_start, open_start, read_start, start_of
from server.progress import watching
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.run import _ledgers_of, finish, resume, simulate

from .conftest import make_catalogue
from .helpers import ledger_rounds, ledgers, settings_of
from .test_response_run import SHARE, federation_of

EPSILON, DELTA = 8.5, 1e-5


def config_of(bert: Path, **values: object) -> RunConfig:
    wanted = {"objective": "next-item+response", "negative_share": SHARE, "positions": 2, "impressions": 8, **values}
    return settings_of(bert, **wanted)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation_of(tmp_path_factory.mktemp("several"), "local")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, federation: Path, tiny_bert_folder: Path) -> RunFolder:
    return simulate(federation, config_of(tiny_bert_folder, epsilon=4.0), tmp_path_factory.mktemp("run") / "run")


@pytest.mark.slow
def test_one_adapter_ranks_and_predicts(run: RunFolder) -> None:
    assert ledger_rounds(run) == {f"m{number}": [0, 1, 2, 3] for number in range(3)}  # paid for once, not once a part
    results = finish(run)
    gain = results["gain"]
    assert gain["metric"] == "ndcg@10" and set(gain["others"]) == {"auc", "log_loss"}
    assert {"ndcg@10", "auc", "log_loss"} <= run.metrics()[-1]["central"].keys() & set(results["metrics"])
    assert results["merchants"]
    assert run.metrics()[-1]["scoring"] != run.metrics()[-1]["response_scoring"]
    html = write_report(run.path, run.config, run.metrics(), results).read_text(encoding="utf-8")
    assert "predicts responses, and ranks" in html and "Reliability" in html and "NDCG@10" in html
    recommender = Recommender.load(run.path)
    assert recommender.recommend(["i0"], k=3, merchant="m1")
    found = recommender.predict(["i0"], ["i3", "i4"], "m1").tolist()
    asked = ["predict", str(run.path), "--history", "i0", "--items", "i3,i4", "--merchant", "m1", "--json"]
    said = json.loads(CliRunner().invoke(app, asked).stdout)["predictions"]
    assert [one["probability"] for one in said] == found
    trained = run.load().trained
    assert all(np.abs(trained[name]).max() > 0 for name in (TERMS, *HEAD_B.values()))


@pytest.mark.slow
def test_a_joint_run_is_resumed_exactly_and_summed_securely(run: RunFolder, federation: Path, tmp_path: Path) -> None:
    def after_the_first(name: str, values: dict[str, Any]) -> None:
        if name == "round_done" and values["round"] == 1:
            raise KeyboardInterrupt

    with watching(after_the_first), pytest.raises(KeyboardInterrupt):
        simulate(federation, run.config, tmp_path / "again")
    again = resume(tmp_path / "again")
    assert all(np.array_equal(again.load().trained[name], value) for name, value in run.load().trained.items())
    secure = federation_of(tmp_path, "secure-aggregation", merchants=4)
    changed = {"trust": "secure-aggregation", "rounds": 1, "encoder_rounds": 0}
    summed = simulate(secure, run.config.model_copy(update=changed), tmp_path / "secure")
    assert len(summed.metrics()[-1]["took_part"]) == 4 and np.abs(summed.load().trained[TERMS]).max() > 0


def stopping(bert: Path, **values: object) -> RunConfig:
    """A step so long that it does harm soon, and public users enough to see it."""
    harmful = {"rounds": 8, "encoder_rounds": 0, "server_learning_rate": 0.3, "calibration_share": 0.85, "patience": 2}
    return settings_of(bert, **{**harmful, **values})


@pytest.mark.slow
@pytest.mark.parametrize("trust", ["local", "secure-aggregation"])
def test_a_run_stops_where_the_judges_see_no_gain(tmp_path: Path, tiny_bert_folder: Path, trust: str) -> None:
    federation = federation_of(tmp_path, trust, merchants=4)
    config = stopping(tiny_bert_folder, trust=trust)
    folder = simulate(federation, config, tmp_path / "run")
    state, lines = folder.load(), folder.metrics()
    judged = [line["judged"] for line in lines]
    rounds = [line["round"] for line in lines]
    assert state is not None and state.stopped and state.round < config.rounds and judged[-1]["stopped"]
    best = int(np.argmin([one["loss"] for one in judged]))
    assert judged[-1]["best_round"] == best == state.round - config.patience
    # Nothing is paid for a round that is not run.
    assert set(map(tuple, ledger_rounds(folder).values())) == {tuple(rounds)}
    kept, found = lines[-1]["kept"], state.best.trained
    assert all(np.array_equal(value, np.float32(kept) * found[name]) for name, value in state.trained.items())
    results = finish(folder, with_reference=False)
    html = write_report(folder.path, config, lines, results).read_text(encoding="utf-8")
    assert f"Stopped after round {state.round} of 8" in html
    if trust == "local":
        return

    def before_the_last(name: str, values: dict[str, Any]) -> None:
        if name == "round_done" and values["round"] == state.round - 1:
            raise KeyboardInterrupt

    with watching(before_the_last), pytest.raises(KeyboardInterrupt):
        simulate(federation, config, tmp_path / "again")
    again = resume(tmp_path / "again")
    assert [line["judged"] for line in again.metrics()] == judged
    assert all(np.array_equal(again.load().trained[name], value) for name, value in state.trained.items())
    resume(tmp_path / "again")
    assert ledger_rounds(again) == ledger_rounds(folder)


@pytest.mark.slow
def test_where_all_decline_the_run_ends_with_the_best_round_too(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = federation_of(tmp_path, "local", merchants=3)
    for path in federation.glob("merchants/*/merchant.toml"):
        path.write_text(path.read_text().replace("[privacy]", "[privacy]\nmax_rounds = 5"))
    folder = simulate(federation, stopping(tiny_bert_folder, patience=7), tmp_path / "run")
    state, lines = folder.load(), folder.metrics()
    assert state is not None and not state.stopped and (folder.path / "ended_early.json").exists()
    assert lines[-1]["round"] == state.round < 8 and state.best.round == lines[-1]["judged"]["best_round"] < state.round
    share = np.float32(lines[-1]["kept"])
    assert all(np.array_equal(value, share * state.best.trained[name]) for name, value in state.trained.items())
    saved = load_file(folder.path / "adapter" / "fedrec.safetensors")
    assert all(np.array_equal(value, saved[name]) for name, value in state.trained.items())


def test_nobody_who_judges_is_one_clear_error(tmp_path: Path, federation: Path, tiny_bert_folder: Path) -> None:
    with pytest.raises(InputError, match=r"patience = 2 needs public users who judge: \d+ can"):
        simulate(federation, stopping(tiny_bert_folder, calibration_share=0.1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="leaves no public users who judge"):
        load_config(overrides={"patience": 1, "calibrate": False})


@pytest.mark.slow
def test_ledgers_compose_over_a_run_and_the_one_that_starts_from_it(
    run: RunFolder, federation: Path, tmp_path: Path, tiny_bert_folder: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(run.path, first)
    config = config_of(tiny_bert_folder, objective="response", epsilon=4.0, rounds=1, encoder_rounds=0)
    folder = simulate(federation, config, tmp_path / "second", start=first)
    shutil.rmtree(first)
    begun = load_file(folder.path / "checkpoints" / "round-00000.safetensors")
    assert all(np.array_equal(begun[f"trained|{name}"], value) for name, value in run.load().trained.items())
    assert ledger_rounds(folder) == {name: [*rounds, 0, 1] for name, rounds in ledger_rounds(run).items()}
    for name, ledger in ledgers(folder).items():
        alone = epsilon([one.event for one in ledgers(run)[name].releases()], DELTA).value
        assert alone < folder.metrics()[-1]["privacy"][name]["epsilon"] < EPSILON
        assert folder.metrics()[-1]["privacy"][name]["epsilon"] == pytest.approx(
            epsilon([one.event for one in ledger.releases()], DELTA).value, rel=1e-3
        )
    for other in ({"seed": 5}, {"calibration_share": 0.4}, {"calibrate": False}):
        with pytest.raises(InputError, match="would be measured now"):
            check_start(open_start(run.path), config.model_copy(update=other), load_encoder_for(config))
    assert _ledgers_of(run.path / "adapter", federation) == _ledgers_of(run.path, federation) == run.path / "privacy"
    assert _ledgers_of(run.path / "adapter", run.path) is None
    results = finish(folder)
    assert results["start"]["digest"] == digest(open_start(run.path).arrays)
    assert results["start"]["objective"] == run.config.objective
    assert "given start, calibrated" in [row["name"] for row in results["rows"]]
    assert "started from the adapter of" in write_report(folder.path, config, folder.metrics(), results).read_text()
    resume(tmp_path / "second")  # which needs nothing of where it started


@pytest.fixture
def given(tmp_path: Path, tiny_bert_folder: Path) -> tuple[Path, RunConfig]:
    """A folder with an adapter as runs and public adaptations write it, without linear terms, and settings that it suits."""
    config = settings_of(tiny_bert_folder)
    encoder, rng = load_encoder_for(config), np.random.default_rng(0)
    arrays = {**init_base(encoder, encoder.states(make_catalogue(20)), True, 4, "principal", 0)}
    arrays |= {name: rng.normal(0, 1, value.shape).astype(np.float32) for name, value in init_trained(encoder, True, 4).items()}
    floor = {"prior.floor": np.ones(1, np.float32)}
    save_arrays(arrays, tmp_path / "given" / "fedrec.safetensors")
    settings = settings_of_run(config, encoder, floor, {"temperature": 3.0, "decay": 0.1, "prior_weight": 1.0})
    (tmp_path / "given" / "fedrec.json").write_text(json.dumps(settings))
    return tmp_path / "given", config


def test_a_given_start_is_what_a_run_begins_with(given: tuple[Path, RunConfig], tmp_path: Path) -> None:
    path, config = given
    encoder, found = load_encoder_for(config), open_start(path)
    base, trained = check_start(found, config.model_copy(update={"objective": "response"}), encoder)
    assert not trained.pop(TERMS).any()
    with_terms = replace(found, arrays={**found.arrays, TERMS: np.ones((2, encoder.hidden + 1), np.float32)})
    assert TERMS not in check_start(with_terms, config, encoder)[1]  # a ranking has no use for them
    complements = {KINDS: np.ones((2, encoder.hidden), np.float32), LIFT: np.ones((2, 2), np.float32)}
    for of in (config, config.model_copy(update={"objective": "response"})):  # what goes with what is not taken up
        base_of, trained_of = check_start(replace(with_terms, arrays={**with_terms.arrays, **complements}), of, encoder)
        assert not {KINDS, LIFT} & {*base_of, *trained_of}
    assert {**base, **trained}.keys() == found.arrays.keys()
    copy_start(found, tmp_path)
    assert read_start(tmp_path).digest == found.digest and read_start(path) is None
    begun = start_of(tmp_path, {**trained, TERMS: np.ones(2, np.float32)})
    assert all(np.array_equal(begun[name], value) for name, value in trained.items()) and not begun[TERMS].any()
    save_arrays({**found.arrays, "centre": found.arrays["centre"] + 1}, tmp_path / "start" / "fedrec.safetensors")
    with pytest.raises(InputError, match="not the one that the run began with"):
        read_start(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("no folder", "there is no trained adapter"),
        ("encoder", "is of another encoder"),
        ("rank", r"array heads\.A is float32 of"),
        ("missing", r"array heads\.history\.B is missing"),
        ("unknown", "array more is not one that this run has"),
        ("nan", "array centre is not finite"),
        ("type", "array centre is float64"),
        ("torn", "cannot be read"),
    ],
)
def test_a_start_that_is_not_for_the_run_is_one_clear_error(given: tuple[Path, RunConfig], wrong: str, reason: str) -> None:
    path, config = given
    file, arrays = path / "fedrec.safetensors", load_file(path / "fedrec.safetensors")
    if wrong == "no folder":
        path = path / "nothing"
    elif wrong == "encoder":
        config = config.model_copy(update={"max_tokens": 20})
    elif wrong == "rank":
        config = config.model_copy(update={"rank": 3})
    elif wrong == "missing":
        del arrays[HEAD_B["history"]]
    elif wrong == "unknown":
        arrays["more"] = arrays["centre"]
    elif wrong == "nan":
        arrays["centre"][0] = np.nan
    elif wrong == "type":
        arrays["centre"] = arrays["centre"].astype(np.float64)
    save_file(arrays, file)
    if wrong == "torn":
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=reason):
        check_start(open_start(path), config, load_encoder_for(config))


def test_a_resumed_run_keeps_its_start(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "--resume", "--out", str(tmp_path), "--start", str(tmp_path)])
    assert isinstance(result.exception, InputError) and "keeps the start" in str(result.exception)


def test_a_deployed_run_begins_with_what_it_is_given(
    given: tuple[Path, RunConfig], federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to where merchants would be asked."""
    path, config = given
    folder, out = ServerFolder(federation), tmp_path / "run"
    for wrong, reason in (({"rank": 3}, "heads.A"), ({"patience": 1, "calibration_share": 0.05}, "public users who judge")):
        with pytest.raises(InputError, match=reason):
            deployed.start(folder, config.model_copy(update=wrong), out, path)
    assert not out.exists()
    monkeypatch.setattr(deployed, "SuperLink", lambda _: SimpleNamespace(nodes=list))
    monkeypatch.setattr(deployed, "go_on", lambda _, run: run)
    deployed.start(folder, config, out, path)
    assert read_start(out).digest == open_start(path).digest
