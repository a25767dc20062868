"""`fedrec merchant model`: the adapters that came home, and which of them ranks, or predicts responses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.terminal import out, print_json, quiet_models, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.model.versions import Versions

__all__ = ["app"]

app = typer.Typer(
    help="The adapters that the server delivered, and which of them ranks, or predicts responses.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="The merchant's folder; of a simulation RUN/models/<merchant>.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SHOWN = (
    "run", "round", "objective", "arrived", "trust", "unit", "encoder_fingerprint", "encoder_layers", "encoder_rank",
    "max_tokens", "history", "scoring", "negative_share", "floor", "digest",
)  # fmt: skip
"""What `model show` says of a version, in this order."""


@app.command("list")
def list_command(folder: Folder, json: Json = False) -> None:
    """List the versions that are here, the newest first."""
    ranking, *others = _versions(folder)
    current = ranking.current
    found = [_summary(ranking, name, current) for name in reversed(ranking.names())]
    for versions in others:
        found += [_summary(versions, name, versions.current) for name in reversed(versions.names())]
    if json:
        known = {versions.objective: {"current": versions.current, "arrived": versions.arrived()} for versions in others}
        print_json({"current": current, "arrived": ranking.arrived(), "versions": found, "others": known})
        return
    if not found:
        out.print("no adapter has arrived yet; one comes when a run has ended and the node is up", soft_wrap=True)
        return
    rows = [
        [
            one["version"], one["objective"], "yes" if one["current"] else "",
            one.get("arrived", "?"), one.get("run", "?"), one.get("round", "?"),
            one.get("trust", "?"), one.get("damaged") or ("yes" if one["verdict"] is not None else "not yet"),
        ]
        for one in found
    ]  # fmt: skip
    out.print(table(str(folder), ["version", "objective", "current", "arrived (UTC)", "run", "round", "trust", "compared"], rows))
    if current is None:
        out.print("The untrained text ranks, with nothing of what was delivered.")


@app.command()
def use(
    folder: Folder,
    version: Annotated[str, typer.Argument(help="A version of `model list`, or `untrained` for the text as it was before.")],
    json: Json = False,
) -> None:
    """Have a version rank, predict responses or complete baskets from now on. The next of its kind is compared with it."""
    from fedrec.model.versions import RANKS, UNTRAINED

    versions = _holding(_versions(folder), version)
    before = _current(versions)
    versions.use(None if version == UNTRAINED else version)
    if json:
        print_json({"current": versions.current, "before": before})
        return
    does = {RANKS: "ranks", "response": "predicts responses"}.get(versions.objective, "completes baskets")
    nothing = UNTRAINED if versions.objective == RANKS else "nothing"
    out.print(f"{version} {does} now, before it {before or nothing}", soft_wrap=True)


@app.command()
def show(
    folder: Folder,
    version: Annotated[
        str | None,
        typer.Argument(help="A version of `model list`; by default the current one, else the newest.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a version is, whether it is whole, and what its comparison on this merchant's own users found."""
    everything = _versions(folder)
    versions = everything[0] if version is None else _holding(everything, version)
    if version is None and versions.newest is None:
        versions = next((one for one in everything if one.newest is not None), versions)
    current = _current(versions)
    name = version or current or versions.newest
    if name is None:
        raise InputError("no adapter has arrived yet", where=str(folder), hint="one comes when a run has ended")
    arrays, settings = versions.read(name)
    found: dict[str, Any] = {"version": name, "current": name == current}
    found |= {key: settings[key] for key in SHOWN if key in settings}
    found |= {"numbers": sum(value.size for value in arrays.values()), "bytes": sum(value.nbytes for value in arrays.values())}
    found["encoder"] = _encoder(folder, settings)
    found["verdict"] = versions.verdict(name)
    if json:
        print_json(found)
        return
    for key, value in found.items():
        shown = ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else value
        out.print(f"{key.replace('_', ' '):<20} {'not compared yet' if value is None else shown}", soft_wrap=True)


def _versions(folder: Path) -> list[Versions]:
    """Those that rank, and those of the other objectives."""
    quiet_models()
    from fedrec.deploy.layout import MerchantFolder
    from fedrec.model.versions import Versions

    merchant = MerchantFolder(folder.resolve())
    if merchant.settings_file.is_file():
        return Versions.of_each_objective(merchant.model)
    found = Versions.of_each_objective(folder)
    if not any(versions.names() for versions in found):
        raise InputError(
            "is no merchant's folder", where=str(folder), expected="one with merchant.toml, or a run's models/<merchant>"
        )
    return found


def _holding(everything: list[Versions], version: str) -> Versions:
    """Those among which a version is; where it is nowhere, those that rank."""
    return next((versions for versions in everything if version in versions.names()), everything[0])


def _encoder(folder: Path, settings: dict[str, Any]) -> str:
    """Whether the merchant's encoder is the one that the version was trained with."""
    from fedrec.deploy.layout import MerchantFolder
    from fedrec.model.encoder_files import absolute_encoder
    from fedrec.model.versions import misfit

    merchant = MerchantFolder(folder.resolve())
    if not merchant.settings_file.is_file():
        return "not known here"
    model = merchant.settings.model
    held = absolute_encoder(model.encoder, merchant.path)
    return misfit(settings, held, model.device, model.texts_per_batch) or "the one here"


def _current(versions: Versions) -> str | None:
    """The current version, or None where that is the untrained text or cannot be told."""
    try:
        return versions.current
    except InputError:
        return None


def _summary(versions: Versions, name: str, current: str | None) -> dict[str, Any]:
    about = {"version": name, "objective": versions.objective, "current": name == current}
    try:
        settings = versions.settings(name)
    except InputError as error:
        return {**about, "verdict": None, "damaged": error.found}
    known = {key: settings.get(key) for key in ("arrived", "run", "round", "trust", "unit", "digest")}
    return {**about, **known, "verdict": versions.verdict(name)}
