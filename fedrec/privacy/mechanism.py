"""Clipping, noise and scaling, with Opacus; and the private popularity histogram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedrec.privacy.noise import NoiseSource

__all__ = ["Gradients", "PerRecord", "UserDPOptimizer", "clipped_sum", "noisy_histogram", "votes"]


class Gradients(Protocol):
    """The gradients of some records, in whatever form their norms and weighted sums are cheap."""

    def squared_norms(self) -> Tensor:
        """(records,) squared L2 norms over all parameters together; not finite where a gradient is not."""

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """sum over records of weights[u] times the gradient, one tensor a parameter.

        A record of weight 0 adds nothing, even where its gradient is not finite.
        """


@dataclass(frozen=True)
class PerRecord:
    """Gradients as they are: one tensor (records, *shape) a parameter."""

    samples: Sequence[Tensor]

    def squared_norms(self) -> Tensor:
        """See `Gradients`."""
        return torch.stack([sample.flatten(1).square().sum(1) for sample in self.samples]).sum(0)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """See `Gradients`."""
        used = weights != 0
        # In float64: the rounding of a sum depends on all that is in it.
        return [torch.tensordot(weights[used].double(), sample[used].double(), dims=1) for sample in self.samples]


class UserDPOptimizer(DPOptimizer):
    """Opacus's optimizer with the noise drawn from a `NoiseSource`.

    A record's gradient is clipped as a whole, over all parameters together, however many texts
    the user has. Chunks of a lot are clipped and summed one after the other; `finish_step`
    adds the noise once, divides by the *expected* lot and steps, also when the lot was empty.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        noise: NoiseSource,
        *,
        learning_rate: float,
        noise_multiplier: float,
        clip_norm: float,
        expected_lot: float,
    ) -> None:
        super().__init__(
            torch.optim.SGD(list(parameters), lr=learning_rate),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_lot,  # type: ignore[arg-type]
            loss_reduction="mean",
        )
        self._noise = noise

    def add(self, gradients: Gradients) -> None:
        """Clip a chunk's gradients and add them to the sum.
        See `clipped_sum`.
        """
        sums = clipped_sum(gradients, self.max_grad_norm, self.params[0].dtype)
        for parameter, clipped in zip(self.params, sums, strict=True):
            known = parameter.summed_grad
            parameter.summed_grad = clipped if known is None else known + clipped

    def finish_step(self) -> None:
        """Noise, scale, step."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self.signal_skip_step(False)
        self.step()
        self.zero_grad(set_to_none=True)

    def add_noise(self) -> None:
        """Gaussian noise of standard deviation `noise_multiplier * clip_norm` on the clipped sum."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = self._noise.normal(tuple(parameter.shape), std)
            # Added in double precision: the sum, not the noise, is what gets rounded.
            total = parameter.summed_grad.double().cpu() + torch.from_numpy(noise)
            parameter.grad = total.to(parameter.dtype).to(parameter.device).view_as(parameter)


def clipped_sum(gradients: Gradients, clip_norm: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The sum over records of the gradients, each scaled down to norm `clip_norm`; one tensor a parameter.

    A record whose gradient is not finite counts as zero: clipping cannot bound NaN, and a
    server could choose weights that overflow for the users of one item only.
    """
    norms = gradients.squared_norms().sqrt()
    factors = (clip_norm / norms.clamp_min(1e-12)).clamp(max=1.0)
    return gradients.weighted_sum(torch.where(torch.isfinite(norms), factors, 0.0).to(dtype))


def votes(users: np.ndarray, items: np.ndarray, size: int) -> np.ndarray:
    """How many users bought each item, each user's vote scaled to L2 norm 1; without noise.

    A user with `n` distinct items adds 1/sqrt(n) to each, so adding or removing a user moves
    the vector by exactly 1 in L2.

    Args:
        users: (pairs,) user numbers.
        items: (pairs,) item positions below `size`.

    Returns:
        (size,) float64.
    """
    pairs = np.unique(np.stack([users, items]), axis=1) if len(users) else np.zeros((2, 0), dtype=np.int64)
    distinct = np.bincount(pairs[0], minlength=1)
    return np.bincount(pairs[1], weights=1 / np.sqrt(distinct[pairs[0]]), minlength=size)


def noisy_histogram(users: np.ndarray, items: np.ndarray, size: int, noise_multiplier: float, noise: NoiseSource) -> np.ndarray:
    """`votes` plus N(0, sigma^2): (size,) float64, negative counts included."""
    return votes(users, items, size) + noise.normal((size,), noise_multiplier)
