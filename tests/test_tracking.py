"""Trackers: one contract for all of them, and of a run's rounds only what its server may know."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedrec.cli.tracking import tracked
from fedrec.errors import InputError
from fedrec.tracking import TRACKERS, Memory, Run, Setting, TrackedRun, Tracker, open_tracker, round_values
from fedrec.tracking.rounds import WAITING
from fedrec.tracking.trackers import Kind as TrackerKind
from server.progress import notify
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import PLANNED, USER, make_federation, settings_of

Steps = dict[str, dict[int, float]]
RUN, SETTINGS = Run("00ff00ff00ff00ff", "friday"), {"rounds": 3, "trust": "local", "heads": True, "epsilon": 8.5}


class Kept(NamedTuple):
    """What is found where a tracker has written: values by name and step, settings as text, and how it ended, if it says."""

    steps: Steps
    settings: dict[str, str]
    done: bool | None


class Kind(NamedTuple):
    """A tracker under test: one that goes on with what the last one wrote, and a reader that is not ours."""

    make: Callable[[], Tracker]
    read: Callable[[], Kept]


def texts(settings: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def memory(_: Path, __: pytest.MonkeyPatch) -> Kind:
    tracker = Memory()

    def read() -> Kept:
        names = {name for values in tracker.steps.values() for name in values}
        by_name = {name: {step: values[name] for step, values in tracker.steps.items() if name in values} for name in names}
        return Kept(by_name, texts(tracker.settings), tracker.done)

    return Kind(lambda: tracker, read)


def tensorboard(folder: Path, _: pytest.MonkeyPatch) -> Kind:
    return Kind(lambda: open_tracker(f"tensorboard:{folder / 'logs'}"), lambda: events_in(folder / "logs"))


def events_in(logs: Path) -> Kept:
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = logs.iterdir()
    found = EventAccumulator(str(run)).Reload()
    steps = {name: {one.step: one.value for one in found.Scalars(name)} for name in found.Tags()["scalars"]}
    assert all(len(found.Scalars(name)) == len(values) for name, values in steps.items()), "no step is there twice"
    told = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    return Kept(steps, texts(json.loads(told.removeprefix("```json").removesuffix("```"))), None)


def mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    client_of = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    target = (folder / "store").as_uri()

    def read() -> Kept:
        client = client_of(tracking_uri=target)
        (run,) = client.search_runs([client.get_experiment_by_name("fedrec").experiment_id])
        assert run.info.run_name == RUN.name and set(run.data.tags) == {"fedrec.run", "mlflow.runName"}
        steps = {
            name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)} for name in run.data.metrics
        }
        return Kept(steps, run.data.params, {"FINISHED": True, "KILLED": False}[run.info.status])

    return Kind(lambda: open_tracker(f"mlflow:{target}"), read)


KINDS = [memory, tensorboard, mlflow]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    found: Kind = request.param(tmp_path, monkeypatch)
    return found


def test_a_tracker_keeps_settings_and_steps_and_goes_on_with_a_resumed_run(kind: Kind) -> None:
    first = kind.make()
    first.start(RUN, SETTINGS)
    for step in (0, 1, 2):
        first.metrics(step, {"central/ndcg_at_10": 0.25 * step, "round/seconds": 2.0})
    first.finish(False)
    stopped = kind.read()
    assert stopped.steps["central/ndcg_at_10"] == {0: 0.0, 1: 0.25, 2: 0.5}
    assert stopped.settings == texts(SETTINGS) and stopped.done in (None, False)
    again = kind.make()
    again.start(RUN, SETTINGS)
    for step in (2, 3):  # it was interrupted between a round's line and its checkpoint
        again.metrics(step, {"central/ndcg_at_10": 0.125 * step, "round/seconds": 2.0})
    again.finish(True)
    found = kind.read()
    assert found.steps["central/ndcg_at_10"] == {0: 0.0, 1: 0.25, 2: 0.25, 3: 0.375}
    assert found.steps["round/seconds"] == dict.fromkeys(range(4), 2.0)
    assert found.settings == texts(SETTINGS) and found.done in (None, True)


def test_wandb_keeps_what_it_is_given_and_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    tracker = open_tracker("wandb:shop")
    tracker.start(RUN, SETTINGS)
    tracker.metrics(1, {"central/ndcg_at_10": 0.25})
    print("brand-103 declined")  # noqa: T201
    tracker.finish(True)
    (log,) = tmp_path.rglob("*.wandb")
    kept = log.read_bytes()
    assert b"central/ndcg_at_10" in kept and b"00ff00ff00ff00ff" in kept and b"friday" in kept
    for private in (socket.gethostname(), sys.executable, "brand-103"):
        assert private.encode() not in kept, private


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "board:logs", "tensorboard:{file}/logs"])
def test_a_tracker_that_cannot_be_is_refused_before_anything_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refused, tracked([text.format(file=tmp_path / "file")], tmp_path, True):
        pytest.fail("it ran")
    assert "folder for event files" in str(refused.value) if "{" in text else "mlflow:TRACKING_URI" in str(refused.value)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "fedrec.tracking.mlflow", raising=False)
    with pytest.raises(InputError, match="not installed") as refused:
        open_tracker("mlflow:http://127.0.0.1:1")
    assert refused.value.hint == "pip install 'fedrec[mlflow]'" and set(TRACKERS) == {"tensorboard", "mlflow", "wandb"}


@pytest.fixture(scope="module")
def followed(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A small run, and where a tracker followed it."""
    folder = tmp_path_factory.mktemp("tracked")
    federation = make_federation(folder)
    with tracked([f"tensorboard:{folder / 'logs'}"], folder / "run", simulation=True):
        run = simulate(federation, settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, **PLANNED), folder / "run")
    return run, folder / "logs"


