"""Checking tables: what cannot be used is left out and counted by reason, or refused by table, column and row."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedrec.data.kinds import MISSING, SEARCH, asks, counts_as_history, kinds_of
from fedrec.data.schema import Columns as C
from fedrec.data.tables import Table
from fedrec.errors import InputError
from fedrec.text import MERCHANT_NAME

__all__ = ["NO_NUMBER", "Items", "LeftOut", "check_events", "check_items", "check_rows", "have_come_back"]

NUMBER = r"\s*[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?\s*"
NEGATIVE = "\\s*[-\u2212][\\d.,]*[1-9]"
NO_NUMBER = "value is no finite number"
KINDS_NAMED = 10
"""Kinds of events that are left out under their own name; a column that holds anything else has too many."""


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table that were left out for one reason; the merchant's own business, and never sent.

    Attributes:
        table: `items`, `events`, `impressions` or `ratings`.
        reason: why, in words that hold nothing of a row but the kind of its event.
        rows: how many.
        first: the place of the first of them.
        fault: whether the row is wrong: a return or a view is not, it only is no purchase.
    """

    table: str
    reason: str
    rows: int
    first: str
    fault: bool = True

    def __str__(self) -> str:
        return f"left out {self.rows} of the {self.table}, {self.reason}; the first: {self.first}"


@dataclass(frozen=True)
class Items:
    """A checked catalogue.

    Attributes:
        frame: its rows.
        key: the columns that name an item.
        textless: the keys of the items that were left out because they have no text.
        name: what an error calls it.
        left_out: what was left out.
    """

    frame: pd.DataFrame
    key: tuple[str, ...]
    textless: pd.Index
    name: str
    left_out: tuple[LeftOut, ...]

    @property
    def keys(self) -> pd.Index:
        """The items' keys, in the order of the rows."""
        return _keys(self.frame, self.key)


def check_items(table: Table, name: str, key: tuple[str, ...] = (C.ITEM,), *, strict: bool = False) -> Items:
    """Validate a catalogue: columns there, ids present and unique, a text in every row.

    Args:
        name: what an error about the events calls the catalogue.
        key: the columns that name an item.
        strict: refuse a row that would be left out.

    Raises:
        InputError: a fault of the whole table, an id that is there twice, or no row that can be used.
    """
    table.require(C.ITEM_REQUIRED)
    if table.frame.empty:
        raise InputError("the catalogue is empty", where=table.name)
    rows = _Rows(table, "items", strict)
    for column in key:
        rows.leave_out_blank(column)
    columns = [column for column in C.TEXT if column in rows.frame]
    bare = pd.concat([rows.frame[column].fillna("").str.strip().eq("") for column in columns], axis=1).all(axis=1)
    textless = _keys(rows.frame[bare], key)
    rows.leave_out(
        bare, C.TITLE, "the item has no text", lambda row: "is empty, and the item has no other text",
        expected=f"a text in {' or '.join(columns)}",
    )  # fmt: skip
    frame, left_out = rows.result()
    repeated = frame.duplicated(list(key))
    if repeated.any():
        row = int(repeated.idxmax())
        raise InputError(
            f"item_id {frame[C.ITEM][row]!r} is there twice", where=table.at(C.ITEM, row), expected="unique item ids"
        )
    return Items(frame.reset_index(drop=True), key, textless, name, left_out)


def check_events(
    table: Table, items: Items, *, merchants: bool = False, history_events: Collection[str] | None = None, strict: bool = False
) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
    """Validate events: columns there, ids present, timestamps that parse, items that exist; returns are no purchases.

    Args:
        items: the checked catalogue.
        merchants: the events need a column `merchant`, whose values can name a folder.
        history_events: the kinds of events that count; see `counts_as_history`.
        strict: refuse a row that would be left out; a return, and a kind that does not count, is left out in any case.

    Returns:
        The events in the order of the table, `timestamp` as datetime64[us] in UTC without a zone; and what was
        left out of them.

    Raises:
        InputError: a fault of the whole table, or no row that can be used.
    """
    table.require((*C.EVENT_REQUIRED, C.MERCHANT) if merchants else C.EVENT_REQUIRED)
    if table.frame.empty:
        raise InputError("there are no events", where=table.name, expected="at least one row")
    rows = _Rows(table, "events", strict)
    _leave_out_returns(rows)
    _leave_out_kinds(rows, history_events)
    _leave_out_searches(rows)
    _check_places(rows, table, items, merchants)
    frame, left_out = rows.result()
    return frame.reset_index(drop=True), left_out


