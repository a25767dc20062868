"""One merchant whose private step is measured, and the ways to take it: ours, the obvious one, and without privacy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import CPU, Way, fastest
from benchmarks.obvious import Obvious
from fedrec.config import Part, RunConfig
from fedrec.data import load_merchant
from fedrec.model import Arrays, Scoring, TextEncoder, centred, init_base, init_trained, load_encoder
from fedrec.model.adapter import of_part
from fedrec.privacy import Policy, SeededNoise, clipped_sum
from fedrec.training import Examples, RoundTask, build_examples, merged, train_round
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.heads import HeadsTrainer
from fedrec.training.sampled import layout
from simulations.reference import Pooled, local_round

__all__ = ["SHAPE", "Bench", "Shape", "clipped"]

HEAD_RANK, NEGATIVES, CLIP = 32, 24, 0.1
BATCHES = (64, 256)
"""Users at a time that the obvious way tries, besides all of them."""
Step = Callable[[Examples], list[torch.Tensor]]
Batched = Callable[..., list[torch.Tensor]]
"""Takes a lot and `batch`, how many users go together."""


@dataclass(frozen=True)
class Shape:
    """An encoder, and where its LoRA is."""

    name: str = "minilm-l6"
    layers: int = 1
    rank: int = 8
    max_tokens: int = 48
    texts_per_batch: int = 128


SHAPE = Shape()


class Bench:
    """One merchant with an adapter as after some rounds: where B = 0, a gradient that is wrong may pass unseen."""

    def __init__(
        self, folder: Path, history: int = 50, encoder_history: int = 12, *, shape: Shape = SHAPE, device: torch.device = CPU
    ) -> None:
        self.data, self.shape, self.device = load_merchant(folder), shape, device
        self.history, self.encoder_history = history, encoder_history
        self.encoder: TextEncoder = load_encoder(
            shape.name, shape.layers, shape.rank, shape.max_tokens, str(device), shape.texts_per_batch
        )
        self.states = self.encoder.states(self.data.catalogue)
        self.base: Arrays = init_base(self.encoder, self.states, True, HEAD_RANK, "principal", 0)
        rng = np.random.default_rng(0)
        zeros = init_trained(self.encoder, True, HEAD_RANK)
        self.trained = {key: rng.normal(0, 0.02, value.shape).astype(np.float32) for key, value in zeros.items()}
        self.prior = np.zeros(len(self.data.catalogue), dtype=np.float32)
        self.negatives = rng.integers(0, len(self.data.catalogue), NEGATIVES)
        self.examples = build_examples(self.data.histories, history=history, positions=2, decay=0.1, unit="user")

    def lot(self, users: int) -> Examples:
        """The first users."""
        return self.examples.take(np.arange(users))

    def trainer(self) -> EncoderTrainer:
        """Ours, on the encoder."""
        scoring = Scoring(3.0, 0.1, 1.0)
        trainer = EncoderTrainer(
            self.encoder, self.states, self.prior, self.base, self.trained, scoring, history=self.encoder_history
        )
        trainer.negatives = self.negatives
        return trainer

    def ours(self) -> Step:
        """Clipped sums of the encoder's gradients, our way."""
        return clipped(self.trainer())

    def heads_trainer(self) -> HeadsTrainer:
        """Ours, on the heads."""
        e = centred(self.encoder.embed(self.data.catalogue), self.base)
        return HeadsTrainer(e, self.prior, self.base, self.trained, Scoring(3.0, 0.1, 1.0), events=2 * self.history)

    def heads(self) -> Step:
        """Clipped sums of the heads' gradients."""
        return clipped(self.heads_trainer())

    def obvious(self) -> Batched:
        """Clipped sums, the obvious way, so many users at a time."""
        way, loss = self._obvious(), self.trainer().loss

        def step(lot: Examples, batch: int) -> list[torch.Tensor]:
            total: list[torch.Tensor] = []
            for start in range(0, len(lot), batch):
                some = lot.take(np.arange(start, min(start + batch, len(lot))))
                samples = way.gradients(some, self.negatives, self.encoder_history, loss)
                norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
                factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
                sums = [torch.einsum("u,u...->...", factors, sample) for sample in samples]
                total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
            return total

        return step

    def best_batch(self, step: Batched, users: int) -> int:
        """Users at a time with which the obvious way is fastest."""
        lot, sizes = self.lot(users), {*(size for size in BATCHES if size < users), users}
        return fastest({size: partial(step, lot, size) for size in sizes}, self.device)

    def difference(self, users: int) -> float:
        """Largest difference of a user's gradient between both, over the largest gradient."""
        trainer, lot = self.trainer(), self.lot(users)
        samples = self._obvious().gradients(lot, self.negatives, self.encoder_history, trainer.loss)
        slow = torch.cat([sample.flatten(1) for sample in samples], dim=1)
        fast = torch.cat([torch.cat([s.flatten(1) for s in chunk.samples], dim=1) for chunk in trainer.gradients(lot)])
        return float((fast - slow).norm(dim=1).max() / slow.norm(dim=1).max())

    def rounds(self, part: Part, users: int) -> dict[str, Way]:
        """A private round of one step over so many users, and the same without privacy."""
        config = RunConfig(sample_rate=1.0, encoder_sample_rate=1.0, encoder_history=self.encoder_history)
        base, lot = of_part(self.trained, part), self.lot(users)
        lot = merged(lot) if part == "heads" else lot
        public = {
            **self.base, "prior.keys": self.data.catalogue.keys, "prior.floor": np.ones(1, np.float32),
            "prior.counts": np.ones(len(self.prior), np.float32),
        }  # fmt: skip
        merchant, scoring = Pooled("bench", self.data, Policy(epsilon=8.0, delta=1e-5, population=users)), Scoring(3.0, 0.1, 1.0)
        task = replace(_task(self.encoder.fingerprint, self.shape, config), part=part)

        def private() -> object:
            return train_round(
                task, self.data.catalogue, lot, encoder=self.encoder, base=self.base, trained={**self.trained, **base},
                prior=self.prior, population=users, noise=SeededNoise(0, "bench"),
            )  # fmt: skip

        ways: dict[str, Way] = {
            "private": private,
            "plain": lambda: local_round(config, part, 1, merchant, lot, self.encoder, public, self.trained, scoring),
        }
        if part == "encoder":
            trainer = self.trainer()
            ways["no text shared"] = lambda: self._apart(trainer, lot)
        return ways

    def _apart(self, trainer: EncoderTrainer, lot: Examples) -> list[torch.Tensor]:
        """The lot's gradient, each user's copy of a text forward and back on its own: no clipping, no noise."""
        pairs = layout(lot, self.encoder_history)
        texts = np.concatenate([pairs.text, np.tile(self.negatives, len(lot))])
        leaf = self.encoder.pooled(self.states, texts).requires_grad_(True)
        shared = leaf[len(pairs.text) :].view(len(lot), len(self.negatives), -1)
        losses = trainer.loss.losses(leaf[: len(pairs.text)], shared, pairs, lot, self.negatives)
        (upstream,) = torch.autograd.grad(losses.sum(), leaf)
        total = [torch.zeros_like(value) for value in trainer.parameters()]
        for rows in self.encoder.batches(self.states.length[texts]):
            out = self.encoder.run_top(*self.encoder.gather(self.states, texts[rows]))
            for sums, gradient in zip(
                total, torch.autograd.grad(out, trainer.parameters(), upstream[torch.as_tensor(rows)]), strict=True
            ):
                sums += gradient
        return total

    def _obvious(self) -> Obvious:
        shape, arrays = self.shape, {**self.base, **self.trained}
        return Obvious(shape.name, shape.layers, arrays, self.data.catalogue.texts, shape.rank, shape.max_tokens, self.device)


def clipped(trainer: EncoderTrainer | HeadsTrainer) -> Step:
    """Clipped sums of a lot's gradients."""

    def step(lot: Examples) -> list[torch.Tensor]:
        total: list[torch.Tensor] = []
        for gradients in trainer.gradients(lot):
            sums = clipped_sum(gradients, CLIP)
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        return total

    return step


def _task(trunk: str, shape: Shape, config: RunConfig) -> RoundTask:
    return RoundTask(
        run="bench", round=1, part="heads", trunk=trunk, encoder_layers=shape.layers, encoder_rank=shape.rank,
        max_tokens=shape.max_tokens,
        local_steps=1, sample_rate=1.0, clip_norm=CLIP, noise_multiplier=1.0, delta=1e-5, unit="user", learning_rate=1.0,
        history=config.history, positions=config.positions, negatives=NEGATIVES, encoder_history=config.encoder_history,
        temperature=3.0, decay=0.1, prior_weight=1.0, update_code="float32",
    )  # fmt: skip
