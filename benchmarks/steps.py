"""A private step: against the obvious way, against our own step without privacy, and as it grows.

    python -m benchmarks.steps

Against the obvious way (`benchmarks/obvious.py`) both compute the same per-user gradients, which is
checked first. What they differ by is precision: our trunk is computed in bf16 where the processor has it
and cached in float16. The obvious way also tokenises its texts in every step.
Without privacy the step is `simulations/reference.py`: plain autograd, every distinct text of the lot
encoded once; "no text shared" is the same sum over every user's own copies of its texts.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Way, alternate, exponent, memory, options, report
from benchmarks.obvious import Obvious
from fedrec.config import Part, RunConfig
from fedrec.data import load_merchant, merchant_folders
from fedrec.data.demo import build_demo
from fedrec.model import Arrays, Scoring, TextEncoder, init_base, init_trained, load_encoder
from fedrec.model.adapter import of_part
from fedrec.privacy import Policy, SeededNoise
from fedrec.training import Examples, RoundTask, build_examples, merged, train_round
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.sampled import layout
from simulations.reference import Pooled, local_round

__all__ = ["against_obvious", "growth", "main", "privacy_cost"]

NAME, LAYERS, RANK, HEAD_RANK, MAX_TOKENS, NEGATIVES, CLIP = "minilm-l6", 1, 8, 32, 48, 24, 0.1
Step = Callable[[Examples], list[torch.Tensor]]


class Bench:
    """One merchant with an adapter as after some rounds: where B = 0, a gradient that is wrong may pass unseen."""

    def __init__(self, folder: Path, history: int = 50, encoder_history: int = 12) -> None:
        self.data, self.encoder_history = load_merchant(folder), encoder_history
        self.encoder: TextEncoder = load_encoder(NAME, LAYERS, RANK, MAX_TOKENS, "cpu", 128)
        self.states = self.encoder.states(self.data.catalogue)
        self.base: Arrays = init_base(self.encoder, self.states, True, HEAD_RANK, "principal", 0)
        rng = np.random.default_rng(0)
        zeros = init_trained(self.encoder, True, HEAD_RANK)
        self.trained = {key: rng.normal(0, 0.02, value.shape).astype(np.float32) for key, value in zeros.items()}
        self.prior = np.zeros(len(self.data.catalogue), dtype=np.float32)
        self.negatives = rng.integers(0, len(self.data.catalogue), NEGATIVES)
        self.examples = build_examples(self.data.histories, history=history, positions=2, decay=0.1, unit="user")

    def lot(self, users: int) -> Examples:
        """The first users."""
        return self.examples.take(np.arange(users))

    def trainer(self) -> EncoderTrainer:
        """Ours, on the encoder."""
        scoring = Scoring(3.0, 0.1, 1.0)
        trainer = EncoderTrainer(
            self.encoder, self.states, self.prior, self.base, self.trained, scoring, history=self.encoder_history
        )
        trainer.negatives = self.negatives
        return trainer

    def ours(self) -> Step:
        """Clipped sums, our way."""
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
        """Clipped sums, the obvious way."""
        way, softmax = self._obvious(), self.trainer().softmax

        def step(lot: Examples) -> list[torch.Tensor]:
            samples = way.gradients(lot, self.negatives, self.encoder_history, softmax)
            norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
            factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
            return [torch.einsum("u,u...->...", factors, sample) for sample in samples]

        return step

    def difference(self, users: int) -> float:
        """Largest difference of a user's gradient between both, over the largest gradient."""
        trainer, lot = self.trainer(), self.lot(users)
        samples = self._obvious().gradients(lot, self.negatives, self.encoder_history, trainer.softmax)
        slow = torch.cat([sample.flatten(1) for sample in samples], dim=1)
        fast = torch.cat([torch.cat([s.flatten(1) for s in chunk.samples], dim=1) for chunk in trainer.gradients(lot)])
        return float((fast - slow).norm(dim=1).max() / slow.norm(dim=1).max())

    def rounds(self, part: Part, users: int) -> dict[str, Way]:
        """A private round of one step over so many users, and the same without privacy."""
        config = RunConfig(sample_rate=1.0, encoder_sample_rate=1.0, encoder_history=self.encoder_history)
        base, lot = of_part(self.trained, part), self.lot(users)
        lot = merged(lot) if part == "heads" else lot
        public = {
            **self.base, "prior.keys": self.data.catalogue.keys, "prior.floor": np.ones(1, np.float32),
            "prior.counts": np.ones(len(self.prior), np.float32),
        }  # fmt: skip
        merchant, scoring = Pooled("bench", self.data, Policy(epsilon=8.0, delta=1e-5, population=users)), Scoring(3.0, 0.1, 1.0)
        task = replace(_task(self.encoder.fingerprint, config), part=part)

        def private() -> object:
            return train_round(
                task, self.data.catalogue, lot, encoder=self.encoder, base=self.base, trained={**self.trained, **base},
                prior=self.prior, population=users, noise=SeededNoise(0, "bench"),
            )  # fmt: skip

        ways: dict[str, Way] = {
            "private": private,
            "plain": lambda: local_round(config, part, 1, merchant, lot, self.encoder, public, self.trained, scoring),
        }
        if part == "encoder":
            trainer = self.trainer()
            ways["no text shared"] = lambda: self._apart(trainer, lot)
        return ways

    def _apart(self, trainer: EncoderTrainer, lot: Examples) -> list[torch.Tensor]:
        """The lot's gradient, each user's copy of a text forward and back on its own: no clipping, no noise."""
        pairs = layout(lot, self.encoder_history)
        texts = np.concatenate([pairs.text, np.tile(self.negatives, len(lot))])
        leaf = self.encoder.pooled(self.states, texts).requires_grad_(True)
        shared = leaf[len(pairs.text) :].view(len(lot), len(self.negatives), -1)
        losses = trainer.softmax.losses(leaf[: len(pairs.text)], shared, pairs, lot, self.negatives)
        (upstream,) = torch.autograd.grad(losses.sum(), leaf)
        total = [torch.zeros_like(value) for value in trainer.parameters()]
        for rows in self.encoder.batches(self.states.length[texts]):
            out = self.encoder.run_top(*self.encoder.gather(self.states, texts[rows]))
            for sums, gradient in zip(
                total, torch.autograd.grad(out, trainer.parameters(), upstream[torch.as_tensor(rows)]), strict=True
            ):
                sums += gradient
        return total

    def _obvious(self) -> Obvious:
        return Obvious(NAME, LAYERS, {**self.base, **self.trained}, self.data.catalogue.texts, RANK, MAX_TOKENS)


