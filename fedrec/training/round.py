"""`train_round`: the one function that simulation and deployment both call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from fedrec.config import MOST_NOISE, MOST_PAIRS, MOST_RATING, ObjectiveName, Part, Unit, UpdateCode
from fedrec.data import Catalogue
from fedrec.model.adapter import Arrays, norm
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import Scoring, centred
from fedrec.objectives import OBJECTIVES, Asked, Lot, parts_of
from fedrec.privacy import Gradients, NoiseSource, UserDPOptimizer, clipped_sum
from fedrec.text import RunId
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.heads import HeadsTrainer

__all__ = ["MOST", "RoundTask", "expected_lot", "round_sum", "train_round"]

MOST = 1000
"""Ceiling of every size in a task. Sizes that only some data exceed would make a failure tell of them."""


Size = Annotated[int, Field(ge=1, le=MOST)]
Factor = Annotated[float, Field(ge=0, le=MOST)]
Bound = Annotated[float, Field(ge=-MOST_RATING, le=MOST_RATING)]


@dataclass(frozen=True)
class RoundTask:
    """What the server asks of a merchant in a round.

    `trunk` is the fingerprint of the encoder's frozen weights, so that merchants with other
    weights decline instead of training something else.
    """

    run: RunId
    round: Annotated[int, Field(ge=1)]
    part: Part
    trunk: str
    encoder_layers: Annotated[int, Field(ge=0, le=MOST)]
    encoder_rank: Size
    max_tokens: Size
    local_steps: Size
    sample_rate: float
    clip_norm: Annotated[float, Field(ge=1e-6)]
    noise_multiplier: Annotated[float, Field(le=MOST_NOISE)]
    delta: float
    unit: Unit
    learning_rate: Factor
    history: Size
    positions: Size
    negatives: Size
    encoder_history: Size
    temperature: Factor
    decay: Factor
    prior_weight: Factor
    update_code: UpdateCode
    objective: ObjectiveName = "next-item"
    impressions: Size = 64
    bias: Annotated[float, Field(ge=-MOST, le=MOST)] = 0.0
    rating_min: Bound = 1.0
    rating_max: Bound = 5.0
    next_item_weight: Factor = 1.0
    response_weight: Factor = 1.0
    response_temperature: Factor = 0.0
    response_decay: Factor = 0.0
    response_prior_weight: Factor = 0.0

    def __post_init__(self) -> None:
        if self.positions * self.history > MOST_PAIRS:
            raise ValueError(f"positions times history: expected at most {MOST_PAIRS}, found {self.positions * self.history}")
        if self.objective != "next-item" and self.unit == "event":
            # A record holds many labels, and one event more may move all of its blocks.
            raise ValueError(f"unit: expected 'user' with objective {self.objective!r}, found 'event'")
        if self.rating_min >= self.rating_max:
            raise ValueError("rating_min: expected less than rating_max")

    @property
    def asked(self) -> Asked:
        """How records are made for this round."""
        decays = tuple(part.decay for part in self.scoring.parts)
        return Asked(
            self.history, self.positions, self.decay, self.unit, self.impressions, self.part == "heads",
            self.rating_min, self.rating_max, decays, (self.next_item_weight, self.response_weight)[: len(decays)],
        )  # fmt: skip

    @property
    def scoring(self) -> Scoring:
        """The numbers of the score that this round trains under; of several objectives the bias is the response's."""
        if self.objective != "next-item+response":
            return Scoring(self.temperature, self.decay, self.prior_weight, self.bias)
        response = Scoring(self.response_temperature, self.response_decay, self.response_prior_weight, self.bias)
        return Scoring(self.temperature, self.decay, self.prior_weight, after=response)


def expected_lot(task: RoundTask, population: float) -> float:
    """Expected number of records in a step, from public numbers only.

    With unit `event` a user is up to `positions` records, and the denominator says so.
    """
    return task.sample_rate * population * (task.positions if task.unit == "event" else 1)


