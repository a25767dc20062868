"""What a request is answered that gets no answer: one form, and no path, key or stack in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedrec.errors import InputError

__all__ = ["STATUS", "ErrorAnswer", "Fault", "errors", "fault_of", "without_paths"]

ASKED = re.compile(
    r"(k|query|merchant|times(\[\d+\])?|history|items|exclude|only|diversity|explore|category|brand|price_m(in|ax)"
    r"|the filter on \w+)"
)
"""Places of an `InputError` that are the request's own."""

STATUS = {
    400: "The request cannot be read, or comes from a page or under a name that may not ask",
    401: "No key, or one that does not open this",
    404: "There is no such merchant or page for this key",
    405: "It is asked by another method",
    413: "The body is too large",
    422: "A field is wrong, missing or unknown",
    429: "Too much is waiting; try again after Retry-After seconds",
    500: "The service failed; its log names the request",
    503: "It cannot be answered now, or not within the time limit",
}


class ErrorAnswer(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str
    where: str | None = None


class Fault(Exception):
    """An answer that is an error.

    Args:
        status: one of `STATUS`.
        retry_after: seconds.
    """

    def __init__(
        self, status: int, error_type: str, error: str, where: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.retry_after = status, retry_after
        self.answer = ErrorAnswer(error=error, error_type=error_type, where=where)

    @property
    def headers(self) -> dict[str, str]:
        """Beside those of every answer."""
        found = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def fault_of(error: InputError) -> Fault:
    """What somebody is told of an `InputError`: all of it where it is about what they asked, and else that it is not."""
    if error.where is None or ASKED.fullmatch(error.where):
        text = "; ".join(part for part in (error.found, error.expected and f"expected {error.expected}") if part)
        return Fault(422, "invalid", text, error.where)
    return Fault(503, "unavailable", "the service cannot answer this now; its operator finds the reason in /info", retry_after=10)


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """These statuses for the OpenAPI document of a route, and those that any route may have."""
    return {code: {"model": ErrorAnswer, "description": STATUS[code]} for code in sorted({*codes, 405, 500})}


def without_paths(text: str, folders: Sequence[Path]) -> str:
    """A text in which files have names and no folders.

    >>> without_paths("/srv/my shop/items.csv: no such file (/tmp/x)", [Path("/srv/my shop")])
    'items.csv: no such file (x)'
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return re.sub(r"(?<![\w.])/(?:[^/\s'\"]+/)*", "", text)
