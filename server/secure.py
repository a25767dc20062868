"""A Flower strategy that opens nothing but the sum of all merchants' clipped gradients.

One secure sum a round (`fedrec.secure`): distributed DP-SGD with one step a round. The server never has
an update of one merchant; whom it heard, and what they declare in public, it knows as before.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedrec import wire
from fedrec.aggregation import SLACK, apply_update, honest_norm, noise_in_update, update_fault
from fedrec.config import RunConfig, Trust
from fedrec.model import digest, of_part
from fedrec.model.adapter import unflat
from fedrec.privacy import NoisePlan
from fedrec.privacy.events import Mechanism
from fedrec.training import expected_lot
from fedrec.wire import Announce
from server.progress import notify
from server.run_folder import ServerState
from server.secure_sum import Abandoned, Ask, Opened, SecureSum
from server.strategy import NobodyLeft, PrivateLora, RoundRecord, StatisticRequest, TooFewMerchants

__all__ = ["STRATEGIES", "SecureLora"]

MOST_LOST = 2
"""So many paid rounds in a row that could not be opened stop the run: merchants' budgets are for life."""


class SecureLora(PrivateLora):
    """Sends the steps of a secure sum, opens it, applies the server optimizer.

    A merchant that more others blame than may collude has done what it is blamed for, and is not asked again.
    """

    blamed: dict[str, set[str]]
    excluded: set[str]

    def __init__(self, config: RunConfig, plan: NoisePlan, state: ServerState, trunk: str) -> None:
        super().__init__(config, plan, state, trunk)
        self.blamed, self.excluded = {}, set()
        self._opened: Opened | None = None
        self._lost = 0

    def blame(self, name: str, by: str) -> None:
        """`by` could not go on because of `name`."""
        self.blamed.setdefault(name, set()).add(by)
        if len(self.blamed[name]) > self.config.colluders:
            self.excluded.add(name)

    def collect(self, grid: Grid, asked: StatisticRequest, timeout: float) -> tuple[np.ndarray, float]:
        """The same as one secure sum; zeros where it was abandoned."""
        self.record = RoundRecord()
        offer = self._offer(asked.round, asked.mechanism, asked.noise_multiplier, 1.0, 1.0)
        vector, noise = np.zeros(asked.size, dtype=np.float64), asked.noise_multiplier
        try:
            nodes = self.present(grid, self.config.start_merchants)
            notify(f"{asked.mechanism}_started", merchants=len(nodes))
            ask = Ask(f"mask_{asked.mechanism}", lambda _: asked.content, asked.digest, asked.size)
            opened = SecureSum(self, grid, offer, timeout).run(nodes, ask)
            vector, noise = opened.vector, opened.noise_multiplier
        except (Abandoned, NobodyLeft) as reason:
            self.record.abandoned = str(reason)
        self.informed.clear()
        return vector, noise

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """All steps of the round's secure sum; what is left to aggregate is the server optimizer's step.

        Raises:
            NobodyLeft: so many have declined that no sum can be opened any more.
            TooFewMerchants: round after round was paid for and could not be opened.
        """
        if self._lost >= MOST_LOST:
            raise TooFewMerchants(
                f"{self._lost} rounds in a row were paid for and could not be opened; see who was refused in metrics.jsonl, "
                "and resume without them"
            )
        number = server_round + self.offset
        self.record, self._opened = RoundRecord(), None
        task, public = self.task(number), self.state.public
        nodes = self.present(grid, self.config.min_merchants)
        notify("round_started", round=number, rounds=self.config.rounds, part=task.part, merchants=len(nodes))
        contents = [wire.encode_train(task, self.state.trained, digest(public), part) for part in (public, None)]
        offer = self._offer(number, "dp-sgd", task.noise_multiplier, task.sample_rate, task.clip_norm)
        size = sum(value.size for value in of_part(self.state.trained, task.part).values())
        try:
            what = wire.content_of_train(task, self.state.trained, digest(public))
            ask = Ask("mask", lambda node: contents[node in self.informed], what, size)
            self._opened = SecureSum(self, grid, offer, self.config.round_timeout).run(nodes, ask)
            self._lost = 0
        except Abandoned as reason:
            self.record.abandoned = str(reason)
            self._lost += reason.paid
        return []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The server optimizer's step on the mean gradient of all merchants' users."""
        task = self.task(server_round + self.offset)
        trained, optimizer = self.state.trained, self.state.optimizer
        if self._opened is not None:
            like, config = of_part(trained, task.part), self.config
            lot = sum(expected_lot(task, population) for population in self._opened.populations.values())
            update = unflat(-task.learning_rate * self._opened.vector / lot, like)
            most = SLACK * honest_norm(
                steps=1, learning_rate=task.learning_rate, clip_norm=task.clip_norm, noise_multiplier=task.noise_multiplier,
                numbers=len(self._opened.vector), lot=lot,
            )  # fmt: skip
            if fault := update_fault(update, like, most):
                self.record.abandoned = f"the opened sum: {fault}"
            else:
                rate = config.server_learning_rate if task.part == "heads" else config.encoder_learning_rate
                noise = noise_in_update(
                    steps=1, learning_rate=task.learning_rate, clip_norm=task.clip_norm,
                    noise_multiplier=self._opened.noise_multiplier, lot=lot,
                )  # fmt: skip
                moved, optimizer = apply_update(config.server_optimizer, trained, update, optimizer, rate, noise)
                trained = {**trained, **moved}
        self.state = self.state.after(trained, optimizer)
        return wire.to_record(trained), None

    def _offer(self, number: int, mechanism: Mechanism, sigma: float, rate: float, clip_norm: float) -> Announce:
        config = self.config
        # Fresh, so that a server that starts a round over is told from one that asks for the same once more.
        return Announce(
            self.state.run, number, secrets.token_hex(8), config.dropouts, config.colluders,
            mechanism, sigma, rate, clip_norm, config.unit, config.delta,
        )  # fmt: skip


STRATEGIES: dict[Trust, type[PrivateLora]] = {"local": PrivateLora, "secure-aggregation": SecureLora}
"""How a run trains, by whom merchants trust."""
