"""Records to values and back: the only module of `fedrec` that knows Flower's messages.

It also holds the list of what may be sent. A reply is checked against that list on the
merchant's side, before it leaves, and again by the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import TypeAdapter, ValidationError

from fedrec.config import Unit
from fedrec.model.adapter import Arrays
from fedrec.training.round import RoundTask
from fedrec.training.update_code import SCALES, buckets

__all__ = [
    "HISTOGRAM",
    "STATEMENT_KEYS",
    "UNKNOWN",
    "HistogramTask",
    "Reply",
    "Statement",
    "WireError",
    "decode_histogram_task",
    "decode_reply",
    "decode_train",
    "encode_histogram_task",
    "encode_reply",
    "encode_train",
    "from_record",
    "size",
    "to_record",
]

ARRAYS, TASK, PUBLIC, STATEMENT = "arrays", "task", "public", "statement"
HISTOGRAM, KEYS = "histogram", "keys"
UNKNOWN = "?"
"""The name of a merchant who cannot read its own settings; no merchant's name."""


class WireError(ValueError):
    """A message that holds what it must not, or lacks what it must have."""


@dataclass(frozen=True)
class HistogramTask:
    """What the server asks for the popularity prior."""

    run: str
    noise_multiplier: float
    delta: float
    unit: Unit


@dataclass(frozen=True)
class Statement:
    """The privacy statement: everything that a reply says besides its noisy arrays.

    `merchant` and `population` are public declarations of the policy; `run` and `round` say what
    is answered; the rest is the mechanism, and what the ledger adds up to. Nothing here is
    computed from users' data.
    """

    merchant: str
    status: Literal["ok", "declined"]
    reason: str = ""
    run: str = ""
    round: int = 0
    mechanism: str = ""
    unit: str = ""
    trust: str = "local"
    noise_multiplier: float = 0.0
    sample_rate: float = 0.0
    steps: int = 0
    clip_norm: float = 0.0
    population: int = 0
    epsilon_spent: float = 0.0
    epsilon_budget: float = 0.0
    delta: float = 0.0
    accountant: str = ""
    simulated: bool = False


STATEMENT_KEYS = frozenset(Statement.__dataclass_fields__)


@dataclass(frozen=True)
class Reply:
    """A merchant's answer: noisy arrays (empty when declined) and its statement."""

    arrays: Arrays
    statement: Statement


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """A record's arrays.

    Raises:
        WireError: the bytes of one are not an array.
    """
    out: Arrays = {}
    for name, value in record.items():
        try:
            out[name] = value.numpy()
        except Exception:  # numpy raises many kinds, and the bytes are someone else's
            raise WireError(f"array {name}: its bytes are not an array") from None
        if not isinstance(out[name], np.ndarray):  # an archive opens as something else
            raise WireError(f"array {name}: its bytes are not an array")
    return out


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
    public = _finite(from_record(_arrays(message, PUBLIC))) if PUBLIC in message.content else None
    return _validated(RoundTask, config), _trained(from_record(_arrays(message, ARRAYS))), digest, public


def encode_histogram_task(task: HistogramTask, keys: np.ndarray) -> RecordDict:
    """A request for the popularity of the texts with these keys."""
    return RecordDict({ARRAYS: to_record({KEYS: keys}), TASK: ConfigRecord(asdict(task))})


def decode_histogram_task(message: Message) -> tuple[HistogramTask, np.ndarray]:
    """The request's task and text keys (uint64).

    Raises:
        WireError: the request is malformed.
    """
    return _validated(HistogramTask, dict(message.content[TASK])), from_record(_arrays(message, ARRAYS))[KEYS]


def encode_reply(reply: Reply) -> RecordDict:
    """A merchant's answer.

    Raises:
        WireError: an array is neither float32 nor an int8 code with its scales; nothing else
            can get in by construction.
    """
    for name, value in reply.arrays.items():
        if value.dtype == np.int8:
            scales = reply.arrays.get(name + SCALES)
            if scales is None or scales.shape != (buckets(value.size),):
                raise WireError(f"array {name}: int8 without its scales")
        elif value.dtype != np.float32:
            raise WireError(f"array {name}: expected float32, found {value.dtype}")
    return RecordDict({ARRAYS: to_record(reply.arrays), STATEMENT: ConfigRecord(asdict(reply.statement))})


def decode_reply(message: Message) -> Reply:
    """What a merchant answered.

    Raises:
        WireError: the reply holds anything but arrays and a statement.
    """
    if set(message.content) != {ARRAYS, STATEMENT}:
        raise WireError(f"expected the records {ARRAYS} and {STATEMENT}, found {sorted(message.content)}")
    return Reply(from_record(_arrays(message, ARRAYS)), _validated(Statement, dict(message.content[STATEMENT])))


def size(records: RecordDict) -> int:
    """Bytes of a message's content: names, arrays and settings as serialised."""
    total = 0
    for name, record in records.items():
        total += len(name)
        for key, value in record.items():
            payload = value.data if isinstance(value, Array) else str(value).encode()
            total += len(key) + len(payload)
    return total


def _arrays(message: Message, name: str) -> ArrayRecord:
    record = message.content.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"record {name!r}: expected arrays")
    return record


def _validated(kind, values):  # type: ignore[no-untyped-def]
    unknown = set(values) - set(kind.__dataclass_fields__)
    if unknown:
        raise WireError(f"{kind.__name__}: there is no field {sorted(unknown)[0]!r}")
    try:
        checked = _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise WireError(f"{kind.__name__}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name, value in vars(checked).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise WireError(f"{kind.__name__}.{name}: a number is not finite")
    return checked


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _trained(arrays: Arrays) -> Arrays:
    for name, value in arrays.items():
        if value.dtype != np.float32:
            raise WireError(f"array {name}: expected float32, found {value.dtype}")
    return _finite(arrays)


def _finite(arrays: Arrays) -> Arrays:
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise WireError(f"array {name}: a number is not finite")
    return arrays
