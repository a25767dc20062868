"""The server's side of a secure sum: it passes messages on and opens the sum, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedrec.secure import keys
from fedrec.secure.graph import Neighbours, neighbours
from fedrec.secure.member import MASKING, Announcement, Revealed, own_hash, pair_key, self_key, view
from fedrec.secure.terms import Refused, Terms

__all__ = ["Collector"]

CHOICES = 200
"""How many random choices of shares are tried before a secret is given up: enough for a few holders who lie."""


@dataclass
class Collector:
    """What came in so far, by merchant.

    Attributes:
        announced: their public keys.
        sealed: the sealed shares by maker, each by holder.
        content: digest of what the sum answers, as the members have it.
        masked: (numbers,) uint32 each.
        signatures: under who is in the sum.
    """

    terms: Terms
    announced: dict[str, Announcement] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    content: str = ""
    masked: dict[str, np.ndarray] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    _right: set[str] = field(default_factory=set)  # holders whose shares of another secret were right

    @property
    def around(self) -> Neighbours:
        """How many hold shares of a seed, and how many of these give it back."""
        terms = self.terms
        return neighbours(terms.members, terms.dropouts, terms.colluders, len(self.announced))

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
            Refused: too few shares of a merchant's secret came in, or they do not fit together; the merchant is
                blamed where there were more than its colluders could have spoilt.
        """
        terms, survivors = self.terms, set(self.survivors)
        total = np.zeros_like(next(iter(self.masked.values())))
        for value in self.masked.values():
            total += value
        for name in self.survivors:
            shares = {holder: one.own[name] for holder, one in revealed.items() if name in one.own}
            announced = self.announced[name].own
            seed = self._secret(name, shares, lambda found: own_hash(self_key(found, terms)) == announced)  # noqa: B023
            total -= keys.expand(self_key(seed, terms), len(total))
        seen = view(terms, self.announced, self.content, self.there)
        for name in sorted(set(self.there) - survivors):
            shares = {holder: one.pairs[name] for holder, one in revealed.items() if name in one.pairs}
            public = self.announced[name].masking
            seed = self._secret(name, shares, lambda found: keys.key_pair(found, MASKING)[1] == public)  # noqa: B023
            private, _ = keys.key_pair(seed, MASKING)
            for other in sorted(survivors):
                pair = keys.expand(pair_key(private, self.announced[other].masking, seen, name, other), len(total))
                total = total - pair if other < name else total + pair
        return total

    def _secret(self, name: str, shares: Mapping[str, bytes], right: Callable[[bytes], bool]) -> bytes:
        """The seed behind the shares; where some of them are wrong, behind the first of many choices that fits."""
        places = {holder: place for place, holder in enumerate(sorted(self.sealed[name]))}
        usable = [one for one, value in shares.items() if one in places and len(value) == keys.SEED]
        threshold = self.around.threshold
        if len(usable) < threshold:
            raise Refused(f"{len(usable)} shares of a secret of {name} came in, {threshold} are needed")
        chosen = sorted(usable, key=lambda one: (one not in self._right, one))[:threshold]
        for _ in range(CHOICES):
            found = keys.combine([(places[one], shares[one]) for one in chosen])
            if right(found):
                self._right |= set(chosen)
                return found
            chosen = random.sample(usable, threshold)
        blamed = name if len(usable) >= threshold + self.terms.colluders else ""
        raise Refused(f"the shares of {name}'s secret do not fit together", blamed)
