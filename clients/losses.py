"""What this machine knows about a ledger besides the ledger: whether lines are lost, and what counts in their place.

Every stored reply holds a copy of the head as it was then; one of an older version, and the record of
messages, hold statements. A person may accept a loss: what counts is then the most that any of them proves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clients.site import Site
from fedrec.errors import InputError
from fedrec.privacy import Ledger, LedgerError, Release, SampledGaussian, epsilon, head_file
from fedrec.privacy.ledger import used
from fedrec.privacy.ledger_head import HINT, Head
from fedrec.wire import Statement
from fedrec.wire.records import STATEMENT

__all__ = ["ACCEPTED", "SECURE", "SUFFIX", "Record", "accept", "counted", "open_ledger", "records", "refusal"]

SUFFIX = ".ledger.jsonl"
SECURE = "secure.json"
"""File, among the stored replies, of what a secure sum has to remember."""
ACCEPTED = "accepted-loss"
"""The run of the lines that stand for lost ones."""
WHOLE = Release(ACCEPTED, 0, "dp-sgd", 1e-3, 1.0, 1, 1.0, "user", 0.0)
"""Stands for a budget that is spent, however large it may become: epsilon is over 500,000. An epsilon of which only the sum is
known cannot be added to another at the same delta, so there is no smaller figure that would be right."""
SAID = {field.name for field in fields(Release)} & {field.name for field in fields(Statement)}
"""What a statement says of its release."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
"""What reading a file that is damaged raises: it proves nothing then."""
ROUNDING = 1e-6
"""By so much, relatively, a figure may be over another that the same ledger holds."""
VERSIONS = 0.02
"""By so much a figure that an older version computed may be over what is computed again: the accountants' own error, twice."""


@dataclass(frozen=True)
class Record:
    """What one thing on this machine proves about what was released.

    Attributes:
        what: its name, in words.
        used: the releases that it knows of, by kind.
        complete: they are all that there were when it was made; else `epsilon` tells whether they are.
        epsilon: what it says was spent by then, at `delta`.
    """

    what: str
    used: Counter[Release]
    complete: bool
    epsilon: float = 0.0
    delta: float = 0.0

    def proves(self, steps: Counter[Release]) -> bool:
        """Whether `steps` are at least what this record says was spent."""
        if self.complete:
            return True
        spent = epsilon(_releases(steps), self.delta).value if steps and self.delta else 0.0
        return self.epsilon <= spent + VERSIONS


def open_ledger(site: Site, name: str, delta: float) -> Ledger:
    """The ledger of the merchant `name`, with its head."""
    path = site.ledger / f"{name}{SUFFIX}"
    return Ledger(path, delta, head_file(path, site.ledger_head))


def refusal(ledger: Ledger, site: Site, name: str) -> LedgerError | None:
    """Why nothing may be released: the ledger's own reason, or a stored reply of which it knows nothing."""
    stored = list(_replies(site, name))  # before the ledger, which another process may be writing
    try:
        releases = ledger.releases()
    except LedgerError as error:
        return error
    have, told = used(releases), max((release.epsilon_after for release in releases), default=0.0)
    for record in sorted(stored, key=lambda one: -one.epsilon):
        if record.epsilon > told * (1 + ROUNDING):
            more = f"says that epsilon {record.epsilon:.3f} was spent, the ledger says {told:.3f}"
        elif record.complete and WHOLE.kind not in have and record.used - have:
            more = "knows of more"
        else:
            continue
        return LedgerError(f"lines are missing: {record.what} {more}", where=str(ledger.path), hint=HINT)
    return None


def records(ledger: Ledger, site: Site, name: str) -> list[Record]:
    """All that is left and can be read: the ledger up to where it breaks, head, stored replies, record of messages."""
    out = []
    releases, whole = ledger.intact()
    if releases:
        out.append(Record(f"{len(releases)} lines of the ledger", used(releases), whole))
    with suppress(LedgerError, *UNREADABLE):
        if ledger.head_path and (head := Head.read(ledger.head_path)):
            out.append(Record(f"its head, of {head.lines} lines", _steps(head), complete=True))
    out += _replies(site, name)
    with suppress(*UNREADABLE):
        if site.wire_log:
            out += _messages(site.wire_log)
    return out


