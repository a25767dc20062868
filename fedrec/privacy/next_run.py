"""What one more run would cost a merchant: the releases of its last run, made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedrec.privacy.accountants import epsilon
from fedrec.privacy.ledger import Release

__all__ = ["NextRun", "next_run"]


@dataclass(frozen=True)
class NextRun:
    """A run like the last one, after all that was released.

    Attributes:
        epsilon: what it would add.
        after: all that would be spent then.
        budget: of the policy.
    """

    epsilon: float
    after: float
    budget: float

    @property
    def sentence(self) -> str:
        """What a person should know."""
        said = f"A run like the last would cost epsilon {self.epsilon:.2f} more and end at {self.after:.2f}, "
        if self.after <= self.budget:
            return f"{said}which fits your budget of {self.budget:g}."
        left = max(self.budget - (self.after - self.epsilon), 0.0)
        return f"{said}which does not fit your budget of {self.budget:g}; {left:.2f} is left for a smaller one."


def next_run(releases: Sequence[Release], delta: float, budget: float) -> NextRun | None:
    """What the last run's releases would add once more; None where nothing was released."""
    if not releases:
        return None
    events = [release.event for release in releases]
    again = [release.event for release in releases if release.run == releases[-1].run]
    before, after = (epsilon(made, delta).value for made in (events, [*events, *again]))
    return NextRun(after - before, after, budget)
