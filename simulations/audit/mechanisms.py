"""What an audit can attack: each kind of release, as a linear view of who was included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clients.secure import noisy_integers
from clients.statistics import pairs_of, purchases
from fedrec import secure
from fedrec.config import Part, RunConfig, Trust
from fedrec.data import Catalogue, Histories, MerchantData
from fedrec.errors import InputError
from fedrec.model import Arrays
from fedrec.model.adapter import CENTRE, flat, unflat
from fedrec.model.complements import KINDS, kinds_of_catalogue
from fedrec.model.towers import centred
from fedrec.objectives import Lot
from fedrec.privacy import NoiseSource, SampledGaussian, epsilon, noise_share, noisy, noisy_histogram, plan_noise, votes
from fedrec.privacy.discrete import LARGEST_SHARE, LEAST_SHARE
from fedrec.privacy.noise_plan import gaussian_mu
from fedrec.training import RoundTask, expected_lot, round_sum
from server.progress import notify
from simulations.audit.canaries import disjoint_canaries, joined, make_canaries, pair_canaries, shown_canaries
from simulations.audit.rounds import examples_of, noisy_update, of_all, of_each, records_of, rounds
from simulations.audit.target import NO_NOISE, Attacked

__all__ = ["MECHANISMS", "Mechanism", "View", "audit_config", "forced_settings"]

ROUNDING = 1e-3
"""Floor of the noise that the auditor reckons with, over the clipping norm: an update is a
difference of float32 weights, and is not exact even with the noise off."""


@dataclass(frozen=True)
class View:
    """One release as the auditor sees it: a sum of the parts of those who were drawn, and noise.

    Attributes:
        parts: (canaries, numbers) what each canary adds to a step where it is drawn.
        answer: (numbers,) the mean of the steps, less what the known users add on average.
        rate, steps: each step draws every user with probability `rate`.
        std: of a step's noise.
    """

    parts: np.ndarray
    answer: np.ndarray
    rate: float
    steps: int
    std: float


class Mechanism(Protocol):
    """A kind of release."""

    @property
    def what(self) -> str:
        """It in words."""

    def forced(self, rounds: int) -> dict[str, Any]:
        """Settings under which all of a run's budget is in it."""

    def canaries(self, config: RunConfig, catalogue: Catalogue, count: int, seed: int) -> Histories:
        """Users to plant."""

    def plan(self, config: RunConfig, noise: bool) -> tuple[float, float]:
        """The noise multiplier of a step, and the epsilon that the run claims: what the accountants say of given noise."""

    def views(self, run: Attacked, planted: Histories, included: np.ndarray) -> Iterator[View]:
        """Release with the merchant's users and the `included` of the canaries, and look."""


@dataclass(frozen=True)
class Training:
    """Rounds of DP-SGD on one part of the adapter."""

    part: Part
    what: str
    trust: Trust = "local"

    def forced(self, rounds: int) -> dict[str, Any]:
        """See `Mechanism`."""
        only = {"encoder_layers": 0} if self.part == "heads" else {"encoder_rounds": rounds}
        return {"heads": True, "histogram_share": 0.0, "complement_share": 0.0, "unit": "user", "trust": self.trust, **only}

    def canaries(self, config: RunConfig, catalogue: Catalogue, count: int, seed: int) -> Histories:
        """See `Mechanism`: with as many positions, or impressions, as a round reads of a user."""
        if config.objective == "response":
            return shown_canaries(catalogue, count, seed, min(config.impressions, len(catalogue) - 1))
        return make_canaries(catalogue, count, seed, config.positions)

    def plan(self, config: RunConfig, noise: bool) -> tuple[float, float]:
        """See `Mechanism`.

        Raises:
            InputError: the settings leave nothing of this part to train.
        """
        if not config.rounds_of(self.part):
            raise InputError("found 0", where="encoder_layers", expected="at least 1: the audit attacks the encoder's rounds")
        given = config.noise_multiplier if self.part == "heads" else config.encoder_noise_multiplier or config.noise_multiplier
        event = SampledGaussian(given or 1.0, config.sample_rate_of(self.part), config.rounds * config.local_steps)
        claimed = epsilon([event], config.delta).value if given else config.epsilon
        return (given or plan_noise(config).of(self.part)) if noise else NO_NOISE, claimed

    def answer(self, run: Attacked, task: RoundTask, examples: Lot, trained: Arrays, noise: NoiseSource) -> Arrays:
        """What comes of a round."""
        return noisy_update(run, task, examples, trained, noise)

    def views(self, run: Attacked, planted: Histories, included: np.ndarray) -> Iterator[View]:
        """See `Mechanism`."""
        config, honest = run.config, run.target.merchant.data.histories
        canaries, known = examples_of(config, planted), examples_of(config, honest)
        everyone = records_of(config, joined(honest, planted.take(included)), self.part)
        for one in rounds(run, self.part, everyone, self.answer):
            task = one.task
            scale = expected_lot(task, run.population) / (task.learning_rate * task.local_steps)
            update = np.concatenate([value.ravel() for value in one.update.values()]).astype(np.float64)
            answer = -scale * update - task.sample_rate * of_all(run, one, known)
            std = max(task.noise_multiplier, ROUNDING) * task.clip_norm
            yield View(of_each(run, one, canaries), answer, task.sample_rate, task.local_steps, std)


