"""`fedrec deploy`: the folders, certificates and keys of a federation on real machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.console import waiting_for
from fedrec.cli.server import flower_environment, show_status, status_of
from fedrec.cli.terminal import out, print_json, quiet_libraries, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.deploy.layout import Deployment

__all__ = ["app"]

app = typer.Typer(help="Set up a federation on real machines, with TLS and a key for every merchant.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder that `fedrec deploy init` made.")]
Days = Annotated[int | None, typer.Option(min=1, help="Days that the server's certificate holds.", show_default="397")]


@app.command()
def init(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    server: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="What merchants will connect to; an IPv6 host in brackets.")],
    merchants: Annotated[str | None, typer.Option(metavar="NAME,NAME...", help="The merchants' names.")] = None,
    federation: Annotated[
        Path | None, typer.Option("--from", metavar="FEDERATION", help="Take merchants, policies and central users from here.")
    ] = None,
    days: Days = None,
    json: Json = False,
) -> None:
    """Make an authority, a folder for the server and a folder for each merchant."""
    from fedrec.deploy.certificates import DAYS, key_fingerprint, server_identity
    from fedrec.deploy.create import create

    names = None if merchants is None else [name.strip() for name in merchants.split(",")]
    made = create(target, server, names, federation, days or DAYS)
    keys = {name: key_fingerprint(line) for name, line in made.server.public_keys().items()}
    address = made.server.settings.address
    if json:
        members = [{"name": name, "path": str(made.merchant(name).path), "key": key} for name, key in keys.items()]
        print_json(
            {
                "path": str(made.path),
                "address": address,
                "server": {"path": str(made.server.path), "certificate": _identity(made.server.certificate)},
                "merchants": members,
            }
        )
        return
    until = server_identity(made.server.certificate).not_after
    out.print(table(f"{made.path}: {address}", ["merchant", "key"], list(keys.items())))
    _say(f"{made.authority.path} signs the server's certificates: keep it off the server")
    _say(f"{made.server.path} goes to the server's machine; its certificate holds until {until:%Y-%m-%d}")
    _say(f"{made.path / 'merchants'}/<name> goes to that merchant and to nobody else; delete it here afterwards")
    if federation is None:
        _say("every merchant sets its population in merchant.toml and puts its tables into data/")


@app.command()
def rotate(
    target: Folder,
    server: Annotated[bool, typer.Option("--server", help="A new server key and certificate (the default).")] = False,
    merchant: Annotated[str | None, typer.Option(metavar="NAME", help="A new key pair for this merchant.")] = None,
    authority: Annotated[bool, typer.Option("--authority", help="A new authority, and all that it signs.")] = False,
    server_host: Annotated[str | None, typer.Option(metavar="HOST", help="A new host for the server.")] = None,
    days: Days = None,
    json: Json = False,
) -> None:
    """Replace keys and certificates. A stolen server key needs --authority: its old certificate holds until its end."""
    from fedrec.deploy.certificates import DAYS
    from fedrec.deploy.create import rotate_authority, rotate_merchant, rotate_server
    from fedrec.deploy.layout import Deployment

    if server + authority + (merchant is not None) > 1:
        raise InputError("more than one is given", where="rotate", expected="one of --server, --merchant, --authority")
    if merchant is not None and (server_host is not None or days is not None):
        raise InputError("--server-host and --days are about the server's certificate", where="--merchant")
    deployment = Deployment.open(target)
    if merchant is not None:
        change = rotate_merchant(deployment, merchant)
    else:
        change = (rotate_authority if authority else rotate_server)(deployment, server_host, days or DAYS)
    if json:
        facts: dict[str, Any] = asdict(change)
        facts["replaced"] = [str(path) for path in change.replaced]
        facts["hand_over"] = {who: [str(path) for path in paths] for who, paths in change.hand_over.items()}
        print_json({"path": str(deployment.path), **facts, "certificate": _identity(deployment.server.certificate)})
        return
    _say(f"new: {', '.join(str(path.relative_to(deployment.path)) for path in change.replaced)}")
    for who, paths in change.hand_over.items():
        _say(f"{who} must get {', '.join(str(path.relative_to(deployment.path)) for path in paths)}")
    for note in change.notes:
        _say(note)
    _say(f"then restart: {', '.join(change.restart)}")


@app.command()
def revoke(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A deployment, or only its server folder.")],
    name: Annotated[str, typer.Argument(help="The merchant that may take part no more.")],
    json: Json = False,
) -> None:
    """Take a merchant's key off the server; a running server turns the merchant away by itself."""
    from fedrec.deploy.create import revoke as revoke_key

    kept = revoke_key(target, name)
    note = (
        f"secure aggregation: {name} counts as a drop-out until every merchant has taken its line out of roster.txt; "
        "all must hold the same roster (`fedrec merchant roster`)"
    )
    if json:
        print_json({"merchant": name, "moved_to": str(kept), "notes": [note]})
        return
    _say(f"{name} may take part no more; its public key is kept as {kept}")
    _say(note)


