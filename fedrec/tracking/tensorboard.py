"""TensorBoard: event files in a folder, which `tensorboard --logdir FOLDER` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from fedrec.config import make_folder
from fedrec.errors import InputError
from fedrec.tracking.tracker import Run, Setting

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes `FOLDER/<name>-<start of the id>/events.out.tfevents...`; a resumed run has several of these.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, target: str) -> None:
        self._folder = Path(target)
        try:
            make_folder(self._folder)
        except OSError as error:
            raise InputError(f"cannot be made ({error.strerror})", where=target, expected="a folder for event files") from None
        self._path: Path | None = None
        self._told = ""
        self._writer: SummaryWriter | None = None

    def start(self, run: Run, settings: Mapping[str, Setting]) -> None:
        """See `Tracker`."""
        self._path, self._told = self._folder / f"{run.name}-{run.id[:8]}", json.dumps(dict(settings), indent=2)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if self._writer is None:  # TensorBoard hides what an interrupted run wrote of this step and later ones
            self._writer = SummaryWriter(str(self._path), purge_step=step, filename_suffix=f".from-{step:05d}")
            self._writer.add_text("settings", f"```json\n{self._told}\n```", step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, done: bool) -> None:
        """See `Tracker`; an event file says nothing of how a run ended."""
        if self._writer is not None:
            self._writer.close()
