"""What a round of a deployment costs over a round of the simulation: same merchants, same settings, same machine.

    python -m benchmarks.deployment --merchants 4 --repeats 5

One deployment (TLS, keys, a SuperLink, a node for each merchant, all on this machine) and one
inline simulation run one after the other on the embedded demo's brand shops. Medians over the
rounds; the first, in which models are loaded, is shown apart.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import options, report
from fedrec.config import RunConfig, save_config
from fedrec.data.demo import build_demo
from fedrec.deploy.create import create
from server.run_folder import RunFolder

__all__ = ["main", "measure"]

PROGRAM = [sys.executable, "-m", "fedrec.cli.main"]


def measure(merchants: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each round under both, and of starting up.

    Returns:
        `deployment` and `simulation`: seconds a round in order; `up`: seconds of `fedrec deploy up`.
    """
    federation = folder / "federation"
    build_demo(federation, {"epsilon": 1000.0, "delta": 1e-5}, "manufacturer")
    for extra in sorted((federation / "merchants").iterdir())[merchants:]:
        shutil.rmtree(extra)
    settings = RunConfig(rounds=rounds, encoder_rounds=0, noise_multiplier=5.0, bootstrap=100, start_merchants=merchants)
    config = folder / "run.toml"
    save_config(settings, config)
    environment = {**os.environ, "FEDREC_CACHE": str(folder / "cache")}

    def run(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([*PROGRAM, *arguments], check=True, capture_output=True, env=environment)
        return time.perf_counter() - started

    deployment = create(folder / "deployment", f"localhost:{_free_port()}", federation=federation)
    try:
        up = run("deploy", "up", str(deployment.path), "--timeout", "900")
        deployed = folder / "deployed"
        run("server", "run", str(deployment.server.path), "--config", str(config), "--out", str(deployed))
    finally:
        run("deploy", "down", str(deployment.path))
    simulated = folder / "simulated"
    run("simulate", str(federation), "--config", str(config), "--out", str(simulated), "--no-reference")
    seconds = {name: [line["seconds"] for line in RunFolder(path).metrics()] for name, path in
               (("deployment", deployed), ("simulation", simulated))}  # fmt: skip
    return {"merchants": merchants, "rounds": rounds, "up": up, **seconds}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = ["| | deployment | simulation, inline |", "|---|---|---|"]
    parts = {
        "popularity histogram, s": lambda seconds: seconds[0],
        "first training round, s": lambda seconds: seconds[1],
        "later rounds, median s": lambda seconds: statistics.median(seconds[2:]),
    }
    for name, of in parts.items():
        rows.append(f"| {name} | {of(found['deployment']):.1f} | {of(found['simulation']):.1f} |")
    return "\n".join([*rows, f"| start-up, all on one machine, s | {found['up']:.0f} | - |"])


def main() -> None:
    """The command."""
    parser = options(__doc__, repeats=5)
    parser.add_argument("--merchants", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.merchants, arguments.repeats + 1, Path(folder))
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
