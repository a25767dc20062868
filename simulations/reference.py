"""The same training with the noise and the clipping off: a yardstick that is not private.

It shares the model and the loss with private training and nothing else: a plain sum of
gradients, no Flower, no Opacus, no ledger. Only a simulation can run it, since it needs
every merchant's data in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from fedrec.aggregation import apply_update, weighted_mean
from fedrec.config import Part, RunConfig
from fedrec.data import MerchantData, load_merchant, merchant_folders
from fedrec.data.rated import in_units
from fedrec.merchant import read_merchant_file
from fedrec.model import Arrays, Scoring, TextEncoder, centred, log_prior
from fedrec.model.adapter import HEAD_A, HEAD_B, TERMS, of_part
from fedrec.model.towers import linear_terms
from fedrec.objectives import OBJECTIVES, Asked, Known, parts_of
from fedrec.privacy import Policy, SeededNoise, rated_votes
from fedrec.training import Examples, merged
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.sampled import layout

__all__ = ["Pooled", "local_round", "plain_counts", "plain_ratings", "reference_rounds"]

COUNTS, FLOOR, RATINGS = "prior.counts", "prior.floor", "prior.ratings"


@dataclass(frozen=True)
class Pooled:
    """One merchant, as the reference sees it."""

    name: str
    data: MerchantData
    policy: Policy

    @classmethod
    def read(cls, federation: Path) -> list[Pooled]:
        """All merchants of a federation folder."""
        out = []
        for folder in merchant_folders(federation):
            settings = read_merchant_file(folder / "merchant.toml")
            out.append(cls(settings.name, load_merchant(folder, settings.data), settings.privacy))
        return out

    def prior(self, public: Arrays) -> np.ndarray:
        """What is released of each of its items, as `clients.merchant.Merchant.prior` has it."""
        name, keys = (RATINGS if RATINGS in public else COUNTS), self.data.catalogue.keys.tolist()
        known, floor = dict(zip(public["prior.keys"].tolist(), public[name].tolist(), strict=True)), float(public[FLOOR][0])
        if name == RATINGS:
            mean = float(public[RATINGS].mean()) if known else 0.0
            return np.array([known.get(key, mean) for key in keys], dtype=np.float32)
        return log_prior(np.array([known.get(key, floor) for key in keys]), floor)

    def known(self, public: Arrays, trained: Arrays, encoder: TextEncoder) -> Known | None:
        """What is public of its items, of a run on ratings with heads; tastes are by the texts as they are at first."""
        if RATINGS not in public:
            return None
        encoder.load({**public, **trained})
        e = centred(encoder.embed(self.data.catalogue), public).cpu().numpy()
        return Known(self.prior(public), e @ public[HEAD_A])


def plain_ratings(merchants: list[Pooled], keys: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """`rated_votes` of all merchants, without noise: (2 * items,). Texts that are not among `keys` are left out."""
    total, places = np.zeros(2 * len(keys)), {int(key): place for place, key in enumerate(keys)}
    for merchant in merchants:
        rated = merchant.data.histories.rated
        if rated is not None:
            place = np.array([places.get(key, -1) for key in merchant.data.catalogue.keys.tolist()], dtype=np.int64)[rated.items]
            users = np.repeat(np.arange(len(merchant.data.histories)), np.diff(rated.offsets))
            here, said = place >= 0, in_units(rated.answer, lowest, highest)
            total += rated_votes(users[here], place[here], said[here], len(keys))
    return total


def plain_counts(merchants: list[Pooled], keys: np.ndarray) -> np.ndarray:
    """How many users bought each text, without noise: (items,) float32."""
    place = {int(key): i for i, key in enumerate(keys)}
    counts = np.zeros(len(keys), dtype=np.float32)
    for merchant in merchants:
        histories = merchant.data.histories.targets()
        users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
        pairs = np.unique(np.stack([users, histories.items]), axis=1)
        bought = np.bincount(pairs[1], minlength=len(merchant.data.catalogue))
        for key, count in zip(merchant.data.catalogue.keys, bought, strict=True):
            if int(key) in place:
                counts[place[int(key)]] += count
    return counts


def reference_rounds(
    config: RunConfig,
    merchants: list[Pooled],
    encoder: TextEncoder,
    public: Arrays,
    trained: Arrays,
    scoring: Scoring,
    refit: Callable[[Arrays, Scoring], Scoring] = lambda _, scoring: scoring,
) -> Iterator[tuple[int, Arrays]]:
    """Rounds of federated averaging without privacy, yielding the adapter after each.

    Args:
        public: the base arrays, and `prior.counts` and `prior.floor` by `prior.keys`.
        trained: where to start.
        scoring: what is trained under first.
        refit: what the next round trains under, from the adapter and the scoring before; it keeps the decay.
    """
    state: Arrays = {}
    asked = Asked(
        config.history, config.positions, scoring.decay, config.unit, config.impressions, False, config.rating_min,
        config.rating_max, tuple(part.decay for part in scoring.parts), config.objective_weights,
    )  # fmt: skip
    events = [
        OBJECTIVES[config.objective].records(m.data.histories, asked, m.known(public, trained, encoder)).padded()
        for m in merchants
    ]
    examples = {"heads": [merged(one) for one in events], "encoder": events}
    weights = [float(m.policy.population) if config.weighting == "population" else 1.0 for m in merchants]
    for number in range(1, config.rounds + 1):
        part = config.part(number)
        updates = [
            local_round(config, part, number, merchant, one, encoder, public, trained, scoring)
            for merchant, one in zip(merchants, examples[part], strict=True)
        ]
        rate = config.server_learning_rate if part == "heads" else config.encoder_learning_rate
        moved, state = apply_update(config.server_optimizer, trained, weighted_mean(updates, weights), state, rate, 0.0)
        trained = {**trained, **moved}
        scoring = refit(trained, scoring)
        yield number, trained


def local_round(
    config: RunConfig, part: Part, number: int, merchant: Pooled, examples: Examples,
    encoder: TextEncoder, public: Arrays, trained: Arrays, scoring: Scoring,
) -> Arrays:  # fmt: skip
    """One merchant's change after its local steps of plain SGD."""
    prior = merchant.prior(public)
    noise = SeededNoise(config.seed, merchant.name, "reference", number)
    before = of_part(trained, part)
    local = {**trained}
    for _ in range(config.local_steps):
        lot = examples.take(noise.poisson(len(examples), config.sample_rate_of(part)))
        gradient = _heads if part == "heads" else _encoder
        expected = config.sample_rate_of(part) * merchant.policy.population * (config.positions if config.unit == "event" else 1)
        summed = gradient(config, merchant, lot, prior, encoder, public, local, scoring, noise)
        local |= {
            name: (local[name] - config.learning_rate * value / expected).astype(np.float32) for name, value in summed.items()
        }
    return {name: local[name] - value for name, value in before.items()}


