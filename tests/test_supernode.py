"""What the SuperNode is made to do otherwise than Flower would."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from clients.supernode import LOOP, PULL, SOON, WHILE, Watch, minding_late_replies

from .test_strategy_deployed import identity  # noqa: F401

RUN = 7
pytestmark = pytest.mark.usefixtures("identity")


def stored(state: InMemoryNodeState, name: str, reply_to: Message | None = None) -> Message:
    message = Message(RecordDict(), 1, "train") if reply_to is None else Message(RecordDict(), reply_to=reply_to)
    message.metadata.__dict__.update(_message_id=name, _run_id=RUN)
    state.store_message(message)
    return message


def test_a_reply_that_is_there_is_sent_though_no_message_came() -> None:
    state: Any = InMemoryNodeState(ObjectStoreFactory().store())
    # Flower's own step, to which the server has nothing to give.
    step = minding_late_replies(getattr(sys.modules[LOOP], PULL))
    nothing: dict[str, Any] = dict.fromkeys(
        ["object_store", "node_config", "get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities"]
    )

    def look() -> int | None:
        return step(state=state, receive=lambda: None, **nothing)

    assert look() is None
    request = stored(state, "request")
    assert look() is None
    stored(state, "reply", request)
    assert look() == RUN
    assert [one.metadata.message_id for one in state.get_messages_legacy(is_reply=True)] == ["reply"]
    assert look() is None


def test_after_a_message_the_next_look_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now, slept = [100.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    watch, found = Watch(), [None, 7, None, None]
    pull = watch.noting(lambda **_: found.pop(0))
    for later in (0.0, 0.0, WHILE - 1, WHILE + 1):
        now[0] = 100.0 + later
        assert pull() in (None, 7)
        watch.sleep(3)
    assert slept == [3, SOON, SOON, 3]
    assert watch.time is time.time
