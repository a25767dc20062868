"""One merchant's side of a secure sum: steps, each of which checks what the server passes on.

    announce   two fresh public keys, signed with the node key
    share      seeds of its masks, split and sealed for their holders
    hold       the shares that others made for it
    mask       its integers, under a mask of its own and one with everyone else
    confirm    a signature under who is in the sum
    reveal     one of the two shares it holds of a merchant: of the own mask if that is in the sum, of the pair masks if not

After Bonawitz et al. (CCS 2017, figure 4, with the consistency check against an active server), the
holders of shares as in `fedrec.secure.graph`. No step reads or writes anything: what a member has to remember is its
`State`, which the caller keeps.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ConfigDict, TypeAdapter

from fedrec.secure import keys
from fedrec.secure.graph import neighbours, quorum
from fedrec.secure.terms import Refused, Roster, Terms, hashed

__all__ = [
    "MASKING",
    "Announcement",
    "Revealed",
    "State",
    "announce",
    "confirm",
    "confirmation",
    "forgetful",
    "hold",
    "mask",
    "own_hash",
    "pair_key",
    "reveal",
    "self_key",
    "share",
    "view",
]

SEALING, MASKING = b"sealing", b"masking"


@dataclass(frozen=True)
class Announcement:
    """A merchant's fresh public keys.

    Attributes:
        sealing: X25519 key that shares for it are sealed to.
        masking: X25519 key of its pair masks.
        own: hash of its own mask's key, to tell right shares of it from wrong ones.
        signature: of its node key under these.
    """

    sealing: bytes
    masking: bytes
    own: bytes
    signature: bytes

    @property
    def public(self) -> list[str]:
        """What is signed, as JSON values."""
        return [self.sealing.hex(), self.masking.hex(), self.own.hex()]

    @property
    def usable(self) -> bool:
        """Whether the keys are two, each in its usual form, and not of those that agree on zero with everyone."""
        if self.sealing == self.masking or not (
            keys.is_canonical(self.sealing) and keys.is_canonical(self.masking) and len(self.own) == 32
        ):
            return False
        probe, _ = keys.key_pair(bytes(keys.SEED))
        try:
            keys.agree(probe, self.sealing)
            keys.agree(probe, self.masking)
        except ValueError:
            return False
        return True

    def statement(self, terms: Terms, name: str) -> bytes:
        """What the signature is under."""
        return b"announce\0" + terms.about + hashed([name, *self.public]).encode()


@dataclass(frozen=True)
class Revealed:
    """Shares by whose secret they are of; of each merchant one kind only.

    Attributes:
        own: shares of the seed of the own mask, of those in the sum.
        pairs: shares of the seed of the pair masks, of those who dropped out.
    """

    own: Mapping[str, bytes]
    pairs: Mapping[str, bytes]


@dataclass(frozen=True)
class State:
    """What a member remembers between two steps; secret but for its announcement.

    Attributes:
        seeds: of its sealing key, its pair masks and its own mask.
        announced: everyone's announcement, once it has shared.
        drawn: the holders of its shares, in the order of their shares.
        held: shares that it holds for others: of the own mask and of the pair masks.
        there: who has shared.
        survivors: who is in the sum, once it has confirmed.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    terms: Terms
    name: str
    seeds: tuple[bytes, bytes, bytes]
    announcement: Announcement
    announced: Mapping[str, Announcement] = field(default_factory=dict)
    drawn: tuple[str, ...] = ()
    held: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)
    there: tuple[str, ...] = ()
    content: str = ""
    survivors: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return _STATE.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> State:
        """What `to_json` made."""
        return _STATE.validate_json(json.dumps(values))


_STATE: TypeAdapter[State] = TypeAdapter(State)


