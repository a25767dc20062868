"""This node's merchant in a secure sum: what it remembers between two steps, and what it pays for.

The steps are those of `fedrec.secure.member`. Each is answered once: a repeated request gets the same
answer, another one for the same step none. Masking is the release: policy and budget are asked before, and
the ledger is written before anything is computed from users' data. Seeds are on disk until the masks are on, and
others' shares until the last step, for their owner alone, so that a merchant who restarts can go on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message
from pydantic import TypeAdapter

from clients.interrupts import put_off
from clients.losses import SECURE
from clients.memory import paid
from clients.merchant import Merchant, safely
from clients.statistics import STATISTICS
from fedrec import secure, wire
from fedrec.config import Trust, make_folder, write_atomically
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, flat, of_part
from fedrec.privacy import NoiseSource, Release, discrete_gaussian, multiplier, noise_share, over_budget
from fedrec.privacy.events import Mechanism
from fedrec.secure.terms import hashed
from fedrec.wire import Announce, Reply, Statement, Step

__all__ = [
    "answer_announce", "answer_confirm", "answer_mask", "answer_mask_statistic", "answer_reveal", "answer_share",
    "noisy_integers",
]  # fmt: skip

OFFERED = ("run", "round", "mechanism", "noise_multiplier", "sample_rate", "clip_norm", "unit")
"""What the first step has announced, and the release must be."""
STEPS = ("announce", "share", "mask", "confirm", "reveal")
TRUST: Trust = "secure-aggregation"
_REPLY: TypeAdapter[Step] = TypeAdapter(Step)


def answer_announce(message: Message, context: Context) -> Reply:
    """Fresh keys for a secure sum, or a decline if it is one that this merchant could not pay for."""
    return safely(context, lambda merchant: _Sum.begin(merchant, wire.decode_announce(message)))


def answer_share(message: Message, context: Context) -> Reply:
    """Sealed shares of the seeds of this merchant's masks."""

    def work(one: _Sum, step: Step) -> Reply:
        announced = {name: secure.Announcement(*keys) for name, *keys in step.listed("first", "second", "third", "fourth")}
        one.state, sealed = secure.share(one.secrets, announced, one.roster)
        return one.reply(Step(step.attempt, names=tuple(sealed), first=tuple(sealed.values())))

    return safely(context, lambda merchant: _Sum.go_on(merchant, "share", message, work))


def answer_mask(message: Message, context: Context) -> Reply:
    """The sum of a lot's clipped gradients, with a share of the noise and under masks."""

    def answer(merchant: Merchant) -> Reply:
        task, trained, public_digest, public = wire.decode_train(message)
        if merchant.policy.trust != TRUST:
            return merchant.declined("policy: trust 'secure-aggregation' is weaker than the policy's 'local'")
        held = merchant.held(task, trained, public_digest, public)
        if isinstance(held, str):
            return merchant.declined(held)
        release = Release(
            task.run, task.round, "dp-sgd", task.noise_multiplier, task.sample_rate, 1, task.clip_norm, task.unit,
            merchant.policy.delta,
        )  # fmt: skip
        content = wire.content_of_train(task, trained, public_digest)
        size = sum(value.size for value in of_part(trained, task.part).values())

        def compute(noise: NoiseSource) -> np.ndarray:
            return flat(merchant.clipped_sum(task, trained, held, noise))

        return _Sum.go_on(merchant, "mask", message, lambda one, step: one.mask(step, release, content, size, compute))

    return safely(context, answer)


def answer_mask_statistic(name: Mechanism, message: Message, context: Context) -> Reply:
    """A statistic, with a share of the noise and under masks."""

    def answer(merchant: Merchant) -> Reply:
        asked = STATISTICS[name](merchant, message)
        if asked.refusal:
            return merchant.declined(asked.refusal)

        def work(one: _Sum, step: Step) -> Reply:
            return one.mask(step, asked.release, asked.content, asked.size, lambda _: asked.total())

        return _Sum.go_on(merchant, "mask", message, work)

    return safely(context, answer)


def answer_confirm(message: Message, context: Context) -> Reply:
    """A signature under who is in the sum."""

    def work(one: _Sum, step: Step) -> Reply:
        one.state, signature = secure.confirm(one.secrets, step.there, one.node_key)
        return one.reply(Step(step.attempt, first=(signature,)))

    return safely(context, lambda merchant: _Sum.go_on(merchant, "confirm", message, work))


