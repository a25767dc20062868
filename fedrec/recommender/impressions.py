"""What lists that explored showed, kept in the merchant's own folder beside the feedback to it.

    feedback/impressions.csv          a line for each place of each such list; 0600
    feedback/impressions-before.csv   the same of the time before: the older half, which leaves whole
    feedback/impressions.lock         held by whoever appends, reads, or takes a person out

Both together hold at most so many bytes as were asked for. What came of a place is not here: it is in `feedback/events.csv`, by
the `request_id` of the list, and is joined when it is asked for. A list that was not flushed before a power cut is lost; an event
of feedback is not.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from fedrec.config import write_atomically
from fedrec.data.feedback import FEEDBACK, csv_lines, feedback_frame, locked, whole_lines
from fedrec.data.kinds import ANSWERS
from fedrec.errors import InputError
from fedrec.explore.log import LogTable, check_log

__all__ = [
    "BEFORE",
    "IMPRESSIONS",
    "Impression",
    "ImpressionLog",
    "erase_impressions",
    "find_impressions",
    "has_shown",
    "read_shown",
    "version_of",
]

IMPRESSIONS, BEFORE, LOCK = "impressions.csv", "impressions-before.csv", "impressions.lock"
TAIL = 1 << 16
"""Bytes in which the end of the last whole line is looked for; no line is so long."""


@dataclass(frozen=True)
class Impression:
    """A place of a list; its fields are the columns of the log.

    Attributes:
        request_id: whose list it is; feedback names it.
        user_id: whom it was shown to; empty where the list was not for a known user.
        timestamp: ISO 8601, UTC.
        position: from 1.
        policy: what chose: the model's version and the share; see `version_of`.
        propensity, value, target: as in `fedrec.recommender.exploring.Place`.
    """

    request_id: str
    user_id: str
    timestamp: str
    item_id: str
    position: str
    policy: str
    propensity: str
    value: str
    target: str


HEADER = tuple(field.name for field in fields(Impression))


def version_of(policy: str) -> str:
    """The model's version in a `policy`.

    >>> version_of("untrained 0.05")
    'untrained'
    """
    return policy.rpartition(" ")[0]


class ImpressionLog:
    """The log of one merchant's folder; several processes may hold one.

    Args:
        most: bytes of both files together; 0 keeps nothing.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder / FEEDBACK, most

    def append(self, rows: Sequence[Impression]) -> None:
        """Append the places of a list.

        Raises:
            InputError: a value is longer than `LONGEST` or holds a control character.
            OSError: it cannot be written; it is then as it was.
        """
        lines = csv_lines([astuple(row) for row in rows], HEADER)
        if not rows or not self._most:
            return
        with locked(self._folder, LOCK):
            path = self._folder / IMPRESSIONS
            if _size(path) + len(lines) > self._most // 2 and _size(path):
                os.replace(path, self._folder / BEFORE)
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
                end = _end(file)
                _write(file, end, lines if end else csv_lines([HEADER], HEADER) + lines)


def read_shown(folder: Path) -> LogTable:
    """What a merchant's folder has of lists that explored, and what came of it: a log for learning and for evaluations.

    The reward of a place is 1 where its list's customer clicked or bought its item, and 0 where nothing was heard.

    Raises:
        InputError: there is none, or what is there is not what was written.
    """
    rows = _both(folder)
    if not rows:
        raise InputError(
            "has no list that explored", where=str(folder / FEEDBACK / IMPRESSIONS),
            hint="`fedrec serve` keeps those that are asked for with `explore`",
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(HEADER), dtype=object)
    feedback = feedback_frame(folder)
    frame["reward"] = 0.0
    if feedback is not None:
        answers = feedback[feedback["event"].isin(ANSWERS)]
        rewarded = pd.MultiIndex.from_frame(answers[["request_id", "item_id"]])
        frame["reward"] = pd.MultiIndex.from_frame(frame[["request_id", "item_id"]]).isin(rewarded).astype(float)
    return check_log(LogTable(frame, f"{folder / FEEDBACK / IMPRESSIONS}", lambda row: f"row {row}"))


def has_shown(folder: Path) -> bool:
    """Whether a merchant's folder has lists that explored."""
    return any(_rows(folder / FEEDBACK / name) for name in (IMPRESSIONS, BEFORE))


def find_impressions(folder: Path, user_id: str) -> dict[Path, int]:
    """How many rows of each file are of lists that were for this person, or that this person's feedback names."""
    requests = _requests_of(folder, user_id)
    with _held(folder) as logs:
        found = {path: sum(_is_theirs(row, user_id, requests) for row in _rows(path)) for path in logs}
    return {path: count for path, count in found.items() if count}


def erase_impressions(folder: Path, user_id: str) -> dict[Path, int]:
    """Take these rows out of both files, wherever they are by now; how many of each.

    The person's feedback has to be there yet: it names the lists.
    """
    requests, removed = _requests_of(folder, user_id), dict[Path, int]()
    with _held(folder) as logs:
        for path in logs:
            rows = _rows(path)
            left = [row for row in rows if not _is_theirs(row, user_id, requests)]
            if len(left) < len(rows):
                write_atomically(path, csv_lines([HEADER, *left], HEADER), mode=0o600)
                removed[path] = len(rows) - len(left)
    return removed


def _both(folder: Path) -> list[list[str]]:
    with _held(folder) as logs:
        return [row for path in logs for row in _rows(path)]


@contextmanager
def _held(folder: Path) -> Iterator[list[Path]]:
    """The files that are there, older first, between which no list moves meanwhile; nothing is made where there are none."""
    logs = [folder / FEEDBACK / name for name in (BEFORE, IMPRESSIONS)]
    if not any(path.exists() for path in logs):
        yield []
        return
    with locked(folder / FEEDBACK, LOCK):
        yield [path for path in logs if path.exists()]


def _requests_of(folder: Path, user_id: str) -> frozenset[str]:
    feedback = feedback_frame(folder)
    if feedback is None:
        return frozenset()
    return frozenset(feedback.loc[feedback["user_id"] == user_id, "request_id"]) - {""}


def _is_theirs(row: Sequence[str], user_id: str, requests: frozenset[str]) -> bool:
    return row[HEADER.index("user_id")] == user_id or row[HEADER.index("request_id")] in requests


def _rows(path: Path) -> list[list[str]]:
    try:
        text = whole_lines(path.read_bytes()).decode()
        header, *rows = csv.reader(io.StringIO(text, newline="")) if text else [list(HEADER)]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), hint="remove it: it is only learned from") from None
    wrong = next((line for line, row in enumerate(rows, 2) if len(row) != len(HEADER)), None)
    if tuple(header) != HEADER or wrong:
        raise InputError(
            "it is not what was written", where=f"{path}, line {wrong or 1}", hint="remove it: it is only learned from"
        )
    return rows


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _end(file: BinaryIO) -> int:
    """Where the whole lines end; a part of one, of a process that was killed, is taken away."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(size - TAIL, 0))
    data = file.read()
    end = start + len(whole_lines(data))
    if end < size:
        file.truncate(end)
    return end


def _write(file: BinaryIO, end: int, data: bytes) -> None:
    try:
        file.seek(end)
        if file.write(data) != len(data):
            raise OSError("a part of it was written")
    except OSError:
        file.truncate(end)
        raise
