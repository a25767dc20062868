"""`fedrec evaluate`: measure a finished run again."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.terminal import metrics_table, out, print_json, quiet_libraries, repeats_table
from fedrec.errors import InputError

__all__ = ["evaluate"]

Run = Annotated[Path, typer.Argument(help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    run: Run,
    data: Annotated[Path | None, typer.Option(help="Federation folder; by default the run's own.")] = None,
    repeats: Annotated[bool, typer.Option("--repeats", help="Count what is bought again too.")] = False,
    json: Json = False,
) -> None:
    """Evaluate a run's adapter again on the central users."""
    quiet_libraries()
    from fedrec.data import load_central
    from server.evaluation import CentralEvaluator
    from server.evaluators import evaluator_of
    from server.run_folder import RunFolder
    from server.start import load_encoder_for

    folder = RunFolder.open(run)
    state = folder.load()
    if state is None:
        raise InputError("there is no checkpoint", where=str(run / "checkpoints"), hint="the run has not finished round 0")
    if data is None:
        data = Path(json_module.loads((run / "site.json").read_text(encoding="utf-8"))["federation"])
    evaluator = evaluator_of(folder.config, load_central(data), load_encoder_for(folder.config, state))
    if repeats:
        if not isinstance(evaluator, CentralEvaluator) or folder.config.objective != "next-item":
            raise InputError("--repeats is about ranking", where=str(run), expected="a run with objective = 'next-item'")
        _show_repeats(state.round, evaluator.repeats(state.public, state.trained), folder.config.top_k, json)
        return
    line = evaluator.line(state.public, state.trained)
    if json:
        print_json({"round": state.round, **line})
        return
    row = {"name": f"round {state.round}", "private": True, **line["central"]}
    out.print(metrics_table({"rows": [row], "metrics": list(evaluator.shown)}, folder.config.top_k))


def _show_repeats(round: int, rows: dict[str, dict[str, float]], k: int, json: bool) -> None:
    if json:
        print_json({"round": round, "repeats": rows})
        return
    users = int(next(iter(rows.values()))["users"])
    title = f"Round {round}: whole last baskets of {users:,} held-out users, what is bought again included, 95% intervals"
    out.print(repeats_table(rows, k, title))
