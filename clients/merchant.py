"""This node's merchant: its data, policy and ledger, and what they let it answer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from safetensors import safe_open
from safetensors.numpy import load_file, save

from clients.interrupts import put_off
from clients.losses import SUFFIX, open_ledger, refusal
from clients.memory import advice, is_out_of_memory, paid, release
from clients.public_part import FLOOR, PRIOR_COUNTS, PRIOR_KEYS, PRIOR_RATINGS, check_adapter
from clients.site import Site, site_of
from clients.statistics import STATISTICS, Statistic, popularity
from fedrec import wire
from fedrec.config import make_folder, write_atomically
from fedrec.data import MerchantData, load_merchant
from fedrec.data.role_record import NOBODY, RECORD, HeldBack, record_roles
from fedrec.data.roles import UserShares, own_secret, roles_of
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE, OWN, MerchantFile, read_merchant_file
from fedrec.model.adapter import HEAD_A, Arrays, digest
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.towers import centred, log_prior
from fedrec.objectives import OBJECTIVES, Known, Lot
from fedrec.privacy import (
    HEAD_SUFFIX,
    NoiseSource,
    Policy,
    Release,
    SeededNoise,
    SystemNoise,
    head_folder,
    noisy,
    over_budget,
)
from fedrec.privacy.events import Mechanism
from fedrec.text import line
from fedrec.training import RoundTask, encode_update, round_sum, train_round
from fedrec.wire import ComplementTask, HistogramTask, Reply, Statement

__all__ = ["Merchant", "answer_statistic", "answer_train", "forget_merchants", "open_merchant", "safely"]

log = logging.getLogger("fedrec.merchant")

OPEN, SMALL, SMALL_USERS = 16, 128, 20_000
"""How many merchants' data a process keeps: so many, or more where they are small and have no more users in all. Those that
came first: a simulation asks them in turn, and would find the last ones always gone."""
PUBLIC = "public.part"


def answer_statistic(name: Mechanism, message: Message, context: Context) -> Reply:
    """Answer a request for a statistic; whatever fails is a decline without data."""
    return safely(context, lambda merchant: merchant.statistic(STATISTICS[name](merchant, message)))


def answer_train(message: Message, context: Context) -> Reply:
    """Answer a request for a round of training; whatever fails is a decline without data."""

    def answer(merchant: Merchant) -> Reply:
        task, trained, public_digest, public = wire.decode_train(message)
        held = merchant.held(task, trained, public_digest, public)
        return merchant.declined(held) if isinstance(held, str) else merchant.train(task, trained, held)

    return safely(context, answer)


def safely(context: Context, answer: Callable[[Merchant], Reply]) -> Reply:
    """What the node's merchant answers; whatever fails is a decline without data."""
    # An exception's text can hold a user id or an item, and Flower would send it on: the
    # server learns the kind of failure, the log on this machine has the rest.
    name = wire.UNKNOWN
    site: Site | None = None
    try:
        site = site_of(context)
        name = read_merchant_file(site.merchant / MERCHANT_FILE).name
        merchant = open_merchant(site)
        if site.seed is None and (lost := refusal(merchant.ledger, site, name)):
            raise lost
        return answer(merchant)
    except Exception as error:
        exhausted = is_out_of_memory(error)
        if site is not None and exhausted:
            log.error("merchant %s: %s", name, advice(error, site.model))
        else:
            log.exception("merchant %s: the request failed", name)
        declined = Reply({}, Statement(name, "declined", f"failed: {type(error).__name__}"))
    if exhausted:  # here, since the error held all that its frames did
        release()
    return declined


_open: dict[Site, Merchant] = {}


