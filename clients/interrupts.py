"""Ctrl-C at a better moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["put_off"]


@contextmanager
def put_off() -> Iterator[None]:
    """Obey Ctrl-C when the block is done; obey a second one at once.

    Python runs signal handlers in the main thread only, so in another one there is nothing to do.
    """
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        yield
        return
    came: list[FrameType | None] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            known(number, frame)
        came.append(frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, known)
        if came:  # also where the block failed: an error that is handled must not make it forgotten
            known(signal.SIGINT, came[0])
