"""What the software promises, enforced: mechanisms, accounting, policy, ledger."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrec.privacy.accountants import ACCOUNTANTS, Epsilon, accountant, epsilon
    from fedrec.privacy.budget import over_budget
    from fedrec.privacy.discrete import discrete_gaussian, multiplier, noise_share
    from fedrec.privacy.events import SampledGaussian
    from fedrec.privacy.ledger import Ledger, LedgerError, Release
    from fedrec.privacy.ledger_head import HEAD_SUFFIX, head_file, head_folder
    from fedrec.privacy.mechanism import (
        Gradients,
        PerRecord,
        UserDPOptimizer,
        clipped_sum,
        noisy,
        noisy_histogram,
        rated_votes,
        votes,
    )
    from fedrec.privacy.noise import NoiseSource, SeededNoise, SystemNoise
    from fedrec.privacy.noise_plan import NoisePlan, plan_noise
    from fedrec.privacy.policy import Policy

__all__ = [
    "ACCOUNTANTS",
    "HEAD_SUFFIX",
    "Epsilon",
    "Gradients",
    "Ledger",
    "LedgerError",
    "NoisePlan",
    "NoiseSource",
    "PerRecord",
    "Policy",
    "Release",
    "SampledGaussian",
    "SeededNoise",
    "SystemNoise",
    "UserDPOptimizer",
    "accountant",
    "clipped_sum",
    "discrete_gaussian",
    "epsilon",
    "head_file",
    "head_folder",
    "multiplier",
    "noise_share",
    "noisy",
    "noisy_histogram",
    "over_budget",
    "plan_noise",
    "rated_votes",
    "votes",
]

_PLACES = {
    "accountants": "ACCOUNTANTS Epsilon accountant epsilon",
    "budget": "over_budget",
    "discrete": "discrete_gaussian multiplier noise_share",
    "events": "SampledGaussian",
    "ledger": "Ledger LedgerError Release",
    "ledger_head": "HEAD_SUFFIX head_file head_folder",
    "mechanism": "Gradients PerRecord UserDPOptimizer clipped_sum noisy noisy_histogram rated_votes votes",
    "noise": "NoiseSource SeededNoise SystemNoise",
    "noise_plan": "NoisePlan plan_noise",
    "policy": "Policy",
}


def __getattr__(name: str) -> object:
    # Opacus takes seconds to import, and whoever reads a policy needs none of it.
    for module, names in _PLACES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
