"""What a hostile merchant of eight can do under each aggregation rule, and what typing errors in titles do to the ranking.

    python -m benchmarks.robustness OUT FOLDER

FOLDER is a data set that `fedrec data split` reads; its eight largest merchants take part, under local noise, heads alone.
The hostile ones are the fourth by size, or the fourth and the fifth. They train and pay as all do and send something else
(`benchmarks.hostile`). `push` is for the item that was bought least, and its exposure is the share of the measured users who
get it among their ten best from the federated text. Every piece is a file of OUT, so that an interrupted benchmark goes
on where it was; `robustness.json` and `robustness.md` are written again after each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.hostile import ATTACKS, HostileClients
from fedrec.aggregation import RULES
from fedrec.cli.terminal import quiet_libraries
from fedrec.config import RunConfig, least_updates, parse_overrides, write_atomically
from fedrec.data import Catalogue, Columns, load_central
from fedrec.data.split import split_source
from fedrec.evaluation.protocol import scored
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.model import Arrays, Scoring
from fedrec.privacy import plan_noise
from fedrec.recommender.contest import FEDERATED, SERVED
from server.evaluation import COUNTS, FLOOR, CentralEvaluator
from server.run_folder import RunFolder, ServerState
from server.start import load_encoder_for
from simulations.at_merchants import at_merchants
from simulations.engines import ENGINES, run_inline
from simulations.run import simulate

__all__ = ["garbled", "main"]

MERCHANTS, HOLDOUT = 8, 0.2
NONE, TYPOS = "none", "typos"
HONEST = "honest-run"
"""Folder of the last run of the mean without an attack, whose text is ranked under typing errors."""
VARIANTS: dict[str, tuple[float, bool]] = {
    "as they are": (0.0, False),
    "a typing error in a tenth of the words": (0.1, False),
    "in three tenths": (0.3, False),
    "words shuffled": (0.0, True),
    "three tenths and shuffled": (0.3, True),
}


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=list(RULES))
    parser.add_argument("--attacks", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--hostile", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="a setting of the runs")
    args = parser.parse_args()
    quiet_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    federation = args.out / "federation"
    if not federation.exists():
        prepare(args.source, federation)
    shared = {"seed": args.seed, "encoder_layers": 0, **parse_overrides(args.settings)}
    plan = plan_noise(RunConfig.model_validate(shared))
    shared |= {"noise_multiplier": plan.of("heads"), "histogram_noise_multiplier": plan.histogram}
    for attack, hostile in [(NONE, 0), *((attack, hostile) for attack in args.attacks for hostile in args.hostile)]:
        for rule in args.rules:
            byzantine = hostile or max(args.hostile)
            least = least_updates(rule, byzantine)
            config = RunConfig.model_validate({**shared, "aggregation": rule, "byzantine": byzantine, "min_merchants": least})
            name = f"{rule}-{attack.replace(', ', '-').replace(' ', '-')}-{hostile}-{args.seed}"
            labels = {"rule": rule, "attack": attack, "hostile": hostile}
            _piece(args.out, name, lambda: {**labels, **attacked(args.out, federation, config, attack, hostile)})  # noqa: B023
            _write(args.out)
    if (args.out / HONEST).exists():
        _piece(args.out, f"{TYPOS}-{args.seed}", lambda: under_typos(args.out, federation, args.seed))
    _write(args.out)


def _piece(out: Path, name: str, compute: Callable[[], dict[str, Any]]) -> None:
    path = out / f"{name}.json"
    if not path.exists():
        sys.stderr.write(f"{name}\n")
        write_atomically(path, json.dumps(compute(), indent=2).encode())


def prepare(source: Path, federation: Path) -> None:
    """The federation of the eight merchants with the most users."""
    events = pd.read_parquet(source / "events.parquet")
    users = events.groupby(Columns.MERCHANT)[Columns.USER].nunique()
    kept = users.sort_values(ascending=False, kind="stable").index[:MERCHANTS]
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(source / "items.parquet", name)
        events[events[Columns.MERCHANT].isin(kept)].to_parquet(Path(name) / "events.parquet", index=False)
        split_source(Path(name), federation, HOLDOUT, {"epsilon": 8.0, "delta": 1e-5})


def by_size(federation: Path) -> list[str]:
    """The merchants' names, those with the largest declared population first."""
    files = [read_merchant_file(path) for path in sorted(federation.glob(f"merchants/*/{MERCHANT_FILE}"))]
    return [one.name for one in sorted(files, key=lambda one: -one.privacy.population)]


def least_bought(federation: Path) -> str:
    """The item that was bought by the fewest in training, the first of those."""
    items = pd.read_parquet(federation / "central" / "items.parquet")[Columns.ITEM].astype(str)
    events = [pd.read_parquet(path, columns=[Columns.ITEM]) for path in sorted(federation.glob("merchants/*/events.parquet"))]
    counts = pd.concat(events)[Columns.ITEM].astype(str).value_counts().reindex(items, fill_value=0)
    return str(counts.idxmin())


