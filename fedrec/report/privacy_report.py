"""The privacy-budget report: from ledgers to what a data-protection officer signs.

`privacy_report` is a pure function of what `find_sources` read; JSON, HTML and the command
line's text show the same frozen value, plain words first.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedrec.config import write_atomically
from fedrec.privacy import ACCOUNTANTS, Epsilon, Release, SampledGaussian, epsilon
from fedrec.privacy.accountants import FAST, quick_rdp
from fedrec.privacy.merging import MOST_SAMPLED
from fedrec.report.pages import page
from fedrec.report.plots import Series, curves
from fedrec.report.privacy_attacker import FALSE_POSITIVES, attacker
from fedrec.report.privacy_sources import Source, find_sources
from fedrec.report.privacy_values import MerchantPrivacy, Part, Period, PrivacyReport, Remaining, Round, SameName, SecureTerms
from fedrec.report.privacy_words import audits, labelled, plain_words

__all__ = ["privacy_report", "remaining_rounds", "to_html", "to_json", "write_privacy_report"]

MOST_ROUNDS = 10_000
"""The search for how many rounds are left stops here."""
MOST_PREFIXES, MOST_MECHANISMS = 64, 32
"""Of a longer ledger only so many prefixes, evenly spaced, are composed again, with so many sampled mechanisms in all:
an accountant takes up to 0.1 s for each."""
MOST_PARTS = 20
"""Up to so many runs, and mechanisms, are composed apart by `FAST`; more are by RDP."""


def privacy_report(sources: Sequence[Source], now: datetime | None = None) -> PrivacyReport:
    """Compose, compare and bound.

    The sum over merchants is basic composition (Dwork, Roth, 2014, theorem 3.16), where each has noise of its own.
    For what several merchants released under one noise see `_of_one_person`.

    Args:
        now: the end of the period that a policy's `period_epsilon` is for; by default the present.
    """
    merchants = tuple(_merchant(source, now or datetime.now(UTC)) for source in sources)
    same = []
    for name in dict.fromkeys(source.merchant for source in sources):
        group = [source for source in sources if source.merchant == name and source.releases]
        if len(group) > 1:
            delta = min(delta for source in group if (delta := _delta(source)))
            events = [event for source in group for event in _events(source.releases)]
            same.append(SameName(name, len(group), epsilon(events, delta).value, delta))
    spent = [merchant for merchant in merchants if merchant.rounds]
    total, delta_sum = sum(merchant.epsilon for merchant in spent), sum(merchant.delta or 0 for merchant in spent)
    sharing = sum(bool(merchant.secure_terms) for merchant in spent)
    if sharing > 1:
        total = epsilon([_of_one_person(release, sharing) for source in sources for release in source.releases], delta_sum).value
    return PrivacyReport(merchants, tuple(same), total, delta_sum)


def remaining_rounds(events: Sequence[SampledGaussian], one: SampledGaussian, budget: float, delta: float) -> int:
    """How often `one` can follow `events` within `budget`, at most `MOST_ROUNDS`: a merchant's own test, repeated.

    That many fit and one more does not. What fits by RDP, which costs next to nothing, fits; from there on it
    takes a handful of compositions, since epsilon over the rounds is near a straight line.
    """

    def spent(count: int, names: Sequence[str] = FAST) -> float:
        more = [replace(one, steps=one.steps * count)] if count else []
        return epsilon([*events, *more], delta, names).value

    low, high = 0, MOST_ROUNDS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle, ("rdp",)) <= budget else (low, middle)
    at_low, high, step = spent(low), low + 1, max(1, low // 8)
    while high <= MOST_ROUNDS and (now := spent(high)) <= budget:
        low, at_low, high, step = high, now, high + step, 2 * step
    high = min(high, MOST_ROUNDS + 1)
    at_high, tries = spent(high), 0
    while high - low > 1:
        # Every third time by halves, so that it ends soon whatever the curve.
        tries += 1
        share = (budget - at_low) / (at_high - at_low) if tries % 3 and at_low < at_high else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        now = spent(middle)
        if now <= budget:
            low, at_low = middle, now
        else:
            high, at_high = middle, now
    return low


def to_json(report: PrivacyReport) -> dict[str, Any]:
    """The report for machines; a bound that is infinite is null."""
    merchants = [
        {**asdict(merchant), "share": merchant.share, "chain": {**asdict(merchant.chain), "intact": merchant.chain.intact}}
        for merchant in report.merchants
    ]
    return _finite({
        "summary": [{"label": label, "text": text} for label, text in plain_words(report)],
        "intact": report.intact,
        "merchants": merchants,
        "same_name": [asdict(same) for same in report.same_name],
        "total": {"merchants": len(merchants), "epsilon": report.epsilon_sum, "delta": report.delta_sum},
    })  # fmt: skip


def to_html(report: PrivacyReport) -> str:
    """The report as one self-contained page."""
    svg = _curve(report)
    return page(
        "privacy.html",
        report=report,
        words=plain_words(report),
        labelled=labelled(report),
        accountants=list(dict.fromkeys(name for merchant in report.merchants for name in merchant.accountants)),
        audits=audits(report),
        fast=FAST,
        curve=Markup(svg) if svg else None,
        rates=FALSE_POSITIVES,
    )


def write_privacy_report(run_folder: Path) -> tuple[Path, Path]:
    """Write `privacy/report.json` and `privacy/report.html` into a run folder and return their paths.

    Raises:
        InputError: there is no ledger in the folder, or a file of it cannot be read.
    """
    report = privacy_report(find_sources([run_folder]))
    (run_folder / "privacy").mkdir(exist_ok=True)
    json_path, html_path = run_folder / "privacy" / "report.json", run_folder / "privacy" / "report.html"
    write_atomically(json_path, (json.dumps(to_json(report), indent=2) + "\n").encode())
    write_atomically(html_path, to_html(report).encode())
    return json_path, html_path


def _merchant(source: Source, now: datetime) -> MerchantPrivacy:
    policy, releases = source.merchant_file.privacy if source.merchant_file else None, source.releases
    delta, events = _delta(source), _events(source.releases)
    bounds = _by_accountant(events, delta)
    total = min(bounds.values(), key=lambda bound: bound.value, default=epsilon(events, delta or 1.0))
    alone = _by_accountant([release.event_alone for release in releases], delta)
    total_alone = min(alone.values(), key=lambda bound: bound.value, default=total)
    units = {release.unit for release in releases} or ({policy.unit} if policy else {"user"})
    recent = _recent(source, now)
    return MerchantPrivacy(
        merchant=source.merchant,
        unit="event" if "event" in units else "user",
        units_mixed=len(units) > 1,
        budget=policy.epsilon if policy else None,
        delta=delta,
        epsilon=total.value,
        accountant=total.accountant,
        accountants={name: bound.value for name, bound in bounds.items()},
        trust="secure-aggregation" if any(map(_is_secure, releases)) else "local",
        secure_terms=_secure_terms(releases),
        epsilon_alone=total_alone.value,
        accountant_alone=total_alone.accountant,
        population=policy.population if policy else None,
        period=_period(source, recent),
        simulation=source.simulation,
        seed=source.seed,
        mechanisms=_parts(releases, lambda release: release.mechanism, delta),
        rounds=_rounds(releases, delta),
        runs=_parts(releases, lambda release: release.run, delta),
        remaining=_remaining(source, recent),
        attacker=attacker(events, total.value, delta or 0.0),
        chain=source.chain,
        accepted=tuple(dict.fromkeys(release.accepted for release in releases if release.accepted)),
        audits=source.audits,
    )


def _delta(source: Source) -> float | None:
    """The policy's delta; without a policy the one that the last release was made under."""
    if source.merchant_file:
        return source.merchant_file.privacy.delta
    return source.releases[-1].delta if source.releases else None


