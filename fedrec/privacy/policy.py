"""The merchant's own rules, read from `merchant.toml` on the merchant's machine.

A server may ask for less leakage than the policy allows, never for more.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec.config import Unit
from fedrec.errors import InputError

__all__ = ["MerchantFile", "Policy", "read_merchant_file"]


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
    min_noise_multiplier: float = Field(0.3, gt=0)
    """Floor for the noise multiplier of a step."""
    max_clip_norm: float = Field(10.0, gt=0)
    """Ceiling for the clipping norm."""
    max_rounds: int = Field(1000, ge=1)
    """Most training rounds in one run."""

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


class MerchantFile(BaseModel):
    """`merchant.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The merchant's public name."""
    privacy: Policy


def read_merchant_file(path: Path) -> MerchantFile:
    """Read and check `merchant.toml`.

    Raises:
        InputError: naming the file and the key.
    """
    try:
        return MerchantFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="the merchant's name and [privacy] policy") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not valid TOML ({error})", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}", where=str(path)) from None
