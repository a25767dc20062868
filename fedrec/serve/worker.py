"""The one thread that ranks, and the bounded queue before it.

One thread and no more, since it is the processor that a list takes, and an encoder holds one adapter's LoRA at a time. What
waits for it and is of one kind is worked on together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fedrec.serve.faults import Fault

__all__ = ["Worker"]

Batch = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True, eq=False)
class _Job:
    batch: Batch
    asked: Any
    group: Hashable | None
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Worker:
    """Works on what it is given, first come first served.

    Args:
        most: how many may wait.
        together: how many of one group are worked on in one go.
    """

    def __init__(self, most: int, together: int) -> None:
        self._most, self._together = most, together
        self._jobs: deque[_Job] = deque()
        self._there = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="ranking", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    async def do(self, batch: Batch, asked: Any, seconds: float, group: Hashable | None = None) -> Any:
        """What `batch` answers to `asked`; an answer that is an exception is raised.

        Args:
            batch: from a list of what is asked to a list of answers. Those of one group are the same function.
            group: what may be asked in one list; None for what is asked alone.

        Raises:
            Fault: too much waits (429), or it takes longer than `seconds` (503). What has begun is then finished in vain.
        """
        loop = asyncio.get_running_loop()
        job = _Job(batch, asked, group, loop.create_future(), loop)
        with self._there:
            if not self._open:
                raise Fault(503, "stopping", "the service is being stopped", retry_after=1)
            if len(self._jobs) >= self._most:
                raise Fault(429, "queue_full", "too many requests wait for an answer", retry_after=1)
            self._jobs.append(job)
            self._there.notify()
        try:
            async with asyncio.timeout(seconds):
                return await job.future
        except TimeoutError:
            raise Fault(503, "time_limit", f"there was no answer within {seconds:g} seconds", retry_after=1) from None
        finally:
            if job.future.cancelled():  # nobody waits for it any more, so it takes nobody's place
                with self._there, suppress(ValueError):
                    self._jobs.remove(job)

    def close(self) -> None:
        """Finish what waits, and end."""
        with self._there:
            self._open = False
            self._there.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            try:
                found = list(jobs[0].batch([job.asked for job in jobs]))
            except Exception as error:  # it is answered, and the thread goes on
                found = [error] * len(jobs)
            for job, answer in zip(jobs, found, strict=True):
                job.loop.call_soon_threadsafe(_settle, job.future, answer)

    def _next(self) -> list[_Job]:
        """The next job and those that can be done with it; none where there will be no more."""
        with self._there:
            while True:
                while self._jobs and self._jobs[0].future.done():  # nobody waits for it any more
                    self._jobs.popleft()
                if self._jobs:
                    break
                if not self._open:
                    return []
                self._there.wait()
            first = self._jobs.popleft()
            if first.group is None:
                return [first]
            same = [job for job in self._jobs if job.group == first.group and not job.future.done()][: self._together - 1]
            if same:
                taken = set(map(id, same))
                self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            return [first, *same]


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
