"""What a simulation says of each merchant: the figures of the merchant's own contest, over the users whom the server held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from fedrec.data import CentralGroup, Histories, load_central, load_merchant
from fedrec.data.folders import group_by_merchant
from fedrec.data.roles import Roles
from fedrec.data.split import split_source
from fedrec.evaluation.protocol import EvaluationSet, group_of, summarise
from fedrec.model import Scoring, TextEncoder
from fedrec.recommender.contest import (
    ALONE,
    FEDERATED,
    LAYER,
    POPULARITY,
    ROWS,
    Entry,
    Received,
    folds_of,
    plain_part,
    popularity_here,
    run_contest,
    trained_part,
)  # fmt: skip
from fedrec.report.run_report import write_report
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations import at_merchants as at_merchants_module
from simulations.at_merchants import at_merchants
from simulations.run import finish, simulate

from .conftest import write_source
from .helpers import settings_of

KINDS = ("shared", "own", "ambiguous")


def federation_of(kind: str, folder: Path) -> Path:
    """Merchants of one catalogue or each of its own, whose ids mean one thing or several; users shop at several of them."""
    source = write_source(folder / "source", users=60, own_catalogues=kind != "shared")
    items, events = (pd.read_parquet(source / f"{name}.parquet") for name in ("items", "events"))
    if kind != "shared":
        # m0 sells the first twenty items, m1 the last twenty, m2 all.
        number = items["item_id"].str[1:].astype(int)
        items = items[~((items["merchant"] == "m0") & (number >= 20) | (items["merchant"] == "m1") & (number < 10))]
        events = events.merge(items[["merchant", "item_id"]])
    if kind == "ambiguous":
        items["title"] = items["title"] + " of " + items["merchant"]
    items.to_parquet(source / "items.parquet", index=False)
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, folder / "federation", 0.3, {"epsilon": 8.5, "delta": 1e-5})
    return folder / "federation"


Ran = tuple[Path, RunFolder, dict[str, Any]]


@pytest.fixture(scope="module", params=KINDS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Ran:
    """A federation, a finished run, and its results."""
    folder = tmp_path_factory.mktemp(request.param)
    federation = federation_of(request.param, folder)
    run = simulate(federation, settings_of(tiny_bert_folder, rounds=2, encoder_rounds=1), folder / "run")
    return federation, run, finish(run)


def held_out(federation: Path, name: str) -> pd.DataFrame:
    """The merchant's own users among the server's, as their events name the items."""
    events = pd.read_parquet(federation / "central" / "events.parquet")
    return events[events["merchant"] == name].drop(columns="merchant")


def by_hand(federation: Path, name: str, run: RunFolder) -> dict[str, Any]:
    """The metrics of one merchant's contest."""
    return {row: entry.metrics for row, entry in contest_of(federation, name, run).items()}


def contest_of(federation: Path, name: str, run: RunFolder) -> dict[str, Entry]:
    """The contest of one merchant from its own folder, in its own order of items."""
    config, state = run.config, run.load()
    assert state is not None
    data, central = load_merchant(federation / "merchants" / name), load_central(federation)
    events = held_out(federation, name)
    ids = set(data.catalogue.item_ids)
    events["item_id"] = [item if item in ids else item.removeprefix(f"{name}:") for item in events["item_id"]]
    histories = Histories.from_table(events, data.catalogue)
    share = config.calibration_share if config.calibrate else 0.0
    group = CentralGroup(name, pd.RangeIndex(len(ids)), histories)
    users, _ = EvaluationSet.build(replace(central, groups=(group,)), config.history, share, config.seed)
    encoder = load_encoder_for(config, state)

    def pooled(trained: bool, encoder: TextEncoder) -> Tensor:
        blank = {key: np.zeros_like(value) for key, value in encoder.trained().items()}
        encoder.load({**blank, **state.public, **(state.trained if trained else {})})
        return encoder.embed(data.catalogue)

    plain, trained = pooled(False, encoder), pooled(True, encoder)
    here = popularity_here(data.histories, len(ids))
    counts = dict(zip(state.public["prior.keys"].tolist(), state.public["prior.counts"].tolist(), strict=True))
    theirs = np.array([counts[key] for key in data.catalogue.keys.tolist()], dtype=np.float32)
    part = trained_part(trained, {**state.public, **state.trained}, here, theirs, float(state.public["prior.floor"][0]))
    everyone = np.arange(len(data.histories))
    scoring = Scoring(**run.metrics()[-1]["scoring"])
    roles = Roles(everyone, everyone[:0], everyone[:0])
    return run_contest(
        data.histories, roles, users.groups[0], plain_part(plain, here),
        Received(part, scoring), folds_of(data.histories, roles, len(ids), config.history, config.seed),
        k=config.top_k, seed=config.seed,
    )  # fmt: skip


