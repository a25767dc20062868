"""The ClientApp: decode, answer, encode. The same in simulation and in deployment."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import secure
from clients.delivery import answer_delivery
from clients.merchant import answer_statistic, answer_train
from clients.recorder import record_replies
from fedrec import wire

app = ClientApp(mods=[record_replies])


@app.train("histogram")
def histogram(message: Message, context: Context) -> Message:
    """The noisy popularity histogram, once a run."""
    return Message(wire.encode_reply(answer_statistic("histogram", message, context)), reply_to=message)


@app.train("complements")
def complements(message: Message, context: Context) -> Message:
    """Which kinds of item share a basket, with noise, once a run."""
    return Message(wire.encode_reply(answer_statistic("complements", message, context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of private training."""
    return Message(wire.encode_reply(answer_train(message, context)), reply_to=message)


@app.train("announce")
def announce(message: Message, context: Context) -> Message:
    """Secure sum, step 1: fresh keys."""
    return Message(wire.encode_reply(secure.answer_announce(message, context)), reply_to=message)


@app.train("share")
def share(message: Message, context: Context) -> Message:
    """Secure sum, step 2: sealed shares of the seeds of this merchant's masks."""
    return Message(wire.encode_reply(secure.answer_share(message, context)), reply_to=message)


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """Secure sum, step 3: a lot's clipped gradients with a share of the noise, masked."""
    return Message(wire.encode_reply(secure.answer_mask(message, context)), reply_to=message)


@app.train("mask_histogram")
def mask_histogram(message: Message, context: Context) -> Message:
    """Secure sum, step 3, for the popularity histogram."""
    return Message(wire.encode_reply(secure.answer_mask_statistic("histogram", message, context)), reply_to=message)


@app.train("mask_complements")
def mask_complements(message: Message, context: Context) -> Message:
    """Secure sum, step 3, for which kinds of item share a basket."""
    return Message(wire.encode_reply(secure.answer_mask_statistic("complements", message, context)), reply_to=message)


@app.train("confirm")
def confirm(message: Message, context: Context) -> Message:
    """Secure sum, step 4: a signature under who is in the sum."""
    return Message(wire.encode_reply(secure.answer_confirm(message, context)), reply_to=message)


@app.train("reveal")
def reveal(message: Message, context: Context) -> Message:
    """Secure sum, step 5: shares that open the sum."""
    return Message(wire.encode_reply(secure.answer_reveal(message, context)), reply_to=message)


@app.query("deliver")
def deliver(message: Message, context: Context) -> Message:
    """The adapter comes home; the answer is a receipt and nothing else."""
    return Message(wire.encode_receipt(answer_delivery(message, context)), reply_to=message)
