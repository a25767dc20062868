"""What the commands share: errors, exit status, JSON, tables, progress."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from fedrec.cli.console import Progress, RenderableType, TaskID, err, out, progress_bars, stacked, styled, table
from fedrec.config import RunConfig
from fedrec.text import visible

SECURE_STEPS = {
    "announce": "announce keys",
    "share": "share their seeds",
    "mask_histogram": "count and mask",
    "mask_complements": "count what goes with what, and mask",
    "mask": "train and mask",
    "confirm": "confirm who is in the sum",
    "reveal": "open the sum",
}
"""What merchants do in a step of a secure sum."""
WIDE = 110
"""Columns of the terminal from which the final table shows all metrics."""

__all__ = [
    "TrustName", "err", "merchants_table", "metrics_table", "out", "print_json", "quiet_libraries", "quiet_models",
    "repeats_table", "round_progress", "show_results", "styled", "table",
]  # fmt: skip


class TrustName(StrEnum):
    """The trust models, as an option's choices."""

    local = "local"
    secure_aggregation = "secure-aggregation"


def print_json(value: object) -> None:
    """JSON for machines, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def metrics_table(results: dict[str, Any], k: int) -> RenderableType:
    """The final table of a run, each figure with its 95% interval where it has one."""

    def cell(row: dict[str, Any], name: str) -> object:
        if name not in row:
            return "not defined"
        value = f"{row[name]:.4f}"
        return stacked(value, f"{row[name + '_low']:.4f}-{row[name + '_high']:.4f}") if name + "_low" in row else value

    names = results.get("metrics", (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr"))[: 6 if out.width >= WIDE else 2]
    rows = [[row["name"], "yes" if row["private"] else "NO", *(cell(row, name) for name in names)] for row in results["rows"]]
    users = int(results["rows"][0]["users"])
    first = results["rows"][0]
    labels = [name for name in ("impressions", "ratings") if name in first]
    what = f"{int(first[labels[0]]):,} {labels[0]}" if labels else "full catalogue"
    title = f"Central evaluation: {users:,} held-out users, {what}, 95% intervals"
    return table(title, ["", "private", *(name.upper().replace("_", " ") for name in names)], rows, lines=True)


def merchants_table(found: dict[str, Any], k: int, title: str) -> RenderableType:
    """What merchants have alone and with the federation, each figure with its 95% interval."""
    names = (f"ndcg@{k}", f"hr@{k}", f"recall@{k}", "mrr")[: 4 if out.width >= WIDE else 2]

    def cell(row: dict[str, Any], name: str) -> object:
        return stacked(f"{row[name]:.4f}", f"{row[name + '_low']:.4f}-{row[name + '_high']:.4f}")

    rows = [[row["name"], *(cell(row, name) for name in names)] for row in found["rows"]]
    return table(title, ["", *(name.upper() for name in names)], rows, lines=True)


def repeats_table(rows: Mapping[str, Mapping[str, Any]], k: int, title: str) -> RenderableType:
    """Metrics by name where what is bought again counts too, each figure with its 95% interval."""
    names = (f"ndcg@{k}", f"recall@{k}", f"repeat_recall@{k}", f"explore_recall@{k}")

    def cell(row: Mapping[str, Any], name: str) -> object:
        return stacked(f"{row[name]:.4f}", f"{row[name + '_low']:.4f}-{row[name + '_high']:.4f}") if name in row else "nobody"

    cells = [[name, *(cell(row, metric) for metric in names)] for name, row in rows.items()]
    return table(title, ["", *(name.upper().replace("_", " ") for name in names)], cells, lines=True)


def show_merchants(found: dict[str, Any], k: int) -> None:
    """What each merchant of a simulation gets from the federation."""
    title = f"At the merchants: {found['gain']['users']:,} of these users, each at its own merchant (no server could know this)"
    out.print(merchants_table(found, k, title))
    rows = [("over all", found["gain"]), *((row["name"], row) for row in found["sizes"])]
    ranked = sorted(found["merchants"], key=lambda row: row["mean"])
    rows += [(f"worst: {ranked[0]['name']}", ranked[0]), (f"best: {ranked[-1]['name']}", ranked[-1])]
    cells = [
        [what, f"{row['users']:,}", f"{row['alone']:.4f}", f"{row['federated']:.4f}",
         f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"]
        for what, row in rows
    ]  # fmt: skip
    what = f"What federation pays: NDCG@{k} of federated + own layer over alone, user by user"
    out.print(table(what, ["", "users", "alone", "federated + own", "gain [95%]"], cells))
    over = [f"{name} {row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for name, row in found["over"].items()]
    out.print(f"The same over the parts: {', '.join(over)}", soft_wrap=True)


def show_results(config: RunConfig, results: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """A finished run: the metrics, what was spent, what was sent."""
    out.print(metrics_table(results, config.top_k))
    if results.get("merchants"):
        show_merchants(results["merchants"], config.top_k)
    release = results.get("complements")
    last: dict[str, dict[str, Any]] = dict(release["privacy"]) if release else {}
    for line in lines:
        last |= line["privacy"]
    rows = [
        [name, f"{p['epsilon']:.3f}", f"{p['budget']:g}", f"{p['delta']:g}", p["accountant"], f"{p['population']:,}"]
        for name, p in sorted(last.items())
    ]
    simulated = " (a simulation: the noise has a seed)" if results["simulation"] else ""
    if rows:
        out.print(
            table(
                f"Privacy spent, by each merchant's statement, unit: {config.unit}, trust: {config.trust}{simulated}",
                ["merchant", "epsilon", "budget", "delta", "accountant", "declared users"],
                rows,
            )
        )
        out.print(_covered(config, sum(p["epsilon"] for p in last.values())), style="dim")
    if (kept := lines[-1].get("kept", 1.0)) < 1:
        out.print(f"{kept:.0%} of what was trained is kept: what the judging users bought is most likely then.", style="yellow")
    if judged := results.get("judged"):
        from fedrec.report.run_report import judges_say

        out.print(judges_say(judged, results["rounds"], config.rounds), style="yellow" if judged["stopped"] else "dim")
    if start := results.get("start"):
        out.print(f"Started from the adapter of {visible(start['from'])}, digest {start['digest']}.", style="dim", soft_wrap=True)
    if abandoned := [str(line["round"]) for line in lines if "abandoned" in line]:
        out.print(f"Abandoned, with no sum opened and nothing learned: round {', '.join(abandoned)}.", style="yellow")
    if release:
        from fedrec.report.run_report import release_says

        out.print(release_says(release), style="yellow" if release["abandoned"] else "dim", soft_wrap=True)
    up = [size for line in lines[1:] for size in line["bytes_up"].values()]
    down = [size for line in lines[2:] for size in line["bytes_down"].values()]
    model = results["model_bytes"]
    if up and down:
        out.print(
            f"A merchant sends at most {max(up):,} bytes a round and gets {max(down):,}; "
            f"the model has {model:,}: {model / max(up):,.0f} and {model / max(down):,.0f} times more.",
            style="dim",
        )


def _covered(config: RunConfig, total: float) -> str:
    """What the figures of a run's privacy table rest on, and what they mean for a customer of several merchants."""
    if config.trust == "local":
        return (
            f"A person who is a customer of several merchants is covered by the sum of their epsilons: at most {total:.1f} here."
        )
    from fedrec.report.trust_words import assumed

    return (
        f"Under secure aggregation these hold if {assumed(config.dropouts, config.colluders)}. What holds if all other merchants "
        "collude, and for a customer of several merchants, is weaker: `fedrec privacy report` on the ledgers says by how much."
    )