def open_merchant(site: Site) -> Merchant:
    """The merchant of a node; the first few of a run are kept, until `forget_merchants`.

    Raises:
        InputError: `merchant.toml` or the data cannot be read, or the ledger has another name.
    """
    if site in _open:
        return _open[site]
    if any(kept.replies != site.replies for kept in _open):
        forget_merchants()
    settings = read_merchant_file(site.merchant / MERCHANT_FILE)
    if site.seed is None:
        _check_name(site, settings.name)
    data, held = _who_train(load_merchant(site.merchant, settings.data), settings, site)
    merchant = Merchant(settings.name, data, settings.privacy, site, held)
    for left_out in merchant.data.left_out:
        log.info("merchant %s: %s", merchant.name, left_out)
    users = sum(len(other.data.histories) for other in (merchant, *_open.values()))
    if len(_open) < OPEN or (len(_open) < SMALL and users <= SMALL_USERS):
        _open[site] = merchant
    return merchant


def _who_train(data: MerchantData, settings: MerchantFile, site: Site) -> tuple[MerchantData, HeldBack]:
    """The data without the users who choose and who are measured, and who they are: no round or histogram sees them."""
    shares = settings.users or (UserShares() if site.seed is None else None)
    if shares is None or not (shares.choose or shares.measure):
        return data, NOBODY
    secret = own_secret(site.merchant / OWN)
    roles = roles_of(data.histories.user_ids, shares, secret)
    return replace(data, histories=data.histories.take(roles.train)), HeldBack.under(shares, secret)


def forget_merchants() -> None:
    """Read the merchants anew: a deployed worker does so for every message."""
    _open.clear()


def _check_name(site: Site, name: str) -> None:
    """A ledger is for life: under another name this data's would be forgotten, and its budget be whole again."""
    # A head that was set apart may lie beside other merchants' heads.
    beside = head_folder(site.ledger)
    heads = beside.glob(f"*{HEAD_SUFFIX}") if site.ledger_head in (None, beside) else ()
    others = [path for path in site.ledger.glob(f"*{SUFFIX}") if path.name != f"{name}{SUFFIX}"]
    others += [path for path in heads if path.name != f"{name}{HEAD_SUFFIX}"]
    if others:
        raise InputError(
            f"the name is {name!r}, and the ledger here is {others[0].name}",
            where=str(site.merchant / MERCHANT_FILE),
            expected="the name that the ledger has",
            hint="rename ledger, head and the folder of replies with the merchant",
        )


