"""Whether a release fits what the policy still allows, given everything released before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from fedrec.privacy.accountants import epsilon
from fedrec.privacy.ledger import Release
from fedrec.privacy.policy import Policy

__all__ = ["over_budget"]


def over_budget(policy: Policy, before: Sequence[Release], release: Release, now: datetime | None = None) -> str | None:
    """Why `release` may not be added to the ledger, or None. The reason holds no private data.

    Checks the unit, the rounds of the run, the budget for the life of the data, and the budget of the
    last `period_days`. The composition is over all mechanisms, runs and settings together.

    Units do not compose, so a ledger has one. A user is many examples, and a line at unit `event` bounds the
    weight of each apart. Nor is the other way round free: who takes one example out of a user's gradient replaces
    it by another, up to twice `clip_norm` away, and a line at unit `user` accounts for once.
    """
    if others := {known.unit for known in before} - {release.unit}:
        return f"policy: unit {release.unit!r} over a ledger with releases of unit {min(others)!r}; units do not mix"
    rounds = {known.round for known in before if known.run == release.run} | {release.round}
    if sum(number > 0 for number in rounds) > policy.max_rounds:  # a statistic's is under 1: it trains nothing
        return f"policy: round {release.round} is over the policy's most rounds, {policy.max_rounds}"
    after = epsilon([*(known.event for known in before), release.event], policy.delta)
    if not after.value <= policy.epsilon:
        return f"budget: epsilon {after.value:.3f} would be over the policy's {policy.epsilon:g}"
    if policy.period_epsilon is not None:
        start = (now or datetime.now(UTC)) - timedelta(days=policy.period_days)
        recent = [known.event for known in before if datetime.fromisoformat(known.time) >= start]
        spent = epsilon([*recent, release.event], policy.delta).value
        if not spent <= policy.period_epsilon:
            return (
                f"budget: epsilon {spent:.3f} in {policy.period_days} days would be over the policy's {policy.period_epsilon:g}"
            )
    return None
