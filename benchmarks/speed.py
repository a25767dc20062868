"""A private step on the encoder: ours against the obvious way, in one run, alternating.

    python -m benchmarks.speed --users 8 16 32 --history 12 --repeats 5

Both compute the same per-user gradients, which is checked before anything is timed. Memory is
what a process of its own grows by while it works. The rest of the difference between the gradients
is the trunk, which ours computes in bf16 and caches in float16.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.obvious import Obvious
from fedrec.data import MerchantData, load_merchant, merchant_folders
from fedrec.data.demo import build_demo
from fedrec.model import Arrays, Scoring, TextEncoder, init_base, init_trained, load_encoder
from fedrec.training import Examples, build_examples
from fedrec.training.encoder import EncoderTrainer

__all__ = ["main"]

NAME, LAYERS, RANK, MAX_TOKENS, NEGATIVES, CLIP = "minilm-l6", 1, 8, 48, 24, 0.1
Step = Callable[[Examples], list[torch.Tensor]]


class Bench:
    """One merchant, one lot, both ways."""

    def __init__(self, data: MerchantData, history: int) -> None:
        self.history = history
        self.encoder: TextEncoder = load_encoder(NAME, LAYERS, RANK, MAX_TOKENS, "cpu", 128)
        self.states = self.encoder.states(data.catalogue)
        self.base: Arrays = init_base(self.encoder, self.states, False, RANK, "principal", 0)
        rng = np.random.default_rng(0)
        # B as after some rounds: with B = 0 a gradient that leaves parts of the layer out would pass unseen.
        trained = init_trained(self.encoder, False, RANK)
        self.trained = {key: rng.normal(0, 0.02, value.shape).astype(np.float32) for key, value in trained.items()}
        self.prior = np.zeros(len(data.catalogue), dtype=np.float32)
        self.negatives = rng.integers(0, len(data.catalogue), NEGATIVES)
        self.texts = data.catalogue.texts
        self.examples = build_examples(data.histories, history=history, positions=2, decay=0.1, unit="user")

    def trainer(self) -> EncoderTrainer:
        """Ours."""
        trainer = EncoderTrainer(
            self.encoder, self.states, self.prior, self.base, self.trained, Scoring(3.0, 0.1, 1.0), history=self.history
        )
        trainer.negatives = self.negatives
        return trainer

    def ours(self) -> Step:
        """A step of ours: clipped sums."""
        trainer = self.trainer()

        def step(lot: Examples) -> list[torch.Tensor]:
            total: list[torch.Tensor] = []
            for gradients in trainer.gradients(lot):
                factors = (CLIP / (gradients.squared_norms().sqrt() + 1e-6)).clamp(max=1.0)
                sums = gradients.weighted_sum(factors)
                total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
            return total

        return step

    def obvious(self) -> Step:
        """A step of the obvious way."""
        way, trainer = Obvious(NAME, self.encoder, {**self.base, **self.trained}, self.texts, RANK, MAX_TOKENS), self.trainer()

        def step(lot: Examples) -> list[torch.Tensor]:
            samples = way.gradients(lot, self.negatives, self.history, trainer)
            norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
            factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
            return [torch.einsum("u,u...->...", factors, sample) for sample in samples]

        return step

    def lot(self, users: int) -> Examples:
        """The first users."""
        return self.examples.take(np.arange(users))

    def difference(self, users: int) -> float:
        """Largest difference of a user's gradient between both, over the largest gradient, in float32."""
        way, trainer, lot = (
            Obvious(NAME, self.encoder, {**self.base, **self.trained}, self.texts, RANK, MAX_TOKENS),
            self.trainer(),
            self.lot(users),
        )
        slow = torch.cat([sample.flatten(1) for sample in way.gradients(lot, self.negatives, self.history, trainer)], dim=1)
        low, self.encoder.low_precision = self.encoder.low_precision, False
        fast = torch.cat([torch.cat([s.flatten(1) for s in chunk.samples], dim=1) for chunk in trainer.gradients(lot)])
        self.encoder.low_precision = low
        return float((fast - slow).norm(dim=1).max() / slow.norm(dim=1).max())


def _memory(folder: str, history: int, users: int, way: str, queue: Any) -> None:
    bench = Bench(load_merchant(Path(folder)), history)
    step, lot = getattr(bench, way)(), bench.lot(users)
    step(bench.lot(2))
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    step(lot)
    over.set()
    watching.join()
    queue.put((most - before) / 1e6)


def memory(folder: Path, history: int, users: int, way: str) -> float:
    """MB by which the process's resident memory grows at most during a step."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_memory, args=(str(folder), history, users, way, queue))
    process.start()
    found = float(queue.get())
    process.join()
    return found


def measure(folder: Path, users: list[int], history: int, repeats: int) -> dict[str, Any]:
    """Medians of alternating repeats, by lot."""
    bench = Bench(load_merchant(folder), history)
    found: dict[str, Any] = {"difference": bench.difference(users[0]), "history": history, "lots": []}
    ways = {"ours": bench.ours(), "obvious": bench.obvious()}
    for count in users:
        lot, seconds = bench.lot(count), {name: list[float]() for name in ways}
        for repeat in range(repeats + 1):
            for name, step in ways.items():
                started = time.perf_counter()
                step(lot)
                if repeat:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        peak = {name: memory(folder, history, count, name) for name in ways}
        found["lots"].append({"users": count, "seconds": medians, "memory": peak})
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        "| users | ours, users/s | obvious, users/s | times faster | ours, MB | obvious, MB | times less |",
        "|---|---|---|---|---|---|---|",
    ]
    for lot in found["lots"]:
        ours, obvious = lot["seconds"]["ours"], lot["seconds"]["obvious"]
        mine, theirs = lot["memory"]["ours"], lot["memory"]["obvious"]
        rows.append(
            f"| {lot['users']} | {lot['users'] / ours:.1f} | {lot['users'] / obvious:.1f} | {obvious / ours:.1f} "
            f"| {mine:.0f} | {theirs:.0f} | {theirs / max(mine, 1):.1f} |"
        )
    return "\n".join([*rows, "", f"Largest difference of a user's gradient, float32: {found['difference']:.1e}."])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--history", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    with tempfile.TemporaryDirectory() as scratch:
        federation = Path(scratch) / "federation"
        build_demo(federation, {"epsilon": 8.0, "delta": 1e-5})
        found = measure(merchant_folders(federation)[0], arguments.users, arguments.history, arguments.repeats)
    found["environment"] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.processor()}
    sys.stdout.write(table(found) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
