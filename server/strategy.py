"""A Flower strategy that averages private LoRA updates.

Each reply is checked (names, shapes, finiteness, norm, and that it answers this round)
before it counts. Who took part, who declined and who was refused, and why, is recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.superlink.grid import HttpGrid

from fedrec import wire
from fedrec.aggregation import (
    SLACK,
    Updates,
    apply_update,
    combine,
    honest_norm,
    honest_statistic_norm,
    noise_in_combined,
    noise_in_update,
    update_fault,
)
from fedrec.config import RunConfig, UpdateCode
from fedrec.model import Arrays, digest, of_part
from fedrec.model.adapter import norm
from fedrec.objectives import OBJECTIVES
from fedrec.privacy import NoisePlan
from fedrec.privacy.events import Mechanism
from fedrec.text import line
from fedrec.training import CodeError, RoundTask, decode_update, expected_lot
from server.evaluation import COUNTS, FLOOR, KEYS, RATINGS
from server.progress import notify
from server.run_folder import ServerState

__all__ = [
    "ERRORS", "WAIT_STEP", "NobodyLeft", "PrivateLora", "RoundRecord", "StatisticRequest", "TooFewMerchants", "connected",
]  # fmt: skip

WAIT_STEP = 1.0
"""Seconds between two looks at who is connected."""
ERRORS = {
    ErrorCode.NODE_UNAVAILABLE: "went offline before it answered",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "its ClientApp failed",
    ErrorCode.CLIENT_APP_CRASHED: "its ClientApp was killed",
    ErrorCode.MESSAGE_UNAVAILABLE: "the request expired",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its reply expired",
}
"""What Flower's errors about a node mean; the others are shown by number."""


def connected(grid: Grid) -> dict[int, str]:
    """The nodes that are connected, with their merchants' names in a deployment and none in a simulation."""
    if isinstance(grid, HttpGrid):
        return {node.node_id: node.name for node in grid.get_nodes()}
    return dict.fromkeys(grid.get_node_ids(), "")


class NobodyLeft(Exception):
    """Every merchant has declined: the run ends here, with what was learned so far."""


class TooFewMerchants(Exception):
    """Not enough merchants came within `wait_timeout`: the run stops at its last checkpoint."""


class _Reasons(dict[str, str]):
    """A reason by merchant. Some hold what a merchant wrote, such as the name of an array: each is one short line."""

    def __setitem__(self, merchant: str, reason: str) -> None:
        super().__setitem__(merchant, line(reason))


@dataclass
class RoundRecord:
    """What happened in a round, by merchant."""

    started: float = field(default_factory=time.time)
    took_part: list[str] = field(default_factory=list)
    declined: dict[str, str] = field(default_factory=_Reasons)
    refused: dict[str, str] = field(default_factory=_Reasons)
    bytes_down: dict[str, int] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    privacy: dict[str, dict[str, float | str]] = field(default_factory=dict)
    abandoned: str = ""


@dataclass(frozen=True)
class StatisticRequest:
    """A sum over users that every merchant is asked for once a run; one user moves it by at most 1.

    Attributes:
        mechanism, round: how ledgers know it.
        noise_multiplier: of one merchant's noise, or of the fewest honest shares in a secure sum.
        content, digest: the request, and a hash of what it asks, as merchants compute it.
        array, size: what a reply calls the numbers, and how many there are.
    """

    mechanism: Mechanism
    round: int
    noise_multiplier: float
    content: RecordDict
    digest: str
    array: str
    size: int


