"""Merchants that are answered by worker processes: the same run, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedrec.config import RunConfig, save_config
from server.progress import watching
from server.run_folder import RunFolder
from simulations.run import resume, simulate
from simulations.workers import Workers

from .helpers import central, ledger_rounds, make_federation, settings_of

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-W", "ignore", "-m", "fedrec.cli.main"]
MOST_GROWTH = 50 / 3
"""MB that three hundred more merchants may add: updates, the lines of a round, and the central users."""
SPAWNED = "spawn_main"
"""What is in the command line of a worker, and not in that of multiprocessing's resource tracker."""

QUICK = {"noise_multiplier": 9.0, "histogram_noise_multiplier": 9.0, "encoder_sample_rate": 1.0}
"""Noise that need not be planned, at rates whose accounting takes no time in each new process."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("four"), merchants=4)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes that answer for its merchants."""
    return [one for one in process.children() if SPAWNED in " ".join(one.cmdline())]


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """Equal but for the order of floating-point sums."""
    assert len(central(one)) == len(central(other))
    for here, there in zip(central(one), central(other), strict=True):
        assert there == pytest.approx(here, abs=1e-5)
    first, second = one.load(), other.load()
    assert first is not None and second is not None
    for name, value in first.trained.items():
        np.testing.assert_allclose(second.trained[name], value, atol=1e-5)


# The same run


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    config, done = settings_of(tiny_bert_folder, **QUICK), []

    def watch(event: str, fields: dict[str, Any]) -> None:
        if event == "merchant_done":
            done.append(fields["done"])

    alone = simulate(federation, config, tmp_path / "alone")
    with watching(watch):
        shared = simulate(federation, config, tmp_path / "shared", workers=2)
    assert_same(alone, shared)
    assert done == [1, 2, 3, 4] * 5, "the histogram, three rounds, the way home"
    assert ledger_rounds(shared) == {f"m{i}": [0, 1, 2, 3] for i in range(4)}
    assert workers_of(psutil.Process()) == []


@pytest.mark.slow
def test_more_workers_than_merchants_are_of_no_harm(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    run = simulate(federation, settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0), tmp_path / "run", workers=5)
    assert ledger_rounds(run) == {f"m{i}": [0, 1] for i in range(4)}


