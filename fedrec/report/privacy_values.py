"""The privacy report as frozen values; `fedrec.report.privacy_report` computes them, words and pages show them."""

from __future__ import annotations

from dataclasses import dataclass

from fedrec.config import Trust
from fedrec.report.privacy_attacker import Attacker
from fedrec.report.privacy_sources import Audit, Chain

__all__ = ["MerchantPrivacy", "Part", "Period", "PrivacyReport", "Remaining", "Round", "SameName", "SecureTerms"]


@dataclass(frozen=True)
class SecureTerms:
    """What some secure sums in a ledger were agreed about.

    Attributes:
        members: merchants in the roster.
        dropouts: how many of them may be missing from a sum.
        colluders: how many may tell the server all they know.
        honest: so many others, at least, have their share of the noise in every sum that is opened.
        releases: lines of the ledger on these terms.
    """

    members: int
    dropouts: int
    colluders: int
    honest: int
    releases: int


@dataclass(frozen=True)
class Part:
    """The releases of one mechanism or one run, composed without the others."""

    name: str
    releases: int
    steps: int
    first: str
    last: str
    epsilon: float
    accountant: str


@dataclass(frozen=True)
class Round:
    """One line of the ledger; `epsilon` is that of all lines up to it, None where it was not computed again.

    `noise_multiplier_alone` is what is left of the noise if every other merchant colludes with the server.
    """

    number: int
    time: str
    run: str
    round: int
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float
    epsilon: float | None
    accountant: str
    recorded_epsilon: float
    trust: Trust
    noise_multiplier_alone: float


@dataclass(frozen=True)
class Period:
    """A policy's second budget, for any `days` days in a row, and what the last such days spent of it."""

    days: int
    budget: float
    epsilon: float


@dataclass(frozen=True)
class Remaining:
    """How many more rounds like the last one fit in the budget; `capped`: that many and more.

    With a budget per period it is the smaller of both: as if the rounds were asked for now.
    """

    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    rounds: int
    capped: bool


@dataclass(frozen=True)
class MerchantPrivacy:
    """Everything about one ledger, at the policy's delta; without a policy at the last release's.

    `epsilon` is the tightest of all accountants. The parts, rounds and what remains are by those
    that are quick enough to decide every release (`accountants.FAST`).

    Attributes:
        unit: the weaker one, if there are lines of both.
        units_mixed: there are lines of both, which only an older version wrote.
        trust: the weaker trust model, if there are lines of both.
        secure_terms: of the lines under `secure-aggregation`.
        epsilon_alone: what still holds if every other merchant tells the server all it knows; a line
            under `local` counts as it does in `epsilon`.
        accountant_alone: the one that gave it.
        accepted: what a person accepted as lost, and what counts in its place.
    """

    merchant: str
    unit: str
    units_mixed: bool
    budget: float | None
    delta: float | None
    epsilon: float
    accountant: str
    accountants: dict[str, float]
    trust: Trust
    secure_terms: tuple[SecureTerms, ...]
    epsilon_alone: float
    accountant_alone: str
    population: int | None
    period: Period | None
    simulation: bool | None
    seed: int | None
    mechanisms: tuple[Part, ...]
    rounds: tuple[Round, ...]
    runs: tuple[Part, ...]
    remaining: Remaining | None
    attacker: Attacker
    chain: Chain
    accepted: tuple[str, ...]
    audits: tuple[Audit, ...]

    @property
    def share(self) -> float | None:
        """Spent over budget, as a fraction."""
        return self.epsilon / self.budget if self.budget else None


@dataclass(frozen=True)
class SameName:
    """Several ledgers of one merchant, composed: what its users have spent if the ledgers are about the same users."""

    merchant: str
    ledgers: int
    epsilon: float
    delta: float


@dataclass(frozen=True)
class PrivacyReport:
    """One report over one merchant or many.

    Attributes:
        epsilon_sum: covers a person who is a user of every merchant here, at delta `delta_sum`. It is the sum
            of the epsilons under `local`; several merchants under one noise cost more than each alone.
    """

    merchants: tuple[MerchantPrivacy, ...]
    same_name: tuple[SameName, ...]
    epsilon_sum: float
    delta_sum: float

    @property
    def intact(self) -> bool:
        """Whether the chain of every ledger is."""
        return all(merchant.chain.intact for merchant in self.merchants)
