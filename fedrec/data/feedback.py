"""What customers did, as it comes in: a log in the merchant's own folder that `load_merchant` reads with the events.

    feedback/events.csv   a line an event, only ever appended to; 0600
    feedback/lock         held by whoever appends to it, or takes a person out of it

An event has an id, from its client, and counts once however often it is sent. `append` returns when its events are on
disk. A process that is killed in the middle of it leaves whole lines, which the client sends again in vain, and perhaps a
part of one, which nobody was told is kept: readers leave it out, and the next writer takes it away.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedrec.config import flush_folder, make_private, write_atomically
from fedrec.data.schema import Columns as C
from fedrec.data.tables import Table
from fedrec.errors import InputError
from fedrec.text import visible

__all__ = [
    "EVENT_ID",
    "FEEDBACK",
    "LOG",
    "LONGEST",
    "LONGEST_WORDS",
    "Appended",
    "FeedbackEvent",
    "FeedbackLog",
    "csv_lines",
    "feedback_frame",
    "locked",
    "mended",
    "read_feedback",
    "whole_lines",
    "with_feedback",
]

FEEDBACK, LOG, LOCK = "feedback", "events.csv", "lock"
EVENT_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
"""Of an id: nothing that a CSV file would have to quote."""
LONGEST = 256
"""Characters of a value; the reader of CSV gives up at 131,072, which would leave a log that nobody can read."""
LONGEST_WORDS = 500
"""The same of what somebody searched for."""


@dataclass(frozen=True)
class FeedbackEvent:
    """One thing that somebody did; its fields are the columns of the log, an empty one is not known.

    Attributes:
        event_id: from the client; see `EVENT_ID`.
        timestamp: ISO 8601, UTC.
        event: its kind, in lower case.
        request_id: the answer that it is a reaction to.
        position: where in that answer the item stood, from 1.
        propensity: how likely the item was to be shown there.
        query: what was searched for; `item_id` may then be empty.
    """

    event_id: str
    user_id: str
    item_id: str
    timestamp: str
    event: str = "purchase"
    quantity: str = ""
    price: str = ""
    value: str = ""
    basket_id: str = ""
    request_id: str = ""
    position: str = ""
    propensity: str = ""
    query: str = ""


HEADER = tuple(field.name for field in fields(FeedbackEvent))
WORDLESS = HEADER[:-1]
"""Of a log that was begun before there were searches in it."""


class Appended(NamedTuple):
    """What became of a batch.

    Attributes:
        stored: events that are new, and on disk now.
        repeated: events that were there already.
    """

    stored: int
    repeated: int


class FeedbackLog:
    """The log of one merchant's folder. Several processes may hold one; a thread at a time may use this object.

    It remembers the ids of all events, at about 100 bytes each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FEEDBACK
        self._known: set[bytes] = set()
        self._read, self._last = 0, b""  # up to where it was read, and the last line of that

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Append what is new of `events`; on disk when this returns.

        Raises:
            InputError: a value is longer than `LONGEST` or holds a control character, or the log is damaged.
            OSError: it cannot be written; it is then as it was.
        """
        with locked(self.folder), _opened(self.folder / LOG) as file:
            end = self._catch_up(file)
            new: dict[bytes, FeedbackEvent] = {}
            for event in events:
                if (key := _key(event.event_id)) not in self._known:
                    new.setdefault(key, event)
            if new:
                lines = csv_lines(([] if end else [HEADER]) + [astuple(event) for event in new.values()])
                _write(file, end, lines)
                flush_folder(self.folder)
                self._known |= new.keys()
                self._moved(lines)
        return Appended(len(new), len(events) - len(new))

    def _catch_up(self, file: io.BufferedRandom) -> int:
        """Read what others appended, take away what is torn, and say where the whole lines end."""
        file.seek(self._read - len(self._last))
        if file.read(len(self._last)) != self._last:  # another file: somebody was taken out of it
            self._known, self._read, self._last = set(), 0, b""
        file.seek(self._read)
        data = file.read()
        whole = whole_lines(data)
        if len(whole) < len(data):
            file.truncate(self._read + len(whole))
        if data:  # whoever wrote it may have died before it was on disk, and a repetition of it is acknowledged
            os.fsync(file.fileno())
            flush_folder(self.folder)
        lines = whole.splitlines()
        self._known |= {_key(line.partition(b",")[0].decode()) for line in (lines if self._read else lines[1:])}
        self._moved(whole)
        return self._read

    def _moved(self, lines: bytes) -> None:
        self._read += len(lines)
        self._last = lines[lines[:-1].rfind(b"\n") + 1 :] or self._last


def feedback_frame(folder: Path) -> pd.DataFrame | None:
    """The log of a merchant's folder, all columns in text, empty where nothing was given; None where there is none.

    Raises:
        InputError: it is damaged, by its line.
    """
    path = folder / FEEDBACK / LOG
    try:
        text = whole_lines(path.read_bytes()).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from None
    try:
        header, *rows = csv.reader(io.StringIO(text, newline="")) if text else [list(HEADER)]
    except csv.Error as error:
        raise InputError(f"it is not what was written ({error})", where=str(path), hint="put it back from a backup") from None
    wrong = next((line for line, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if tuple(header) not in (HEADER, WORDLESS) or wrong:
        raise InputError("it is not what was written", where=f"{path}, line {wrong or 1}", hint="put it back from a backup")
    return pd.DataFrame(rows, columns=header, dtype=object)


def read_feedback(folder: Path) -> Table | None:
    """The same as a table of events.

    Raises:
        InputError: see `feedback_frame`.
    """
    frame = feedback_frame(folder)
    if frame is None:
        return None
    header = frame.columns.tolist()
    known = [name for name in header if name in C.ALL]
    name, given = f"{FEEDBACK}/{LOG}", frame[known].where(frame[known] != "", None)
    return Table(given, name, tuple(header), lambda row: f"line {row + 2} of {name}")


def with_feedback(events: Table, folder: Path) -> Table:
    """A merchant's events, and after them what its log holds; without one, or where it is empty, the events as they are.

    Raises:
        InputError: see `read_feedback`.
    """
    more = read_feedback(folder)
    if more is None or more.frame.empty or not set(C.EVENT_REQUIRED) <= set(events.columns):
        return events
    added = more.frame
    if pd.api.types.is_datetime64_any_dtype(events.frame[C.TIME]):
        added = added.assign(**{C.TIME: _times(added[C.TIME])})
    added = added.drop(columns=[name for name in added if added[name].isna().all()])
    count = len(events.frame)
    frame = pd.concat([events.frame, added.astype(events.frame.dtypes[events.frame.columns.intersection(added.columns)])])
    return Table(
        frame.reset_index(drop=True), events.name, tuple(dict.fromkeys((*events.columns, *added.columns))),
        lambda row: events.place(row) if row < count else more.place(row - count),
    )  # fmt: skip


@contextmanager
def mended(folder: Path) -> Iterator[None]:
    """Hold a merchant's log against whoever appends, and take away what is torn; nothing is made where there is none."""
    path = folder / FEEDBACK / LOG
    if not path.is_file():
        yield
        return
    with locked(path.parent):
        data = path.read_bytes()
        if len(whole := whole_lines(data)) < len(data):
            os.truncate(path, len(whole))
        yield


