"""Whole runs with the objective `rating`: trained, measured, reported, asked, summed securely, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedrec import wire
from fedrec.cli.main import app
from fedrec.config import RunConfig
from fedrec.data import Columns, load_central, load_merchant
from fedrec.data.rated import from_units
from fedrec.data.split import split_source
from fedrec.errors import InputError
from fedrec.model import Scoring
from fedrec.model.adapter import HEAD_B, TERMS
from fedrec.recommender import Recommender
from fedrec.report.run_report import write_report
from server.evaluation import RATINGS
from server.evaluators import evaluator_of
from server.progress import watching
from server.rating_evaluation import noise_by_item
from server.run_folder import RunFolder
from server.start import first_state, load_encoder_for
from simulations.checks import check_federation
from simulations.reference import Pooled, plain_ratings
from simulations.run import finish, resume, simulate

from .conftest import make_catalogue, write_source
from .helpers import ledger_rounds, recorded, settings_of
from .stores import client_of

ENDS = {"rating_min": 0.0, "rating_max": 10.0}


def federation_of(folder: Path, trust: str = "local", merchants: int = 3, rated: bool = True) -> Path:
    """Merchants whose users rate all that they have, by the item, by how generous they are, and by a taste of their own."""
    source = write_source(folder / "source", merchants=merchants, users=80, own_catalogues=True)
    events, rng = pd.read_parquet(source / "events.parquet"), np.random.default_rng(0)
    item = rng.normal(0, 1.5, len(make_catalogue(30)))
    who, generous = pd.factorize(events[Columns.MERCHANT] + events[Columns.USER])[0], rng.normal(0, 1.5, 80 * merchants)
    value = 5 + item[events[Columns.ITEM].str[1:].astype(int)] + generous[who] + rng.normal(0, 0.7, len(events))
    if rated:
        events = events.assign(event="rating", value=np.round(value, 2).astype(str))
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, folder / "federation", 0.4, {"epsilon": 8.5, "delta": 1e-5, "trust": trust})
    return folder / "federation"


def config_of(bert: Path, **values: object) -> RunConfig:
    return settings_of(bert, **{"objective": "rating", "positions": 3, "impressions": 8, **ENDS, **values})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation_of(tmp_path_factory.mktemp("rating"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, federation: Path, tiny_bert_folder: Path) -> RunFolder:
    out = tmp_path_factory.mktemp("run") / "run"
    with recorded() as crossed:
        folder = simulate(federation, config_of(tiny_bert_folder), out)
    sent = [wire.decode_reply(reply).arrays for _, reply in crossed if reply.content["statement"]["status"] == "ok"]
    assert {frozenset(one) for one in sent} >= {frozenset({TERMS, *HEAD_B.values()}), frozenset({wire.HISTOGRAM})}
    keys = len(load_central(federation).catalogue)
    assert {one[wire.HISTOGRAM].shape for one in sent if wire.HISTOGRAM in one} == {(2 * keys,)}
    assert all(set(reply.content["statement"]) == wire.STATEMENT_KEYS for _, reply in crossed)
    return folder


@pytest.mark.slow
def test_a_run_is_measured_reported_and_paid_for(run: RunFolder) -> None:
    assert ledger_rounds(run) == {f"m{number}": [0, 1, 2, 3] for number in range(3)}
    results = finish(run)
    rows = {row["name"]: row for row in results["rows"]}
    assert results["metrics"] == ["rmse", "mae", "ndcg@10"] and "merchants" not in results
    for row in rows.values():
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in ("rmse", "mae", "ndcg@10"))
    free, mean = rows["user and item, not private"], rows["mean, private sums"]
    assert free["rmse"] < 0.75 * mean["rmse"]
    assert rows["same training, noise and clipping off"]["rmse"] < mean["rmse"]
    assert results["gain"]["metric"] == "rmse" and set(results["gain"]["others"]) == {"mae", "ndcg@10"}
    assert [line["part"] for line in run.metrics()] == ["histogram", "heads", "heads", "encoder"]
    html = write_report(run.path, run.config, run.metrics(), results).read_text(encoding="utf-8")
    assert "predicts ratings" in html and "RMSE" in html and "Reliability" not in html


@pytest.mark.slow
def test_predictions_are_those_of_the_evaluation(run: RunFolder, federation: Path) -> None:
    """A central user's last block, asked item by item."""
    config, state, central = run.config, run.load(), load_central(federation)
    evaluator = evaluator_of(config, central, load_encoder_for(config, state))
    recommender, ids = Recommender.load(run.path), np.array(central.catalogue.item_ids)
    scores = evaluator._features(state.public, state.trained, recommender.scoring.decay).logits(recommender.scoring)
    start, checked = 0, 0
    for group, built in zip(central.groups, evaluator._groups(recommender.scoring.decay), strict=True):
        for user in range(len(group.histories)):
            rows = np.flatnonzero(evaluator.user == start + user)
            targets = built.examples.target[built.examples.target[:, 0] == user]
            held, baskets = group.histories.of(user)
            rated = group.histories.take(np.array([user])).rated
            here, count = targets[:, 1] == 0, int(np.count_nonzero(built.examples.weights[user, 0]))
            # One item a basket, as `predict` has it, and none of them rated again later.
            if len(rows) and len(np.unique(baskets)) == len(np.unique(held)) == len(held) == len(rated):
                said = [float(rated.answer[rated.items == item][0]) for item in held[:count]]
                asked = ids[targets[here][:, 2]].tolist()
                found = recommender.predict(ids[held[:count]].tolist(), asked, group.name, said)
                np.testing.assert_allclose(found, from_units(scores[rows[here]], 0, 10), rtol=1e-4)
                assert not np.allclose(found, recommender.predict(ids[held[:count]].tolist(), asked, group.name), rtol=1e-4)
                checked += 1
        start += len(group.histories)
    assert checked >= 3


