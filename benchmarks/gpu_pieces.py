"""What `benchmarks.gpu` measures, piece by piece; each is a function that returns figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.bench import Bench, Shape
from benchmarks.counts import counted
from benchmarks.item_table import compared as compared_tables
from benchmarks.measure import alternate, device_memory, timed
from benchmarks.shop import BASE, MINILM, TINY, EncoderShape, item_titles, purchases, write_encoder, write_shop
from benchmarks.steps import compared
from fedrec.config import RunConfig
from fedrec.data import Catalogue, Columns, merchant_folders
from fedrec.data.split import write_federation
from fedrec.model import load_encoder
from fedrec.training import merged

__all__ = ["FULL", "PIECES", "SMALL", "Machine", "Size"]

DEMO = (
    (111, 1453), (248, 1527), (82, 1517), (132, 1466), (234, 1449), (492, 1863), (126, 1624), (239, 1606), (305, 1500),
    (3119, 1932), (303, 1443), (345, 1458),
)  # fmt: skip
"""Items and users of the demo's merchants."""
HOLDOUT, SAMPLED = 0.2, 0.1
"""Share of the demo's users that the server evaluates on, and of a merchant's that a step on the encoder draws."""


@dataclass(frozen=True)
class Size:
    """How large everything is that is measured.

    Attributes:
        encoder, large: shapes of the encoder of most pieces, and of that of `larger`.
        items, users: of the shop, as the demo's second brand has them, or more.
        lots: users of a step on the encoder, each against the obvious way.
        heads, private: users of a step on the heads and on the encoder, with privacy and without.
        texts: of the item table.
        demo: items and users of a round's merchants.
        layers, ranks: of the large encoder's LoRA.
        tokens: of its texts, the least and the most.
        some: users of its steps.
        matrix, copied: rows of the square matrices and bytes by which the device is measured.
        repeats: turns that count.
    """

    encoder: EncoderShape
    large: EncoderShape
    items: int
    users: int
    lots: tuple[int, ...]
    heads: int
    private: int
    texts: int
    demo: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    tokens: tuple[int, int]
    some: int
    matrix: int
    copied: int
    repeats: int


FULL = Size(
    encoder=MINILM, large=BASE, items=492, users=2500, lots=(64, 256, 1024), heads=1000, private=256, texts=100_000, demo=DEMO,
    layers=(1, 4, 12), ranks=(8, 64), tokens=(200, 512), some=16, matrix=8192, copied=2**32, repeats=3,
)  # fmt: skip
SMALL = Size(
    encoder=TINY, large=TINY, items=40, users=60, lots=(4,), heads=20, private=4, texts=60, demo=((20, 80), (20, 80)),
    layers=(1, 2), ranks=(2,), tokens=(8, 16), some=2, matrix=64, copied=2**16, repeats=1,
)  # fmt: skip


