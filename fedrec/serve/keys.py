"""Who asks: two kinds of key for each merchant, and one for the figures of the process.

    [keys.coffee]
    shop = "..."      lists, searches and feedback; what it gets may be shown to a customer
    staff = "..."     exact scores and reasons too, also those of customers that are known by name

    metrics = "..."   /metrics, and nothing else

A key opens its own merchant; of any other it cannot tell whether it is there.
"""

from __future__ import annotations

import hmac
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec.config import read_toml, write_atomically
from fedrec.errors import InputError

__all__ = ["Caller", "Keys"]

Role = Literal["shop", "staff", "metrics"]


class _Pair(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    shop: str = Field(min_length=20)
    staff: str = Field(min_length=20)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    metrics: str = Field(min_length=20)
    keys: dict[str, _Pair]


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        role: of its key.
        merchant: whose key it is; None for whoever may ask for the one that there is.
    """

    role: Role
    merchant: str | None = None

    @property
    def staff(self) -> bool:
        """Whether exact numbers are for them."""
        return self.role == "staff"


@dataclass(frozen=True)
class Keys:
    """The digests of all keys, and whom each is.

    Attributes:
        known: (digest, who).
    """

    known: tuple[tuple[bytes, Caller], ...]

    @classmethod
    def open(cls, path: Path, names: Sequence[str]) -> Self:
        """Read a key file; what is missing of it, a key or all of it, is made.

        Raises:
            InputError: it can be read by others, is damaged, or cannot be written.
        """
        there = _read(path)
        new = {name: _Pair(shop=_key("shop"), staff=_key("staff")) for name in names if there is None or name not in there.keys}
        file = _File(metrics=_key("metrics"), keys={}) if there is None else there
        if new or there is None:
            file = _File(metrics=file.metrics, keys={**file.keys, **new})
            try:
                write_atomically(path, tomli_w.dumps(file.model_dump()).encode(), mode=0o600)
            except OSError as error:
                raise InputError(f"cannot be written ({error.strerror})", where=str(path), expected="a file for keys") from None
        known = [(_digest(file.metrics), Caller("metrics"))]
        for name in names:
            known.append((_digest(file.keys[name].shop), Caller("shop", name)))
            known.append((_digest(file.keys[name].staff), Caller("staff", name)))
        if len({digest for digest, _ in known}) < len(known):
            raise InputError("holds a key twice", where=str(path), expected="keys that differ")
        return cls(tuple(known))

    def caller(self, key: str) -> Caller | None:
        """Whose key this is. It takes as long for any key, so that time says nothing of one."""
        asked, found = _digest(key), None
        for digest, caller in self.known:
            if hmac.compare_digest(digest, asked):
                found = caller
        return found


def _read(path: Path) -> _File | None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise InputError(f"has mode {mode:04o}", where=str(path), expected="0600 or 0400", hint=f"chmod 600 {path}")
    try:
        return _File.model_validate(read_toml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}", where=str(path)) from None


def _key(role: Role) -> str:
    return f"{role}-{secrets.token_urlsafe(32)}"


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
