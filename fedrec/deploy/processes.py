"""Processes in the background that a later command finds again, and stops, and no others."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from fedrec.config import write_atomically
from fedrec.errors import InputError

__all__ = ["running", "start", "stop"]

GRACE = 20.0
"""Seconds that a process has to end by itself; its children go with it."""


def start(command: Sequence[str], log: Path, pid_file: Path) -> psutil.Process:
    """Start `command` in a session of its own, writing to `log`.

    Raises:
        InputError: the log or the pid file cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        process = psutil.Process(child.pid)
        try:
            # Numbers are given out again: with its time of birth a process is not taken for another.
            write_atomically(pid_file, json.dumps({"pid": process.pid, "created": process.create_time()}).encode())
        except OSError:
            child.kill()  # nobody would ever find it again
            child.wait()
            raise
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(error.filename)) from None
    return process


def running(pid_file: Path) -> psutil.Process | None:
    """The process that `start` wrote down there, if it still runs."""
    try:
        known = json.loads(pid_file.read_text(encoding="utf-8"))
        process = psutil.Process(known["pid"])
        if process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        pass
    return None


def stop(pid_file: Path) -> bool:
    """Stop what `start` wrote down there, with all its children; False when it did not run."""
    process = running(pid_file)
    if process is not None:
        family = [process]
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
            family += process.children(recursive=True)
            process.terminate()
        _, left = psutil.wait_procs(family, GRACE)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, GRACE)
    pid_file.unlink(missing_ok=True)
    return process is not None
