"""The record of everything that was released about a merchant's users, for life.

Append-only JSON lines, each chained to the one before by a hash. A release is written and
flushed to disk *before* anything is computed: a crash costs budget, never gives it back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedrec.config import Trust, Unit
from fedrec.errors import InputError
from fedrec.privacy.accountants import Epsilon, epsilon
from fedrec.privacy.events import Mechanism, SampledGaussian

__all__ = ["Ledger", "LedgerError", "Release"]

GENESIS = "0" * 64


class LedgerError(InputError):
    """The ledger cannot be trusted or written: nothing may be released."""


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
    """A merchant's ledger file; every read checks the whole chain.

    The chain of bytes that were checked before need not be computed again: each read compares
    what is on disk with them, to the byte, and computes from where they end.
    """

    def __init__(self, path: Path, delta: float) -> None:
        self.path, self.delta = path, delta
        self._checked: tuple[bytes, list[tuple[Release, str]]] = (b"", [])

    def releases(self) -> list[Release]:
        """All releases, oldest first.

        A last line that breaks off is the trace of a crash in the middle of a write. Nothing
        was released for it, since a line is flushed whole before training starts; the next
        write sets it aside in `<ledger>.torn`.

        Raises:
            LedgerError: a line was changed, removed or moved; it is named.
        """
        return [release for release, _ in self._lines()]

    def spent(self) -> Epsilon:
        """Epsilon of everything released so far."""
        return epsilon([release.event for release in self.releases()], self.delta)

    def find(self, run: str, round_number: int) -> Release | None:
        """The release of this run and round."""
        return next((known for known in self.releases() if (known.run, known.round) == (run, round_number)), None)

    def append(self, release: Release) -> Release:
        """Write `release` and flush it to disk; returns it with time, version and epsilons filled in.

        Raises:
            LedgerError: the file cannot be written, or its chain is broken.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._set_torn_end_aside()
            lines = self._lines()
            with open(self.path, "ab") as file:
                after = epsilon([*(known.event for known, _ in lines), release.event], self.delta)
                full = replace(
                    release,
                    epsilon_before=lines[-1][0].epsilon_after if lines else 0.0,
                    epsilon_after=after.value,
                    accountant=after.accountant,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                    version=_version(),
                )
                chain = lines[-1][1] if lines else GENESIS
                line = {"release": vars(full), "chain": _chain(chain, vars(full))}
                file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                return full
        except OSError as error:
            raise LedgerError(
                f"cannot be written ({error.strerror})", where=str(self.path), hint="nothing was released"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger against every other process, from the check to the release.

        Raises:
            LedgerError: another process holds it, or the folder cannot be written.
        """
        lock = self.path.with_suffix(".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a")  # noqa: SIM115
        except OSError as error:
            raise LedgerError(f"cannot be locked ({error.strerror})", where=str(lock)) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LedgerError("another process holds the ledger", where=str(self.path)) from None
            yield

    def _set_torn_end_aside(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(self.path.with_suffix(".torn"), "ab") as aside:
                aside.write(content[whole:] + b"\n")
                os.fsync(aside.fileno())
            os.truncate(self.path, whole)

    def _lines(self) -> list[tuple[Release, str]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError(f"cannot be read ({error.strerror})", where=str(self.path)) from None
        content = content[: content.rfind(b"\n") + 1]
        known, out = self._checked
        if not content.startswith(known):
            known, out = b"", []
        out = list(out)
        chain = out[-1][1] if out else GENESIS
        for number, line in enumerate(content[len(known) :].splitlines(), len(out) + 1):
            where = f"{self.path}, line {number}"
            try:
                entry = json.loads(line)
                release = Release(**entry["release"])
            except (ValueError, TypeError, KeyError):
                raise LedgerError("is not a ledger line", where=where, hint="nothing is released until it is repaired") from None
            # Over what the line says, which an older version wrote with fewer fields.
            chain = _chain(chain, entry["release"])
            if entry.get("chain") != chain:
                raise LedgerError("the chain is broken: a line was changed, removed or moved", where=where)
            out.append((release, chain))
        self._checked = content, out
        return list(out)


def _chain(previous: str, release: dict[str, Any]) -> str:
    body = json.dumps(release, sort_keys=True)
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


@cache
def _version() -> str:
    try:
        return version("fedrec")
    except PackageNotFoundError:
        return "unknown"
