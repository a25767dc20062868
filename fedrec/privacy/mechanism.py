"""Clipping, noise and scaling, with Opacus; and the private popularity histogram."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from fedrec.privacy.noise import NoiseSource

__all__ = ["UserDPOptimizer", "noisy_histogram"]


class UserDPOptimizer(DPOptimizer):
    """Opacus's optimizer with the noise drawn from a `NoiseSource`.

    A record's gradient is expected in `p.grad_sample` (records, *shape), one row a user
    however many texts the user has. Chunks of a lot are clipped and summed one after the
    other; `finish_step` adds the noise once, divides by the *expected* lot and steps, also
    when the lot was empty.
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

    def add_chunk(self) -> None:
        """Clip the chunk's gradients and add them to the sum.

        A record whose gradient is not finite counts as zero: clipping cannot bound NaN, and a
        server could choose weights that overflow for the users of one item only.
        """
        squared = sum(torch.square(g.flatten(1)).sum(1) for g in self.grad_samples)
        finite = torch.isfinite(torch.as_tensor(squared))
        if not finite.all():
            for parameter in self.params:
                parameter.grad_sample[~finite] = 0
        self.signal_skip_step(True)
        self.step()
        self.zero_grad(set_to_none=True)

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


def noisy_histogram(users: np.ndarray, items: np.ndarray, size: int, noise_multiplier: float, noise: NoiseSource) -> np.ndarray:
    """How many users bought each item, each user's vote scaled to L2 norm 1, plus N(0, sigma^2).

    A user with `n` distinct items adds 1/sqrt(n) to each, so adding or removing a user moves
    the vector by exactly 1 in L2.

    Args:
        users: (pairs,) user numbers.
        items: (pairs,) item positions below `size`.

    Returns:
        (size,) float64 noisy counts, negative ones included.
    """
    pairs = np.unique(np.stack([users, items]), axis=1) if len(users) else np.zeros((2, 0), dtype=np.int64)
    distinct = np.bincount(pairs[0], minlength=1)
    votes = np.bincount(pairs[1], weights=1 / np.sqrt(distinct[pairs[0]]), minlength=size)
    return votes + noise.normal((size,), noise_multiplier)