def answer_reveal(message: Message, context: Context) -> Reply:
    """Shares of the own masks of those in the sum, and of the pair masks of those who are not."""

    def work(one: _Sum, step: Step) -> Reply:
        revealed = secure.reveal(one.secrets, dict(step.listed("first")), one.roster)
        one.state = None  # nothing here may open this sum once more
        names = tuple(sorted({**revealed.own, **revealed.pairs}))
        own, pairs = (tuple(kind.get(name, b"") for name in names) for kind in (revealed.own, revealed.pairs))
        return one.reply(Step(step.attempt, names=names, first=own, second=pairs))

    return safely(context, lambda merchant: _Sum.go_on(merchant, "reveal", message, work))


@dataclass
class _Sum:
    """One secure sum, as the merchant remembers it; only the last one is kept."""

    merchant: Merchant
    offer: Announce
    state: secure.State | None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, merchant: Merchant, ask: Announce) -> Reply:
        """The first step."""
        policy, asked = merchant.policy, hashed(asdict(ask))
        release = Release(
            ask.run, ask.round, ask.mechanism, ask.noise_multiplier, ask.sample_rate, 1, ask.clip_norm, ask.unit, policy.delta
        )
        with merchant.ledger.locked(), put_off():
            known = cls._read(merchant)
            if known is not None and known.id == (ask.run, ask.round, ask.attempt):
                return known._again("announce", asked)
            if merchant.ledger.find(ask.run, ask.round) is not None:
                return merchant.declined("the round is over")
            if reason := _against_policy(merchant, ask):
                return merchant.declined(reason)
            if reason := over_budget(policy, merchant.ledger.releases(), release):
                return merchant.declined(reason)
            one = cls(merchant, ask, None)
            try:
                roster = one.roster
                terms = secure.Terms(
                    ask.run, ask.round, ask.attempt, roster.digest, len(roster.keys), ask.dropouts, ask.colluders
                )
                one.state = secure.announce(terms, merchant.name, roster, one.node_key)
            except secure.Refused as refused:
                return merchant.declined(f"secure aggregation: {refused}")
            keys = one.state.announcement
            step = Step(
                ask.attempt, terms.roster, terms.members, (merchant.name,),
                (keys.sealing,), (keys.masking,), (keys.own,), (keys.signature,),
            )  # fmt: skip
            return one._keep("announce", asked, one.reply(step))

    @classmethod
    def go_on(cls, merchant: Merchant, name: str, message: Message, work: Callable[[_Sum, Step], Reply]) -> Reply:
        """A later step: in its turn, once, and on the terms of the first."""
        run, number, step = wire.decode_step(message)
        asked = hashed([name, run, number, repr(step), wire.arrays_digest(message)])
        # Interrupted between ledger and answer, a merchant would have paid for a round that it can never answer.
        with merchant.ledger.locked(), put_off():
            one = cls._read(merchant)
            if one is None or one.id != (run, number, step.attempt):
                return merchant.declined(f"secure aggregation: {name} of a sum that this merchant has not begun, or is over")
            if name in one.answers:
                return one._again(name, asked)
            if STEPS.index(name) != len(one.answers):
                return merchant.declined(f"secure aggregation: {name} was asked out of turn")
            try:
                if one.state is not None and one.roster.digest != one.state.terms.roster:
                    raise secure.Refused("its roster has changed since the sum began")
                reply = work(one, step)
            except secure.Refused as refused:
                blamed = (refused.blamed,) if refused.blamed else ()
                return replace(merchant.declined(f"secure aggregation: {refused}"), step=Step(step.attempt, names=blamed))
            return reply if reply.statement.status == "declined" else one._keep(name, asked, reply)

    @property
    def id(self) -> tuple[str, int, str]:
        """Run, round and attempt."""
        return self.offer.run, self.offer.round, self.offer.attempt

    @property
    def roster(self) -> secure.Roster:
        """This merchant's own roster.

        Raises:
            Refused: there is none.
        """
        try:
            return secure.Roster.read(self.merchant.site.roster)
        except InputError as error:
            raise secure.Refused(f"no roster: {error.found}") from None

    @property
    def node_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that the others know this merchant by."""
        key = serialization.load_ssh_private_key(self.merchant.site.node_key.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise secure.Refused("the node key is not on an elliptic curve")
        return key

    @property
    def secrets(self) -> secure.State:
        """What the protocol's steps work on.

        Raises:
            Refused: the sum has been opened, and they are gone.
        """
        if self.state is None:
            raise secure.Refused("this sum has been opened")
        return self.state

    def mask(self, step: Step, release: Release, content: str, size: int, compute: Callable[[NoiseSource], np.ndarray]) -> Reply:
        """Pay, compute, add the share of noise, mask.

        Raises:
            Refused: the lists are wrong, the noise is out of range, or this is not what was announced.
        """
        merchant, offer, terms = self.merchant, self.offer, self.secrets.terms
        if any(getattr(offer, name) != getattr(release, name) for name in OFFERED):
            raise secure.Refused("the request is not the one that was announced")
        if not step.scale > 0 or size < 1:
            raise secure.Refused(f"scale {step.scale:g} is not positive" if size else "there is nothing to add up")
        state = secure.hold(self.secrets, step.there, dict(step.listed("first")), wire.content_of(content, step.scale, size))
        lattice = secure.Lattice(size, step.scale, f"round {terms.round}")
        sensitivity = lattice.sensitivity(release.clip_norm)
        try:
            own = noise_share(release.noise_multiplier, sensitivity, terms.honest)
        except ValueError as error:
            raise secure.Refused(str(error)) from None
        release = replace(
            release,
            trust=TRUST,
            noise_multiplier_alone=multiplier(own, sensitivity, 1),
            members=terms.members,
            dropouts=terms.dropouts,
            colluders=terms.colluders,
        )
        if reason := _against_policy(merchant, offer):
            return merchant.declined(reason)  # it may have become stricter since the first step
        if merchant.ledger.find(release.run, release.round) is not None:
            # It was paid for, and the answer was lost. A second draw would be a second release.
            return merchant.declined("the round is over")
        if reason := over_budget(merchant.policy, merchant.ledger.releases(), release):
            return merchant.declined(reason)
        release = merchant.enter(release)
        noise = merchant.noise(release)
        with paid():
            vector = compute(noise)
        values = noisy_integers(lattice, vector, own, noise)
        self.state = secure.forgetful(state)
        return Reply({wire.MASKED: secure.mask(state, values)}, merchant.statement(release, noise), Step(step.attempt))

    def reply(self, step: Step) -> Reply:
        """A step that releases nothing."""
        offer, policy = self.offer, self.merchant.policy
        name, population = self.merchant.name, policy.population
        return Reply({}, Statement(name, "ok", run=offer.run, round=offer.round, trust=TRUST, population=population), step)

    def _again(self, name: str, asked: str) -> Reply:
        known = self.answers[name]
        if known["asked"] != asked:
            return self.merchant.declined(f"secure aggregation: {name} was asked before with other content")
        arrays: Arrays = {key: np.frombuffer(base64.b64decode(value), dtype=np.uint32) for key, value in known["arrays"].items()}
        return Reply(arrays, Statement(**known["statement"]), _REPLY.validate_json(known["step"]))

    def _keep(self, name: str, asked: str, reply: Reply) -> Reply:
        """Remember the answer, on disk before it leaves."""
        self.answers[name] = {
            "asked": asked,
            "statement": asdict(reply.statement),
            "step": _REPLY.dump_json(reply.step).decode() if reply.step else None,
            "arrays": {key: base64.b64encode(value.tobytes()).decode() for key, value in reply.arrays.items()},
        }
        path = _path(self.merchant)
        make_folder(path.parent)
        for broken in path.parent.glob(f".{path.name}.*"):
            broken.unlink()  # of a process that was killed as it wrote: it holds seeds that nobody would ever delete
        state = None if self.state is None else self.state.to_json()
        head = self.merchant.ledger.head().to_json()
        known = {"offer": asdict(self.offer), "state": state, "answers": self.answers, "head": head}
        write_atomically(path, json.dumps(known).encode(), mode=0o600)
        return reply

    @classmethod
    def _read(cls, merchant: Merchant) -> _Sum | None:
        path = _path(merchant)
        if not path.exists():
            return None
        known = json.loads(path.read_text(encoding="utf-8"))
        state = None if known["state"] is None else secure.State.from_json(known["state"])
        return cls(merchant, Announce(**known["offer"]), state, known["answers"])


def noisy_integers(lattice: secure.Lattice, vector: np.ndarray, share: int, noise: NoiseSource) -> np.ndarray:
    """A merchant's part of a secure sum before the masks: its vector on the grid, and its share of the noise in steps."""
    return lattice.encode(vector, noise.uniform(lattice.size)) + discrete_gaussian(lattice.size, share, noise)


def _against_policy(merchant: Merchant, ask: Announce) -> str | None:
    policy = merchant.policy
    reason = policy.refusal_of_terms(dropouts=ask.dropouts, colluders=ask.colluders) or policy.refusal(
        unit=ask.unit, noise_multiplier=ask.noise_multiplier, clip_norm=ask.clip_norm, delta=ask.delta
    )
    return f"policy: {reason}" if reason else None


def _path(merchant: Merchant) -> Path:
    return merchant.site.replies / merchant.name / SECURE
