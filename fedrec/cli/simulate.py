"""`fedrec simulate` and `fedrec demo`: a whole federation on one machine."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrec.cli.terminal import TrustName, err, out, print_json, quiet_libraries, round_progress, show_results
from fedrec.cli.tracking import Track, tracked
from fedrec.config import RunConfig, load_config, parse_overrides, read_toml, writable_cache
from fedrec.errors import InputError

__all__ = ["By", "Config", "Set", "demo", "demo_folder", "simulate_command"]


class EngineName(StrEnum):
    """Which engine runs the apps."""

    inline = "inline"
    flower = "flower"


class ObjectiveOption(StrEnum):
    """What the demo predicts."""

    next_item = "next-item"
    response = "response"
    both = "next-item+response"
    basket = "basket"


class By(StrEnum):
    """What a merchant is in the demo."""

    manufacturer = "manufacturer"
    store = "store"
    department = "department"


Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="inline: this process; flower: Flower's runtime on Ray.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="inline only: processes that train merchants side by side; 1 is this process."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder to make; by default runs/<date>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Reference = Annotated[bool, typer.Option("--reference/--no-reference", help="Also train without privacy, and measure merchants.")]
Ledgers = Annotated[
    Path | None, typer.Option("--ledgers", help="Folder of the merchants' ledgers, to go on from what earlier runs spent.")
]
Start = Annotated[
    Path | None, typer.Option("--start", help="A run, or another folder with an adapter, to start from instead of untrained.")
]
RecordWire = Annotated[bool, typer.Option("--record-wire", help="Write down what every merchant sends: names, shapes, hashes.")]
Json = Annotated[bool, typer.Option("--json", help="Print the final table as JSON.")]


def simulate_command(
    federation: Annotated[Path | None, typer.Argument(metavar="[FEDERATION_FOLDER]", help="merchants/ and central/.")] = None,
    config: Config = None,
    settings: Set = None,
    engine: EngineOption = EngineName.inline,
    workers: Workers = None,
    target: Out = None,
    resume: Resume = False,
    reference: Reference = True,
    ledgers: Ledgers = None,
    record_wire: RecordWire = False,
    track: Track = None,
    start: Start = None,
    json: Json = False,
) -> None:
    """Train one private recommender over all merchants of a federation folder."""
    if resume:
        federation = None
    elif federation is None:
        raise InputError("no federation folder was given", hint="fedrec simulate FOLDER, or fedrec demo for the embedded data")
    _run(
        federation,
        load_config(config, parse_overrides(settings or [])),
        engine,
        workers,
        target,
        resume,
        reference,
        ledgers,
        record_wire,
        track,
        start,
        json,
    )


def demo(
    by: Annotated[By, typer.Option(help="What a merchant is.")] = By.manufacturer,
    objective: Annotated[ObjectiveOption | None, typer.Option(help="What is predicted; next-item by default.")] = None,
    trust: Annotated[TrustName | None, typer.Option(help="Trust model of the run and of every merchant's policy.")] = None,
    config: Config = None,
    settings: Set = None,
    engine: EngineOption = EngineName.inline,
    workers: Workers = None,
    target: Out = None,
    resume: Resume = False,
    reference: Reference = True,
    ledgers: Ledgers = None,
    record_wire: RecordWire = False,
    track: Track = None,
    start: Start = None,
    json: Json = False,
) -> None:
    """The same on embedded data: a year of grocery baskets at twelve brand shops, or which promoted products were bought."""
    overrides = {"objective": objective.value} if objective else {}
    overrides |= parse_overrides(settings or [])
    resolved = _settings_of_demo(config, {**overrides, "trust": trust.value} if trust else overrides)
    if "rating" in resolved.objective:
        raise InputError(
            "the demo has no ratings", where="objective", expected="next-item, response or basket", hint="fedrec simulate"
        )
    if "response" in resolved.objective and by is not By.manufacturer:
        expected = f"{By.manufacturer.value}, with the objective {resolved.objective}"
        raise InputError(f"found {by.value}", where="--by", expected=expected)
    _run(
        None if resume else demo_folder(by, resolved),
        resolved,
        engine,
        workers,
        target,
        resume,
        reference,
        ledgers,
        record_wire,
        track,
        start,
        json,
    )


def _run(
    federation: Path | None,
    config: RunConfig,
    engine: EngineName,
    workers: int | None,
    target: Path | None,
    resume: bool,
    reference: bool,
    ledgers: Path | None,
    record_wire: bool,
    track: list[str] | None,
    start: Path | None,
    json: bool,
) -> None:
    if resume and target is None:
        raise InputError("--resume needs the run folder", hint="give it with --out")
    if resume and start is not None:
        raise InputError("a run keeps the start that it was given", where="--resume", hint="leave --start out")
    if workers is not None and engine is EngineName.flower:
        raise InputError(f"found {workers}", where="--workers", expected="--engine inline", hint="Ray has one for each core")
    folder_path = target or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    quiet_libraries()
    from clients.memory import is_out_of_memory
    from fedrec.report.privacy_report import write_privacy_report
    from fedrec.report.run_report import write_report
    from server.strategy import TooFewMerchants
    from simulations.run import finish, simulate
    from simulations.run import resume as go_on

    try:
        with round_progress(), tracked(track, folder_path, simulation=True):
            if federation is None:
                folder = go_on(folder_path, workers=workers)
            else:
                folder = simulate(
                    federation,
                    config,
                    folder_path,
                    engine.value,
                    workers=workers or 1,
                    ledgers=ledgers,
                    record_wire=record_wire,
                    start=start,
                )
            results = finish(folder, reference)
    except KeyboardInterrupt:
        err.print(f"interrupted; go on with: fedrec simulate --resume --out {folder_path}", soft_wrap=True)
        raise
    except TooFewMerchants as reason:
        err.print(f"stopped: {reason}; go on with: fedrec simulate --resume --out {folder_path}", soft_wrap=True)
        raise typer.Exit(1) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        err.print(f'stopped: out of memory ({first}); use device = "cpu" or fewer workers', soft_wrap=True)
        raise typer.Exit(1) from None
    report = write_report(folder.path, folder.config, folder.metrics(), results)
    privacy_report = write_privacy_report(folder.path)[1]
    if json:
        print_json({"run": str(folder.path), **results})
        return
    show_results(folder.config, results, folder.metrics())
    out.print(f"report: {report}", soft_wrap=True)
    out.print(f"privacy report: {privacy_report}", soft_wrap=True)


def _settings_of_demo(config: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """What a person set, above what belongs to the demo's data of the objective."""
    values = (read_toml(config, hint="give --config a TOML file") if config else {}) | overrides
    if "response" not in str(values.get("objective")):
        return load_config(config, overrides)
    from fedrec.data.demo_shown import SETTINGS

    return load_config(config, overrides, below=SETTINGS)


def demo_folder(by: By, config: RunConfig) -> Path:
    """The demo's federation folder, made once and kept in the cache."""
    from fedrec.data.demo import build_demo
    from fedrec.data.demo_shown import build_shown_demo

    trust = "" if config.trust == "local" else f"-{config.trust}"
    shown = "response" in config.objective
    what = "response" if shown else by.value
    folder = writable_cache() / f"demo-{what}-epsilon-{config.epsilon:g}-delta-{config.delta:g}{trust}"
    if not folder.exists():
        err.print(f"making the demo's federation folder in {folder}", soft_wrap=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            policy: dict[str, object] = {"epsilon": config.epsilon, "delta": config.delta, "trust": config.trust}
            if shown:
                build_shown_demo(temporary, policy)
            else:
                build_demo(temporary, policy, by.value)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