@pytest.mark.slow
def test_the_command_line_predicts_ratings(run: RunFolder) -> None:
    asked = ["predict", str(run.path), "--history", "i0,i1", "--items", "i3,i4", "--merchant", "m1"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--ratings", "9,10", "--json"]).stdout)["predictions"]
    plain = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["predictions"]
    assert [one["item_id"] for one in found] == ["i3", "i4"] and all(0 <= one["rating"] <= 10 for one in found)
    assert all(one["rating"] > other["rating"] for one, other in zip(found, plain, strict=True))
    assert "Predicted rating" in CliRunner().invoke(app, asked).stdout
    for wrong, reason in (("9", "2 finite numbers"), ("9,nan", "2 finite numbers"), ("9,good", "separated by commas")):
        result = CliRunner().invoke(app, [*asked, "--ratings", wrong])
        assert isinstance(result.exception, InputError) and reason in str(result.exception), wrong
    result = CliRunner().invoke(app, ["recommend", str(run.path), "--history", "i0"])
    assert isinstance(result.exception, InputError) and "does not rank" in str(result.exception)


@pytest.mark.slow
def test_a_run_that_is_served_says_that_it_predicts_no_response(run: RunFolder) -> None:
    with client_of(run.path, time_limit=60) as client:
        found = client.post("/v1/predict", json={"history": ["i0"], "items": ["i3"], "merchant": "m1"})
        assert (found.status_code, found.json()["error_type"]) == (404, "no_response_model")
        assert "does not rank" in client.post("/v1/recommend", json={"history": ["i0"]}).json()["error"]


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(run: RunFolder, federation: Path, tmp_path: Path) -> None:
    def after_the_first(name: str, values: dict[str, Any]) -> None:
        if name == "round_done" and values["round"] == 1:
            raise KeyboardInterrupt

    with watching(after_the_first), pytest.raises(KeyboardInterrupt):
        simulate(federation, run.config, tmp_path / "again")
    folder = resume(tmp_path / "again")
    assert [line["central"] for line in folder.metrics()] == [line["central"] for line in run.metrics()]
    assert all(np.array_equal(folder.load().trained[name], value) for name, value in run.load().trained.items())


@pytest.mark.slow
def test_absolute_error_under_secure_aggregation(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = federation_of(tmp_path, "secure-aggregation", merchants=4)
    config = config_of(tiny_bert_folder, objective="rating-absolute", trust="secure-aggregation", rounds=2, encoder_rounds=0)
    folder = simulate(federation, config, tmp_path / "run")
    assert [len(line["took_part"]) for line in folder.metrics()] == [4, 4, 4]
    assert not any("abandoned" in line for line in folder.metrics())
    assert np.abs(folder.load().trained[TERMS]).max() > 0 and np.ptp(folder.load().public[RATINGS]) > 0


def test_data_without_ratings_and_a_range_that_none_is_in_are_refused(tmp_path: Path, tiny_bert_folder: Path) -> None:
    config = config_of(tiny_bert_folder)
    with pytest.raises(InputError, match="no user rated anything, at any merchant"):
        check_federation(federation_of(tmp_path / "none", merchants=1, rated=False), config)
    federation = federation_of(tmp_path / "some", merchants=1)
    check_federation(federation, config)
    with pytest.raises(InputError, match="measured ratings are outside 100 to 200"):
        check_federation(federation, config.model_copy(update={"rating_min": 100.0, "rating_max": 200.0}))


def test_the_demo_has_no_ratings() -> None:
    result = CliRunner().invoke(app, ["demo", "--set", "objective=rating"])
    assert isinstance(result.exception, InputError) and "no ratings" in str(result.exception)


def test_a_text_that_the_server_does_not_know_has_no_part_in_the_yardstick(federation: Path) -> None:
    central, merchants = load_central(federation).catalogue, Pooled.read(federation)
    keys = central.keys[:-3]
    found = plain_ratings(merchants, keys, 0.0, 10.0)
    assert found.shape == (2 * len(keys),) and (found[: len(keys)] > 0).any()
    public = {"prior.keys": keys, RATINGS: np.linspace(-1, 1, len(keys)).astype(np.float32) / 2 + 0.1, "prior.floor": np.ones(1)}
    said = np.concatenate([one.prior(public) for one in merchants])
    unknown = ~np.isin(np.concatenate([one.data.catalogue.keys for one in merchants]), keys)
    assert unknown.any() and said[unknown] == pytest.approx(public[RATINGS].mean())


def test_noise_is_on_what_a_merchant_sells(federation: Path) -> None:
    central = load_central(federation)
    few, *others = central.groups  # all sell the same texts
    central = replace(central, groups=(replace(few, positions=few.positions[4:]), *others))
    sold = {path.name: set(load_merchant(path).catalogue.keys.tolist()) for path in sorted((federation / "merchants").iterdir())}
    sold[few.name] = set(central.catalogue.keys[few.positions[4:]].tolist())
    found = noise_by_item(3.0, list(sold), central)
    sellers = np.array([sum(key in one for one in sold.values()) for key in central.catalogue.keys.tolist()])
    assert sellers.min() < len(sold)
    np.testing.assert_allclose(found, 3 * np.sqrt(sellers))
    np.testing.assert_allclose(noise_by_item(3.0, [*sold, "elsewhere"], central), 3 * np.sqrt(sellers + 1))


@pytest.mark.parametrize("objective", ["rating", "rating-absolute"])
def test_judges_look_at_the_loss_that_is_trained(federation: Path, tiny_bert_folder: Path, objective: str) -> None:
    """Predictions that are far off by the same, as no rating is."""
    config, central = config_of(tiny_bert_folder, objective=objective, calibration_share=0.8), load_central(federation)
    encoder = load_encoder_for(config)
    evaluator, state = evaluator_of(config, central, encoder), first_state(config, central, encoder)
    zero = {RATINGS: np.zeros(len(central.catalogue), np.float32)}
    public, off = {**state.public, **zero}, Scoring(0.0, 0.1, 0.0, 300.0)
    loss = evaluator.loss(public, state.trained, off)
    assert loss == pytest.approx(300 if objective == "rating-absolute" else 300**2, rel=0.02)
