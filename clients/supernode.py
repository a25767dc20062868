"""Flower's SuperNode as a child of the merchant's process: it does not outlive it.

Nor does it follow redirects, as Flower's client would: a server could send a merchant's
signed requests to any address, unencrypted ones included. It sends late replies, forgets a
message whose run ended on the way, and looks for messages more often while there are some: a
secure sum is five in a row.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partialmethod, wraps
from typing import Any

import httpx
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedrec.text import log_visibly

__all__ = ["Watch", "forgetting_ended_runs", "minding_late_replies"]

LOOP = "flwr.supernode.start_client_internal"
PULL, CLOCK = "_pull_and_store_message", "time"
SOON, WHILE = 0.5, 20.0
"""Seconds between two looks for a message, for so many seconds after one; else Flower's three."""


class Watch:
    """Python's `time` for Flower's loop, whose sleep between two looks for a message is short after there was one."""

    def __init__(self) -> None:
        self.last = -math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep so long, or `SOON` at most while a message is less than `WHILE` ago."""
        time.sleep(min(seconds, SOON) if time.monotonic() - self.last < WHILE else seconds)

    def noting(self, pull: Callable[..., int | None]) -> Callable[..., int | None]:
        """Flower's step that takes the next message, which notes when there was one."""

        def step(**arguments: Any) -> int | None:
            run_id = pull(**arguments)
            if run_id is not None:
                self.last = time.monotonic()
            return run_id

        return step


def minding_late_replies(pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """Flower's step that takes the next message, made to report one too when there are replies to be sent.

    Flower sends replies only after it took a message, and then those that are there. A run that ends while a node
    takes its message leaves a reply too many; from then on Flower would send every answer one message late, which
    for the server is never.
    """

    def step(*, state: InMemoryNodeState, **others: Any) -> int | None:
        run_id = pull(state=state, **others)
        if run_id is not None:
            return run_id
        with state.lock_msg_store:
            waiting = (one for one in state.msg_store.values() if not one.is_retrieved)
            late = [one.message.metadata.run_id for one in waiting if one.message.metadata.reply_to_message_id]
        return late[0] if late else None

    return step


def forgetting_ended_runs(pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """Flower's step that takes the next message, made to forget one whose run ends before all of it is here.

    Flower hands a message to the worker as soon as it is announced, and takes it back if the rest cannot be
    fetched, but not where the reason is that the run has ended: the worker would wait for the rest, and the node
    answer nobody, for a minute.
    """

    def failing(fetch: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fetch)
        def one(*arguments: Any) -> Any:
            try:
                return fetch(*arguments)
            except RunNotRunningException:  # no Exception, so Flower's step for what cannot be fetched misses it
                raise RuntimeError("the run has ended") from None

        return one

    def step(*, pull_object: Callable[..., Any], confirm_message_received: Callable[..., Any], **others: Any) -> int | None:
        return pull(pull_object=failing(pull_object), confirm_message_received=failing(confirm_message_received), **others)

    return step


if __name__ == "__main__":
    httpx.Client.send = partialmethod(httpx.Client.send, follow_redirects=False)  # type: ignore[method-assign,assignment]
    loop, watch = sys.modules[LOOP], Watch()
    setattr(loop, PULL, watch.noting(minding_late_replies(forgetting_ended_runs(getattr(loop, PULL)))))
    setattr(loop, CLOCK, watch)
    log_visibly()
    start_parent_process_monitor(int(sys.argv.pop(1)))
    flower_supernode()