def test_no_workers_are_refused(federation: Path, tmp_path: Path) -> None:
    for flags in (["--workers", "0"], ["--workers", "2", "--engine", "flower"]):
        command = [*PROGRAM, "simulate", str(federation), "--out", str(tmp_path / "run"), *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "--workers" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# A worker that dies


def frozen_until(round: int, then: Callable[[psutil.Process], None]) -> Callable[[str, dict[str, Any]], None]:
    """Stops a worker before a round, and does `then` with it once another has answered: it has a request that it never read."""
    stopped: list[psutil.Process] = []

    def watch(event: str, fields: dict[str, Any]) -> None:
        if event == "round_started" and fields["round"] == round:
            stopped.extend(workers_of(psutil.Process())[:1])
            stopped[0].suspend()
        if event == "merchant_done" and stopped:
            then(stopped.pop())

    return watch


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_merchant_the_round_and_nobody_else(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    with watching(frozen_until(2, psutil.Process.kill)):
        run = simulate(federation, settings_of(tiny_bert_folder, **QUICK), tmp_path / "run", workers=2)
    lines = run.metrics()
    assert [len(line["took_part"]) for line in lines] == [4, 4, 3, 4]
    [(missed, reason)] = lines[2]["refused"].items()
    assert reason == "its ClientApp was killed"
    rounds = ledger_rounds(run)
    assert rounds.pop(missed) == [0, 1, 3], "it was killed before it read its request, and nobody asked it twice"
    assert all(known == [0, 1, 2, 3] for known in rounds.values())
    assert workers_of(psutil.Process()) == []


@pytest.mark.slow
def test_a_worker_that_dies_between_two_rounds_costs_nothing(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    def watch(event: str, fields: dict[str, Any]) -> None:
        if event == "round_done" and fields["round"] == 1:
            for worker in workers_of(psutil.Process()):
                worker.kill()
                worker.wait(10)

    with watching(watch):
        run = simulate(federation, settings_of(tiny_bert_folder, **QUICK), tmp_path / "run", workers=2)
    assert [len(line["took_part"]) for line in run.metrics()] == [4, 4, 4, 4]
    assert ledger_rounds(run) == {f"m{i}": [0, 1, 2, 3] for i in range(4)}


@pytest.mark.slow
def test_an_error_of_the_server_leaves_no_worker(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a bug")

    with monkeypatch.context() as patched, pytest.raises(LookupError, match="a bug"):
        patched.setattr("server.strategy.PrivateLora.aggregate_train", broken)
        simulate(federation, settings_of(tiny_bert_folder, **QUICK), tmp_path / "run", workers=2)
    assert workers_of(psutil.Process()) == []
    assert len(central(resume(tmp_path / "run"))) == 4


def test_workers_that_cannot_start_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # a worker looks for its modules where this process does
    with pytest.raises(RuntimeError, match="a worker could not start: it ended with status 1"):
        Workers(2).__enter__()
    assert workers_of(psutil.Process()) == []


# Ctrl-C at a terminal: every process of the group hears it


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[str]]]:
    """Runs whose processes end with the test, whatever it does."""
    runs: list[subprocess.Popen[str]] = []
    yield runs
    for run in runs:
        for one in psutil.process_iter():
            if one.pid != os.getpid() and _group(one) == run.pid:
                one.kill()


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def rounds_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def started(begun: list[subprocess.Popen[str]], federation: Path, config: RunConfig, out: Path) -> subprocess.Popen[str]:
    save_config(config, out.with_suffix(".toml"))
    command = [*PROGRAM, "simulate", str(federation), "--config", str(out.with_suffix(".toml")), "--out", str(out)]
    command += ["--workers", "2", "--no-reference"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    begun.append(subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes))  # type: ignore[call-overload]
    return begun[-1]


def nobody_left(run: subprocess.Popen[str]) -> bool:
    return not [one for one in psutil.process_iter() if _group(one) == run.pid and one.status() != psutil.STATUS_ZOMBIE]


def long_run(bert: Path) -> RunConfig:
    return settings_of(bert, rounds=16, encoder_rounds=2, noise_multiplier=9.0, histogram_noise_multiplier=9.0)


@pytest.mark.slow
@pytest.mark.integration
def test_ctrl_c_with_workers_leaves_no_process_and_resumes(
    begun: list[subprocess.Popen[str]], federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    config, out = long_run(tiny_bert_folder), tmp_path / "broken"
    run = started(begun, federation, config, out)
    until(lambda: rounds_of(out) >= 3, "three rounds")
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors[-2000:]
    assert "--resume" in errors and "Traceback" not in errors
    assert rounds_of(out) < 17
    until(lambda: nobody_left(run), "the end of every process")
    assert json.loads((out / "site.json").read_text(encoding="utf-8"))["workers"] == 2

    assert_same(simulate(federation, config, tmp_path / "unbroken"), resume(out))
    assert ledger_rounds(RunFolder.open(out)) == {f"m{i}": list(range(17)) for i in range(4)}


@pytest.mark.slow
@pytest.mark.integration
def test_workers_do_not_outlive_a_run_that_is_killed(
    begun: list[subprocess.Popen[str]], federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = started(begun, federation, long_run(tiny_bert_folder), out)
    until(lambda: rounds_of(out) >= 2, "two rounds")
    run.kill()
    until(lambda: nobody_left(run), "the end of every process")


# Hundreds of merchants


def peak(federation: Path, config: RunConfig, out: Path) -> float:
    """Most MB that a run's processes hold together; resident, so that shared pages count for each."""
    save_config(config, out.with_suffix(".toml"))
    command = [*PROGRAM, "simulate", str(federation), "--config", str(out.with_suffix(".toml")), "--out", str(out)]
    log = out.with_suffix(".log")
    with log.open("w") as file:
        run = psutil.Popen([*command, "--workers", "2", "--no-reference"], cwd=ROOT, stdout=file, stderr=file)
    most = 0
    while run.poll() is None and rounds_of(out) <= config.rounds:  # the reports that follow are no part of it
        with contextlib.suppress(psutil.NoSuchProcess):
            most = max(most, sum(one.memory_info().rss for one in [run, *run.children(recursive=True)]))
        time.sleep(0.05)
    assert run.wait(600) == 0, log.read_text()[-2000:]
    return most / 1e6


@pytest.mark.slow
@pytest.mark.integration
def test_memory_does_not_grow_with_the_number_of_merchants(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Data of a merchant are 0.2 MB here: three hundred more that stayed in memory would be 60 MB."""
    every = make_federation(tmp_path / "all", merchants=400, policy={"epsilon": 1000.0})
    # Users have the same ids at every merchant, and the central ones of hundreds would have bought everything.
    shutil.rmtree(every / "central")
    shutil.copytree(make_federation(tmp_path / "three") / "central", every / "central")
    hundred = tmp_path / "hundred"
    (hundred / "merchants").mkdir(parents=True)
    (hundred / "central").symlink_to(every / "central")
    for folder in sorted((every / "merchants").iterdir())[:100]:
        (hundred / "merchants" / folder.name).symlink_to(folder)
    config = settings_of(
        tiny_bert_folder, rounds=2, encoder_rounds=0, noise_multiplier=9.0, histogram_noise_multiplier=9.0, history=300
    )
    few, many = peak(hundred, config, tmp_path / "few"), peak(every, config, tmp_path / "many")
    lines = RunFolder.open(tmp_path / "many").metrics()
    assert [len(line["took_part"]) for line in lines] == [400, 400, 400]
    sys.stderr.write(f"\n{few:.0f} MB for 100 merchants, {many:.0f} MB for 400\n")
    assert many - few < MOST_GROWTH