def _recent(source: Source, now: datetime) -> list[SampledGaussian]:
    """The releases that a policy's budget per period counts."""
    if source.merchant_file is None:
        return []
    start = now - timedelta(days=source.merchant_file.privacy.period_days)
    return _events(release for release in source.releases if _time(release) >= start)


def _time(release: Release) -> datetime:
    """When it was; a time that was tampered with counts as recent."""
    try:
        time = datetime.fromisoformat(release.time)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _period(source: Source, recent: Sequence[SampledGaussian]) -> Period | None:
    policy = source.merchant_file.privacy if source.merchant_file else None
    if policy is None or policy.period_epsilon is None:
        return None
    return Period(policy.period_days, policy.period_epsilon, epsilon(recent, policy.delta).value)


def _remaining(source: Source, recent: Sequence[SampledGaussian]) -> Remaining | None:
    if source.merchant_file is None or not source.releases or not source.chain.intact:
        return None
    policy, last = source.merchant_file.privacy, source.releases[-1]
    count = remaining_rounds(_events(source.releases), last.event, policy.epsilon, policy.delta)
    if policy.period_epsilon is not None:
        count = min(count, remaining_rounds(recent, last.event, policy.period_epsilon, policy.delta))
    return Remaining(last.mechanism, last.noise_multiplier, last.sample_rate, last.steps, count, count == MOST_ROUNDS)