def test_each_merchants_figures_are_those_of_its_own_contest(ran: Ran) -> None:
    federation, run, results = ran
    at = results["merchants"]
    assert [row["name"] for row in at["rows"]] == list(ROWS)
    found = {row["name"]: row for row in at["merchants"]}
    assert set(found) == {"m0", "m1", "m2"} and sum(row["users"] for row in found.values()) == at["gain"]["users"]
    parts = {name: by_hand(federation, name, run) for name in found}
    for name, metrics in parts.items():
        assert found[name]["training_users"] == len(load_merchant(federation / "merchants" / name).histories)
        assert found[name]["alone"] == pytest.approx(metrics[ALONE].ndcg.mean(), abs=1e-4)
        assert found[name]["federated"] == pytest.approx(metrics[FEDERATED].ndcg.mean(), abs=1e-4)
        assert found[name]["mean"] == pytest.approx((metrics[FEDERATED].ndcg - metrics[ALONE].ndcg).mean(), abs=1e-4)
    for row in at["rows"]:
        values = np.concatenate([metrics[row["name"]].ndcg for metrics in parts.values()])
        assert row["users"] == len(values) and row["ndcg@10"] == pytest.approx(values.mean(), abs=1e-4)


def test_what_lists_hold_is_counted_at_each_merchant_and_covered_over_all(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    federation, run, results = ran
    row = next(row for row in results["merchants"]["rows"] if row["name"] == FEDERATED)
    shown, bits, popular, sold = set(), [], [], set()
    for merchant in results["merchants"]["merchants"]:
        name = merchant["name"]
        data, entry = load_merchant(federation / "merchants" / name), contest_of(federation, name, run)[FEDERATED]
        bought = [
            len({u for u in range(len(data.histories)) if item in data.histories.of(u)[0]}) for item in range(len(data.catalogue))
        ]
        most = sorted(range(len(bought)), key=lambda item: -bought[item])[: -(-len(bought) // 10)]
        texts = data.catalogue.texts
        sold |= set(texts)
        assert entry.lists is not None
        for user in entry.lists.tolist():
            shown |= {texts[item] for item in user}
            bits.append(np.mean([-np.log2(max(bought[item], 1) / len(data.histories)) for item in user]))
            popular.append(np.mean([bought[item] >= bought[most[-1]] for item in user]))
    assert row["coverage@10"] == pytest.approx(len(shown) / len(sold), abs=0.03)
    assert row["novelty@10"] == pytest.approx(np.mean(bits), abs=0.01)
    assert row["popular@10"] <= np.mean(popular) + 1e-9, "of equals at the border not all are in the tenth"
    assert row["worst"] is None, "with a dozen users a merchant is not the worst of all, but luck"
    monkeypatch.setattr(at_merchants_module, "FEWEST", 1)
    worst = next(row for row in again(federation, run)["rows"] if row["name"] == FEDERATED)["worst"]
    assert worst["ndcg@10"] == pytest.approx(min(one["federated"] for one in results["merchants"]["merchants"]))


def test_sizes_and_the_sum_hold_together(ran: Ran) -> None:
    at = ran[2]["merchants"]
    assert [row["training_users"] for row in at["merchants"]] == sorted(row["training_users"] for row in at["merchants"])
    assert [row["name"] for row in at["sizes"]] == ["the smallest third of merchants", "the middle third", "the largest third"]
    for size, merchant in zip(at["sizes"], at["merchants"], strict=True):
        assert {**size, "name": ""} == {**{key: merchant[key] for key in size}, "name": ""}, "one merchant each"
    weights = np.array([row["users"] for row in at["merchants"]])
    mean = (weights * [row["mean"] for row in at["merchants"]]).sum() / weights.sum()
    assert at["gain"]["mean"] == pytest.approx(mean) and at["gain"]["low"] <= mean <= at["gain"]["high"]
    rows = {row["name"]: row["ndcg@10"] for row in at["rows"]}
    for name, difference in at["over"].items():
        assert difference["mean"] == pytest.approx(rows[FEDERATED] - rows[name])
        assert difference["low"] <= difference["mean"] <= difference["high"]
    assert set(at["over"]) == {POPULARITY, LAYER}


def test_people_who_shop_at_several_are_users_of_each(ran: Ran) -> None:
    federation, _, _ = ran
    central = load_central(federation)
    groups = group_by_merchant(federation, central)
    events = pd.read_parquet(federation / "central" / "events.parquet")
    assert events.groupby("user_id")["merchant"].nunique().max() > 1
    assert {group.name: set(group.histories.user_ids) for group in groups} == {
        name: set(rows["user_id"]) for name, rows in events.groupby("merchant")
    }
    for group in groups:
        rows = events[events["merchant"] == group.name].drop_duplicates(["user_id", "item_id", "timestamp"])
        assert len(group.histories.items) == len(rows)
        sold = {central.catalogue.item_ids[place] for place in group.histories.items}
        assert sold == set(rows["item_id"])


def test_results_and_report_have_the_section(ran: Ran) -> None:
    _, run, results = ran
    assert json.loads((run.path / "results.json").read_text())["merchants"] == results["merchants"]
    html = write_report(run.path, run.config, run.metrics(), results).read_text()
    for row in [*results["merchants"]["merchants"], *results["merchants"]["sizes"]]:
        assert f"<td>{row['name']}</td>" in html
    assert FEDERATED in html and "What federation pays" in html
    without = write_report(run.path, run.config, run.metrics(), {**results, "merchants": {}}).read_text()
    assert "What federation pays" not in without


def again(federation: Path, run: RunFolder) -> dict[str, Any]:
    state = run.load()
    assert state is not None
    encoder = load_encoder_for(run.config, state)
    return at_merchants(federation, run.config, encoder, state, Scoring(**run.metrics()[-1]["scoring"]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> tuple[Path, RunFolder]:
    """A run whose central users are then changed."""
    folder = tmp_path_factory.mktemp("changed")
    federation = federation_of("shared", folder)
    return federation, simulate(federation, settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0), folder / "run")


def test_a_merchant_without_held_out_users_is_left_out(shared: tuple[Path, RunFolder]) -> None:
    federation, run = shared
    path = federation / "central" / "events.parquet"
    events = pd.read_parquet(path)
    whole = again(federation, run)
    try:
        events[events["merchant"] != "m1"].to_parquet(path)
        found = again(federation, run)
        assert {row["name"] for row in found["merchants"]} == {"m0", "m2"}
        kept = {row["name"]: row for row in whole["merchants"]}
        assert all(row == kept[row["name"]] for row in found["merchants"]), "and the others' figures are what they were"
        assert len(found["sizes"]) == 2
        events.drop(columns="merchant").to_parquet(path)
        assert again(federation, run) == {}, "nobody knows whose customers they are"
    finally:
        events.to_parquet(path)


def test_the_measured_users_are_not_in_what_they_are_measured_with(shared: tuple[Path, RunFolder]) -> None:
    federation, _ = shared
    for group in group_by_merchant(federation, load_central(federation)):
        data = load_merchant(federation / "merchants" / group.name)
        assert not set(group.histories.user_ids) & set(data.histories.user_ids)
        assert group_of(group, np.arange(len(group.histories)), 50)[0] is not None


def test_the_figures_have_intervals_as_the_run_says(shared: tuple[Path, RunFolder]) -> None:
    federation, run = shared
    found = again(federation, run)
    metrics = by_hand(federation, found["merchants"][0]["name"], run)
    summary = summarise(metrics[ALONE], run.config.top_k, run.config.bootstrap, run.config.seed)
    assert summary["ndcg@10_low"] <= found["merchants"][0]["alone"] <= summary["ndcg@10_high"]
