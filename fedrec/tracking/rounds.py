"""What a tracker gets of a run: settings, and from each round the numbers of its server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from fedrec.config import load_config
from fedrec.tracking.tracker import Run, Setting, Tracker

__all__ = ["TrackedRun", "round_values"]

WAITING = 64
"""Rounds that a tracker may be behind."""
log = logging.getLogger("fedrec.tracking")


def round_values(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round by name, from its line of `metrics.jsonl`.

    These are of the central users and of what came over the wire; of the merchants there are only how many they were, and the
    largest epsilon that one of them has spent. A tracker may be somebody else's service, so no merchant is named. `ndcg@10` is
    `ndcg_at_10` here: trackers take no `@`.
    """
    spent = [one["epsilon"] for one in line["privacy"].values()]
    return {
        **{f"central/{name.replace('@', '_at_')}": float(value) for name, value in line["central"].items()},
        **{
            f"{kind}/{name}": float(value)
            for kind in ("scoring", "response_scoring")
            for name, value in line.get(kind, {}).items()
        },
        **{f"merchants/{name}": float(len(line[name])) for name in ("took_part", "declined", "refused")},
        **{f"bytes/{way}": float(sum(line[f"bytes_{way}"].values())) for way in ("down", "up")},
        **({"privacy/largest_epsilon": float(max(spent))} if spent else {}),
        "round/seconds": float(line["seconds"]),
        "round/abandoned": float("abandoned" in line),
    }


class TrackedRun:
    """Follows the events of a run (`server.progress`) and gives a tracker what it may know.

    A thread of its own speaks to the tracker, so that no round waits for one that is slow or down. What the tracker cannot keep
    is logged once, and nothing more is given to it.

    Args:
        folder: the run folder, which is there by the first round.
        simulation: whether all merchants are on this machine; it is among the settings.
        wait: seconds that the end of the run waits for what is still to be kept.
    """

    def __init__(self, tracker: Tracker, folder: Path, simulation: bool, wait: float = 30.0) -> None:
        self._tracker, self._folder, self._simulation, self._wait = tracker, folder, simulation, wait
        self._queue: SimpleQueue[tuple[int, dict[str, float]] | bool] = SimpleQueue()
        self._thread: Thread | None = None
        self._failed = False

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take note of an event; the first round starts the tracker."""
        if event != "round_done" or self._failed:
            return
        if self._thread is None:
            self._thread = Thread(target=self._keep, args=self._run(), name="tracker", daemon=True)
            self._thread.start()
        if self._queue.qsize() < WAITING:
            self._queue.put((fields["round"], round_values(fields)))
        else:
            self._give_up(f"it is {WAITING} rounds behind")

    def finish(self, done: bool) -> None:
        """End it. What cannot be kept then is logged and stops nothing."""
        if self._thread is None:
            return
        self._queue.put(done)
        self._thread.join(self._wait)
        if self._thread.is_alive():
            log.warning("a tracker is too slow and may lack the last rounds; the run is in its folder all the same")

    def _keep(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """Give the tracker one round after the other; after a failure nothing but the end."""
        try:
            self._tracker.start(run, settings)
        except Exception as error:
            self._give_up(repr(error))
            return
        while not isinstance(one := self._queue.get(), bool):
            if self._failed:
                continue
            try:
                self._tracker.metrics(*one)
            except Exception as error:
                self._give_up(repr(error))
        try:
            self._tracker.finish(one)
        except Exception as error:
            self._give_up(repr(error))

    def _give_up(self, why: str) -> None:
        if not self._failed:
            log.warning("a tracker gets nothing more (%s); the run goes on, and is in its folder all the same", why)
        self._failed = True

    def _run(self) -> tuple[Run, dict[str, Setting]]:
        path = (self._folder / "config.toml").resolve()
        made = f"{path} {path.stat().st_mtime_ns}"  # it is written once, so a resumed run is the same and one in its place is not
        config = load_config(path)
        settings: dict[str, Setting] = config.model_dump(exclude_none=True)
        settings |= {"encoder": Path(config.encoder).name, "simulation": self._simulation}
        return Run(blake2b(made.encode(), digest_size=8).hexdigest(), path.parent.name), settings
