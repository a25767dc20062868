"""Exploring in a simulated shop: what trying things costs at first, and what it is worth after.

    python -m benchmarks.explore OUT --merchant FOLDER [--seeds 3] [--first 0] [--lists 6000] [--curves FILE.svg]

Every list of ten goes to a shopper drawn at random (`benchmarks.explore_world`), who looks at a place with a known chance and
clicks by a known model. All policies but `fixed` learn from the clicks by `fedrec.explore.feedback`, at first every `REFIT`
lists and then whenever there are a tenth more; they differ in what an exploring place gets: nothing (greedy), any item
(epsilon-greedy), a draw of the posterior (Thompson), or the item with the highest mean and one standard deviation (LinUCB), the
last two with the uniform floor. Regret is the expected clicks of the ten best items less those of the list. Writes
OUT/explore.md and OUT/explore.json after each seed.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit
from scipy.stats import t

from benchmarks.explore_world import EXAMINED, PLACES, World, make_world
from benchmarks.measure import environment
from fedrec.cli.terminal import quiet_libraries, quiet_models
from fedrec.explore.beliefs import Prior
from fedrec.explore.feedback import Feedback, Learned, learn
from fedrec.explore.places import FLOOR, shares_of
from fedrec.recommender.selection import intra_list_distance

__all__ = ["main"]

REFIT = 200
POINTS = 25
"""Of each curve that is drawn."""
EVERY = 20
"""Of so many lists one is measured for its diversity."""


@dataclass(frozen=True)
class Policy:
    """Who fills the places.

    Attributes:
        kind: `fixed`, `greedy`, `epsilon`, `thompson` or `linucb`.
        share: of the places that explore.
    """

    name: str
    kind: str
    share: float = 0.0


POLICIES = (
    Policy("the list as it is", "fixed"),
    Policy("greedy", "greedy"),
    Policy("epsilon-greedy, .1", "epsilon", 0.1),
    Policy("LinUCB, .1", "linucb", 0.1),
    Policy("Thompson, .05", "thompson", 0.05),
    Policy("Thompson, .1", "thompson", 0.1),
    Policy("Thompson, .2", "thompson", 0.2),
)


class Beliefs:
    """What a policy thinks of each shopper's items before and after it learned."""

    def __init__(self, world: World) -> None:
        self.prior, self.scores = Prior(world.vectors, world.counts), world.scores
        each = [self.prior.beliefs(row) for row in world.scores]
        self.mean, self.sd = np.stack([mean for mean, _ in each]), np.stack([sd for _, sd in each])

    def of(self, shopper: int, learned: Learned | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values that the plain list goes by, and mean and standard deviation of those that are drawn."""
        scores, mean = self.scores[shopper], self.mean[shopper]
        if learned is None:
            return scores, mean, self.sd[shopper]
        return learned.ranked(scores, mean), learned.slope * mean + learned.effect, learned.sd


def fill(policy: Policy, plain: np.ndarray, mean: np.ndarray, sd: np.ndarray, rng: np.random.Generator) -> list[int]:
    """A list by `fedrec.explore.places`, without its propensities, which nobody asks for here."""
    left, found = np.ones(len(mean), dtype=bool), list[int]()
    for share in shares_of(policy.share, PLACES):
        if rng.random() >= share:
            item = next(one for one in plain.tolist() if left[one])
        elif policy.kind == "epsilon" or rng.random() < FLOOR:
            item = int(rng.choice(np.flatnonzero(left)))
        else:
            reach = rng.standard_normal(len(mean)) if policy.kind == "thompson" else 1.0
            item = int(np.where(left, mean + reach * sd, -np.inf).argmax())
        found.append(item)
        left[item] = False
    return found


def simulate(policy: Policy, world: World, lists: int, seed: int) -> dict[str, Any]:
    """Regret after each list, and what was shown."""
    rng, beliefs, chance = np.random.default_rng(seed), Beliefs(world), world.chance
    shoppers = np.random.default_rng(seed + 1000).integers(0, len(chance), lists)
    best = np.argsort(-chance, axis=1)[:, :PLACES]
    new_best = [set(row[world.new[row]].tolist()) for row in best]
    most = (np.take_along_axis(chance, best, axis=1) * EXAMINED).sum(axis=1)
    shown, believed = np.zeros((lists, PLACES), dtype=np.int64), np.zeros((lists, PLACES))
    clicked, expected = np.zeros((lists, PLACES)), np.zeros(lists)
    hits, distances = np.zeros((lists, 2)), list[float]()
    learned: Learned | None = None
    due = REFIT
    for number, shopper in enumerate(shoppers.tolist()):
        if number == due and policy.kind != "fixed":
            due = number + max(REFIT, number // 10)
            rows = slice(0, number)
            place = np.tile(np.arange(PLACES), number)
            feedback = Feedback(shown[rows].ravel(), place, believed[rows].ravel(), clicked[rows].ravel())
            learned = learn(beliefs.prior, feedback)
        values, mean, sd = beliefs.of(shopper, learned)
        items = fill(policy, np.argsort(-values, kind="stable")[:PLACES], mean, sd, rng)
        odds = chance[shopper, items] * EXAMINED
        shown[number], believed[number] = items, beliefs.mean[shopper, items]
        clicked[number], expected[number] = rng.random(PLACES) < odds, odds.sum()
        hits[number] = len(new_best[shopper] & set(items)), len(new_best[shopper])
        if number % EVERY == 0:
            distances.append(intra_list_distance(world.vectors, items) or 0.0)
    regret = np.cumsum(most[shoppers] - expected)
    half, tenth = np.arange(lists // 2, lists), lists // 10
    return {
        "regret": regret,
        "exponent": float(np.polyfit(np.log(half + 1), np.log(regret[half]), 1)[0]),
        "first": float(expected[:tenth].sum()),
        "last": float(expected[-tenth:].mean()),
        "new": np.array(
            [hits[at : at + tenth, 0].sum() / max(hits[at : at + tenth, 1].sum(), 1) for at in range(0, lists, tenth)]
        ),
        "coverage": len(np.unique(shown)) / chance.shape[1],
        "distance": float(np.mean(distances)),
        "best": float(most.mean()),
    }


def limits(world: World) -> dict[str, float]:
    """Expected clicks of a list, the mean over the shoppers: of the ten best items, of the ten best that are not new, and of the
    ten best by what can be learned here, an effect for each item and a slope for what was believed of it.
    """

    def worth(values: np.ndarray) -> float:
        best = np.argsort(-values, axis=1, kind="stable")[:, :PLACES]
        return float((np.take_along_axis(world.chance, best, axis=1) * EXAMINED).sum(axis=1).mean())

    wanted, believed = logit(world.chance), Beliefs(world).mean
    learnt = [worth((wanted - slope * believed).mean(axis=0) + slope * believed) for slope in np.linspace(0, 1, 11)]
    return {"best": worth(wanted), "without_new": worth(np.where(world.new, -np.inf, wanted)), "learnable": max(learnt)}


def interval(values: Sequence[float]) -> str:
    """Mean over the draws, and its interval of 95% by Student's t where there are several."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f}"
    reach = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.2f} [{mean - reach:.2f}, {mean + reach:.2f}]"


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown, means over the seeds."""
    rows = [
        "| policy | regret at the end | of greedy's, all draws | of greedy's, each draw | exponent, last half "
        "| clicks, first tenth, of greedy's | clicks a list, last tenth | new items found | items shown | distance |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    greedy = found["greedy"]
    for name, runs in found.items():
        mine, theirs = (np.array([run["regret"][-1] for run in one]) for one in (runs, greedy))
        firsts = [run["first"] / one["first"] for run, one in zip(runs, greedy, strict=True)]
        rows.append(
            f"| {name} | {mine.mean():,.0f} | {mine.sum() / theirs.sum():.2f} | {interval((mine / theirs).tolist())} "
            f"| {interval([run['exponent'] for run in runs])} | {interval(firsts)} "
            f"| {np.mean([run['last'] for run in runs]):.3f} | {np.mean([run['new'][-1] for run in runs]):.2f} "
            f"| {np.mean([run['coverage'] for run in runs]):.2f} | {np.mean([run['distance'] for run in runs]):.2f} |"
        )
    best = np.mean([run["best"] for run in greedy])
    return "\n".join([*rows, f"\nThe ten best items get {best:.3f} clicks a list."])


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Regret and new items over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {
        "svg.hashsalt": "explore",
        "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans"],
    }  # text as text takes a tenth of its outlines
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, runs in found.items():
        regret = np.mean([run["regret"] for run in runs], axis=0)
        steps = np.linspace(0, len(regret) - 1, POINTS).astype(np.int64)
        left.plot(steps, regret[steps].round(), label=name)
        new = np.mean([run["new"] for run in runs], axis=0)
        right.plot((np.arange(len(new)) + 1) * len(regret) / len(new), new, label=name)
    left.set(xlabel="lists", ylabel="regret, clicks", title="Regret")
    right.set(xlabel="lists", ylabel="share", title="New items that belong in the list and are in it", ylim=(0, 1))
    left.legend(fontsize=8)
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Tenths of a point are finer than any screen, and nobody reads the indentation.
    found = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", text.getvalue())
    path.write_text(re.sub(r"\n\s+", "\n", found), encoding="utf-8")


def write(found: dict[str, list[dict[str, Any]]], bounds: dict[int, dict[str, float]], out: Path, curves: Path | None) -> None:
    """What there is so far."""
    rows = ["| draw | ten best | without new items | learnable |", "|---|---|---|---|"]
    rows += [f"| {number} | {' | '.join(f'{one:.3f}' for one in each.values())} |" for number, each in bounds.items()]
    (out / "explore.md").write_text("\n".join([table(found), "", *rows, ""]), encoding="utf-8")
    told = {
        name: [{**run, "regret": run["regret"][::100].tolist(), "new": run["new"].tolist()} for run in runs]
        for name, runs in found.items()
    }
    text = json.dumps({"policies": told, "limits": bounds, "environment": environment()}, indent=2)
    (out / "explore.json").write_text(text, encoding="utf-8")
    if curves is not None:
        draw(found, curves)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--merchant", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="how many draws of shoppers and new items")
    parser.add_argument("--first", type=int, default=0, help="the first of them: what was tuned on some is measured on others")
    parser.add_argument("--lists", type=int, default=6000, help="a multiple of ten")
    parser.add_argument("--curves", type=Path)
    arguments = parser.parse_args()
    quiet_libraries()
    quiet_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {policy.name: [] for policy in POLICIES}
    bounds = dict[int, dict[str, float]]()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        world = make_world(arguments.merchant, arguments.out / "merchant", seed)
        for policy in POLICIES:
            found[policy.name].append(simulate(policy, world, arguments.lists, seed))
        bounds[seed] = limits(world)
        write(found, bounds, arguments.out, arguments.curves)


if __name__ == "__main__":
    main()
