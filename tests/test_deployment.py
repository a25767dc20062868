"""A deployment as it will be run: real processes, TLS, node keys; and whoever is killed, stopped or changed on the way.

The tests of a file share one deployment of four merchants and each is a run or two on it, so they
belong in one process: `pytest -m deployment -n 2 --dist loadfile`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from fedrec.config import load_config
from fedrec.deploy.processes import running, stop
from fedrec.model.versions import Versions
from fedrec.privacy import Ledger
from fedrec.wire import DELIVER, HERE, OUTCOMES, RECEIPT_KEYS, STATEMENT_KEYS
from server.run_folder import RunFolder
from server.run_lock import alone
from simulations.run import simulate

from .deployed import LONG, NOISY, QUIET, RICH, Deployed, edit, four_merchants, interrupted, lines_of, until
from .helpers import USER

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.deployment]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Iterator[Deployed]:
    """The deployment, up."""
    with four_merchants(tmp_path_factory.mktemp("deployment"), tiny_bert_folder) as deployed:
        yield deployed


@pytest.fixture(autouse=True)
def everybody_is_there(shop: Deployed) -> None:
    """Each test starts with four connected merchants whose policies allow next to anything."""
    shop.up()
    for name in shop.names:
        shop.policy(name, **RICH)


def test_it_reaches_the_metrics_of_the_simulation(shop: Deployed, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 3, "noise_multiplier": QUIET, "histogram_noise_multiplier": QUIET}
    for name in shop.names:  # a simulated merchant holds nobody back
        edit(shop.merchant(name).settings_file, users={"choose": 0.0, "measure": 0.0})
    run, _ = shop.run(**settings)
    config = load_config(shop.server.run_settings, settings)
    federation = shop.deployment.path.parent / "federation"
    for name in shop.names:
        edit(federation / "merchants" / name / "merchant.toml", privacy=RICH)
    simulated = simulate(federation, config, tmp_path / "simulated")
    deployed, inline = run.metrics(), simulated.metrics()
    assert len(deployed) == 4 and all(line["took_part"] == shop.names for line in deployed)
    for here, there in zip(deployed, inline, strict=True):
        assert here["central"] == pytest.approx(there["central"], abs=1e-6)
    assert deployed[-1]["central"] != deployed[0]["central"]
    one, other = run.load(), simulated.load()
    assert one is not None and other is not None
    for name, value in one.trained.items():
        np.testing.assert_allclose(value, other.trained[name], atol=1e-4)


def test_the_run_folder_is_that_of_a_simulation(shop: Deployed) -> None:
    run, printed = shop.run(rounds=2, encoder_rounds=1, encoder_sample_rate=1.0, **NOISY, encoder_noise_multiplier=200.0)
    assert {"config.toml", "metrics.jsonl", "adapter", "checkpoints", "results.json", "report.html"} <= {
        path.name for path in run.path.iterdir()
    }
    results = json.loads((run.path / "results.json").read_text())
    assert results["simulation"] is False and "Central evaluation" in printed
    assert "This is a simulation" not in (run.path / "report.html").read_text()
    evaluated = shop.fedrec("evaluate", str(run.path), "--json")
    assert json.loads(evaluated.stdout)["central"] == run.metrics()[-1]["central"]
    ranked = shop.fedrec("recommend", str(run.path), "--query", "red lamp", "--merchant", "m0", "--json")
    assert len(json.loads(ranked.stdout)["items"]) == 10


def test_what_was_sent_is_what_may_be_sent(shop: Deployed) -> None:
    run, _ = shop.run(rounds=1, objective="response", negative_share=0.5, positions=2, **NOISY)
    allowed = {"histogram", "heads.history.B", "heads.candidate.B", "heads.terms"}
    for name in shop.names:
        shown = shop.fedrec("privacy", "wire", str(shop.merchant(name).path), "--json")
        lines = json.loads(shown.stdout)[name]
        assert lines and {line["type"] for line in lines} == {"train", "train.histogram", DELIVER}
        for line in lines:
            for value in line["values"]:
                assert value["record"] in ({"receipt"} if line["type"] == DELIVER else {"arrays", "statement"})
                if value["record"] == "statement":
                    assert value["name"] in STATEMENT_KEYS
                elif value["record"] == "receipt":
                    assert value["name"] in RECEIPT_KEYS
                    assert value["name"] != "outcome" or value["value"] in OUTCOMES
                else:
                    assert value["name"] in allowed or "lora_B" in value["name"]
    _predicts_at_home(shop, run)
    database = shop.server.database.read_bytes() + shop.server.log.read_bytes()
    secret = USER.split("{}")[1].encode()
    assert secret not in database
    events = pd.read_parquet(shop.deployment.path.parent / "federation" / "merchants" / "m0" / "events.parquet")
    assert secret in "".join(events["user_id"]).encode()


def _predicts_at_home(shop: Deployed, run: RunFolder) -> None:
    """What the response run delivered predicts at a merchant as it does at the server; what ranks there is another version."""
    state, folder = run.load(), shop.merchant("m0")
    assert state is not None
    name = Versions(folder.model, "response").newest
    assert name is not None and name.startswith(state.run) and name not in Versions(folder.model).names()
    until(lambda: Versions(folder.model, "response").verdict(name) is not None, 180, "it is compared")
    edit(folder.settings_file, recommender={"own_layer": False})  # nothing of its users is in a prediction then
    used = shop.fedrec("merchant", "model", "use", str(folder.path), name)
    assert used.returncode == 0, used.stderr
    asked = ["--history", "i0,i1", "--items", "i3,i4", "--json"]
    found = [shop.fedrec("predict", str(path), *asked, "--merchant", "m0") for path in (folder.path, run.path)]
    edit(folder.settings_file, recommender={"own_layer": True})
    here, there = ([one["probability"] for one in json.loads(one.stdout)["predictions"]] for one in found)
    np.testing.assert_allclose(here, there, rtol=1e-4)


def test_the_report_of_a_merchants_folder_alone(shop: Deployed, tmp_path: Path) -> None:
    run, _ = shop.run(rounds=1, **NOISY)
    alone = tmp_path / "m0"
    shutil.copytree(shop.merchant("m0").path, alone)
    shown = shop.fedrec("privacy", "report", str(alone), "--json")
    assert shown.returncode == 0, shown.stderr
    merchant = json.loads(shown.stdout)["merchants"][0]
    ledger = Ledger(shop.merchant("m0").ledger / "m0.ledger.jsonl", 1e-5).releases()
    assert merchant["merchant"] == "m0" and len(merchant["rounds"]) == len(ledger)
    assert not any(release.simulated for release in ledger)
    assert run.metrics()[-1]["privacy"]["m0"]["epsilon"] == pytest.approx(ledger[-1].epsilon_after)


def test_a_merchant_is_killed_in_the_middle_of_a_round(shop: Deployed) -> None:
    process, run = shop.start(rounds=20, **NOISY, **LONG)
    until(lambda: len(lines_of(run)) == 2 and shop.releases("m1", run)[-1:] == [2], 120, "round 2 paid for")
    shop.kill("m1")
    shop.up()
    until(lambda: "m1" in lines_of(run)[-1]["took_part"] and len(lines_of(run)) > 3, 180, "m1 takes part again")
    interrupted(process)
    lines = run.metrics()
    assert lines[2]["took_part"] == shop.others("m1")
    assert "m1" in lines[2]["refused"]
    back = next(line["round"] for line in lines[3:] if "m1" in line["took_part"])
    assert shop.releases("m1", run)[:4] == [0, 1, 2, back]
    for name in shop.others("m1"):
        assert shop.releases(name, run)[: len(lines)] == [line["round"] for line in lines]


def test_the_server_app_is_killed_and_goes_on(shop: Deployed) -> None:
    process, run = shop.start(rounds=3, **NOISY, **LONG)
    until(lambda: len(lines_of(run)) == 2 and shop.releases("m0", run)[-1:] == [2], 120, "round 2 paid for")
    process.kill()
    process.wait()
    kept = {name: shop.sent(name, run) for name in shop.names} if _all_answered(shop, run, 2) else {}
    shop.resume(run)
    assert [line["round"] for line in run.metrics()] == [0, 1, 2, 3]
    for line in run.metrics():
        assert line["took_part"] == shop.names, (line["round"], line["refused"])
    for name in shop.names:
        assert shop.releases(name, run) == [0, 1, 2, 3]
    assert kept.keys() <= set(shop.names)


def _all_answered(shop: Deployed, run: RunFolder, number: int) -> bool:
    """Whether every merchant has kept its reply of a round."""
    state = run.load()
    assert state is not None
    kept = [shop.merchant(name).replies / name / f"{state.run}-{number:05d}.safetensors" for name in shop.names]
    return all(path.exists() for path in kept)


def test_an_interrupted_run_says_how_to_go_on(shop: Deployed) -> None:
    process, run = shop.start(rounds=30, **NOISY)
    until(lambda: len(lines_of(run)) == 2, 120)
    printed = interrupted(process)
    assert process.returncode == 130 and "--resume" in printed
    edit(run.path / "config.toml")
    done = [line["round"] for line in run.metrics()]
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace("rounds = 30", f"rounds = {done[-1] + 1}"))
    shop.resume(run)
    assert [line["round"] for line in run.metrics()] == [*done, done[-1] + 1]


def test_the_superlink_is_killed_and_comes_back(shop: Deployed) -> None:
    process, run = shop.start(rounds=3, **NOISY, **LONG)
    until(lambda: len(lines_of(run)) == 2, 120)
    shop.kill_server()
    shop.up()
    printed, _ = process.communicate(timeout=240)
    if process.returncode != 0:
        shop.resume(run)
    assert [line["round"] for line in run.metrics()] == [0, 1, 2, 3], printed
    assert run.metrics()[-1]["took_part"] == shop.names
    for name in shop.names:
        assert shop.releases(name, run) == [0, 1, 2, 3]


def test_too_few_merchants_stop_the_run_with_a_reason_and_it_goes_on_later(shop: Deployed) -> None:
    process, run = shop.start(rounds=3, wait_timeout=5, min_merchants=4, **NOISY, **LONG)
    until(lambda: len(lines_of(run)) == 2, 120)
    for name in ("m1", "m2"):
        stop(shop.merchant(name).pid)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "2 merchants are connected, 4 are needed" in printed
    status = json.loads(shop.fedrec("server", "status", str(shop.server.path), "--json").stdout)
    assert "4 are needed" in status["run"]["stopped"] and len(run.metrics()) >= 2
    assert {one["merchant"]: one["online"] for one in status["merchants"]} == {"m0": True, "m1": False, "m2": False, "m3": True}
    shop.up()
    shop.resume(run)
    assert run.metrics()[-1]["round"] == 3 and not (run.path / "stopped.json").exists()


def test_a_catalogue_that_changes_between_rounds(shop: Deployed) -> None:
    folder = shop.deployment.path.parent / "federation" / "merchants" / "m0"
    items, events = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "events"))
    process, run = shop.start(rounds=4, **NOISY)
    until(lambda: len(lines_of(run)) == 2, 120)
    fresh = pd.DataFrame({"item_id": [f"new{i}" for i in range(5)], "title": [f"brand new thing {i}" for i in range(5)]})
    kept = items.iloc[2:]
    gone = set(items["item_id"].iloc[:2])
    for name, table in (("items", pd.concat([kept, fresh])), ("events", events[~events["item_id"].isin(gone)])):
        table.to_parquet(folder / f".{name}.parquet", index=False)
    for name in ("events", "items"):
        os.replace(folder / f".{name}.parquet", folder / f"{name}.parquet")
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert run.metrics()[-1]["took_part"] == shop.names


def test_a_merchant_that_shares_no_item_with_the_others(shop: Deployed) -> None:
    folder = shop.deployment.path.parent / "federation" / "merchants" / "m3"
    items, events = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "events"))
    items["title"] = [f"something else altogether {i}" for i in range(len(items))]
    for table in (items, events):
        table["item_id"] = "own-" + table["item_id"]
    items.to_parquet(folder / "items.parquet", index=False)
    events.to_parquet(folder / "events.parquet", index=False)
    run, _ = shop.run(rounds=2, **NOISY)
    assert run.metrics()[-1]["took_part"] == shop.names


def test_a_merchant_that_is_away_and_is_then_killed_as_it_is_delivered_to_gets_the_adapter_by_itself(shop: Deployed) -> None:
    def versions_of(name: str) -> list[dict[str, Any]]:
        versions = Versions(shop.merchant(name).model)
        found = [versions.read(version)[1] for version in versions.names()]
        return [settings for settings in found if settings["run"] == state.run]

    def has(name: str) -> bool:
        answers = json.loads((run.path / "delivered.json").read_text())["merchants"]
        return answers.get(name, {}).get("outcome") in HERE

    stop(shop.merchant("m1").pid)
    run, _ = shop.run(rounds=1, start_merchants=3, **NOISY)
    state = run.load()
    assert state is not None
    here = json.loads((run.path / "delivered.json").read_text())["merchants"]
    assert {name: one["outcome"] for name, one in here.items()} == dict.fromkeys(shop.others("m1"), "kept")
    away = shop.fedrec("server", "deliver", str(shop.server.path), "--json")
    assert away.returncode == 1, away.stderr
    [missing] = [one for one in json.loads(away.stdout)["merchants"] if not one["has"]]
    assert missing == {"merchant": "m1", "outcome": "was away", "when": "", "connected": False, "has": False}

    spent, before = shop.releases("m1"), shop.log_of("m1").count(f"Receiving: {DELIVER} message")
    with alone(shop.server):  # as during a run, so that nothing comes before all is prepared
        shop.up()
        node = running(shop.merchant("m1").pid)
        assert node is not None
        there = [one for one in node.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
        [worker] = [one for one in there if "clients.worker" in one.cmdline()]
        worker.suspend()  # so that it is in the middle of the delivery
        assert shop.log_of("m1").count(f"Receiving: {DELIVER} message") == before
    until(lambda: shop.log_of("m1").count(f"Receiving: {DELIVER} message") > before, 60, "m1 is delivered to")
    shop.kill("m1")
    assert not versions_of("m1")
    shop.up()
    until(lambda: has("m1"), 240, "m1 has it though nobody called deliver")
    assert "delivery: m1: kept" in shop.server.log.read_text()
    again = shop.fedrec("server", "deliver", str(shop.server.path), run.path.name, "--json")
    assert again.returncode == 0 and all(one["has"] for one in json.loads(again.stdout)["merchants"])
    for name in shop.names:
        [version] = versions_of(name)
        assert (version["round"], version["trust"]) == (1, "local")
    listed = shop.fedrec("merchant", "model", "list", str(shop.merchant("m1").path))
    assert listed.returncode == 0 and f"{state.run}-00001-{version['digest'][:8]}" in listed.stdout
    sent = [json.loads(line) for line in shop.merchant("m1").wire_log.read_text().splitlines()][-1]
    assert sent["type"] == DELIVER and {value["record"] for value in sent["values"]} == {"receipt"}
    assert {value["name"]: value["value"] for value in sent["values"]}["outcome"] in ("kept", "known")
    assert shop.releases("m1") == spent, "the way home costs nothing"


def test_nothing_outlives_down(shop: Deployed) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(shop.deployment.path)])
    try:
        shop.down()
        assert [process.pid for process in shop.family()] == [bystander.pid]
    finally:
        bystander.kill()
        bystander.wait()
