"""What a merchant's customers get: alone, with the federation, and from central models that see all raw data.

    python -m benchmarks.quality OUT online_retail=FOLDER office=FOLDER

Each data set is a folder that `fedrec data split` reads. Every piece (a data set, a trust model, an epsilon, a seed) is a
file of OUT, so that an interrupted benchmark goes on where it was; `quality.json` and `quality.md` are written again after
each. Users are the server's held-out ones, each ranked at the merchant whose customer it is: the quarter that calibrates is
not measured, and nothing is chosen on who is measured. The federated runs train the heads alone. Needs `implicit`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from fedrec.config import RunConfig, write_atomically
from fedrec.data import CentralData, Histories, load_central
from fedrec.data.split import split_source
from fedrec.evaluation import EvaluationSet, Group, PerUser, bootstrap_interval
from fedrec.evaluation.protocol import joined, metrics_of
from fedrec.model import Scoring
from fedrec.recommender.blend import Fold, choose_blend, held_items, measure
from fedrec.recommender.contest import ALONE, ROWS, contenders, plain_part
from fedrec.recommender.ease import Ease
from fedrec.recommender.item_knn import ItemKnn
from fedrec.recommender.own_layer import bought_by
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.at_merchants import at_merchants
from simulations.reference import Pooled
from simulations.run import simulate

__all__ = ["main"]

SEEDS, EPSILONS, TRUSTS = (0, 1, 2), (8.0, 2.0), ("local", "secure-aggregation")
POPULARITY, KNN, EASE, ALS = "popularity, central", "item-kNN, central", "EASE, central", "ALS, central (implicit)"
CEILING = "text untrained + EASE, central"
FACTORS, PASSES = 64, 20
K = 10


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="+", help="NAME=FOLDER of a data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--trusts", nargs="+", choices=TRUSTS, default=TRUSTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sources = dict(source.split("=", 1) for source in args.sources)
    for seed in args.seeds:
        for name, folder in sources.items():
            _piece(args.out, f"{name}-central-{seed}", lambda: central_rows(_split(args.out, name, folder, "local"), seed))  # noqa: B023
            for epsilon in args.epsilons:
                for trust in args.trusts:
                    piece = f"{name}-{trust}-{epsilon:g}-{seed}"
                    _piece(args.out, piece, lambda: _federated(args.out, piece, name, folder, trust, epsilon, seed))  # noqa: B023
            _write(args.out, sources)
    _write(args.out, sources)


def _piece(out: Path, name: str, compute: Any) -> None:
    path = out / f"{name}.json"
    if path.exists():
        return
    sys.stderr.write(f"{name}\n")
    write_atomically(path, json.dumps(compute(), indent=2).encode())


def _split(out: Path, name: str, source: str, trust: str) -> Path:
    folder = out / "federations" / f"{name}-{trust}"
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        split_source(Path(source), temporary, 0.2, {"epsilon": 8.0, "delta": 1e-5, "trust": trust})
        temporary.rename(folder)
    return folder


def _federated(out: Path, piece: str, name: str, source: str, trust: str, epsilon: float, seed: int) -> dict[str, Any]:
    run = out / "runs" / piece
    shutil.rmtree(run, ignore_errors=True)
    config = RunConfig.model_validate({"trust": trust, "epsilon": epsilon, "seed": seed, "encoder_rounds": 0})
    federation = _split(out, name, source, trust)
    folder: RunFolder = simulate(federation, config, run)
    state, lines = folder.load(), folder.metrics()
    assert state is not None
    found = at_merchants(federation, config, load_encoder_for(config, state), state, Scoring(**lines[-1]["scoring"]))
    spent = max(entry["epsilon"] for line in lines for entry in line["privacy"].values())
    shutil.rmtree(run)
    return {"rows": found["rows"], "gain": found["gain"], "sizes": found["sizes"], "epsilon": spent}


def central_rows(federation: Path, seed: int) -> dict[str, Any]:
    """Models that see all merchants' raw training events: no privacy. Smoothing is the best on the calibration users."""
    config = RunConfig(seed=seed)
    central = load_central(federation)
    items = len(central.catalogue)
    histories = list(_pooled(federation, central))
    bought = csr_array(vstack([bought_by(one, items) for one in histories], format="csr"))
    users, choosing = EvaluationSet.build(central, config.history, config.calibration_share, config.seed)
    assert len(users.groups) == 1, "merchants share a catalogue in these data sets"
    (measured,), (chosen,) = users.groups, choosing.groups
    counts = np.asarray(bought.sum(axis=0)).ravel().astype(np.float32)
    found = {POPULARITY: _metrics(measured, lambda block: np.broadcast_to(counts, (len(block.items), items)))}
    layers = {}
    for name, kind in ((KNN, ItemKnn), (EASE, Ease)):
        layers[name] = {strength: kind.fit(bought, strength) for strength in kind.strengths}
        best = max(layers[name], key=lambda s: _ndcg(chosen, layers[name][s]))
        found[name] = _metrics(measured, lambda block: layers[name][best].scores(held_items(block)))  # noqa: B023
    found[ALS] = _als(bought, measured, seed)
    encoder = load_encoder_for(config)
    encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
    part = plain_part(encoder.embed(central.catalogue), counts)
    one = contenders(part, None, Ease.strengths)[ALONE]
    blend = choose_blend([Fold(chosen, layers[EASE])], one.part, one.default, K, seed=seed)
    found[CEILING] = measure(measured, one.part, layers[EASE][blend.strength], blend, K)
    rows = [{"name": name, "ndcg@10": float(one.ndcg.mean()), **_interval(one.ndcg, config)} for name, one in found.items()]
    return {"rows": rows, "users": len(measured.items)}


