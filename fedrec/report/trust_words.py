"""The words for the trust model `secure-aggregation`: who is trusted for what, and what is lost by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrec.report.privacy_values import MerchantPrivacy, PrivacyReport, SecureTerms

__all__ = ["COMPARED", "LOST", "SHARES", "against", "all_others_collude", "assumed", "shopping_at_several", "trust_model"]

SHARES = "each merchant adds a share of the noise, and the server opens nothing but the sum of all merchants"
COMPARED = "the merchants have compared the roster with each other, not with the server, which could otherwise invent merchants"
LOST = (
    "the server cannot look at the update of one merchant, so robust rules that leave out what stands out do not apply; "
    "merchants prove nothing about what they put in; and each user's part is clipped by the merchant's own software, "
    "whose word nobody can check."
)


def assumed(dropouts: int, colluders: int, members: int | None = None) -> str:
    """Who is trusted, as a clause.

    Args:
        members: merchants in the roster, where it is known.
    """
    if members is None:
        honest = f"all merchants in the roster but {dropouts + colluders} at most"
    else:
        honest = f"at least {members - dropouts - colluders} of the {members} merchants in the roster"
    return (
        f"{honest} are honest and have their share of the noise in every sum that is opened "
        f"(at most {dropouts} missing from it, at most {colluders} telling the server all they know)"
    )


def trust_model(report: PrivacyReport) -> list[tuple[str, str]]:
    """Label and sentence on the assumptions; nothing where every release is under `local`."""
    secure = _secure(report)
    if not secure:
        return []
    terms: list[SecureTerms] = [one for merchant in secure for one in merchant.secure_terms]
    count, lines = sum(one.releases for one in terms), sum(len(merchant.rounds) for merchant in report.merchants)
    name = "secure-aggregation, which is weaker than local noise"
    if count < lines:
        name += f", for {count} of the {lines} releases (in the others, under local, the merchant added all of the noise)"
    clauses = dict.fromkeys(assumed(one.dropouts, one.colluders, one.members) for one in terms)
    trusted = "; that ".join([*clauses, COMPARED])
    return [("Trust model", f"{name}: {SHARES}. It is trusted that {trusted}; and that the cryptography holds.")]


def against(report: PrivacyReport) -> str:
    """Against whom the first epsilon holds."""
    if not _secure(report):
        return (
            "the server, the other merchants, and everyone who sees what a merchant sends or the trained model, whatever "
            "else they know. A merchant trusts only its own process: the noise is added before anything is sent."
        )
    return (
        "the server, also together with as many merchants as are assumed to collude, and everyone who sees the sums or the "
        "trained model, whatever else they know. If more merchants collude, no more than the weaker epsilon below is promised."
    )


def all_others_collude(report: PrivacyReport) -> list[tuple[str, str]]:
    """Label and sentence on the epsilon that needs no trust in others, and on what is lost; nothing under `local`."""
    secure = _secure(report)
    if not secure:
        return []
    worst, delta = max(merchant.epsilon_alone for merchant in secure), max(merchant.delta or 0 for merchant in secure)
    each = f", at most, for each of {len(secure)} merchants" if len(secure) > 1 else ""
    text = (
        f"epsilon {worst:.3f} at delta {delta:g}{each}. It still holds if every other merchant tells the server all it knows: "
        "the merchant's own share of the noise is then all that protects its users."
    )
    return [("If all others collude", text), ("Lost by secure aggregation", LOST)]


def shopping_at_several(report: PrivacyReport) -> str:
    """What a customer of several merchants is covered by."""
    spent = [merchant for merchant in report.merchants if merchant.rounds]
    total = f"epsilon {report.epsilon_sum:.3f} at delta {report.delta_sum:g}"
    if _secure(report):
        text = (
            "A person who shops at k merchants is a user of each. A secure sum has one noise for all of them, so the sum of the "
            "k epsilons need not cover this person"
        )
        return f"{text}; {total} covers one who shops at all {len(spent)} here." if len(spent) > 1 else f"{text}."
    text = "A person who shops at k merchants is a user of each, and is covered in total by the sum of the k epsilons and deltas"
    return f"{text}: {total} for one who shops at all {len(spent)} here." if len(spent) > 1 else f"{text}."


def _secure(report: PrivacyReport) -> list[MerchantPrivacy]:
    return [merchant for merchant in report.merchants if merchant.secure_terms]
