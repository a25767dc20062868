"""The ClientApp: decode, answer, encode. The same in simulation and in deployment."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.merchant import answer_histogram, answer_train
from clients.recorder import record_replies
from fedrec import wire

app = ClientApp(mods=[record_replies])


@app.train("histogram")
def histogram(message: Message, context: Context) -> Message:
    """The noisy popularity histogram, once a run."""
    return Message(wire.encode_reply(answer_histogram(message, context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of private training."""
    return Message(wire.encode_reply(answer_train(message, context)), reply_to=message)
