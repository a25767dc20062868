"""`fedrec data`: look at merchants' tables, and make federation folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.cli.terminal import TrustName, out, print_json, table
from fedrec.errors import InputError

if TYPE_CHECKING:
    from fedrec.data import CentralData, Histories, LeftOut

__all__ = ["app"]

app = typer.Typer(help="Check data, and turn a tidy pair of tables into a federation folder.", no_args_is_help=True)

KINDS = 12
"""Kinds of events that a line names."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse the first row that would be left out as faulty.")]


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A merchant folder or a federation folder.")],
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Read and validate everything in a folder; a fault, and what is left out, is named by file or query, column and row."""
    from fedrec.cli.data_ratings import rating_facts, told
    from fedrec.config import RunConfig
    from fedrec.data import load_central
    from fedrec.data.kinds import PURCHASE
    from simulations.checks import check_federation, check_merchant, merchant_files, nothing_to_learn, would_not_work

    if not path.is_dir():
        raise InputError("no such folder", where=str(path), expected="a merchant folder or a federation folder")
    central: CentralData | None = None
    if (path / "merchants").is_dir():
        settings, merchants = list(merchant_files(path).values()), check_federation(path, strict=strict)
        central = load_central(path)
        left_out, kinds = {"central/": central.left_out}, {"central/": central.kinds}
    else:
        one, data = check_merchant(path, strict=strict)
        settings, merchants, left_out, kinds = [one], {one.name: data}, {}, {}
    left_out = {name: data.left_out for name, data in merchants.items()} | left_out
    kinds = {name: data.kinds for name, data in merchants.items()} | kinds
    policies = {one.name: one.privacy for one in settings}
    notes = [f"with a run's default settings {note}" for note in would_not_work(policies, RunConfig())]
    notes += [f"merchant {name}: {why}" for name, data in merchants.items() if (why := nothing_to_learn(data.histories))]
    rows = [
        {
            "merchant": name,
            "users": len(data.histories),
            "events": len(data.histories.items),
            "items": len(data.catalogue),
            "left_out": sum(one.rows for one in data.left_out),
        }
        for name, data in merchants.items()
    ]
    shown = {name: facts for name, data in merchants.items() if (facts := _impressions([data.histories]))}
    if central is not None and (facts := _impressions([group.histories for group in central.groups])):
        shown["central/"] = facts
    rated = {name: facts for name, data in merchants.items() if (facts := rating_facts([data.histories]))}
    if central is not None and (facts := rating_facts([group.histories for group in central.groups])):
        rated["central/"] = facts
    if json:
        reasons = [{"of": name, **asdict(one)} for name, found in left_out.items() for one in found]
        print_json(
            {
                "path": str(path), "ok": True, "merchants": rows, "kinds": {name: dict(one) for name, one in kinds.items()},
                "no_targets": {name: dict(data.no_targets) for name, data in merchants.items() if data.no_targets},
                "searches": {name: asdict(data.searches) for name, data in merchants.items() if data.searches.events},
                "impressions": shown, "ratings": rated, "left_out": reasons, "notes": notes,
            }
        )  # fmt: skip
        return
    fault = any(one.fault for found in left_out.values() for one in found)
    title = f"{path}: some rows cannot be used" if fault else f"{path}: no fault found"
    out.print(table(title, list(rows[0]), [list(row.values()) for row in rows]))
    for name, counts in kinds.items():
        if counts.keys() - {PURCHASE}:
            said = [f"{rows:,} {kind}" for kind, rows in counts.items()]
            out.print(f"{name}: kinds of events: {_some(said)}", soft_wrap=True)
        if name in merchants and (alone := merchants[name].no_targets):
            said = [f"{rows:,} {kind}" for kind, rows in alone.items()]
            out.print(f"{name}: history that is no target: {_some(said)}", soft_wrap=True)
        if name in merchants and (found := merchants[name].searches).events:
            out.print(
                f"{name}: {found.events:,} searches by {found.users:,} users, {found.distinct:,} different ones, "
                f"the longest of {found.longest:,} characters", soft_wrap=True,
            )  # fmt: skip
    for name, facts in shown.items():
        figures = f"{name}: {facts['impressions']:,} impressions, {facts['share']:.2%} with a response"
        more = f"{facts['used']:,} after a first basket; {facts['users_without']:,} users were shown nothing"
        out.print(f"{figures}, {more}", soft_wrap=True)
    for name, facts in rated.items():
        out.print(f"{name}: {told(facts)}", soft_wrap=True)
    _print_left_out(left_out)
    for note in notes:
        out.print(note, style="yellow", soft_wrap=True)
    out.print("users and events here are the merchant's own figures; they are not sent to anyone", style="dim")


@app.command()
def split(
    source: Annotated[Path, typer.Argument(help="Folder with `events` (with a merchant column) and `items`.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Federation folder to make.")],
    holdout: Annotated[float, typer.Option(help="Share of each merchant's users who go to central/.")] = 0.2,
    epsilon: Annotated[float, typer.Option(help="Budget in every merchant's policy.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta in every merchant's policy.")] = 1e-5,
    trust: Annotated[TrustName, typer.Option(help="Weakest trust model that every merchant's policy accepts.")] = TrustName.local,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Turn `events` + `items` into merchants and held-out central users."""
    from fedrec.cli.data_ratings import ratings_in, told
    from fedrec.config import RunConfig
    from fedrec.data.split import split_source

    left_out: list[LeftOut] = []
    policy: dict[str, object] = {"epsilon": epsilon, "delta": delta, "trust": trust.value}
    summary = split_source(source, target, holdout, policy, strict=strict, tell=left_out.append)
    if json:
        reasons = [{"of": "source", **asdict(one)} for one in left_out]
        found = {"path": str(target), "merchants": summary.to_dict(orient="records"), "left_out": reasons}
        print_json({**found, "ratings": ratings_in(target)})
        return
    out.print(table(f"{target}", list(summary.columns), summary.to_numpy().tolist()))
    _print_left_out({str(source): left_out})
    if facts := ratings_in(target):
        out.print(told(facts), soft_wrap=True)
    default = RunConfig()
    asked = [("epsilon", epsilon, default.epsilon), ("delta", delta, default.delta), ("trust", trust.value, default.trust)]
    run = f"fedrec simulate {target}" + "".join(f" --set {name}={value}" for name, value, usual in asked if value != usual)
    out.print(f"next: {run}", style="dim", soft_wrap=True)