def _heads(
    config: RunConfig, merchant: Pooled, lot: Examples, prior: np.ndarray,
    encoder: TextEncoder, public: Arrays, trained: Arrays, scoring: Scoring, noise: SeededNoise,
) -> Arrays:  # fmt: skip
    """Summed gradient of the heads, and of the linear terms if there are any, by plain autograd."""
    encoder.load({**public, **trained})
    e = centred(encoder.embed(merchant.data.catalogue), public)
    a = torch.as_tensor(public[HEAD_A], device=e.device)
    b = {role: torch.tensor(trained[name], device=e.device, requires_grad=True) for role, name in HEAD_B.items()}
    asked = centred(encoder.embed_private(merchant.data.histories.queries), public)
    texts = {"history": torch.cat([e, asked]), "candidate": e}
    tables = {role: normalize(texts[role] + (texts[role] @ a) @ value, dim=-1) for role, value in b.items()}
    popular, linear, objective = torch.as_tensor(prior, device=e.device), None, OBJECTIVES[config.objective]
    if objective.terms:
        linear = torch.tensor(trained[TERMS], device=e.device, requires_grad=True)
        popularity = torch.as_tensor(linear_terms(trained[TERMS], prior)[-1], device=e.device)
        by_item = e @ linear[1, :-1] + linear[0, -1] + linear[1, -1] * popularity
    total = e.new_zeros(())
    for start in range(0, len(lot), 512):
        chunk = lot.take(np.arange(start, min(start + 512, len(lot))))
        weights = torch.as_tensor(chunk.weights, device=e.device).flatten(0, 1)  # (records * P, L)
        items = torch.as_tensor(chunk.items, device=e.device).repeat_interleave(chunk.weights.shape[1], 0)
        pooled = embedding_bag(items, tables["history"], per_sample_weights=weights, mode="sum")
        users = normalize(pooled, dim=-1).view(*chunk.weights.shape[:2], -1)
        cosines, found, means = users @ tables["candidate"].T, [], users
        if linear is not None:
            means = embedding_bag(items, texts["history"], per_sample_weights=weights, mode="sum").view_as(users)
        parts = parts_of(objective)
        cut = zip(parts, scoring.parts, *(one.chunk(len(parts), dim=1) for one in (cosines, means)), strict=True)
        for part, numbers, cosine, mean in cut:
            found.append(numbers.temperature * cosine + popular * numbers.prior_weight + numbers.bias)
            if part.terms and linear is not None:
                found[-1] = found[-1] + by_item + (mean @ linear[0, :-1])[..., None]
        total = total + objective.losses(torch.cat(found, dim=1), chunk).sum()
    moving = {HEAD_B[role]: value for role, value in b.items()} | ({} if linear is None else {TERMS: linear})
    gradients = torch.autograd.grad(total, list(moving.values()), allow_unused=True)
    return {name: _array(gradient, moving[name]) for name, gradient in zip(moving, gradients, strict=True)}


