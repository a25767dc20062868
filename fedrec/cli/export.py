"""`fedrec export`: a trained model as files that other programs open."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.cli.asking import Folder, Json
from fedrec.cli.console import progress_bars, stacked
from fedrec.cli.terminal import out, print_json, quiet_models, table
from fedrec.errors import InputError

if TYPE_CHECKING:  # importing an encoder takes seconds
    from fedrec.config import RunConfig
    from fedrec.export.measuring import Users
    from fedrec.export.source import Source

__all__ = ["export"]


def export(
    path: Folder,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    format: Annotated[str, typer.Option("--format", help="hf, a folder for transformers; or onnx.")] = "hf",
    int8: Annotated[bool, typer.Option("--int8", help="Of onnx, also a form with weights in int8.")] = False,
    data: Annotated[Path | None, typer.Option(help="Federation folder whose users measure; by default the run's own.")] = None,
    json: Json = False,
) -> None:
    """Write a trained model for other programs, and measure each form of it against the original on this machine.

    What was delivered to everybody is written: encoder, heads, centre, scoring. A merchant's own layer never is.
    """
    quiet_models()
    from fedrec.config import RunConfig
    from fedrec.export import FORMATS, measure_export, write_figures
    from fedrec.export import export as write
    from fedrec.export.source import Source
    from fedrec.merchant import MERCHANT_FILE

    if format not in FORMATS:
        raise InputError(f"found {format!r}", where="--format", expected=f"one of {', '.join(FORMATS)}")
    source = Source.open(path)
    at_merchant = (path / MERCHANT_FILE).is_file()
    config = RunConfig()
    users = _own_users(path, source, config) if at_merchant else _central_users(path, source, data)
    write(source, to, "onnx" if format == "onnx" else "hf", int8)
    with progress_bars(left=True) as progress:
        task = progress.add_task("measured", total=None)
        found = measure_export(source, to, users, config, lambda done, of: progress.update(task, completed=done, total=of))
    if not at_merchant:  # figures of a merchant's own users are shown to who asks, and kept in nothing that is handed on
        write_figures(found, to)
    print_json(found) if json else out.print(_table(found))


def _central_users(path: Path, source: Source, data: Path | None) -> Users:
    """The run's measured users, or every item as a history where their data are not on this machine."""
    from fedrec.data import load_central
    from fedrec.evaluation import EvaluationSet
    from fedrec.export.measuring import Users
    from fedrec.model.saved import COUNT, read_adapter
    from server.run_folder import RunFolder

    if data is not None and not data.is_dir():
        raise InputError("it is no folder", where=f"--data {data}", expected="the run's federation folder, or no --data")
    site = path / "site.json"
    if data is None and site.is_file():
        data = Path(json_module.loads(site.read_text(encoding="utf-8"))["federation"])
    if data is None or not data.is_dir():
        return Users.of_items(source.catalogue)
    central, config = load_central(data), RunFolder.open(path).config
    if central.catalogue.keys.tolist() != source.catalogue.keys.tolist():
        raise InputError("its catalogue is not the run's", where=str(data), hint="leave --data out, or name the run's own")
    share = config.calibration_share if config.calibrate else 0.0
    groups = [replace(one, histories=one.histories.without_searches(len(central.catalogue))) for one in central.groups]
    users, _ = EvaluationSet.build(replace(central, groups=tuple(groups)), config.history, share, config.seed)
    counts = read_adapter(path / "adapter")[2][COUNT].to_numpy()
    return Users(users, counts, float(source.settings["floor"]))


def _own_users(path: Path, source: Source, config: RunConfig) -> Users:
    """The merchant's measured users, without popularity; every item as a history where there are none."""
    from fedrec.evaluation import EvaluationSet
    from fedrec.export.measuring import Users
    from fedrec.recommender.contest import users_as_group
    from fedrec.recommender.merchant_text import MerchantPlace

    place = MerchantPlace(path)
    held = place.data()
    everyone = Users.of_items(source.catalogue)
    # An export has vectors of items, so it is measured on what was done to them.
    histories = held.histories.without_searches(len(held.catalogue))
    group = users_as_group(histories, place.roles(held).measure, len(held.catalogue), config.history)
    if group is None:
        return everyone
    return Users(EvaluationSet((group,), 0), everyone.counts, everyone.floor)


def _table(found: dict[str, Any]) -> Any:
    k = found["k"]
    rows = []
    for row in found["rows"]:
        ndcg = f"ndcg@{k}"
        quality = stacked(f"{row[ndcg]:.4f}", f"{row[ndcg + '_low']:.4f}-{row[ndcg + '_high']:.4f}") if ndcg in row else "-"
        latency = row["latency_ms"]
        rows.append([
            row["name"], quality, f"{row['overlap']:.1%}", f"{latency['median']:.1f} / {latency['p95']:.1f}",
            f"{row['texts_per_second']:,.0f}", f"{row['bytes'] / 1e6:,.1f}",
        ])  # fmt: skip
    title = f"{found['users']:,} histories over {found['items']:,} items, {found['threads']} threads of this machine"
    return table(
        title, ["", f"NDCG@{k}", f"top-{k} kept", "one text, ms (median / p95)", "texts/s", "MB"], rows, lines=True
    )  # fmt: skip
