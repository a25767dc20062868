"""What a tracker does, and one that only remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Memory", "Run", "Setting", "Tracker"]

Setting = str | int | float | bool


@dataclass(frozen=True)
class Run:
    """Which run it is.

    Attributes:
        id: the same when the run is resumed, and no other run's; letters and digits.
        name: for people, not unique.
    """

    id: str
    name: str


class Tracker(Protocol):
    """Where the settings and numbers of one run go. It is made from a target, and makes and sends nothing before `start`."""

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """Begin a run, or go on with the one of this id."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what was measured at a step, the numbers by name (letters, digits, `_`, `-` and `/`).

        Steps rise, but for a resumed run's first.
        """

    def finish(self, done: bool) -> None:
        """End it, with everything kept when this returns.

        Args:
            done: whether the run came to its end; else it was stopped, and may be resumed.
        """


@dataclass
class Memory:
    """A tracker that remembers, for tests and notebooks.

    Attributes:
        run, settings: as `start` had them.
        steps: values by step.
        done: as `finish` had it; None before.
    """

    run: Run | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    done: bool | None = None

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """See `Tracker`."""
        self.run, self.settings, self.done = run, dict(settings), None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.steps[step] = dict(values)

    def finish(self, done: bool) -> None:
        """See `Tracker`."""
        self.done = done
