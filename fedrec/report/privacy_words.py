"""The words of the privacy report: what a person reads before any figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedrec.report.trust_words import against, all_others_collude, shopping_at_several, trust_model

if TYPE_CHECKING:
    from fedrec.report.privacy_sources import Audit
    from fedrec.report.privacy_values import MerchantPrivacy, PrivacyReport

__all__ = ["audits", "labelled", "plain_words", "when"]


def plain_words(report: PrivacyReport) -> list[tuple[str, str]]:
    """What every report begins with: label and sentence, warnings first."""
    merchants = report.merchants
    spent = [merchant for merchant in merchants if merchant.rounds]
    words = [
        (
            "Warning",
            f"the ledger of {m.merchant} is broken at line {m.chain.broken_line} ({m.chain.reason}). The figures below count "
            "every line that can still be read; what is missing is not in them, so they cannot be relied on. "
            "Nothing is released while the chain is broken.",
        )
        for m in merchants
        if not m.chain.intact
    ]
    words += [("Warning", f"the ledger of {m.merchant} was begun anew: {text}.") for m in merchants for text in m.accepted]
    words += [
        (
            "Warning",
            f"the audit of the {audit.mechanism} refutes the claim for {names}: epsilon is at least {audit.epsilon_lower:.3f} "
            f"with {100 * audit.confidence:g}% confidence, claimed was {audit.epsilon_claimed:.3f}.",
        )
        for names, audit in audits(report)
        if audit.refuted
    ]
    words += [
        (
            "Warning",
            f"there are {same.ledgers} ledgers of {same.merchant}. If they are about the same users, these have spent "
            f"epsilon {same.epsilon:.3f} at delta {same.delta:g} in all, not the figure of each ledger.",
        )
        for same in report.same_name
    ]
    words += [
        (
            "Warning",
            f"the ledger of {m.merchant} has releases of unit user and of unit event. They do not compose: its figures bound "
            "neither what is known about a whole user nor, for the releases of unit user, about one example. "
            "Nothing more is released on this ledger.",
        )
        for m in merchants
        if m.units_mixed
    ]
    words.append(_simulation(merchants))
    words += trust_model(report)
    if any(merchant.unit == "event" for merchant in merchants):
        who = "one example (a basket to predict, with its history) of a user, which is weaker than the whole user."
    else:
        who = "each user of a merchant, with everything the user ever did there: whether it was there at all stays uncertain."
    weaker = all_others_collude(report)
    words += [
        ("Protected", who),
        ("Against", against(report)),
        ("How much", ("against the server, " if weaker else "") + _how_much(spent, len(merchants))),
        *weaker,
    ]
    for merchant in merchants:
        if merchant.period:
            p = merchant.period
            spent_of_it = f"{merchant.merchant} spent epsilon {p.epsilon:.3f} of {p.budget:g} in the last {p.days} days."
            words.append(("Budget per period", spent_of_it))
    if spent:
        first, last = min(m.rounds[0].time for m in spent), max(m.rounds[-1].time for m in spent)
        period = f"from {when(first)} (the first release) to {when(last)} (the last), over everything in the ledger."
        words.append(("Period", period))
    words.append((
        "Not covered",
        "the catalogue, which is public; the users of the central evaluation set, who consented; when messages are sent; "
        "and the fact of taking part: that a merchant does, and the rounded number of users that it declares.",
    ))  # fmt: skip
    words.append(("Several merchants", shopping_at_several(report)))
    return words


def _simulation(merchants: Sequence[MerchantPrivacy]) -> tuple[str, str]:
    simulated = [merchant for merchant in merchants if merchant.simulation]
    if not simulated:
        return "Origin", "no release in the ledger is marked as simulated: its noise came from the operating system."
    seeds = {str(merchant.seed) for merchant in simulated if merchant.seed is not None}
    some = "" if len(simulated) == len(merchants) else f"{len(simulated)} of the {len(merchants)} ledgers: "
    text = f"{some}all merchants' data were on one machine"
    if seeds:
        text += f" and the noise came from a seed ({', '.join(sorted(seeds))}), so whoever knows the seed can take the noise away"
    return "This is a simulation", f"{text}. It shows what a deployment would spend."


def _how_much(spent: Sequence[MerchantPrivacy], merchants: int) -> str:
    if not spent:
        return "nothing was released yet: epsilon 0."
    worst = max(spent, key=lambda merchant: merchant.epsilon)
    text = f"epsilon {worst.epsilon:.3f} at delta {worst.delta:g}, by the accountant {worst.accountant}"
    if len(spent) > 1:
        delta = max(merchant.delta or 0 for merchant in spent)
        text = f"epsilon at most {worst.epsilon:.3f} at delta {delta:g} for each of {len(spent)} merchants"
    if len(spent) < merchants:
        text += f"; {merchants - len(spent)} more released nothing"
    over = [merchant.merchant for merchant in spent if merchant.share is not None and merchant.share > 1]
    if over:
        return f"{text}. OVER THE BUDGET: {', '.join(over)}."
    budgets = {merchant.budget for merchant in spent}
    if None in budgets:
        return f"{text}. No policy was found beside {'the' if len(spent) == 1 else 'every'} ledger, so the budget is not known."
    return f"{text}, of a budget of {' to '.join(f'{b:g}' for b in sorted({min(budgets), max(budgets)}))}."  # type: ignore[type-var]


def labelled(report: PrivacyReport) -> dict[str, MerchantPrivacy]:
    """One merchant for each group that was asked for the same and so spent the same, by a name that says how many."""
    groups: dict[tuple[object, ...], list[MerchantPrivacy]] = {}
    for merchant in report.merchants:
        kind = tuple(
            (r.run, r.round, r.mechanism, r.noise_multiplier, r.noise_multiplier_alone, r.sample_rate, r.steps)
            for r in merchant.rounds
        )
        groups.setdefault((merchant.delta, merchant.chain.broken_line, kind), []).append(merchant)
    out = {}
    for group in groups.values():
        more = f" and {len(group) - 1} more alike" if len(group) > 1 else ""
        name = group[0].merchant + more
        out[f"{name} ({Path(group[0].chain.path).parent.parent.name})" if name in out else name] = group[0]
    return out


def audits(report: PrivacyReport) -> list[tuple[str, Audit]]:
    """Each audit's result once, with the merchants beside whose ledgers it lies."""
    names: dict[Audit, list[str]] = {}
    for merchant in report.merchants:
        for audit in merchant.audits:
            names.setdefault(audit, []).append(merchant.merchant)
    return [(", ".join(merchants), audit) for audit, merchants in names.items()]


def when(time: str) -> str:
    """A ledger's time to the minute."""
    return f"{time[:16].replace('T', ' ')} UTC" if time.endswith("+00:00") else time
