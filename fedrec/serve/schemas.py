"""Requests and answers. A field that is not here is refused, so that nobody believes in a filter that is none."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StringConstraints
from pydantic import model_validator as checked

from fedrec.recommender import Filter, Person, Wish
from fedrec.serve.settings import Limits
from fedrec.text import MERCHANT_NAME

__all__ = [
    "BasketRequest", "ExplainRequest", "FilterIn", "Id", "Info", "Item", "ListAnswer", "MerchantField", "Price", "Query",
    "RankRequest", "RecommendRequest", "SearchRequest", "ShopperReasons", "StaffReasons", "Strict",
]  # fmt: skip

Id = Annotated[str, StringConstraints(min_length=1, max_length=Limits.ID)]
Ids = Annotated[list[Id], Field(max_length=Limits.IDS, fail_fast=True)]
Names = Annotated[list[Id], Field(max_length=Limits.NAMES, fail_fast=True)]
Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=Limits.WORDS)]
Time = Annotated[StrictInt, Field(ge=-(2**62), le=2**62)] | StrictFloat | Annotated[str, StringConstraints(max_length=40)]
Price = Annotated[float, Field(ge=-1e15, le=1e15)]
Size = Annotated[StrictInt, Field(ge=1, le=Limits.LIST)]
MerchantField = Annotated[
    str | None, Field(pattern=MERCHANT_NAME, description="Whose list it is: needed where the service has several merchants.")
]


class Strict(BaseModel):
    """What is asked: a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @checked(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        """Each field that is not known is an error of its own, and thousands of them take seconds to be told."""
        if isinstance(given, dict) and len(given) > Limits.FIELDS:
            raise ValueError(f"it has more than {Limits.FIELDS} fields")
        return given


class FilterIn(Strict):
    """Which items a list may hold; an item has to pass everything that is given."""

    category: Names = []
    brand: Names = []
    price_min: Price | None = None
    price_max: Price | None = None
    only: Ids | None = Field(None, description="Item ids that are in stock; an empty list is an empty stock.")

    def filter(self) -> Filter:
        """As the recommender takes it."""
        return Filter(self.category, self.brand, self.price_min, self.price_max, self.only)


class _ForPerson(Strict):
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


class SearchRequest(Strict):
    """The best items for words alone."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra={"examples": [{"query": "ground coffee", "k": 5}]}
    )

    merchant: MerchantField = None
    query: Query
    k: Size = 10
    filter: FilterIn = FilterIn()
    exclude: Ids = []


class BasketRequest(Strict):
    """What completes a basket: nobody's history is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False,
        json_schema_extra={"examples": [{"items": ["p8d386587b1", "p41cfcbedad"], "k": 5}]},
    )  # fmt: skip

    merchant: MerchantField = None
    items: Annotated[list[Id], Field(min_length=1, max_length=Limits.BASKET, fail_fast=True)]
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
    target: float | None = Field(
        None, description="With `explore`, whether (1 or 0) it would be here too, below the same places, were none given by "
        "chance: in the list by what was learned, which one without `explore` does not go by. It compares scores, so it is for "
        "the staff's key alone.",
    )  # fmt: skip
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
