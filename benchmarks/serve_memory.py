"""Memory of `fedrec serve` after many requests and swaps, beside what it was after a few.

    python -m benchmarks.serve_memory --requests 100000 --swaps 50

A merchant as in `benchmarks.serve` is asked for lists by 16 clients. Between the requests its own layer's file is touched, so
that the whole model is loaded again and swapped in. Memory is what the process holds, read a moment after a swap.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import options, report
from benchmarks.serve import free_port, load, make_merchant, questions, running
from fedrec.merchant import OWN
from fedrec.recommender.own_model import FILE

__all__ = ["main"]

FEW = 1_000
SECONDS = 2.0
"""Of one turn of load."""
SETTLED = 1.0
"""Seconds after a swap, until what the old model held is given back."""
PATIENCE = 120.0


def snapshot(port: int) -> str:
    """Which loaded state answers."""
    body = json.dumps({"history": [], "k": 1}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/recommend", body, {"Content-Type": "application/json"})
    found: str = json.load(urllib.request.urlopen(asked, timeout=30))["snapshot"]
    return found


def swap(port: int, file: Path) -> None:
    """Have the service load the folder again, and wait until that answers."""
    before, end = snapshot(port), time.monotonic() + PATIENCE
    os.utime(file)
    while snapshot(port) == before:
        if time.monotonic() > end:
            raise SystemExit("the service has not noticed that a file has changed")
        time.sleep(0.1)


def main() -> None:
    """Measure, print a table."""
    parser = options(__doc__, repeats=1)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=50)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place, "merchant"), free_port()
        make_merchant(folder, given.items)
        asked = questions(folder)["recommend"]
        with running(["-m", "fedrec.cli.main", "serve", str(folder), "--port", str(port)], port) as process:
            done = failed = 0
            for swaps in range(1, given.swaps + 1):
                due = FEW if swaps == 1 else given.requests * swaps // given.swaps
                while done < due:
                    turn = load(port, asked, SECONDS, 0.0)
                    done, failed = done + int(turn["requests"]), failed + int(turn["errors"])
                swap(port, folder / OWN / FILE)
                rows.append(_row(process, done, swaps, failed))
    first, last = rows[0]["mb"], rows[-1]["mb"]
    lines = ["| requests | swaps | errors | MB |", "|---|---|---|---|"]
    lines += [f"| {row['requests']:,} | {row['swaps']} | {row['errors']} | {row['mb']:.0f} |" for row in _few(rows)]
    lines.append(f"\nThe last holds {last / first:.3f} of the first.")
    report({"items": given.items, "rows": rows, "ratio": last / first}, "\n".join(lines), given.json)


def _row(process: psutil.Process, requests: int, swaps: int, errors: int) -> dict[str, Any]:
    time.sleep(SETTLED)
    return {"requests": requests, "swaps": swaps, "errors": errors, "mb": process.memory_info().rss / 1e6}


def _few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first, the last, and some between."""
    return rows if len(rows) < 6 else [rows[0], *rows[len(rows) // 5 - 1 : -1 : len(rows) // 5], rows[-1]]


if __name__ == "__main__":
    main()
