"""The strategy over Flower's deployed grid: who counts as whom, who is waited for, and what is said of those who fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedrec import wire
from fedrec.config import RunConfig
from fedrec.model import Arrays, Scoring
from fedrec.privacy import NoisePlan
from fedrec.wire import UNKNOWN, Reply, Statement
from server import strategy as module
from server.progress import watching
from server.run_folder import ServerState
from server.strategy import NobodyLeft, PrivateLora, TooFewMerchants

RUN, SIGMA, HEADS = "run", 2.0, {"heads.history.B": (4, 2), "heads.candidate.B": (4, 2)}
MERCHANTS = {11: "anna", 12: "bert", 13: "cleo"}
Answer = Callable[[Message, str], Message | None]


class Town(HttpGrid):
    """Flower's deployed grid over nodes in this process.

    Args:
        merchants: the registered nodes' names, at each look; the last look holds from then on.
        answers: what a node answers, by name; None is silence, and whoever is not named is honest.
    """

    def __init__(self, *merchants: dict[int, str], **answers: Answer) -> None:
        super().__init__("127.0.0.1:9", insecure=True, token="unused")
        self.looks, self.answers, self.asked = list(merchants), answers, list[Message]()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Who is connected."""
        now = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return [NodeInfo(node_id=node, name=name, status="online") for node, name in now.items()]

    def get_node_ids(self) -> Iterable[int]:
        """The same who were there at the last `get_nodes`."""
        return list(self.looks[0])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Everybody answers at once."""
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            self.asked.append(message)
            name = self.looks[-1][message.metadata.dst_node_id]
            replies.append(self.answers.get(name, honest)(message, name))
        return [reply for reply in replies if reply is not None]


def statement_of(message: Message, name: str, **changes: Any) -> Statement:
    """What an honest merchant says to a task."""
    number: Any = message.content.config_records["task"].get("round", 0)
    return replace(Statement(name, "ok", run=RUN, round=number, noise_multiplier=SIGMA, population=100), **changes)


def replied(message: Message, statement: Statement, value: float = 0.01) -> Message:
    """A reply with small arrays."""
    arrays: Arrays = {key: np.full(shape, value, np.float32) for key, shape in HEADS.items()}
    if message.metadata.message_type == "train.histogram":
        arrays = {wire.HISTOGRAM: np.ones(3, np.float32)}
    if statement.status == "declined":
        arrays = {}
    return Message(wire.encode_reply(Reply(arrays, statement)), reply_to=message)


def honest(message: Message, name: str) -> Message:
    """As the protocol has it."""
    return replied(message, statement_of(message, name))


def saying(**changes: Any) -> Answer:
    """An answer whose statement is changed on the way, by a sender whose own encoder refuses nothing."""

    def answer(message: Message, name: str) -> Message:
        honestly = statement_of(message, name, **{key: value for key, value in changes.items() if key == "status"})
        reply = replied(message, honestly)
        reply.content["statement"] = ConfigRecord({**reply.content.config_records["statement"], **changes})
        return reply

    return answer


def silent(message: Message, name: str) -> None:
    """No answer."""


def forged(name: str, node: int, request: str = "forged") -> Answer:
    """An answer whose metadata, which its sender writes, name another node and another request."""

    def answer(message: Message, _: str) -> Message:
        reply = replied(message, statement_of(message, name), value=0.02)
        reply.metadata.__dict__["_src_node_id"] = node
        reply.metadata.__dict__["_reply_to_message_id"] = request
        return make_message(metadata=reply.metadata, content=reply.content)

    return answer


def failing(code: int, reason: str = "customer-7-secret") -> Answer:
    """An error about a node; the SuperLink is who tells of it, so it is who the sender is."""

    def answer(message: Message, _: str) -> Message:
        reply = Message(Error(code, reason), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return reply

    return answer


def strategy_of(**settings: Any) -> PrivateLora:
    """The strategy before round 1 of a small run."""
    small = {"rounds": 2, "encoder_rounds": 0, "encoder_layers": 0, "rank": 2, "min_lot": 1, "wait_timeout": 0.2}
    trained = {name: np.zeros(shape, np.float32) for name, shape in HEADS.items()}
    public = {"heads.A": np.ones((2, 4), np.float32)}
    state = ServerState(RUN, 0, trained, public, {}, Scoring(1.0, 0.1, 1.0))
    return PrivateLora(RunConfig(**{**small, **settings}), NoisePlan(SIGMA, SIGMA, None), state, "trunk")


def play(strategy: PrivateLora, town: Town, number: int = 1) -> PrivateLora:
    """One round, as Flower's `Strategy.start` plays it."""
    messages = strategy.configure_train(number, ArrayRecord(), ConfigRecord(), town)
    strategy.aggregate_train(number, town.send_and_receive(messages))
    return strategy


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is a ServerApp's, and looks often."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
    monkeypatch.setattr(module, "WAIT_STEP", 0.01)
    yield
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, before[name])


