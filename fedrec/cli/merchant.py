"""`fedrec merchant`: a merchant's own process, beside its own data."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli import merchant_bundles, merchant_drift, merchant_forget, merchant_model, merchant_own
from fedrec.cli.server import flower_environment
from fedrec.cli.terminal import out, print_json, quiet_libraries, table

__all__ = ["app"]

app = typer.Typer(help="Run a merchant's node, and look at what it trusts.", no_args_is_help=True)
app.add_typer(merchant_model.app, name="model")
app.command()(merchant_own.fit)
app.command()(merchant_own.evaluate)
app.command()(merchant_drift.drift)
app.command()(merchant_bundles.bundles)
app.command()(merchant_forget.forget)


@app.command()
def up(
    folder: Annotated[Path, typer.Argument(help="The merchant's folder, with merchant.toml and tls/.")],
    check: Annotated[bool, typer.Option("--check", help="Only look whether everything is in order.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check policy, key, roster, disk, data, ledger, model and server, then connect and answer until stopped."""
    from fedrec.deploy.layout import MerchantFolder

    merchant = MerchantFolder.open(folder)
    flower_environment(merchant.state)
    os.environ["FEDREC_CACHE"] = str(merchant.cache)
    quiet_libraries()
    from clients.preflight import checks

    found = {}
    for what, finding in checks(merchant):
        found[what] = finding
        if not json:
            out.print(f"{what:<7} {finding}", soft_wrap=True)
    if json:
        print_json({"merchant": merchant.settings.name, **found})
    if check:
        return
    sys.stdout.flush()
    # In place of this process, which has read data and model: the node itself needs neither.
    os.execv(
        sys.executable,
        [
            sys.executable, "-m", "clients.node",
            str(merchant.path), str(merchant.state), merchant.server, str(merchant.ca), str(merchant.key),
        ],
    )  # fmt: skip


@app.command()
def roster(
    folder: Annotated[Path, typer.Argument(help="The merchant's folder, with merchant.toml, tls/ and roster.txt.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whom this merchant knows by which key, for secure aggregation, to compare with the other merchants."""
    from fedrec.deploy.certificates import key_fingerprint
    from fedrec.deploy.layout import MerchantFolder
    from fedrec.deploy.roster import own_roster

    merchant = MerchantFolder.open(folder)
    held = own_roster(merchant)
    keys = {name: key_fingerprint(held.keys[name].encode()) for name in sorted(held.keys)}
    if json:
        members = [{"name": name, "key": key} for name, key in keys.items()]
        print_json({"merchant": merchant.settings.name, "path": str(merchant.roster), "digest": held.digest, "members": members})
        return
    out.print(table(f"{merchant.roster}", ["merchant", "key"], list(keys.items())))
    out.print(f"digest {held.digest}", soft_wrap=True)
    out.print("All merchants must hold this roster. Compare the digest with theirs, not with the server's.")


@app.command()
def ledger(
    folder: Annotated[Path, typer.Argument(help="The merchant's folder, with merchant.toml.")],
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss", help="Go on although lines are lost: the most that anything left proves counts, or the whole budget."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the ledger says was spent, and whether its head agrees. Exit status 2 if the ledger is refused."""
    from clients.losses import accept, counted, open_ledger, records, refusal
    from clients.site import deployed_site
    from fedrec.deploy.layout import MerchantFolder

    merchant = MerchantFolder(folder.resolve())
    name, policy = merchant.settings.name, merchant.settings.privacy
    site = deployed_site(merchant)
    held = open_ledger(site, name, policy.delta)
    aside = accept(held, site, name) if accept_loss else None
    lost = refusal(held, site, name)
    found: dict[str, object] = {"merchant": name, "ledger": str(held.path), "head": str(held.head_path)}
    releases = held.intact()[0] if lost else held.releases()
    found |= {"lines": len(releases), "budget": policy.epsilon, "delta": policy.delta}
    if lost:
        left = records(held, site, name)
        found |= {"state": f"refused: {lost}", "left": [record.what for record in left]}
        found["accept_loss"] = "counts the whole budget" if counted(left) is None else "counts the most that what is left proves"
    else:
        found |= {"state": held.standing(), "epsilon": held.spent().value}
        found["accepted"] = list(dict.fromkeys(release.accepted for release in releases if release.accepted))
    if aside:
        found["set_aside"] = str(aside)
    if json:
        print_json(found)
    else:
        for key, value in found.items():
            for text in value if isinstance(value, list) else [value]:
                out.print(f"{key.replace('_', ' '):<11} {text}", soft_wrap=True)
    if lost:
        raise lost
