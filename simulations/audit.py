"""Attacks on one merchant's training: what a claim of privacy is worth when somebody tries.

Two attacks on the rounds of the heads, both through the real `train_round`. The canary audit
(Steinke, Nasr, Jagielski, NeurIPS 2023) plants made-up users and guesses from the noisy
updates which of them were there. The membership attack looks at the released adapter only
and asks which real users it was trained on.

Only a simulation can run them: the auditor knows everything but the coins and the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedrec.aggregation import apply_update
from fedrec.config import RunConfig
from fedrec.data import Catalogue, Histories, load_central, load_merchant, merchant_folders
from fedrec.errors import InputError
from fedrec.merchant import read_merchant_file
from fedrec.model import Arrays, Scoring, TextEncoder, centred, log_prior
from fedrec.privacy import SampledGaussian, SeededNoise, epsilon, plan_noise
from fedrec.privacy.audit import epsilon_lower_bound, membership_metrics, tpr_bound
from fedrec.training import Examples, RoundTask, build_examples, train_round
from fedrec.training.heads import HeadsTrainer
from server.progress import notify
from server.start import first_state, load_encoder_for
from simulations.reference import Pooled

__all__ = [
    "NO_NOISE", "CanaryAudit", "Membership", "Target", "audit_config", "canary_audit", "make_canaries", "membership_attack",
    "open_target", "pick_merchant",
]  # fmt: skip

NO_NOISE = 1e-9
"""Noise multiplier of an audit with the noise off; the clipping stays."""
GUESSED = 0.25
"""Share of the canaries that are guessed: the top eighth by score as "in", the bottom eighth as
"out". Fixed before any coin is tossed, as the bound needs. More guesses show more where the
attack is always right, fewer where only its extremes are; a quarter did best with the noise on."""
ROUNDING = 1e-3
"""Floor of the noise that the auditor reckons with, over the clipping norm: an update is a
difference of float32 weights, and is not exact even with the noise off."""
CHUNK = 256
CANARY_STREAM = 0xCA9A
"""Keeps the canaries apart from whatever else a seed is used for."""

Switch = Literal["on", "off"]


@dataclass(frozen=True)
class Target:
    """The merchant under attack, and the model at round 0.

    Attributes:
        merchant: its name, data and policy.
        encoder, base, trained: the frozen encoder, the public part, and the heads to start from.
    """

    merchant: Pooled
    encoder: TextEncoder
    base: Arrays
    trained: Arrays

    @property
    def prior(self) -> np.ndarray:
        """Log popularity with no histogram released: the same for all items."""
        return log_prior(np.ones(len(self.merchant.data.catalogue)), 1.0)


@dataclass(frozen=True)
class CanaryAudit:
    """What the canary audit found.

    Attributes:
        epsilon_claimed, delta: what the run claims to spend.
        epsilon_lower: at `confidence`, the run's epsilon is more than this.
        epsilon_most: the largest `epsilon_lower` that this many guesses could show.
        canaries, guesses, correct: planted, guessed, guessed right.
        auc: of the canaries' scores.
        noise: "off" for a check of the audit itself.
        noise_multiplier: of a step.
    """

    epsilon_claimed: float
    delta: float
    epsilon_lower: float
    epsilon_most: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    auc: float
    rounds: int
    users: int
    noise: Switch
    noise_multiplier: float
    merchant: str
    seed: int
    method: str = (
        "one-run canary audit of the heads' rounds (Steinke, Nasr, Jagielski, NeurIPS 2023), user-level canaries, "
        "auditor sees every noisy update and adapter and knows all other users"
    )

    @property
    def refuted(self) -> bool:
        """Whether the claim is shown to be false."""
        return self.epsilon_lower > self.epsilon_claimed

    def as_json(self) -> dict[str, Any]:
        """All fields by name, and `refuted`."""
        return {**asdict(self), "refuted": self.refuted}


@dataclass(frozen=True)
class Membership:
    """What the membership attack on the released adapter found.

    Attributes:
        members, non_members: users trained on, and users of the same merchant left out.
        auc: 0.5 is guessing.
        tpr_at_1_percent, tpr_at_01_percent: members found at 1% and 0.1% false positives.
        bound_at_1_percent, bound_at_01_percent: the most that the claim allows.
    """

    members: int
    non_members: int
    auc: float
    tpr_at_1_percent: float
    bound_at_1_percent: float
    tpr_at_01_percent: float
    bound_at_01_percent: float
    noise: Switch
    method: str = "fall of the user's loss from the initial to the released adapter"

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class _Round:
    """One round as the auditor sees it: the adapter sent out, and the noisy answer."""

    task: RoundTask
    before: Arrays
    update: Arrays
    after: Arrays


def pick_merchant(federation: Path, name: str | None = None) -> Pooled:
    """A merchant of a federation folder: by name, else the one with the largest declared population.

    Raises:
        InputError: no merchant of that name, or bad data.
    """
    settings = {folder: read_merchant_file(folder / "merchant.toml") for folder in merchant_folders(federation)}
    fitting = [folder for folder, one in settings.items() if name in (None, one.name)]
    if not fitting:
        names = ", ".join(one.name for one in settings.values())
        raise InputError(f"there is no merchant {name!r}", where="--merchant", expected=f"one of {names}")
    folder = max(fitting, key=lambda one: settings[one].privacy.population)
    return Pooled(settings[folder].name, load_merchant(folder, settings[folder].data), settings[folder].privacy)


def open_target(federation: Path, merchant: Pooled, config: RunConfig) -> Target:
    """The merchant with the model that a run of its federation would start from."""
    config = audit_config(config)
    encoder = load_encoder_for(config)
    state = first_state(config, load_central(federation), encoder)
    return Target(merchant, encoder, state.public, state.trained)


def audit_config(config: RunConfig) -> RunConfig:
    """The settings with all rounds on the heads, all of the budget in them, users as the unit."""
    forced = {"heads": True, "encoder_layers": 0, "histogram_share": 0.0, "unit": "user"}
    return RunConfig.model_validate({**config.model_dump(), **forced})


def canary_audit(
    config: RunConfig, target: Target, *, canaries: int = 500, noise: bool = True, seed: int = 0, confidence: float = 0.95
) -> CanaryAudit:
    """Plant canaries, train, guess which were included, and bound epsilon from below.

    Args:
        config: settings; the noise is planned for `epsilon` and `delta` over `rounds` of the heads.
        target: the merchant under attack.
        canaries: how many made-up users, each included by a fair coin.
        noise: False trains with (practically) none, to see whether the audit finds the leak.
        seed: of the canaries, the coins and the noise.

    Raises:
        InputError: too few canaries, or too many for the catalogue; see `make_canaries`.
    """
    config, data = audit_config(config), target.merchant.data
    planted = make_canaries(data.catalogue, canaries, seed)
    included = SeededNoise(seed, target.merchant.name, "audit coins").poisson(canaries, 0.5)
    coins = np.isin(np.arange(canaries), included)
    sigma, claimed = _noise_of(config, noise)
    rows = _examples(config, planted)
    honest = _examples(config, data.histories)
    everyone = _examples(config, _joined(data.histories, _subset(planted, included)))
    population = target.merchant.policy.population + canaries // 2
    attack = _Attack(target, rows, honest, population)
    for one in _rounds(config, target, everyone, population, sigma, seed, "canaries"):
        attack.see(one)
    scores = attack.scores()
    guesses = 2 * max(1, int(GUESSED * canaries / 2))
    order = np.argsort(scores, kind="stable")
    correct = int(coins[order[-guesses // 2 :]].sum() + (~coins[order[: guesses // 2]]).sum())
    return CanaryAudit(
        epsilon_claimed=claimed,
        delta=config.delta,
        epsilon_lower=epsilon_lower_bound(canaries, guesses, correct, config.delta, confidence),
        epsilon_most=epsilon_lower_bound(canaries, guesses, guesses, config.delta, confidence),
        confidence=confidence,
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        auc=membership_metrics(scores[coins], scores[~coins]).auc,
        rounds=config.rounds,
        users=len(data.histories),
        noise="on" if noise else "off",
        noise_multiplier=sigma,
        merchant=target.merchant.name,
        seed=seed,
    )


def membership_attack(config: RunConfig, target: Target, *, noise: bool = True, seed: int = 0) -> Membership:
    """Train on a random half of the users and tell them from the other half by the released adapter.

    Each user is a member by a fair coin, so members and others are alike but for the training.
    The score is the user's loss under the initial adapter minus that under the last one.

    Raises:
        InputError: one of the halves has no user with anything to predict.
    """
    config = audit_config(config)
    users = len(target.merchant.data.histories)
    member = np.isin(np.arange(users), SeededNoise(seed, target.merchant.name, "audit members").poisson(users, 0.5))
    sigma, claimed = _noise_of(config, noise)
    everyone = _examples(config, target.merchant.data.histories)
    trained_on = everyone.take(np.flatnonzero(member))
    last = target.trained
    for one in _rounds(config, target, trained_on, max(1, target.merchant.policy.population // 2), sigma, seed, "membership"):
        last = one.after
    scoring = _task(config, 0, sigma).scoring
    fall = _losses(target, target.trained, scoring, everyone) - _losses(target, last, scoring, everyone)
    usable = np.isin(np.arange(users), everyone.target[:, 0])  # a user with nothing to predict has no loss
    metrics = membership_metrics(fall[usable & member], fall[usable & ~member])
    return Membership(
        members=int((usable & member).sum()),
        non_members=int((usable & ~member).sum()),
        auc=metrics.auc,
        tpr_at_1_percent=metrics.tpr_at_1_percent,
        bound_at_1_percent=tpr_bound(claimed, config.delta, 0.01),
        tpr_at_01_percent=metrics.tpr_at_01_percent,
        bound_at_01_percent=tpr_bound(claimed, config.delta, 0.001),
        noise="on" if noise else "off",
    )


def make_canaries(catalogue: Catalogue, count: int, seed: int) -> Histories:
    """Made-up users who bought one random item of the public catalogue, and later another.

    No two have the same pair, so no two have the same gradient. Longer histories do worse:
    they have more in common.

    Raises:
        InputError: `count` is under 8, or more than the ordered pairs of items.
    """
    items = len(catalogue)
    pairs = items * (items - 1)
    if not 8 <= count <= pairs:
        raise InputError(f"found {count}", where="--canaries", expected=f"8 to {pairs}, the ordered pairs of {items} items")
    first, second = np.divmod(np.random.default_rng([seed, CANARY_STREAM]).permutation(pairs)[:count], items - 1)
    second = second + (second >= first)
    return Histories(
        tuple(f"canary-{number}" for number in range(count)),
        2 * np.arange(count + 1, dtype=np.int64),
        np.stack([first, second], axis=1).reshape(-1).astype(np.int64),
        np.tile(np.arange(2, dtype=np.int64), count),
    )


class _Attack:
    """The linear estimate of who was included, from every noisy update.

    Rounds say  y_t = q G_t' b + noise, with b the coins, G_t the canaries' clipped gradients
    at the adapter that was sent out, and y_t the update as a sum of gradients, less what the
    known users add. Under Gaussian noise of variance s the least squares estimate of b, with
    variance 1/4 before anything is seen, solves

        (sum_t q^2 M_t K_t + 4 I) (b - 1/2) = sum_t q M_t G_t (y_t - q G_t' 1/2),
        K_t = G_t G_t',   M_t = (s I + q (1 - q) / 2 K_t)^-1,

    where the second term of M_t is that of sampling. It weighs directions by how well they
    tell one canary from the rest, so what canaries share is discounted.
    """

    def __init__(self, target: Target, canaries: Examples, honest: Examples, population: int) -> None:
        self.target, self.canaries, self.honest, self.population = target, canaries, honest, population
        self.left = 4 * np.eye(len(canaries))
        self.right = np.zeros(len(canaries))

    def see(self, one: _Round) -> None:
        """Take in one round's update."""
        task = one.task
        rate, steps = task.sample_rate, task.local_steps
        g = torch.cat(list(_clipped(self.target, one.before, task, self.canaries))).numpy()  # (canaries, numbers)
        known = sum(part.sum(0).double().numpy() for part in _clipped(self.target, one.before, task, self.honest))
        lot = rate * self.population
        y = -_flat(one.update) * lot / (task.learning_rate * steps) - rate * known - rate * g.sum(0, dtype=np.float64) / 2
        k = (g @ g.T).astype(np.float64)
        noise = (max(task.noise_multiplier, ROUNDING) * task.clip_norm) ** 2
        whiten = noise / steps * np.eye(len(g)) + rate * (1 - rate) / 2 / steps * k
        self.left += rate**2 * np.linalg.solve(whiten, k)
        self.right += rate * np.linalg.solve(whiten, g @ y)

    def scores(self) -> np.ndarray:
        """(canaries,) higher where more likely included."""
        return np.linalg.solve(self.left, self.right)


def _rounds(
    config: RunConfig, target: Target, examples: Examples, population: int, sigma: float, seed: int, attack: str
) -> Iterator[_Round]:
    """The rounds of a federation of this one merchant, with the server's optimizer between them."""
    trained, state = target.trained, {}  # type: Arrays, Arrays
    for number in range(1, config.rounds + 1):
        task = _task(config, number, sigma)
        update = train_round(
            task,
            target.merchant.data.catalogue,
            examples,
            encoder=target.encoder,
            base=target.base,
            trained=trained,
            prior=target.prior,
            population=population,
            noise=SeededNoise(seed, target.merchant.name, f"audit {attack}", number),
        )
        moved, state = apply_update(config.server_optimizer, trained, update, state, config.server_learning_rate)
        after = {**trained, **moved}
        yield _Round(task, trained, update, after)
        notify("audit_round", attack=attack, round=number, rounds=config.rounds)
        trained = after


def _noise_of(config: RunConfig, noise: bool) -> tuple[float, float]:
    """The noise multiplier of a step, and the epsilon that the run claims."""
    sigma, claimed = config.noise_multiplier, config.epsilon
    if sigma:
        claimed = epsilon([SampledGaussian(sigma, config.sample_rate, config.rounds * config.local_steps)], config.delta).value
    if not noise:
        return NO_NOISE, claimed
    return sigma or plan_noise(config).of("heads"), claimed


def _task(config: RunConfig, number: int, sigma: float) -> RoundTask:
    names = (
        "local_steps", "sample_rate", "clip_norm", "delta", "unit", "learning_rate", "history", "positions",
        "negatives", "encoder_history", "temperature", "decay", "prior_weight", "encoder_layers", "encoder_rank", "max_tokens",
        "update_code",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in names}
    return RoundTask(run="audit", round=number, part="heads", trunk="", noise_multiplier=sigma, **values)


def _trainer(target: Target, trained: Arrays, scoring: Scoring) -> HeadsTrainer:
    target.encoder.load({**target.base, **trained})
    e = centred(target.encoder.embed(target.merchant.data.catalogue), target.base)
    return HeadsTrainer(e, target.prior, target.base, trained, scoring)


def _clipped(target: Target, trained: Arrays, task: RoundTask, records: Examples) -> Iterator[Tensor]:
    """Each record's gradient at `trained`, clipped as the optimizer does: (chunk, numbers), in order."""
    for chunk in _trainer(target, trained, task.scoring).gradients(records):
        gradients = chunk.per_record().cpu()
        yield gradients.mul_((task.clip_norm / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))


def _losses(target: Target, trained: Arrays, scoring: Scoring, records: Examples) -> np.ndarray:
    """Each record's loss, (records,) float64."""
    return _trainer(target, trained, scoring).losses(records).cpu().numpy().astype(np.float64)


def _flat(update: Arrays) -> np.ndarray:
    """In the order of `HeadsTrainer.parameters`, which is that of `HeadsTrainer.arrays`."""
    return np.concatenate([value.reshape(-1) for value in update.values()]).astype(np.float64)


def _examples(config: RunConfig, histories: Histories) -> Examples:
    return build_examples(histories, history=config.history, positions=config.positions, decay=config.decay, unit="user")


def _subset(histories: Histories, users: np.ndarray) -> Histories:
    lengths = np.diff(histories.offsets)[users]
    rows = np.concatenate([np.arange(histories.offsets[u], histories.offsets[u + 1]) for u in users] or [np.zeros(0, np.int64)])
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    return Histories(tuple(histories.user_ids[u] for u in users), offsets, histories.items[rows], histories.baskets[rows])


def _joined(first: Histories, second: Histories) -> Histories:
    return Histories(
        first.user_ids + second.user_ids,
        np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        np.concatenate([first.items, second.items]),
        np.concatenate([first.baskets, second.baskets]),
    )
