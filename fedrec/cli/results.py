"""`fedrec recommend` and `fedrec evaluate`: use a finished run."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.terminal import metrics_table, out, print_json, quiet_libraries, quiet_models, table
from fedrec.errors import InputError

__all__ = ["evaluate", "recommend"]

Run = Annotated[Path, typer.Argument(help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def recommend(
    run: Run,
    history: Annotated[str, typer.Option(help="Item ids, most recent last, separated by commas.")] = "",
    query: Annotated[str | None, typer.Option(help="Words that count as one more item.")] = None,
    merchant: Annotated[str | None, typer.Option(help="Rank only this merchant's items.")] = None,
    k: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    json: Json = False,
) -> None:
    """Rank the catalogue of a run for a history or a query."""
    quiet_models()
    from fedrec.recommender import Recommender

    recommender = Recommender.load(run)
    ranked = recommender.rank([item for item in history.split(",") if item], k=k, query=query, merchant=merchant)
    texts = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True))
    if json:
        print_json([{"item_id": item, "score": score, "text": texts[item]} for item, score in ranked])
        return
    out.print(table("", ["item", "score", "text"], [[item, f"{score:.3f}", texts[item]] for item, score in ranked]))


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
