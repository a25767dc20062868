"""What is asked and answered about drift, and what the ledger says."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from fedrec.serve.schemas import MerchantField

__all__ = ["DriftAnswer", "DriftRequest", "HitRateOut", "Spent", "WindowOut"]


class DriftRequest(BaseModel):
    """Whether customers have moved away from what the model learned."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra={"examples": [{"weeks": 4}]})

    merchant: MerchantField = None
    weeks: Annotated[StrictInt, Field(ge=1, le=52)] = Field(4, description="In a window.")


class HitRateOut(BaseModel):
    """How often a list held what was bought next, with an interval of 95%."""

    mean: float
    low: float
    high: float
    users: int


class WindowOut(BaseModel):
    """Some weeks; `fedrec merchant drift` has the same figures."""

    start: str
    end: str
    baskets: int
    buyers: int
    mix: float | None
    unknown: float | None
    history: float
    hits: HitRateOut | None


class Spent(BaseModel):
    """What the merchant's ledger says; `epsilon` is None where it is broken, cut or gone, and then nothing is released."""

    epsilon: float | None
    delta: float
    budget: float
    releases: int
    next_run: str | None = Field(None, description="What a run like the last one would cost, in a sentence.")


class DriftAnswer(BaseModel):
    """For the merchant's own people: computed from its customers' data without noise."""

    request_id: str
    merchant: str
    took_ms: float
    sentence: str | None
    by: str | None = Field(None, description="What the mix is of: `category` or `item`.")
    k: int | None = None
    windows: list[WindowOut] = []
    change: float | None = Field(None, description="Of the hit rate, the last window over the earlier ones together, minus one.")
    p_value: float | None = Field(None, description="Of that change.")
    held_back: bool | None = Field(None, description="Whether those who were ranked for are in no round of training.")
    failure: str | None = Field(None, description="Why there is none, such as too few weeks.")
    ledger: Spent | None = Field(None, description="None where nothing was ever released here.")