# Waiting


@pytest.mark.parametrize("needed", ["min_merchants", "start_merchants"])
def test_too_few_merchants_stop_the_run_and_are_counted(needed: str) -> None:
    strategy, town = strategy_of(**{needed: 3, "wait_timeout": 0.05}), Town({11: "anna", 12: "bert"})
    with pytest.raises(TooFewMerchants, match=r"2 merchants are connected, 3 are needed, waited 0\.05 s"):
        if needed == "min_merchants":
            play(strategy, town)
        else:
            strategy.collect_priors(town, np.arange(3, dtype=np.uint64), 1.0)
    assert town.asked == []


def test_a_merchant_who_comes_while_the_server_waits_takes_part() -> None:
    town, events = Town({}, {11: "anna"}, {11: "anna"}, MERCHANTS), list[tuple[str, dict[str, Any]]]()
    with watching(lambda event, fields: events.append((event, fields))):
        strategy = play(strategy_of(min_merchants=3, wait_timeout=30), town)
    assert strategy.record.took_part == ["anna", "bert", "cleo"]
    waited = [fields for event, fields in events if event == "waiting"]
    assert waited and all(fields["needed"] == 3 and fields["there"] < 3 for fields in waited)


def test_a_server_that_waits_gives_up_on_time() -> None:
    began = time.monotonic()
    with pytest.raises(TooFewMerchants):
        play(strategy_of(wait_timeout=0.3), Town({}))
    assert 0.3 <= time.monotonic() - began < 1.5


def test_those_who_are_there_are_asked_again_in_every_round() -> None:
    town = Town(MERCHANTS)
    strategy = play(strategy_of(), town)
    town.looks = [{11: "anna", 13: "cleo"}]
    play(strategy, town, 2)
    assert strategy.record.took_part == ["anna", "cleo"] and strategy.record.refused == {}
    assert [message.metadata.dst_node_id for message in town.asked] == [11, 12, 13, 11, 13]


# What is sent


def test_a_request_expires_when_its_round_does() -> None:
    town = Town(MERCHANTS)
    play(strategy_of(round_timeout=7.0), town)
    strategy_of().collect_priors(town, np.arange(3, dtype=np.uint64), 5.0)
    expires = [(one.metadata.message_type, one.metadata.ttl) for one in town.asked]
    assert expires == [("train", 7.0)] * 3 + [("train.histogram", 5.0)] * 3


def test_only_who_has_answered_goes_without_the_public_part() -> None:
    town = Town(MERCHANTS, bert=silent, cleo=saying(status="declined", reason="needs the public part of the adapter"))
    strategy = play(strategy_of(), town)
    play(strategy, town, 2)
    with_public = [one.metadata.dst_node_id for one in town.asked if wire.PUBLIC in one.content]
    assert with_public == [11, 12, 13, 12, 13]


# Who is whom


def test_merchants_go_by_the_names_of_their_registered_keys() -> None:
    strategy = play(strategy_of(), Town(MERCHANTS, bert=silent))
    assert strategy.record.took_part == ["anna", "cleo"]
    assert strategy.record.refused == {"bert": "did not answer in time"}
    assert set(strategy.record.bytes_up) == {"anna", "cleo"} == set(strategy.record.privacy)


@pytest.mark.parametrize("claimed", ["anna", "cleo", "nobody"])
def test_a_reply_in_anothers_name_is_refused_under_the_senders_own(claimed: str) -> None:
    strategy = play(strategy_of(), Town(MERCHANTS, bert=saying(merchant=claimed)))
    assert strategy.record.took_part == ["anna", "cleo"]
    assert strategy.record.refused == {"bert": f"says that it is {claimed}, whose key it does not have"}
    assert "bert" not in strategy.record.privacy


def test_a_decline_in_anothers_name_ends_nothing() -> None:
    """If it counted, a single merchant could end the run for all."""
    one = Town({12: "bert"}, bert=saying(merchant="anna", status="declined", reason="budget: spent"))
    strategy = play(strategy_of(), one)
    assert strategy.record.declined == {} and list(strategy.record.refused) == ["bert"]
    with pytest.raises(NobodyLeft, match="budget"):
        play(strategy_of(), Town({12: "bert"}, bert=saying(status="declined", reason="budget: spent")))