def check_rows(
    table: Table, items: Items, what: str, *, merchants: bool, strict: bool, answers: bool = False, numbers: bool = False
) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
    """Events of any kind that say who, what and when, under their numbers in the table; there may be none.

    Args:
        what: what they are called where some are left out.
        answers: a `value` that is there has to be 0 or 1.
        numbers: there has to be a `value`, and it has to be a finite number.

    Raises:
        InputError: `strict`, and one cannot be used.
    """
    rows = _Rows(table, what, strict)
    _check_places(rows, table, items, merchants)
    if answers and C.VALUE in rows.frame:
        values = rows.frame[C.VALUE].fillna("").str.strip()
        bad = ~values.isin(("", *MISSING)) & ~pd.to_numeric(values, errors="coerce").isin((0, 1))
        rows.leave_out(bad, C.VALUE, "value is neither 0 nor 1", lambda row: f"{values[row]!r} is no answer", expected="0 or 1")
    if numbers:
        values = rows.frame[C.VALUE].fillna("").str.strip()
        bad = ~pd.Series(np.isfinite(pd.to_numeric(values, errors="coerce").to_numpy(float)), index=values.index)
        rows.leave_out(
            bad, C.VALUE, NO_NUMBER, lambda row: f"{values[row]!r} is no finite number", expected="a rating such as 4.5"
        )
    return rows.frame, rows.left_out


def _check_places(rows: _Rows, table: Table, items: Items, merchants: bool) -> None:
    for column in (C.MERCHANT, *C.EVENT_REQUIRED) if merchants else C.EVENT_REQUIRED:
        rows.leave_out_blank(column)
    if merchants:
        _check_merchants(rows.frame, table)
    _leave_out_times(rows)
    _leave_out_unknown(rows, items)


