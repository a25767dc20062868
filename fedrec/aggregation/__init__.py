"""Aggregation rules and server optimizers."""

from fedrec.aggregation.optimizers import OPTIMIZERS, apply_update
from fedrec.aggregation.rules import (
    RULES,
    SLACK,
    Updates,
    combine,
    honest_norm,
    honest_statistic_norm,
    noise_in_combined,
    noise_in_update,
    update_fault,
    weighted_mean,
)

__all__ = [
    "OPTIMIZERS", "RULES", "SLACK", "Updates", "apply_update", "combine", "honest_norm", "honest_statistic_norm",
    "noise_in_combined", "noise_in_update", "update_fault", "weighted_mean",
]  # fmt: skip
