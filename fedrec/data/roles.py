"""Which of a merchant's users train, which choose and which are measured: each has one use, by a hash that nobody else knows.

Those who choose and those who are measured are in no round of training, so that what a merchant finds on them means
something. The hash has a secret of the merchant's, or a server could tell who is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fedrec.config import flush_folder, make_private
from fedrec.errors import InputError

__all__ = ["SECRET_FILE", "Roles", "UserShares", "own_secret", "roles_of"]

SECRET_FILE = "users.key"
BYTES = 32


class UserShares(BaseModel):
    """The `[users]` table of `merchant.toml`: shares of the users who are in no round of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choose: float = Field(0.1, ge=0, le=0.4)
    """Those on whom the merchant chooses how its parts are joined, and which adapter serves."""
    measure: float = Field(0.1, ge=0, le=0.4)
    """Those on whom the merchant measures what it has; 0 measures nothing."""


@dataclass(frozen=True)
class Roles:
    """Numbers of the users of each kind, ascending."""

    train: np.ndarray
    choose: np.ndarray
    measure: np.ndarray


def roles_of(user_ids: Sequence[str], shares: UserShares, secret: bytes) -> Roles:
    """The role of each user: the same whenever it is asked, whatever other users there are.

    Args:
        secret: key of the hash, at most 64 bytes.
    """
    drawn = np.array([_share(user, secret) for user in user_ids], dtype=np.float64)
    # From both ends, so that one share can change without moving who has the other's role.
    choose, measure = drawn < shares.choose, drawn >= 1 - shares.measure
    return Roles(np.flatnonzero(~choose & ~measure), np.flatnonzero(choose), np.flatnonzero(measure))


def own_secret(folder: Path) -> bytes:
    """The secret in `folder`, drawn from the operating system by the first who asks; only its owner may read it.

    Raises:
        InputError: it cannot be read or written, or is no secret.
    """
    path = folder / SECRET_FILE
    try:
        if not path.exists():
            make_private(folder)
            temporary = folder / f".{SECRET_FILE}.{secrets.token_hex(8)}"  # of one thread: a shared one could be cut by another
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)  # whoever is first: a second secret would give users other roles
            temporary.unlink()
            flush_folder(folder)
        secret = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read or written ({error.strerror})", where=str(path)) from None
    if len(secret) != BYTES:
        raise InputError(
            f"holds {len(secret)} bytes", where=str(path), expected=f"a secret of {BYTES}",
            hint="restore it from a backup; with another one, users who trained would be measured",
        )  # fmt: skip
    return secret


def _share(user: str, secret: bytes) -> float:
    return int.from_bytes(hashlib.blake2b(user.encode(), key=secret, digest_size=8).digest(), "big") / 2**64
