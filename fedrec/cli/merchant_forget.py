"""`fedrec merchant forget`: take a person out of a merchant's folder, and say what stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.cli.console import Console, progress_bars
from fedrec.cli.merchant_own import another_fit, not_written
from fedrec.cli.terminal import err, out, print_json, quiet_models
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.recommender.forgetting import Layer, Traces

__all__ = ["forget"]

LAYER = {
    "none": "own layer: there is none",
    "unchanged": "own layer: it was made from what is there now",
    "fitted": "own layer: fitted anew on what is left",
    "removed": "own layer: removed, since it cannot be fitted anew",
    "not renewed": "own layer: NOT RENEWED, so it may still know this person. Mend what is said below, then run this again",
}


BANDIT = {
    "none": None,
    "fitted": "what lists that explored taught: learned anew from those that are left",
    "removed": "what lists that explored taught: removed",
}


def forget(
    folder: Annotated[Path, typer.Argument(help="The merchant's folder, with merchant.toml.")],
    user: Annotated[str, typer.Argument(help="The person's user_id, as it is in the events.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove a person from events and feedback, and fit the own layer as if they had never been there."""
    if not yes and not sys.stdin.isatty():
        raise InputError("there is nobody to ask", where="forget", hint="--yes removes without asking")
    from fedrec.deploy.layout import MerchantFolder

    merchant = MerchantFolder(folder.resolve())
    if merchant.state.is_dir():
        os.environ.setdefault("FEDREC_CACHE", str(merchant.cache))
    quiet_models()
    from fedrec.recommender.forgetting import (
        Layer,
        check_gone,
        erase,
        find_traces,
        may_have_layer,
        renew_bandit,
        renew_layer,
    )
    from fedrec.recommender.merchant_text import MerchantPlace

    place = MerchantPlace(merchant.path)
    traces = find_traces(place, user)
    files = {str(path): rows for path, rows in traces.files.items()}
    if not json or not yes:
        _say_found(files, traces.in_database, err if json else out)
    if files and not yes and not typer.confirm("Remove these rows? There is no way back", err=json):
        raise typer.Abort
    files = {str(path): rows for path, rows in erase(traces, user).items()}
    layer, bandit, fault = Layer("none"), Layer("none"), None
    try:
        if may_have_layer(place):
            # A fit that read the person before may write a layer that knows them until it ends.
            with place.fitting(another_fit), progress_bars(left=True) as progress:
                task = progress.add_task("own layers", total=None)
                try:
                    layer = renew_layer(place, bool(files), lambda done, of: progress.update(task, completed=done, total=of))
                finally:
                    bandit = renew_bandit(place)
    except (InputError, OSError) as error:
        fault = error if isinstance(error, InputError) else not_written(error, place.own)
        layer = Layer("not renewed", str(fault))
    _say_done(traces, files, layer, bandit, json)
    if fault is not None:
        raise fault
    check_gone(traces, user)


def _say_done(traces: Traces, files: dict[str, int], layer: Layer, bandit: Layer, json: bool) -> None:
    from fedrec.recommender.forgetting import STAYS

    if json:
        print_json({
            "found": traces.found or bool(files), "removed": files, "in_database": traces.in_database,
            "own_layer": layer.state, "why": layer.why, "bandit": bandit.state, "stays": list(STAYS),
        })  # fmt: skip
        return
    if files:
        out.print("removed", style="bold")
    out.print(LAYER[layer.state], soft_wrap=True)
    if said := BANDIT[bandit.state]:
        out.print(said, soft_wrap=True)
    if layer.why and layer.state != "not renewed":
        out.print(layer.why, style="yellow", soft_wrap=True)
    if traces.in_database:
        out.print(
            f"NOT REMOVED: the database still holds {traces.in_database:,} rows of this person. Delete them there, then run this "
            "again, so that the own layer forgets them too", style="bold yellow", soft_wrap=True,
        )  # fmt: skip
    if files or traces.found:
        out.print("What stays:")
        for what in STAYS:
            out.print(f"  {what}", soft_wrap=True)


def _say_found(files: dict[str, int], in_database: int | None, to: Console) -> None:
    for path, rows in files.items():
        to.print(f"{rows:,} rows in {path}", soft_wrap=True)
    if in_database is not None:
        to.print(f"{in_database:,} rows in the database, from which nothing is deleted", soft_wrap=True)
    if not files and not in_database:
        to.print("nothing was found of this person", soft_wrap=True)