@app.command("import")
def import_events(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet with user_id, item_id and timestamp.")],
    to: Annotated[Path, typer.Option("--to", help="The merchant's folder.")],
    json: Json = False,
) -> None:
    """Append what customers did to a merchant's own events; a row that was imported before is left out."""
    from fedrec.data.feedback import FeedbackLog
    from fedrec.data.importing import events_of
    from fedrec.data.tables import read_table
    from fedrec.merchant import MERCHANT_FILE, read_merchant_file

    read_merchant_file(to / MERCHANT_FILE)
    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"found {file.name}", where="FILE", expected="a .csv or .parquet table")
    events = events_of(read_table(file))
    try:
        found = FeedbackLog(to).append(events)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(error.filename or to)) from None
    if json:
        print_json({"file": str(file), "to": str(to), "stored": found.stored, "repeated": found.repeated})
        return
    out.print(f"{to}: {found.stored:,} events are new; {found.repeated:,} were there", soft_wrap=True)
    if found.stored:
        out.print(f"they count from now on; next: fedrec merchant fit {to}", style="dim", soft_wrap=True)


def _impressions(parts: Sequence[Histories]) -> dict[str, int | float] | None:
    """What users were shown, in figures; None where nothing is known of it."""
    shown = [one.shown for one in parts if one.shown is not None]
    total = sum(map(len, shown))
    if not total:
        return None
    return {
        "impressions": total,
        "share": sum(int(one.answer.sum()) for one in shown) / total,
        "used": sum(int((one.before > 0).sum()) for one in shown),
        "users_without": sum(len(one) for one in parts) - sum(int((one.offsets[1:] > one.offsets[:-1]).sum()) for one in shown),
    }


def _some(kinds: list[str]) -> str:
    return ", ".join(kinds[:KINDS]) + (f" and {len(kinds) - KINDS:,} kinds more" if len(kinds) > KINDS else "")


def _print_left_out(left_out: Mapping[str, Iterable[LeftOut]]) -> None:
    for name, found in left_out.items():
        for one in found:
            out.print(f"{name}: {one}", soft_wrap=True)
