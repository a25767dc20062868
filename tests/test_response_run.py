"""Whole runs with the objective `response`: trained, measured, reported, asked, summed securely, resumed."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from typer.testing import CliRunner

from fedrec import wire
from fedrec.cli.main import app
from fedrec.cli.simulate import _settings_of_demo
from fedrec.config import RunConfig, load_config
from fedrec.data import load_central
from fedrec.data.demo_shown import SETTINGS
from fedrec.data.split import split_source
from fedrec.errors import InputError
from fedrec.evaluation.protocol import is_calibration
from fedrec.model.adapter import HEAD_B, TERMS
from fedrec.model.versions import Versions
from fedrec.recommender import Recommender
from fedrec.report.run_report import write_report
from server.delivery import parcel_of
from server.evaluators import evaluator_of
from server.progress import watching
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.checks import check_federation
from simulations.run import finish, resume, simulate

from .conftest import write_source
from .helpers import ledger_rounds, recorded, settings_of, with_impressions
from .stores import client_of

SHARE = 0.5


def federation_of(folder: Path, trust: str, merchants: int = 3) -> Path:
    """Merchants with catalogues of their own, whose users respond to every third item, and to half of the others' neighbours."""
    source = write_source(folder / "source", merchants=merchants, users=120, own_catalogues=True)
    events = with_impressions(pd.read_parquet(source / "events.parquet"))
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, folder / "federation", 0.4, {"epsilon": 8.5, "delta": 1e-5, "trust": trust})
    return folder / "federation"


def config_of(bert: Path, **values: object) -> RunConfig:
    return settings_of(bert, objective="response", negative_share=SHARE, positions=3, impressions=8, **values)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation_of(tmp_path_factory.mktemp("response"), "local")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, federation: Path, tiny_bert_folder: Path) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    with recorded() as crossed:
        folder = simulate(federation, config_of(tiny_bert_folder), out)
    sent = [set(wire.decode_reply(reply).arrays) for _, reply in crossed if reply.content["statement"]["status"] == "ok"]
    assert {frozenset(one) for one in sent} >= {frozenset({TERMS, *HEAD_B.values()}), frozenset({wire.HISTOGRAM})}
    assert all(set(reply.content["statement"]) == wire.STATEMENT_KEYS for _, reply in crossed)
    return folder


@pytest.mark.slow
def test_a_run_is_measured_reported_and_paid_for(run: RunFolder) -> None:
    assert ledger_rounds(run) == {f"m{number}": [0, 1, 2, 3] for number in range(3)}
    results = finish(run)
    assert results["objective"] == "response" and "merchants" not in results
    names = [row["name"] for row in results["rows"]]
    assert names[0].startswith("popularity") and "same training, noise and clipping off" in names
    for row in results["rows"]:
        assert set(results["metrics"]) <= row.keys()
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert 0 < row["base_rate"] < row["responses"] / row["impressions"]  # the share is taken out
    assert results["gain"]["metric"] == "auc" and "log_loss" in results["gain"]["others"]
    lines = run.metrics()
    assert [line["part"] for line in lines] == ["histogram", "heads", "heads", "encoder"]
    html = write_report(run.path, run.config, lines, results).read_text(encoding="utf-8")
    assert "predicts responses" in html and "Reliability" in html and "NDCG" not in html


@pytest.mark.slow
def test_linear_terms_learn_what_is_responded_to(tmp_path: Path, federation: Path, tiny_bert_folder: Path) -> None:
    """With little noise: which items are responded to depends on nothing that the start knows."""
    free = {"noise_multiplier": 0.3, "encoder_noise_multiplier": 0.3, "histogram_noise_multiplier": 0.3}
    weak = tmp_path / "weak"
    federation_of(weak, "local")
    for path in (weak / "federation" / "merchants").glob("*/merchant.toml"):
        path.write_text(path.read_text().replace("epsilon = 8.5", "epsilon = 1e7"))
    config = config_of(tiny_bert_folder, **free, rounds=12, encoder_rounds=0, server_learning_rate=0.1, epsilon=8.0)
    folder = simulate(weak / "federation", config, tmp_path / "run")
    central = [line["central"] for line in folder.metrics()]
    assert central[-1]["auc"] > central[0]["auc"] + 0.1
    assert np.abs(folder.load().trained[TERMS]).max() > 0


