"""With whom a merchant shares its seeds: everyone, or a few whom it draws itself.

Above some size each merchant draws `k` others (Bell et al., CCS 2020, section 3, with the
draws of its algorithm 3: made by the merchant, so that a server cannot surround it) and masks
with those and with whoever drew it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import gammaln, logsumexp
from scipy.stats import hypergeom

__all__ = ["Neighbours", "neighbours", "quorum"]

SMALL = 32
"""Up to so many merchants each is every other's neighbour."""
SECURE, CORRECT = 2.0**-40, 1e-6
"""Most probability a round that some merchant's secrets are in colluders' hands or the masks fall
apart, and that too few are left to open a sum although no more dropped out than allowed."""


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
    """All others in a small federation; in a larger one the smallest neighbourhood that is safe.

    Args:
        members: merchants in the roster.
        dropouts: how many of them may be missing at the end.
        colluders: how many may collude with the server.
        there: how many announced their keys.

    With all others as neighbours the threshold is one less than the quorum, since a merchant holds
    no share of its own.
    """
    everyone = Neighbours(there - 1, quorum(members, colluders) - 1)
    lost = dropouts - (members - there)
    if there <= SMALL:
        return everyone
    for count in range(4, there - 1):
        threshold = _threshold(there, lost, colluders, count)
        if threshold is not None and _splits(there, lost, colluders, count) <= np.log(SECURE):
            return Neighbours(count, threshold)
    return everyone


def _threshold(there: int, lost: int, colluders: int, count: int) -> int | None:
    """The least threshold that colluders do not reach, if enough are left to reach it."""
    secure = hypergeom(there - 1, min(colluders, there - 1), count)
    threshold = next(t for t in range(1, count + 2) if there * secure.sf(t - 1) <= SECURE)
    gone = hypergeom(there - 1, min(lost, there - 1), count)
    return threshold if count >= threshold and there * gone.sf(count - threshold) <= CORRECT else None


def _splits(there: int, lost: int, colluders: int, count: int) -> float:
    """Log of a bound on the probability that the masks among the honest who stay fall into two parts.

    A union bound over which honest merchants a server makes drop out once it has seen the draws, and over the smaller
    part: nobody in either part may have drawn anyone of the other.
    """
    honest = there - colluders - lost
    if honest < 2:
        return -np.inf
    sizes = np.arange(1, honest // 2 + 1)
    apart = sizes * _log_outside(there - 1, honest - sizes, count) + (honest - sizes) * _log_outside(there - 1, sizes, count)
    chosen = _log_binomial(np.array(there - colluders), np.array(lost))
    return float(chosen + logsumexp(_log_binomial(np.array(honest), sizes) + apart))


def _log_outside(others: int, avoided: np.ndarray, count: int) -> np.ndarray:
    """Log probability that `count` draws from `others` without replacement avoid so many of them."""
    with np.errstate(invalid="ignore"):
        value = _log_binomial(others - avoided, np.array(count)) - _log_binomial(np.array(others), np.array(count))
    return np.where(others - avoided >= count, value, -np.inf)


def _log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
