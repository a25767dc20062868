"""MLflow: a run of the experiment `fedrec` at a tracking server, in a database or in a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fedrec.tracking.tracker import Run, Setting

__all__ = ["MLflow"]

EXPERIMENT, ID = "fedrec", "fedrec.run"
LONGEST = 500
"""Characters of a parameter that every store takes."""


class MLflow:
    """Speaks to one tracking URI and leaves MLflow's own settings of the process alone."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._client: MlflowClient | None = None
        self._run = ""

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """See `Tracker`; a parameter is written once, so a resumed run keeps those that it began with."""
        client = self._client = MlflowClient(tracking_uri=self._target)  # which makes a database where there is none
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        if found := client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1):
            self._run = found[0].info.run_id
            client.set_terminated(self._run, "RUNNING")
            return
        self._run = client.create_run(experiment, tags={ID: run.id}, run_name=run.name).info.run_id
        client.log_batch(self._run, params=[Param(name, str(value)[:LONGEST]) for name, value in settings.items()])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        assert self._client is not None
        now = int(1e3 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, done: bool) -> None:
        """See `Tracker`."""
        assert self._client is not None
        self._client.set_terminated(self._run, "FINISHED" if done else "KILLED")
