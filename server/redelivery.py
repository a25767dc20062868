"""One delivery to merchants that came back, as a process of its own that ends with the server and within minutes.

The server holds it apart from itself, so that nothing that goes wrong here stops it, and so that the memory is given back.
It holds the lock of runs through a file that it inherits.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from fedrec.text import log_visibly
from server.deployed import deliver_to
from server.progress import watching
from server.run_folder import RunFolder

__all__ = ["main"]

log = logging.getLogger("fedrec.server")

SECONDS = 60.0
"""So long receipts are waited for; who takes longer and has kept it says so the next time."""
MOST_SECONDS = 120
"""After so long the process is killed, whatever it waits for: a run that an operator starts waits for it."""


def main(folder: str, run: str, parent: int, names: Collection[str]) -> int:
    """Send the adapter of a run to these merchants.

    Returns:
        0, or 2 where it cannot be sent.
    """
    signal.alarm(MOST_SECONDS)
    log_visibly()
    logging.basicConfig(format="%(asctime)s %(message)s", force=True)  # what is imported above has set it up its own way
    logging.getLogger("flwr").setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with watching(_log):
            deliver_to(ServerFolder.open(Path(folder)), RunFolder.open(Path(run)), names, SECONDS)
    except (InputError, OSError) as error:
        log.error("delivery: %s", error)
        return 2
    return 0


def _end_with(parent: int) -> None:
    # Not by a signal: one that a thread raises does not wake another that waits for an answer.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _log(event: str, fields: dict[str, Any]) -> None:
    if event == "delivered":
        log.info("delivery: %s: %s", fields["merchant"], fields["outcome"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
