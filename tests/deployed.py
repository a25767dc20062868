"""A deployment of real processes on loopback, for the tests: one server, a few merchants, TLS."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import tomli_w
from safetensors import safe_open

from fedrec.deploy.create import create
from fedrec.deploy.layout import Deployment, MerchantFolder
from fedrec.deploy.processes import running
from fedrec.privacy import Ledger
from server.run_folder import RunFolder

from .helpers import make_federation

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "fedrec.cli.main"]
FAST = {
    "min_lot": 1,
    "bootstrap": 100,
    "calibrate": False,
    "round_timeout": 60.0,
    "encoder_rounds": 0,
    "rank": 4,
    "encoder_rank": 2,
}


QUIET = 1e-5
"""A noise multiplier that is as good as none; the policy of these merchants allows it."""
RICH = {"epsilon": 1e15, "min_noise_multiplier": QUIET / 10, "max_rounds": 1000}
LONG = {"local_steps": 400}
"""A round of some seconds, so that it can be interrupted."""
NOISY = {"noise_multiplier": 200.0, "histogram_noise_multiplier": 200.0}
"""So much noise that a round costs next to nothing."""


def free_ports() -> int:
    """A port that is free together with the next one, below those that are given out to connections."""
    while True:
        port = random.randrange(15000, 32000, 2)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def until(reached: Callable[[], object], seconds: float = 90.0, what: str = "") -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what or reached}"
        time.sleep(0.1)


def edit(path: Path, **tables: dict[str, Any]) -> None:
    """Change some tables of a TOML file."""
    settings = tomllib.loads(path.read_text())
    path.write_text(tomli_w.dumps({**settings, **{name: {**settings.get(name, {}), **table} for name, table in tables.items()}}))


def to_csv(folder: Path) -> None:
    """A merchant's tables as CSV."""
    for name in ("items", "events"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        table.to_csv(folder / f"{name}.csv", index=False)
        (folder / f"{name}.parquet").unlink()


def to_sqlite(folder: Path) -> None:
    """A merchant's tables as a SQLite database, with the queries for them in `merchant.toml`."""
    with sqlite3.connect(folder / "shop.db") as database:
        for name in ("items", "events"):
            table = pd.read_parquet(folder / f"{name}.parquet")
            table.astype({column: str for column in table if column == "timestamp"}).to_sql(name, database, index=False)
            (folder / f"{name}.parquet").unlink()
    queries = {"items": "SELECT * FROM items", "events": "SELECT * FROM events"}
    edit(folder / "merchant.toml", data={"url": "sqlite:///shop.db", **queries})


class Deployed:
    """A deployment that is started and stopped as a user would."""

    def __init__(self, folder: Path, federation: Path, bert: Path, cache: Path) -> None:
        for merchant in sorted((federation / "merchants").iterdir()):
            edit(merchant / "merchant.toml", model={"encoder": str(bert), "device": "cpu"})
        self.deployment: Deployment = create(folder, f"localhost:{free_ports()}", federation=federation)
        self.names = [merchant.settings.name for merchant in self.deployment.merchants()]
        self.server = self.deployment.server
        settings = tomllib.loads(self.server.run_settings.read_text())
        self.settings: dict[str, Any] = {**settings, **FAST, "encoder": str(bert)}
        self.server.run_settings.write_text(tomli_w.dumps(self.settings))
        # One thread each: the processes are the parallelism.
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FEDREC_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        self._runs = 0
        self._up: list[psutil.Process | None] = []

    def fedrec(self, *arguments: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout, env=self.environment, check=False
        )

    def up(self) -> None:
        """Start whatever is not up; where nobody has stopped since the last time, there is nothing to ask."""
        if self._up and self._started() == self._up:
            return
        done = self.fedrec("deploy", "up", str(self.deployment.path))
        assert done.returncode == 0, done.stderr
        self._up = self._started()
        assert None not in self._up

    def _started(self) -> list[psutil.Process | None]:
        return [running(pid) for pid in (self.server.pid, *(self.merchant(name).pid for name in self.names))]

    def down(self) -> None:
        """Stop it all."""
        self._up = []
        self.fedrec("deploy", "down", str(self.deployment.path))

    def merchant(self, name: str) -> MerchantFolder:
        """A merchant's folder."""
        return self.deployment.merchant(name)

    def policy(self, name: str, **values: Any) -> None:
        """Change a merchant's policy; its node reads it anew for every message."""
        edit(self.merchant(name).settings_file, privacy=values)

    def releases(self, name: str, run: RunFolder | None = None) -> list[int]:
        """The rounds in a merchant's ledger, of one run or of all."""
        ledger = Ledger(self.merchant(name).ledger / f"{name}.ledger.jsonl", 1e-5)
        state = None if run is None else run.load()
        return [one.round for one in ledger.releases() if state is None or one.run == state.run]

    def others(self, *names: str) -> list[str]:
        """Everybody but these."""
        return [name for name in self.names if name not in names]

    def kill(self, name: str) -> None:
        """SIGKILL for a merchant's whole family, as when its machine loses power."""
        process = running(self.merchant(name).pid)
        assert process is not None
        for one in [process, *process.children(recursive=True)]:
            one.kill()
        until(lambda: running(self.merchant(name).pid) is None)

    def kill_server(self) -> None:
        """SIGKILL for the SuperLink."""
        process = running(self.server.pid)
        assert process is not None
        process.kill()
        until(lambda: running(self.server.pid) is None)

    def start(self, script: str = "", **settings: Any) -> tuple[subprocess.Popen[str], RunFolder]:
        """Start a run in the background; `script` names a test module that runs in place of the program."""
        self._runs += 1
        path = self.server.runs / f"run-{self._runs:02d}"
        pairs = [f"--set={name}={value}" for name, value in settings.items()]
        program = [sys.executable, "-m", f"tests.{script}"] if script else PROGRAM
        command = [*program, "server", "run", str(self.server.path), "--out", str(path), *pairs]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, cwd=ROOT
        )
        return process, RunFolder(path)

    def run(self, script: str = "", status: int = 0, **settings: Any) -> tuple[RunFolder, str]:
        """A run from start to end, and what it printed."""
        process, run = self.start(script, **settings)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == status, printed
        return run, printed

    def resume(self, run: RunFolder) -> str:
        """Go on with a run."""
        done = self.fedrec("server", "run", str(self.server.path), "--resume", "--out", str(run.path))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def log_of(self, name: str) -> str:
        """What a merchant's node wrote."""
        return self.merchant(name).log.read_text()

    def has_sent(self, name: str, kind: str) -> bool:
        """Whether the last that a merchant's node sent is an answer of this kind, by what it wrote."""
        lines = [line for line in self.log_of(name).splitlines() if "Sending: " in line or "Sent successfully" in line]
        return len(lines) > 1 and f"Sending: {kind} message" in lines[-2] and "Sent successfully" in lines[-1]

    def sent(self, name: str, run: RunFolder) -> dict[str, Any]:
        """The last update that a merchant sent in a run, as it is kept for a repeated request."""
        state = run.load()
        assert state is not None
        path = sorted((self.merchant(name).replies / name).glob(f"{state.run}-*.safetensors"))[-1]
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def family(self) -> list[psutil.Process]:
        """Every process that has to do with this deployment."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if str(self.deployment.path) in " ".join(process.info["cmdline"] or []):
                found.append(process)
        return found


def interrupted(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, and what was printed."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)[0]


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    """The rounds that are done; none before the first line."""
    try:
        return run.metrics()
    except (OSError, json.JSONDecodeError):
        return []


def copy_of(federation: Path, target: Path) -> Path:
    """A federation folder to be changed."""
    shutil.copytree(federation, target)
    return target


@contextlib.contextmanager
def four_merchants(folder: Path, bert: Path) -> Iterator[Deployed]:
    """A deployment that is up: Parquet, CSV, SQLite, and a catalogue of its own for each."""
    federation = make_federation(folder, merchants=4, users=60, own_catalogues=True, impressions=True)
    to_csv(federation / "merchants" / "m1")
    to_sqlite(federation / "merchants" / "m2")
    deployed = Deployed(folder / "deployed", federation, bert, folder / "cache")
    deployed.up()
    try:
        yield deployed
    finally:
        deployed.down()
