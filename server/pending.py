"""The adapter of each objective that went home last, and who of the connected merchants is still to get it.

A merchant that was away when the adapter went home gets it when it is back, without anybody's doing: the process that
serves looks who is connected, and starts `server.redelivery` where somebody is due and no run is going on.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from fedrec.config import HomeObjective, write_atomically
from fedrec.deploy.layout import ServerFolder
from server.run_folder import RunFolder
from server.run_lock import acquire

__all__ = ["Attempt", "Redelivery", "due", "recall", "remember", "remember_unless_later"]

log = logging.getLogger("fedrec.server")

SOON, RARELY = 30.0, 3600.0
"""Seconds until a merchant from which nothing came is asked again, which double each time, and the most they get; so long a
merchant is left in peace that could not write what it got."""
GRACE = 3.0
"""Seconds that a delivery has to end by itself when the server ends."""


def remember(folder: ServerFolder, run: RunFolder, number: int) -> None:
    """From now on the adapter of this run, after this round, is the one for whoever lacks it; an older one of the same objective
    is for nobody.

    Raises:
        OSError: it cannot be written.
        InputError: the run's settings cannot be read.
    """
    path = run.path.resolve()
    if path.is_relative_to(folder.path):
        path = path.relative_to(folder.path)  # so that the folder can be moved
    folder.state.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(folder, run), json.dumps({"run": str(path), "round": number}).encode())


def remember_unless_later(folder: ServerFolder, run: RunFolder, number: int) -> bool:
    """As `remember`, but leave what was remembered after this adapter was made: a later run's, or one sent by hand.

    Returns:
        Whether this adapter is the one for whoever lacks it.

    Raises:
        OSError: what is pending cannot be read or written.
    """
    try:
        known = _read(folder, _file(folder, run))
    except (ValueError, KeyError, TypeError):
        known = None  # damaged, nothing can be sent by it
    if known is not None and _file(folder, run).stat().st_mtime > run.saved_at():
        return (known[0].path.resolve(), known[1]) == (run.path.resolve(), number)
    remember(folder, run, number)
    return True


def recall(folder: ServerFolder, objective: HomeObjective = "next-item") -> tuple[RunFolder, int] | None:
    """What `remember` wrote down of an objective: the run and the round.

    Raises:
        OSError, ValueError, KeyError: it cannot be read.
    """
    return _read(folder, folder.pending_of(objective))


def _file(folder: ServerFolder, run: RunFolder) -> Path:
    objective = run.goes_home
    assert objective is not None, "merchants have no use for it"
    return folder.pending_of(objective)


def _read(folder: ServerFolder, path: Path) -> tuple[RunFolder, int] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return RunFolder(folder.path / known["run"]), known["round"]


@dataclass(frozen=True)
class Attempt:
    """How often a merchant was sent this adapter by this process, and when last, in seconds since 1970."""

    number: int
    when: float


def due(
    connected: Collection[str], answers: Mapping[str, Mapping[str, str]], attempts: Mapping[str, Attempt], now: float
) -> list[str]:
    """Who is to be sent the adapter now.

    Args:
        connected: the merchants that are there.
        answers: by merchant `outcome` and `when`, as `delivered.json` has them for this adapter.
        attempts: those of this process.
        now: in seconds since 1970.

    Returns:
        Those connected who were never reached, and, after a while, those from whom no receipt came or who could not
        write it. Whoever has it, or has refused it, is not asked again: the same bytes would be answered the same.
    """
    found = []
    for name in sorted(connected):
        answer, attempt = answers.get(name), attempts.get(name)
        outcome = answer["outcome"] if answer else ""
        if outcome in ("kept", "known") or outcome.startswith("refused: "):
            continue
        tried = [attempt.when] if attempt else []
        if answer:
            tried.append(datetime.fromisoformat(answer["when"]).timestamp())
        number = attempt.number if attempt else 1
        wait = RARELY if outcome == "failed" else min(SOON * 2.0 ** min(number - 1, 20), RARELY)
        if not any(0 <= now - when < wait for when in tried):  # a time yet to come is that of a clock that was set back
            found.append(name)
    return found


class Redelivery:
    """Starts a delivery, one at a time, for those who are due; it ends with the process that started it."""

    def __init__(self, folder: ServerFolder, connected: Callable[[], Collection[str]]) -> None:
        self._folder, self._connected = folder, connected
        self._adapters: dict[HomeObjective, tuple[Path, int]] = {}
        self._attempts: dict[HomeObjective, dict[str, Attempt]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._stopped = False

    def look(self) -> None:
        """Start a delivery if somebody is due and nothing is going on.

        Raises:
            OSError, ValueError, KeyError: what is pending, or who has it, cannot be read, or no process be started.
        """
        with self._guard:
            for objective in get_args(HomeObjective):
                if not self._stopped and not self._going_on():
                    self._look_at(objective)

    def stop(self) -> None:
        """End what is going on, and start nothing more."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()

    def _look_at(self, objective: HomeObjective) -> None:
        if (known := recall(self._folder, objective)) is None:
            return
        run, number = known
        if self._adapters.get(objective) != (run.path, number):
            self._adapters[objective], self._attempts[objective] = (run.path, number), {}
        if run.last_round() != number:
            return  # the run went on: what comes of it goes home at its end
        attempts = self._attempts[objective]
        if names := due(self._connected(), run.delivered(number) or {}, attempts, time.time()):
            self._start(run, names, attempts)

    def _going_on(self) -> bool:
        if self._process is None:
            return False
        if (status := self._process.poll()) is None:
            return True
        if status:
            log.error("delivery: the process ended with status %s; it is tried again later", status)
        self._process = None
        return False

    def _start(self, run: RunFolder, names: list[str], attempts: dict[str, Attempt]) -> None:
        lock = acquire(self._folder, "redelivery")
        if lock is None:
            return  # a run is going on; its own adapter goes home at its end
        with lock:
            for name in names:
                before = attempts.get(name)
                attempts[name] = Attempt(before.number + 1 if before else 1, time.time())
            log.info("delivery: the adapter of %s goes to %s", run.path.name, ", ".join(names))
            command = [sys.executable, "-m", "server.redelivery", str(self._folder.path), str(run.path), str(os.getpid())]
            # A session of its own: an interruption at the terminal reaches it through this process. The lock goes along.
            self._process = subprocess.Popen(
                [*command, *names], stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[lock.fileno()]
            )
