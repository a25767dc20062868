"""What secure aggregation buys: NDCG@10 under both trust models at several epsilons and seeds.

    python -m benchmarks.trust SOURCE OUT --epsilons 1 2 4 8 --seeds 0 1 2

SOURCE is a folder with `items` and `events` as `fedrec data split` reads them. Runs have equal settings
but for `trust`; the seed also draws the noise. A run that is done is not
done again, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.measure import report
from fedrec.cli.terminal import quiet_libraries
from fedrec.config import RunConfig, parse_overrides
from fedrec.data import Columns
from fedrec.data.split import split_source
from simulations.run import resume, simulate

__all__ = ["main", "measure", "table"]

TRUST = ("local", "secure-aggregation")


def prepare(source: Path, out: Path) -> None:
    """The federation folder; an item without a title, which real feeds have, is called untitled."""
    items, events = (pd.read_parquet(source / f"{name}.parquet") for name in ("items", "events"))
    items[Columns.TITLE] = items[Columns.TITLE].fillna("").str.strip().replace("", "untitled")
    with tempfile.TemporaryDirectory() as name:
        items.to_parquet(Path(name) / "items.parquet")
        events.to_parquet(Path(name) / "events.parquet")
        split_source(Path(name), out, 0.2, {"epsilon": 1000.0, "delta": 1e-5, "trust": "secure-aggregation"})


def run_to_its_end(federation: Path, out: Path, config: RunConfig) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; the run is made, or gone on with where it is not done."""
    folder = resume(out) if (out / "site.json").exists() else simulate(federation, config, out)
    return folder.metrics()


def measure(source: Path, out: Path, epsilons: list[float], seeds: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """The untrained start and the last round of every run."""
    federation = out / "federation"
    if not federation.exists():
        prepare(source, federation)
    runs = []
    for epsilon in epsilons:
        for seed in seeds:
            for trust in TRUST:
                run = out / f"{trust}-{epsilon:g}-{seed}"
                config = RunConfig(**{"epsilon": epsilon, "seed": seed, "trust": trust, **settings})
                lines = run_to_its_end(federation, run, config)
                key = next(name for name in lines[-1]["central"] if name.startswith("ndcg@") and "_" not in name)
                spent = max(one["epsilon"] for one in lines[-1]["privacy"].values())
                runs.append(
                    {
                        "epsilon": epsilon,
                        "seed": seed,
                        "trust": trust,
                        "spent": spent,
                        "start": lines[0]["central"][key],
                        "end": lines[-1]["central"][key],
                    }
                )
                sys.stderr.write(
                    f"{trust} epsilon {epsilon:g} seed {seed}: {lines[0]['central'][key]:.4f} to {runs[-1]['end']:.4f}\n"
                )
    return {"source": source.name, "settings": settings, "runs": runs}


def table(found: dict[str, Any]) -> str:
    """Means over the seeds, with every seed's value, as Markdown."""
    rows = [
        "| epsilon | start, local | trained, local | start, secure | trained, secure | secure over local |",
        "|---|---|---|---|---|---|",
    ]
    for epsilon in dict.fromkeys(run["epsilon"] for run in found["runs"]):
        cells, ends = [], []
        for trust in TRUST:
            own = [run for run in found["runs"] if (run["epsilon"], run["trust"]) == (epsilon, trust)]
            ends.append(statistics.mean(run["end"] for run in own))
            each = ", ".join(f"{run['end']:.4f}" for run in own)
            cells.append(f"{statistics.mean(run['start'] for run in own):.4f} | {ends[-1]:.4f} ({each})")
        rows.append(f"| {epsilon:g} | {' | '.join(cells)} | {ends[1] - ends[0]:+.4f} |")
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="a setting of the runs")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    quiet_libraries()
    found = measure(arguments.source, arguments.out, arguments.epsilons, arguments.seeds, parse_overrides(arguments.settings))
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