def announce(terms: Terms, name: str, roster: Roster, node_key: ec.EllipticCurvePrivateKey) -> State:
    """Fresh seeds, and the announcement to send.

    Raises:
        Refused: this merchant is not in its own roster or has another key there, or the terms are about another one.
    """
    if name not in roster.keys:
        raise Refused("this merchant is not in its roster")
    if (terms.roster, terms.members) != (roster.digest, len(roster.keys)):
        raise Refused("the terms are about another roster")
    seeds = (keys.new_seed(), keys.new_seed(), keys.new_seed())
    _, sealing = keys.key_pair(seeds[0], SEALING)
    _, masking = keys.key_pair(seeds[1], MASKING)
    unsigned = Announcement(sealing, masking, own_hash(self_key(seeds[2], terms)), b"")
    signed = replace(unsigned, signature=keys.sign(node_key, unsigned.statement(terms, name)))
    if not keys.verify(roster.keys[name].encode(), signed.statement(terms, name), signed.signature):
        # The others would refuse this announcement, and with it the whole sum.
        raise Refused("this merchant's node key is not the one in its roster")
    return State(terms, name, seeds, signed)


def share(state: State, announced: Mapping[str, Announcement], roster: Roster) -> tuple[State, dict[str, bytes]]:
    """Split the two seeds of the masks among their holders and seal each share for its holder.

    Args:
        announced: what the server says that merchants announced, this one's included.

    Raises:
        Refused: one is in no roster, is not signed by its node key or has another's keys, this one's is
            missing or changed, or there are too few.
    """
    terms = state.terms
    if announced.get(state.name) != state.announcement:
        raise Refused("its own announcement is missing or changed")
    _enough(announced, terms, "announced")
    for name, one in announced.items():
        if name not in roster.keys:
            raise Refused(f"{name} is not in the roster", name)
        if name != state.name and not keys.verify(roster.keys[name].encode(), one.statement(terms, name), one.signature):
            raise Refused(f"the announcement of {name} is not signed by the key in the roster", name)
        if not one.usable:
            raise Refused(f"the keys of {name} are unusable", name)
    if len({key for one in announced.values() for key in (one.sealing, one.masking)}) < 2 * len(announced):
        raise Refused("two announcements hold the same key")
    others = sorted(set(announced) - {state.name})
    around = neighbours(terms.members, terms.dropouts, terms.colluders, len(announced))
    drawn = tuple(sorted(secrets.SystemRandom().sample(others, around.count)))
    parts = zip(
        keys.split(state.seeds[2], around.threshold, len(drawn)),
        keys.split(state.seeds[1], around.threshold, len(drawn)),
        strict=True,
    )
    private, _ = keys.key_pair(state.seeds[0], SEALING)
    sealed = {
        holder: keys.seal(_sealing_key(private, announced[holder].sealing, terms, state.name, holder), own + pairs, terms.about)
        for holder, (own, pairs) in zip(drawn, parts, strict=True)
    }
    return replace(state, announced=dict(announced), drawn=drawn), sealed


def hold(state: State, there: tuple[str, ...], sealed: Mapping[str, bytes], content: str) -> State:
    """Check who is there and keep the shares that others made for this merchant.

    Args:
        there: who has shared, as the server says.
        sealed: the shares, by who made them.
        content: digest of what the sum answers; all members must have been asked the same.

    Raises:
        Refused: the lists do not fit together, too few are left, or a seal is broken.
    """
    terms = state.terms
    _subset(there, state.announced, "shared without having announced")
    _subset(sealed, there, "sealed a share without being there")
    _enough(there, terms, "shared")
    if state.name not in there or state.name in sealed:
        raise Refused("the server's lists are wrong about this merchant")
    private, _ = keys.key_pair(state.seeds[0], SEALING)
    held = {}
    for name, box in sealed.items():
        key = _sealing_key(private, state.announced[name].sealing, terms, name, state.name)
        try:
            shares = keys.unseal(key, box, terms.about)
        except ValueError:
            raise Refused(f"the seal of {name}'s share is broken", name) from None
        held[name] = shares[: keys.SEED], shares[keys.SEED :]
    return replace(state, held=held, there=tuple(sorted(there)), content=content)