@pytest.mark.slow
def test_predictions_are_those_of_the_evaluation(run: RunFolder, federation: Path) -> None:
    """A central user's last block, asked item by item."""
    config, state = run.config, run.load()
    central = load_central(federation)
    evaluator = evaluator_of(config, central, load_encoder_for(config, state))
    recommender, line = Recommender.load(run.path), run.metrics()[-1]
    judged = evaluator.judged(state.public, state.trained, recommender.scoring)
    ids, start, checked = np.array(central.catalogue.item_ids), 0, 0
    for group, built in zip(central.groups, evaluator._groups(recommender.scoring.decay), strict=True):
        for user in range(len(group.histories)):
            rows = np.flatnonzero(judged.user == start + user)
            targets = built.examples.target[built.examples.target[:, 0] == user]
            held, baskets = group.histories.of(user)
            single = len(np.unique(baskets)) == len(baskets)  # one item a basket, as `predict` has it
            if len(rows) and single:
                here = targets[:, 1] == 0
                count = int(np.count_nonzero(built.examples.weights[user, 0]))
                found = recommender.predict(ids[held[:count]].tolist(), ids[targets[here][:, 2]].tolist(), group.name)
                np.testing.assert_allclose(found, judged.probability[rows[here]], rtol=1e-4)
                checked += 1
        start += len(group.histories)
    assert checked >= 5
    assert line["scoring"]["bias"] != 0


