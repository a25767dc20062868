"""One run or delivery at a time: a merchant's node answers one message at a time, and a new run at the SuperLink ends the others.

The lock is on an open file, so it ends with the process that has it, however that ends; a child that inherits the file
goes on holding it.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from server.progress import notify

__all__ = ["Holder", "acquire", "alone"]

Holder = Literal["operator", "redelivery"]
"""Who has the lock: a command that somebody gave, or a delivery that the server began by itself."""
LOOK_EVERY = 0.2
SETTLE = 1.0
"""Seconds within which whoever has just got the lock has written who it is."""


def acquire(folder: ServerFolder, holder: Holder) -> IO[str] | None:
    """The lock as an open file, held until that is closed; None where another process has it."""
    folder.state.mkdir(parents=True, exist_ok=True)  # where no server was up yet
    file = (folder.state / "run.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(holder)
        file.flush()
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def alone(folder: ServerFolder) -> Iterator[None]:
    """Hold the lock for a command of the operator, who need not know of deliveries: it waits for one to end.

    Raises:
        InputError: another command of the operator has it.
    """
    settled = time.monotonic() + SETTLE
    told = False
    while (lock := acquire(folder, "operator")) is None:
        of_server = (folder.state / "run.lock").read_text() == "redelivery"
        if not of_server and time.monotonic() > settled:
            raise InputError("another run is going on", where=str(folder.path), hint="wait for it or stop it")
        if of_server and not told:
            notify("waiting_for_delivery")
            told = True
        time.sleep(LOOK_EVERY)
    with lock:
        yield
