"""Ctrl-C in a real process stops a run cleanly, and `--resume` goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clients.interrupts import put_off
from fedrec.data.split import split_source
from fedrec.model import Arrays
from fedrec.objectives import Lot
from fedrec.training import RoundTask

from .conftest import write_source
from .merchants import open_shop, public_and_trained, task, write_merchant

PROGRAM = str(Path(sys.executable).with_name("fedrec"))


@pytest.mark.slow
@pytest.mark.integration
def test_ctrl_c_stops_with_130_and_resume_ends_where_an_unbroken_run_does(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = tmp_path / "federation"
    split_source(write_source(tmp_path / "source", users=60), federation, 0.3, {"epsilon": 8.0, "delta": 1e-5})
    settings = {
        "encoder": tiny_bert_folder, "rounds": 16, "encoder_rounds": 4, "rank": 4, "min_lot": 1, "noise_multiplier": 9.0,
        "histogram_noise_multiplier": 9.0, "encoder_sample_rate": 0.5, "bootstrap": 100,
    }  # fmt: skip
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    start = [PROGRAM, "simulate", str(federation), *flags, "--no-reference"]

    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = subprocess.Popen(
        [*start, "--out", str(broken)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ
    )
    deadline = time.time() + 120
    while lines(broken) < 4 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "--resume" in errors and "Traceback" not in errors
    assert 4 <= lines(broken) < 17

    for command in ([PROGRAM, "simulate", "--resume", "--out", str(broken), "--no-reference"], [*start, "--out", str(unbroken)]):
        assert subprocess.run(command, capture_output=True, timeout=240).returncode == 0
    assert central(broken) == central(unbroken)
    for ledger in sorted((unbroken / "privacy").glob("*.ledger.jsonl")):
        mine = (broken / "privacy" / ledger.name).read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line)["release"]["round"] for line in mine]
        assert rounds == list(range(17))


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def central(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["central"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ctrl_c_waits_until_what_was_paid_for_is_stored(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(write_merchant(tmp_path / "shop"), tiny_bert_folder, tmp_path / "state")
    public, trained = public_and_trained(shop)
    examples = shop.examples

    def interrupted(task: RoundTask, *rest: Arrays) -> Lot:
        signal.raise_signal(signal.SIGINT)
        return examples(task, *rest)

    monkeypatch.setattr(shop, "examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shop.train(task(shop), trained, public)
    monkeypatch.undo()
    assert [release.round for release in shop.ledger.releases()] == [1]
    again = shop.train(task(shop), trained, public)
    assert again.statement.status == "ok" and len(shop.ledger.releases()) == 1


def test_a_second_ctrl_c_is_obeyed_at_once() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), put_off():
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_not_forgotten_when_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), put_off():
        signal.raise_signal(signal.SIGINT)
        raise ValueError


@pytest.mark.slow
@pytest.mark.integration
def test_these_tests_pass_where_the_shell_ignores_ctrl_c() -> None:
    tests = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-k", "a_second or forgotten", __file__]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *tests]
    done = subprocess.run(ignoring, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout[-2000:]
