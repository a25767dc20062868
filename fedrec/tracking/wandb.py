"""Weights & Biases: a run of a project, at its service or, with `WANDB_MODE=offline`, in files under `WANDB_DIR`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from fedrec.tracking.tracker import Run, Setting

__all__ = ["WeightsAndBiases"]

STEP = "round"


class WeightsAndBiases:
    """Sends settings and numbers, and nothing that wandb would collect by itself: no output of the terminal, which has merchants'
    names in it, no code, no command line, no figures of the machine."""

    def __init__(self, target: str) -> None:
        self._project = target
        self._run: Any = None

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """See `Tracker`."""
        quiet = wandb.Settings(
            console="off", silent=True, disable_code=True, disable_git=True, disable_job_creation=True, host="fedrec",
            program="fedrec", x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=self._project, id=run.id, name=run.name, config=dict(settings), resume="allow", settings=quiet
        )
        self._run.define_metric("*", step_metric=STEP)  # its own step may not go back, and a resumed run's does

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**values, STEP: step})

    def finish(self, done: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if done else 1)