def _task(trunk: str, config: RunConfig) -> RoundTask:
    return RoundTask(
        run="bench", round=1, part="heads", trunk=trunk, encoder_layers=LAYERS, encoder_rank=RANK, max_tokens=MAX_TOKENS,
        local_steps=1, sample_rate=1.0, clip_norm=CLIP, noise_multiplier=1.0, delta=1e-5, unit="user", learning_rate=1.0,
        history=config.history, positions=config.positions, negatives=NEGATIVES, encoder_history=config.encoder_history,
        temperature=3.0, decay=0.1, prior_weight=1.0, update_code="float32",
    )  # fmt: skip


def _prepare(folder: str, encoder_history: int, way: str, users: int) -> tuple[Way, Way]:
    bench = Bench(Path(folder), encoder_history, encoder_history)
    step = getattr(bench, way)()
    return lambda: step(bench.lot(2)), lambda: step(bench.lot(users))


def _prepare_round(folder: str, part: Part, users: int) -> tuple[Way, Way]:
    bench = Bench(Path(folder))
    return bench.rounds(part, 2)["private"], bench.rounds(part, users)["private"]


def against_obvious(folder: Path, users: list[int], histories: list[int], repeats: int) -> dict[str, Any]:
    """A step on the encoder by lot and by history, ours and the obvious one."""
    found: dict[str, Any] = {"rows": []}
    for history in histories:
        bench = Bench(folder, history, history)
        found["difference"] = max(found.get("difference", 0.0), bench.difference(users[0]))
        for count in users if history == histories[0] else users[:1]:
            ways = {name: getattr(bench, name)() for name in ("ours", "obvious")}
            lot = bench.lot(count)
            seconds = alternate({name: partial(step, lot) for name, step in ways.items()}, repeats)
            peak = {name: memory(_prepare, str(folder), history, name, count) for name in ("ours", "obvious")}
            found["rows"].append({"users": count, "history": history, "seconds": seconds, "memory": peak})
    return found


def privacy_cost(folders: list[Path], users: int, repeats: int) -> list[dict[str, Any]]:
    """A round of one step with privacy and without: the heads by catalogue, and the encoder."""
    rows = []
    for folder in folders:
        bench = Bench(folder)
        seconds = alternate(bench.rounds("heads", len(bench.examples)), repeats)
        rows.append({"part": "heads", "items": len(bench.prior), "users": len(bench.examples), "seconds": seconds})
    bench = Bench(folders[1])
    seconds = alternate(bench.rounds("encoder", users), repeats)
    return [*rows, {"part": "encoder", "items": len(bench.prior), "users": users, "seconds": seconds}]


def growth(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Seconds and memory of a private round of one step as the lot grows, with the exponent."""
    rows = []
    lots: dict[Part, list[int]] = {"heads": [180, 360, 720, 1440, 1800], "encoder": [24, 48, 96, 192, 240]}
    for part, sizes in lots.items():
        bench = Bench(folder)
        seconds = alternate({str(size): bench.rounds(part, size)["private"] for size in sizes}, repeats)
        peak = {size: memory(_prepare_round, str(folder), part, size) for size in (sizes[0], sizes[-1])}
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


def measure(repeats: int, users: list[int], histories: list[int]) -> dict[str, Any]:
    """All of it on the embedded demo's brand shops."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    with tempfile.TemporaryDirectory() as scratch:
        build_demo(Path(scratch), {"epsilon": 8.0, "delta": 1e-5})
        folders = {folder.name: folder for folder in merchant_folders(Path(scratch))}
        chosen = [folders[name] for name in ("brand-1208", "brand-2", "brand-69")]  # 80, 500 and 3,100 items
        return {
            "obvious": against_obvious(chosen[1], users, histories, repeats),
            "privacy": privacy_cost(chosen, users[-1], repeats),
            "growth": growth(chosen[1], repeats),
        }


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--histories", type=int, nargs="+", default=[12, 6, 24])
    arguments = parser.parse_args()
    found = measure(arguments.repeats, arguments.users, arguments.histories)
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
