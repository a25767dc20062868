"""How much a private run can learn, in consenting users, from public numbers alone.

A step opens the sum of `lot` clipped gradients (norm at most C) of d numbers with noise of `sums` times (sigma C)^2 in each,
and `steps` of them tell as much as one with that over `steps`. The mean gradient of K consenting users, whom no noise covers,
has a total variance of at most C^2 / K. Both are alike where

    K = steps lot^2 / (sigma^2 d sums),

which is the squared signal to noise of the whole run. Under local noise every merchant adds all of it, so `sums` is the
number of merchants M; in a secure sum of M at least h are honest, and it is M / h. It takes the signal for spread over all
numbers; a server that knows where it lies (`wiener`) learns more.
"""

from __future__ import annotations

__all__ = ["LEAST_WORTH", "worth_in_users"]

LEAST_WORTH = 1.0
"""Less than one user would teach is nothing: see `docs/training.md` for what was gained above and below."""


def worth_in_users(*, steps: int, lot: float, noise_multiplier: float, numbers: int, sums: float) -> float:
    """K of the formula above.

    Args:
        steps: of the whole run, those of each round together.
        lot: expected users in a step, of all merchants.
        noise_multiplier: sigma.
        numbers: d, that are trained.
        sums: how many times the variance (sigma C)^2 is in the sum over all merchants.
    """
    return steps * lot**2 / (noise_multiplier**2 * numbers * sums)
