"""A private step: against the obvious way, against our own step without privacy, and as it grows.

    python -m benchmarks.steps
    python -m benchmarks.steps --device cuda --users 64 256 1024

Against the obvious way (`benchmarks/obvious.py`) both compute the same per-user gradients, which is
checked first. What they differ by is precision: our trunk is computed in bf16 where the processor has it
or the GPU has it and cached in float16. The obvious way has the catalogue tokenised beforehand, and takes as many users at a
time as it is fastest with.
Without privacy the step is `simulations/reference.py`: plain autograd, every distinct text of the lot
encoded once; "no text shared" is the same sum over every user's own copies of its texts.
"""

from __future__ import annotations

import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.measure import CPU, Way, alternate, device_memory, exponent, held, memory, options, report
from fedrec.config import Part
from fedrec.data import merchant_folders
from fedrec.data.demo import build_demo

__all__ = ["against_obvious", "compared", "growth", "main", "privacy_cost"]


def _prepare(folder: str, history: int, way: str, users: int, batch: int) -> tuple[Way, Way]:
    bench = Bench(Path(folder), history, history)
    step = bench.ours() if way == "ours" else partial(bench.obvious(), batch=batch)
    return lambda: step(bench.lot(2)), lambda: step(bench.lot(users))


def _prepare_round(folder: str, part: Part, users: int) -> tuple[Way, Way]:
    bench = Bench(Path(folder))
    return bench.rounds(part, 2)["private"], bench.rounds(part, users)["private"]


def compared(bench: Bench, users: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step, ours and the obvious way with its best batch; on a GPU with the most that each holds there."""
    lot, device, peak = bench.lot(users), bench.device, {}
    ours = partial(bench.ours(), lot)
    if device.type == "cuda":  # while nothing of the other is there: ours answers for all that is
        gc.collect()
        ours()  # what is made once is made
        peak["ours"] = device_memory(ours, device)
        before = held(device)
    step = bench.obvious()
    batch = bench.best_batch(step, users)
    obvious = partial(step, lot, batch)
    if device.type == "cuda":
        peak["obvious"] = device_memory(obvious, device, before)
    seconds = alternate({"ours": ours, "obvious": obvious}, repeats, device)
    return {"users": users, "history": bench.encoder_history, "batch": batch, "seconds": seconds, "memory": peak}


def against_obvious(
    folder: Path, users: list[int], histories: list[int], repeats: int, device: torch.device = CPU
) -> dict[str, Any]:
    """A step on the encoder by lot and by history, ours and the obvious one."""
    found: dict[str, Any] = {"rows": []}
    for history in histories:
        bench = Bench(folder, history, history, device=device)
        found["difference"] = max(found.get("difference", 0.0), bench.difference(users[0]))
        for count in users if history == histories[0] else users[:1]:
            row = compared(bench, count, repeats)
            if device.type == "cpu":
                ways = ("ours", "obvious")
                row["memory"] = {way: memory(_prepare, str(folder), history, way, count, row["batch"]) for way in ways}
            found["rows"].append(row)
    return found


def privacy_cost(folders: list[Path], users: int, repeats: int, device: torch.device = CPU) -> list[dict[str, Any]]:
    """A round of one step with privacy and without: the heads by catalogue, and the encoder."""
    rows = []
    for folder in folders:
        bench = Bench(folder, device=device)
        seconds = alternate(bench.rounds("heads", len(bench.examples)), repeats, device)
        rows.append({"part": "heads", "items": len(bench.prior), "users": len(bench.examples), "seconds": seconds})
    bench = Bench(folders[1], device=device)
    seconds = alternate(bench.rounds("encoder", users), repeats, device)
    return [*rows, {"part": "encoder", "items": len(bench.prior), "users": users, "seconds": seconds}]


def growth(folder: Path, repeats: int, device: torch.device = CPU) -> list[dict[str, Any]]:
    """Seconds and memory of a private round of one step as the lot grows, with the exponent."""
    rows = []
    lots: dict[Part, list[int]] = {"heads": [180, 360, 720, 1440, 1800], "encoder": [24, 48, 96, 192, 240]}
    for part, sizes in lots.items():
        bench = Bench(folder, device=device)
        ways = {str(size): bench.rounds(part, size)["private"] for size in sizes}
        seconds = alternate(ways, repeats, device)
        ends = (sizes[0], sizes[-1])
        if device.type == "cpu":
            peak = {size: memory(_prepare_round, str(folder), part, size) for size in ends}
        else:
            peak = {size: device_memory(ways[str(size)], device) for size in ends}
        rows.append({"part": part, "seconds": seconds, "memory": peak, "exponent": exponent(sizes, list(seconds.values()))})
    return rows


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        "A private step on the encoder against the obvious way:", "",
        "| users | history | ours, users/s | obvious, users/s | times faster | ours, MB | obvious, MB "
        "| times less |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["obvious"]["rows"]:
        ours, obvious = (row["seconds"][name] for name in ("ours", "obvious"))
        users = row["users"]
        mine, theirs = row["memory"]["ours"], row["memory"]["obvious"]
        rows.append(
            f"| {users} | {row['history']} | {users / ours:.1f} | {users / obvious:.1f} | {obvious / ours:.1f} "
            f"| {mine:.0f} | {theirs:.0f} | {theirs / max(mine, 1):.1f} |"
        )
    rows += [
        "",
        f"Largest difference of a user's gradient: {found['obvious']['difference']:.1e}.",
        "",
        "A private round of one step against the same without privacy:", "",
        "| part | items | users | private, s | plain, s | ratio | no text shared, s | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["privacy"]:
        private, plain, apart = (row["seconds"].get(name) for name in ("private", "plain", "no text shared"))
        last = f"{apart:.2f} | {private / apart:.2f}" if apart else "- | -"
        rows.append(
            f"| {row['part']} | {row['items']} | {row['users']} | {private:.2f} | {plain:.2f} | {private / plain:.2f} | {last} |"
        )
    rows += ["", "Growth with the lot:", "", "| part | users: seconds | exponent | users: MB |", "|---|---|---|---|"]
    for row in found["growth"]:
        seconds = ", ".join(f"{size}: {value:.2f}" for size, value in row["seconds"].items())
        peak = ", ".join(f"{size}: {value:.0f}" for size, value in row["memory"].items())
        rows.append(f"| {row['part']} | {seconds} | {row['exponent']:.2f} | {peak} |")
    return "\n".join(rows)


def measure(repeats: int, users: list[int], histories: list[int], device: torch.device) -> dict[str, Any]:
    """All of it on the embedded demo's brand shops."""
    with tempfile.TemporaryDirectory() as scratch:
        build_demo(Path(scratch), {"epsilon": 8.0, "delta": 1e-5})
        folders = {folder.name: folder for folder in merchant_folders(Path(scratch))}
        chosen = [folders[name] for name in ("brand-1208", "brand-2", "brand-69")]  # 80, 500 and 3,100 items
        return {
            "obvious": against_obvious(chosen[1], users, histories, repeats, device),
            "privacy": privacy_cost(chosen, users[-1], repeats, device),
            "growth": growth(chosen[1], repeats, device),
        }


def main() -> None:
    """The command."""
    parser = options(__doc__, devices=True)
    parser.add_argument("--users", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--histories", type=int, nargs="+", default=[12, 6, 24])
    arguments = parser.parse_args()
    found = measure(arguments.repeats, arguments.users, arguments.histories, arguments.device)
    report(found, table(found), arguments.json, arguments.device)


if __name__ == "__main__":
    main()
