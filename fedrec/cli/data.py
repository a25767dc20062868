"""`fedrec data`: look at merchants' tables, and make federation folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrec.cli.terminal import TrustName, out, print_json, table
from fedrec.errors import InputError

__all__ = ["app"]

app = typer.Typer(help="Check data, and turn a tidy pair of tables into a federation folder.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(path: Annotated[Path, typer.Argument(help="A merchant folder or a federation folder.")], json: Json = False) -> None:
    """Read and validate everything in a folder; the first fault is named by file or query, column and row."""
    from fedrec.config import RunConfig
    from simulations.checks import check_federation, check_merchant, merchant_files, would_not_work

    if not path.is_dir():
        raise InputError("no such folder", where=str(path), expected="a merchant folder or a federation folder")
    if (path / "merchants").is_dir():
        settings, merchants = list(merchant_files(path).values()), check_federation(path)
    else:
        one, data = check_merchant(path)
        settings, merchants = [one], {one.name: data}
    notes = would_not_work({one.name: one.privacy for one in settings}, RunConfig())
    rows = [
        {"merchant": name, "users": len(data.histories), "events": len(data.histories.items), "items": len(data.catalogue)}
        for name, data in merchants.items()
    ]
    if json:
        print_json({"path": str(path), "ok": True, "merchants": rows, "notes": notes})
        return
    out.print(table(f"{path}: no fault found", list(rows[0]), [list(row.values()) for row in rows]))
    for note in notes:
        out.print(f"with a run's default settings {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print("users and events here are the merchant's own figures; they are not sent to anyone", style="dim")


@app.command()
def split(
    source: Annotated[Path, typer.Argument(help="Folder with `events` (with a merchant column) and `items`.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Federation folder to make.")],
    holdout: Annotated[float, typer.Option(help="Share of each merchant's users who go to central/.")] = 0.2,
    epsilon: Annotated[float, typer.Option(help="Budget in every merchant's policy.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta in every merchant's policy.")] = 1e-5,
    trust: Annotated[TrustName, typer.Option(help="Weakest trust model that every merchant's policy accepts.")] = TrustName.local,
    json: Json = False,
) -> None:
    """Turn `events` + `items` into merchants and held-out central users."""
    from fedrec.config import RunConfig
    from fedrec.data.split import split_source

    summary = split_source(source, target, holdout, {"epsilon": epsilon, "delta": delta, "trust": trust.value})
    if json:
        print_json({"path": str(target), "merchants": summary.to_dict(orient="records")})
        return
    out.print(table(f"{target}", list(summary.columns), summary.to_numpy().tolist()))
    default = RunConfig()
    asked = [("epsilon", epsilon, default.epsilon), ("delta", delta, default.delta), ("trust", trust.value, default.trust)]
    run = f"fedrec simulate {target}" + "".join(f" --set {name}={value}" for name, value, usual in asked if value != usual)
    out.print(f"next: {run}", style="dim", highlight=False, soft_wrap=True)