def counted(left: Sequence[Record]) -> Counter[Release] | None:
    """The most that any record proves, by kind of release; None if none proves what was spent, which is then the whole budget."""
    steps: Counter[Release] = Counter()
    for record in left:
        steps |= record.used
    known = any(record.complete or record.epsilon for record in left)
    return steps if known and all(record.proves(steps) for record in left) else None


def accept(ledger: Ledger, site: Site, name: str) -> Path | None:
    """Begin the ledger anew where lines are lost, with what counts in their place; returns where the old file is now.

    Raises:
        InputError: nothing is lost.
        LedgerError: another process holds the ledger, or it cannot be written.
    """
    with ledger.locked():
        reason = refusal(ledger, site, name)
        if reason is None:
            raise InputError("nothing is lost", where=str(ledger.path), expected="a ledger that is refused")
        left = records(ledger, site, name)
        steps = counted(left)
        proof = f"the most that is proved by {'; '.join(record.what for record in left)}"
        counts = "the whole budget, since nothing that is left proves what was spent" if steps is None else proof
        accepted = f"{datetime.now(UTC):%Y-%m-%d}: {reason.found}; a person accepted the loss, and what counts is {counts}"
        stand = [WHOLE] if steps is None else [replace(kind, steps=number) for kind, number in steps.items()]
        lines = [replace(one, run=ACCEPTED, round=i, delta=ledger.delta, accepted=accepted) for i, one in enumerate(stand)]
        return ledger.begin_anew(lines, least=max((record.epsilon for record in left), default=0.0))


def _replies(site: Site, name: str) -> Iterator[Record]:
    """The stored reply of a round, and that of a secure sum."""
    for path in sorted((site.replies / name).glob("*.safetensors")):
        with suppress(SafetensorError, *UNREADABLE):
            with safe_open(path, framework="numpy") as file:
                kept = file.metadata()
            yield _reply([json.loads(kept["statement"])], kept.get("head"))
    with suppress(*UNREADABLE):
        kept = json.loads((site.replies / name / SECURE).read_text(encoding="utf-8"))
        yield _reply([answer["statement"] for answer in kept["answers"].values()], kept.get("head"))


def _reply(statements: Sequence[dict[str, Any]], head: str | None) -> Record:
    last = max((Statement(**statement) for statement in statements), key=lambda statement: statement.epsilon_spent)
    steps = _steps(Head.from_json(head)) if head else Counter[Release]()
    what = f"the stored reply of run {last.run}, round {last.round}"
    return Record(what, steps, bool(head), last.epsilon_spent, last.delta)


def _messages(path: Path) -> Iterator[Record]:
    """What the record of messages says was released, each round once however often its reply was sent."""
    sent: dict[tuple[str, int], tuple[Release, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(*UNREADABLE):
            values = json.loads(line)["values"]
            statement = {one["name"]: one["value"] for one in values if one["record"] == STATEMENT}
            if statement.get("epsilon_spent"):
                release = Release(**{name: statement[name] for name in SAID if name in statement})
                _ = release.event
                sent[release.run, release.round] = release, statement["epsilon_spent"]
    if sent:
        last, spent = max(sent.values(), key=lambda one: one[1])
        yield Record(f"the record of {len(sent)} replies", used(one for one, _ in sent.values()), False, spent, last.delta)


def _steps(head: Head) -> Counter[Release]:
    """Raises one of `UNREADABLE` where the head is of a version that this one does not know."""
    return used(Release(**entry) for entry in head.used)


def _releases(steps: Counter[Release]) -> list[SampledGaussian]:
    return [replace(kind, steps=number).event for kind, number in steps.items()]
