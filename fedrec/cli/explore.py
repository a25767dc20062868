"""`fedrec explore`: learn from what was tried out, and what that was worth."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.cli.asking import Json
from fedrec.cli.merchant_own import Folder, another_fit, not_written, opened, say_learned
from fedrec.cli.terminal import out, print_json, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.explore.evaluating import Evaluation
    from fedrec.explore.log import LogTable

__all__ = ["app"]

NO_CHANCE = "the same lists without chance"
COMPARED = (
    "without chance these lists go by what was learned when they were shown; a list without `explore` does not, so where "
    "something had been learned this is not what it would have earned"
)

app = typer.Typer(help="Learn from what was tried out, and judge it.", no_args_is_help=True)


@app.callback()
def explore() -> None:
    """Learn from what was tried out, and judge it, from a log of what was shown."""


@app.command()
def learn(folder: Folder, json: Json = False) -> None:
    """Learn from the lists that explored in a merchant's folder under what ranks now, and the feedback to them.

    Lists that explore go by it.
    """
    place = opened(folder)
    from fedrec.recommender.learning import learn_bandit

    with place.fitting(another_fit):
        try:
            found = learn_bandit(place)
        except OSError as error:
            raise not_written(error, place.path) from None
    if json:
        print_json({"version": found.version, **found.facts})
    else:
        say_learned(found)


@app.command()
def evaluate(
    log: Annotated[
        Path,
        typer.Argument(metavar="LOG", help="A .csv, .parquet or .jsonl file, or a merchant's folder; see docs/exploration.md."),
    ],
    logged: Annotated[str | None, typer.Option(help="Use only the rows that this policy chose.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The policy to evaluate, where the log has rows of it; else its column `target` counts.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="A column that propensities depend on, such as a campaign; may be given again.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")] = 0.95,
    json: Json = False,
) -> None:
    """Estimate what another policy would have earned: IPS, self-normalised IPS, direct method and doubly robust.

    Of a merchant's folder, what its lists that explored would have earned with no place given by chance. They go by what was
    learned, which lists without `explore` do not.
    """
    from fedrec.explore.evaluating import evaluate

    found = evaluate(_log_of(log), logged, target, by or (), confidence)
    plain = log.is_dir() and target is None
    if plain:
        found = replace(found, notes=(*found.notes, COMPARED))
    if json:
        print_json(asdict(found))
        return
    _show(found, logged or "the log", target or (NO_CHANCE if plain else "column target"), confidence)


def _log_of(path: Path) -> LogTable:
    from fedrec.explore.log import read_log
    from fedrec.merchant import MERCHANT_FILE

    if not path.is_dir():
        return read_log(path)
    if not (path / MERCHANT_FILE).is_file():
        raise InputError(f"there is no {MERCHANT_FILE}", where=str(path), expected="a merchant's folder, or a log")
    from fedrec.recommender.impressions import read_shown

    return read_shown(path)


def _show(found: Evaluation, logged: str, target: str, confidence: float) -> None:
    title = f"Mean reward of a place under {target}, from {found.rows:,} places shown by {logged}"
    columns = ["estimate", "mean reward", f"{confidence:.0%} interval"]
    lines = [(one.name, one) for one in found.estimates]
    if found.on_policy is not None:
        lines.append((f"{target} itself", found.on_policy))
    lines.append((logged, found.logged))
    out.print(table(title, columns, [[name, f"{one.value:.5f}", f"{one.low:.5f} to {one.high:.5f}"] for name, one in lines]))
    unseen = "" if found.unseen is None else f"; {found.unseen:.2%} of the policy is on what was never shown"
    sizes = f"effective sample size {found.effective:,.0f}, of rewards {found.effective_rewards:,.0f}"
    weights = f"weights: mean {found.mean_weight:.3f}, largest {found.largest_weight:,.1f}"
    out.print(f"{found.requests:,} requests; {sizes}; {weights}{unseen}", style="dim", soft_wrap=True)
    for note in found.notes:
        out.print(note, style="yellow", soft_wrap=True)
