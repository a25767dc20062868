"""Contrastive training of the encoder's LoRA on pairs of public texts.

    x, y = centred(left), centred(right)                     unit vectors of a batch of pairs
    loss = (CE(x y' / t, own) + CE(y x' / t, own)) / 2       own: each row's partner

InfoNCE in both directions (van den Oord et al. 2018, eq. 4; Radford et al. 2021, sec. 2.3), the other pairs of a batch being
negatives. The centre is that of the encoder as it was, so the cosines are those that rank. Nobody's data are in it, so it spends
no epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedrec.adaptation.pairs import Pairs
from fedrec.model.adapter import Arrays
from fedrec.model.cache import States
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import centred

__all__ = ["Contrast", "Schedule"]

MOMENTS = "exp_avg", "exp_avg_sq"
"""Adam's, as torch calls them."""


@dataclass(frozen=True)
class Schedule:
    """What it is trained on, and how.

    Attributes:
        kinds: of pairs.
        epochs: how often each pair is seen.
        batch: pairs of a step.
        temperature: of the softmax over a batch.
        learning_rate: of Adam at the first step; it falls linearly to 0.
        seed: of order and dropout.
    """

    kinds: tuple[str, ...]
    epochs: int
    batch: int
    temperature: float
    learning_rate: float
    seed: int

    def steps(self, pairs: Pairs) -> list[tuple[int, np.ndarray]]:
        """For every step of which kind its pairs are, and which; what does not fill half a batch is left out."""
        found: list[tuple[int, np.ndarray]] = []
        for epoch in range(self.epochs):
            rng = np.random.default_rng([self.seed, epoch])
            batches = [
                (kind, rows)
                for kind, sides in enumerate(pairs.sides)
                for rows in np.split(rng.permutation(sides.shape[1]), np.arange(self.batch, sides.shape[1], self.batch))
                if 2 * len(rows) >= self.batch
            ]
            found += [batches[place] for place in rng.permutation(len(batches))]
        return found


class Contrast:
    """The training, from the LoRA that the encoder holds.

    Attributes:
        done: steps that were made.
        total: all steps.
    """

    def __init__(self, encoder: TextEncoder, pairs: Pairs, states: States, base: Arrays, schedule: Schedule) -> None:
        self.encoder, self.states, self.base, self.schedule = encoder, states, base, schedule
        self._keys, self._sides = pairs.keys, pairs.sides
        self._steps = schedule.steps(pairs)
        self.done, self.total = 0, len(self._steps)
        self._trained = {name: value for name, value in encoder.named_parameters() if "lora_B" in name}
        self._adam = torch.optim.Adam(self._trained.values())

    def state(self) -> Arrays:
        """What is needed to go on from here, beside `done`."""
        moments = {
            f"{key}|{name}": self._adam.state[value][key].cpu().numpy().copy()
            for name, value in self._trained.items()
            for key in MOMENTS
        }
        return {**self.encoder.trained(), **moments}

    def restore(self, done: int, state: Arrays) -> None:
        """Go on from what `state` gave after `done` steps."""
        self.encoder.load(state)
        self.done = done
        for name, value in self._trained.items():
            moments = {key: torch.tensor(state[f"{key}|{name}"], device=value.device) for key in MOMENTS}
            self._adam.state[value] = {"step": torch.tensor(float(done)), **moments}

    def run(self) -> Iterator[tuple[str, float]]:
        """The kind of pairs of each step that is left, and its loss before that step."""
        while self.done < self.total:
            kind, rows = self._steps[self.done]
            self._adam.param_groups[0]["lr"] = self.schedule.learning_rate * (1 - self.done / self.total)
            with torch.random.fork_rng(), _dropout(self.encoder.top):
                torch.manual_seed(int(np.random.default_rng([self.schedule.seed, 0, self.done]).integers(2**62)))
                loss = self._loss(*self._sides[kind][:, rows])
                self._adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
            self._adam.zero_grad()
            self.done += 1
            yield self.schedule.kinds[kind], float(loss.detach())

    def _loss(self, left: np.ndarray, right: np.ndarray) -> Tensor:
        x, y = (centred(self.encoder.run_top(*self.encoder.gather(self.states, texts)), self.base) for texts in (left, right))
        same = np.zeros((len(left), len(left)), dtype=bool)
        for texts in (left, right):
            keys = self._keys[texts]
            same |= keys[:, None] == keys
        np.fill_diagonal(same, False)
        scores = (x @ y.T / self.schedule.temperature).masked_fill(self.encoder.moved(same), -torch.inf)
        own = torch.arange(len(left), device=scores.device)
        return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2


@contextmanager
def _dropout(layers: nn.Module) -> Iterator[None]:
    layers.train()
    try:
        yield
    finally:
        layers.eval()
