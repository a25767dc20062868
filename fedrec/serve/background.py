"""What takes longer than an answer may: one question at a time, on a thread of its own, beside the one that ranks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock, Thread
from threading import enumerate as threads
from typing import Any, Generic, TypeVar, cast

from fedrec.serve.faults import Fault

__all__ = ["Background", "unfinished"]

Found = TypeVar("Found")


class Background(Generic[Found]):
    """The last answer, and the thread that works on the next. Nobody waits for that thread when the process ends.

    Args:
        doing: what it does, as the `error_type` of whoever is to ask again.
        keep: seconds after which an answer that nobody asks for leaves memory; by default it stays until the next.
        oldest: seconds after which an answer is worked on anew, also where the same is asked; by default never.
    """

    def __init__(self, doing: str, keep: float | None = None, oldest: float | None = None) -> None:
        self._doing, self._keep, self._oldest = doing, keep, oldest
        self._one_at_a_time = Lock()
        self._last: tuple[Hashable, _Work] | None = None
        self._leaving: asyncio.TimerHandle | None = None

    async def of(self, key: Hashable, work: Callable[[], Found], seconds: float) -> Found:
        """What `work` returns or raises. What takes longer goes on, and is there when somebody asks again.

        Args:
            key: what is asked: while it is the same, nothing is worked on twice. A failure is told once, and then tried again.

        Raises:
            Fault: it takes longer than `seconds` (503), or another question is worked on (429).
        """
        if self._last is not None and self._last[0] != key and not self._last[1].found.done():
            raise Fault(429, "busy", f"another one is {self._doing}", retry_after=5)
        if self._last is None or self._last[0] != key or self._last[1].older_than(self._oldest):
            self._last = None  # before the next is there: both may be large
            self._last = key, _Work(work, self._one_at_a_time, self._doing)
        asked = self._last
        self._stay()
        try:
            async with asyncio.timeout(seconds):
                return cast(Found, await asyncio.shield(asyncio.wrap_future(asked[1].found)))
        except Exception as error:
            if isinstance(error, TimeoutError) and not asked[1].found.done():
                raise Fault(503, self._doing, f"it is still {self._doing}; ask again", retry_after=2) from None
            if self._last is asked:
                self._last = None
            raise

    def drop(self) -> None:
        """Forget what is known, and what is being worked on; whoever waits for that still gets it."""
        self._last = None

    def _stay(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        if self._keep is not None:
            self._leaving = asyncio.get_running_loop().call_later(self._keep, self._leave)

    def _leave(self) -> None:
        if self._last is not None and not self._last[1].found.done():
            self._stay()
        else:
            self._last = None


def unfinished() -> bool:
    """Whether something is still worked on. Python must not shut down under it: its libraries would abort the process."""
    return any(isinstance(thread, _Work) for thread in threads())


class _Work(Thread):
    """Works at once, or when what was dropped before it is done."""

    def __init__(self, work: Callable[[], Any], one_at_a_time: Lock, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.found: Future[Any] = Future()
        self._work: Callable[[], Any] | None = work
        self._one_at_a_time = one_at_a_time
        self._done = 0.0
        self.found.set_running_or_notify_cancel()
        self.start()

    def older_than(self, seconds: float | None) -> bool:
        return seconds is not None and self.found.done() and time.monotonic() - self._done > seconds

    def run(self) -> None:
        assert self._work is not None
        with self._one_at_a_time:
            try:
                found, failure = self._work(), None
            except BaseException as error:
                found, failure = None, error
        self._work, self._done = None, time.monotonic()
        if failure is None:
            self.found.set_result(found)
        else:
            self.found.set_exception(failure)