def quiet_models() -> None:
    """Keep banners of packages that are not imported yet out of the terminal; it imports none, which takes seconds."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def quiet_libraries() -> None:
    """Keep other packages' banners out of the terminal; their errors still come through."""
    quiet_models()
    import flwr  # noqa: F401  (importing it sets the level of its logger)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.ERROR)
    flower.propagate = False


@contextmanager
def round_progress() -> Iterator[None]:
    """Show a run's rounds and merchants as they go, with the time that is left."""
    from server.progress import watching

    with progress_bars(left=True) as progress, watching(_Watcher(progress)):
        yield


class _Watcher:
    """Turns a run's events into bars and lines."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.rounds: TaskID | None = None
        self.merchants: TaskID | None = None
        self.asked_for = ""
        self.started = time.time()

    def __call__(self, event: str, fields: dict[str, Any]) -> None:
        handler = getattr(self, f"_{event}", None)
        if handler is not None:
            handler(**fields)

    def _line(self, *parts: str | tuple[str, str]) -> None:
        self.progress.console.print(styled((f"{time.time() - self.started:6.0f} s", "dim"), "  ", *parts))

    def _data(self, what: str) -> None:
        self._line(what)

    def _preparing(self, what: str, texts: int) -> None:
        self._line(f"{what}: {texts:,}")

    def _waiting(self, there: int, needed: int, seconds: int) -> None:
        if self.merchants is None:
            self.merchants = self.progress.add_task("merchants", total=needed)
        what = f"waiting for merchants, at most {seconds} s more"
        self.progress.update(self.merchants, completed=there, total=needed, description=what)

    def _waiting_for_delivery(self) -> None:
        self._line("the adapter is on its way to a merchant that came back; waiting until that has ended")

    def _another_pending(self, folder: str, run: str) -> None:
        self._line(f"another adapter was sent since, and stays; this one is sent by: fedrec server deliver {folder} {run}")

    def _histogram_started(self, merchants: int) -> None:
        self._line(f"popularity: {merchants} private histograms")
        self._statistic_started("popularity", merchants)

    def _complements_started(self, merchants: int) -> None:
        self._line(f"what goes with what: {merchants} private counts of pairs")
        self._statistic_started("what goes with what", merchants)

    def _statistic_started(self, what: str, merchants: int) -> None:
        self.asked_for = what
        if self.merchants is None:
            self.merchants = self.progress.add_task("merchants", total=merchants)
        self.progress.reset(self.merchants, total=merchants, description="merchants")

    def _round_started(self, round: int, rounds: int, part: str, merchants: int) -> None:
        if self.rounds is None:
            self.rounds = self.progress.add_task("rounds", total=rounds, completed=round - 1)
        if self.merchants is None:
            self.merchants = self.progress.add_task("merchants", total=merchants)
        self.asked_for = f"round {round}"
        self.progress.update(self.rounds, description=f"rounds ({part})")
        self.progress.reset(self.merchants, total=merchants, description=f"  merchants, {self.asked_for}")

    def _secure_step(self, step: str, merchants: int) -> None:
        if self.merchants is not None:
            what = f"  merchants, {self.asked_for}: {SECURE_STEPS[step]}"
            self.progress.reset(self.merchants, total=merchants, description=what)

    def _merchant_done(self, done: int) -> None:
        if self.merchants is not None:
            self.progress.update(self.merchants, completed=done)

    def _round_done(self, **line: Any) -> None:
        if self.rounds is not None:
            self.progress.update(self.rounds, completed=line["round"])
        whole = ("auc", "rmse")
        first = next(name for name in line["central"] if name in whole or (name.startswith("ndcg@") and "_" not in name))
        central, spent = line["central"], [entry["epsilon"] for entry in line["privacy"].values()]
        text = f"round {line['round']:>3} {line['part']:<9} {first.upper()} {central[first]:.4f}"
        text += f" [{central[first + '_low']:.4f}, {central[first + '_high']:.4f}]  {len(line['took_part'])} merchants"
        if spent:
            text += f"  epsilon {max(spent):.2f}"
        if line["bytes_up"]:
            text += f"  {max(line['bytes_down'].values()) / 1000:.1f} kB down, {max(line['bytes_up'].values()) / 1000:.1f} kB up"
        self._line(text)
        if "abandoned" in line:
            self._line("    ", ("abandoned", "yellow"), f", no sum was opened: {line['abandoned']}")
        for what in ("declined", "refused"):
            for merchant, reason in line[what].items():
                self._line(f"    {merchant} {what}: {reason}")

    def _finished(self, reason: str) -> None:
        self._line(reason)

    def _at_merchant(self, merchant: str, number: int, merchants: int) -> None:
        if number == 1:
            self._line("at each merchant: what it has alone, and with what came home")
            self.rounds = self.progress.add_task("merchants", total=merchants)
        if self.rounds is not None:
            self.progress.update(self.rounds, completed=number - 1)

    def _delivery_started(self, merchants: int) -> None:
        self._line(f"the adapter goes home to {merchants} merchants")
        if self.merchants is not None:
            self.progress.reset(self.merchants, total=merchants, description="merchants, the adapter")

    def _delivered(self, merchant: str, outcome: str) -> None:
        if outcome not in ("kept", "known"):
            self._line(f"    {merchant} does not have it: {outcome}")

    def _reference_started(self, rounds: int) -> None:
        self._line("the same training with noise and clipping off, as a reference that is not private")
        self.rounds = self.progress.add_task("reference (not private)", total=rounds)

    def _reference_round(self, round: int, rounds: int) -> None:
        if self.rounds is not None:
            self.progress.update(self.rounds, completed=round)