@dataclass
class Machine:
    """A device, and a folder for what is made there."""

    device: torch.device
    size: Size
    scratch: Path

    @cached_property
    def shop(self) -> Path:
        """The shop of most pieces."""
        write_shop(self.scratch / "shop", self.size.items, self.size.users)
        return self.scratch / "shop"

    @cached_property
    def shape(self) -> Shape:
        """The encoder of most pieces."""
        write_encoder(self.scratch / "encoder", self.size.encoder)
        return Shape(name=str(self.scratch / "encoder"))

    def bench(self, history: int = 50) -> Bench:
        """The shop with that encoder."""
        return Bench(self.shop, history, 12, shape=self.shape, device=self.device)

    def alternate(self, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds."""
        return alternate(ways, self.size.repeats, self.device)

    def peak(self, way: Callable[[], object]) -> float | None:
        """MB that the device holds at most meanwhile, weights included; None for a processor."""
        return device_memory(way, self.device) if self.device.type == "cuda" else None


def checks(machine: Machine) -> dict[str, Any]:
    """The tests for a GPU, in a process of their own."""
    tests = Path(__file__).parents[1] / "tests" / "test_cuda.py"
    command = [sys.executable, "-m", "pytest", "-n", "0", str(tests)]
    done = subprocess.run(command, cwd=tests.parents[1], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return {"status": done.returncode, "last": lines[-1] if lines else done.stderr[-500:], "output": done.stdout[-20_000:]}


def steps(machine: Machine) -> dict[str, Any]:
    """A private step on the encoder against the obvious way, by lot."""
    bench = machine.bench(history=12)
    difference = bench.difference(machine.size.lots[0])
    return {"difference": difference, "rows": [compared(bench, users, machine.size.repeats) for users in machine.size.lots]}


def privacy(machine: Machine) -> dict[str, Any]:
    """A round of one step with privacy and without, on heads and encoder."""
    bench, found = machine.bench(), {}
    for part, users in (("heads", machine.size.heads), ("encoder", machine.size.private)):
        ways = bench.rounds(part, users)  # type: ignore[arg-type]
        found[part] = {"users": users, "seconds": machine.alternate(ways), "memory": machine.peak(ways["private"])}
    return found


def item_table(machine: Machine) -> dict[str, Any]:
    """The table of a large catalogue against the obvious way."""
    shape = machine.shape
    encoder = load_encoder(shape.name, shape.layers, shape.rank, shape.max_tokens, str(machine.device), shape.texts_per_batch)
    texts = Catalogue.from_table(item_titles(machine.size.texts, (9, 30)))
    return compared_tables(encoder, texts, machine.scratch / "tables", shape, 1)  # a turn takes half a minute


def demo_round(machine: Machine) -> dict[str, Any]:
    """A round on the encoder of merchants as large as the demo's: what they train, and all of it where Flower is installed."""
    tables = []
    for number, (items, users) in enumerate(machine.size.demo):
        name = {Columns.MERCHANT: f"m{number:02d}"}
        bought = purchases(items, round(users / (1 - HOLDOUT)), seed=number)
        tables.append((item_titles(items, (9, 30), seed=number).assign(**name), bought.assign(**name)))
    items, events = (pd.concat(same, ignore_index=True) for same in zip(*tables, strict=True))
    federation = machine.scratch / "federation"
    write_federation(items, events, federation, HOLDOUT, {"epsilon": 1000.0, "delta": 1e-5})
    ways = []
    for folder in merchant_folders(federation):
        bench = Bench(folder, shape=machine.shape, device=machine.device)
        ways.append(bench.rounds("encoder", max(2, round(SAMPLED * len(bench.examples))))["private"])
    found: dict[str, Any] = machine.alternate({"training": lambda: [way() for way in ways]})
    try:
        found["round"] = _whole_round(machine, federation)
    except Exception as error:  # what was measured is kept
        found["skipped"] = f"a whole round, with messages and evaluation: {type(error).__name__}: {error}"
    return found


def _whole_round(machine: Machine, federation: Path) -> float:
    """Seconds of the last round of a run.

    Raises:
        ModuleNotFoundError: Flower is not installed.
    """
    from simulations.run import simulate

    config = RunConfig(
        rounds=3, encoder_rounds=2, noise_multiplier=5.0, encoder_noise_multiplier=5.0, histogram_noise_multiplier=5.0,
        encoder_sample_rate=SAMPLED, min_lot=1, bootstrap=100, encoder=machine.shape.name, device=str(machine.device),
    )  # fmt: skip
    return float(simulate(federation, config, machine.scratch / "run").metrics()[-1]["seconds"])


def larger(machine: Machine) -> dict[str, Any]:
    """A private step on a large encoder over long texts, by layers and rank."""
    size, rows = machine.size, []
    write_encoder(machine.scratch / "large", size.large)
    write_shop(machine.scratch / "long", 200, 50 + size.some, size.tokens)
    for layers in size.layers:
        for rank in size.ranks:
            row: dict[str, Any] = {"layers": layers, "rank": rank, "tokens": size.tokens[1], "users": size.some}
            shape = Shape(str(machine.scratch / "large"), layers, rank, size.tokens[1])
            try:
                bench = Bench(machine.scratch / "long", 12, 12, shape=shape, device=machine.device)
                way = partial(bench.ours(), bench.lot(size.some))
                way()
                row |= {"seconds": timed(way, machine.device), "memory": machine.peak(way)}
            except torch.OutOfMemoryError as error:
                row["failed"] = str(error).splitlines()[0]
            rows.append(row)
    return {"rows": rows}


def roofline(machine: Machine) -> dict[str, Any]:
    """What steps ask of the device, how long they take, and what the device can do."""
    bench, size, found = machine.bench(), machine.size, {"card": _card(machine)}
    ways = {"heads": partial(bench.heads(), merged(bench.lot(size.heads)))}
    ours = bench.ours()
    ways |= {f"encoder, {users} users": partial(ours, bench.lot(users)) for users in size.lots}
    for name, way in ways.items():
        seconds = machine.alternate({name: way})[name]
        with counted() as counts:
            way()
        found[name] = {"seconds": seconds, **counts.summary()}
    return found


def _card(machine: Machine) -> dict[str, float]:
    """Operations a second of matrix products by precision, on random numbers, and bytes a second of a copy, read and written."""
    rows, found = machine.size.matrix, {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        left, right = (torch.randn(rows, rows, device=machine.device, dtype=dtype) for _ in range(2))
        found[str(dtype).removeprefix("torch.")] = 2 * rows**3 / machine.alternate({"": partial(torch.matmul, left, right)})[""]
    source = torch.randn(machine.size.copied // 4, device=machine.device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / machine.alternate({"": partial(target.copy_, source)})[""]
    return found


PIECES: dict[str, Callable[[Machine], dict[str, Any]]] = {
    "checks": checks,
    "steps": steps,
    "privacy": privacy,
    "item_table": item_table,
    "roofline": roofline,
    "larger": larger,
    "demo_round": demo_round,
}
