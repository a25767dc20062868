"""Which interval covers: off-policy estimates of a policy whose worth is known, on logs drawn again and again.

    python -m benchmarks.explore_intervals [--logs 300]

Lists of three places, twenty items; requests differ in how much they click, so that rows of one request are no independent ones.
The log is uniform, or of another policy with a tenth of uniform floor, which makes the weights heavy. Prints how often each
interval of 95% holds the truth, and its mean width over the truth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fedrec.explore.estimators import direct_method, doubly_robust, effective_sample_size, ips, snips
from fedrec.explore.intervals import bootstrap, normal, positive
from fedrec.explore.rewards import fit_rewards
from fedrec.explore.targets import Target

__all__ = ["main"]

ITEMS, PLACES, DRAWS, CONFIDENCE = 20, 3, 100, 0.95


class Case(NamedTuple):
    """A mean reward, rows of a log, and how much of the log's policy is uniform."""

    rate: float
    rows: int
    floor: float


CASES = (Case(0.05, 3000, 1.0), Case(0.05, 3000, 0.1), Case(0.005, 9000, 1.0), Case(0.005, 9000, 0.1))


def measure(case: Case, logs: int) -> tuple[float, dict[str, list[tuple[bool, float]]]]:
    """Mean effective number of rewards; by interval, whether it covered and how wide it was."""
    rng = np.random.default_rng(0)
    true = case.rate * np.exp(rng.normal(0, 0.6, (PLACES, ITEMS)))
    target = rng.dirichlet(np.full(ITEMS, 0.5), PLACES)
    policy = case.floor / ITEMS + (1 - case.floor) * rng.dirichlet(np.full(ITEMS, 0.5), PLACES)
    worth = float((target * true).sum(axis=1).mean())
    found: dict[str, list[tuple[bool, float]]] = {}
    effective = list[float]()
    for _ in range(logs):
        request, cell = np.repeat(np.arange(case.rows // PLACES), PLACES), np.tile(np.arange(PLACES), case.rows // PLACES)
        item = np.minimum((rng.random(case.rows)[:, None] > policy.cumsum(axis=1)[cell]).sum(axis=1), ITEMS - 1)
        eager = np.repeat(np.exp(rng.normal(-0.32, 0.8, case.rows // PLACES)), PLACES)
        reward = (rng.random(case.rows) < true[cell, item] * eager).astype(float)
        weights = (target / policy)[cell, item]
        effective.append(effective_sample_size(weights * reward))
        chosen = Target(target[cell, item], csr_array(target), cell, np.arange(PLACES))
        for name, (low, high) in intervals(request, cell, item, reward, weights, chosen, rng).items():
            found.setdefault(name, []).append((low <= worth <= high, (high - low) / worth))
    return float(np.mean(effective)), found


def intervals(
    request: np.ndarray,
    cell: np.ndarray,
    item: np.ndarray,
    reward: np.ndarray,
    weights: np.ndarray,
    target: Target,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Both intervals of each estimator; the direct method has the bootstrap alone, with the model fitted again."""

    def values(counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        model = fit_rewards(cell, item, reward, np.zeros(PLACES, dtype=np.int64), ITEMS, counts)
        found = target.values(model)
        return (np.zeros(len(cell)) if found is None else found), model[cell, item]

    def drawn(estimate: Callable[[np.ndarray], float]) -> tuple[float, float]:
        return bootstrap(estimate, request, CONFIDENCE, DRAWS, rng)

    value, own = ips(weights, reward), snips(weights, reward)
    half = rng.permutation(request.max() + 1)[request] % 2
    parts = [values((half != number).astype(float)) for number in (0, 1)]
    expected, modelled = (np.where(half == 0, parts[0][part], parts[1][part]) for part in (0, 1))
    robust = doubly_robust(expected, weights, reward, modelled)
    pulls = weights * reward - value, weights * (reward - own) / weights.mean()
    return {
        "IPS, normal": normal(value, pulls[0], request, CONFIDENCE),
        "IPS, of the logarithm": positive(value, pulls[0], request, CONFIDENCE),
        "IPS, bootstrap": drawn(lambda counts: ips(weights, reward, counts)),
        "SNIPS, normal": normal(own, pulls[1], request, CONFIDENCE),
        "SNIPS, of the logarithm": positive(own, pulls[1], request, CONFIDENCE),
        "SNIPS, bootstrap": drawn(lambda counts: snips(weights, reward, counts)),
        "DR, normal": normal(robust, expected + weights * (reward - modelled) - robust, request, CONFIDENCE),
        "DR, bootstrap": drawn(lambda counts: doubly_robust(expected, weights, reward, modelled, counts)),
        "DM, bootstrap": drawn(lambda counts: direct_method(values(counts)[0], counts)),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=300)
    arguments = parser.parse_args()
    measured = [measure(case, arguments.logs) for case in CASES]
    heads = [
        f"{case.rate:g}, {case.rows:,} rows, {size:.0f} effective rewards"
        for case, (size, _) in zip(CASES, measured, strict=True)
    ]
    lines = [f"| interval | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in measured[0][1]:
        cells = [(np.mean([one for one, _ in found[name]]), np.mean([wide for _, wide in found[name]])) for _, found in measured]
        lines.append(f"| {name} | {' | '.join(f'{covers:.3f} ({wide:.2f})' for covers, wide in cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