@dataclass(frozen=True)
class SecureSum(Training):
    """The same rounds as sums that are opened over all merchants of the federation.

    The auditor is a server with as many colluders as are assumed: it knows the noise of these, and the vectors of all other
    merchants. What it does not know is the honest merchants' shares of the noise, the fewest that an opened sum holds.
    """

    def answer(self, run: Attacked, task: RoundTask, examples: Lot, trained: Arrays, noise: NoiseSource) -> Arrays:
        """The opened sum, as a change of the adapter; masks cancel."""
        target, terms = run.target, _terms(run, task.round)
        summed = round_sum(
            task, target.merchant.data.catalogue, examples, encoder=target.encoder, base=target.base, trained=trained,
            prior=target.prior, noise=noise, queries=target.merchant.data.histories.queries,
        )  # fmt: skip
        vector = flat(summed)
        lattice = secure.Lattice(len(vector), _scale(run, task, terms, len(vector)), f"round {task.round}")
        sensitivity = lattice.sensitivity(task.clip_norm)
        share = LEAST_SHARE if run.sigma == NO_NOISE else noise_share(run.sigma, sensitivity, terms.honest)
        total = noisy_integers(lattice, vector, share, noise)
        for other in range(1, terms.honest):
            total += noisy_integers(lattice, np.zeros_like(vector), share, run.noise(task.round, other))
        opened = unflat(-task.learning_rate * lattice.decode(total) / expected_lot(task, run.population), summed)
        return {name: opened[name] for name in summed}


def _terms(run: Attacked, number: int) -> secure.Terms:
    config, members = run.config, len(run.target.populations)
    try:
        return secure.Terms("audit", number, "", "", members, config.dropouts, config.colluders)
    except secure.Refused as reason:
        raise InputError(str(reason), where="dropouts, colluders") from None


def _scale(run: Attacked, task: RoundTask, terms: secure.Terms, size: int) -> float:
    """Steps of the grid in one unit, as a server sets it."""
    users = task.sample_rate * (sum(run.target.populations) + run.population - run.target.merchant.policy.population)
    noise, most = run.sigma * math.sqrt(terms.members / terms.honest), 0.99 * LARGEST_SHARE * math.sqrt(terms.members)
    return secure.finest(size, task.clip_norm, users, noise, most)


