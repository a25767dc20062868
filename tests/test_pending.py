"""Who was away when the adapter went home gets it later: who is asked when, by one process at a time, and what waits for what."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import server.app as server_app
from fedrec.config import RunConfig
from fedrec.deploy.create import create
from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from fedrec.model import Scoring
from fedrec.wire import HERE, OUTCOMES
from server import deployed, pending
from server.pending import RARELY, SOON, Attempt, Redelivery, due, recall, remember
from server.progress import watching
from server.run_folder import RunFolder, ServerState
from server.run_lock import SETTLE, acquire, alone

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC).timestamp()


def answer(outcome: str, ago: float = 0.0) -> dict[str, str]:
    return {"outcome": outcome, "when": f"{datetime.fromtimestamp(NOW - ago, UTC):%Y-%m-%dT%H:%M:%SZ}"}


def asked(outcome: str | None, ago: float = 0.0, attempts: int = 0) -> bool:
    """Whether a merchant is asked now that answered this so long ago, in as many attempts of this process."""
    answers = {} if outcome is None else {"anna": answer(outcome, ago)}
    tried = {"anna": Attempt(attempts, NOW - ago)} if attempts else {}
    return due({"anna"}, answers, tried, NOW) == ["anna"]


def test_who_was_never_reached_is_asked_at_once() -> None:
    assert due({"cleo", "anna", "bert"}, {"bert": answer("kept"), "gone": answer("failed")}, {}, NOW) == ["anna", "cleo"]
    assert due(set(), {}, {}, NOW) == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_answer_that_a_merchant_may_give(outcome: str) -> None:
    assert outcome in HERE or outcome.startswith("refused: ") or outcome == "failed"
    assert not asked(outcome) and not asked(outcome, RARELY - 1, attempts=1)
    assert asked(outcome, RARELY) == (outcome == "failed")


@pytest.mark.parametrize("lost", ["did not answer in time", "went offline before it answered", "no receipt: x", "error 7"])
def test_from_whom_nothing_came_is_asked_again_ever_more_rarely(lost: str) -> None:
    for attempts, wait in ((0, SOON), (1, SOON), (2, 2 * SOON), (3, 4 * SOON), (30, RARELY), (10_000, RARELY)):
        assert not asked(lost, wait - 1, attempts) and asked(lost, wait, attempts), attempts


def test_an_attempt_that_left_no_answer_counts() -> None:
    assert not asked(None, SOON - 1, attempts=1) and asked(None, SOON, attempts=1)


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    assert asked("failed", -86_400.0)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return create(tmp_path / "out", "localhost:8443", ["anna", "bert"]).server


def a_run(path: Path, number: int = 3, objective: Any = "next-item", **outcomes: str) -> RunFolder:
    """A run whose adapter went home after round `number`."""
    run = RunFolder.create(path, RunConfig(objective=objective))
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / f"round-{number:05d}.safetensors").touch()
    merchants = {name: answer(outcome) for name, outcome in outcomes.items()}
    run.write_json("delivered.json", {"run": "r", "round": number, "digest": "0", "merchants": merchants})
    return run


def test_what_is_pending_is_found_where_the_folder_was_moved_to(folder: ServerFolder, tmp_path: Path) -> None:
    assert recall(folder) is None
    remember(folder, a_run(folder.runs / "one"), 3)
    folder.path.rename(tmp_path / "moved")
    moved = ServerFolder.open(tmp_path / "moved")
    found = recall(moved)
    assert found is not None and found[0].path == moved.runs / "one" and found[1] == found[0].last_round() == 3
    remember(moved, RunFolder.create(tmp_path / "elsewhere", RunConfig()), 4)
    found = recall(moved)
    assert found is not None and (found[0].path, found[1]) == (tmp_path / "elsewhere", 4)


class Started:
    """In place of `subprocess.Popen`: what was started, as processes that only wait, and that hold what they inherit."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        at = command.index("server.redelivery")
        self.names.append([Path(command[at + 2]).name, *command[at + 4 :]])
        self.processes.append(REAL([sys.executable, "-S", "-c", "import time; time.sleep(600)"], **options))
        return self.processes[-1]

    def end(self) -> None:
        """The last one ends."""
        self.processes[-1].kill()
        self.processes[-1].wait()


REAL = subprocess.Popen


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    made = Started()
    monkeypatch.setattr(pending.subprocess, "Popen", made)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_who_comes_back_is_sent_it_by_one_process_at_a_time(folder: ServerFolder, started: Started) -> None:
    here = {"anna"}
    redelivery = Redelivery(folder, lambda: here)
    redelivery.look()
    assert started.names == [], "nothing has gone home yet"
    run = a_run(folder.runs / "one", anna="kept")
    remember(folder, run, 3)
    redelivery.look()
    assert started.names == [], "all who are there have it"
    here.add("bert")
    for _ in range(2):
        redelivery.look()
    assert started.names == [["one", "bert"]]
    started.end()
    redelivery.look()
    assert len(started.names) == 1, "it came to nothing, so some time goes by"


def test_an_older_adapter_is_for_nobody_and_the_next_begins_anew(folder: ServerFolder, started: Started) -> None:
    redelivery = Redelivery(folder, lambda: {"anna", "bert"})
    remember(folder, a_run(folder.runs / "one", anna="refused: encoder"), 3)
    redelivery.look()
    started.end()
    later = a_run(folder.runs / "two", number=5)
    redelivery.look()
    assert started.names == [["one", "bert"]], "a run that has begun changes nothing"
    remember(folder, later, 5)
    redelivery.look()
    assert started.names == [["one", "bert"], ["two", "anna", "bert"]]


