"""Background processes: what was started is found and stopped with its children, and nothing else is touched."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedrec.deploy import processes
from fedrec.errors import InputError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
LOOK = "import pathlib, sys; from fedrec.deploy.processes import running; print(running(pathlib.Path(sys.argv[1])).pid)"
FAMILY = """
import pathlib, signal, subprocess, sys, time
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
deep = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", deep])
time.sleep(60)
"""
TIDY = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (here / "tidy").touch(), sys.exit()))
(here / "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that end with the test, whatever it does."""
    begun: list[psutil.Process] = []
    yield begun
    for one in begun:
        for process in [*_children(one), one]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """The log and the pid file, in folders that are to be made."""
    (tmp_path / "state").mkdir()
    return tmp_path / "logs" / "one.log", tmp_path / "state" / "one.pid"


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def family_of(process: psutil.Process, size: int) -> list[psutil.Process]:
    """The process and its descendants, once there are so many of them."""
    deadline = time.monotonic() + 10
    while len(found := [process, *_children(process)]) < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def outsider(started: list[psutil.Process]) -> psutil.Process:
    """A process that nobody here started with `processes.start`."""
    started.append(psutil.Process(subprocess.Popen(SLEEP).pid))
    return started[-1]


def test_what_was_started_is_found_by_a_later_command_and_stopped(
    place: tuple[Path, Path], started: list[psutil.Process]
) -> None:
    log, pid = place
    process = processes.start([sys.executable, "-u", "-c", "import time; print('up'); time.sleep(60)"], log, pid)
    started.append(process)
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, pid], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert int(looked.stdout) == process.pid
    deadline = time.monotonic() + 10
    while log.read_text() != "up\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert processes.stop(pid) is True
    assert not alive(process) and not pid.exists() and processes.running(pid) is None
    assert log.read_text() == "up\n"


def test_it_has_a_session_of_its_own_and_no_input(place: tuple[Path, Path], started: list[psutil.Process]) -> None:
    """Ctrl-C at the terminal that started it is not for it."""
    code = "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"
    started.append(processes.start([sys.executable, "-c", code], *place))
    started[0].wait(10)
    assert place[0].read_text() == "True ''\n"


def test_a_log_is_continued(place: tuple[Path, Path]) -> None:
    place[0].parent.mkdir()
    place[0].write_text("before\n")
    processes.start([sys.executable, "-c", "print('after')"], *place).wait(10)
    assert place[0].read_text() == "before\nafter\n"


def test_a_process_that_has_ended_is_not_running_though_nobody_asked_how(place: tuple[Path, Path]) -> None:
    process = processes.start([sys.executable, "-c", ""], *place)
    deadline = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):  # rarely something in this process has asked
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert processes.running(place[1]) is None
    assert processes.stop(place[1]) is False and not place[1].exists()


def test_children_and_grandchildren_end_with_it(
    place: tuple[Path, Path], started: list[psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    process = processes.start([sys.executable, "-c", FAMILY.format(stubborn=False)], *place)
    started.append(process)
    family = family_of(process, 3)
    started.extend(family)
    assert processes.stop(place[1]) is True
    assert not any(alive(one) for one in family)


def test_who_does_not_listen_is_killed(
    place: tuple[Path, Path], started: list[psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.5)
    process = processes.start([sys.executable, "-c", FAMILY.format(stubborn=True)], *place)
    started.append(process)
    family = family_of(process, 3)
    started.extend(family)
    began = time.monotonic()
    assert processes.stop(place[1]) is True
    assert 0.5 <= time.monotonic() - began < 5
    assert not any(alive(one) for one in family)


def test_a_process_may_tidy_up_before_it_ends(place: tuple[Path, Path], started: list[psutil.Process], tmp_path: Path) -> None:
    started.append(processes.start([sys.executable, "-c", TIDY, str(tmp_path)], *place))
    deadline = time.monotonic() + 10
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert processes.stop(place[1]) is True
    assert (tmp_path / "tidy").exists()


# What is not ours


def test_another_process_under_the_same_number_is_not_ours(place: tuple[Path, Path], started: list[psutil.Process]) -> None:
    other = outsider(started)
    place[1].write_text(json.dumps({"pid": other.pid, "created": other.create_time() - 1000}))
    assert processes.running(place[1]) is None
    assert processes.stop(place[1]) is False
    assert alive(other) and not place[1].exists()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}", '{"pid": 1}', '{"pid": -1, "created": 1}'),
        *("[]", "7", "null", '{"pid": "x", "created": 1}'),
    ],
)
def test_a_pid_file_that_says_nothing_names_nobody(place: tuple[Path, Path], content: str) -> None:
    place[1].write_text(content)
    assert processes.running(place[1]) is None
    assert processes.stop(place[1]) is False


def test_to_stop_nothing_is_no_error(place: tuple[Path, Path]) -> None:
    assert processes.running(place[1]) is None
    assert processes.stop(place[1]) is False


# What cannot be written


@pytest.mark.parametrize("obstacle", ["a file in place of the folder", "a folder in place of the log"])
def test_a_log_that_cannot_be_written_is_one_error_and_starts_nothing(
    place: tuple[Path, Path], tmp_path: Path, obstacle: str
) -> None:
    log, pid = place
    if obstacle.startswith("a file"):
        log.parent.write_text("")
    else:
        log.mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written") as refused:
        processes.start(["touch", str(tmp_path / "started")], log, pid)
    assert "\n" not in str(refused.value) and str(log.parent) in str(refused.value)
    assert not pid.exists() and not (tmp_path / "started").exists()


def test_a_process_that_cannot_be_written_down_does_not_go_on(place: tuple[Path, Path], tmp_path: Path) -> None:
    """Nobody would ever stop it."""
    log, _ = place
    before = set(psutil.Process().children())
    try:
        with pytest.raises(InputError, match="cannot be written"):
            processes.start(SLEEP, log, tmp_path / "nowhere" / "one.pid")
        left = [one for one in set(psutil.Process().children()) - before if alive(one)]
        assert left == []
    finally:
        for one in set(psutil.Process().children()) - before:
            one.kill()
