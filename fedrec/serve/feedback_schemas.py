"""Feedback as it is sent, and what became of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StringConstraints
from pydantic import model_validator as checked

from fedrec.data.feedback import EVENT_ID, FeedbackEvent
from fedrec.data.kinds import SEARCH
from fedrec.serve.schemas import Id, MerchantField, Price, Query, Strict
from fedrec.serve.settings import Limits
from fedrec.text import visible

__all__ = ["EventIn", "FeedbackAnswer", "FeedbackRequest"]

AHEAD = timedelta(days=1)
"""How far ahead of this clock another may be."""


def _is_line(text: str) -> str:
    if text != visible(text):
        raise ValueError("it holds control characters")
    return text


def _one_line(text: str) -> str:
    if not (line := " ".join(text.split())):
        raise ValueError("it holds no words")
    return _is_line(line)


def _is_time(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("it is not ISO 8601, such as 2026-01-31T09:30:00Z") from None
    if found > datetime.now(UTC) + AHEAD:
        raise ValueError("it is in the future")
    return found.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


LineId = Annotated[Id, AfterValidator(_is_line)]
Searched = Annotated[Query, AfterValidator(_one_line)]


class EventIn(Strict):
    """One thing that a customer did."""

    event_id: str = Field(pattern=EVENT_ID, description="Drawn by the client: an id that is sent again is no second event.")
    user_id: LineId
    item_id: LineId | None = Field(None, description="Needed but where a search has its `query`.")
    event: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$", to_lower=True)] = "purchase"
    timestamp: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d", max_length=40), AfterValidator(_is_time)] | None = Field(
        None, description="ISO 8601, without a zone UTC; now by default. Events of one user and time are one basket."
    )
    request_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = Field(
        None, description="The answer that it is a reaction to."
    )
    position: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = Field(None, description="Of the item in it, from 1.")
    propensity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Filled in like `position` where it is not given, and the answer is one of the last that explored."
    )
    quantity: Annotated[StrictInt, Field(ge=-1_000_000, le=1_000_000)] | None = None
    price: Price | None = None
    value: Price | None = None
    basket_id: LineId | None = None
    query: Searched | None = Field(None, description="What was searched for, of an event `search` alone: history from then on.")

    @checked(mode="after")
    def _of_an_item_or_words(self) -> Self:
        if self.query is not None and (self.event != SEARCH or self.item_id is not None):
            raise ValueError("query is of an event search without an item_id")
        if self.query is None and self.item_id is None:
            raise ValueError("item_id is missing, which only a search with its query may lack")
        return self

    def stored(self, now: str) -> FeedbackEvent:
        """As it is kept; `now` stands in for a time that is not given."""
        given: dict[str, Any] = {name: str(value) for name, value in self if value is not None}
        return FeedbackEvent(**{"timestamp": now, "item_id": "", **given})


class FeedbackRequest(Strict):
    """A batch of what customers did; it is on disk, whole, when it is answered."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"events": [
            {"event_id": "order-17-line-1", "user_id": "4711", "item_id": "p41cfcbedad", "timestamp": "2026-01-31T09:30:00Z"},
            {"event_id": "search-9", "user_id": "4711", "event": "search", "query": "red mug for a gift"},
        ]}]},
    )  # fmt: skip

    merchant: MerchantField = None
    events: Annotated[list[EventIn], Field(min_length=1, max_length=Limits.EVENTS, fail_fast=True)]


class FeedbackAnswer(BaseModel):
    """What became of a batch: all of it is kept."""

    request_id: str
    merchant: str
    stored: int = Field(description="Events that are new.")
    repeated: int = Field(description="Events that were there already, by their id.")
    took_ms: float
