"""What the SuperNode is made to do otherwise than Flower would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from clients import worker
from clients.supernode import LOOP, PULL, SOON, WHILE, Watch, forgetting_ended_runs, minding_late_replies

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


@pytest.mark.parametrize("mended", [True, False])
def test_a_message_whose_run_ends_while_it_is_fetched_is_forgotten(mended: bool) -> None:
    store = ObjectStoreFactory().store()
    state: Any = InMemoryNodeState(store)
    state.store_run(Run.create_empty(RUN))
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__.update(_message_id=message.object_id, _run_id=RUN)

    def ended(*_: Any) -> bytes:
        raise RunNotRunningException

    flowers = getattr(sys.modules[LOOP], PULL)
    step = forgetting_ended_runs(flowers) if mended else flowers
    nothing: dict[str, Any] = dict.fromkeys(["node_config", "get_run", "get_fab", "trusted_entities"])
    found = step(
        state=state, object_store=store, receive=lambda: (message, get_object_tree(message)),
        pull_object=ended, confirm_message_received=ended, **nothing,
    )  # fmt: skip
    assert found is None
    (task,) = state.get_tasks()
    # Without it Flower's worker may take the task, and waits for the rest of the message.
    assert (state.claim_task(task.task_id) is None) == mended
    assert bool(state.msg_store) != mended


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


@pytest.mark.parametrize("error", [RunNotRunningException(), ObjectPullError("object", "gone"), RuntimeError("no message")])
def test_a_request_that_is_withdrawn_while_it_is_fetched_is_answered_to_nobody(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def withdrawn(_: Any) -> Any:
        raise error

    monkeypatch.setattr(worker, "pull_task_input", withdrawn)
    nothing: Any = None
    with caplog.at_level("INFO", logger="fedrec.merchant"):
        worker.answer(nothing, nothing, Path())
    assert "withdrawn" in caplog.text
