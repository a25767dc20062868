"""What a round of many merchants takes, in time and memory, under each engine.

    python -m benchmarks.rounds --merchants 8 32 128
    python -m benchmarks.rounds --part encoder --engines inline flower "obvious, Ray" --device cuda

Merchants of equal size (60 users, one catalogue of 300 items) on the packaged encoder, each run a
`fedrec simulate` of its own. Seconds are from one round's end to the next's, medians over the rounds; the first, in which
processes and caches are warmed up, is shown apart. Memory is the most that all processes of the run
hold together while it goes on, over what the program holds before it does anything: resident pages,
so that a page that is shared counts once for each process. On a GPU what is in use there beside it, over what was before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from benchmarks.measure import CPU, exponent, options, report
from fedrec.config import Part, RunConfig, save_config
from fedrec.data import Columns, load_merchant, merchant_folders
from fedrec.data.demo import build_demo
from fedrec.data.split import write_federation
from server.run_folder import RunFolder

__all__ = ["ENGINES", "main"]

PROGRAM = [sys.executable, "-W", "ignore", "-m"]
USERS, ITEMS, HOLDOUT, BASKETS = 60, 300, 0.1, 6
OBVIOUS = "obvious, Ray"
Engine = Callable[[Path, Path, Path], list[str]]


def engine(*flags: str) -> Engine:
    """A command of ours: from federation, settings and run folder to what is started."""

    def command(federation: Path, config: Path, run: Path) -> list[str]:
        paths = [str(federation), "--config", str(config), "--out", str(run), "--no-reference"]
        return [*PROGRAM, "fedrec.cli.main", "simulate", *paths, *flags]

    return command


ENGINES: dict[str, Engine] = {
    "inline": engine(),
    "inline, 2 workers": engine("--workers", "2"),
    "flower": engine("--engine", "flower"),
    OBVIOUS: lambda federation, config, run: [*PROGRAM, "benchmarks.obvious_app", str(federation), str(config), str(run)],
}
"""Any command will do that writes `metrics.jsonl` in the run folder, a line a round with its `seconds`."""


def write_merchants(folder: Path, merchants: int) -> None:
    """A federation folder of so many merchants with random baskets over one catalogue, of texts of the embedded data."""
    rng = np.random.default_rng(0)
    build_demo(folder.with_name("demo"), {"epsilon": 8.0, "delta": 1e-5})
    titles = max((load_merchant(one).catalogue.texts for one in merchant_folders(folder.with_name("demo"))), key=len)[:ITEMS]
    shutil.rmtree(folder.with_name("demo"))
    ids = np.array([f"i{item}" for item in range(ITEMS)])
    items = pd.DataFrame({Columns.ITEM: ids, Columns.TITLE: titles})
    count = merchants * round(USERS / (1 - HOLDOUT)) * BASKETS
    owner = np.arange(count) // BASKETS
    events = pd.DataFrame({
        Columns.USER: [f"u{user}" for user in owner],
        Columns.ITEM: rng.choice(ids, count),
        Columns.TIME: pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(count) % BASKETS, unit="D"),
        Columns.MERCHANT: [f"m{merchant:04d}" for merchant in owner % merchants],
    })  # fmt: skip
    write_federation(items, events, folder, HOLDOUT, {"epsilon": 1000.0, "delta": 1e-5, "trust": "secure-aggregation"})


def resident(process: psutil.Process) -> float:
    """MB that a process and its descendants hold."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / 1e6


def baseline() -> float:
    """MB that the program holds once its modules are loaded."""
    code = "import clients.app, server.app, psutil; print(psutil.Process().memory_info().rss / 1e6)"
    return float(subprocess.run([*PROGRAM[:-1], "-c", code], capture_output=True, text=True, check=True).stdout)


