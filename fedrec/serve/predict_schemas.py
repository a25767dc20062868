"""What `/v1/predict` is asked, and what it answers."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic import model_validator as checked

from fedrec.recommender import Person
from fedrec.serve.schemas import Id, MerchantField
from fedrec.serve.settings import Limits

__all__ = ["PredictAnswer", "PredictRequest"]


class PredictRequest(BaseModel):
    """How likely somebody responds to items when they are shown."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [
            {"merchant": "brand-69", "history": ["p8d386587b1", "p41cfcbedad"], "items": ["pea0f7708e3", "pf5981aef63"]}
        ]},
    )  # fmt: skip

    merchant: MerchantField = None
    history: Annotated[list[Id], Field(min_length=1, max_length=Limits.HISTORY, fail_fast=True)] | None = Field(
        None,
        description="Item ids, most recent last, each a basket of its own. Where it is given it counts, whoever the user is.",
    )
    user_id: Id | None = Field(None, description="A user whose events the merchant has; for the staff's key.")
    items: Annotated[list[Id], Field(min_length=1, max_length=Limits.CANDIDATES, fail_fast=True)]

    @checked(mode="after")
    def _somebody(self) -> Self:
        if self.history is None and self.user_id is None:
            raise ValueError("there is neither a history nor a user")
        return self

    def person(self) -> Person:
        """Who is asked about."""
        return Person(self.history, self.user_id)


class Prediction(BaseModel):
    """Of one item."""

    item_id: str
    probability: float = Field(description="Of a response when it is shown, among all impressions.")


class PredictAnswer(BaseModel):
    """A probability for each item, in the order in which they were asked for."""

    request_id: str
    merchant: str
    model: str = Field(description="Version of the adapter that predicted.")
    snapshot: str = Field(description="Changes with whatever was loaded: adapters, own layer, catalogue, events.")
    took_ms: float
    predictions: list[Prediction]