def attacked(out: Path, federation: Path, config: RunConfig, attack: str, hostile: int) -> dict[str, Any]:
    """One run, and what its last adapter ranks."""
    item, names, run = least_bought(federation), set(by_size(federation)[3 : 3 + hostile]), out / "run"
    shutil.rmtree(run, ignore_errors=True)

    def engine(server: Any, client: Any, nodes: int, workers: int, device: str) -> None:
        hostile_client: Any = HostileClients(client, config, names, attack, item)
        run_inline(server, hostile_client if names else client, nodes, workers, device)

    ENGINES["hostile"] = engine
    folder = simulate(federation, config, run, engine="hostile")
    lines, state = folder.metrics(), folder.load()
    assert state is not None and not any(line["refused"] for line in lines), "an update was refused"
    central, encoder, scoring = load_central(federation), load_encoder_for(config, state), Scoring(**lines[-1]["scoring"])
    shown = exposure(CentralEvaluator(central, config, encoder), state, scoring, central.catalogue.item_ids.index(item))
    rows = {row["name"]: row for row in at_merchants(federation, config, encoder, state, scoring)["rows"]}
    if not names and config.aggregation == "mean":
        shutil.rmtree(out / HONEST, ignore_errors=True)
        shutil.copytree(run, out / HONEST)
    return {"text": rows[SERVED], "own": rows[FEDERATED], "exposure": shown, "settings": config.model_dump()}


def exposure(evaluator: CentralEvaluator, state: ServerState, scoring: Scoring, item: int) -> float:
    """The share of the measured users who get the item in the first `top_k` of the federated text."""
    public, k = state.public, evaluator.config.top_k
    counts, floor = public[COUNTS], float(public[FLOOR][0])
    tables = evaluator.tables(public, state.trained)
    found = scored(evaluator.users, *tables, counts, floor, scoring.temperature, scoring.decay, (scoring.prior_weight,))
    shown, users = 0, 0
    for block, _, scores in found:
        scores[tuple(block.masked.T)] = -np.inf
        place = int(np.searchsorted(block.positions, item))
        better = (scores > scores[:, [place]]).sum(axis=1)
        shown += int(((better < k) & np.isfinite(scores[:, place])).sum())
        users += len(scores)
    return shown / users


def under_typos(out: Path, federation: Path, seed: int) -> dict[str, Any]:
    """NDCG of the untrained and the federated text where titles are garbled as they are ranked, and were not in training."""
    folder = RunFolder.open(out / HONEST)
    config, state, lines = folder.config, folder.load(), folder.metrics()
    assert state is not None
    encoder, central = load_encoder_for(config, state), load_central(federation)
    untrained: Arrays = {name: np.zeros_like(value) for name, value in state.trained.items()}
    rows = []
    for name, (share, shuffled) in VARIANTS.items():
        catalogue = garbled(central.catalogue, share, shuffled, seed)
        evaluator = CentralEvaluator(replace(central, catalogue=catalogue), config, encoder)
        row: dict[str, Any] = {"name": name}
        for label, line, trained in (("untrained", lines[0], untrained), ("federated", lines[-1], state.trained)):
            row[label] = evaluator.summary(evaluator.per_user(state.public, trained, Scoring(**line["scoring"])))
        rows.append(row)
    return {"rows": rows}


def garbled(catalogue: Catalogue, share: float, shuffled: bool, seed: int) -> Catalogue:
    """The same items with a typing error in a `share` of the words of their texts, the words `shuffled` or in order.

    An error leaves a letter out, doubles it, or swaps it with the next; a word of one letter has none.
    """
    rng = np.random.default_rng(seed)

    def wrong(word: str) -> str:
        if len(word) < 2 or rng.random() >= share:
            return word
        at, kind = int(rng.integers(len(word) - 1)), int(rng.integers(3))
        return word[:at] + ("", 2 * word[at], word[at + 1] + word[at])[kind] + word[at + (2 if kind == 2 else 1) :]

    def text(words: list[str]) -> str:
        words = [wrong(word) for word in words]
        return " ".join(words[i] for i in rng.permutation(len(words))) if shuffled else " ".join(words)

    return Catalogue(catalogue.item_ids, tuple(text(one.split()) for one in catalogue.texts))


def _write(out: Path) -> None:
    """Both tables, of all pieces that are there."""
    pieces = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-[0-9]*.json"))}
    write_atomically(out / "robustness.json", json.dumps(pieces, indent=2).encode())
    runs = [one for name, one in pieces.items() if not name.startswith(TYPOS)]
    lines = list(_attack_rows(runs))
    for name, one in pieces.items():
        if name.startswith(TYPOS):
            lines += ["", "| titles | untrained text | federated text |", "|---|---|---|"]
            lines += [f"| {row['name']} | {_cell(row['untrained'])} | {_cell(row['federated'])} |" for row in one["rows"]]
    write_atomically(out / "robustness.md", "\n".join([*lines, ""]).encode())


def _attack_rows(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "| attack | hostile | rule | federated text | federated + own layer | exposure |"
    yield "|---|---|---|---|---|---|"
    order = [NONE, *ATTACKS]
    for one in sorted(runs, key=lambda one: (order.index(one["attack"]), one["hostile"], list(RULES).index(one["rule"]))):
        cells = f"{_cell(one['text'])} | {_cell(one['own'])} | {one['exposure']:.1%}"
        yield f"| {one['attack']} | {one['hostile']} | {one['rule']} | {cells} |"


def _cell(row: dict[str, float]) -> str:
    return " ".join(f"{row[f'ndcg@10{end}']:.4f}".replace("0.", ".", 1) for end in ("", "_low", "_high"))


if __name__ == "__main__":
    main()
