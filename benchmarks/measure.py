"""What every benchmark needs: alternating medians, peak memory, growth, the environment.

What runs on a GPU is waited for before the clock is read. Its memory is what PyTorch's allocator held at most; on a
processor it is the resident memory of a process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
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
from fedrec.errors import InputError
from fedrec.model.encoder import resolve_device

__all__ = [
    "CPU", "alternate", "device_memory", "environment", "exponent", "fastest", "held", "memory", "options", "report", "timed",
]  # fmt: skip

Way = Callable[[], object]
CPU = torch.device("cpu")


def timed(way: Way, device: torch.device = CPU) -> float:
    """Seconds of one turn, to the end of what it has the device do."""
    _wait(device)
    started = time.perf_counter()
    way()
    _wait(device)
    return time.perf_counter() - started


def alternate(ways: Mapping[str, Way], repeats: int, device: torch.device = CPU) -> dict[str, float]:
    """Median seconds of each way; they take turns, and the first turn, which warms up, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            took = timed(way, device)
            if repeat:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def fastest(ways: Mapping[int, Way], device: torch.device = CPU) -> int:
    """Which size of batch is fastest in its second turn; one that does not fit the device's memory is none.

    Raises:
        torch.OutOfMemoryError: not even the smallest fits.
    """
    found: dict[int, float] = {}
    for size, way in sorted(ways.items()):
        try:
            way()
            found[size] = timed(way, device)
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
    return min(found, key=lambda size: found[size])


def held(device: torch.device) -> float:
    """MB that a GPU's allocator has given out and not got back."""
    gc.collect()  # Opacus's hooks are cycles
    return torch.cuda.memory_allocated(device) / 1e6


def device_memory(way: Way, device: torch.device, beside: float = 0.0) -> float:
    """MB that a GPU's allocator gives out at most during a turn, weights included, but for `beside`, which others `held`."""
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    way()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) / 1e6 - beside


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def environment(device: torch.device = CPU) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
        "cuda": torch.cuda.is_available(),
    }


def options(description: str | None, repeats: int = 5, devices: bool = False) -> argparse.ArgumentParser:
    """The options that all benchmarks have, and `--device` for those that can be measured on a GPU."""
    with contextlib.suppress(ModuleNotFoundError):  # without Flower a step can be measured all the same
        quiet_libraries()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that count")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    if devices:
        parser.add_argument("--device", type=_device, default=CPU, help="where both ways run: cpu, cuda, cuda:1, ...")
    return parser


def _device(name: str) -> torch.device:
    try:
        return resolve_device(name)
    except InputError as error:
        raise argparse.ArgumentTypeError(error.found) from None


def report(found: dict[str, Any], table: str, target: Path | None, device: torch.device = CPU) -> None:
    """Print the table, and write the figures with their environment where that is asked for."""
    where = environment(device)
    on = f"\nMeasured on {where['device_name']} ({device}), PyTorch {where['torch']}.\n" if device.type != "cpu" else ""
    sys.stdout.write(f"{table}\n{on}")
    if target:
        target.write_text(json.dumps({**found, "environment": where}, indent=2), encoding="utf-8")