@pytest.mark.slow
def test_the_command_line_predicts_and_refuses_to_rank(run: RunFolder) -> None:
    asked = ["predict", str(run.path), "--history", "i0,i1", "--items", "i3,i4", "--merchant", "m1"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["predictions"]
    assert [one["item_id"] for one in found] == ["i3", "i4"]
    assert all(0 < one["probability"] < 1 for one in found)
    assert "probability" in CliRunner().invoke(app, asked).stdout
    for wrong, reason in (
        (asked[:-2], "who shows"),
        ([*asked[:-1], "nobody"], "no merchant"),
        ([*asked[:5], "nothing", *asked[6:]], "items: item 'nothing'"),
        (["recommend", str(run.path), "--history", "i0"], "does not rank"),
        (["search", str(run.path), "thing"], "does not rank"),
        (["evaluate", str(run.path), "--repeats"], "about ranking"),
    ):
        result = CliRunner().invoke(app, wrong)
        assert isinstance(result.exception, InputError) and reason in str(result.exception), wrong
    said = json.loads(CliRunner().invoke(app, ["evaluate", str(run.path), "--json"]).stdout)
    assert said["central"]["auc"] == pytest.approx(run.metrics()[-1]["central"]["auc"])


@pytest.mark.slow
def test_a_run_that_is_served_predicts_as_it_does_and_refuses_to_rank(run: RunFolder) -> None:
    wanted = Recommender.load(run.path).predict(["i0", "i1"], ["i3", "i4"], "m1")
    with client_of(run.path, time_limit=60) as client:
        found = client.post("/v1/predict", json={"history": ["i0", "i1"], "items": ["i3", "i4"], "merchant": "m1"})
        assert found.status_code == 200, found.text
        assert [one["probability"] for one in found.json()["predictions"]] == pytest.approx(wanted.tolist(), rel=1e-5)
        for path, asked in (
            ("recommend", {"history": ["i0"]}),
            ("search", {"query": "thing"}),
            ("basket", {"items": ["i0"]}),
            ("explain", {"history": ["i0"]}),
        ):
            refused = client.post(f"/v1/{path}", json=asked)
            assert refused.status_code == 422 and "does not rank" in refused.json()["error"], (path, refused.text)


@pytest.mark.slow
def test_what_comes_home_predicts_as_the_run_does(
    run: RunFolder, federation: Path, tmp_path: Path, tiny_bert_folder: Path
) -> None:
    """At a merchant to whom it was delivered, and who has calibrated nothing."""
    delivered = json.loads((run.path / "delivered.json").read_text())
    assert {one["outcome"] for one in delivered["merchants"].values()} == {"kept"}
    assert delivered["digest"] == parcel_of(run).delivery.digest
    shop = tmp_path / "m1"
    shutil.copytree(federation / "merchants" / "m1", shop)
    shutil.copytree(run.path / "models" / "m1", shop / "model")
    settings = tomllib.loads((shop / "merchant.toml").read_text())
    settings |= {"model": {"encoder": str(tiny_bert_folder), "device": "cpu"}}
    (shop / "merchant.toml").write_text(tomli_w.dumps(settings))
    [version] = Versions(shop / "model", "response").names()
    asked = ["predict", str(shop), "--history", "i0,i1", "--items", "i3,i4,i7", "--json"]
    result = CliRunner().invoke(app, asked)
    assert isinstance(result.exception, InputError) and "model use" in str(result.exception)
    CliRunner().invoke(app, ["merchant", "model", "use", str(shop), version])
    found = [one["probability"] for one in json.loads(CliRunner().invoke(app, asked).stdout)["predictions"]]
    np.testing.assert_allclose(found, Recommender.load(run.path).predict(["i0", "i1"], ["i3", "i4", "i7"], "m1"), rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    run: RunFolder, federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_the_first(name: str, values: dict[str, Any]) -> None:
        if name == "round_done" and values["round"] == 1:
            raise KeyboardInterrupt

    with watching(after_the_first), pytest.raises(KeyboardInterrupt):
        simulate(federation, run.config, tmp_path / "again")
    folder = resume(tmp_path / "again")
    assert [line["central"] for line in folder.metrics()] == [line["central"] for line in run.metrics()]
    assert all(np.array_equal(folder.load().trained[name], value) for name, value in run.load().trained.items())
    monkeypatch.setattr("simulations.run.ENGINES", {})  # nothing is left to do, and nothing starts
    resume(tmp_path / "again")


@pytest.mark.slow
def test_under_secure_aggregation(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = federation_of(tmp_path, "secure-aggregation", merchants=4)
    config = config_of(tiny_bert_folder, trust="secure-aggregation", dropouts=1, colluders=1, rounds=2, encoder_rounds=0)
    folder = simulate(federation, config, tmp_path / "run")
    assert [len(line["took_part"]) for line in folder.metrics()] == [4, 4, 4]
    assert "abandoned" not in folder.metrics()[-1]
    assert np.abs(folder.load().trained[TERMS]).max() > 0


def test_data_without_impressions_is_refused(tmp_path: Path, tiny_bert_folder: Path) -> None:
    source = write_source(tmp_path / "source")
    split_source(source, tmp_path / "federation", 0.3, {"epsilon": 8.5, "delta": 1e-5})
    with pytest.raises(InputError, match="no user was shown anything, at any merchant"):
        check_federation(tmp_path / "federation", config_of(tiny_bert_folder))


def test_measured_users_need_both_answers(tmp_path: Path, tiny_bert_folder: Path) -> None:
    """Those who calibrate have both, which is of no use to a measurement."""
    federation, config = federation_of(tmp_path, "local"), config_of(tiny_bert_folder)
    check_federation(federation, config)
    path = federation / "central" / "events.parquet"
    events = pd.read_parquet(path)
    measured = [not is_calibration(user, config.calibration_share, config.seed) for user in events["user_id"]]
    events.loc[np.array(measured) & (events["event"] == "impression"), "value"] = "0"
    events.to_parquet(path)
    with pytest.raises(InputError, match="measured impressions after a first basket 0 have a response"):
        check_federation(federation, config)


@pytest.mark.parametrize("asked", ["set", "config"])
def test_the_demos_settings_are_below_what_a_person_set(tmp_path: Path, asked: str) -> None:
    file, overrides = tmp_path / "run.toml", {"rounds": 1}
    file.write_text("positions = 8\n" + ('objective = "response"\n' if asked == "config" else ""))
    if asked == "set":
        overrides["objective"] = "response"
    found = _settings_of_demo(file, overrides)
    assert (found.positions, found.negative_share, found.encoder_rounds) == (8, SETTINGS["negative_share"], 0)
    assert _settings_of_demo(file, {"objective": "next-item"}).negative_share == 1.0


def test_the_demo_of_responses_is_of_manufacturers_however_it_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["demo", "--set", "objective=response", "--by", "store"])
    assert isinstance(result.exception, InputError) and "--by" in str(result.exception)


@pytest.mark.parametrize("values", [{"unit": "event"}, {"heads": False}])
def test_what_a_response_run_needs(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="needs heads = true and unit = 'user'"):
        load_config(overrides={"objective": "response", **values})
