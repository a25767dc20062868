"""Records to values and back: the only module of `fedrec` that knows Flower's messages.

It also holds the list of what may be sent. A reply is checked against that list on the
merchant's side, before it leaves, and again by the server.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedrec.config import Trust, Unit
from fedrec.model.adapter import Arrays, digest
from fedrec.privacy.events import Mechanism
from fedrec.secure.terms import hashed
from fedrec.training.round import RoundTask
from fedrec.training.update_code import SCALES, buckets

__all__ = [
    "HISTOGRAM",
    "MASKED",
    "STATEMENT_KEYS",
    "STEP_KEYS",
    "UNKNOWN",
    "Announce",
    "HistogramTask",
    "Reply",
    "Statement",
    "Step",
    "WireError",
    "arrays_digest",
    "content_of",
    "content_of_histogram",
    "content_of_train",
    "decode_announce",
    "decode_histogram_task",
    "decode_lists",
    "decode_reply",
    "decode_step",
    "decode_train",
    "encode_announce",
    "encode_histogram_task",
    "encode_reply",
    "encode_step",
    "encode_train",
    "from_record",
    "size",
    "to_record",
    "with_step",
]

ARRAYS, TASK, PUBLIC, STATEMENT = "arrays", "task", "public", "statement"
SECURE = "secure"
HISTOGRAM, KEYS, MASKED = "histogram", "keys", "masked"
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
    trust: Trust = "local"
    noise_multiplier: float = 0.0
    noise_multiplier_alone: float = 0.0
    members: int = 0
    dropouts: int = 0
    colluders: int = 0
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
class Announce:
    """Asks for fresh keys for a secure sum, and says what it will be asked for: who cannot, declines before anyone pays."""

    run: str
    round: int
    attempt: str
    dropouts: int
    colluders: int
    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float
    clip_norm: float
    unit: Unit
    delta: float


@dataclass(frozen=True)
class Step:
    """What a step of a secure sum needs besides arrays: lists by merchant. None of it is computed from users' data.

    Attributes:
        attempt: the attempt that it belongs to.
        roster: digest of the roster that the sender holds.
        members: merchants in it.
        names: the merchants that the lists are about; in a decline whoever is to blame.
        first: sealing keys, sealed shares, signatures, or shares of own masks.
        second: masking keys, or shares of pair masks.
        third: hashes of own masks.
        fourth: signatures under the keys.
        there: who has shared, or who is in the sum.
        scale: steps of the grid in one unit.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    attempt: str
    roster: str = ""
    members: int = 0
    names: tuple[str, ...] = ()
    first: tuple[bytes, ...] = ()
    second: tuple[bytes, ...] = ()
    third: tuple[bytes, ...] = ()
    fourth: tuple[bytes, ...] = ()
    there: tuple[str, ...] = ()
    scale: float = 0.0

    def listed(self, *which: str) -> list[tuple[Any, ...]]:
        """The lists of those names side by side, each as long as `names`.

        Raises:
            WireError: one is shorter or longer.
        """
        lists = [getattr(self, name) for name in which]
        if any(len(one) != len(self.names) for one in lists) or len(set(self.names)) < len(self.names):
            raise WireError("Step: lists of different lengths, or a merchant twice")
        return list(zip(self.names, *lists, strict=True))


STEP_KEYS = frozenset(Step.__dataclass_fields__)


@dataclass(frozen=True)
class Reply:
    """A merchant's answer: noisy arrays (empty when declined), its statement, and its part in a step of a secure sum."""

    arrays: Arrays
    statement: Statement
    step: Step | None = None


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


def encode_announce(ask: Announce) -> RecordDict:
    """A request for keys."""
    return RecordDict({TASK: ConfigRecord(asdict(ask))})


def decode_announce(message: Message) -> Announce:
    """What keys are asked for.

    Raises:
        WireError: the request is malformed.
    """
    return _validated(Announce, dict(message.content[TASK]))


def encode_step(run: str, number: int, step: Step) -> RecordDict:
    """A request for a later step of a secure sum."""
    return RecordDict({TASK: ConfigRecord({"run": run, "round": number}), SECURE: _config(step)})


def decode_step(message: Message) -> tuple[str, int, Step]:
    """Run, round and lists of a request.

    Raises:
        WireError: the request is malformed.
    """
    task = message.content[TASK]
    return str(task["run"]), int(task.get("round", 0)), decode_lists(message)  # type: ignore[arg-type]


def content_of_train(task: RoundTask, trained: Arrays, public_digest: str) -> str:
    """A hash of all that a round's sum depends on, the same at the server and at every merchant."""
    return hashed([asdict(task), digest(trained), public_digest])


def content_of_histogram(task: HistogramTask, keys: np.ndarray) -> str:
    """The same for the histogram."""
    return hashed([asdict(task), digest({KEYS: keys})])


def content_of(what: str, scale: float) -> str:
    """The same with the grid that it is rounded to."""
    return hashed([what, scale])


def arrays_digest(message: Message) -> str:
    """A hash of all settings and arrays of a request but for the lists of a secure sum."""
    state = hashlib.sha256()
    for name in sorted(set(message.content) - {SECURE}):
        for key, value in sorted(message.content[name].items()):
            state.update(f"{name}/{key}".encode() + (value.data if isinstance(value, Array) else repr(value).encode()))
    return state.hexdigest()


def decode_lists(message: Message) -> Step:
    """The lists of a message that has some.

    Raises:
        WireError: it has none, or they are malformed.
    """
    record = message.content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise WireError(f"record {SECURE!r}: expected the lists of a secure sum")
    return _validated(Step, dict(record))


def with_step(content: RecordDict, step: Step) -> RecordDict:
    """A request with the lists of a secure sum besides; the rest is not copied."""
    return RecordDict({**content, SECURE: _config(step)})


def encode_reply(reply: Reply) -> RecordDict:
    """A merchant's answer.

    Raises:
        WireError: an array is neither float32 nor an int8 code with its scales nor a masked one;
            nothing else can get in by construction.
    """
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
    return Reply(from_record(_arrays(message, ARRAYS)), _validated(Statement, dict(message.content[STATEMENT])), step)


def size(records: RecordDict) -> int:
    """Bytes of a message's content: names, arrays and settings as serialised."""
    total = 0
    for name, record in records.items():
        total += len(name)
        for key, value in record.items():
            if isinstance(value, Array):
                total += len(key) + len(value.data)
            elif isinstance(value, list):
                total += len(key) + sum(len(one if isinstance(one, bytes) else str(one).encode()) for one in value)
            else:
                total += len(key) + len(str(value).encode())
    return total


def _config(step: Step) -> ConfigRecord:
    return ConfigRecord({name: list(value) if isinstance(value, tuple) else value for name, value in asdict(step).items()})


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
