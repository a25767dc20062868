"""Rounds of training as an auditor sees them: what is sent out, what comes back, and what each canary would add."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch

from fedrec.aggregation import apply_update, noise_in_update
from fedrec.config import Part, RunConfig
from fedrec.data import Histories
from fedrec.model import Arrays, centred
from fedrec.objectives import OBJECTIVES, Asked, Lot
from fedrec.privacy import Gradients, NoiseSource, PerRecord, clipped_sum
from fedrec.training import Examples, RoundTask, expected_lot, train_round
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.factors import RecordGradients
from fedrec.training.heads import HeadsTrainer
from server.progress import notify
from simulations.audit.target import Attacked, Target

__all__ = [
    "Answer", "Round", "examples_of", "heads_trainer", "make_task", "noisy_update", "of_all", "of_each", "records_of",
    "rounds",
]  # fmt: skip

Answer = Callable[[Attacked, RoundTask, Lot, Arrays, NoiseSource], Arrays]
"""What comes of a round on a merchant's records from an adapter, as a change of it."""


@dataclass(frozen=True)
class Round:
    """One round: the adapter sent out, the noisy answer, the adapter after the server's step, and the public draws."""

    task: RoundTask
    before: Arrays
    update: Arrays
    after: Arrays
    negatives: tuple[np.ndarray, ...]


class _Watched:
    """A source of noise that keeps what was drawn from public lists: the negatives, which an auditor may know."""

    def __init__(self, source: NoiseSource) -> None:
        self._source, self.drawn = source, cast(list[np.ndarray], [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def integers(self, high: int, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        self.drawn.append(self._source.integers(high, size))
        return self.drawn[-1]


def rounds(run: Attacked, part: Part, examples: Lot, answer: Answer) -> Iterator[Round]:
    """The rounds of a federation with the server's optimizer between them."""
    config, trained, state = run.config, run.target.trained, {}  # type: RunConfig, Arrays, Arrays
    rate = config.server_learning_rate if part == "heads" else config.encoder_learning_rate
    for number in range(1, config.rounds + 1):
        task, noise = make_task(run, part, number), _Watched(run.noise(number))
        update = answer(run, task, examples, trained, cast(NoiseSource, noise))
        std = noise_in_update(
            steps=task.local_steps, learning_rate=task.learning_rate, clip_norm=task.clip_norm,
            noise_multiplier=task.noise_multiplier, lot=expected_lot(task, run.population),
        )  # fmt: skip
        moved, state = apply_update(config.server_optimizer, trained, update, state, rate, std)
        after = {**trained, **moved}
        yield Round(task, trained, update, after, tuple(noise.drawn))
        notify("audit_round", attack=run.label, round=number, rounds=config.rounds)
        trained = after


def noisy_update(run: Attacked, task: RoundTask, examples: Lot, trained: Arrays, noise: NoiseSource) -> Arrays:
    """An `Answer`: that of the one merchant under attack, with all of the noise."""
    target = run.target
    return train_round(
        task, target.merchant.data.catalogue, examples, encoder=target.encoder, base=target.base, trained=trained,
        prior=target.prior, population=run.population, noise=noise, queries=target.merchant.data.histories.queries,
    )  # fmt: skip


def make_task(run: Attacked, part: Part, number: int) -> RoundTask:
    """What the server would ask for in a round."""
    config = run.config
    own: dict[str, Any] = {
        "run": "audit", "round": number, "part": part, "trunk": "", "noise_multiplier": run.sigma,
        "sample_rate": config.sample_rate_of(part), "bias": 0.0,
    }  # fmt: skip
    # What is no setting, such as the numbers of a second objective, is not asked of the objectives that are attacked.
    given = {one.name: getattr(config, one.name) for one in fields(RoundTask) if one.name in RunConfig.model_fields}
    return RoundTask(**given | own)


def of_each(run: Attacked, one: Round, records: Examples) -> np.ndarray:
    """Each record's clipped gradient at the adapter that a round sent out, (records, numbers) float32."""
    every = [torch.cat([_rows(chunk, one.task.clip_norm) for chunk in chunks]).numpy() for chunks in _passes(run, one, records)]
    return cast(np.ndarray, np.mean(every, axis=0))


def of_all(run: Attacked, one: Round, records: Examples) -> np.ndarray:
    """The sum of `of_each`, (numbers,) float64."""
    every = []
    for chunks in _passes(run, one, records):
        sums = (torch.cat([part.flatten().cpu().double() for part in clipped_sum(c, one.task.clip_norm)]) for c in chunks)
        every.append(sum(sums, torch.zeros((), dtype=torch.float64)).numpy())
    return cast(np.ndarray, np.mean(every, axis=0))


def heads_trainer(target: Target, trained: Arrays, task: RoundTask) -> HeadsTrainer:
    """The heads as a merchant trains them."""
    target.encoder.load({**target.base, **trained})
    data = target.merchant.data
    e = centred(target.encoder.embed(data.catalogue), target.base)
    asked = [centred(one[None], target.base) for one in target.encoder.embed_private(data.histories.queries)]
    return HeadsTrainer(
        e, target.prior, target.base, trained, task.scoring, events=2 * task.history, queries=torch.cat([e[:0], *asked]),
        objective=OBJECTIVES[task.objective],
    )  # fmt: skip


def examples_of(config: RunConfig, histories: Histories) -> Examples:
    """One record a user."""
    records = OBJECTIVES[config.objective].records(histories, _asked(config, merge=False))
    return records if isinstance(records, Examples) else records.padded()


def records_of(config: RunConfig, histories: Histories, part: Part) -> Lot:
    """The same as a merchant trains on them."""
    return OBJECTIVES[config.objective].records(histories, _asked(config, merge=part == "heads"))


def _asked(config: RunConfig, merge: bool) -> Asked:
    return Asked(config.history, config.positions, config.decay, "user", config.impressions, merge)


def _passes(run: Attacked, one: Round, records: Examples) -> Iterator[Iterator[Gradients]]:
    """The gradients of some records, once for each of the round's draws of negatives; the heads have none."""
    target, task = run.target, one.task
    if task.part == "heads":
        yield heads_trainer(target, one.before, task).gradients(records)
        return
    data = target.merchant.data
    states = target.encoder.states(data.catalogue).followed_by(target.encoder.private_states(data.histories.queries))
    trainer = EncoderTrainer(
        target.encoder, states, target.prior, target.base, one.before, task.scoring, history=task.encoder_history,
        objective=OBJECTIVES[task.objective],
    )  # fmt: skip
    if not trainer.objective.negatives:
        yield trainer.gradients(records)
    for negatives in one.negatives:
        trainer.negatives = negatives
        yield trainer.gradients(records)


def _rows(chunk: Gradients, clip_norm: float) -> torch.Tensor:
    """(records, numbers), each scaled as `clipped_sum` does."""
    if isinstance(chunk, RecordGradients):
        rows = chunk.per_record()
    else:
        rows = torch.cat([sample.flatten(1) for sample in cast(PerRecord, chunk).samples], dim=1)
    factors = (clip_norm / chunk.squared_norms().sqrt().clamp_min(1e-12)).clamp(max=1.0)
    return (rows * factors[:, None]).float().cpu()
