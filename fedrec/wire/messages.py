"""Requests and replies as Flower's messages, encoded and decoded."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedrec.model.adapter import CENTRE, Arrays
from fedrec.model.complements import KINDS, MOST_KINDS
from fedrec.training.round import RoundTask
from fedrec.training.update_code import SCALES, buckets
from fedrec.wire.records import (
    ARRAYS,
    PUBLIC,
    RECEIPT,
    SECURE,
    STATEMENT,
    TASK,
    arrays_of,
    config_of,
    finite,
    from_record,
    to_record,
    trained_of,
    validated,
)
from fedrec.wire.values import (
    KEYS,
    MASKED,
    MOST_TEXTS,
    Announce,
    ComplementTask,
    Delivery,
    HistogramTask,
    Receipt,
    Reply,
    Statement,
    Step,
    Turn,
    WireError,
)

__all__ = [
    "decode_announce",
    "decode_complement_task",
    "decode_delivery",
    "decode_histogram_task",
    "decode_lists",
    "decode_receipt",
    "decode_reply",
    "decode_step",
    "decode_train",
    "delivered_arrays",
    "encode_announce",
    "encode_complement_task",
    "encode_delivery",
    "encode_histogram_task",
    "encode_receipt",
    "encode_reply",
    "encode_step",
    "encode_train",
    "with_step",
]


def encode_train(task: RoundTask, trained: Arrays, public_digest: str, public: Arrays | None) -> RecordDict:
    """A training request; `public` goes along when the merchant may not have it yet."""
    records = RecordDict({ARRAYS: to_record(trained), TASK: ConfigRecord({**asdict(task), "public": public_digest})})
    if public is not None:
        records[PUBLIC] = to_record(public)
    return records


def decode_train(message: Message) -> tuple[RoundTask, Arrays, str, Arrays | None]:
    """The request's task, trained arrays, digest of the public part, and that part if it came along.

    Raises:
        WireError: the request is malformed.
    """
    config = dict(message.content[TASK])
    digest = str(config.pop("public", ""))
    public = finite(from_record(arrays_of(message, PUBLIC))) if PUBLIC in message.content else None
    return validated(RoundTask, config), trained_of(from_record(arrays_of(message, ARRAYS))), digest, public


def encode_histogram_task(task: HistogramTask, keys: np.ndarray) -> RecordDict:
    """A request for the popularity of the texts with these keys."""
    return RecordDict({ARRAYS: to_record({KEYS: keys}), TASK: ConfigRecord(asdict(task))})


def decode_histogram_task(message: Message) -> tuple[HistogramTask, np.ndarray]:
    """The request's task and text keys (uint64).

    Raises:
        WireError: the request is malformed, or has more keys than `MOST_TEXTS`.
    """
    arrays = from_record(arrays_of(message, ARRAYS))
    keys = arrays.get(KEYS)
    if set(arrays) != {KEYS} or keys is None or keys.dtype != np.uint64 or keys.ndim != 1 or keys.size > MOST_TEXTS:
        raise WireError(f"expected the one array {KEYS}: at most {MOST_TEXTS} uint64")
    return validated(HistogramTask, dict(message.content[TASK])), keys


def encode_complement_task(task: ComplementTask, arrays: Arrays) -> RecordDict:
    """A request for which kinds of item share a basket; `arrays` are the centre of the embeddings and those of the kinds."""
    return RecordDict({ARRAYS: to_record(arrays), TASK: ConfigRecord(asdict(task))})


def decode_complement_task(message: Message) -> tuple[ComplementTask, Arrays]:
    """The request's task, and its arrays.

    Raises:
        WireError: the request is malformed, an array is not finite, or there are no kinds or more than `MOST_KINDS`.
    """
    arrays = finite(from_record(arrays_of(message, ARRAYS)))
    kinds, centre = arrays.get(KINDS), arrays.get(CENTRE)
    if (
        kinds is None or centre is None or len(arrays) != 2 or any(one.dtype != np.float32 for one in arrays.values())
        or kinds.ndim != 2 or centre.shape != kinds.shape[1:] or not 1 <= len(kinds) <= MOST_KINDS
    ):  # fmt: skip
        raise WireError(f"expected the arrays {CENTRE} and {KINDS}: float32, of one width, and at most {MOST_KINDS} kinds")
    return validated(ComplementTask, dict(message.content[TASK])), arrays


def encode_delivery(delivery: Delivery, public: Arrays, trained: Arrays) -> RecordDict:
    """An adapter on its way home, in the records that a training request has.

    Raises:
        WireError: what is said of it is not what may be said.
    """
    validated(Delivery, asdict(delivery))
    return RecordDict({ARRAYS: to_record(trained), PUBLIC: to_record(public), TASK: ConfigRecord(asdict(delivery))})


def decode_delivery(message: Message) -> Delivery:
    """What is said of a delivered adapter.

    Raises:
        WireError: the message is malformed, or a number is out of its range.
    """
    record = message.content.get(TASK)
    if not isinstance(record, ConfigRecord) or set(message.content) != {ARRAYS, PUBLIC, TASK}:
        raise WireError(f"expected the records {ARRAYS}, {PUBLIC} and {TASK}")
    delivery: Delivery = validated(Delivery, dict(record))
    if delivery.objective == "next-item" and not delivery.temperature:
        raise WireError("Delivery.temperature: 0, by which nothing is ranked")
    return delivery


def delivered_arrays(message: Message) -> tuple[Arrays, Arrays]:
    """The public part of a delivered adapter, and the trained one; nothing about them is checked yet.

    Raises:
        WireError: there are none, or the bytes of one are not an array.
    """
    return from_record(arrays_of(message, PUBLIC)), from_record(arrays_of(message, ARRAYS))


def encode_receipt(receipt: Receipt) -> RecordDict:
    """A merchant's answer to a delivery.

    Raises:
        WireError: a field is not what it may be.
    """
    validated(Receipt, asdict(receipt))
    return RecordDict({RECEIPT: ConfigRecord(asdict(receipt))})


def decode_receipt(message: Message) -> Receipt:
    """What a merchant answered a delivery.

    Raises:
        WireError: it answered anything but a receipt.
    """
    record = message.content.get(RECEIPT)
    if not isinstance(record, ConfigRecord) or set(message.content) != {RECEIPT}:
        raise WireError(f"expected the record {RECEIPT}")
    return validated(Receipt, dict(record))


def encode_announce(ask: Announce) -> RecordDict:
    """A request for keys."""
    return RecordDict({TASK: ConfigRecord(asdict(ask))})


def decode_announce(message: Message) -> Announce:
    """What keys are asked for.

    Raises:
        WireError: the request is malformed.
    """
    return validated(Announce, dict(message.content[TASK]))


def encode_step(run: str, number: int, step: Step) -> RecordDict:
    """A request for a later step of a secure sum."""
    return RecordDict({TASK: ConfigRecord({"run": run, "round": number}), SECURE: config_of(step)})


def decode_step(message: Message) -> tuple[str, int, Step]:
    """Run, round and lists of a request.

    Raises:
        WireError: the request is malformed.
    """
    asked = validated(Turn, {name: value for name, value in message.content[TASK].items() if name in ("run", "round")})
    return asked.run, asked.round, decode_lists(message)


def decode_lists(message: Message) -> Step:
    """The lists of a message that has some.

    Raises:
        WireError: it has none, or they are malformed.
    """
    record = message.content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise WireError(f"record {SECURE!r}: expected the lists of a secure sum")
    return validated(Step, dict(record))


def with_step(content: RecordDict, step: Step) -> RecordDict:
    """A request with the lists of a secure sum besides; the rest is not copied."""
    return RecordDict({**content, SECURE: config_of(step)})


def encode_reply(reply: Reply) -> RecordDict:
    """A merchant's answer.

    Raises:
        WireError: an array is neither float32 nor an int8 code with its scales nor a masked one, or a field of the
            statement is not what it may be; nothing else can get in by construction.
    """
    validated(Statement, asdict(reply.statement))
    for name, value in reply.arrays.items():
        if name == MASKED and value.dtype == np.uint32 and reply.statement.trust == "secure-aggregation":
            continue
        if value.dtype == np.int8:
            scales = reply.arrays.get(name + SCALES)
            if scales is None or scales.shape != (buckets(value.size),):
                raise WireError(f"array {name}: int8 without its scales")
        elif value.dtype != np.float32:
            raise WireError(f"array {name}: expected float32, found {value.dtype}")
    records = RecordDict({ARRAYS: to_record(reply.arrays), STATEMENT: ConfigRecord(asdict(reply.statement))})
    return records if reply.step is None else with_step(records, reply.step)


def decode_reply(message: Message) -> Reply:
    """What a merchant answered.

    Raises:
        WireError: the reply holds anything but arrays and a statement.
    """
    if not {ARRAYS, STATEMENT} <= set(message.content) <= {ARRAYS, STATEMENT, SECURE}:
        raise WireError(f"expected the records {ARRAYS} and {STATEMENT}, found {sorted(message.content)}")
    step = decode_lists(message) if SECURE in message.content else None
    return Reply(from_record(arrays_of(message, ARRAYS)), validated(Statement, dict(message.content[STATEMENT])), step)