class Histogram:
    """The popularity histogram of a merchant."""

    what = "the popularity histogram"

    def forced(self, rounds: int) -> dict[str, Any]:
        """See `Mechanism`."""
        return {"heads": True, "encoder_layers": 0, "unit": "user", "trust": "local"}

    def canaries(self, config: RunConfig, catalogue: Catalogue, count: int, seed: int) -> Histories:
        """See `Mechanism`."""
        return disjoint_canaries(catalogue, count, seed)

    def given(self, config: RunConfig) -> float | None:
        """The noise multiplier that the settings give."""
        return config.histogram_noise_multiplier

    def plan(self, config: RunConfig, noise: bool) -> tuple[float, float]:
        """See `Mechanism`."""
        given = self.given(config)
        claimed = epsilon([SampledGaussian(given)], config.delta).value if given else config.epsilon
        return (given or 1 / gaussian_mu(config.epsilon, config.delta)) if noise else NO_NOISE, claimed

    def views(self, run: Attacked, planted: Histories, included: np.ndarray) -> Iterator[View]:
        """See `Mechanism`."""
        catalogue, honest = run.target.merchant.data.catalogue, run.target.merchant.data.histories
        keys = np.unique(catalogue.keys)

        def bought(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
            return purchases(MerchantData(catalogue, histories), keys)[:2]

        users, items = bought(joined(honest, planted.take(included)))
        released = noisy_histogram(users, items, len(keys), run.sigma, run.noise(0))
        users, items = bought(planted)
        parts = np.stack([votes(users[users == one], items[users == one], len(keys)) for one in range(len(planted))])
        answer = released - votes(*bought(honest), len(keys))
        notify("audit_round", attack=run.label, round=1, rounds=1)
        yield View(parts, answer, 1.0, 1, max(run.sigma, ROUNDING))


class Complements(Histogram):
    """What goes with what in the baskets of a merchant: one release, like the histogram."""

    what = "which kinds of item share a basket"

    def canaries(self, config: RunConfig, catalogue: Catalogue, count: int, seed: int) -> Histories:
        """See `Mechanism`: a user whose one basket is a pair moves one number, by 1 or, for two kinds, by the root of 1/2."""
        return pair_canaries(catalogue, count, seed)

    def given(self, config: RunConfig) -> float | None:
        """The noise multiplier that the settings give."""
        return config.complement_noise_multiplier

    def views(self, run: Attacked, planted: Histories, included: np.ndarray) -> Iterator[View]:
        """See `Mechanism`; the kinds are what a server would ask for, were this merchant's catalogue the public one."""
        target, honest = run.target, run.target.merchant.data.histories
        catalogue, encoder = target.merchant.data.catalogue, target.encoder
        encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
        e = centred(encoder.embed(catalogue), target.base).cpu().numpy()
        arrays = {CENTRE: target.base[CENTRE], KINDS: kinds_of_catalogue(e, run.config.seed)}

        def summed(histories: Histories) -> np.ndarray:
            return pairs_of(MerchantData(catalogue, histories), encoder, arrays)

        released = noisy(summed(joined(honest, planted.take(included))), run.sigma, 1.0, run.noise(-1))
        parts = np.stack([summed(planted.take(np.array([one]))) for one in range(len(planted))])
        notify("audit_round", attack=run.label, round=1, rounds=1)
        yield View(parts, released - summed(honest), 1.0, 1, max(run.sigma, ROUNDING))


MECHANISMS: dict[str, Mechanism] = {
    "heads": Training("heads", "the heads' rounds"),
    "encoder": Training("encoder", "the encoder's rounds"),
    "histogram": Histogram(),
    "complements": Complements(),
    "secure-sum": SecureSum("heads", "the heads' rounds as opened secure sums", "secure-aggregation"),
}
"""What can be attacked, by name."""


def forced_settings(mechanism: str, rounds: int) -> dict[str, Any]:
    """The settings that an audit of `mechanism` needs, whatever others are asked for.

    Raises:
        InputError: there is no such mechanism.
    """
    if mechanism not in MECHANISMS:
        raise InputError(f"found {mechanism!r}", where="--mechanism", expected=f"one of {', '.join(MECHANISMS)}")
    return MECHANISMS[mechanism].forced(rounds)


def audit_config(config: RunConfig, mechanism: str = "heads") -> RunConfig:
    """The settings with all of the budget in one mechanism, and users as the unit.

    Raises:
        InputError: no such mechanism, or an objective that the attacks know nothing of.
    """
    if config.objective not in ("next-item", "response"):
        expected = "objective = 'next-item' or 'response', which the attacks are made for"
        raise InputError(f"objective = {config.objective!r}", where="settings", expected=expected)
    return RunConfig.model_validate({**config.model_dump(), **forced_settings(mechanism, config.rounds)})