def _is_secure(release: Release) -> bool:
    return release.trust != "local"


def _secure_terms(releases: Sequence[Release]) -> tuple[SecureTerms, ...]:
    """The terms of the secure sums among `releases`, each once."""
    counts = Counter((one.members, one.dropouts, one.colluders) for one in releases if _is_secure(one))
    return tuple(SecureTerms(*terms, terms[0] - terms[1] - terms[2], count) for terms, count in counts.items())


def _of_one_person(release: Release, merchants: int) -> SampledGaussian:
    """What is released about a customer of `merchants` that share their noise, as each one's own part of it.

    The noise of a secure sum is the sum of k independent Gaussians with sigma / sqrt(k), one added to the
    contribution of each of the k merchants; so the sum is a post-processing of k releases with that noise, which
    compose. Over k = h merchants it is no less than each one's own share.
    """
    if not _is_secure(release):
        return release.event
    own = max(release.noise_multiplier / math.sqrt(merchants), release.event_alone.noise_multiplier)
    return replace(release.event, noise_multiplier=own)


def _events(releases: Iterable[Release]) -> list[SampledGaussian]:
    return [release.event for release in releases]


def _by_accountant(events: Sequence[SampledGaussian], delta: float | None) -> dict[str, Epsilon]:
    """Every accountant's bound; one that fails on these events is left out."""
    bounds = {name: epsilon(events, delta, (name,)) for name in ACCOUNTANTS} if events and delta else {}
    return {name: bound for name, bound in bounds.items() if math.isfinite(bound.value)}


def _parts(releases: Sequence[Release], key: Callable[[Release], str], delta: float | None) -> tuple[Part, ...]:
    groups: dict[str, list[Release]] = {}
    for release in releases:
        groups.setdefault(key(release), []).append(release)
    parts = []
    for name, group in groups.items():
        events = _events(group)
        if len(groups) <= MOST_PARTS:
            alone = epsilon(events, delta or 1.0)
        else:
            alone = Epsilon(max(0.0, quick_rdp(events, delta or 1.0)), delta or 1.0, "rdp")
        steps = sum(release.steps for release in group)
        parts.append(Part(name, len(group), steps, group[0].time, group[-1].time, alone.value, alone.accountant))
    return tuple(parts)


def _rounds(releases: Sequence[Release], delta: float | None) -> tuple[Round, ...]:
    events, out = _events(releases), []
    sampled = {(event.noise_multiplier, event.sample_rate) for event in events if event.sample_rate < 1}
    prefixes = min(MOST_PREFIXES, MOST_MECHANISMS // max(1, min(len(sampled), MOST_SAMPLED)))
    every = math.ceil(len(releases) / prefixes)
    for number, r in enumerate(releases, 1):
        composed = number % every == 0 or number == len(releases)
        after = epsilon(events[:number], delta or 1.0) if composed else None
        out.append(
            Round(
                number, r.time, r.run, r.round, r.mechanism, r.noise_multiplier, r.sample_rate, r.steps, r.clip_norm,
                after.value if after else None, after.accountant if after else "", r.epsilon_after, r.trust,
                r.event_alone.noise_multiplier,
            )
        )  # fmt: skip
    return tuple(out)


def _curve(report: PrivacyReport) -> str:
    """Epsilon after each release; merchants who spent alike share a line."""
    series: dict[str, Series] = {}
    for name, merchant in labelled(report).items():
        points = [(round.number, round.epsilon) for round in merchant.rounds if round.epsilon is not None]
        if points:
            series[name] = ([0, *(x for x, _ in points)], [0.0, *(y for _, y in points)])
    budgets = sorted({merchant.budget for merchant in report.merchants if merchant.budget})
    return curves(series, x="release", y="epsilon", levels={f"budget {b:g}": b for b in budgets[:3]}) if series else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
