"""What requests and replies say, as values: the list of what may be sent.

A reply is checked against that list on the merchant's side, before it leaves, and again by the server.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Field

from fedrec.config import MOST_NOISE, HomeObjective, Trust, Unit
from fedrec.model.adapter import Arrays, digest
from fedrec.privacy.events import Mechanism
from fedrec.secure.terms import hashed
from fedrec.text import MERCHANT_NAME, Line, MerchantName, RunId
from fedrec.training.round import MOST, Bound, RoundTask

__all__ = [
    "COMPLEMENTS",
    "DELIVER",
    "HERE",
    "HISTOGRAM",
    "KEYS",
    "MASKED",
    "MOST_BYTES",
    "MOST_TEXTS",
    "OUTCOMES",
    "RECEIPT_KEYS",
    "STATEMENT_KEYS",
    "STEP_KEYS",
    "UNKNOWN",
    "Announce",
    "ComplementTask",
    "Delivery",
    "HistogramTask",
    "Outcome",
    "Receipt",
    "Reply",
    "Statement",
    "Step",
    "Turn",
    "WireError",
    "content_of",
    "content_of_complements",
    "content_of_histogram",
    "content_of_train",
]

DELIVER = "query.deliver"
"""Flower's type of the message that brings an adapter home."""
HISTOGRAM, KEYS, MASKED = "histogram", "keys", "masked"
COMPLEMENTS = "complements"
MOST_TEXTS = 2_000_000
"""Most texts of a catalogue that a message may speak of."""
MOST_BYTES = 1 << 29
"""Most bytes of an adapter that is delivered; what the encoder of a merchant can use is far smaller."""
UNKNOWN = "?"
"""The name of a merchant who cannot read its own settings; no merchant's name."""
Declared = Annotated[str, Field(pattern=r"^(\?|[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")]
Answered = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]


class WireError(ValueError):
    """A message that holds what it must not, or lacks what it must have."""


@dataclass(frozen=True)
class HistogramTask:
    """What the server asks for the popularity prior.

    `ratings` asks what users said of items too: a vector of twice the length under the same sensitivity, see
    `fedrec.privacy.rated_votes`. Its unit is a user alone, for the reason that `ComplementTask` gives.
    """

    run: RunId
    noise_multiplier: Annotated[float, Field(le=MOST_NOISE)]
    delta: float
    unit: Unit
    ratings: bool = False
    rating_min: Bound = 1.0
    rating_max: Bound = 5.0

    def __post_init__(self) -> None:
        if self.rating_min >= self.rating_max:
            raise ValueError("rating_min: expected less than rating_max")
        if self.ratings and self.unit != "user":
            raise ValueError(f"unit: expected 'user' where ratings are asked for, found {self.unit!r}")

    def size(self, keys: int) -> int:
        """How many numbers are asked for, of so many texts."""
        return 2 * keys if self.ratings else keys


@dataclass(frozen=True)
class ComplementTask:
    """What the server asks for which kinds of item share a basket; the kinds come along.

    The unit is a user alone: who takes one event out of a user's part, which is scaled, may move it by more than 1.
    """

    run: RunId
    noise_multiplier: Annotated[float, Field(le=MOST_NOISE)]
    delta: float
    unit: Literal["user"]
    trunk: str
    encoder_layers: Annotated[int, Field(ge=0, le=MOST)]
    encoder_rank: Annotated[int, Field(ge=1, le=MOST)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST)]
    round: Literal[-1] = -1
    """With the run it is what a ledger knows the release by; rounds of training count from 1, and 0 is the histogram."""


@dataclass(frozen=True)
class Statement:
    """The privacy statement: everything that a reply says besides its noisy arrays.

    `merchant` and `population` are public declarations of the policy; `run` and `round` say what
    is answered; the rest is the mechanism, and what the ledger adds up to. Nothing here is
    computed from users' data.
    """

    merchant: Declared
    status: Literal["ok", "declined"]
    reason: Line = ""
    run: Answered = ""
    round: int = 0
    mechanism: Line = ""
    unit: Line = ""
    trust: Trust = "local"
    noise_multiplier: float = 0.0
    noise_multiplier_alone: float = 0.0
    members: int = 0
    dropouts: int = 0
    colluders: int = 0
    sample_rate: float = 0.0
    steps: int = 0
    clip_norm: float = 0.0
    population: int = 0
    epsilon_spent: float = 0.0
    epsilon_budget: float = 0.0
    delta: float = 0.0
    accountant: Line = ""
    simulated: bool = False


STATEMENT_KEYS = frozenset(Statement.__dataclass_fields__)


