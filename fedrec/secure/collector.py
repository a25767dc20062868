"""The server's side of a secure sum: it passes messages on and opens the sum, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedrec.secure import keys
from fedrec.secure.graph import neighbours
from fedrec.secure.member import MASKING, Announcement, Revealed, pair_key, self_key
from fedrec.secure.terms import Refused, Terms

__all__ = ["Collector"]


@dataclass
class Collector:
    """What came in so far, by merchant.

    Attributes:
        announced: their public keys.
        sealed: the sealed shares by maker, each by holder.
        masked: (numbers,) uint32 each.
        signatures: under who is in the sum.
    """

    terms: Terms
    announced: dict[str, Announcement] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    masked: dict[str, np.ndarray] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)

    @property
    def there(self) -> tuple[str, ...]:
        """Who has shared."""
        return tuple(sorted(self.sealed))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Who is in the sum."""
        return tuple(sorted(self.masked))

    def sealed_for(self, name: str) -> dict[str, bytes]:
        """The shares that `name` is to hold."""
        return {maker: boxes[name] for maker, boxes in self.sealed.items() if name in boxes}

    def open(self, revealed: Mapping[str, Revealed]) -> np.ndarray:
        """The sum of the survivors' integers modulo 2^32: (numbers,) uint32.

        Args:
            revealed: by who revealed it.

        Raises:
            Refused: too few shares of a merchant's secret came in, or they do not fit together.
        """
        terms, survivors = self.terms, set(self.survivors)
        total = np.zeros_like(next(iter(self.masked.values())))
        for value in self.masked.values():
            total += value
        for name in self.survivors:
            seed = self._secret(name, {holder: one.own[name] for holder, one in revealed.items() if name in one.own})
            total -= keys.expand(self_key(seed, terms), len(total))
        for name in sorted(set(self.there) - survivors):
            seed = self._secret(name, {holder: one.pairs[name] for holder, one in revealed.items() if name in one.pairs})
            private, public = keys.key_pair(seed, MASKING)
            if public != self.announced[name].masking:
                raise Refused(f"the shares of {name}'s pair masks do not fit together")
            for other in sorted(survivors & self._around(name)):
                pair = keys.expand(pair_key(private, self.announced[other].masking, terms), len(total))
                total = total - pair if other < name else total + pair
        return total

    def _around(self, name: str) -> set[str]:
        """Whom `name` has a mask with."""
        return {other for other in self.there if name in self.sealed[other] or other in self.sealed[name]}

    def _secret(self, name: str, shares: Mapping[str, bytes]) -> bytes:
        terms = self.terms
        threshold = neighbours(terms.members, terms.dropouts, terms.colluders, len(self.announced)).threshold
        holders = {holder: place for place, holder in enumerate(sorted(self.sealed[name]))}
        usable = [(holders[holder], value) for holder, value in shares.items() if holder in holders]
        if len(usable) < threshold:
            raise Refused(f"{len(usable)} shares of a secret of {name} came in, {threshold} are needed")
        return keys.combine(sorted(usable)[:threshold])