class _Rows:
    """The rows of a table that can be used so far, by their number in the table."""

    def __init__(self, table: Table, what: str, strict: bool) -> None:
        self.frame, self._table, self._what, self._strict = table.frame, table, what, strict
        self._left_out: list[tuple[LeftOut, InputError]] = []

    def leave_out(
        self, bad: pd.Series, column: str, reason: str, found: Callable[[int], str],
        *, fault: bool = True, expected: str | None = None, hint: str | None = None,
    ) -> None:  # fmt: skip
        """Leave out the rows that are `bad`, or refuse the first of them."""
        if not bad.any():
            return
        row, where = int(bad.idxmax()), self._table.at(column, int(bad.idxmax()))
        error = InputError(found(row), where=where, expected=expected, hint=hint)
        if fault and self._strict:
            raise error
        self._left_out.append((LeftOut(self._what, reason, int(bad.sum()), where, fault), error))
        self.frame = self.frame[~bad]

    def leave_out_blank(self, column: str) -> None:
        """Leave out the rows that have no value here; a search for words needs no item."""
        values = self.frame[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            blank = values.isna()
        else:
            blank = values.isna() | values.str.strip().eq("") | values.isin(MISSING)

        def found(row: int) -> str:
            return f"is empty: {values[row]} is a database's missing value" if values[row] in MISSING else "is empty"

        if column == C.ITEM:
            blank &= ~asks(self.frame)
        self.leave_out(blank, column, f"{column} is empty", found, expected="a value")

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What was left out so far."""
        return tuple(one for one, _ in self._left_out)

    def result(self) -> tuple[pd.DataFrame, tuple[LeftOut, ...]]:
        """What is left, and what is not."""
        if self.frame.empty:
            most, error = max(self._left_out, key=lambda one: one[0].rows)
            found = f"{error.found}; nothing is left of the {self._what}, {most.rows} of {len(self._table.frame)} for this reason"
            raise InputError(found, where=error.where, expected=error.expected, hint=error.hint)
        return self.frame, self.left_out


def have_come_back(events: pd.DataFrame) -> pd.Series:
    """Whether each event is a return by its quantity, which is negative."""
    if C.QUANTITY not in events:
        return pd.Series(False, index=events.index)
    return events[C.QUANTITY].str.match(NEGATIVE, na=False).astype(bool)


def _leave_out_returns(rows: _Rows) -> None:
    if C.EVENT in rows.frame:
        returned = rows.frame[C.EVENT].str.strip().str.lower().eq("return")
        rows.leave_out(returned, C.EVENT, "event is a return", lambda row: "is a return", fault=False)
    if C.QUANTITY in rows.frame:
        negative = have_come_back(rows.frame)
        rows.leave_out(negative, C.QUANTITY, "quantity is negative", lambda row: "is negative, so a return", fault=False)


def _leave_out_kinds(rows: _Rows, history_events: Collection[str] | None) -> None:
    kinds = kinds_of(rows.frame)
    kinds = kinds[~counts_as_history(rows.frame, history_events)]
    named = kinds.value_counts().index[:KINDS_NAMED]
    for kind in (*named, None):
        these = kinds.index[kinds.eq(kind) if kind is not None else ~kinds.isin(named)]
        rows.leave_out(
            pd.Series(rows.frame.index.isin(these), index=rows.frame.index), C.EVENT,
            f"event is of {'another kind' if kind is None else f'the kind {kind!r}'}, which is no history",
            lambda row: f"{kinds[row]!r} is a kind of event that is no history",
            fault=False, hint="history_events in [data] says which kinds count",
        )  # fmt: skip


def _leave_out_searches(rows: _Rows) -> None:
    """Leave out the searches whose words are not there, in a table where others' are."""
    if C.QUERY not in rows.frame:
        return
    wordless = kinds_of(rows.frame).eq(SEARCH) & ~asks(rows.frame)
    rows.leave_out(
        wordless, C.QUERY, "a search has no query", lambda row: "is empty, and the event is a search",
        expected="the words that were searched for",
    )  # fmt: skip


def _leave_out_times(rows: _Rows) -> None:
    """Parse the column `timestamp`; a number is none, whatever pandas would make of it."""
    times = rows.frame[C.TIME]
    if pd.api.types.is_datetime64_any_dtype(times):
        return

    def leave_out(bad: pd.Series, reason: str, hint: str | None = None) -> None:
        found = lambda row: f"{times[row]!r} is not a timestamp"  # noqa: E731
        rows.leave_out(bad, C.TIME, reason, found, expected="ISO 8601, such as 2026-01-31 or 2026-01-31T09:30:00", hint=hint)

    hint = "a number may be seconds, milliseconds or a date: convert it where the table is made"
    leave_out(times.str.fullmatch(NUMBER).astype(bool), "timestamp is a number", hint)
    # pandas would also read `now`, and with one time in nanoseconds it holds no year before 1677 in any row.
    text = rows.frame[C.TIME].str.replace(r"(\.\d{6})\d+", r"\1", regex=True)
    text = text.where(text.str.match(r"\s*\d").astype(bool))
    parsed = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
    leave_out(~parsed.dt.year.between(1, 9999), "timestamp is not ISO 8601")
    rows.frame = rows.frame.assign(**{C.TIME: parsed[rows.frame.index].astype("datetime64[us]")})


def _leave_out_unknown(rows: _Rows, items: Items) -> None:
    def in_keys(keys: pd.Index) -> pd.Series:
        return pd.Series(_keys(rows.frame, items.key).isin(keys), index=rows.frame.index) & ~asks(rows.frame)

    def named(row: int) -> str:
        return f"item_id {rows.frame[C.ITEM][row]!r}"

    bare = in_keys(items.textless)
    found = lambda row: f"{named(row)} has no text in {items.name} ({int(bare.sum())} such events)"  # noqa: E731
    rows.leave_out(bare, C.ITEM, "the item has no text", found, hint="give the item a title")

    def stranger(row: int) -> str:
        whose = f"one of merchant {rows.frame[C.MERCHANT][row]}'s items" if C.MERCHANT in items.key else f"in {items.name}"
        return f"{named(row)} is not {whose} ({int(unknown.sum())} such events)"

    unknown = ~in_keys(items.keys) & ~asks(rows.frame)
    hint = "add the items to the catalogue or remove the events"
    rows.leave_out(unknown, C.ITEM, "the item is not in the catalogue", stranger, hint=hint)


def _check_merchants(events: pd.DataFrame, table: Table) -> None:
    seen: dict[str, str] = {}
    for name in events[C.MERCHANT].unique():
        other = seen.setdefault(name.casefold(), name)
        if re.fullmatch(MERCHANT_NAME, name) and other == name:
            continue
        # A merchant's name is the name of its folder too, and some file systems do not tell case.
        what = "cannot name a merchant" if other == name else f"differs from {other!r} only in case"
        raise InputError(
            f"{name!r} {what}",
            where=table.at(C.MERCHANT, int(events[C.MERCHANT].eq(name).idxmax())),
            expected="at most 64 letters, digits, dots, dashes and underscores, the first a letter or a digit",
        )


def _keys(frame: pd.DataFrame, key: tuple[str, ...]) -> pd.Index:
    return pd.Index(frame[key[0]]) if len(key) == 1 else pd.MultiIndex.from_frame(frame[list(key)])
