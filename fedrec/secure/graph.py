"""Who holds shares of a merchant's seeds: everyone, or a few whom it draws itself.

Shares are what grows with the square of the federation. Above some size each merchant gives them to `k`
others only (Bell et al., CCS 2020), whom it draws itself, as in their algorithm 3, so that a server cannot
surround it. Pair masks, which cost microseconds, it has with everyone all the same: a server that passes
messages on can hide from a merchant who drew it, and masks along drawn edges alone would leave a
merchant whose few edges it hides or declares dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import hypergeom

__all__ = ["Neighbours", "neighbours", "quorum"]

SMALL = 32
"""Up to so many merchants everyone holds everyone's shares."""
SECURE, CORRECT = 2.0**-40, 1e-6
"""Most probability, each time merchants draw, that colluders hold enough shares of some merchant's seed, and that too few
holders are left to open a sum although no more dropped out than allowed."""


@dataclass(frozen=True)
class Neighbours:
    """How many others hold shares of a merchant's seeds, and how many of them open one."""

    count: int
    threshold: int


def quorum(members: int, colluders: int) -> int:
    """The fewest merchants that must have signed the same survivors: more than (members + colluders) / 2.

    Two different lists can then not both have a quorum: honest merchants sign one, so that
    2 quorum <= members + colluders would have to hold.
    """
    return (members + colluders) // 2 + 1


@lru_cache(maxsize=64)
def neighbours(members: int, dropouts: int, colluders: int, there: int) -> Neighbours:
    """All others in a small federation; in a larger one the fewest holders that are safe.

    Args:
        members: merchants in the roster.
        dropouts: how many of them may be missing at the end.
        colluders: how many may collude with the server.
        there: how many announced their keys.

    With all others as holders the threshold is one less than the quorum, since a merchant holds
    no share of its own.
    """
    everyone = Neighbours(there - 1, quorum(members, colluders) - 1)
    lost = dropouts - (members - there)
    if there <= SMALL:
        return everyone
    for count in range(4, there - 1):
        threshold = _threshold(there, lost, colluders, count)
        if threshold is not None:
            return Neighbours(count, threshold)
    return everyone


def _threshold(there: int, lost: int, colluders: int, count: int) -> int | None:
    """The least threshold that colluders do not reach, if enough are left to reach it."""
    secure = hypergeom(there - 1, min(colluders, there - 1), count)
    threshold = next(t for t in range(1, count + 2) if there * secure.sf(t - 1) <= SECURE)
    gone = hypergeom(there - 1, min(lost, there - 1), count)
    return threshold if count >= threshold and there * gone.sf(count - threshold) <= CORRECT else None