def train_round(
    task: RoundTask,
    catalogue: Catalogue,
    examples: Lot,
    *,
    encoder: TextEncoder,
    base: Arrays,
    trained: Arrays,
    prior: np.ndarray,
    population: int,
    noise: NoiseSource,
    queries: Sequence[str] = (),
) -> Arrays:
    """Take the round's private steps and return the noisy change of the trained part.

    Args:
        examples: every record of the merchant, as `build_records` makes them.
        prior: (items,) log popularity of the merchant's catalogue.
        population: the publicly declared number of users; never the true one.
        noise: where sampling and noise come from.
        queries: what users searched for, as `Histories` has it.

    Returns:
        `trained after - trained before` for the arrays of `task.part`, float32.

    Raises:
        RuntimeError: the adapter did not move, which means that no gradient reached it.
    """
    trainer = _trainer(task, catalogue, encoder, base, trained, prior, queries)
    before = trainer.arrays()
    optimizer = UserDPOptimizer(
        trainer.parameters(),
        noise,
        learning_rate=task.learning_rate,
        noise_multiplier=task.noise_multiplier,
        clip_norm=task.clip_norm,
        expected_lot=expected_lot(task, population),
    )
    for _ in range(task.local_steps):
        for gradients in _lot(task, trainer, len(catalogue), examples, noise):
            optimizer.add(gradients)
        optimizer.finish_step()
    delta = {name: value - before[name] for name, value in trainer.arrays().items()}
    if norm(delta) == 0:
        raise RuntimeError("the private steps moved nothing: no gradient and no noise reached the adapter")
    return delta


def round_sum(
    task: RoundTask,
    catalogue: Catalogue,
    examples: Lot,
    *,
    encoder: TextEncoder,
    base: Arrays,
    trained: Arrays,
    prior: np.ndarray,
    noise: NoiseSource,
    queries: Sequence[str] = (),
) -> Arrays:
    """The sum of clipped gradients of one drawn lot, WITHOUT noise: what a merchant adds to a secure sum.

    It is private data and must not leave the process but with its share of noise, rounded and masked.

    Args:
        examples: every record of the merchant, as `build_records` makes them.
        prior: (items,) log popularity of the merchant's catalogue.
        noise: where sampling comes from.
        queries: what users searched for, as `Histories` has it.

    Returns:
        The arrays of `task.part`, float64.
    """
    trainer = _trainer(task, catalogue, encoder, base, trained, prior, queries)
    totals = [torch.zeros_like(parameter, dtype=torch.float64, device="cpu") for parameter in trainer.parameters()]
    for gradients in _lot(task, trainer, len(catalogue), examples, noise):
        for total, part in zip(totals, clipped_sum(gradients, task.clip_norm), strict=True):
            total += part.detach().cpu().view_as(total)
    return {name: total.numpy() for name, total in zip(trainer.arrays(), totals, strict=True)}


def _trainer(
    task: RoundTask,
    catalogue: Catalogue,
    encoder: TextEncoder,
    base: Arrays,
    trained: Arrays,
    prior: np.ndarray,
    queries: Sequence[str],
) -> HeadsTrainer | EncoderTrainer:
    encoder.load({**base, **trained})
    objective = OBJECTIVES[task.objective]
    if task.part == "heads":
        e = centred(encoder.embed(catalogue), base)
        asked = torch.cat([e[:0], *(centred(one[None], base) for one in encoder.embed_private(queries))])
        events = 2 * task.history * len(parts_of(objective))
        return HeadsTrainer(e, prior, base, trained, task.scoring, events=events, queries=asked, objective=objective)
    states = encoder.states(catalogue).followed_by(encoder.private_states(queries))
    return EncoderTrainer(encoder, states, prior, base, trained, task.scoring, history=task.encoder_history, objective=objective)


def _lot(
    task: RoundTask, trainer: HeadsTrainer | EncoderTrainer, items: int, examples: Lot, noise: NoiseSource
) -> Iterator[Gradients]:
    """The gradients of a fresh Poisson draw, chunk by chunk."""
    if isinstance(trainer, EncoderTrainer) and trainer.objective.negatives:
        trainer.negatives = noise.integers(items, task.negatives)
    yield from trainer.gradients(examples.take(noise.poisson(len(examples), task.sample_rate)))
