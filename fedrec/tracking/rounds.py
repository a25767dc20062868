"""What a tracker gets of a run: settings, and from each round the numbers of its server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fedrec.config import load_config
from fedrec.tracking.tracker import Run, Setting, Tracker

__all__ = ["TrackedRun", "round_values"]

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
        **{f"scoring/{name}": float(value) for name, value in line["scoring"].items()},
        **{f"merchants/{name}": float(len(line[name])) for name in ("took_part", "declined", "refused")},
        **{f"bytes/{way}": float(sum(line[f"bytes_{way}"].values())) for way in ("down", "up")},
        **({"privacy/largest_epsilon": float(max(spent))} if spent else {}),
        "round/seconds": float(line["seconds"]),
        "round/abandoned": float("abandoned" in line),
    }


class TrackedRun:
    """Follows the events of a run (`server.progress`) and gives a tracker what it may know.

    Args:
        folder: the run folder, which is there by the first round.
        simulation: whether all merchants are on this machine; it is among the settings.
    """

    def __init__(self, tracker: Tracker, folder: Path, simulation: bool) -> None:
        self._tracker, self._folder, self._simulation = tracker, folder, simulation
        self._started = False

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take note of an event; the first round starts the tracker."""
        if event != "round_done":
            return
        if not self._started:
            self._tracker.start(*self._run())
            self._started = True
        self._tracker.metrics(fields["round"], round_values(fields))

    def finish(self, done: bool) -> None:
        """End it. What cannot be kept then is logged and stops nothing."""
        if not self._started:
            return
        try:
            self._tracker.finish(done)
        except Exception:
            log.exception("a tracker cannot be ended; the run is in its folder all the same")

    def _run(self) -> tuple[Run, dict[str, Setting]]:
        path = (self._folder / "config.toml").resolve()
        made = f"{path} {path.stat().st_mtime_ns}"  # it is written once, so a resumed run is the same and one in its place is not
        config = load_config(path)
        settings: dict[str, Setting] = config.model_dump(exclude_none=True)
        settings |= {"encoder": Path(config.encoder).name, "simulation": self._simulation}
        return Run(blake2b(made.encode(), digest_size=8).hexdigest(), path.parent.name), settings
