"""Where a merchant's tables are: the `[data]` table of `merchant.toml`.

A folder of CSV or Parquet files, or a SQL database with one query for each table. A
password is never among these settings, so that they can be shown, logged and kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from fedrec.data.kinds import IMPRESSION, NO_HISTORY, RETURN
from fedrec.errors import InputError

__all__ = ["DataSource"]

SECRET = re.compile(r"(pass(?!file)|pwd|secret|token)\w*\s*=", re.IGNORECASE)
"""A credential as a parameter, in a query string or in a connection string inside one; `passfile` names a file."""
USERINFO = re.compile(r":[^:]*@")
"""`user:password@` in a part of a URL that has no place for it: the URL was not read as it was meant."""

Filled = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class DataSource(BaseModel):
    """The `[data]` table; without one the tables lie beside `merchant.toml`."""

    # pydantic repeats what it was given in its errors, and here that may be a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    path: Path | None = None
    """Folder of the tables; a relative path starts at the merchant folder."""
    url: str | None = None
    """SQLAlchemy URL of a database, without a password; a relative SQLite file starts at the merchant folder."""
    items: Filled | None = None
    """SQL of the catalogue, run as it is written: its result has the columns of `items.csv`."""
    events: Filled | None = None
    """SQL of the events: its result has the columns of `events.csv`."""
    password_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the database's password."""
    password_file: Path | None = None
    """File that holds the password and that only its owner can read; a relative path starts at the merchant folder."""

    history_events: tuple[Filled, ...] | None = Field(None, min_length=1)
    """The kinds of events that count as history; by default all but impressions, views and clicks, and searches where there is
    no column `query`. A return or an impression never does."""
    target_events: tuple[Filled, ...] | None = Field(None, min_length=1)
    """Those of them that are to be predicted, and that popularity and the own layer count; by default all but searches for
    words, which never are."""

    @field_validator("history_events", "target_events")
    @classmethod
    def _are_kinds_that_can_count(cls, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
        folded = None if kinds is None else tuple(kind.casefold() for kind in kinds)
        if folded and RETURN in folded:
            raise ValueError("holds 'return', which is never a purchase; take it out")
        if folded and IMPRESSION in folded:
            raise ValueError("holds 'impression', which says what was shown and never what a user has; take it out")
        return folded

    @field_validator("url")
    @classmethod
    def _is_a_url_without_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            from sqlalchemy import exc, make_url
        except ImportError:
            raise InputError("SQLAlchemy is not installed", where="[data] url", hint="pip install 'fedrec[sql]'") from None
        try:
            parsed = make_url(url)
        except (exc.ArgumentError, ValueError):
            parsed = None
        # None of these messages repeats the URL, and none is raised in the handler above, whose error may.
        if parsed is None or USERINFO.search(f"{parsed.host} {parsed.database}"):
            raise ValueError("is not a database url; expected dialect+driver://user@host:port/database")
        if parsed.password is not None or SECRET.search(unquote(url)):
            raise ValueError("holds a password; take it out and name where it is with password_env or password_file")
        return url

    @model_validator(mode="after")
    def _targets_are_history(self) -> Self:
        targets, history = self.target_events or (), self.history_events
        strange = [kind for kind in targets if (kind in NO_HISTORY if history is None else kind not in history)]
        if strange:
            raise ValueError(f"target_events holds {strange[0]!r}, which is no history; name it in history_events too")
        return self

    @model_validator(mode="after")
    def _is_a_folder_or_a_database(self) -> Self:
        for_url = ("items", "events", "password_env", "password_file")
        given = [name for name in for_url if getattr(self, name) is not None]
        if self.url is None and given:
            raise ValueError(f"{given[0]} is for a database; expected a url too")
        if self.url is not None and self.path is not None:
            raise ValueError("path and url are both given; expected one of them")
        if self.url is not None and (missing := {"items", "events"} - set(given)):
            raise ValueError(f"there is no query {min(missing)}; expected items and events with a url")
        if self.password_env is not None and self.password_file is not None:
            raise ValueError("password_env and password_file are both given; expected at most one of them")
        return self
