"""What takes longer than an answer may: one question at a time, on a thread of its own, beside the one that ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar, cast

from fedrec.serve.faults import Fault

__all__ = ["Background"]

Found = TypeVar("Found")


class Background(Generic[Found]):
    """The last answer, and the thread that works on the next.

    Args:
        doing: what it does, as the `error_type` of whoever is to ask again.
        keep: seconds after which an answer that nobody asks for leaves memory; by default it stays until the next.
    """

    def __init__(self, doing: str, keep: float | None = None) -> None:
        self._doing, self._keep = doing, keep
        self._thread = ThreadPoolExecutor(1, doing)
        self._last: tuple[Hashable, Future[Any]] | None = None
        self._leaving: asyncio.TimerHandle | None = None

    async def of(self, key: Hashable, work: Callable[[], Found], seconds: float) -> Found:
        """What `work` returns or raises. What takes longer goes on, and is there when somebody asks again.

        Args:
            key: what is asked: while it is the same, and did not fail, nothing is worked on twice.

        Raises:
            Fault: it takes longer than `seconds` (503), or another question is worked on (429).
        """
        if self._last is not None and self._last[0] != key and not self._last[1].done():
            raise Fault(429, "busy", f"another one is {self._doing}", retry_after=5)
        if self._last is None or self._last[0] != key or (self._last[1].done() and self._last[1].exception() is not None):
            self._last = None  # before the next is there: both may be large
            self._last = key, self._thread.submit(work)
        self._stay()
        try:
            async with asyncio.timeout(seconds):
                return cast(Found, await asyncio.shield(asyncio.wrap_future(self._last[1])))
        except TimeoutError:
            raise Fault(503, self._doing, f"it is still {self._doing}; ask again", retry_after=2) from None

    def close(self) -> None:
        """Finish what has begun."""
        self._thread.shutdown()

    def _stay(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        if self._keep is not None:
            self._leaving = asyncio.get_running_loop().call_later(self._keep, self._leave)

    def _leave(self) -> None:
        if self._last is not None and self._last[1].done():
            self._last = None
        else:
            self._stay()
