"""Processes that answer for merchants side by side, on the cores or GPUs there are.

Each holds one model and the merchant it is busy with; what a merchant must remember is on
disk, so that any of them can answer for it. The trunk's cache is memory-mapped, and the
pages of it are the same for all.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedrec.text import log_visibly

__all__ = ["Job", "Workers"]

Job = tuple[Message, Context]
READY = "ready"

log = logging.getLogger("fedrec.workers")


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection


class Workers:
    """So many processes; a context manager, at whose end they have ended too.

    Ctrl-C reaches every process of a terminal. A worker does not listen to it, since the merchant
    it is busy with may have paid: it goes on to the reply, which is stored, and then ends. A second
    Ctrl-C, while this waits for it, kills it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        try:
            for number in range(self._count):
                self._workers.append(self._start(number))
            for worker in self._workers:
                self._until_ready(worker)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Message]]:
        """The number of each job and its reply, in the order in which they come.

        A job is given out once. Where its worker dies, the merchant may have paid: its reply is
        Flower's error, and another worker takes the dead one's place.

        Raises:
            RuntimeError: a worker cannot be started.
        """
        waiting = enumerate(jobs)
        busy: dict[int, tuple[int, Message]] = {}
        for number in range(self._count):
            self._give_next(number, waiting, busy)
        while busy:
            ready = wait([self._workers[number].connection for number in busy])
            for number in [number for number in busy if self._workers[number].connection in ready]:
                place, message = busy.pop(number)
                try:
                    reply = self._workers[number].connection.recv()
                except (EOFError, OSError):
                    reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "its process died"), reply_to=message)
                    self._replace(number)
                self._give_next(number, waiting, busy)
                yield place, reply

    def close(self) -> None:
        """Let every worker finish its merchant, and end."""
        for worker in self._workers:
            worker.connection.close()
        try:
            for worker in self._workers:
                worker.process.join()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
            self._workers = []

    def _give_next(self, number: int, waiting: Iterator[tuple[int, Job]], busy: dict[int, tuple[int, Message]]) -> None:
        for place, job in waiting:
            try:
                self._workers[number].connection.send(job)
            except OSError:  # it died idle: this merchant was never asked
                self._replace(number)
                self._workers[number].connection.send(job)
            busy[number] = place, job[0]
            return

    def _replace(self, number: int) -> None:
        self._workers[number].connection.close()
        self._workers[number].process.join()
        self._workers[number] = self._start(number)
        self._until_ready(self._workers[number])

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        threads = max(1, torch.get_num_threads() // self._count)
        process = context.Process(target=_work, args=(there, number, threads), daemon=True)
        resource_tracker.ensure_running()  # else started on the way, and SIGINT unblocked after it
        # A process starts with the signals blocked that its parent has blocked, and so never hears of Ctrl-C.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        there.close()  # so that the pipe ends when the worker does
        return _Worker(process, here)

    def _until_ready(self, worker: _Worker) -> None:
        try:
            worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise RuntimeError(f"a worker could not start: it ended with status {worker.process.exitcode}") from None


def _work(connection: Connection, number: int, threads: int) -> None:
    """Answer until the other end of the pipe is closed, be it by death."""
    for category in (DeprecationWarning, FutureWarning):  # of other packages, which would come between the progress bars
        warnings.simplefilter("ignore", category)
    log_visibly()
    from clients.app import app

    torch.set_num_threads(threads)
    _take_gpu(number)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    with contextlib.suppress(EOFError, OSError):
        connection.send(READY)
        while True:
            connection.send(_reply(app, *connection.recv()))


def _take_gpu(number: int) -> None:
    """Which GPU the devices `auto` and `cuda` are in this process: the workers take them in turn."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _reply(app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:
        log.exception("the request failed")
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed"), reply_to=message)
