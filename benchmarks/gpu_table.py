"""The one table of `benchmarks.gpu`: what is asked, what was measured, and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["table"]

Found = dict[str, Any]
Row = tuple[str, str, str, str]
ASKED_FASTER = {64: 10, 256: 20, 1024: 20}
"""How many times faster than the obvious way a private step on the encoder is asked to be, by users."""


def table(found: dict[str, Found]) -> str:
    """The figures as Markdown.

    Args:
        found: what each piece returned, by its name.
    """
    rows = ["| what | asked | measured | |", "|---|---|---|---|"]
    for name, figures in found.items():
        lines = [(name, "", "failed", figures["failed"])] if "failed" in figures else ROWS[name](figures)
        rows += [f"| {' | '.join(line)} |" for line in lines]
    devices = {f"{one['environment']['device_name']}, PyTorch {one['environment']['torch']}" for one in found.values()}
    return "\n".join(rows) + f"\n\nMeasured on {'; '.join(sorted(devices))}.\n"


def _checks(found: Found) -> Iterator[Row]:
    yield (
        "tests/test_cuda.py",
        "passes",
        "passed" if found["status"] == 0 else f"status {found['status']}",
        found["last"].strip("= "),
    )


def _steps(found: Found) -> Iterator[Row]:
    for row in found["rows"]:
        ours, obvious = row["seconds"]["ours"], row["seconds"]["obvious"]
        asked = f"{ASKED_FASTER[row['users']]} times faster" if row["users"] in ASKED_FASTER else ""
        beside = f"{ours * 1e3:,.1f} against {obvious * 1e3:,.1f} ms; the obvious way {row['batch']} users at a time"
        yield f"private step on the encoder, {row['users']:,} users", asked, f"{obvious / ours:.1f} times", beside
        if row["memory"]:
            mine, theirs = row["memory"]["ours"], row["memory"]["obvious"]
            beside = f"{mine:,.0f} against {theirs:,.0f} MB, weights included"
            yield f"its memory, {row['users']:,} users", "10 times less", f"{theirs / mine:.1f} times", beside
    yield "a user's gradient, ours and the obvious way's", "", f"{found['difference']:.1e}", "largest difference, of the largest"


def _privacy(found: Found) -> Iterator[Row]:
    for part, asked in (("heads", "at most 1.3"), ("encoder", "at most 2.5")):
        row = found[part]
        private, plain = row["seconds"]["private"], row["seconds"]["plain"]
        beside = f"{private * 1e3:,.1f} against {plain * 1e3:,.1f} ms{_mb(row['memory'])}"
        yield f"private round of one step against plain, {part}, {row['users']:,} users", asked, f"{private / plain:.2f}", beside


def _item_table(found: Found) -> Iterator[Row]:
    seconds, what = found["seconds"], f"item table, {found['texts']:,} texts"
    obvious, tokens, first, later = (seconds[name] for name in ("obvious", "tokeniser", "new catalogue", "new adapter"))
    beside = f"{first:.2f} against {obvious:.2f} s and {tokens:.2f} s for the tokeniser; least cosine {found['least_cosine']:.4f}"
    yield f"{what}, new catalogue", "5 times faster", f"{(obvious + tokens) / first:.1f} times", beside
    memory = found.get("memory", {})
    beside = f"{later:.3f} against {obvious:.2f} s{_mb(memory.get('new adapter'))}"
    yield f"{what}, new adapter", "30 times faster", f"{obvious / later:.1f} times", beside


def _demo_round(found: Found) -> Iterator[Row]:
    whole = found.get("round")
    measured = f"{whole:.2f} s" if whole else "not measured"
    beside = f"training alone {found['training']:.2f} s" + (f"; {found['skipped']}" if "skipped" in found else "")
    yield "a round on the encoder of merchants as large as the demo's", "under a second", measured, beside


def _roofline(found: Found) -> Iterator[Row]:
    card = found["card"]
    rates = ", ".join(f"{name} {card[name] / 1e12:.3g}" for name in ("bfloat16", "float32", "float64"))
    yield "matrix products, 10^12 operations a second", "", rates, f"copy {card['copy'] / 1e9:,.0f} GB a second, read and written"
    for name, step in found.items():
        if name in ("card", "took", "environment"):
            continue
        matrix = sum(count / card.get(precision, card["float32"]) for precision, count in step["operations"].items())
        memory = step["moved"] / card["copy"]
        beside = (
            f"{step['seconds'] * 1e3:,.1f} ms; its products take {matrix * 1e3:.2f} ms, its bytes {memory * 1e3:.2f}; "
            f"{step['launches']:,} launches, {step['crossings']:,} crossings"
        )
        yield (
            f"private step, {name}, against the device's rates",
            "within 5 times",
            f"{step['seconds'] / max(matrix, memory):.1f} times",
            beside,
        )


def _larger(found: Found) -> Iterator[Row]:
    for row in found["rows"]:
        what = (
            f"large encoder, LoRA of rank {row['rank']} in {row['layers']} layers, texts of up to {row['tokens']} tokens, "
            f"{row['users']} users"
        )
        measured = "failed" if "failed" in row else f"{row['seconds']:.2f} s"
        yield what, "", measured, row.get("failed") or _mb(row["memory"]).removeprefix("; ")


def _mb(value: float | None) -> str:
    return "" if value is None else f"; most on the device {value:,.0f} MB"


ROWS: dict[str, Callable[[Found], Iterator[Row]]] = {
    "checks": _checks,
    "steps": _steps,
    "privacy": _privacy,
    "item_table": _item_table,
    "demo_round": _demo_round,
    "roofline": _roofline,
    "larger": _larger,
}
