"""What was released, as frozen facts; what it costs is derived elsewhere.

Every mechanism here is a Gaussian on a Poisson sample of records, composed with itself:
a round of DP-SGD is `steps` of them, a full-participation step has sample rate 1, a
released statistic (a histogram, what goes with what) is one with sample rate 1. Neighbouring
data sets differ by all of one record (add or remove one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Mechanism", "SampledGaussian"]

Mechanism = Literal["dp-sgd", "histogram", "complements"]


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` Gaussian mechanisms, each on a fresh Poisson sample.

    Attributes:
        noise_multiplier: standard deviation of the noise over the L2 sensitivity.
        sample_rate: probability that a record takes part in a step.
        steps: how many.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise_multiplier: expected a positive number, found {self.noise_multiplier}")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate: expected a number in (0, 1], found {self.sample_rate}")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, found {self.steps}")
