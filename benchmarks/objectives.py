"""What private training of responses is worth on the embedded data, and of ratings on MovieLens: the tables of
`docs/objectives.md`.

    python -m benchmarks.objectives OUT --seeds 0 1 2
    python -m benchmarks.objectives OUT --seeds 0 1 2 --movielens WHEEL

With `--movielens` see `benchmarks/ratings.py`; what follows is of the first.

Each seed is a run of `fedrec demo --objective response`, with its noise, and the same training without noise and clipping
beside it. A run that is done is not done again, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import ratings
from benchmarks.measure import report
from fedrec.cli.terminal import quiet_libraries
from fedrec.config import load_config, parse_overrides
from fedrec.data.demo_shown import SETTINGS, build_shown_demo
from fedrec.evaluation import RESPONSE_METRICS
from simulations.run import finish, resume, simulate

__all__ = ["main", "measure", "table"]


def measure(out: Path, seeds: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """The final table of every run, and its gain over its untrained start."""
    federation, runs = out / "federation", []
    config = load_config(overrides={**SETTINGS, **settings})
    if not federation.exists():
        build_shown_demo(federation, {"epsilon": config.epsilon, "delta": config.delta, "trust": config.trust})
    for seed in seeds:
        folder = out / f"run-{seed}"
        if not (folder / "results.json").exists():
            own = config.model_copy(update={"seed": seed})
            finish(resume(folder) if (folder / "site.json").exists() else simulate(federation, own, folder))
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        spent = max(one["epsilon"] for one in lines[-1]["privacy"].values())
        runs.append({"seed": seed, "epsilon": spent, **{name: results[name] for name in ("rows", "gain", "kept")}})
        sys.stderr.write(f"seed {seed}: AUC {results['gain']['mean']:+.4f} over the untrained start\n")
    return {"settings": {**SETTINGS, **settings}, "runs": runs}


def table(found: dict[str, Any]) -> str:
    """Every row of every seed, as Markdown."""
    heads = [name.replace("_", " ") for name in RESPONSE_METRICS]
    rows = [f"| seed | | private | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for run in found["runs"]:
        for row in run["rows"]:
            cells = [_cell(row, name) for name in RESPONSE_METRICS]
            rows.append(f"| {run['seed']} | {row['name']} | {'yes' if row['private'] else 'NO'} | {' | '.join(cells)} |")
    first = found["runs"][0]["rows"][0]
    of = f"{int(first['impressions']):,} impressions of {int(first['users']):,} users"
    gains = [
        f"seed {run['seed']} AUC {_gain(run['gain'])}, log-loss {_gain(run['gain']['others']['log_loss'])}"
        for run in found["runs"]
    ]
    said = [f"{of}, base rate {first['base_rate']:.4f}.", f"Over the untrained start: {'; '.join(gains)}."]
    return "\n".join([*rows, "", *said])


def _cell(row: dict[str, Any], name: str) -> str:
    value = f"{row[name]:.4f}"
    return f"{value} [{row[name + '_low']:.4f}, {row[name + '_high']:.4f}]" if name + "_low" in row else value


def _gain(gain: dict[str, float]) -> str:
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="a setting of the runs")
    parser.add_argument(
        "--movielens", type=Path, metavar="WHEEL", help="ratings instead: of recbole, or a folder with its ml-100k"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.movielens:
        found = ratings.measure(arguments.out, arguments.movielens, arguments.seeds, parse_overrides(arguments.settings))
        report(found, ratings.table(found), arguments.json)
        return
    found = measure(arguments.out, arguments.seeds, parse_overrides(arguments.settings))
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
