"""`fedrec server`: the SuperLink, runs on it, and who is connected."""

from __future__ import annotations

import json as json_module
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrec.cli.terminal import err, out, print_json, quiet_libraries, round_progress, show_results, table
from fedrec.cli.tracking import Track, tracked
from fedrec.config import load_config, parse_overrides
from fedrec.errors import InputError

__all__ = ["app", "flower_environment", "show_status", "status_of"]

app = typer.Typer(help="Serve merchants, train with those who are connected, see how it goes.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The server folder that `fedrec deploy init` made.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; by default the folder's run.toml.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def flower_environment(state: Path) -> None:
    """Settle what Flower reads from the environment: its state with ours, no calls home, no proxy to this machine."""
    os.environ["FLWR_HOME"] = str(state / "flwr")
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    os.umask(0o077)


@app.command()
def up(folder: Folder) -> None:
    """Serve until stopped: TLS, known keys only, state on disk."""
    from fedrec.deploy.certificates import server_identity
    from fedrec.deploy.layout import ServerFolder

    server = ServerFolder.open(folder)
    flower_environment(server.state)
    from server.superlink import serve

    identity = server_identity(server.certificate)
    settings = server.settings
    out.print(f"address: {settings.address}, listening on {settings.listen} port {settings.port} (TLS)")
    out.print(f"certificate: until {identity.not_after:%Y-%m-%d}, SHA-256 {identity.fingerprint}", soft_wrap=True)
    out.print(f"merchants with a key: {', '.join(server.registered()) or 'none yet'}")
    serve(server)


@app.command("run")
def run_command(
    folder: Folder,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file of settings; by default the folder's run.toml.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
    ] = None,
    target: Annotated[Path | None, typer.Option("--out", help="Run folder to make; by default FOLDER/runs/<date>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, by default the last one.")] = False,
    track: Track = None,
    start_from: Annotated[
        Path | None, typer.Option("--start", help="A run, or another folder with an adapter, to start from instead of untrained.")
    ] = None,
    json: Json = False,
) -> None:
    """Train with the merchants who are connected, and show the progress. Needs a server that is up."""
    from fedrec.deploy.layout import ServerFolder

    server = ServerFolder.open(folder)
    flower_environment(server.state)
    quiet_libraries()
    from fedrec.report.run_report import write_report
    from server.deployed import go_on, start
    from server.results import write_results
    from server.run_folder import RunFolder
    from server.strategy import TooFewMerchants

    if resume and (config or settings or start_from):
        raise InputError("a run keeps its settings and its start", where="--resume", hint="leave --config, --set and --start out")
    path = target or (_last_run(server.runs) if resume else server.runs / datetime.now().strftime("%Y%m%d-%H%M%S"))
    again = f"go on with: fedrec server run {folder} --resume --out {path}"
    try:
        with round_progress(), tracked(track, path, simulation=False):
            if resume:
                run = go_on(server, RunFolder.open(path))
            else:
                default = server.run_settings if server.run_settings.exists() else None
                run = start(server, load_config(config or default, parse_overrides(settings or [])), path, start_from)
            results = write_results(run, server.path, simulation=False)
    except KeyboardInterrupt:
        err.print(f"interrupted; {again}", soft_wrap=True)
        raise
    except TooFewMerchants as reason:
        err.print(f"stopped: {reason}; {again}", soft_wrap=True)
        raise typer.Exit(1) from None
    report = write_report(run.path, run.config, run.metrics(), results)
    if json:
        print_json({"run": str(run.path), **results})
        return
    show_results(run.config, results, run.metrics())
    out.print(f"report: {report}", soft_wrap=True)


