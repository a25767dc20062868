"""A merchant's worker that lies: what it sends in round `n` is the `n`-th of the vandalisms below."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message

import clients.worker
from fedrec import wire
from fedrec.wire import Reply

honest = clients.worker.app


def vandalised(reply: Reply, number: int) -> Reply:
    """NaN, shapes, names, a norm, an old round, another's name."""
    arrays = dict(reply.arrays)
    name = sorted(arrays)[0]
    if number == 1:
        return Reply({**arrays, name: np.full_like(arrays[name], np.nan)}, reply.statement)
    if number == 2:
        return Reply({**arrays, name: arrays[name][:-1]}, reply.statement)
    if number == 3:
        return Reply({**arrays, "more": arrays[name]}, reply.statement)
    if number == 4:
        return Reply({**arrays, name: arrays[name] + np.float32(1e6)}, reply.statement)
    if number == 5:
        return Reply(arrays, replace(reply.statement, round=1))
    return Reply(arrays, replace(reply.statement, merchant="m0"))


def app(message: Message, context: Context) -> Message:
    """In place of the ClientApp."""
    reply = honest(message, context)
    if message.metadata.message_type != "train":
        return reply
    number = int(message.content["task"]["round"])
    return Message(wire.encode_reply(vandalised(wire.decode_reply(reply), number)), reply_to=message)


if __name__ == "__main__":
    clients.worker.app = app  # type: ignore[assignment]
    clients.worker.main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
