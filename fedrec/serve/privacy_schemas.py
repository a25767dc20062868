"""What is asked and answered about privacy: the merchant's own ledger."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fedrec.serve.schemas import MerchantField

__all__ = ["Line", "PartOut", "PrivacyAnswer", "PrivacyLedger", "PrivacyRequest"]


class PrivacyRequest(BaseModel):
    """What was released, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{}]})

    merchant: MerchantField = None


class Line(BaseModel):
    """A sentence of the report, and what it is about."""

    label: str
    text: str


class PartOut(BaseModel):
    """What one run, or one mechanism, released; its `epsilon` is without the others'."""

    name: str
    releases: int
    steps: int
    first: str
    last: str
    epsilon: float | None


class PrivacyLedger(BaseModel):
    """A ledger; `epsilon` is of all its lines together."""

    unit: str
    trust: str
    epsilon: float | None
    delta: float | None
    budget: float | None
    accountant: str
    runs: list[PartOut]
    mechanisms: list[PartOut]


class PrivacyAnswer(BaseModel):
    """For the merchant's own people."""

    request_id: str
    merchant: str
    took_ms: float
    summary: list[Line] = Field([], description="Who is protected, against whom, how much, and what is not covered.")
    ledgers: list[PrivacyLedger] = []
    failure: str | None = Field(None, description="Why there is no report.")