def _encoder(
    config: RunConfig, merchant: Pooled, lot: Examples, prior: np.ndarray,
    encoder: TextEncoder, public: Arrays, trained: Arrays, scoring: Scoring, noise: SeededNoise,
) -> Arrays:  # fmt: skip
    """Summed gradient of the encoder's LoRA: each distinct text once, since no user is told from another."""
    states = encoder.states(merchant.data.catalogue)
    states = states.followed_by(encoder.private_states(merchant.data.histories.queries))
    objective = OBJECTIVES[config.objective]
    trainer = EncoderTrainer(
        encoder, states, prior, public, trained, scoring, history=config.encoder_history, objective=objective
    )
    if objective.negatives:
        trainer.negatives = noise.integers(len(prior), config.negatives)
    parameters = trainer.parameters()
    summed = [torch.zeros_like(value) for value in parameters]
    for chunk in trainer.chunks(lot):
        pairs = layout(chunk, config.encoder_history, len(parts_of(objective)))
        if not len(pairs.text):
            continue
        distinct, where = np.unique(np.concatenate([pairs.text, trainer.negatives]), return_inverse=True)
        leaf = encoder.pooled(states, distinct).requires_grad_(True)
        own, shared = leaf[torch.as_tensor(where)].split([len(pairs.text), len(trainer.negatives)])
        losses = trainer.loss.losses(own, shared.expand(len(chunk), -1, -1), pairs, chunk, trainer.negatives)
        (upstream,) = torch.autograd.grad(losses.sum(), leaf)
        for rows in encoder.batches(states.length[distinct]):
            out = encoder.run_top(*encoder.gather(states, distinct[rows]))
            for total, gradient in zip(
                summed, torch.autograd.grad(out, parameters, upstream[torch.as_tensor(rows)]), strict=True
            ):
                total += gradient
    return dict(zip(of_part(trained, "encoder"), (value.cpu().numpy() for value in summed), strict=True))


def _array(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    return np.zeros(like.shape, np.float32) if gradient is None else gradient.cpu().numpy()
