"""The simulated shop: its draws are the product's, its regret is of the best list, and what learns finds what is new."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.explore import POLICIES, Policy, fill, simulate, table
from benchmarks.explore_world import PLACES, World
from fedrec.explore.places import draw_places


@pytest.fixture(scope="module")
def world() -> World:
    """Twelve shoppers and 30 items, of which five are new and the best, and the recommender puts them last."""
    rng = np.random.default_rng(0)
    new = np.arange(30) < 5
    scores = rng.normal(0, 1, (12, 30)) - 6 * new
    chance = np.clip(np.where(new, 0.6, 0.05 + 0.02 * scores), 0.01, 1)
    return World(scores, chance, rng.normal(size=(30, 8)).astype(np.float32), np.where(new, 0, 50).astype(np.float32), new)


@pytest.mark.slow
def test_a_list_is_filled_as_the_product_fills_it() -> None:
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=12), rng.choice([0.5, 1.5], 12)
    plain, draws = np.argsort(-mean)[:PLACES], 1500
    for policy in POLICIES:
        if policy.kind == "thompson":
            ours = Counter(fill(policy, plain, mean, sd, rng)[0] for _ in range(draws))
            theirs = Counter(draw_places(plain.tolist(), mean, sd, policy.share, rng)[0][0] for _ in range(draws // 5))
            assert max(abs(ours[item] / draws - 5 * theirs[item] / draws) for item in range(12)) < 0.08
    assert fill(Policy("", "thompson"), plain, mean, sd, rng) == plain.tolist()
    assert fill(Policy("", "linucb", 1.0), plain, mean, sd, np.random.default_rng(3))[0] == int((mean + sd).argmax())


def test_who_explores_finds_what_is_new(world: World) -> None:
    found = {policy.name: [simulate(policy, world, 1200, 0)] for policy in POLICIES if policy.kind in ("fixed", "greedy")}
    found["explores"] = [simulate(Policy("explores", "thompson", 0.2), world, 1200, 0)]
    fixed, greedy, explores = (runs[0] for runs in found.values())
    for run in (fixed, greedy, explores):
        assert (np.diff(run["regret"]) >= -1e-9).all() and run["best"] > 0
    assert fixed["exponent"] == pytest.approx(1, abs=0.05) and fixed["new"].max() == greedy["new"].max() == 0
    assert explores["regret"][-1] < 0.6 * greedy["regret"][-1] and explores["new"][-1] > 0.8
    assert explores["exponent"] < 0.9 and explores["coverage"] == 1 > fixed["coverage"]
    assert len(table(found).splitlines()) == 7
