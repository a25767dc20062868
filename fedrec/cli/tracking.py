"""`--track NAME:TARGET` of whatever trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Track", "tracked"]

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track", metavar="NAME:TARGET", help="Also show rounds in tensorboard:FOLDER, mlflow:URI or wandb:PROJECT; repeatable."
    ),
]


@contextmanager
def tracked(given: list[str] | None, folder: Path, simulation: bool) -> Iterator[None]:
    """Have trackers follow the run in `folder` inside the block. What one of them cannot keep is logged and stops no run.

    Raises:
        InputError: one of them cannot be used here.
    """
    if not given:
        yield
        return
    from fedrec.tracking import TrackedRun, open_tracker
    from server.progress import watching

    runs = [TrackedRun(open_tracker(text), folder, simulation) for text in given]
    done = False
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(watching(run))
        try:
            yield
            done = True
        finally:
            for run in runs:
                run.finish(done)
