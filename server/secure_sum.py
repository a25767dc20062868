"""One secure sum as the server drives it, step by step: from the announcements to the opened vector."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec import secure, wire
from fedrec.privacy.discrete import LARGEST_SHARE
from fedrec.wire import Announce, Reply, Step
from server.progress import notify
from server.strategy import NobodyLeft

if TYPE_CHECKING:
    from server.secure import SecureLora

__all__ = ["Abandoned", "Ask", "Opened", "SecureSum"]

LISTS = {"announce": ("first", "second", "third", "fourth"), "share": ("first",), "reveal": ("first", "second")}
"""Which lists a merchant answers a step with, side by side with names."""
FINAL = ("policy:", "budget:", "secure aggregation:")
"""Declines for these reasons will not be different in the next round."""


@dataclass(frozen=True)
class Opened:
    """A sum that was opened.

    Attributes:
        vector: the sum.
        populations: declared, of those in it, capped.
        noise_multiplier: of the noise in it, of all who are in it together.
    """

    vector: np.ndarray
    populations: Mapping[str, float]
    noise_multiplier: float


class Abandoned(Exception):
    """A sum that cannot be opened; whoever has masked has paid for it.

    Args:
        reason: why not.
        paid: whether somebody has.
    """

    def __init__(self, reason: str, paid: bool = False) -> None:
        super().__init__(reason)
        self.paid = paid


@dataclass(frozen=True)
class Ask:
    """The request for masked integers.

    Attributes:
        kind: `mask`, or `mask_` and the name of a statistic.
        request: for a node, but for the lists of the sum.
        content: digest of what it asks, as merchants compute it.
        size: numbers in the sum.
    """

    kind: str
    request: Callable[[int], RecordDict]
    content: str
    size: int


class SecureSum:
    """One secure sum, from the announcements to the opened vector."""

    def __init__(self, strategy: SecureLora, grid: Grid, offer: Announce, timeout: float) -> None:
        self.strategy, self.grid, self.offer, self.timeout = strategy, grid, offer, timeout
        self.nodes: dict[str, int] = {}
        self.populations: dict[str, int] = {}

    def run(self, nodes: list[int], ask: Ask) -> Opened:
        """The five steps, one after the other; a merchant that fails at one is left out of the next.

        Raises:
            Abandoned: too few merchants are left, or the sum does not open.
            NobodyLeft: too many have declined for good.
        """
        collector = self._announced(nodes)
        terms = collector.terms
        self._shared(collector)
        lattice = secure.Lattice(ask.size, self._scale(terms, ask.size), f"round {terms.round}")
        collector.content = wire.content_of(ask.content, lattice.scale, lattice.size)
        try:
            self._masked(collector, ask, lattice)
        except Abandoned as reason:
            raise Abandoned(str(reason), paid=bool(collector.masked)) from None
        self._confirmed(collector)
        try:
            total = collector.open(self._revealed(collector))
        except secure.Refused as reason:
            if reason.blamed:
                self.strategy.excluded.add(reason.blamed)
            raise Abandoned(f"the sum does not open: {reason}", paid=True) from None
        populations = self._capped({name: self.populations[name] for name in collector.survivors})
        noise = self.offer.noise_multiplier * math.sqrt(len(populations) / terms.honest)
        return Opened(lattice.decode(total), populations, noise)

    def _announced(self, nodes: list[int]) -> secure.Collector:
        offer, record = self.offer, self.strategy.record
        asked = [node for node in nodes if self.strategy.names.get(node) not in self.strategy.excluded]
        for name in self.strategy.excluded:
            record.refused[name] = "is blamed by more merchants than may collude"
        answers = list(self._ask("announce", dict.fromkeys(asked, wire.encode_announce(offer))))
        rosters = Counter((step.roster, step.members) for _, _, step in answers)
        if not rosters:
            self._give_up(record.declined)
            raise Abandoned("no merchant announced keys")
        (roster, members), _ = rosters.most_common(1)[0]
        try:
            terms = secure.Terms(offer.run, offer.round, offer.attempt, roster, members, offer.dropouts, offer.colluders)
        except secure.Refused as reason:
            self._give_up(record.declined)
            raise Abandoned(str(reason)) from None
        collector = secure.Collector(terms)
        for node, reply, step in answers:
            name = reply.statement.merchant
            if (step.roster, step.members) != (roster, members):
                record.refused[name] = "holds another roster than most"
                continue
            rows = step.listed("first", "second", "third", "fourth")
            if len(rows) != 1 or rows[0][0] != name or reply.statement.population < 1:
                record.refused[name] = "announces no keys of its own, or no population"
                continue
            known = secure.Announcement(*rows[0][1:])
            if not known.usable:
                record.refused[name] = "announces unusable keys"
                continue
            self.nodes[name], self.populations[name] = node, reply.statement.population
            collector.announced[name] = known
        seen = Counter(key for one in collector.announced.values() for key in (one.sealing, one.masking))
        for name, one in list(collector.announced.items()):
            if seen[one.sealing] + seen[one.masking] > 2:  # nobody can know another's fresh key yet but by agreement
                record.refused[name] = "announces a key that another announces too"
                del collector.announced[name]
        if members - len(record.declined) < terms.least:
            self._give_up(record.declined)
        self._enough(collector.announced, terms, "announced keys")
        return collector

    def _shared(self, collector: secure.Collector) -> None:
        known = collector.announced
        names = tuple(sorted(known))
        keys = Step(
            self.offer.attempt,
            names=names,
            first=tuple(known[name].sealing for name in names),
            second=tuple(known[name].masking for name in names),
            third=tuple(known[name].own for name in names),
            fourth=tuple(known[name].signature for name in names),
        )
        for _, reply, step in self._ask("share", self._same(names, keys)):
            name = reply.statement.merchant
            boxes = dict(step.listed("first"))
            if len(boxes) != collector.around.count or not set(boxes) <= set(names) - {name}:
                self.strategy.record.refused[name] = "gives its shares to others than it should"
                continue
            collector.sealed[name] = boxes
        self._enough(collector.sealed, collector.terms, "shared their seeds")

    def _masked(self, collector: secure.Collector, ask: Ask, lattice: secure.Lattice) -> None:
        requests = {}
        for name in collector.there:
            boxes = collector.sealed_for(name)
            step = Step(
                self.offer.attempt, names=tuple(boxes), first=tuple(boxes.values()), there=collector.there, scale=lattice.scale
            )
            requests[self.nodes[name]] = wire.with_step(ask.request(self.nodes[name]), step)
        for node, reply, _ in self._ask(ask.kind, requests):
            self.strategy.informed.add(node)
            name, value = reply.statement.merchant, reply.arrays.get(wire.MASKED)
            fault = self.strategy.fault(reply, self.offer.round, self.offer.noise_multiplier)
            if value is None or value.dtype != np.uint32 or value.shape != (lattice.size,):
                fault = f"{wire.MASKED}: expected {lattice.size} uint32"
            if fault:
                self.strategy.record.refused[name] = fault
                continue
            collector.masked[name] = value  # type: ignore[assignment]
            self.populations[name] = reply.statement.population
            self.strategy.took_part(reply)
        self._enough(collector.masked, collector.terms, "sent their masked sum")

    def _confirmed(self, collector: secure.Collector) -> None:
        survivors = Step(self.offer.attempt, there=collector.survivors)
        for _, reply, step in self._ask("confirm", self._same(collector.survivors, survivors)):
            if len(step.first) == 1:
                collector.signatures[reply.statement.merchant] = step.first[0]

    def _revealed(self, collector: secure.Collector) -> dict[str, secure.Revealed]:
        signed = collector.signatures
        step = Step(self.offer.attempt, names=tuple(signed), first=tuple(signed.values()))
        out = {}
        for _, reply, answer in self._ask("reveal", self._same(tuple(signed), step)):
            holder = reply.statement.merchant
            rows = answer.listed("first", "second")
            own = {name: share for name, share, _ in rows if share}
            out[holder] = secure.Revealed(own, {name: share for name, _, share in rows if share})
        return out

    def _same(self, names: Iterable[str], step: Step) -> dict[int, RecordDict]:
        return dict.fromkeys((self.nodes[name] for name in names), wire.encode_step(self.offer.run, self.offer.round, step))

    def _ask(self, kind: str, requests: Mapping[int, RecordDict]) -> Iterator[tuple[int, Reply, Step]]:
        """Send a step's requests and hear the answers that belong to it."""
        notify("secure_step", step=kind, merchants=len(requests))
        messages = [
            Message(content, node, f"train.{kind}", group_id=str(self.offer.round), ttl=self.timeout)
            for node, content in requests.items()
        ]
        self.strategy.expect(messages)
        for node, reply in self.strategy.heard(self.grid.send_and_receive(messages, timeout=self.timeout), self._blamed):
            name = reply.statement.merchant
            if reply.step is None or reply.step.attempt != self.offer.attempt:
                self.strategy.record.refused[name] = f"{kind}: answers another sum"
                continue
            try:
                reply.step.listed(*LISTS.get(kind, ()))
            except wire.WireError as error:
                self.strategy.record.refused[name] = f"{kind}: {error}"
                continue
            yield node, reply, reply.step

    def _blamed(self, reply: Reply) -> None:
        for name in reply.step.names if reply.step is not None else ():
            if name in self.nodes:
                self.strategy.blame(name, reply.statement.merchant)

    def _scale(self, terms: secure.Terms, size: int) -> float:
        offer = self.offer
        records = self.strategy.config.positions if offer.unit == "event" and offer.mechanism == "dp-sgd" else 1
        users = offer.sample_rate * records * sum(self._capped(self.populations).values())
        noise = offer.noise_multiplier * math.sqrt(terms.members / terms.honest)
        return secure.finest(size, offer.clip_norm, users, noise, 0.99 * LARGEST_SHARE * math.sqrt(terms.members))

    def _capped(self, populations: Mapping[str, int]) -> dict[str, float]:
        """A declared population is a merchant's word: none counts more than ten times the median."""
        most = 10 * float(np.median(list(populations.values())))
        return {name: min(float(value), most) for name, value in populations.items()}

    def _enough(self, names: Iterable[str], terms: secure.Terms, what: str) -> None:
        count = len(list(names))
        if count < terms.least:
            raise Abandoned(f"{count} of {terms.members} merchants {what}, {terms.least} are needed")

    def _give_up(self, declined: Mapping[str, str]) -> None:
        final = [reason for reason in declined.values() if reason.startswith(FINAL)]
        if len(final) > self.offer.dropouts:
            raise NobodyLeft(final[0])
