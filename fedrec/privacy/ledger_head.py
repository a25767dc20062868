"""The head of a ledger: how many lines it has, the hash of the last, and what they cost; kept in a second place.

A chain of hashes tells nothing about lines that are missing at its end. The head does, and what
it says was used is what counts when the ledger itself is lost.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.config import make_folder, write_atomically
from fedrec.errors import InputError

__all__ = ["HEAD_SUFFIX", "HINT", "Head", "LedgerError", "head_file", "head_folder", "read_file"]

HEAD_SUFFIX = ".head.json"
HINT = (
    "nothing is released until it is put right: restore the newest copy, or see `fedrec merchant ledger FOLDER`, "
    "which also says what would count without one"
)


class LedgerError(InputError):
    """The ledger cannot be trusted or written: nothing may be released."""


def head_folder(ledgers: Path) -> Path:
    """Where the heads of the ledgers in a folder are, unless they are set apart: beside the folder."""
    return ledgers.with_name(f"{ledgers.name}-head")


def head_file(ledger: Path, folder: Path | None = None) -> Path:
    """The head of the ledger at `ledger`, in `folder` or in its usual place."""
    folder = folder or head_folder(ledger.absolute().parent)
    return folder / f"{ledger.name.removesuffix('.jsonl').removesuffix('.ledger')}{HEAD_SUFFIX}"


@dataclass(frozen=True)
class Head:
    """What a ledger's lines amount to.

    Attributes:
        lines: how many there are.
        chain: hash of the last one.
        used: the releases as the ledger has them, alike ones as one with all their steps.
    """

    lines: int
    chain: str
    used: Sequence[dict[str, Any]]

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        body = {"lines": self.lines, "chain": self.chain, "used": list(self.used)}
        return json.dumps(body | {"digest": _digest(body)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Head:
        """Read what `to_json` has written.

        Raises:
            ValueError: it is anything else.
        """
        try:
            body = json.loads(text)
            digest = body.pop("digest")
            if digest != _digest(body):
                raise ValueError("the digest is another one")
            return cls(body["lines"], body["chain"], body["used"])
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"is no head ({error})") from None

    def write(self, path: Path) -> None:
        """Replace the head at `path`, on disk before this returns.

        Raises:
            OSError: it cannot be written.
        """
        make_folder(path.parent)
        write_atomically(path, self.to_json().encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Head | None:
        """The head at `path`, or None where there is none.

        Raises:
            LedgerError: it is damaged, or cannot be read.
        """
        content = read_file(path)
        if content is None:
            return None
        try:
            return cls.from_json(content)
        except ValueError:
            raise LedgerError(f"the ledger's head, {path}, is damaged", where=str(path), hint=HINT) from None


def read_file(path: Path) -> bytes | None:
    """The content of a file, or None where there is nothing of that name.

    Raises:
        LedgerError: it cannot be read, or is no file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LedgerError("is not a file", where=str(path), hint=HINT)
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise LedgerError("is a link to a file that is not there", where=str(path), hint=HINT) from None
        return None
    except OSError as error:
        raise LedgerError(f"cannot be read ({error.strerror})", where=str(path), hint=HINT) from None


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
