"""`fedrec serve` under load, a naive service beside it, in turns on one machine with the process that makes the load.

    python -m benchmarks.serve --seconds 60

A merchant of 5,000 items with an own layer; histories of 20, filters and diversity. A warm service is asked by 16 clients
without a pause, and at 50 requests a second. Then with words, with reasons, and for a search. The texts are the embedded
demo's, the purchases synthetic clusters, so that the own layer has something to learn. `without batching` is the same service
with `batch = 1`: each waiting request is ranked alone. `processor ms` is what a request takes of a processor: it depends least on
what else the machine does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import tomli_w

from benchmarks.clusters import clustered, tastes
from benchmarks.measure import options, report
from fedrec.data import Columns
from fedrec.data.demo import demo_tables
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["main"]

USERS, HISTORY, EVENTS = 2_000, 20, 30
CLIENTS, RATE = 16, 50.0
ASKED = 200
"""Different requests of each kind."""


def make_merchant(folder: Path, items: int) -> None:
    """A merchant with an own layer."""
    titles = demo_tables()[0][[Columns.TITLE]].drop_duplicates().head(items)[Columns.TITLE].tolist()
    titles += [f"{titles[n % len(titles)]} {n}" for n in range(len(titles), items)]
    rng, ids = np.random.default_rng(0), [f"i{item}" for item in range(items)]
    table = pd.DataFrame({Columns.ITEM: ids, Columns.TITLE: titles})
    table[Columns.CATEGORY], table[Columns.PRICE] = rng.choice(["kitchen", "toys", "garden"], items), rng.lognormal(2.5, 1, items)
    bought = tastes(clustered(items, 8)[1], USERS, EVENTS)
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(EVENTS) // 3, "D")
    events = pd.DataFrame(
        {
            Columns.USER: np.repeat([f"u{user}" for user in range(USERS)], EVENTS),
            Columns.ITEM: [ids[item] for item in bought.ravel()],
            Columns.TIME: np.tile(days, USERS),
        }
    )
    folder.mkdir()
    table.to_parquet(folder / "items.parquet", index=False)
    events.to_parquet(folder / "events.parquet", index=False)
    policy = {"epsilon": 8.0, "delta": 1e-5, "population": USERS}
    (folder / "merchant.toml").write_text(tomli_w.dumps({"name": "bench", "privacy": policy}), encoding="utf-8")
    place = MerchantPlace(folder)
    if not fit_merchant(place, place.data()).model.blend.own:
        raise SystemExit("the own layer has no weight: this would measure too little")


def questions(folder: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Requests of each kind to that merchant. No two ask for the same words, which a service could remember."""
    rng, table = np.random.default_rng(1), pd.read_parquet(folder / "items.parquet")
    ids = table[Columns.ITEM].tolist()
    words = list(dict.fromkeys(" ".join(title.lower().split()[:3]) for title in table[Columns.TITLE]))[:ASKED]

    def ask(**more: Any) -> tuple[str, dict[str, Any]]:
        history, out = (rng.choice(ids, HISTORY).tolist() for _ in range(2))
        wanted = {"category": ["kitchen", "toys"], "price_min": 3, "price_max": 60}
        return "/v1/recommend", {"history": history, "k": 10, "filter": wanted, "exclude": out, "diversity": 0.3, **more}

    return {
        "recommend": [ask() for _ in range(ASKED)],
        "with words": [ask(query=words[n % len(words)]) for n in range(ASKED)],
        "with reasons": [ask(explain=True) for _ in range(ASKED)],
        "search": [("/v1/search", {"query": words[n % len(words)], "k": 10}) for n in range(ASKED)],
    }


@contextmanager
def running(command: list[str], port: int) -> Iterator[psutil.Process]:
    """A service, ready."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(OSError):
                    if urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200:
                        break
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def load(port: int, requests: list[tuple[str, dict[str, Any]]], seconds: float, rate: float) -> dict[str, float]:
    """Requests, of them a second, percentiles in milliseconds, and what was no 200."""
    given = {"port": port, "requests": requests, "seconds": seconds, "clients": CLIENTS, "rate": rate}
    command = [sys.executable, "-m", "benchmarks.serve_load"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
    took, statuses, wall = json.loads(done.stdout)
    p50, p95, p99 = (float(value) for value in np.percentile(1e3 * np.array(took), (50, 95, 99)))
    return {
        "requests": len(took),
        "a_second": len(took) / wall,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "errors": sum(one != 200 for one in statuses),
    }


def measure(
    name: str, command: list[str], port: int, asked: dict[str, list[tuple[str, dict[str, Any]]]], seconds: float
) -> list[dict[str, Any]]:
    """All loads on one service."""
    found = []
    with running(command, port) as process:
        load(port, [one for kind in asked.values() for one in kind[:10]], 2, 0)  # warm
        for kind, requests in asked.items():
            for how, rate in ((f"{CLIENTS} clients", 0.0), (f"{RATE:g} a second", RATE)):
                before = sum(process.cpu_times()[:2])
                turn = {"service": name, "asked": kind, "load": how, **load(port, requests, seconds, rate)}
                cpu = 1e3 * (sum(process.cpu_times()[:2]) - before) / turn["requests"]
                found.append({**turn, "cpu": cpu, "mb": process.memory_info().rss / 1e6})
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def main() -> None:
    """Measure, print a table."""
    parser = options(__doc__, repeats=1)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--kinds", nargs="*", help="only these kinds of questions")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "merchant")
        make_merchant(folder, given.items)
        asked = questions(folder)
        asked = {kind: asked[kind] for kind in given.kinds or asked}
        alone = Path(place, "alone.toml")
        alone.write_text("batch = 1\n", encoding="utf-8")
        ours = ["-m", "fedrec.cli.main", "serve", str(folder), "--port"]
        for _ in range(given.repeats):
            for name, command in {
                "fedrec serve": [*ours, "{port}"],
                "without batching": [*ours, "{port}", "--config", str(alone)],
                "naive": ["-m", "benchmarks.serve_naive", str(folder), "{port}"],
            }.items():
                port = free_port()
                rows += measure(name, [part.format(port=port) for part in command], port, asked, given.seconds)
    lines = [
        "| service | asked | load | a second | p50 ms | p95 ms | p99 ms | processor ms | errors | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        timed = " | ".join(f"{row[name]:.1f}" for name in ("p50", "p95", "p99", "cpu"))
        lines.append(
            f"| {row['service']} | {row['asked']} | {row['load']} | {row['a_second']:.0f} | {timed} | {row['errors']} "
            f"| {row['mb']:.0f} |"
        )
    report({"items": given.items, "seconds": given.seconds, "rows": rows}, "\n".join(lines), given.json)


if __name__ == "__main__":
    main()