def in_use(device: torch.device) -> float:
    """MB of a GPU that are in use, by whatever process."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e6


def measure(
    command: list[str], run: Path, rounds: int, environment: dict[str, str], device: torch.device = CPU
) -> dict[str, Any]:
    """Seconds from line to line of `metrics.jsonl`, so all that a round takes, and the most MB that the run held until the last.

    Raises:
        RuntimeError: the command failed; with the end of what it wrote.
    """
    log, lines, most, looked = run.with_suffix(".log"), run / "metrics.jsonl", 0.0, 0.0
    used = before = in_use(device)
    ended: list[float] = []  # when each line was there
    with log.open("w") as file:
        process = psutil.Popen(command, stdout=file, stderr=file, env=environment)
    while process.poll() is None and len(ended) <= rounds:
        now = time.perf_counter()
        ended += [now] * (len(lines.read_bytes().splitlines()) - len(ended) if lines.exists() else 0)
        if now - looked > 0.2:
            looked = now
            used = max(used, in_use(device))
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, resident(process))
        time.sleep(0.01)
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{log.read_text()[-2000:]}")
    histogram = float(RunFolder(run).metrics()[0]["seconds"])
    return {"seconds": [histogram, *np.diff(ended).tolist()], "memory": most, "device_memory": used - before}


def compare(
    merchants: list[int], rounds: int, part: Part, engines: list[str], folder: Path, device: torch.device = CPU
) -> dict[str, Any]:
    """Every engine on every number of merchants."""
    settings = RunConfig(
        rounds=rounds, heads=part == "heads", encoder_layers=int(part == "encoder"), encoder_sample_rate=0.25, min_lot=1,
        encoder_rounds=0, noise_multiplier=5.0, histogram_noise_multiplier=5.0, bootstrap=100, device=str(device),
    )  # fmt: skip
    config = folder / "run.toml"
    save_config(settings, config)
    environment = {**os.environ, "FEDREC_CACHE": str(folder / "cache")}
    found: dict[str, Any] = {"part": part, "rounds": rounds, "baseline": baseline(), "runs": []}
    for count in merchants:
        federation = folder / f"federation-{count}"
        write_merchants(federation, count)
        for name in engines:
            run = folder / f"{name.replace(' ', '-').replace(',', '')}-{count}"
            one = measure(ENGINES[name](federation, config, run), run, rounds, environment, device)
            found["runs"].append({"engine": name, "merchants": count, **one})
    return found


def later(run: dict[str, Any]) -> float:
    """Median seconds of the rounds after the first; round 0 is the histogram."""
    return statistics.median(run["seconds"][2:])


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        "| engine | merchants | histogram, s | first round, s | later rounds, median s | MB | MB on the GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        histogram, first = run["seconds"][:2]
        memory = run["memory"] - found["baseline"]
        rows.append(
            f"| {run['engine']} | {run['merchants']} | {histogram:.1f} | {first:.1f} | {later(run):.2f} | {memory:.0f} "
            f"| {run['device_memory']:.0f} |"
        )
    for name in dict.fromkeys(run["engine"] for run in found["runs"]):
        own = [run for run in found["runs"] if run["engine"] == name]
        if len(own) > 1:
            power = exponent([run["merchants"] for run in own], [later(run) for run in own])
            rows.append(f"\n{name}: seconds a round grow with the number of merchants to the power {power:.2f}.")
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = options(__doc__, repeats=3, devices=True)
    parser.add_argument("--merchants", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--part", choices=["heads", "encoder"], default="heads")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[name for name in ENGINES if name != OBVIOUS])
    arguments = parser.parse_args()
    if OBVIOUS in arguments.engines and arguments.part == "heads":
        parser.error(f"{OBVIOUS}: expected --part encoder; the obvious way has no heads")
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            arguments.merchants, arguments.repeats + 1, arguments.part, arguments.engines, Path(folder), arguments.device
        )
    report(found, table(found), arguments.json, arguments.device)


if __name__ == "__main__":
    main()
