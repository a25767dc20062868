"""`fedrec merchant fit` in a process of its own, at low priority, that ends with the worker whose delivery began it.

What it does not get to, the next start of the node begins again. It only waits, so it imports next to nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from fedrec.text import log_visibly

__all__ = ["main"]

log = logging.getLogger("fedrec.merchant")

NICE = 10
LOOK_EVERY = 0.2
GRACE = 5.0
"""Seconds that the fit has to end by itself."""


def main(folder: str, parent: int) -> int:
    """Wait for the fit to end, and end it where the process that started this one is gone.

    Returns:
        The fit's exit status.
    """
    log_visibly()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, _end)
    os.nice(NICE)
    fit = subprocess.Popen([sys.executable, "-m", "fedrec.cli.main", "merchant", "fit", folder])
    try:
        while fit.poll() is None and os.getppid() == parent:
            time.sleep(LOOK_EVERY)
    finally:
        if fit.poll() is None:
            fit.terminate()
            try:
                fit.wait(GRACE)
            except subprocess.TimeoutExpired:
                fit.kill()
                fit.wait()
        log.info("the fit ended with status %s", fit.returncode)
    return int(fit.returncode)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
