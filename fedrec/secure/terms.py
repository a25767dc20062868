"""What a secure sum is agreed about, and the roster of those who may take part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedrec.config import write_atomically
from fedrec.errors import InputError

__all__ = ["Refused", "Roster", "Terms", "hashed"]


class Refused(Exception):
    """A merchant does not go on with a secure sum; the reason holds no private data and no secret.

    Args:
        reason: what is wrong.
        blamed: the merchant whose doing it must be, unless the server changed its message; "" for nobody.
    """

    def __init__(self, reason: str, blamed: str = "") -> None:
        super().__init__(reason)
        self.blamed = blamed


@dataclass(frozen=True)
class Roster:
    """The merchants of a federation, each with the public key of its node.

    Every merchant holds its own copy, from the others and not from the server: it is what keeps a server
    from inventing merchants.

    Attributes:
        keys: OpenSSH lines (`type base64`) by merchant.
    """

    keys: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read a roster file: one line `merchant type base64` each, `#` starting a comment.

        Raises:
            InputError: naming the file and the line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InputError(f"cannot be read ({why})", where=str(path), expected="the roster of all merchants") from None
        keys: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip() or line.startswith("#"):
                continue
            name, _, key = line.strip().partition(" ")
            key = " ".join(key.split()[:2])
            if not _usable(key):
                raise InputError("holds no elliptic-curve public key", where=where, expected="MERCHANT ecdsa-sha2-nistp384 ...")
            if name in keys or key in keys.values():
                raise InputError(f"the {'name' if name in keys else 'key'} of {name} is there twice", where=where)
            keys[name] = key
        return cls(keys)

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        write_atomically(path, self.text().encode())

    def text(self) -> str:
        """The file's text."""
        lines = "".join(f"{name} {self.keys[name]}\n" for name in sorted(self.keys))
        return "# Who takes part in secure aggregation. Compare it with the other merchants', not with the server's.\n" + lines

    @property
    def digest(self) -> str:
        """A hash of names and keys, for people and programs to compare."""
        return hashed(self.keys)


@dataclass(frozen=True)
class Terms:
    """What all members of a secure sum must see alike.

    Attributes:
        run: the run's id.
        round: of the run; under 1 for a released statistic, 0 the histogram.
        attempt: of the round: a server that starts over before anybody has masked gets fresh keys.
        roster: digest of the roster.
        members: merchants in it.
        dropouts: how many of them may be missing from the sum.
        colluders: how many are assumed to tell the server all they know.
    """

    run: str
    round: int
    attempt: str
    roster: str
    members: int
    dropouts: int
    colluders: int

    def __post_init__(self) -> None:
        possible = self.dropouts >= 0 and self.colluders >= 0 and 2 * self.dropouts + self.colluders < self.members
        if self.members < 2 or not possible:
            raise Refused(
                f"{self.members} merchants cannot bear {self.dropouts} dropouts and {self.colluders} colluders: "
                "twice the dropouts and the colluders must be fewer than the merchants"
            )

    @property
    def least(self) -> int:
        """The fewest merchants in a sum that is opened."""
        return self.members - self.dropouts

    @property
    def honest(self) -> int:
        """The fewest of them who do not collude: so many shares of noise are in every opened sum."""
        return self.least - self.colluders

    @property
    def about(self) -> bytes:
        """What every signature and every key is bound to."""
        return hashed(asdict(self)).encode()


def hashed(value: object) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _usable(line: str) -> bool:
    try:
        return isinstance(serialization.load_ssh_public_key(line.encode()), ec.EllipticCurvePublicKey)
    except (ValueError, UnsupportedAlgorithm):
        return False
