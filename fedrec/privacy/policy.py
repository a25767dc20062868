"""The merchant's own rules, read from `merchant.toml` on the merchant's machine.

A server may ask for less leakage than the policy allows, never for more.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fedrec.config import Trust, Unit
from fedrec.errors import InputError

__all__ = ["Policy"]

MOST_DELTA = 0.1
"""Largest delta times population: delta may be the chance that one user's data are published whole, and this many expect it."""


class Policy(BaseModel):
    """The `[privacy]` table of `merchant.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epsilon: float = Field(gt=0)
    """Budget for the life of the data."""
    delta: float = Field(gt=0, lt=1)
    """Delta at which the budget holds; below one over the number of users."""
    period_epsilon: float | None = Field(None, gt=0)
    """Also a budget for any `period_days` days in a row."""
    period_days: int = Field(365, ge=1)
    """Length of the period, in days."""
    population: int = Field(ge=1)
    """Publicly declared (rounded) number of users: the expected lot is a share of it."""
    unit: Unit = "user"
    """The weakest unit that the merchant accepts."""
    trust: Trust = "local"
    """The weakest trust model that the merchant accepts: `local` adds all noise here, `secure-aggregation` a share."""
    colluders: int = Field(1, ge=0)
    """Fewest other merchants that a secure sum must assume to tell the server all they know."""
    dropouts: int | None = Field(None, ge=0)
    """Most merchants that may be missing from a secure sum; as many as the protocol bears when absent."""
    min_noise_multiplier: float = Field(0.3, gt=0)
    """Floor for the noise multiplier of a step."""
    max_clip_norm: float = Field(10.0, gt=0)
    """Ceiling for the clipping norm."""
    max_rounds: int = Field(1000, ge=1)
    """Most training rounds in one run."""

    def fault_of_delta(self) -> str | None:
        """Why delta is no protection beside so many users (Dwork and Roth, 2014, section 2.3), or None."""
        expected = self.delta * self.population
        if expected <= MOST_DELTA:
            return None
        return f"delta {self.delta:g} times {self.population:,} declared users is {expected:.3g}, over {MOST_DELTA:g}"

    def check_delta(self, where: str) -> None:
        """Refuse a delta that is no protection.

        Args:
            where: what an error calls the policy.

        Raises:
            InputError: delta times the population is over `MOST_DELTA`.
        """
        if fault := self.fault_of_delta():
            raise InputError(fault, where=where, hint=f"a smaller delta, such as {MOST_DELTA / 10 / self.population:.0e}")

    def refusal_of_terms(self, *, dropouts: int, colluders: int) -> str | None:
        """Why the terms of a secure sum would weaken the policy, or None."""
        if self.trust == "local":
            return "trust 'secure-aggregation' is weaker than the policy's 'local'"
        if colluders < self.colluders:
            return f"{colluders} colluders are under the policy's {self.colluders}"
        if self.dropouts is not None and dropouts > self.dropouts:
            return f"{dropouts} dropouts are over the policy's {self.dropouts}"
        return None

    def refusal(self, *, unit: Unit, noise_multiplier: float, clip_norm: float, delta: float) -> str | None:
        """Why a request would weaken the policy, or None. The reason holds no private data."""
        if self.unit == "user" and unit != "user":
            return f"unit {unit!r} is weaker than the policy's {self.unit!r}"
        if not noise_multiplier >= self.min_noise_multiplier:
            return f"noise_multiplier {noise_multiplier:g} is under the policy's floor {self.min_noise_multiplier:g}"
        if not 0 < clip_norm <= self.max_clip_norm:
            return f"clip_norm {clip_norm:g} is over the policy's ceiling {self.max_clip_norm:g}"
        if not delta <= self.delta:
            return f"delta {delta:g} is over the policy's {self.delta:g}"
        return None
