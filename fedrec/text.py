"""Text that somebody else wrote: how it is shown, and what of it a message may hold.

A name, a title, a reason or a path from others may hold what a terminal obeys, what turns the direction of
reading, and newlines that make one line look like two. So whatever is printed, logged or drawn passes through
`visible`: on the way into the consoles of `fedrec.cli.console`, into a log record, into a page of `fedrec.report`.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["LONGEST", "MERCHANT_NAME", "Line", "MerchantName", "RunId", "line", "log_visibly", "visible"]

LONGEST = 300
"""Most characters of a reason."""
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what is not text: controls, format characters, halves of a surrogate pair, separators of lines."""
JOINERS = {"\u200c", "\u200d"}
"""Format characters that words of several scripts are written with; they move nothing."""


def visible(text: str) -> str:
    r"""One line of text in which nothing is obeyed: what a terminal would obey is shown as its escape.

    >>> print(visible("a\x1b[2Jb\nc"), visible("caf\u00e9 [/b] :mug:"))
    a\x1b[2Jb\nc café [/b] :mug:
    """
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in OBEYED and one not in JOINERS else one
        for one in text
    )


def line(text: str) -> str:
    """`visible` text of at most `LONGEST` characters: what may be a reason in a message."""
    shown = visible(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _is_line(text: str) -> str:
    if text != visible(text):
        raise ValueError("it holds control characters")
    return text


RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""Names a run, or an attempt at a round of one."""
MERCHANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MerchantName = Annotated[str, Field(pattern=MERCHANT_NAME)]
"""A merchant's public name."""
Line = Annotated[str, Field(max_length=LONGEST), AfterValidator(_is_line)]
"""A reason, or what else is written for people."""


class _Record(logging.LogRecord):
    """A log record of one visible line; a traceback under it is indented, so that none of it passes for another record."""

    def getMessage(self) -> str:
        return visible(super().getMessage())

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        if self.exc_info:
            lines = logging.Formatter().formatException(self.exc_info).split("\n")
            self.exc_text = "\n".join(f"  {visible(one)}" for one in lines)


def log_visibly() -> None:
    """Have every log record of this process made visible, whichever package writes it."""
    logging.setLogRecordFactory(_Record)
