"""What real processes refuse: rogue merchants and servers, what a policy or budget forbids, and what a disk cannot keep.

The tests of a file share one deployment of four merchants and each is a run or two on it, so they
belong in one process: `pytest -m deployment -n 2 --dist loadfile`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec.deploy.processes import stop
from fedrec.privacy import Ledger

from .deployed import NOISY, RICH, ROOT, Deployed, four_merchants

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.deployment]

STRICT = {"epsilon": 1e15, "min_noise_multiplier": 0.3, "max_rounds": 1000}


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


def test_what_a_rogue_merchant_sends_is_refused_and_the_average_is_right(shop: Deployed) -> None:
    stop(shop.merchant("m3").pid)
    rogue = subprocess.Popen(
        [sys.executable, "-m", "tests.rogue_node", str(shop.merchant("m3").path)], cwd=ROOT, env=shop.environment
    )
    try:
        run, _ = shop.run(rounds=6, server_optimizer="average", **NOISY)
        reasons = [line["refused"].get("m3", "") for line in run.metrics()[1:]]
        for reason, expected in zip(reasons, ("NaN", "shape", "name", "norm", "answers round 1", "m0"), strict=True):
            assert expected in reason, reasons
        assert all(line["took_part"] == shop.others("m3") for line in run.metrics()[1:])
        checkpoints = sorted((run.path / "checkpoints").glob("*.safetensors"))
        (run.path / "checkpoints" / "later").mkdir()
        last = run.load()
        checkpoints[-1].rename(run.path / "checkpoints" / "later" / checkpoints[-1].name)
        before = run.load()
        assert last is not None and before is not None and (before.round, last.round) == (5, 6)
        population = {name: shop.merchant(name).settings.privacy.population for name in shop.others("m3")}
        for name, value in last.trained.items():
            if not name.startswith("heads"):
                continue
            mean = sum(count * shop.sent(merchant, run)[name] for merchant, count in population.items()) / sum(
                population.values()
            )
            np.testing.assert_allclose(value - before.trained[name], mean, atol=1e-5)
    finally:
        rogue.terminate()
        rogue.wait(30)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier 0 is under the policy's floor"),
        ({"unit": "event"}, "is weaker than the policy's"),
        ({"clip_norm": 1e3}, "is over the policy's ceiling"),
        ({"local_steps": 10**6}, "WireError"),
    ],
)
def test_a_server_that_asks_for_too_much_gets_nothing(shop: Deployed, asked: dict[str, Any], reason: str) -> None:
    for name in shop.names:
        shop.policy(name, **STRICT)
    shop.environment["ROGUE"] = json.dumps(asked)
    run, _ = shop.run("rogue_server", rounds=2, **NOISY)
    ended = json.loads((run.path / "ended_early.json").read_text())
    assert set(ended["declined"]) == set(shop.names) and all(reason in text for text in ended["declined"].values())
    assert all(shop.releases(name, run) == [0] for name in shop.names)


def test_a_thousand_rounds_are_too_many(shop: Deployed) -> None:
    for name in shop.names:
        shop.policy(name, max_rounds=2)
    run, printed = shop.run(rounds=1000, **NOISY)
    assert len(run.metrics()) == 3 and "most rounds" in printed
    assert all(shop.releases(name, run) == [0, 1, 2] for name in shop.names)


def test_a_merchants_budget_ends_and_the_run_goes_on(shop: Deployed) -> None:
    spent = Ledger(shop.merchant("m2").ledger / "m2.ledger.jsonl", 1e-5).spent().value
    shop.policy("m2", epsilon=spent)
    run, printed = shop.run(rounds=2, **NOISY)
    assert [line["took_part"] for line in run.metrics()] == [shop.others("m2")] * 3
    assert all(line["declined"]["m2"].startswith("budget:") for line in run.metrics())
    assert "m2 declined: budget" in printed and shop.releases("m2", run) == []


@pytest.fixture
def small_disk(shop: Deployed) -> Iterator[Path]:
    """m1's ledger on a disk of its own of 64 kB."""
    folder = shop.merchant("m1").ledger
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        folder.rmdir()
        kept.rename(folder)
        pytest.skip("a file system cannot be mounted here")
    ledger = "m1.ledger.jsonl"
    shutil.copy(kept / ledger, folder)
    try:
        yield folder
    finally:
        shutil.copy(folder / ledger, kept)
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


def test_a_full_or_read_only_disk_is_not_trained_on_and_nothing_is_corrupt(shop: Deployed, small_disk: Path) -> None:
    ledger = small_disk / "m1.ledger.jsonl"
    first = len(Ledger(ledger, 1e-5).releases())
    shop.run(rounds=1, **NOISY)
    before = Ledger(ledger, 1e-5).releases()
    assert len(before) == first + 2

    def nothing_from_m1() -> None:
        run, _ = shop.run(rounds=1, **NOISY)
        assert [line["took_part"] for line in run.metrics()] == [shop.others("m1")] * 2
        assert all("m1" in {**line["declined"], **line["refused"]} for line in run.metrics())
        assert Ledger(ledger, 1e-5).releases() == before

    with ledger.open("ab") as torn:  # to the end of a block, so that not one line more fits
        torn.write((b'{"chain": "' + b"0" * 4096)[: -ledger.stat().st_size % 4096])
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"0" * 512)
    nothing_from_m1()
    assert "cannot be written (No space left on device)" in shop.log_of("m1")
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    nothing_from_m1()
    assert "Read-only file system" in shop.log_of("m1")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run, _ = shop.run(rounds=1, **NOISY)
    assert run.metrics()[-1]["took_part"] == shop.names
    assert len(Ledger(ledger, 1e-5).releases()) == len(before) + 2
