"""What every benchmark needs: alternating medians, peak memory, growth, the environment."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from fedrec.cli.terminal import quiet_libraries

__all__ = ["alternate", "environment", "exponent", "memory", "options", "report"]

Way = Callable[[], object]


def alternate(ways: Mapping[str, Way], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, and the first turn, which warms up, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(prepare: Callable[..., tuple[Way, Way]], *arguments: object) -> float:
    """MB by which the resident memory of a process of its own grows at most during a step.

    Args:
        prepare: a module's function; what it returns warms up and is then measured.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_memory, args=(queue, prepare, arguments))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    if process.exitcode:
        raise RuntimeError(f"{prepare.__name__}{arguments}: status {process.exitcode}")
    found = float(queue.get())
    process.join()
    return found


def _memory(queue: Any, prepare: Callable[..., tuple[Way, Way]], arguments: tuple[object, ...]) -> None:
    quiet_libraries()
    warm, step = prepare(*arguments)
    warm()
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    step()
    over.set()
    watching.join()
    queue.put((most - before) / 1e6)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b in cost = a * size^b, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
        "cuda": torch.cuda.is_available(),
    }


def options(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that count")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser


def report(found: dict[str, Any], table: str, target: Path | None) -> None:
    """Print the table, and write the figures with their environment where that is asked for."""
    sys.stdout.write(table + "\n")
    if target:
        target.write_text(json.dumps({**found, "environment": environment()}, indent=2), encoding="utf-8")
