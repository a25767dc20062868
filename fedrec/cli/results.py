"""`fedrec evaluate`: measure a finished run again."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.terminal import metrics_table, out, print_json, quiet_libraries
from fedrec.errors import InputError

__all__ = ["evaluate"]

Run = Annotated[Path, typer.Argument(help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    run: Run,
    data: Annotated[Path | None, typer.Option(help="Federation folder; by default the run's own.")] = None,
    json: Json = False,
) -> None:
    """Evaluate a run's adapter again on the central users."""
    quiet_libraries()
    from fedrec.data import load_central
    from server.evaluation import CentralEvaluator
    from server.run_folder import RunFolder
    from server.start import load_encoder_for

    folder = RunFolder.open(run)
    state = folder.load()
    if state is None:
        raise InputError("there is no checkpoint", where=str(run / "checkpoints"), hint="the run has not finished round 0")
    if data is None:
        data = Path(json_module.loads((run / "site.json").read_text(encoding="utf-8"))["federation"])
    evaluator = CentralEvaluator(load_central(data), folder.config, load_encoder_for(folder.config, state))
    line = evaluator.line(state.public, state.trained)
    if json:
        print_json({"round": state.round, **line})
        return
    row = {"name": f"round {state.round}", "private": True, **line["central"]}
    out.print(metrics_table({"rows": [row]}, folder.config.top_k))
