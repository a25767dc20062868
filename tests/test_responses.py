"""Metrics of predicted responses equal scikit-learn's, and their intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from fedrec.evaluation import Judged, fit_logistic, gain_in, reliability, summarise_responses


def drawn(seed: int, users: int = 12, levels: int = 0, share: float = 1.0, scale: float = 1.0) -> Judged:
    """Impressions whose logits are right up to a scale, with ties where they have few levels."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, users, 15 * users))
    logit = rng.normal(0, 2, len(user)) + rng.normal(0, 1, users)[user]
    if levels:
        logit = np.round(logit * levels) / levels
    answer = rng.random(len(user)) < 1 / (1 + np.exp(-logit))
    return Judged(user, answer, scale * logit, share)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 3]))
def test_metrics_are_scikit_learns(seed: int, levels: int) -> None:
    judged = drawn(seed, levels=levels)
    found = summarise_responses(judged)
    chance = 1 / (1 + np.exp(-judged.logit))
    assert found["auc"] == pytest.approx(roc_auc_score(judged.answer, judged.logit))
    assert found["average_precision"] == pytest.approx(average_precision_score(judged.answer, judged.logit))
    assert found["log_loss"] == pytest.approx(log_loss(judged.answer, chance))
    own = [
        roc_auc_score(judged.answer[judged.user == user], judged.logit[judged.user == user])
        for user in np.unique(judged.user)
        if 0 < judged.answer[judged.user == user].mean() < 1
    ]
    assert found["gauc"] == pytest.approx(np.mean(own))
    slow = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000).fit(judged.logit[:, None], judged.answer)
    assert found["calibration_slope"] == pytest.approx(slow.coef_[0, 0], rel=1e-3)


@pytest.mark.slow
def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    """Users differ by what no score knows, so intervals that took impressions for independent would be too short."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user, logit = np.repeat(np.arange(80), 15), np.repeat(rng.normal(0, 1, 80), 15) + rng.normal(0, 1, 1200)
        answer = rng.random(1200) < 1 / (1 + np.exp(-logit - np.repeat(rng.normal(0, 2, 80), 15)))
        found.append(summarise_responses(Judged(user, answer, logit)))
    for name in ("auc", "log_loss", "gauc"):
        truth = np.mean([one[name] for one in found])
        assert 0.89 <= np.mean([one[f"{name}_low"] <= truth <= one[f"{name}_high"] for one in found]) <= 0.995


def test_a_gain_is_paired() -> None:
    before = drawn(1, users=50)
    noisy = np.random.default_rng(0).normal(0, 2, len(before.logit))
    after = Judged(before.user, before.answer, before.logit + noisy)
    found = gain_in("auc", before, after)
    assert found["mean"] == pytest.approx(roc_auc_score(after.answer, after.logit) - roc_auc_score(before.answer, before.logit))
    assert found["high"] < 0
    apart = [summarise_responses(one) for one in (before, after)]
    assert found["high"] - found["low"] < sum(one["auc_high"] - one["auc_low"] for one in apart)
    assert gain_in("log_loss", before, before) == {"mean": 0, "low": 0, "high": 0}


def test_a_share_of_the_negatives_is_taken_out_of_the_probability() -> None:
    whole = drawn(3, users=3000)
    rng = np.random.default_rng(0)
    kept = whole.answer | (rng.random(len(whole.answer)) < 0.2)
    logit = whole.logit[kept] - np.log(0.2)  # what is likely among what is kept
    part = summarise_responses(Judged(whole.user[kept], whole.answer[kept], logit, 0.2))
    assert part["base_rate"] == pytest.approx(whole.answer.mean(), abs=0.01)
    assert part["ece"] < 0.01
    wrong = summarise_responses(Judged(whole.user[kept], whole.answer[kept], logit, 1.0))
    assert wrong["base_rate"] > whole.answer.mean() + 0.1


def test_what_is_too_sure_of_itself_has_a_slope_under_one() -> None:
    sure, right = summarise_responses(drawn(5, users=500, scale=2.0)), summarise_responses(drawn(5, users=500))
    assert sure["calibration_slope"] == pytest.approx(0.5, abs=0.05)
    assert right["calibration_slope"] == pytest.approx(1.0, abs=0.1)
    assert sure["ece"] > 2 * right["ece"]
    assert sure["auc"] == right["auc"]


@pytest.mark.parametrize("answer", [True, False])
def test_one_answer_has_no_auc(answer: bool) -> None:
    judged = Judged(np.array([0, 0, 1]), np.full(3, answer), np.array([0.5, 1.0, -1.0]))
    found = summarise_responses(judged)
    assert not found.keys() & {"auc", "gauc", "average_precision", "calibration_slope"}
    assert np.isfinite(list(found.values())).all()
    assert sum(one["impressions"] for one in reliability(judged)) == 3


def test_a_fit_keeps_to_its_ranges() -> None:
    judged = drawn(7, users=100)
    features = np.stack([-judged.logit, np.ones(len(judged.logit))])
    assert fit_logistic(features, judged.answer, [(None, None)] * 2, np.zeros(2))[0] < -0.5
    assert fit_logistic(features, judged.answer, [(0, 10), (None, None)], np.zeros(2))[0] == 0