def test_a_run_is_followed_round_by_round_and_marked_as_a_simulation(followed: tuple[RunFolder, Path]) -> None:
    run, logs = followed
    kept, lines = events_in(logs), run.metrics()
    assert kept.settings["simulation"] == "True" and kept.settings["rounds"] == "1"
    assert kept.steps["central/ndcg_at_10"] == pytest.approx({line["round"]: line["central"]["ndcg@10"] for line in lines})
    assert kept.steps["merchants/took_part"] == {line["round"]: len(line["took_part"]) for line in lines}
    spent = {line["round"]: max(one["epsilon"] for one in line["privacy"].values()) for line in lines}
    assert kept.steps["privacy/largest_epsilon"] == pytest.approx(spent)
    assert kept.steps.keys() == set(round_values(lines[-1])) | set(round_values(lines[0]))


def test_nothing_that_a_tracker_has_names_a_merchant_a_user_or_a_folder(followed: tuple[RunFolder, Path]) -> None:
    run, logs = followed
    kept = b"".join(path.read_bytes() for path in logs.rglob("*") if path.is_file())
    merchants = run.metrics()[-1]["privacy"]
    assert merchants
    for private in (*merchants, USER.partition("{")[0], str(run.path), str(run.config.encoder)):
        assert private.encode() not in kept, private


def line_of(number: int) -> dict[str, Any]:
    """A round's line of `metrics.jsonl`, as far as a tracker is told of it."""
    line = {"round": number, "seconds": 1.0, "took_part": ["a"], "declined": {}, "refused": {}, "privacy": {}}
    return {**line, "bytes_down": {"a": 1}, "bytes_up": {"a": 1}, "central": {}, "scoring": {}}


class Broken(Memory):
    """It fails at one of its methods, and counts how often it was asked."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at, self.asked = at, Counter[str]()

    def _ask(self, name: str) -> None:
        self.asked[name] += 1
        if name == self.at:
            raise OSError("the disk is full")

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        super().start(run, settings)
        self._ask("start")

    def metrics(self, step: int, values: object) -> None:
        self._ask("metrics")

    def finish(self, done: bool) -> None:
        super().finish(done)
        self._ask("finish")


@pytest.mark.parametrize(
    ("at", "asked", "done"),
    [
        ("start", {"start": 1}, None),
        ("metrics", {"start": 1, "metrics": 1, "finish": 1}, False),
        ("finish", {"start": 1, "metrics": 3, "finish": 1}, False),
    ],
)
def test_what_a_tracker_cannot_keep_stops_no_run_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: str, asked: dict[str, int], done: bool
) -> None:
    broken = Broken(at)
    monkeypatch.setattr("fedrec.tracking.open_tracker", lambda text: broken)
    (tmp_path / "config.toml").write_text("")
    with suppress(KeyboardInterrupt), tracked(["any:thing"], tmp_path, False):
        for number in range(3):
            notify("round_done", **line_of(number))
        raise KeyboardInterrupt
    assert (broken.asked, broken.done) == (asked, done) and broken.settings["simulation"] is False
    assert [record.message.count("disk is full") for record in caplog.records] == [1]


def test_a_slow_tracker_delays_no_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked, going = threading.Event(), threading.Event()

    class Slow(Memory):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            asked.set()
            going.wait(30)
            super().metrics(step, values)

    slow = Slow()
    (tmp_path / "config.toml").write_text("")
    follows, begun = TrackedRun(slow, tmp_path, True, wait=0.1), time.monotonic()
    for number in range(2 * WAITING):
        follows("round_done", line_of(number))
        assert asked.wait(10)
    follows.finish(True)
    assert time.monotonic() - begun < 10 and not slow.steps
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "a tracker gets nothing more",
        "a tracker is too slow and may lack the last rounds; the run is in its folder all the same",
    ]
    going.set()


def test_a_run_of_several_objectives_has_the_scoring_of_each() -> None:
    line = {**line_of(0), "scoring": {"temperature": 0.5}, "response_scoring": {"temperature": 0.25}}
    found = round_values(line)
    assert (found["scoring/temperature"], found["response_scoring/temperature"]) == (0.5, 0.25)


def test_whatever_a_library_raises_when_a_tracker_is_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("class Board:\n    def __init__(self, target):\n        raise KeyError(target)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "board", TrackerKind("broken_library", "Board", "TARGET"))
    with pytest.raises(InputError, match="cannot be used \\(KeyError: 'here'\\)") as refused:
        open_tracker("board:here")
    assert refused.value.where == "--track board:here"


@pytest.mark.parametrize(
    ("more", "where"), [(["--track", "tensorboard:x"], "--trust"), (["--trust", "local", "--track", "x:y"], "mlflow:")]
)
def test_a_sweep_refuses_a_tracker_before_anything_is_made(tmp_path: Path, more: list[str], where: str) -> None:
    pytest.importorskip("optuna")
    from benchmarks.sweep import main

    with pytest.raises(InputError) as refused:
        main([str(tmp_path / "out"), "demo", *more])
    assert refused.value.where == "--track" and where in str(refused.value) and not (tmp_path / "out").exists()
