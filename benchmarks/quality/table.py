"""The pieces that are there as one table a data set, in JSON and Markdown.

Figures are means over the seeds that a piece has; an interval has the widest ends of any seed's 95% bootstrap interval.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.datasets import DataSet
from benchmarks.quality.pieces import CENTRAL, EPSILONS, SEQUENTIAL
from fedrec.config import write_atomically
from fedrec.recommender.contest import FEDERATED, HERE_ROWS, SERVED, WITH_COUNTS

__all__ = ["write_table_of"]

Seeds = dict[str, dict[str, Any]]
"""What a kind of piece found, by seed."""
BREADTH = ("worst merchant", "coverage", "novelty, bits", "popular tenth")
TITLES = ("trained", "alone + its counts", "its text", "its text + own layer", "gain over alone", *BREADTH, "epsilon", "seeds")


def write_table_of(out: Path, sets: Sequence[DataSet]) -> None:
    """`quality.json` with all pieces of `out`, `quality.md` with the tables of these data sets."""
    found: dict[str, dict[str, Seeds]] = {}
    for path in sorted(out.glob("*.json")):
        parts = re.fullmatch(r"([a-z][a-z0-9_]*)-(.+)-(\d+)", path.stem)
        if parts:
            data, kind, seed = parts.groups()
            found.setdefault(data, {}).setdefault(kind, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(out / "quality.json", json.dumps(found, indent=2).encode())
    text = "\n".join(line for one in sets if one.name in found for line in _of_set(one, found[one.name]))
    write_atomically(out / "quality.md", text.encode())


def _of_set(one: DataSet, kinds: dict[str, Seeds]) -> list[str]:
    central = [kinds[kind] for kind in (CENTRAL, SEQUENTIAL) if kind in kinds]
    trained = {kind: seeds for kind, seeds in kinds.items() if kind not in (CENTRAL, SEQUENTIAL)}
    lines = [f"## {one.name}", "", f"    {_command(one, kinds)}", ""]
    if central:
        lines += _table(("central, not private", "NDCG@10", "HR@10", "seeds"), [_central_row(*row) for row in _rows(central)])
    if trained:
        most = max(trained.values(), key=len)  # what received nothing is the same beside every kind
        head = ("at the merchants, nothing received", "NDCG@10", *BREADTH, "seeds")
        lines += _table(head, [_here_row(most, name) for name in HERE_ROWS])
        lines += _table(TITLES, [_trained_row(kind, seeds) for kind, seeds in sorted(trained.items(), key=_order)])
    return lines


def _command(one: DataSet, kinds: dict[str, Seeds]) -> str:
    """What makes this table and no more."""
    seeds = sorted({int(seed) for found in kinds.values() for seed in found})
    numbers = {float(kind.rpartition("-")[2]) for kind in kinds if re.search(r"-[\d.]+$", kind)}
    epsilons = sorted(numbers, reverse=True) if numbers - set(EPSILONS) else []
    pieces = []
    for kind, found in kinds.items():
        pieces += [f"{one.name}-{kind}-[0-9]*"] if len(found) == len(seeds) else [f"{one.name}-{kind}-{seed}" for seed in found]
    words = ["--seeds", *map(str, seeds), *(["--epsilons", *(f"{value:g}" for value in epsilons)] if epsilons else [])]
    return shlex.join(["python", "-m", "benchmarks.quality", "OUT", one.argument, *words, "--only", *pieces])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def _rows(central: Sequence[Seeds]) -> list[tuple[Seeds, str]]:
    return [(seeds, row["name"]) for seeds in central for row in next(iter(seeds.values()))["rows"]]


def _central_row(seeds: Seeds, name: str) -> list[str]:
    return [name, _cell(seeds, name), _cell(seeds, name, "hr@10"), _seeds(seeds)]


def _here_row(seeds: Seeds, name: str) -> list[str]:
    return [name, _cell(seeds, name), *_breadth(seeds, name), _seeds(seeds)]


def _trained_row(kind: str, seeds: Seeds) -> list[str]:
    cells = [_cell(seeds, name) for name in (WITH_COUNTS, SERVED, FEDERATED)]
    spent = [one["epsilon"] for one in seeds.values()]
    epsilon = "no privacy" if spent[0] is None else f"{max(spent):.3f}"
    return [kind, *cells, _gain(seeds), *_breadth(seeds, FEDERATED), epsilon, _seeds(seeds)]


def _order(item: tuple[str, Seeds]) -> tuple[bool, bool, str, float]:
    """Heads before the encoder, private before plain, by trust model, the largest epsilon first."""
    kind, seeds = item
    spent = next(iter(seeds.values()))["epsilon"]
    trust = re.sub(r"-[\d.]+$", "", kind)
    return kind.startswith("encoder"), spent is None, trust, -(spent or 0.0)


def _values(seeds: Seeds, name: str, key: str) -> list[Any]:
    return [row[key] for one in seeds.values() for row in one["rows"] if row["name"] == name]


def _cell(seeds: Seeds, name: str, key: str = "ndcg@10") -> str:
    mean, low, high = (_values(seeds, name, f"{key}{end}") for end in ("", "_low", "_high"))
    return f"{_short(float(np.mean(mean)))} [{_short(min(low))}, {_short(max(high))}]"


def _breadth(seeds: Seeds, name: str) -> list[str]:
    worst = [one for one in _values(seeds, name, "worst") if one is not None]
    lowest = min(worst, key=lambda one: one["ndcg@10"], default=None)
    means = [float(np.mean(_values(seeds, name, key))) for key in ("coverage@10", "novelty@10", "popular@10")]
    who = "-" if lowest is None else f"{_short(lowest['ndcg@10'])} ({lowest['name']}, {lowest['users']})"
    return [who, f"{means[0]:.0%}", f"{means[1]:.1f}", f"{means[2]:.0%}"]


def _gain(seeds: Seeds) -> str:
    gains = [one["gain"] for one in seeds.values()]
    each = ", ".join(f"{gain['mean']:+.4f}".replace("0.", ".", 1) for gain in gains)
    low, high = min(gain["low"] for gain in gains), max(gain["high"] for gain in gains)
    return f"{each} [{_short(low)}, {_short(high)}]"


def _seeds(seeds: Seeds) -> str:
    return ", ".join(sorted(seeds, key=int))


def _short(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)