@app.command()
def up(
    target: Folder,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all merchants are connected.")] = 300.0,
    json: Json = False,
) -> None:
    """Start the server and every merchant that is here, on this machine, in the background."""
    from fedrec.deploy import processes
    from fedrec.deploy.layout import Deployment

    deployment = Deployment.open(target)
    server = deployment.server
    _server_environment(deployment)
    program = [sys.executable, "-m", "fedrec.cli.main"]
    if processes.running(server.pid) is None:
        processes.start([*program, "server", "up", str(server.path)], server.log, server.pid)
    waiting = time.monotonic() + timeout
    with waiting_for("starting the server") as show:
        _until(lambda: _found(deployment)["up"], waiting, {"the server": (server.pid, server.log)})
        nodes = {}
        for merchant in deployment.merchants():
            name = merchant.settings.name
            if processes.running(merchant.pid) is None:
                processes.start([*program, "merchant", "up", str(merchant.path)], merchant.log, merchant.pid)
            nodes[name] = (merchant.pid, merchant.log)

        def missing() -> list[str]:
            connected = {one["merchant"] for one in _found(deployment)["merchants"] if one["online"]}
            left = sorted(nodes.keys() - connected)
            show(f"waiting for {', '.join(left)}" if left else "all are connected")
            return left

        _until(lambda: not missing(), waiting, nodes)
    if json:
        print_json(_found(deployment))
        return
    _say(f"the server and {len(nodes)} merchants are up; logs are in {server.state} and merchants/<name>/state")
    _say(f"next: fedrec server run {server.path}, then fedrec deploy down {deployment.path}")


@app.command()
def down(target: Folder, json: Json = False) -> None:
    """Stop what `fedrec deploy up` started, and nothing else."""
    from fedrec.deploy import processes
    from fedrec.deploy.layout import Deployment

    deployment = Deployment.open(target)
    files = {merchant.path.name: merchant.pid for merchant in deployment.merchants()} | {"server": deployment.server.pid}
    stopped = [name for name, pid in files.items() if processes.stop(pid)]
    if json:
        print_json({"stopped": stopped})
        return
    _say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(target: Folder, json: Json = False) -> None:
    """What runs here, who is connected, the last run. Exit status 1 when the server is down."""
    from fedrec.deploy import processes
    from fedrec.deploy.layout import Deployment

    deployment = Deployment.open(target)
    _server_environment(deployment)
    found = _found(deployment)
    here = {merchant.path.name: processes.running(merchant.pid) for merchant in deployment.merchants()}
    found["processes"] = {name: process.pid for name, process in here.items() if process is not None}
    if json:
        print_json(found)
    else:
        show_status(found)
        _say(f"merchants' processes on this machine: {', '.join(found['processes']) or 'none'}")
    if not found["up"]:
        raise typer.Exit(1)


def _server_environment(deployment: Deployment) -> None:
    flower_environment(deployment.server.state)
    quiet_libraries()


def _found(deployment: Deployment) -> dict[str, Any]:
    return status_of(deployment.server)


def _until(reached: Callable[[], bool], deadline: float, processes_of: dict[str, tuple[Path, Path]]) -> None:
    """Wait for `reached`; a process that ends meanwhile ends the waiting with what it wrote last."""
    from fedrec.deploy import processes

    while not reached():
        for name, (pid, log) in processes_of.items():
            if processes.running(pid) is None:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise InputError(f"{name} did not start: {''.join(last)}", where=str(log))
        if time.monotonic() > deadline:
            raise InputError("not everybody is connected in time", where=str(next(iter(processes_of.values()))[1]))
        time.sleep(0.5)


def _identity(certificate: Path) -> dict[str, Any]:
    from fedrec.deploy.certificates import server_identity

    identity = server_identity(certificate)
    return {**identity._asdict(), "not_after": identity.not_after.isoformat()}


def _say(text: str) -> None:
    out.print(text, soft_wrap=True)
