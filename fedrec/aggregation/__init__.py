"""Averaging rules and server optimizers."""

from fedrec.aggregation.optimizers import OPTIMIZERS, apply_update
from fedrec.aggregation.rules import plausible_norm, update_fault, weighted_mean

__all__ = ["OPTIMIZERS", "apply_update", "plausible_norm", "update_fault", "weighted_mean"]