@dataclass
class Merchant:
    """A merchant who answers requests as far as its policy and budget allow.

    Attributes:
        data: its catalogue, and the users who train.
        held_back: the users who do not.
    """

    name: str
    data: MerchantData
    policy: Policy
    site: Site
    held_back: HeldBack = NOBODY

    def __post_init__(self) -> None:
        self.ledger = open_ledger(self.site, self.name, self.policy.delta)
        self._examples: tuple[tuple[object, ...], Lot] | None = None

    def held(self, task: RoundTask, trained: Arrays, public_digest: str, public: Arrays | None) -> Arrays | str:
        """The public part of the adapter, or why the request gets nothing.

        It is `public` where that came along, else what was kept. It is kept on disk, so that a merchant who restarts
        between two rounds misses none, and only where the policy allows the round and the encoder here can use it.

        Raises:
            WireError: see `check_adapter`.
        """
        if reason := self.refusal(task):
            return reason
        path = self.site.replies / self.name / PUBLIC
        held = public if public is not None else load_file(path) if path.exists() else None
        if held is None or digest(held) != public_digest:
            return "needs the public part of the adapter"
        objective = OBJECTIVES[task.objective]
        check_adapter(self.encoder(task), held, trained, terms=objective.terms, rates=objective.rates)
        if public is not None:
            make_folder(path.parent)
            write_atomically(path, save(public))
        return held

    def refusal(self, task: RoundTask) -> str | None:
        """Why this merchant has no part in a round, whatever it has left of its budget; or None."""
        reason = self.policy.refusal(
            unit=task.unit, noise_multiplier=task.noise_multiplier, clip_norm=task.clip_norm, delta=task.delta
        )
        if reason:
            return f"policy: {reason}"
        return None if self.encoder(task).fingerprint == task.trunk else "the encoder here is not the server's"

    def statistic(self, asked: Statistic) -> Reply:
        """A statistic with noise on every number that users can move."""
        if asked.refusal:
            return self.declined(asked.refusal)

        def compute(noise: NoiseSource) -> Arrays:
            release, where = asked.release, np.arange(asked.size) if asked.noisy is None else asked.noisy
            out = np.zeros(asked.size, dtype=np.float32)
            out[where] = noisy(asked.total()[where], release.noise_multiplier, release.clip_norm, noise)
            return {asked.array: out}

        return self._release(asked.release, asked.delta, compute)

    def histogram(self, task: HistogramTask, keys: np.ndarray) -> Reply:
        """How popular the texts with these keys are here, with noise on those in the catalogue."""
        return self.statistic(popularity(self, task, keys))

    def train(self, task: RoundTask, trained: Arrays, public: Arrays) -> Reply:
        """One round of private training."""
        if reason := self.refusal(task):
            return self.declined(reason)
        encoder = self.encoder(task)
        release = Release(
            task.run, task.round, "dp-sgd", task.noise_multiplier, task.sample_rate, task.local_steps,
            task.clip_norm, task.unit, self.policy.delta,
        )  # fmt: skip

        def compute(noise: NoiseSource) -> Arrays:
            update = train_round(
                task,
                self.data.catalogue,
                self.examples(task, trained, public),
                encoder=encoder,
                base=_base(public),
                trained=trained,
                prior=self.prior(public),
                population=self.policy.population,
                noise=noise,
                queries=self.data.histories.queries,
            )
            return encode_update(update, noise) if task.update_code == "int8" else update

        return self._release(release, task.delta, compute)

    def clipped_sum(self, task: RoundTask, trained: Arrays, public: Arrays, noise: NoiseSource) -> Arrays:
        """The sum of a lot's clipped gradients, WITHOUT noise: for a secure sum only."""
        return round_sum(
            task,
            self.data.catalogue,
            self.examples(task, trained, public),
            encoder=self.encoder(task),
            base=_base(public),
            trained=trained,
            prior=self.prior(public),
            noise=noise,
            queries=self.data.histories.queries,
        )

    def encoder(self, task: RoundTask | ComplementTask) -> TextEncoder:
        """The encoder of this site, in the shape that a task asks for; one a process."""
        model = self.site.model
        return load_encoder(
            model.encoder, task.encoder_layers, task.encoder_rank, task.max_tokens, model.device, model.texts_per_batch
        )

    def prior(self, public: Arrays) -> np.ndarray:
        """Log popularity of this merchant's items, or what rating is expected of them; a text that the server does not know gets
        the floor, or the mean."""
        if PRIOR_RATINGS in public:
            known = dict(zip(public[PRIOR_KEYS].tolist(), public[PRIOR_RATINGS].tolist(), strict=True))
            mean = float(public[PRIOR_RATINGS].mean()) if known else 0.0
            return np.array([known.get(key, mean) for key in self.data.catalogue.keys.tolist()], dtype=np.float32)
        counts = dict(zip(public[PRIOR_KEYS].tolist(), public[PRIOR_COUNTS].tolist(), strict=True))
        floor = float(public[FLOOR][0])
        return log_prior(np.array([counts.get(key, floor) for key in self.data.catalogue.keys.tolist()]), floor)

    def examples(self, task: RoundTask, trained: Arrays, public: Arrays) -> Lot:
        """The merchant's records, kept until a request asks for them otherwise."""
        objective, known = OBJECTIVES[task.objective], None
        key: tuple[object, ...] = (task.objective, task.asked)
        if objective.rates:
            encoder = self.encoder(task)
            encoder.load({**_base(public), **trained})
            texts = centred(encoder.embed(self.data.catalogue), public).cpu().numpy() @ public[HEAD_A]
            known = Known(self.prior(public), texts)
            key = (*key, digest({"prior": known.prior, "texts": texts}))
        if self._examples is None or self._examples[0] != key:
            self._examples = (key, objective.records(self.data.histories, task.asked, known))
        return self._examples[1]

    def declined(self, reason: str) -> Reply:
        """A normal answer that releases nothing."""
        return Reply({}, Statement(self.name, "declined", line(reason), population=self.policy.population))

    def _release(self, release: Release, delta: float, compute: Callable[[NoiseSource], Arrays]) -> Reply:
        """Policy, budget, ledger, and only then the computation."""
        reason = self.policy.refusal(
            unit=release.unit,
            noise_multiplier=release.noise_multiplier,
            clip_norm=release.clip_norm,
            delta=delta,
        )
        if reason:
            return self.declined(f"policy: {reason}")
        # Interrupted between ledger and reply, a merchant would have paid for a round that it can never answer.
        with self.ledger.locked(), put_off():
            known = self.ledger.find(release.run, release.round)
            if known is None:
                if reason := over_budget(self.policy, self.ledger.releases(), release):
                    return self.declined(reason)
                release = self.enter(release)
            else:
                if not known.same_request(release):
                    return self.declined("the same round was asked before with other settings")
                # Never computed again, whatever came between: a second draw would be a second release.
                return self._stored(release) or self.declined("the round is over")
            noise = self.noise(release)
            with paid():
                arrays = compute(noise)
            # In the order that a stored reply has, so that a repeated one is the same to the byte.
            reply = Reply({name: arrays[name] for name in sorted(arrays)}, self.statement(release, noise))
            self._store(release, reply)
            return reply

    def enter(self, release: Release) -> Release:
        """Pay for a release, and before that have it known who has no part in it; what is returned is the ledger's line."""
        if self.site.seed is None:
            record_roles(self.site.ledger / RECORD, self.held_back)
        return self.ledger.append(replace(release, simulated=self.site.seed is not None))

    def noise(self, release: Release) -> NoiseSource:
        """Where a release's sampling and noise come from: the operating system, or in a simulation a seed."""
        if self.site.seed is None:
            return SystemNoise()
        return SeededNoise(self.site.seed, self.name, release.mechanism, release.round)

    def statement(self, release: Release, noise: NoiseSource) -> Statement:
        """What a reply says about a release."""
        return Statement(
            merchant=self.name,
            status="ok",
            run=release.run,
            round=release.round,
            mechanism=release.mechanism,
            unit=release.unit,
            trust=release.trust,
            noise_multiplier=release.noise_multiplier,
            noise_multiplier_alone=release.noise_multiplier_alone,
            members=release.members,
            dropouts=release.dropouts,
            colluders=release.colluders,
            sample_rate=release.sample_rate,
            steps=release.steps,
            clip_norm=release.clip_norm,
            population=self.policy.population,
            epsilon_spent=release.epsilon_after,
            epsilon_budget=self.policy.epsilon,
            delta=self.policy.delta,
            accountant=release.accountant,
            simulated=noise.simulated,
        )

    def _path(self, release: Release) -> Path:
        run = re.sub(r"[^A-Za-z0-9_-]", "_", release.run)[:64]
        return self.site.replies / self.name / f"{run}-{release.round:05d}.safetensors"

    def _store(self, release: Release, reply: Reply) -> None:
        """Keep the reply, so that a repeated request gets the same bytes; only the last is needed."""
        path = self._path(release)
        make_folder(path.parent)
        older = [other for other in path.parent.glob("*.safetensors") if other != path]
        statement = {"statement": json.dumps(asdict(reply.statement)), "run": release.run, "head": self.ledger.head().to_json()}
        write_atomically(path, save({name: np.ascontiguousarray(value) for name, value in reply.arrays.items()}, statement))
        for other in older:
            other.unlink()

    def _stored(self, release: Release) -> Reply | None:
        path = self._path(release)
        if not path.exists():
            return None
        with safe_open(path, framework="numpy") as file:
            if file.metadata()["run"] != release.run:
                return None
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return Reply(arrays, Statement(**json.loads(file.metadata()["statement"])))


def _base(public: Arrays) -> Arrays:
    return {name: value for name, value in public.items() if not name.startswith(("prior.", "complements."))}
