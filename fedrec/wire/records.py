"""Flower's records to values and back, and nothing in between."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import TypeAdapter, ValidationError

from fedrec.model.adapter import Arrays
from fedrec.wire.values import Step, WireError

__all__ = [
    "ARRAYS",
    "PUBLIC",
    "RECEIPT",
    "SECURE",
    "STATEMENT",
    "TASK",
    "arrays_digest",
    "arrays_of",
    "config_of",
    "finite",
    "from_record",
    "size",
    "to_record",
    "trained_of",
    "validated",
]

ARRAYS, TASK, PUBLIC, STATEMENT, SECURE, RECEIPT = "arrays", "task", "public", "statement", "secure", "receipt"


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


def arrays_digest(message: Message) -> str:
    """A hash of all settings and arrays of a request but for the lists of a secure sum."""
    state = hashlib.sha256()
    for name in sorted(set(message.content) - {SECURE}):
        for key, value in sorted(message.content[name].items()):
            state.update(f"{name}/{key}".encode() + (value.data if isinstance(value, Array) else repr(value).encode()))
    return state.hexdigest()


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


def arrays_of(message: Message, name: str) -> ArrayRecord:
    """A message's record of arrays.

    Raises:
        WireError: it has none of that name.
    """
    record = message.content.get(name)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"record {name!r}: expected arrays")
    return record


def validated(kind, values):  # type: ignore[no-untyped-def]
    """A dataclass of that kind from a record's values.

    Raises:
        WireError: a field is unknown, missing, of another type, out of range or not finite.
    """
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


def trained_of(arrays: Arrays) -> Arrays:
    """The arrays, if all are float32 and finite.

    Raises:
        WireError: one is not.
    """
    for name, value in arrays.items():
        if value.dtype != np.float32:
            raise WireError(f"array {name}: expected float32, found {value.dtype}")
    return finite(arrays)


def finite(arrays: Arrays) -> Arrays:
    """The arrays, if all of their numbers are finite.

    Raises:
        WireError: one is not.
    """
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise WireError(f"array {name}: a number is not finite")
    return arrays


def config_of(step: Step) -> ConfigRecord:
    """The lists of a secure sum as a record."""
    return ConfigRecord({name: list(value) if isinstance(value, tuple) else value for name, value in asdict(step).items()})