Outcome = Literal[
    "kept", "known", "refused: format", "refused: settings", "refused: size", "refused: bytes", "refused: names or shapes",
    "refused: not finite", "refused: digest", "refused: encoder", "failed",
]  # fmt: skip
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""All that a delivery may be answered. Each depends on what was delivered, now and before, on the encoder here, which is
public, and on whether this machine can write; never on data of users."""
HERE: tuple[Outcome, ...] = ("kept", "known")
"""Those after which the merchant has the adapter on disk."""


@dataclass(frozen=True)
class Delivery:
    """What is said of an adapter that comes home, besides its arrays: all that it takes to use it, and of which run it is.

    It names no file, and no encoder but by the fingerprint: where the encoder lies is the merchant's own setting. The
    range of each number is that of the setting of a run.
    """

    format: int
    run: Annotated[str, Field(pattern=MERCHANT_NAME)]
    round: Annotated[int, Field(ge=1, le=10_000)]
    trust: Trust
    unit: Unit
    encoder_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    encoder_layers: Annotated[int, Field(ge=0, le=1000)]
    encoder_rank: Annotated[int, Field(ge=1, le=1000)]
    max_tokens: Annotated[int, Field(ge=4, le=512)]
    history: Annotated[int, Field(ge=1, le=1000)]
    temperature: Annotated[float, Field(ge=0, le=1000)]
    decay: Annotated[float, Field(ge=0, le=1000)]
    prior_weight: Annotated[float, Field(ge=0, le=100)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    objective: HomeObjective = "next-item"
    bias: Annotated[float, Field(ge=-100, le=100)] = 0.0
    negative_share: Annotated[float, Field(gt=0, le=1)] = 1.0

    def kept(self, floor: float) -> dict[str, Any]:
        """What a merchant keeps of it beside the arrays; with them it has this digest.

        Args:
            floor: of the popularity, as the arrays have it.
        """
        said = asdict(self)
        del said["digest"]
        scoring = {name: float(said.pop(name)) for name in ("temperature", "decay", "prior_weight", "bias")}
        if self.objective == "next-item":  # as versions have it from before there were other objectives
            del said["objective"], said["negative_share"], scoring["bias"]
        return {**said, "scoring": scoring, "floor": float(floor)}


@dataclass(frozen=True)
class Receipt:
    """All that a delivery is answered: who answers, what it was, and one of `OUTCOMES`."""

    merchant: Declared
    outcome: Outcome
    run: Answered = ""
    round: int = 0
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{0,32}$")] = ""


RECEIPT_KEYS = frozenset(Receipt.__dataclass_fields__)


@dataclass(frozen=True)
class Announce:
    """Asks for fresh keys for a secure sum, and says what it will be asked for: who cannot, declines before anyone pays."""

    run: RunId
    round: int
    attempt: RunId
    dropouts: int
    colluders: int
    mechanism: Mechanism
    noise_multiplier: Annotated[float, Field(le=MOST_NOISE)]
    sample_rate: float
    clip_norm: float
    unit: Unit
    delta: float


@dataclass(frozen=True)
class Step:
    """What a step of a secure sum needs besides arrays: lists by merchant. None of it is computed from users' data.

    Attributes:
        attempt: the attempt that it belongs to.
        roster: digest of the roster that the sender holds.
        members: merchants in it.
        names: the merchants that the lists are about; in a decline whoever is to blame.
        first: sealing keys, sealed shares, signatures, or shares of own masks.
        second: masking keys, or shares of pair masks.
        third: hashes of own masks.
        fourth: signatures under the keys.
        there: who has shared, or who is in the sum.
        scale: steps of the grid in one unit.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    attempt: RunId
    roster: Line = ""
    members: int = 0
    names: tuple[MerchantName, ...] = ()
    first: tuple[bytes, ...] = ()
    second: tuple[bytes, ...] = ()
    third: tuple[bytes, ...] = ()
    fourth: tuple[bytes, ...] = ()
    there: tuple[MerchantName, ...] = ()
    scale: float = 0.0

    def listed(self, *which: str) -> list[tuple[Any, ...]]:
        """The lists of those names side by side, each as long as `names`.

        Raises:
            WireError: one is shorter or longer.
        """
        lists = [getattr(self, name) for name in which]
        if any(len(one) != len(self.names) for one in lists) or len(set(self.names)) < len(self.names):
            raise WireError("Step: lists of different lengths, or a merchant twice")
        return list(zip(self.names, *lists, strict=True))


@dataclass(frozen=True)
class Turn:
    """Which round of which run a later step of a secure sum is about; those under 1 are released statistics."""

    run: RunId
    round: int = 0


STEP_KEYS = frozenset(Step.__dataclass_fields__)


@dataclass(frozen=True)
class Reply:
    """A merchant's answer: noisy arrays (empty when declined), its statement, and its part in a step of a secure sum."""

    arrays: Arrays
    statement: Statement
    step: Step | None = None


def content_of_train(task: RoundTask, trained: Arrays, public_digest: str) -> str:
    """A hash of all that a round's sum depends on, the same at the server and at every merchant."""
    return hashed([asdict(task), digest(trained), public_digest])


def content_of_histogram(task: HistogramTask, keys: np.ndarray) -> str:
    """The same for the histogram."""
    return hashed([asdict(task), digest({KEYS: keys})])


def content_of_complements(task: ComplementTask, arrays: Arrays) -> str:
    """The same for what goes with what."""
    return hashed([asdict(task), digest(arrays)])


def content_of(what: str, scale: float, size: int) -> str:
    """The same with the grid that it is rounded to, and how many numbers it has."""
    return hashed([what, scale, size])
