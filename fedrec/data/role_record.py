"""Which of a merchant's users were held back when something was released, so that it is noticed when others are now.

A share that was raised since, or another key, makes users choose or be measured who trained: what is then found on them
favours what was trained. The record lies with the ledger and not with the key, since what is lost together tells nothing.
It never leaves the merchant.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedrec.config import make_folder, write_atomically
from fedrec.data.roles import UserShares

__all__ = ["NOBODY", "RECORD", "HeldBack", "changed_roles", "record_roles"]

RECORD = "roles.json"
ANY = ""
"""Key of a release in which everybody trained, whatever the key is."""


@dataclass(frozen=True)
class HeldBack:
    """Who had no part in a release: under one key, all whose hash is in the two ends of these widths.

    Attributes:
        key: fingerprint of the key of the hash.
        choose, measure: shares of the users.
    """

    key: str
    choose: float
    measure: float

    @classmethod
    def under(cls, shares: UserShares, secret: bytes) -> HeldBack:
        """Those whom `roles_of` says, with the key `secret`."""
        key = hashlib.blake2b(b"fingerprint", key=secret, digest_size=16).hexdigest()
        return cls(key, shares.choose, shares.measure)


NOBODY = HeldBack(ANY, 0.0, 0.0)


def record_roles(path: Path, held: HeldBack) -> None:
    """Have it known that something is released with these users held back; nothing is written where that adds nothing.

    Raises:
        OSError: it cannot be written.
    """
    known = _read(path)
    least = known.get(held.key, held)
    # The ends are nested: of all releases under one key, only those in the narrowest ones had no part in any.
    least = HeldBack(held.key, min(least.choose, held.choose), min(least.measure, held.measure))
    if known.get(held.key) != least:
        make_folder(path.parent)
        entries = [asdict(one) for one in (known | {held.key: least}).values()]
        write_atomically(path, json.dumps(entries, indent=2).encode(), mode=0o600)


def changed_roles(path: Path, held: HeldBack) -> str | None:
    """Why some of those who are held back now may have trained before, and what to do; None where none of them has."""
    known = _read(path)
    these = [one for key, one in known.items() if key in (held.key, ANY)]
    lost = len(these) < len(known)
    reasons, who = [], []
    if lost and (held.choose or held.measure):
        both = held.key in known
        which = "several own/users.key" if both else "another own/users.key (put that one back from a backup)"
        reasons.append(f"users trained under {which}")
    for name, these_users in (("choose", "those who choose"), ("measure", "those who are measured")):
        now, before = getattr(held, name), min((getattr(one, name) for one in these), default=1.0)
        if now > before:
            reasons.append(f"{name} in [users] is {now:g} and was {before:g} in training (put that back)")
        if now > before or (lost and now):
            who.append(these_users)
    if not who:
        return None
    return f"{'; '.join(reasons)}: {' and '.join(who)} may have trained, so what is found on them favours what was trained"


def _read(path: Path) -> dict[str, HeldBack]:
    """What is known, by key. A file that cannot be read may have held anything: then everybody may have trained."""
    if not path.exists():
        return {}
    try:
        found = [HeldBack(str(one["key"]), float(one["choose"]), float(one["measure"])) for one in json.loads(path.read_bytes())]
        return {one.key: one for one in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {ANY: NOBODY}
