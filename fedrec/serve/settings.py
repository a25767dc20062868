"""What an operator may set of a service, and the limits of a request, each once."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec.config import read_toml
from fedrec.data.feedback import LONGEST, LONGEST_WORDS
from fedrec.errors import InputError

__all__ = ["LOOPBACK", "DriftSettings", "Limits", "ServeSettings", "read_serve_settings"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine reaches."""


class Limits:
    """How long the parts of a request may be. They are in the OpenAPI document, and so are the same everywhere."""

    LIST = 200
    """Items of an answer."""
    HISTORY = 1_000
    BASKET = 100
    """Items of a basket: each is compared with the catalogue."""
    CANDIDATES = 1_000
    """Items that `rank` puts in order."""
    EXPLAINED = 50
    """Items that `explain` explains by name."""
    EXPLAINED_WORDS = 5
    """The same with `words`: the encoder reads two texts for each word of an item's."""
    IDS = 20_000
    """Item ids of a stock list, or to exclude."""
    NAMES = 100
    """Categories or brands of a filter."""
    ID = LONGEST
    """Characters of an id."""
    WORDS = LONGEST_WORDS
    """Characters of a query."""
    FIELDS = 30
    """Fields of an object."""
    EVENTS = 1_000
    """Feedback events of a batch."""


class DriftSettings(BaseModel):
    """The table `[drift]`: what raises `fedrec_drift_alarm`. Nothing else follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: float = Field(24, ge=0.01, le=8_760)
    """Hours between two measurements; the first is made at the start."""
    weeks: int = Field(4, ge=1, le=52)
    """In a window."""
    lost: float | None = Field(0.1, gt=0, le=1)
    """Share of its hit rate that the text has lost, beyond chance."""
    mix: float | None = Field(None, gt=0, le=1)
    """Distance of the last window's mix."""
    unknown: float | None = Field(None, gt=0, le=1)
    """Share of the last window's purchases whose item was not bought in the window before."""
    figures: bool = False
    """Whether the figures themselves are in `/metrics` too, in `fedrec_drift`. They come from customers' data without noise."""


class ServeSettings(BaseModel):
    """The file of `fedrec serve --config`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hosts: tuple[str, ...] = ()
    """Names that a request's `Host` may have, without a port. On a loopback address always that address's own; elsewhere any
    name when absent."""
    body_bytes: int = Field(1_000_000, ge=1_000, le=100_000_000)
    """Most bytes of a request's body."""
    body_seconds: float = Field(10, gt=0, le=600)
    """How long a body may take to arrive."""
    time_limit: float = Field(5, gt=0, le=600)
    """Seconds after which a request is answered by 503, from when its body is there."""
    queue: int = Field(64, ge=1, le=10_000)
    """Most requests that wait for the thread that ranks; one more is answered by 429."""
    batch: int = Field(16, ge=1, le=256)
    """Most waiting requests that are ranked in one go."""
    requests: int = Field(256, ge=1, le=100_000)
    """Most requests in progress, those included whose body is still arriving, and without the pages that need no key; one more is
    answered by 429."""
    impression_bytes: int = Field(20_000_000, ge=0, le=10**12)
    """Most bytes of what lists that explored showed, in each merchant's own folder: the older half leaves. 0 keeps nothing."""
    poll: float = Field(2, gt=0, le=3_600)
    """Seconds between two looks at whether a folder has changed."""
    refresh: float = Field(600, gt=0)
    """Seconds after which new feedback, and what a database has, is read again at most so often."""
    loaded: int = Field(8, ge=1, le=10_000)
    """Most merchants in memory, where there are several; the one that was idle longest leaves."""
    idle: float = Field(900, gt=0)
    """Seconds without a request after which a merchant leaves memory, where there are several; so does a version compared."""
    drift: DriftSettings | None = None
    """Without this table drift is measured only when somebody asks for it, and is in no metric."""


def read_serve_settings(path: Path | None) -> ServeSettings:
    """Read and check the file; the defaults without one.

    Raises:
        InputError: naming the file and the setting.
    """
    if path is None:
        return ServeSettings()
    try:
        return ServeSettings.model_validate(read_toml(path, hint="it holds settings of `fedrec serve`"))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}", where=str(path)) from None
