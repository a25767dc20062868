"""A record of everything this merchant sends, for its own audit.

A Flower mod around the ClientApp: it sees each reply as it leaves and writes, on the
merchant's machine, the name, type, shape and hash of every value, and the statement in
full. `fedrec privacy wire` prints it. Keys and shares of a secure sum are recorded by their
hash only: a share that stays on this machine could still help to open the sum.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients.site import site_of
from fedrec import wire

__all__ = ["record_replies"]


def record_replies(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pass the message on; where the site asks for it, append what the reply holds to `wire.jsonl`."""
    reply = call_next(message, context)
    path = site_of(context).wire_log
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_line(message, reply)) + "\n")
    return reply


def _line(message: Message, reply: Message) -> dict[str, Any]:
    line: dict[str, Any] = {
        "time": time.time(),
        "node": reply.metadata.src_node_id,
        "type": message.metadata.message_type,
        "error": f"{reply.error.code}" if reply.has_error() else None,
        "bytes": wire.size(reply.content) if reply.has_content() else 0,
        "values": [],
    }
    for name, record in reply.content.items() if reply.has_content() else ():
        for key, value in record.items():
            entry: dict[str, Any] = {"record": name, "kind": type(record).__name__, "name": key}
            if isinstance(record, ArrayRecord) and isinstance(value, Array):
                entry |= {"dtype": value.dtype, "shape": list(value.shape), "hash": _hash(value.data)}
            elif isinstance(value, list) and any(isinstance(one, bytes) for one in value):
                entry |= {"dtype": "bytes", "shape": [len(value)], "hash": _hash(repr(value).encode())}
            else:
                entry |= {"dtype": type(value).__name__, "shape": [], "value": value, "hash": _hash(str(value).encode())}
            line["values"].append(entry)
    return line


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