@contextmanager
def locked(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Hold a file of the folder against every other process; the folder is made where it is not there."""
    make_private(folder)
    with open(os.open(folder / lock, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # it ends with the file, and with the process
        yield


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedRandom]:
    """The log with all columns: one that was begun with fewer of them is written anew, and put in its place whole."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        if file.readline() != f"{','.join(WORDLESS)}\n".encode():
            yield file
            return
        file.seek(0)
        _, *lines = whole_lines(file.read()).splitlines()
    write_atomically(path, csv_lines([HEADER]) + b"".join(line + b",\n" for line in lines), mode=0o600)
    with path.open("r+b") as wide:
        yield wide


def _write(file: io.BufferedRandom, end: int, data: bytes) -> None:
    try:
        file.seek(end)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), end)  # a full disk may have taken a part
        raise


def csv_lines(rows: Sequence[Sequence[str]], names: Sequence[str] = HEADER) -> bytes:
    """Rows of these columns as lines of CSV.

    Raises:
        InputError: a value is longer than `LONGEST` or holds a control character.
    """
    for row in rows:
        for name, value in zip(names, row, strict=True):
            if len(value) > (most := LONGEST_WORDS if name == C.QUERY else LONGEST):
                raise InputError(f"{len(value):,} characters", where="an event", expected=f"at most {most}")
        if strange := next((value for value in row if value != visible(value)), None):
            raise InputError(f"{visible(strange)!r} holds a control character", where="an event", expected="a line of text")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def whole_lines(data: bytes) -> bytes:
    """The whole lines of a log: a killed process leaves a part of one, and a power cut zeros."""
    zero = data.find(b"\0")
    data = data if zero < 0 else data[:zero]
    return data[: data.rfind(b"\n") + 1]


def _key(event_id: str) -> bytes:
    return blake2b(event_id.encode(), digest_size=16).digest()


def _times(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts, format="ISO8601", utc=True).dt.tz_localize(None).astype("datetime64[us]")