@pytest.mark.parametrize(
    "node",
    [
        1,
        2**62,
    ],
    ids=["before its victim", "after its victim"],
)
def test_a_forged_origin_takes_nobodys_place(node: int) -> None:
    """Flower checks the envelope, but the metadata that a reply brings inside are its sender's word."""
    strategy = play(strategy_of(), Town(MERCHANTS, cleo=forged("anna", node)))
    assert strategy.record.took_part == ["anna", "bert"]
    assert "anna" not in strategy.record.refused and "cleo" in strategy.record.refused
    without = play(strategy_of(), Town(MERCHANTS, cleo=silent))
    assert all(np.array_equal(value, without.state.trained[name]) for name, value in strategy.state.trained.items())


def test_who_connects_between_two_looks_has_a_name_too() -> None:
    town = Town({11: "anna", 12: "bert"}, MERCHANTS, cleo=saying(merchant="dora"))
    strategy = play(strategy_of(), town)
    assert "dora" not in strategy.record.took_part


# What is said of those who fail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (ErrorCode.NODE_UNAVAILABLE, "went offline before it answered"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "its ClientApp failed"),
        (ErrorCode.CLIENT_APP_CRASHED, "its ClientApp was killed"),
        (ErrorCode.MESSAGE_UNAVAILABLE, "the request expired"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "its reply expired"),
        (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, f"error {ErrorCode.LOAD_CLIENT_APP_EXCEPTION}"),
    ],
)
def test_an_error_is_told_under_the_name_of_the_node_that_it_is_about(code: int, said: str) -> None:
    strategy = play(strategy_of(), Town(MERCHANTS, bert=failing(code)))
    assert strategy.record.refused == {"bert": said}
    assert strategy.record.took_part == ["anna", "cleo"]


def test_two_errors_in_a_round_are_told_apart() -> None:
    town = Town(MERCHANTS, anna=failing(ErrorCode.NODE_UNAVAILABLE), cleo=failing(ErrorCode.CLIENT_APP_CRASHED))
    refused = play(strategy_of(), town).record.refused
    assert refused == {"anna": "went offline before it answered", "cleo": "its ClientApp was killed"}


@pytest.mark.parametrize(
    ("stale", "said"),
    [
        ({"round": 2}, "answers round 2 of run run, asked for 1 of run"),
        ({"round": 0}, "answers round 0 of run run, asked for 1 of run"),
        ({"run": "other"}, "answers round 1 of run other, asked for 1 of run"),
    ],
)
def test_a_stale_reply_is_refused_and_says_what_it_answers(stale: dict[str, Any], said: str) -> None:
    strategy = play(strategy_of(), Town(MERCHANTS, bert=saying(**stale)))
    assert strategy.record.refused == {"bert": said}
    assert strategy.record.took_part == ["anna", "cleo"]


def test_a_reply_to_the_round_before_is_refused_in_the_next() -> None:
    kept: list[Message] = []

    def late(message: Message, name: str) -> Message:
        kept.append(honest(message, name))
        return kept[0]

    town = Town(MERCHANTS, bert=late)
    strategy = play(strategy_of(), town)
    assert strategy.record.took_part == ["anna", "bert", "cleo"]
    play(strategy, town, 2)
    assert strategy.record.refused == {"bert": "answers round 1 of run run, asked for 2 of run"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise_multiplier": SIGMA / 2}, "noise_multiplier 1 is under the task's 2"),
        ({"noise_multiplier": float("nan")}, "Statement.noise_multiplier: a number is not finite"),
        ({"population": 0}, "declares no population"),
    ],
)
def test_a_statement_that_breaks_the_task_is_refused(changes: dict[str, Any], said: str) -> None:
    assert play(strategy_of(), Town(MERCHANTS, bert=saying(**changes))).record.refused == {"bert": said}


def test_what_is_not_a_reply_at_all_is_refused_under_its_senders_name() -> None:
    town = Town(MERCHANTS, bert=lambda message, _: Message(RecordDict({"secret": ConfigRecord({"a": 1})}), reply_to=message))
    refused = play(strategy_of(), town).record.refused
    assert list(refused) == ["bert"] and "expected the records" in refused["bert"]


def test_nobody_is_left_out_of_the_record() -> None:
    """Of everyone who was asked, one line says what became of it."""
    town = Town(MERCHANTS, anna=silent, bert=failing(ErrorCode.NODE_UNAVAILABLE), cleo=saying(status="declined", reason="no"))
    record = play(strategy_of(), town).record
    assert {*record.took_part, *record.declined, *record.refused} == set(MERCHANTS.values())
    assert record.declined == {"cleo": "no"}


def test_a_merchant_that_cannot_tell_its_name_is_no_impostor() -> None:
    """`clients.merchant` declines as `unknown` when data or settings are broken: its operator must not look for a thief."""
    town = Town(MERCHANTS, bert=saying(merchant=UNKNOWN, status="declined", reason="failed: InputError"))
    record = play(strategy_of(), town).record
    assert {**record.declined, **record.refused} == {"bert": "failed: InputError"}
