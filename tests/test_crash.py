"""kill -9 at any moment loses no spent budget, and never lets a merchant exceed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec.privacy import Ledger, LedgerError, Release, head_file

from .merchants import write_merchant

BUDGET = 0.9


def killed(tmp_path: Path, bert: Path, kills: int, seed: int) -> dict:
    folder = write_merchant(tmp_path / "shop", epsilon=BUDGET)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.crash_rounds",
        str(folder),
        str(bert),
        str(tmp_path),
        str(kills),
        str(seed),
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(tmp_path: Path, result: dict) -> None:
    path = tmp_path / "ledger" / "shop.ledger.jsonl"
    ledger = Ledger(path, 1e-5, head_file(path))
    releases = ledger.releases()
    assert ledger.standing() in ("its head agrees", "it is 1 line, which counts, ahead of its head")
    rounds = [release.round for release in releases]
    assert result["answered"], "no round was ever answered: the test tests nothing"
    assert set(map(int, result["answered"])) <= set(rounds), "a round was answered that the ledger does not hold"
    assert len(rounds) == len(set(rounds)), "a round was paid for twice"
    assert all(len(set(digests)) == 1 for digests in result["answered"].values()), "a repeated round got other bytes"
    spent = [life["epsilon"] for life in result["lives"]]
    assert spent == sorted(spent), "budget was given back"
    assert spent[-1] <= BUDGET


@pytest.mark.slow
@pytest.mark.integration
def test_a_hundred_kills_lose_nothing(tmp_path: Path, tiny_bert_folder: Path) -> None:
    check(tmp_path, killed(tmp_path, tiny_bert_folder, kills=100, seed=2))


def release(number: int) -> Release:
    return Release("run", number, "dp-sgd", 5.0, 1.0, 1, 0.1, "user", 1e-5)


def test_a_torn_last_line_is_set_aside_and_the_ledger_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.ledger.jsonl", 1e-5)
    for number in (1, 2):
        ledger.append(release(number))
    spent = ledger.spent()
    with ledger.path.open("ab") as file:
        file.write(b'{"chain": "abc", "relea')
    assert ledger.spent() == spent
    ledger.append(release(3))
    assert [one.round for one in ledger.releases()] == [1, 2, 3]
    assert ledger.path.with_suffix(".torn").read_bytes() == b'{"chain": "abc", "relea\n'


@pytest.mark.parametrize("damage", ["changed", "removed", "reordered"])
def test_tampering_is_named_by_line(tmp_path: Path, damage: str) -> None:
    ledger = Ledger(tmp_path / "a.ledger.jsonl", 1e-5)
    for number in range(1, 5):
        ledger.append(release(number))
    lines = ledger.path.read_text(encoding="utf-8").splitlines(keepends=True)
    if damage == "changed":
        lines[1] = lines[1].replace('"noise_multiplier": 5.0', '"noise_multiplier": 50.0')
    elif damage == "removed":
        del lines[1]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    ledger.path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(LedgerError, match="line 2"):
        ledger.releases()
    with pytest.raises(LedgerError, match="line 2"):
        ledger.append(release(5))


def test_a_second_process_cannot_hold_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.ledger.jsonl", 1e-5)
    script = "\n".join(
        [
            "from pathlib import Path",
            "from fedrec.privacy.ledger import Ledger",
            f"with Ledger(Path({str(ledger.path)!r}), 1e-5).locked(): pass",
        ]
    )
    with ledger.locked():
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0 and "another process holds the ledger" in done.stderr


def test_a_ledger_that_cannot_be_written_stops_the_release(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(LedgerError):
        Ledger(blocked / "a.ledger.jsonl", 1e-5).append(release(1))
