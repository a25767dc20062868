"""Whom an audit attacks, and what its noise comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import load_central, load_merchant, merchant_folders
from fedrec.errors import InputError
from fedrec.merchant import read_merchant_file
from fedrec.model import Arrays, TextEncoder, log_prior
from fedrec.privacy import NoiseSource, SeededNoise, SystemNoise
from server.start import first_state, load_encoder_for
from simulations.reference import Pooled

__all__ = ["NO_NOISE", "Attacked", "Origin", "Switch", "Target", "open_target", "pick_merchant"]

NO_NOISE = 1e-9
"""Noise multiplier of an audit with the noise off; the clipping stays."""

Switch = Literal["on", "off"]
Origin = Literal["seed", "system"]


@dataclass(frozen=True)
class Target:
    """The merchant under attack, and the model at round 0.

    Attributes:
        merchant: its name, data and policy.
        encoder, base, trained: the frozen encoder, the public part, and the adapter to start from.
        populations: declared by all merchants of the federation; a secure sum is over all of them.
    """

    merchant: Pooled
    encoder: TextEncoder
    base: Arrays
    trained: Arrays
    populations: tuple[int, ...]

    @property
    def prior(self) -> np.ndarray:
        """Log popularity with no histogram released: the same for all items."""
        return log_prior(np.ones(len(self.merchant.data.catalogue)), 1.0)


@dataclass(frozen=True)
class Attacked:
    """One attacked run.

    Attributes:
        label: tells the attacks of one seed apart.
        population: that the merchant declares.
        sigma: noise multiplier of a step; `NO_NOISE` for none.
        origin: "system" draws sampling and noise as a deployed merchant does, "seed" repeatably.
    """

    config: RunConfig
    target: Target
    label: str
    population: int
    sigma: float
    seed: int
    origin: Origin = "seed"

    def noise(self, *names: object) -> NoiseSource:
        """Where the sampling and noise of one release come from."""
        if self.origin == "system":
            return SystemNoise()
        return SeededNoise(self.seed, self.target.merchant.name, f"audit {self.label}", *names)


def pick_merchant(federation: Path, name: str | None = None) -> Pooled:
    """A merchant of a federation folder: by name, else the one with the largest declared population.

    Raises:
        InputError: no merchant of that name, or bad data.
    """
    settings = {folder: read_merchant_file(folder / "merchant.toml") for folder in merchant_folders(federation)}
    fitting = [folder for folder, one in settings.items() if name in (None, one.name)]
    if not fitting:
        names = ", ".join(one.name for one in settings.values())
        raise InputError(f"there is no merchant {name!r}", where="--merchant", expected=f"one of {names}")
    folder = max(fitting, key=lambda one: settings[one].privacy.population)
    return Pooled(settings[folder].name, load_merchant(folder, settings[folder].data), settings[folder].privacy)


def open_target(federation: Path, merchant: Pooled, config: RunConfig) -> Target:
    """The merchant with the model that a run of its federation under these settings would start from."""
    encoder = load_encoder_for(config)
    state = first_state(config, load_central(federation), encoder)
    populations = (read_merchant_file(folder / "merchant.toml").privacy.population for folder in merchant_folders(federation))
    return Target(merchant, encoder, state.public, state.trained, tuple(populations))
