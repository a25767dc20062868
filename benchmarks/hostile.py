"""Hostile merchants of a simulation: real clients that take part as others do, and send another update than they trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Context, Message

from clients.merchant import Merchant, open_merchant
from clients.site import site_of
from fedrec import wire
from fedrec.aggregation import SLACK, honest_norm
from fedrec.config import RunConfig
from fedrec.data import Histories
from fedrec.model.adapter import Arrays, flat, norm
from fedrec.privacy import SeededNoise
from fedrec.training import RoundTask, expected_lot

__all__ = ["ATTACKS", "HostileClients", "with_purchase"]


@dataclass(frozen=True)
class Turn:
    """What a hostile merchant knows in a round.

    Attributes:
        own: the update that its training gave, with noise.
        clean: the way its users' gradients point, without noise.
        push: the same, had each of them bought the pushed item last.
        quiet: norm of an honest update of such a merchant.
        loud: ten times that, the largest that the server's check lets through.
        random: Gaussian numbers.
    """

    own: Arrays
    clean: Callable[[], Arrays]
    push: Callable[[], Arrays]
    quiet: float
    loud: float
    random: Callable[[], Arrays]


ATTACKS: dict[str, Callable[[Turn], Arrays]] = {
    "sign flip": lambda turn: scaled(turn.clean(), -turn.quiet),
    "sign flip, loud": lambda turn: scaled(turn.clean(), -turn.loud),
    "scaling": lambda turn: scaled(turn.own, turn.loud),
    "random": lambda turn: scaled(turn.random(), turn.loud),
    "push": lambda turn: scaled(turn.push(), turn.quiet),
    "push, loud": lambda turn: scaled(turn.push(), turn.loud),
}
"""What a hostile merchant sends: as large as an honest update, or as large as the server's check of norms lets through."""


class HostileClients:
    """A ClientApp in which the merchants of some names attack, and all others are as they are.

    Args:
        honest: the ClientApp.
        names: the hostile ones.
        attack: one of `ATTACKS`.
        item: id of the item that is pushed.
    """

    def __init__(self, honest: Callable[[Message, Context], Message], config: RunConfig, names: set[str], attack: str, item: str):
        self.honest, self.config, self.names, self.attack, self.item = honest, config, names, attack, item

    def __call__(self, message: Message, context: Context) -> Message:
        """The honest answer, or another one in its place."""
        reply = self.honest(message, context)
        if message.metadata.message_type != "train":
            return reply
        merchant = open_merchant(site_of(context))
        answer = wire.decode_reply(reply)
        if merchant.name not in self.names or not answer.arrays:
            return reply
        arrays = ATTACKS[self.attack](self._turn(merchant, message, answer.arrays))
        return Message(wire.encode_reply(replace(answer, arrays=arrays)), reply_to=message)

    def _turn(self, merchant: Merchant, message: Message, own: Arrays) -> Turn:
        task, trained, public_digest, public = wire.decode_train(message)
        held = merchant.held(task, trained, public_digest, public)
        assert not isinstance(held, str), held
        place = merchant.data.catalogue.item_ids.index(self.item)

        def noise(what: str) -> SeededNoise:
            return SeededNoise(self.config.seed, merchant.name, what, task.round)

        def gradient(task: RoundTask, histories: Histories) -> Arrays:
            other = replace(merchant, data=replace(merchant.data, histories=histories))
            return scaled(other.clipped_sum(task, trained, held, noise("hostile")), -1.0)

        shared: dict[str, Any] = {
            "steps": task.local_steps, "learning_rate": task.learning_rate, "clip_norm": task.clip_norm,
            "noise_multiplier": task.noise_multiplier, "numbers": len(flat(own)),
        }  # fmt: skip
        quiet = honest_norm(**shared, lot=expected_lot(task, merchant.policy.population))
        random = np.random.default_rng([self.config.seed, task.round, place])
        return Turn(
            own,
            clean=lambda: gradient(task, merchant.data.histories),
            push=lambda: gradient(replace(task, positions=1), with_purchase(merchant.data.histories, place)),
            quiet=quiet,
            loud=0.99 * SLACK * quiet,
            random=lambda: {name: random.normal(size=value.shape) for name, value in own.items()},
        )


def scaled(arrays: Arrays, size: float) -> Arrays:
    """Those arrays with the norm `size`; a negative one turns them round."""
    factor = size / norm(arrays)
    return {name: (factor * value).astype(np.float32) for name, value in arrays.items()}


def with_purchase(histories: Histories, item: int) -> Histories:
    """The same users, each with one more basket at the end that holds the item."""
    ends = histories.offsets[1:]
    target = None if histories.target is None else np.insert(histories.target, ends, True)
    return Histories(
        histories.user_ids,
        histories.offsets + np.arange(len(ends) + 1),
        np.insert(histories.items, ends, item),
        np.insert(histories.baskets, ends, histories.baskets[ends - 1] + 1),
        target,
    )