def _pooled(federation: Path, central: CentralData) -> Iterator[Histories]:
    for merchant in Pooled.read(federation):
        places = central.catalogue.index.get_indexer(list(merchant.data.catalogue.item_ids))
        yield replace(merchant.data.histories, items=places[merchant.data.histories.items])


def _als(bought: csr_array, measured: Group, seed: int) -> PerUser:
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=FACTORS, iterations=PASSES, random_state=seed, num_threads=1, use_gpu=False)
    model.fit(bought.tocsr(), show_progress=False)

    def scores(block: Group) -> np.ndarray:
        users = model.recalculate_user(np.arange(len(block.items)), held_items(block).tocsr())
        return np.asarray(users @ model.item_factors.T, dtype=np.float32)

    return _metrics(measured, scores)


def _metrics(users: Group, scores: Any) -> PerUser:
    return joined([metrics_of(block, scores(block), K) for block in users.blocks()])


def _ndcg(users: Group, layer: Ease | ItemKnn) -> float:
    return float(_metrics(users, lambda block: layer.scores(held_items(block))).ndcg.mean())


def _interval(values: np.ndarray, config: RunConfig) -> dict[str, float]:
    low, high = bootstrap_interval(values, config.bootstrap, config.seed)
    return {"ndcg@10_low": low, "ndcg@10_high": high}


def _write(out: Path, sources: dict[str, str]) -> None:
    """One table of all pieces that are there: means over the seeds, the widest ends of their intervals."""
    table: dict[str, Any] = {}
    for path in sorted(out.glob("*-*.json")):
        piece, seed = path.stem.rsplit("-", 1)
        table.setdefault(piece, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(out / "quality.json", json.dumps(table, indent=2).encode())
    lines = []
    for name in sources:
        lines += [f"## {name}", ""]
        central = table.get(f"{name}-central", {})
        if central:
            lines += ["| central, not private | NDCG@10 |", "|---|---|"]
            lines += [f"| {row} | {_cell(central, row)} |" for row in (POPULARITY, KNN, ALS, EASE, CEILING)]
            lines.append("")
        pieces = [piece for piece in table if piece.startswith(f"{name}-") and piece != f"{name}-central"]
        if pieces:
            heads = [piece.removeprefix(f"{name}-") for piece in pieces]
            lines += ["| at the merchants | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
            for row in ROWS:
                lines.append(f"| {row} | " + " | ".join(_cell(table[piece], row) for piece in pieces) + " |")
            lines.append("| gain over alone | " + " | ".join(_gain(table[piece]) for piece in pieces) + " |")
            lines.append("| epsilon spent | " + " | ".join(f"{_mean(table[piece], 'epsilon'):.3f}" for piece in pieces) + " |")
            lines.append("")
    write_atomically(out / "quality.md", "\n".join(lines).encode())


def _cell(seeds: dict[str, Any], name: str) -> str:
    rows = [row for one in seeds.values() for row in one["rows"] if row["name"] == name]
    mean = np.mean([row["ndcg@10"] for row in rows])
    low, high = min(row["ndcg@10_low"] for row in rows), max(row["ndcg@10_high"] for row in rows)
    return f"{_short(mean)} [{_short(low)}, {_short(high)}]"


def _gain(seeds: dict[str, Any]) -> str:
    gains = [one["gain"] for one in seeds.values()]
    each = ", ".join(f"{gain['mean']:+.4f}" for gain in gains)
    low, high = min(gain["low"] for gain in gains), max(gain["high"] for gain in gains)
    return f"{each} [{low:+.4f}, {high:+.4f}]"


def _mean(seeds: dict[str, Any], key: str) -> float:
    return float(np.mean([one[key] for one in seeds.values()]))


def _short(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


if __name__ == "__main__":
    main()
