"""A file of events as feedback: what a row is called follows from what it says, so a file that comes again adds nothing."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import pandas as pd

from fedrec.data.feedback import LONGEST, LONGEST_WORDS, FeedbackEvent
from fedrec.data.kinds import MISSING, asks, kinds_of
from fedrec.data.schema import Columns as C
from fedrec.data.tables import Table
from fedrec.errors import InputError
from fedrec.text import visible

__all__ = ["events_of"]

DATE = r"\s*\d{4}-\d"
KEPT = (C.QUANTITY, C.PRICE, C.VALUE, C.BASKET)


def events_of(table: Table) -> list[FeedbackEvent]:
    """The rows of a table of events, in its order. Rows that say the same are told apart by how often they were there before.

    Of a search, `query` is kept and its item is not; of anything else it is the other way round.

    Raises:
        InputError: a column is missing, or a row has no user, item (or words) or time, or something that is too long or no
            line of text.
    """
    table.require(C.EVENT_REQUIRED)
    frame = table.frame.assign(**{C.EVENT: kinds_of(table.frame), C.TIME: _times(table)})
    searches = asks(frame)
    frame[C.QUERY] = [" ".join(words.split()) for words in frame[C.QUERY].where(searches, "")] if C.QUERY in frame else ""
    frame[C.ITEM] = frame[C.ITEM].mask(searches, "")
    for column in (C.USER, C.ITEM):
        blank = frame[column].isna() | frame[column].isin(MISSING) | frame[column].str.strip().eq("")
        blank &= ~searches if column == C.ITEM else True
        if blank.any():
            raise InputError("is empty", where=table.at(column, int(blank.idxmax())), expected="a value")
    columns = [C.USER, C.ITEM, C.TIME, C.EVENT, *(name for name in KEPT if name in frame)]
    for column in (*columns, C.QUERY):
        most = LONGEST_WORDS if column == C.QUERY else LONGEST
        long = frame[column].map(lambda text, most=most: isinstance(text, str) and len(text) > most).astype(bool)
        if long.any():
            raise InputError("is too long", where=table.at(column, int(long.idxmax())), expected=f"at most {most} characters")
        strange = frame[column].map(lambda text: isinstance(text, str) and text != visible(text)).astype(bool)
        if strange.any():
            raise InputError(
                "holds a control character", where=table.at(column, int(strange.idxmax())), expected="a line of text"
            )
    seen: Counter[tuple[tuple[str, str], ...]] = Counter()
    found = []
    for query, *row in zip(*(frame[column].fillna("") for column in (C.QUERY, *columns)), strict=True):
        asked = ((C.QUERY, query),) if query else ()  # without words a row is called as it was before there were any
        said = (*zip(columns, row, strict=True), *asked)
        told = "\0".join((*(name for name, _ in said), *(value for _, value in said), str(seen[said])))
        seen[said] += 1
        event_id = f"import-{blake2b(told.encode(), digest_size=16).hexdigest()}"
        found.append(FeedbackEvent(event_id, **dict(said)))
    return found


def _times(table: Table) -> pd.Series:
    """The column `timestamp` in UTC, as the log has it."""
    times = table.frame[C.TIME]
    if not pd.api.types.is_datetime64_any_dtype(times):
        texts = times.where(times.str.match(DATE).fillna(False).astype(bool))
        times = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
    bad = times.isna()
    if bad.any():
        where = table.at(C.TIME, int(bad.idxmax()))
        raise InputError("is no time", where=where, expected="ISO 8601, such as 2026-01-31 or 2026-01-31T09:30:00")
    return times.map(lambda time: f"{time.isoformat(timespec='microseconds')}Z")
