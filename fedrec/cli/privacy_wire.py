"""`fedrec privacy wire`: what every merchant sent, value by value."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrec.cli.terminal import out, print_json, table
from fedrec.errors import InputError

__all__ = ["wire"]


def wire(
    run: Annotated[Path, typer.Argument(help="A run folder that was made with --record-wire, or a deployed merchant's folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print every record as JSON.")] = False,
) -> None:
    """Print what was sent: names, types, shapes, hashes, and the statements in full."""
    records = _read(run)
    if json:
        print_json(records)
        return
    kinds: dict[tuple[str, ...], list[int]] = {}
    for name, lines in records.items():
        for line in lines:
            for value in line["values"]:
                shape = "x".join(map(str, value["shape"])) or "-"
                kinds.setdefault((line["type"], value["record"], value["name"], value["dtype"], shape), []).append(len(name))
    rows = [[*kind, f"{len(seen):,}"] for kind, seen in sorted(kinds.items())]
    out.print(table(f"{run}: everything that was sent", ["message", "record", "name", "type", "shape", "times"], rows))
    total = sum(line["bytes"] for lines in records.values() for line in lines)
    out.print(f"{sum(map(len, records.values())):,} messages of {len(records)} merchants, {total:,} bytes", style="dim")


def _read(run: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted(path for where in ("", "state/") for path in run.glob(f"{where}privacy/wire/*.jsonl"))
    if not files:
        raise InputError("there is no record of messages", where=str(run), hint="a simulation makes one with --record-wire")
    out: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                out.setdefault(path.stem, []).append(json_module.loads(line))
            except ValueError:
                raise InputError("is not a JSON record", where=f"{path}, line {number}") from None
    return out
