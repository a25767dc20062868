"""What is learned from what was shown: the posterior against a dense one, and a list before and after."""

# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from fedrec.errors import InputError
from fedrec.explore.beliefs import Prior
from fedrec.explore.feedback import APART, FIRM, KIND, LEAST, LOOSE, UNKNOWN, Feedback, learn
from fedrec.recommender import Recommender

from .test_answers import HISTORY, ids, recommender  # noqa: F401
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_cli_recommend import run  # noqa: F401


def test_the_posterior_is_that_of_a_dense_one() -> None:
    """All coefficients and effects at once, by a general optimiser and the inverse of the whole Hessian."""
    rng = np.random.default_rng(0)
    items, rows = 8, 600
    prior = Prior(rng.normal(size=(items, 3)), np.array([0, 0, 5, 10, 50, 100, 500, 0]))
    found = Feedback(rng.integers(0, 7, rows), rng.integers(0, 3, rows), rng.normal(size=rows), (rng.random(rows) < 0.2) * 1.0)
    width = prior.features.shape[1]
    design = np.zeros((rows, 5 + width + items))
    design[np.arange(rows), found.place] = 1
    design[:, 3] = found.believed
    design[:, 4] = 1 - prior.known[found.item]
    design[:, 5 : 5 + width] = prior.features[found.item]
    design[np.arange(rows), 5 + width + found.item] = 1
    own = prior.spread**2 * (1 - prior.known + LEAST**2)
    precision = np.concatenate([[LOOSE] * 3, [FIRM, UNKNOWN], [width / (KIND * prior.spread) ** 2] * width, 1 / own])
    centre = np.zeros(len(precision))
    centre[3] = 1.0

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        score = design @ theta
        value = np.logaddexp(0, score).sum() - found.reward @ score + (precision * (theta - centre) ** 2).sum() / 2
        return value, design.T @ (1 / (1 + np.exp(-score)) - found.reward) + precision * (theta - centre)

    theta = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15, "maxiter": 5000}).x
    chance = 1 / (1 + np.exp(-design @ theta))
    covariance = np.linalg.inv((design * (chance * (1 - chance))[:, None]).T @ design + np.diag(precision))
    pick = np.concatenate([np.zeros((items, 4)), 1 - prior.known[:, None], prior.features, np.eye(items)], axis=1)
    learned = learn(prior, found)
    assert learned.slope == pytest.approx(theta[3], abs=1e-3)
    np.testing.assert_allclose(learned.effect, pick @ theta, atol=2e-3)
    np.testing.assert_allclose(learned.sd, np.sqrt(np.einsum("ij,jk,ik->i", pick, covariance, pick)), rtol=1e-3)
    assert learned.told[7] < 0.2 < learned.told[:7].min()  # the last was never shown


def test_places_far_down_share_an_effect() -> None:
    rng = np.random.default_rng(0)
    prior, rows = Prior(rng.normal(size=(8, 3)), np.full(8, 5.0)), 300
    item, place, reward = rng.integers(0, 8, rows), rng.integers(45, 1000, rows), (rng.random(rows) < 0.2) * 1.0
    far, pooled = (learn(prior, Feedback(item, one, np.zeros(rows), reward)) for one in (place, np.minimum(place, APART - 1)))
    np.testing.assert_array_equal(far.effect, pooled.effect)
    np.testing.assert_array_equal(far.sd, pooled.sd)


def test_nothing_shown_is_nothing_learned() -> None:
    rng = np.random.default_rng(0)
    prior = Prior(rng.normal(size=(6, 2)), np.arange(6.0))
    none = np.zeros(0, dtype=np.int64)
    learned = learn(prior, Feedback(none, none, none.astype(float), none.astype(float)))
    scores = rng.normal(size=6)
    np.testing.assert_allclose(learned.ranked(scores, prior.beliefs(scores)[0]), scores, atol=1e-9)


@pytest.fixture
def log(recommender: Recommender, tmp_path: Path) -> Path:
    """Lists of ten of everything but i0, on which i20 was clicked whenever it was shown, and nothing else ever."""
    rows = []
    for seed in range(120):
        answer = recommender.recommend(HISTORY, k=10, explore=1.0, seed=seed, exclude=["i0"])
        for place, (item, given) in enumerate(zip(ids(answer), answer.places, strict=True), 1):
            rows.append((item, place, given.propensity, given.value, int(item == "i20")))
    pd.DataFrame(rows, columns=["item_id", "position", "propensity", "value", "click"]).to_csv(
        tmp_path / "shown.csv", index=False
    )
    return tmp_path / "shown.csv"


def test_what_was_clicked_comes_first_where_lists_explore(recommender: Recommender, log: Path, fedrec: Fedrec, run: Path) -> None:
    plain, before = recommender.recommend(HISTORY, k=30), recommender.recommend(HISTORY, k=5, explore=0.01, seed=0)
    assert ids(plain)[0] != "i20" and ids(before) == ids(plain)[:5]
    learner = Recommender(recommender.encoder, recommender.arrays, recommender.settings, recommender.table, device="cpu")
    learner.learn_from(log)
    after = learner.recommend(HISTORY, k=5, explore=0.01, seed=0)
    assert ids(after)[0] == "i20" and after.places[0].propensity > 0.98
    assert dict(after.items)["i20"] == pytest.approx(dict(plain.items)["i20"])
    values = {item: given.value for item, given in zip(ids(before), before.places, strict=True)}
    assert all(
        given.value == pytest.approx(values[item]) for item, given in zip(ids(after), after.places, strict=True) if item in values
    )
    assert ids(learner.recommend(HISTORY, k=30)) == ids(plain)  # who does not explore has the list as it was
    assert ids(learner.recommend(k=5, explore=0.01, seed=0))[0] == "i20"  # nor the popularity list
    half = learner.recommend(HISTORY, k=5, explore=0.01, seed=0, merchant="half")  # i20 is not on this shelf
    assert set(ids(half)) <= {f"i{i}" for i in range(15)}
    shown = fedrec(
        "recommend", run, "--history", ",".join(HISTORY), "--explore", 0.01, "--seed", 0, "--learn-from", log, "--json"
    )
    first = json.loads(shown.out)["items"][0]
    assert first["item_id"] == "i20" and {"propensity", "value"} <= set(first)


def test_a_log_that_teaches_nothing_is_refused(
    recommender: Recommender, log: Path, fedrec: Fedrec, run: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(log)
    for changed, said in (
        (frame.drop(columns="value"), "column 'value' is missing"),
        (frame.assign(click=2), "column reward, line 2: found '2"),
        (frame.assign(position=0), "column position, line 2: found '0'"),
        (frame.assign(position=1.5), "column position, line 2: found '1.5'; expected a whole number"),
        (frame.assign(item_id="gone"), "none of its items is in the catalogue"),
    ):
        changed.to_csv(tmp_path / "wrong.csv", index=False)
        with pytest.raises(InputError, match=said):
            recommender.learn_from(tmp_path / "wrong.csv")
    assert_refused(fedrec("recommend", run, "--learn-from", log), "--learn-from: is given without --explore")