@app.command()
def deliver(
    folder: Folder,
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, or its name in FOLDER/runs; by default the last one.", show_default=False)
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Send it to those who have it already, too.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for merchants who are away.")] = 0.0,
    json: Json = False,
) -> None:
    """Send a run's adapter to the merchants who do not have it yet. Exit status 1 where somebody is still without it."""
    from fedrec.deploy.layout import ServerFolder

    server = ServerFolder.open(folder)
    flower_environment(server.state)
    quiet_libraries()
    from server.deployed import deliver as deliver_run
    from server.run_folder import RunFolder

    path = _last_run(server.runs) if run is None else run if run.is_dir() else server.runs / run
    again = f"go on with: fedrec server deliver {folder} {path}"
    try:
        with round_progress():
            found = deliver_run(server, RunFolder.open(path), everybody, wait)
    except KeyboardInterrupt:
        err.print(f"interrupted; {again}", soft_wrap=True)
        raise
    missing = [name for name, one in found.items() if not one["has"]]
    if json:
        print_json({"run": str(path), "merchants": [{"merchant": name, **one} for name, one in found.items()]})
    else:
        rows = [
            [name, "yes" if one["has"] else "no", one["outcome"], one["when"], "yes" if one["connected"] else "no"]
            for name, one in found.items()
        ]
        out.print(table(f"{path}: who has the adapter", ["merchant", "has it", "answer", "when (UTC)", "connected"], rows))
        if missing:
            out.print(f"without it: {', '.join(missing)}; {again}", soft_wrap=True)
    if missing:
        raise typer.Exit(1)


@app.command()
def status(folder: Folder, json: Json = False) -> None:
    """Who is connected, the round, the last metrics. Exit status 1 when the server is down."""
    from fedrec.deploy.layout import ServerFolder

    server = ServerFolder.open(folder)
    flower_environment(server.state)
    quiet_libraries()
    found = status_of(server)
    if json:
        print_json(found)
    else:
        show_status(found)
    if not found["up"]:
        raise typer.Exit(1)


def status_of(server: Any) -> dict[str, Any]:
    """What `fedrec server status --json` prints: the server, its merchants, its last run."""
    from server.control import SuperLink
    from server.run_folder import RunFolder

    found: dict[str, Any] = {"address": server.settings.address, "up": True, "merchants": [], "run": None}
    try:
        found["merchants"] = [vars(node) for node in SuperLink(server).nodes()]
    except InputError as reason:
        found |= {"up": False, "reason": str(reason)}
    try:
        run = RunFolder.open(_last_run(server.runs))
    except InputError:
        return found
    lines = run.metrics()
    found["run"] = {"path": str(run.path), "rounds": run.config.rounds, "round": lines[-1]["round"] if lines else None}
    if lines:
        last = lines[-1]
        found["run"] |= {
            name: last[name] for name in ("took_part", "declined", "refused", "central", "abandoned") if name in last
        }
    for name in ("stopped", "ended_early"):
        if (run.path / f"{name}.json").exists():
            found["run"][name] = json_module.loads((run.path / f"{name}.json").read_text(encoding="utf-8"))["reason"]
    return found


def show_status(found: dict[str, Any]) -> None:
    """`status_of` for a person."""
    if not found["up"]:
        out.print(f"DOWN: {found['reason']}", soft_wrap=True)
    else:
        rows = [[one["merchant"], "yes" if one["online"] else "no", one["last_seen"] or "never"] for one in found["merchants"]]
        out.print(table(f"Merchants at {found['address']}", ["merchant", "connected", "last connected (UTC)"], rows))
    run = found["run"]
    if run is None:
        out.print("no run yet", style="dim")
        return
    out.print(f"run {run['path']}: round {run['round']} of {run['rounds']}", soft_wrap=True)
    for name in ("stopped", "ended_early"):
        if name in run:
            out.print(f"  {name.replace('_', ' ')}: {run[name]}", soft_wrap=True)
    if run["round"] is not None:
        out.print(f"  took part: {', '.join(run['took_part']) or 'nobody'}")
        if "abandoned" in run:
            out.print(f"  nothing was opened: {run['abandoned']}", soft_wrap=True)
        for what in ("declined", "refused"):
            for merchant, reason in run[what].items():
                out.print(f"  {merchant} {what}: {reason}", soft_wrap=True)
        figures = {name: value for name, value in run["central"].items() if not name.endswith(("_low", "_high"))}
        out.print("  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def _last_run(runs: Path) -> Path:
    found = sorted(path.parent for path in runs.glob("*/config.toml"))
    if not found:
        raise InputError("there is no run yet", where=str(runs), hint="start one with `fedrec server run`")
    return found[-1]
