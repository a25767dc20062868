"""The record of everything that was released about a merchant's users, for life.

Append-only JSON lines, each chained to the one before by a hash. A release is written and
flushed to disk *before* anything is computed: a crash costs budget, never gives it back. Then
the head is: killed in between, the ledger is one line ahead of it, which counts.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedrec.config import Trust, Unit, flush_folder, make_folder, write_atomically
from fedrec.privacy.accountants import Epsilon, epsilon
from fedrec.privacy.events import Mechanism, SampledGaussian
from fedrec.privacy.ledger_chain import GENESIS, follow, line_of, split
from fedrec.privacy.ledger_head import HINT, Head, LedgerError, read_file

__all__ = ["Ledger", "LedgerError", "Release", "used"]


@dataclass(frozen=True)
class Release:
    """One line of the ledger."""

    run: str
    round: int
    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float
    unit: Unit
    delta: float
    simulated: bool = False
    """Whether the noise came from a seed, which only a simulation may have."""
    trust: Trust = "local"
    """Under which trust model; the fields on members and the noise alone are of `secure-aggregation`."""
    noise_multiplier_alone: float = 0.0
    """What is left of the noise if every other merchant tells the server all it knows: the own share."""
    members: int = 0
    """Merchants in the roster."""
    dropouts: int = 0
    """How many of them may be missing from a sum that is opened."""
    colluders: int = 0
    """How many are assumed to tell the server all they know."""
    epsilon_before: float = 0.0
    epsilon_after: float = 0.0
    accountant: str = ""
    time: str = ""
    version: str = ""
    head_kept: bool = False
    """Whether a head was kept when this was written: a ledger with such a line has one, or has lost it."""
    accepted: str = ""
    """In a line that stands for lost ones: what was lost, and what is counted for it."""

    @property
    def kind(self) -> Release:
        """What all releases have in common that cost the same for the same reason."""
        return replace(
            self, run="", round=0, steps=1, delta=0.0, epsilon_before=0.0, epsilon_after=0.0, accountant="", time="",
            version="", head_kept=False, accepted="",
        )  # fmt: skip

    @property
    def event(self) -> SampledGaussian:
        """The release as the accountants see it."""
        return SampledGaussian(self.noise_multiplier, self.sample_rate, self.steps)

    @property
    def event_alone(self) -> SampledGaussian:
        """The release as a server sees it to whom every other merchant tells all it knows."""
        return SampledGaussian(self.noise_multiplier_alone or self.noise_multiplier, self.sample_rate, self.steps)

    def same_request(self, other: Release) -> bool:
        """Whether both are the same release asked for twice."""
        names = (
            "run", "round", "mechanism", "noise_multiplier", "sample_rate", "steps", "clip_norm", "unit",
            "trust", "members", "dropouts", "colluders", "noise_multiplier_alone",
        )  # fmt: skip
        return all(getattr(self, name) == getattr(other, name) for name in names)


class Ledger:
    """A merchant's ledger file; every read checks the whole chain, and holds it against the head.

    The chain of bytes that were checked before need not be computed again: each read compares
    what is on disk with them, to the byte, and computes from where they end.

    Args:
        path: the file.
        delta: at which epsilon is told.
        head: the file of the head; None keeps none, and notices no line that is missing at the end.
    """

    def __init__(self, path: Path, delta: float, head: Path | None = None) -> None:
        self.path, self.delta, self.head_path = path, delta, head
        self._checked: tuple[bytes, list[tuple[Release, str]]] = (b"", [])

    def releases(self) -> list[Release]:
        """All releases, oldest first.

        A last line that breaks off is the trace of a crash in the middle of a write. Nothing
        was released for it, since a line is flushed whole before training starts; the next
        write sets it aside in `<ledger>.torn`.

        Raises:
            LedgerError: a line was changed, removed or moved, and is named; the file is no ledger; or
                the head is lost or damaged.
        """
        return [release for release, _ in self._lines()]

    def spent(self) -> Epsilon:
        """Epsilon of everything released so far."""
        return epsilon([release.event for release in self.releases()], self.delta)

    def find(self, run: str, round_number: int) -> Release | None:
        """The release of this run and round."""
        return next((known for known in self.releases() if (known.run, known.round) == (run, round_number)), None)

    def intact(self) -> tuple[list[Release], bool]:
        """The releases up to the first line that is broken, without a look at the head; and whether there is no such line."""
        out: list[Release] = []
        try:
            for release, _ in _verified(split(read_file(self.path) or b"")[0], self.path):
                out.append(release)
        except LedgerError:
            return out, False
        return out, True

    def head(self) -> Head:
        """What the head is to say.

        Raises:
            LedgerError: as `releases`.
        """
        return _head(self._lines())

    def standing(self) -> str:
        """How ledger and head are to each other, in words.

        Raises:
            LedgerError: as `releases`.
        """
        head = self._read_head()
        lines = self._lines()
        if head is None:
            return "it has no head yet" if lines else "nothing was released yet"
        if ahead := len(lines) - head.lines:
            return f"it is {ahead} {'line, which counts,' if ahead == 1 else 'lines, which count,'} ahead of its head"
        return "its head agrees"

    def adopt(self) -> str:
        """Write the head of a ledger from before heads were kept, or one that a crash left behind; returns `standing`.

        Raises:
            LedgerError: as `releases`, or the head cannot be written.
        """
        found, lines, head = self.standing(), self._lines(), self._read_head()
        if not lines or not self.head_path or head == _head(lines):
            return found
        with self._writing():
            _head(lines).write(self.head_path)
        return found if head else f"{found}: it is kept from now on in {self.head_path}"

    def append(self, release: Release) -> Release:
        """Write `release` and flush it to disk, then the head; returns it with time, version and epsilons filled in.

        Raises:
            LedgerError: a file cannot be written, or `releases` fails.
        """
        with self._writing():
            make_folder(self.path.parent)
            lines = self._lines()
            after = epsilon([*(known.event for known, _ in lines), release.event], self.delta)
            full = self._dated(release, after, before=lines[-1][0].epsilon_after if lines else 0.0)
            if self.head_path:
                # Or the first line that says it has one could be without; and one that cannot be written must not cost a round.
                _head(lines).write(self.head_path)
            self._mend_end()
            chain, line = line_of(lines[-1][1] if lines else GENESIS, vars(full))
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            flush_folder(self.path.parent)
            if self.head_path:
                _head([*lines, (full, chain)]).write(self.head_path)
            return full

    def begin_anew(self, releases: Sequence[Release], least: float = 0.0) -> Path | None:
        """Set the file aside, whatever it is, and begin a new chain with `releases`; returns where the file is now.

        The head comes first: killed in between, it is another chain's, which is refused and can be accepted again.

        Args:
            releases: they stand for all that was lost, so each has the epsilon of all as `epsilon_after`.
            least: what that is at least.

        Raises:
            LedgerError: a file cannot be written.
        """
        after = epsilon([release.event for release in releases], self.delta)
        after = replace(after, value=max(after.value, least))
        lines, content, chain = [], b"", GENESIS
        for release in releases:
            full = self._dated(release, after, before=0.0)
            chain, line = line_of(chain, vars(full))
            lines.append((full, chain))
            content += line
        with self._writing():
            make_folder(self.path.parent)
            if self.head_path:
                _head(lines).write(self.head_path)
            aside = None
            if os.path.lexists(self.path):
                aside = self.path.with_suffix(f".lost-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
                self.path.rename(aside)
            write_atomically(self.path, content)
            return aside

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger and its head against every other process, from the check to the release.

        Raises:
            LedgerError: another process holds it, or the folder cannot be written.
        """
        lock = self.path.with_suffix(".lock")
        try:
            make_folder(lock.parent)
            file = open(lock, "a")  # noqa: SIM115
        except OSError as error:
            raise LedgerError(f"cannot be locked ({error.strerror})", where=str(lock)) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LedgerError("another process holds the ledger", where=str(self.path)) from None
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = str(error.filename or self.path)
            raise LedgerError(f"cannot be written ({error.strerror})", where=where, hint="nothing was released") from None

    def _dated(self, release: Release, after: Epsilon, before: float) -> Release:
        return replace(
            release,
            epsilon_before=before,
            epsilon_after=after.value,
            accountant=after.accountant,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            version=_version(),
            head_kept=self.head_path is not None,
        )

    def _mend_end(self) -> None:
        """Set a torn last line aside, and give a whole one the newline that it lacks."""
        content = read_file(self.path) or b""
        _, torn = split(content)
        if torn:
            with open(self.path.with_suffix(".torn"), "ab") as aside:
                aside.write(torn + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            os.truncate(self.path, len(content) - len(torn))
        elif content and not content.endswith(b"\n"):
            with open(self.path, "ab") as file:
                file.write(b"\n")

    def _read_head(self) -> Head | None:
        return Head.read(self.head_path) if self.head_path else None

    def _lines(self) -> list[tuple[Release, str]]:
        head = self._read_head()  # before the ledger, which another process may be writing
        found = read_file(self.path)
        content = found or b""
        known, out = self._checked if content.startswith(self._checked[0]) else (b"", [])
        out = [*out, *_verified(split(content[len(known) :])[0], self.path, out)]
        # A last line without its newline is not known: what follows it begins with one.
        whole = content.rfind(b"\n") + 1
        self._checked = content[:whole], out[: content.count(b"\n")]
        if head is not None:
            self._compare(head, out, missing=found is None)
        elif self.head_path and any(release.head_kept for release, _ in out):
            hint = f"put it back, or say in merchant.toml under [ledger] where it is; {HINT}"
            raise LedgerError(f"the ledger's head, {self.head_path}, is missing", where=str(self.path), hint=hint)
        return out

    def _compare(self, head: Head, lines: Sequence[tuple[Release, str]], *, missing: bool) -> None:
        if len(lines) < head.lines:
            first, where = len(lines) + 1, f"{self.path}, line {len(lines) + 1}"
            which = f"line {first} is" if first == head.lines else f"lines {first} to {head.lines} are"
            found = "there is no ledger" if missing else f"{which} missing"
            raise LedgerError(f"{found}: its head, {self.head_path}, counts {head.lines}", where=where, hint=HINT)
        if head.lines and lines[head.lines - 1][1] != head.chain:
            where = f"{self.path}, line {head.lines}"
            raise LedgerError(f"is of another chain than the one that its head, {self.head_path}, ends", where=where, hint=HINT)


def used(releases: Iterable[Release]) -> Counter[Release]:
    """The steps of each kind of release: what `epsilon` depends on."""
    steps: Counter[Release] = Counter()
    for release in releases:
        steps[release.kind] += release.steps
    return steps


def _verified(lines: Sequence[bytes], path: Path, before: Sequence[tuple[Release, str]] = ()) -> Iterator[tuple[Release, str]]:
    """Release and hash of each of `lines`, which follow `before`."""
    last = before[-1][1] if before else GENESIS
    for number, (body, chain) in enumerate(follow(lines, path, len(before), last), len(before) + 1):
        try:
            release = Release(**body)
            _ = hash(release), release.event, release.event_alone
        except (ValueError, TypeError, ArithmeticError):
            raise LedgerError("is not a ledger line", where=f"{path}, line {number}", hint=HINT) from None
        yield release, chain


def _head(lines: Sequence[tuple[Release, str]]) -> Head:
    steps = used(release for release, _ in lines)
    return Head(len(lines), lines[-1][1] if lines else GENESIS, [vars(replace(kind, steps=n)) for kind, n in steps.items()])


@cache
def _version() -> str:
    try:
        return version("fedrec")
    except PackageNotFoundError:
        return "unknown"
