"""Requests and answers. A field that is not here is refused, so that nobody believes in a filter that is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StringConstraints
from pydantic import model_validator as checked

from fedrec.data.feedback import EVENT_ID, FeedbackEvent
from fedrec.data.kinds import SEARCH
from fedrec.recommender import Filter, Person, Wish
from fedrec.serve.settings import Limits
from fedrec.text import MERCHANT_NAME, visible

__all__ = [
    "BasketRequest", "EventIn", "ExplainRequest", "FeedbackAnswer", "FeedbackRequest", "FilterIn", "Info", "Item", "ListAnswer",
    "MerchantField", "RankRequest", "RecommendRequest", "SearchRequest", "ShopperReasons", "StaffReasons",
]  # fmt: skip

AHEAD = timedelta(days=1)
"""How far ahead of this clock another may be."""


def _is_line(text: str) -> str:
    if text != visible(text):
        raise ValueError("it holds control characters")
    return text


def _one_line(text: str) -> str:
    return _is_line(" ".join(text.split()))


def _is_time(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("it is not ISO 8601, such as 2026-01-31T09:30:00Z") from None
    if found > datetime.now(UTC) + AHEAD:
        raise ValueError("it is in the future")
    return found.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


Id = Annotated[str, StringConstraints(min_length=1, max_length=Limits.ID)]
LineId = Annotated[Id, AfterValidator(_is_line)]
Ids = Annotated[list[Id], Field(max_length=Limits.IDS, fail_fast=True)]
Names = Annotated[list[Id], Field(max_length=Limits.NAMES, fail_fast=True)]
Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=Limits.WORDS)]
Searched = Annotated[Query, AfterValidator(_one_line)]
Time = Annotated[StrictInt, Field(ge=-(2**62), le=2**62)] | StrictFloat | Annotated[str, StringConstraints(max_length=40)]
Price = Annotated[float, Field(ge=-1e15, le=1e15)]
Size = Annotated[StrictInt, Field(ge=1, le=Limits.LIST)]
MerchantField = Annotated[
    str | None, Field(pattern=MERCHANT_NAME, description="Whose list it is: needed where the service has several merchants.")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @checked(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        """Each field that is not known is an error of its own, and thousands of them take seconds to be told."""
        if isinstance(given, dict) and len(given) > Limits.FIELDS:
            raise ValueError(f"it has more than {Limits.FIELDS} fields")
        return given


class FilterIn(_Strict):
    """Which items a list may hold; an item has to pass everything that is given."""

    category: Names = []
    brand: Names = []
    price_min: Price | None = None
    price_max: Price | None = None
    only: Ids | None = Field(None, description="Item ids that are in stock; an empty list is an empty stock.")

    def filter(self) -> Filter:
        """As the recommender takes it."""
        return Filter(self.category, self.brand, self.price_min, self.price_max, self.only)


class _ForPerson(_Strict):
    merchant: MerchantField = None
    history: Annotated[list[Id], Field(max_length=Limits.HISTORY, fail_fast=True)] | None = Field(
        None, description="Item ids, most recent last. Where it is given it counts, whoever the user is."
    )
    times: Annotated[list[Time], Field(max_length=Limits.HISTORY, fail_fast=True)] | None = Field(
        None, description="For each item of the history an ISO 8601 time, or a number; items of one time are one basket."
    )
    user_id: Id | None = Field(None, description="A user whose events the merchant has.")
    query: Query | None = Field(
        None, description="Words for what is looked for: as `/v1/search` ranks, and the person's history orders what they find."
    )

    def person(self) -> Person:
        """As the recommender takes it."""
        return Person(self.history, self.user_id, self.times)


class RecommendRequest(_ForPerson):
    """A list for a person."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [
            {"history": ["p8d386587b1", "p41cfcbedad"], "k": 5, "filter": {"price_max": 20}},
            {"history": ["p8d386587b1"], "k": 5, "explore": 0.05},
        ]},
    )  # fmt: skip

    k: Size = 10
    filter: FilterIn = FilterIn()
    exclude: Ids = []
    repeats: StrictBool = False
    diversity: float = Field(0.0, ge=0, le=1, description="To one decimal for the shop's key.")
    explore: float = Field(
        0.0, ge=0, le=1, description="Share of the places that go to items of uncertain value by chance; not with a query."
    )
    explain: StrictBool = False

    def wish(self, diversity: float) -> Wish:
        """As the recommender takes it; `diversity` as this caller may have it."""
        return Wish(self.k, self.query, self.filter.filter(), self.exclude, self.repeats, diversity, self.explain, self.explore)


class SearchRequest(_Strict):
    """The best items for words alone."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra={"examples": [{"query": "ground coffee", "k": 5}]}
    )

    merchant: MerchantField = None
    query: Query
    k: Size = 10
    filter: FilterIn = FilterIn()
    exclude: Ids = []


class BasketRequest(_Strict):
    """What completes a basket: nobody's history is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"items": ["p8d386587b1", "p41cfcbedad"], "k": 5}]},
    )  # fmt: skip

    merchant: MerchantField = None
    items: Annotated[list[Id], Field(min_length=1, max_length=Limits.HISTORY, fail_fast=True)]
    query: Query | None = Field(None, description="Words for what is looked for; the basket orders what they find.")
    k: Size = 10
    filter: FilterIn = FilterIn()
    exclude: Ids = []
    explain: StrictBool = False