class PrivateLora(Strategy):
    """Sends tasks, checks and averages what comes back, applies the server optimizer."""

    def __init__(self, config: RunConfig, plan: NoisePlan, state: ServerState, trunk: str) -> None:
        self.config, self.plan, self.state, self.trunk = config, plan, state, trunk
        self.offset = state.round
        self.record = RoundRecord()
        self.prior_noise = 0.0
        self.names: dict[int, str] = {}
        self.registered: dict[int, str] = {}
        self.informed: set[int] = set()
        self._sent: dict[int, int] = {}
        self._asked: list[Message] = []

    def collect_priors(self, grid: Grid, keys: np.ndarray, timeout: float) -> tuple[Arrays, RoundRecord]:
        """Ask every merchant for its noisy histogram; the sum is the prior.

        Args:
            keys: (items,) text keys of the central catalogue.
        """
        self.record = RoundRecord()
        sigma, task = self.plan.histogram, self.histogram_task()
        total = np.zeros(task.size(len(keys)), dtype=np.float64)
        if sigma is not None:
            content, what = wire.encode_histogram_task(task, keys), wire.content_of_histogram(task, keys)
            asked = StatisticRequest("histogram", 0, sigma, content, what, wire.HISTOGRAM, len(total))
            total, self.prior_noise = self.collect(grid, asked, timeout)
        return self.as_prior(total, keys), self.record

    def histogram_task(self) -> wire.HistogramTask:
        """What merchants are asked before the first round."""
        config, rates = self.config, OBJECTIVES[self.config.objective].rates
        task = wire.HistogramTask(self.state.run, self.plan.histogram or 0.0, config.delta, config.unit)
        return replace(task, ratings=True, rating_min=config.rating_min, rating_max=config.rating_max) if rates else task

    def as_prior(self, total: np.ndarray, keys: np.ndarray) -> Arrays:
        """The public arrays of a sum of histograms: counts, and where ratings were asked for the sums of those."""
        # A count below the noise of one merchant, or of a secure sum, says nothing; it stands for "rare".
        floor = np.array([max(1.0, self.plan.histogram or 0.0)], dtype=np.float32)
        prior = {KEYS: keys, COUNTS: total[: len(keys)].astype(np.float32), FLOOR: floor}
        return prior if len(total) == len(keys) else {**prior, RATINGS: total[len(keys) :].astype(np.float32)}

    def collect(self, grid: Grid, asked: StatisticRequest, timeout: float) -> tuple[np.ndarray, float]:
        """The sum of a statistic over all merchants that answer, (size,) float64, and the deviation of the noise in it."""
        self.record = RoundRecord()
        total = np.zeros(asked.size, dtype=np.float64)
        self._sent = dict.fromkeys(self.present(grid, self.config.start_merchants), wire.size(asked.content))
        notify(f"{asked.mechanism}_started", merchants=len(self._sent))
        # A node that comes late must not pay for an answer that nobody waits for: hence the ttl.
        messages = [Message(asked.content, node, f"train.{asked.mechanism}", ttl=timeout) for node in self._sent]
        like = {asked.array: np.zeros(asked.size, dtype=np.float32)}
        self._asked = messages
        replies = grid.send_and_receive(messages, timeout=timeout)
        sigma = asked.noise_multiplier

        def most(reply: wire.Reply) -> float:
            return honest_statistic_norm(reply.statement.population, sigma, asked.size)

        for reply in self._usable(replies, like, "float32", lambda reply: SLACK * most(reply), sigma, asked.round):
            # No rule can tell what sells at one merchant from what another's say, but how much its users can say is known.
            bound = 1.0 if self.config.aggregation == "mean" else min(1.0, most(reply) / max(norm(reply.arrays), 1e-30))
            total += bound * reply.arrays[asked.array]
        self.informed.clear()
        return total, sigma * math.sqrt(len(self.record.took_part))

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One task for every node; the public part goes to those who may not have it."""
        number = server_round + self.offset
        self.record = RoundRecord()
        task, public, nodes = self.task(number), self.state.public, self.present(grid, self.config.min_merchants)
        # Encoded once, not for each: a thousand copies of the adapter would be in memory until the last has answered.
        contents = [wire.encode_train(task, self.state.trained, digest(public), part) for part in (public, None)]
        sizes = [wire.size(content) for content in contents]
        self._sent = {node: sizes[node in self.informed] for node in nodes}
        messages = [
            Message(contents[node in self.informed], node, "train", group_id=str(number), ttl=self.config.round_timeout)
            for node in nodes
        ]
        self._asked = messages
        notify("round_started", round=number, rounds=self.config.rounds, part=task.part, merchants=len(messages))
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the usable updates and take the server optimizer's step.

        Raises:
            NobodyLeft: every merchant that answered has declined.
        """
        task = self.task(server_round + self.offset)
        like = of_part(self.state.trained, task.part)
        norms = partial(self._honest_norm, task, sum(value.size for value in like.values()))
        usable = self._usable(
            replies, like, task.update_code, lambda reply: SLACK * norms(reply), task.noise_multiplier, task.round
        )
        used = list(usable)
        trained, optimizer = self.state.trained, self.state.optimizer
        if len(used) >= self.config.min_merchants:
            arrays = [reply.arrays for reply in used]
            updates = Updates(arrays, self._weights(used), [norms(reply) for reply in used], self.config.byzantine)
            update = combine(self.config.aggregation, updates)
            rate = self.config.server_learning_rate if task.part == "heads" else self.config.encoder_learning_rate
            noise = noise_in_combined(self.config.aggregation, self._noises(task, used), updates.weights)
            moved, optimizer = apply_update(self.config.server_optimizer, trained, update, optimizer, rate, noise)
            trained = {**trained, **moved}
        elif not used and self.record.declined and not self.record.refused:
            raise NobodyLeft(next(iter(self.record.declined.values())))
        self.state = self.state.after(trained, optimizer)
        return wire.to_record(trained), None

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: a metric computed at a merchant would be a release."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing: see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Nothing to log: the run's settings are in its folder."""

    def present(self, grid: Grid, needed: int) -> list[int]:
        """The nodes that are connected, once there are `needed` of them; in a deployment their names are known.

        Raises:
            TooFewMerchants: they did not come in time.
        """
        deadline = time.monotonic() + self.config.wait_timeout
        while True:
            there = connected(grid)
            self.registered = {node: name for node, name in there.items() if name}
            nodes = sorted(there)
            if len(nodes) >= needed:
                return nodes
            if time.monotonic() > deadline:
                raise TooFewMerchants(
                    f"{len(nodes)} merchants are connected, {needed} are needed, waited {self.config.wait_timeout:g} s"
                )
            notify("waiting", there=len(nodes), needed=needed, seconds=round(deadline - time.monotonic()))
            time.sleep(WAIT_STEP)

    def task(self, number: int) -> RoundTask:
        """What merchants are asked in a round."""
        config, part, scorings = self.config, self.config.part(number), self.state.scoring.parts
        scoring, last = scorings[0], scorings[-1]  # of several objectives the last is the response
        return RoundTask(
            run=self.state.run,
            round=number,
            part=part,
            trunk=self.trunk,
            encoder_layers=config.encoder_layers,
            encoder_rank=config.encoder_rank,
            max_tokens=config.max_tokens,
            local_steps=config.local_steps,
            sample_rate=config.sample_rate_of(part),
            clip_norm=config.clip_norm,
            noise_multiplier=self.plan.of(part),
            delta=config.delta,
            unit=config.unit,
            learning_rate=config.learning_rate,
            history=config.history,
            positions=config.positions,
            negatives=config.negatives,
            encoder_history=config.encoder_history,
            temperature=scoring.temperature,
            decay=scoring.decay,
            prior_weight=scoring.prior_weight,
            update_code=config.update_code,
            objective=config.objective,
            impressions=config.impressions,
            bias=last.bias,
            rating_min=config.rating_min,
            rating_max=config.rating_max,
            next_item_weight=config.objective_weights[0],
            response_weight=config.objective_weights[1],
            response_temperature=last.temperature,
            response_decay=last.decay,
            response_prior_weight=last.prior_weight,
        )

    def _asked_of(self, reply: Message) -> int:
        """The node that a reply is about; an error about a node comes from the SuperLink."""
        if reply.metadata.src_node_id in self._sent:
            return reply.metadata.src_node_id
        meant = {request.metadata.message_id: request.metadata.dst_node_id for request in self._asked}
        return meant.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def _name(self, node: int) -> str:
        return self.registered.get(node) or self.names.get(node, f"node {node}")

    def _weights(self, used: list[wire.Reply]) -> list[float]:
        """A declared population is a merchant's word: none counts more than ten times the median."""
        if self.config.weighting == "equal":
            return [1.0] * len(used)
        declared = [float(reply.statement.population) for reply in used]
        return [min(one, 10 * float(np.median(declared))) for one in declared]

    def _honest_norm(self, task: RoundTask, numbers: int, reply: wire.Reply) -> float:
        # By the population that the merchant declares: who declares few is allowed the noise of few.
        return honest_norm(
            steps=task.local_steps,
            learning_rate=task.learning_rate,
            clip_norm=task.clip_norm,
            noise_multiplier=task.noise_multiplier,
            numbers=numbers,
            lot=max(expected_lot(task, reply.statement.population), self.config.min_lot),
        )

    def _noises(self, task: RoundTask, used: list[wire.Reply]) -> list[float]:
        """The standard deviation of the noise in each number of the updates."""
        lots = [max(expected_lot(task, reply.statement.population), self.config.min_lot) for reply in used]
        return [
            noise_in_update(
                steps=task.local_steps,
                learning_rate=task.learning_rate,
                clip_norm=task.clip_norm,
                noise_multiplier=task.noise_multiplier,
                lot=lot,
            )
            for lot in lots
        ]

    def _usable(
        self,
        replies: Iterable[Message],
        like: Arrays,
        code: UpdateCode,
        most: Callable[[wire.Reply], float],
        sigma: float,
        number: int,
    ) -> Iterable[wire.Reply]:
        """The replies that count, decoded; the others are recorded with the reason."""
        for node, reply in self.heard(replies):
            self.informed.add(node)
            fault = None
            if code == "int8":
                try:
                    reply = replace(reply, arrays=decode_update(reply.arrays, like))
                except CodeError as error:
                    fault = str(error)
            fault = fault or update_fault(reply.arrays, like, most(reply)) or self.fault(reply, number, sigma)
            if fault:
                self.record.refused[reply.statement.merchant] = fault
                continue
            self.took_part(reply)
            yield reply

    def expect(self, messages: list[Message]) -> None:
        """These requests go out now; answers to others do not count."""
        self._asked = messages
        self._sent = {one.metadata.dst_node_id: wire.size(one.content) for one in messages}

    def heard(
        self, replies: Iterable[Message], declined: Callable[[wire.Reply], None] = lambda _: None
    ) -> Iterable[tuple[int, wire.Reply]]:
        """The answers that are no declines, each with its node, who is who it says; the others are recorded with the reason.

        Args:
            declined: is told of each decline.
        """
        unheard = set(self._sent)
        waiting = sorted(replies, key=lambda one: one.metadata.src_node_id, reverse=True)
        while waiting:
            message = waiting.pop()  # so that an update is in memory as bytes or as arrays, and not as both
            node = self._asked_of(message)
            if node not in self._sent:
                self.record.refused[self._name(node)] = "answers a request that it did not get"
                continue
            unheard.discard(node)
            reply = self._said(node, message)
            if reply is None:
                continue
            name = reply.statement.merchant
            if reply.statement.status == "declined":
                self.record.declined[name] = reply.statement.reason
                declined(reply)
                if reply.statement.reason.startswith("needs the public part"):
                    self.informed.discard(node)
                continue
            yield node, reply
        for node in sorted(unheard):
            self.record.refused[self._name(node)] = "did not answer in time"

    def _said(self, node: int, message: Message) -> wire.Reply | None:
        """What a node answered, if it can be read and is the node's own."""
        name = self._name(node)
        if message.has_error():
            self.record.refused[name] = ERRORS.get(message.error.code, f"error {message.error.code}")
            return None
        try:
            reply = wire.decode_reply(message)
        except (wire.WireError, ValueError, TypeError) as error:
            self.record.refused[name] = str(error)
            return None
        if reply.statement.merchant == wire.UNKNOWN and node in self.registered:
            reply = replace(reply, statement=replace(reply.statement, merchant=name, status="declined"))
        if self.registered.get(node, reply.statement.merchant) != reply.statement.merchant:
            self.record.refused[name] = f"says that it is {reply.statement.merchant}, whose key it does not have"
            return None
        name = reply.statement.merchant
        if name in (known for other, known in self.names.items() if other != node):
            self.record.refused[f"node {node}"] = f"says that it is {name}, who is another node"
            return None
        self.names[node] = name
        down, up = self.record.bytes_down, self.record.bytes_up
        down[name], up[name] = down.get(name, 0) + self._sent[node], up.get(name, 0) + wire.size(message.content)
        return reply

    def fault(self, reply: wire.Reply, number: int, sigma: float) -> str | None:
        """What is wrong with an answer's statement, or None."""
        answered = (reply.statement.run, reply.statement.round)
        if answered != (self.state.run, number):
            return f"answers round {answered[1]} of run {answered[0]}, asked for {number} of {self.state.run}"
        if not reply.statement.noise_multiplier >= sigma:  # NaN is not
            return f"noise_multiplier {reply.statement.noise_multiplier:g} is under the task's {sigma:g}"
        return "declares no population" if reply.statement.population < 1 else None

    def took_part(self, reply: wire.Reply) -> None:
        """Record whose update is used, and what it has spent."""
        statement = reply.statement
        self.record.took_part.append(statement.merchant)
        self.record.privacy[statement.merchant] = {
            "epsilon": statement.epsilon_spent,
            "budget": statement.epsilon_budget,
            "delta": statement.delta,
            "accountant": statement.accountant,
            "population": statement.population,
            "trust": statement.trust,
        }
