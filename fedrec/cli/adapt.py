"""`fedrec adapt`: the encoder adapted to a public catalogue, before anybody trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.console import progress_bars, stacked
from fedrec.cli.simulate import By, Config, Set, demo_folder
from fedrec.cli.terminal import err, out, print_json, quiet_models
from fedrec.config import load_config, parse_overrides

__all__ = ["adapt"]

DEMO = "demo"
DEFAULT = ("fields", "words", "order")
"""Kinds of pairs; those by dropout were found to be told apart from the first step on."""


def adapt(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="demo, or a folder: a federation, a run, or items.")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    pairs: Annotated[
        list[str] | None, typer.Option(help="dropout, fields, words or order; repeatable; by default all but dropout.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often each pair is seen.")] = 1,
    batch: Annotated[int, typer.Option(help="Pairs of a step.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of the softmax over a batch.")] = 0.05,
    learning_rate: Annotated[float, typer.Option(help="Of the first step; it falls to 0.")] = 1e-3,
    config: Config = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted in OUT.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print settings and losses as JSON.")] = False,
) -> None:
    """Adapt the encoder's LoRA to the texts of a catalogue, by contrast.

    Nobody's data are read, and no epsilon is spent. OUT has an adapter as a run has.
    """
    resolved = load_config(config, parse_overrides(settings or []))
    quiet_models()
    from fedrec.adaptation import Schedule
    from fedrec.adaptation import adapt as train

    schedule = Schedule(tuple(pairs or DEFAULT), epochs, batch, temperature, learning_rate, resolved.seed)
    folder = demo_folder(By.manufacturer, resolved) if source == DEMO else Path(source)
    try:
        with progress_bars(left=True) as progress:
            task = progress.add_task("steps", total=None)
            found = train(
                folder, to, resolved, schedule, resume, lambda done, of: progress.update(task, completed=done, total=of)
            )
    except KeyboardInterrupt:
        err.print("interrupted; give the same command with --resume to go on", soft_wrap=True)
        raise
    if json:
        print_json(found)
        return
    lines = [f"{found['texts']:,} texts, {found['steps']:,} steps"]
    for kind in found["settings"]["kinds"]:
        losses = [one["loss"] for one in found["losses"] if one["pairs"] == kind]
        part = max(1, len(losses) // 4)
        if losses:
            first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
            lines.append(f"loss of {kind}: {first:.4f} in the first quarter of its steps, {last:.4f} in the last")
        else:
            lines.append(f"{kind}: too few items have such a pair")
    out.print(stacked(*lines, f"adapter: {to / 'adapter'}"), soft_wrap=True)
