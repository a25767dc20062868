"""Clipping, noise and scaling, with Opacus; and the private popularity histogram."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedrec.privacy.discrete import discrete_gaussian, noise_share
from fedrec.privacy.noise import NoiseSource

__all__ = ["Gradients", "PerRecord", "UserDPOptimizer", "clipped_sum", "noisy", "noisy_histogram", "rated_votes", "votes"]

ROUNDING = 2.0**-10
"""How much more than the clipping norm `noisy` allows a user to move a sum by, as a share of it: the rounding of gradients
and of their sum may depend on who else is in it."""
FINENESS = 22
"""There are 2^21 to 2^22 steps of the grid in a standard deviation of the noise."""


class Gradients(Protocol):
    """The gradients of some records, in whatever form their norms and weighted sums are cheap."""

    def squared_norms(self) -> Tensor:
        """(records,) float64, squared L2 norms over all parameters together; not finite where a gradient is not."""

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """sum over records of weights[u] times the gradient, one float64 tensor a parameter.

        A record of weight 0 adds nothing, even where its gradient is not finite.

        Args:
            weights: (records,) float64.
        """


@dataclass(frozen=True)
class PerRecord:
    """Gradients as they are: one tensor (records, *shape) a parameter."""

    samples: Sequence[Tensor]

    def squared_norms(self) -> Tensor:
        """See `Gradients`."""
        norms = [torch.linalg.vector_norm(sample.flatten(1), dim=1, dtype=torch.float64) for sample in self.samples]
        return torch.stack(norms).square().sum(0)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """See `Gradients`."""
        used = torch.nonzero(weights)[:, 0]  # once: a GPU is waited for
        # In float64: the rounding of a sum depends on all that is in it.
        return [torch.tensordot(weights[used], sample[used].double(), dims=1) for sample in self.samples]


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
        for parameter, clipped in zip(self.params, clipped_sum(gradients, self.max_grad_norm), strict=True):
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
        """Noise of standard deviation `noise_multiplier * clip_norm` on the clipped sum: see `noisy`."""
        total = np.concatenate([parameter.summed_grad.double().cpu().numpy().ravel() for parameter in self.params])
        released = torch.from_numpy(noisy(total, self.noise_multiplier, self.max_grad_norm, self._noise))
        parts = released.split([parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            # From here on all is a function of what is released: float32, division, step.
            parameter.grad = part.to(parameter.dtype).to(parameter.device).view_as(parameter)


def noisy(total: np.ndarray, noise_multiplier: float, clip_norm: float, noise: NoiseSource) -> np.ndarray:
    """A sum that one user moves by at most `clip_norm` in L2, rounded to a grid, plus a discrete Gaussian on it.

    Rounding moves the difference of two sums by less than a step in each coordinate, so one user moves the
    whole numbers by at most `clip_norm` in steps plus the root of their count. The noise is made for that much, so
    that it is never less than what is accounted, and about a thousandth more. Then the argument in
    `fedrec.privacy.discrete` holds. Grid and noise depend on the other arguments and on how many numbers there
    are, and not on what they are.

    Args:
        total: (numbers,) float64, of less than 2^52 steps: at a noise multiplier of .1 that is 10^8 users.

    Returns:
        (numbers,) float64, whole multiples of a power of two.

    Raises:
        ValueError: the noise multiplier is over what there is a grid for: see `fedrec.config.MOST_NOISE`.
    """
    step = math.ldexp(1.0, math.frexp(noise_multiplier * clip_norm)[1] - FINENESS)
    sensitivity = (1 + ROUNDING) * clip_norm / step + math.sqrt(total.size)
    sigma = noise_share(noise_multiplier, sensitivity, 1)
    return step * (np.rint(total / step) + discrete_gaussian(total.size, sigma, noise))


def clipped_sum(gradients: Gradients, clip_norm: float) -> list[Tensor]:
    """The sum over records of the gradients, each scaled down to norm `clip_norm`; one float64 tensor a parameter.

    In float64, since what rounding does to a sum depends on all that is in it. A record whose gradient is not
    finite counts as zero: clipping cannot bound NaN, and a server could choose weights that overflow for the
    users of one item only.
    """
    norms = gradients.squared_norms().sqrt()
    factors = (clip_norm / norms.clamp_min(1e-12)).clamp(max=1.0)
    return gradients.weighted_sum(torch.where(torch.isfinite(norms), factors, 0.0))


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


def rated_votes(users: np.ndarray, items: np.ndarray, ratings: np.ndarray, size: int) -> np.ndarray:
    """How many users rated each item and the sum of what they said, each user's part scaled to L2 norm 1; without noise.

    A user who rated `n` distinct items with `y` adds 1/s to the count of each and y/s to its sum, `s` the root of the sum of
    `1 + y^2`, so adding or removing a user moves the vector by exactly 1 in L2.

    Args:
        users: (ratings,) user numbers.
        items: (ratings,) item positions below `size`; of several of a user's the mean counts.
        ratings: (ratings,) within -1 and 1.

    Returns:
        (2 * size,) float64, counts and then sums.
    """
    pairs, place = np.unique(users * size + items, return_inverse=True)
    user, item = pairs // max(size, 1), pairs % max(size, 1)
    rating = np.bincount(place, ratings, len(pairs)) / np.maximum(np.bincount(place, minlength=len(pairs)), 1)
    scale = 1 / np.sqrt(np.bincount(user, 1 + np.square(rating), 1))[user]
    return np.concatenate([np.bincount(item, one, size) for one in (scale, scale * rating)])


def noisy_histogram(users: np.ndarray, items: np.ndarray, size: int, noise_multiplier: float, noise: NoiseSource) -> np.ndarray:
    """`votes` with noise of standard deviation `noise_multiplier`, as by `noisy`: (size,) float64, negative counts included."""
    return noisy(votes(users, items, size), noise_multiplier, 1.0, noise)