class RankRequest(_ForPerson):
    """Given items in the order of a person's or of words' liking."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"history": ["p8d386587b1"], "candidates": ["p41cfcbedad", "p8d386587b1"]}]},
    )  # fmt: skip

    candidates: Annotated[list[Id], Field(min_length=1, max_length=Limits.CANDIDATES, fail_fast=True)]
    repeats: StrictBool = Field(
        False,
        description="Whether those of the history are ranked too, and it counts how often and how recently they were bought.",
    )


class ExplainRequest(_ForPerson):
    """Why these items, or the best ones."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"history": ["p8d386587b1"], "k": 3, "words": True}]},
    )  # fmt: skip

    items: Annotated[list[Id], Field(min_length=1, max_length=Limits.EXPLAINED, fail_fast=True)] | None = None
    k: Annotated[StrictInt, Field(ge=1, le=Limits.EXPLAINED)] | None = Field(
        None, description=f"Without `items`; 10 by default, with `words` {Limits.EXPLAINED_WORDS}."
    )
    repeats: StrictBool = False
    words: StrictBool = Field(
        False, description=f"Also which words of each item's text carry its score; of {Limits.EXPLAINED_WORDS} items at most."
    )

    @checked(mode="after")
    def _few_words(self) -> Self:
        if self.words and self.most > Limits.EXPLAINED_WORDS:
            raise ValueError(f"with words it is {Limits.EXPLAINED_WORDS} items at most")
        return self

    @property
    def most(self) -> int:
        """How many items are explained at most."""
        if self.items is not None:
            return len(self.items)
        return self.k or (Limits.EXPLAINED_WORDS if self.words else 10)


class _Word(BaseModel):
    start: int
    end: int


class _WordShare(_Word):
    word: str
    share: float


class _ShopperWords(BaseModel):
    text: str
    words: list[_Word]


class _StaffWords(BaseModel):
    text: str
    score: float
    gap: float
    words: list[_WordShare]


class _Told(BaseModel):
    kind: str
    name: str
    how: Literal["strong", "some", "slight"]


class _Share(BaseModel):
    kind: str
    name: str
    share: float
    through: dict[str, float]


class ShopperReasons(BaseModel):
    """What a shopper may see: a sentence and classes, and no number."""

    item_id: str
    because: str | None
    shares: list[_Told]
    words: _ShopperWords | None = None


class StaffReasons(BaseModel):
    """Exact; the shares add up to the score."""

    item_id: str
    score: float
    because: str | None
    shares: list[_Share]
    words: _StaffWords | None = None


class Item(BaseModel):
    """An item of a list."""

    item_id: str
    text: str
    source: str = Field(description="What made it: a model by name, `popularity`, `search`, or `MODEL + search`.")
    score: float | None = Field(description="For the staff's key alone: exact scores tell what other customers bought.")
    propensity: float | None = Field(
        None,
        description="With `explore`, the chance that this item had at this place, which is computed from scores: for the staff's "
        "key alone. Feedback that names the answer gets it without being told.",
    )
    value: float | None = Field(
        None, description="With `explore`, what the item was believed to be worth; a score, so for the staff's key alone."
    )
    reasons: StaffReasons | ShopperReasons | None = None


class ListAnswer(BaseModel):
    """A list, best first."""

    request_id: str
    merchant: str
    model: str = Field(description="Version of the adapter that ranked.")
    snapshot: str = Field(description="Changes with whatever was loaded: adapter, own layer, catalogue, events.")
    took_ms: float
    source: str
    notes: list[str] = Field(
        description="What was ignored, missing or fallen back on. None for a known user with the shop's key: they count and name."
    )
    distance: float | None = Field(
        description="Mean of one minus the cosine over the pairs of the list, for the staff's key alone: with it and `diversity` "
        "scores can be worked out."
    )
    items: list[Item]


class EventIn(_Strict):
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


class FeedbackRequest(_Strict):
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


class Info(BaseModel):
    """What answers here, and what it takes."""

    version: str
    limits: dict[str, float]
    merchants: list[MerchantInfo]


class MerchantInfo(BaseModel):
    """One merchant's model."""

    merchant: str
    loaded: bool
    model: str | None = None
    snapshot: str | None = None
    items: int | None = None
    words: bool | None = None
    export: Literal["used", "not used"] | None = Field(
        None, description="Of `--onnx`: not used where it is of another model than the one that ranks, which then reads words."
    )
    loaded_at: str | None = None
    data_at: str | None = None
    versions: list[str] | None = Field(
        None,
        description="Those that are here and can be compared, the untrained text first; for the staff's key.",
    )
    swaps: int
    up_to_date: bool = Field(description="False where what is on disk could not be loaded: the old model goes on.")
    failure: str | None = Field(None, description="Why not; for the staff's key.")
