"""What `fedrec data` says of ratings, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import Histories, load_central, load_merchant, merchant_folders

__all__ = ["rating_facts", "ratings_in", "told"]


def rating_facts(parts: Sequence[Histories]) -> dict[str, float] | None:
    """Of the ratings of some users; None where there are none.

    `outside` is the share that the default range would clamp, `used` how many come after a first basket, and `users_constant`
    rated two items or more and all of them alike.
    """
    rated = [(one.rated, len(one)) for one in parts if one.rated is not None and len(one.rated)]
    if not rated:
        return None
    default, value = RunConfig(), np.concatenate([one.answer for one, _ in rated])
    constant = users = 0
    for one, _ in rated:
        counts = np.diff(one.offsets)
        starts = one.offsets[:-1][counts > 0]
        spread = np.maximum.reduceat(one.answer, starts) - np.minimum.reduceat(one.answer, starts)
        constant += int(((spread == 0) & (counts[counts > 0] > 1)).sum())
        users += int((counts > 0).sum())
    return {
        "ratings": len(value),
        "lowest": float(value.min()),
        "highest": float(value.max()),
        "mean": float(value.mean()),
        "outside": float(((value < default.rating_min) | (value > default.rating_max)).mean()),
        "used": sum(int((one.before > 0).sum()) for one, _ in rated),
        "users_without": sum(map(len, parts)) - users,
        "users_constant": constant,
    }


def told(facts: dict[str, float]) -> str:
    """The same in a line."""
    default = RunConfig()
    ends = f"{default.rating_min:g} to {default.rating_max:g}"
    said = f"{facts['ratings']:,} ratings from {facts['lowest']:g} to {facts['highest']:g}, mean {facts['mean']:.3f}"
    said += f"; {facts['used']:,} after a first basket; {facts['users_without']:,} users rated nothing, "
    said += f"{facts['users_constant']:,} all alike"
    if facts["outside"]:
        said += f"; {facts['outside']:.2%} are outside {ends} and would be clamped: rating_min and rating_max say otherwise"
    return said


def ratings_in(federation: Path) -> dict[str, float] | None:
    """`rating_facts` of a federation folder as a whole; None where the held-out users rated nothing."""
    central = [group.histories for group in load_central(federation).groups]
    if rating_facts(central) is None:
        return None
    return rating_facts([*(load_merchant(folder).histories for folder in merchant_folders(federation)), *central])