def test_each_objectives_adapter_waits_for_whoever_lacks_it(folder: ServerFolder, started: Started) -> None:
    """One that ranks is not overtaken by one that predicts, and the next of its own kind overtakes that alone."""
    for path, objective in (("rank", "next-item"), ("early", "response"), ("late", "response")):
        remember(folder, a_run(folder.runs / path, objective=objective, anna="kept" if path == "rank" else "was away"), 3)
    here = {"bert"}
    redelivery = Redelivery(folder, lambda: here)
    for _ in range(3):
        redelivery.look()
    assert started.names == [["rank", "bert"]], "one at a time"
    started.end()
    for _ in range(2):
        redelivery.look()
    assert started.names[1:] == [["late", "bert"]]


def test_a_run_that_goes_on_sends_what_comes_of_it_itself(folder: ServerFolder, started: Started) -> None:
    run = a_run(folder.runs / "one")
    remember(folder, run, 3)
    (run.path / "checkpoints" / "round-00004.safetensors").touch()
    Redelivery(folder, lambda: {"anna"}).look()
    assert started.names == []


def test_nothing_starts_beside_a_run_and_it_is_not_an_attempt(folder: ServerFolder, started: Started) -> None:
    remember(folder, a_run(folder.runs / "one"), 3)
    redelivery = Redelivery(folder, lambda: {"anna"})
    with alone(folder):
        redelivery.look()
        assert started.names == []
    redelivery.look()
    assert started.names == [["one", "anna"]]


@pytest.mark.parametrize("objective", ["next-item", "response"])
@pytest.mark.parametrize("done", [False, True], ids=["as it ends", "gone on with afterwards"])
def test_what_was_trained_waits_for_merchants_by_its_objective(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch, objective: str, done: bool
) -> None:
    run = RunFolder.create(folder.runs / "one", RunConfig(objective=objective, rounds=1, encoder_rounds=0))
    run.write_json("site.json", {"deployed": True})
    number = np.ones(1, dtype=np.float32)
    state = ServerState("r", 1, {"a": number}, {"b": number}, {}, Scoring(3.0, 0.1, 1.0))
    sent: list[RunFolder] = []
    if done:
        run.save(state)
    monkeypatch.setattr(deployed, "load_encoder_for", lambda *_: None)
    monkeypatch.setattr(deployed, "SuperLink", lambda _: None)
    monkeypatch.setattr(deployed, "_serve", lambda _, app: app(None, None))
    monkeypatch.setattr(server_app, "train", lambda *_: run.save(state))
    monkeypatch.setattr(server_app, "parcel_of", lambda run: sent.append(run))
    monkeypatch.setattr(server_app, "Delivered", MagicMock())
    monkeypatch.setattr(server_app, "connected", lambda _: {})
    monkeypatch.setattr(server_app, "hand_over", lambda *_: {})
    deployed.go_on(folder, run)
    waits = [one for one in ("next-item", "response") if recall(folder, one) is not None]  # type: ignore[arg-type]
    assert waits == [objective] and len(sent) == (not done)


def test_a_run_waits_for_a_delivery_and_not_for_a_run(folder: ServerFolder, started: Started) -> None:
    remember(folder, a_run(folder.runs / "one"), 3)
    redelivery = Redelivery(folder, lambda: {"anna"})
    redelivery.look()
    assert acquire(folder, "operator") is None, "the process has it, though the one that started it has closed it"
    events: list[str] = []
    ended = threading.Timer(2.0, started.end)
    ended.start()
    with watching(lambda event, _: events.append(event)), alone(folder):
        assert started.processes[-1].poll() is not None and events == ["waiting_for_delivery"]
        before = time.monotonic()
        with pytest.raises(InputError, match="another run is going on"), alone(folder):
            pass
        assert time.monotonic() - before < 2.0
    ended.join()


def test_a_run_does_not_take_a_delivery_that_has_just_begun_for_a_run(folder: ServerFolder) -> None:
    lock = acquire(folder, "redelivery")
    assert lock is not None
    # The next delivery has the lock, empties what is in it, and writes; or that of a run is in it still.
    holders = (("redelivery", SETTLE + 0.2), ("", 0.3), ("operator", 0.1), ("redelivery", 0.3))

    def others() -> None:
        for holder, seconds in holders:
            (folder.state / "run.lock").write_text(holder)
            time.sleep(seconds)
        lock.close()

    thread = threading.Thread(target=others)
    thread.start()
    with alone(folder):
        assert lock.closed
    thread.join()


def test_it_ends_with_the_server(folder: ServerFolder, started: Started) -> None:
    remember(folder, a_run(folder.runs / "one"), 3)
    redelivery = Redelivery(folder, lambda: {"anna", "bert"})
    redelivery.look()
    redelivery.stop()
    assert started.processes[-1].poll() is not None
    remember(folder, a_run(folder.runs / "two"), 3)
    redelivery.look()
    assert len(started.names) == 1, "what is stopped starts nothing"


def test_what_cannot_be_started_is_tried_again_later_and_leaves_the_lock(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(*_: object, **__: object) -> None:
        calls.append(1)
        raise OSError("no more processes")

    monkeypatch.setattr(pending.subprocess, "Popen", full)
    remember(folder, a_run(folder.runs / "one"), 3)
    redelivery = Redelivery(folder, lambda: {"anna"})
    with pytest.raises(OSError, match="no more"):
        redelivery.look()
    redelivery.look()
    assert calls == [1]
    lock = acquire(folder, "operator")
    assert lock is not None
    lock.close()