def mask(state: State, values: np.ndarray) -> np.ndarray:
    """The merchant's integers under its masks, modulo 2^32, after `hold`.

    It has a mask with everyone who is there, and each is bound to all that the two have seen: a merchant
    that was told of other members, or asked for something else, has masks that cancel with nobody's.

    Args:
        values: (numbers,) int64, noise included.

    Returns:
        (numbers,) uint32, uniform to whoever lacks one of the masks.
    """
    masking, _ = keys.key_pair(state.seeds[1], MASKING)
    total = values.astype(np.uint64).astype(np.uint32) + keys.expand(self_key(state.seeds[2], state.terms), len(values))
    seen = view(state.terms, state.announced, state.content, state.there)
    for name in state.there:
        if name != state.name:
            pair = keys.expand(pair_key(masking, state.announced[name].masking, seen, state.name, name), len(values))
            total = total + pair if state.name < name else total - pair
    return total


def forgetful(state: State) -> State:
    """The same without its seeds, which nothing after `mask` needs."""
    return replace(state, seeds=(b"", b"", b""))


def confirm(state: State, survivors: tuple[str, ...], node_key: ec.EllipticCurvePrivateKey) -> tuple[State, bytes]:
    """Sign who is in the sum, once.

    Raises:
        Refused: this merchant is not, somebody is who did not share, or too few are.
    """
    _subset(survivors, state.there, "is in the sum without having shared")
    _enough(survivors, state.terms, "are in the sum")
    if state.name not in survivors:
        raise Refused("this merchant is not in the sum")
    state = replace(state, survivors=tuple(sorted(survivors)))
    return state, keys.sign(node_key, confirmation(state))


def reveal(state: State, signatures: Mapping[str, bytes], roster: Roster) -> Revealed:
    """Of each merchant whose shares it holds one: of its own mask if it is in the sum, else of its pair masks; never both.

    Raises:
        Refused: fewer than a quorum have signed what this one did.
    """
    statement, terms = confirmation(state), state.terms
    signed = sum(
        keys.verify(roster.keys[name].encode(), statement, signature)
        for name, signature in signatures.items()
        if name in state.survivors
    )
    needed = quorum(terms.members, terms.colluders)
    if signed < needed:
        raise Refused(f"{signed} merchants confirmed the same sum, {needed} are needed")
    own = {name: shares[0] for name, shares in state.held.items() if name in state.survivors}
    pairs = {name: shares[1] for name, shares in state.held.items() if name not in state.survivors}
    return Revealed(own, pairs)


def confirmation(state: State) -> bytes:
    """What members sign: the terms, all announcements, what was asked, who was there and who is in the sum."""
    seen = view(state.terms, state.announced, state.content, state.there)
    return b"confirm\0" + seen + hashed(list(state.survivors)).encode()


def view(terms: Terms, announced: Mapping[str, Announcement], content: str, there: tuple[str, ...]) -> bytes:
    """A hash of all that members of one sum must have seen alike before they mask."""
    known = {name: one.public for name, one in announced.items()}
    return terms.about + hashed([known, content, sorted(there)]).encode()


def self_key(seed: bytes, terms: Terms) -> bytes:
    """The key of a merchant's own mask."""
    return keys.derive(seed, b"own mask", terms.about)


def own_hash(key: bytes) -> bytes:
    """What is announced of the key of an own mask; it says nothing about the key, which has 128 random bits."""
    return keys.derive(key, b"announced")


def pair_key(private: keys.X25519PrivateKey, public: bytes, seen: bytes, *names: str) -> bytes:
    """The key of the mask that two merchants share, bound to their names and to what both have seen."""
    first, second = sorted(names)
    return keys.agree(private, public, b"pair mask", seen, first.encode(), second.encode())


def _sealing_key(private: keys.X25519PrivateKey, public: bytes, terms: Terms, sender: str, holder: str) -> bytes:
    return keys.agree(private, public, b"seal", terms.about, sender.encode(), holder.encode())


def _enough(names: Mapping[str, object] | tuple[str, ...], terms: Terms, what: str) -> None:
    if len(set(names)) < terms.least:
        raise Refused(f"{len(set(names))} of {terms.members} merchants {what}, {terms.least} are needed")


def _subset(names: Mapping[str, object] | tuple[str, ...], known: Mapping[str, object] | tuple[str, ...], what: str) -> None:
    if extra := sorted(set(names) - set(known)):
        raise Refused(f"{extra[0]} {what}")
