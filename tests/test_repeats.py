"""The protocol in which what is bought again counts, against a loop over users and items."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedrec.evaluation import (
    EvaluationSet,
    best_decay,
    evaluate_repeats,
    global_frequency,
    metrics_from_ranks,
    model_scores,
    personal_frequency,
    summarise_repeats,
)
from fedrec.evaluation.protocol import DECAYS, group_of
from fedrec.model import Scoring, ranking
from fedrec.model.towers import log_prior, user_vectors
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import PLANNED, make_federation, naive_ranks, settings_of
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_protocol import ALMOST_NONE, Baskets, central_of, events_of, of_user, tables


def built(users: Baskets, history: int = 50) -> EvaluationSet:
    return EvaluationSet.build(central_of(events_of(users)), history, ALMOST_NONE, 0, asks=partial(group_of, repeats=True))[0]


def drawn(seed: int) -> Baskets:
    """Users who mostly buy what is their own."""
    rng = np.random.default_rng(seed)
    users: Baskets = {}
    for user in range(25):
        own, count = rng.choice(20, 4, replace=False), int(rng.integers(1, 7))
        drawn = [{*rng.choice(own, 2).tolist(), *rng.integers(0, 20, rng.integers(0, 2)).tolist()} for _ in range(count)]
        users[f"u{user:02}"] = [sorted(basket) for basket in drawn]
    return users


def test_the_truth_is_the_whole_last_basket() -> None:
    dataset = built({"a": [[3, 1], [5, 1], [1, 5]], "b": [[2]], "c": [[4], [4]]}, history=1)
    (group,) = dataset.groups
    assert dataset.users == 2 and dataset.left_out == 1
    assert of_user(group.relevant, 0) == [1, 5] and of_user(group.relevant, 1) == [4]
    assert group.past is not None
    assert group.past.tolist() == [[0, 1, 1], [0, 3, 1], [0, 1, 0], [0, 5, 0], [1, 4, 0]], "all of it, whatever is pooled"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("of", ["model", "personal", "global"])
def test_every_figure_is_that_of_a_loop(seed: int, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, users = np.random.default_rng(seed), drawn(seed)
    dataset, k, decay, counts = built(users, 3), int(rng.integers(1, 8)), float(rng.choice([0.0, 0.3])), rng.normal(3, 2, 20)
    (whole,) = dataset.groups
    history, candidate = tables(seed)
    monkeypatch.setattr(ranking, "FLOATS", 1)
    monkeypatch.setattr(ranking, "ROWS", 4)  # blocks that end between users
    made = {
        "model": lambda: model_scores(dataset, history, candidate, Scoring(3, decay, 0.5), counts, 0.7),
        "personal": lambda: personal_frequency(dataset, counts, decay),
        "global": lambda: global_frequency(dataset, counts),
    }
    found = evaluate_repeats(made[of](), k)
    expected: dict[str, list[float]] = {name: [] for name in ("ndcg", "recall", "repeat", "explore")}
    row = 0
    for baskets in users.values():
        if len(baskets) < 2:
            continue
        before, truth = baskets[:-1], baskets[-1]
        if of == "model":
            user = user_vectors(history, whole.items, whole.ages, whole.valid, decay)[row]
            scores = 3 * candidate @ user + 0.5 * log_prior(counts, 0.7)
        elif of == "global":
            scores = counts
        else:
            weight = {
                item: sum(np.exp(-decay * (len(before) - 1 - at)) for at, basket in enumerate(before) if item in basket)
                for basket in before
                for item in basket
            }
            # Its own first, by weight, then popularity; popularity also where the weights are the same.
            order = sorted(range(20), key=lambda item: (item not in weight, -round(weight.get(item, 0), 9), -counts[item]))
            scores = np.empty(20)
            scores[order] = np.arange(20, 0, -1)
        ranks = dict(zip(truth, naive_ranks(np.asarray(scores), [], truth), strict=True))
        known = {item for basket in before for item in basket}
        again, new = [i for i in truth if i in known], [i for i in truth if i not in known]
        per = metrics_from_ranks(np.array(list(ranks.values())), np.zeros(len(truth), dtype=int), k)
        for name, value in (("ndcg", per.ndcg[0]), ("recall", per.recall[0])):
            expected[name].append(float(value))
        for name, items in (("repeat", again), ("explore", new)):
            expected[name].append(float(np.mean([ranks[i] < k for i in items])) if items else np.nan)
        row += 1
    assert row == dataset.users
    for name, of_users in (
        ("ndcg", found.metrics.ndcg),
        ("recall", found.metrics.recall),
        ("repeat", found.repeat),
        ("explore", found.explore),
    ):
        np.testing.assert_allclose(of_users, expected[name], atol=1e-9, err_msg=name)


def test_decay_is_the_one_that_finds_most() -> None:
    """What was bought twice long ago against what was bought once, last time."""
    users: Baskets = {f"u{n}": [[1], [1], [2], [2]] if n < 3 else [[1], [1], [2], [1]] for n in range(5)}
    dataset, counts = built(users), np.ones(20)
    assert best_decay(dataset, counts, 1) == min(decay for decay in DECAYS if np.exp(-decay * 2) + np.exp(-decay) < 1)
    assert best_decay(built(dict.fromkeys("abc", users["u4"])), counts, 1) == 0.0


def test_what_was_bought_long_ago_still_comes_before_what_never_was() -> None:
    dataset, counts = built({"a": [[1], *([[2]] * 30), [1, 3]]}), np.ones(20)
    counts[3] = 1000
    found = evaluate_repeats(personal_frequency(dataset, counts, 1.0), 2)
    assert (found.repeat.tolist(), found.explore.tolist()) == ([1.0], [0.0])


def test_a_summary_counts_who_has_any() -> None:
    dataset = built({"a": [[1], [1]], "b": [[1], [2]], "c": [[1], [1, 2]]})
    found = summarise_repeats(evaluate_repeats(personal_frequency(dataset, np.arange(20.0), 0.0), 1), 1, 100, 0)
    assert (found["users"], found["repeat_recall@1_users"], found["explore_recall@1_users"]) == (3, 2, 2)
    assert (found["repeat_recall@1"], found["explore_recall@1"], found["recall@1"]) == (1.0, 0.0, pytest.approx(0.5))
    assert found["repeat_recall@1_low"] == 1.0
    all_new = summarise_repeats(evaluate_repeats(global_frequency(built({"a": [[1], [2]]}), np.ones(20)), 5), 5, 100, 0)
    assert "repeat_recall@5" not in all_new


def test_a_run_is_evaluated_with_repeats(fedrec: Fedrec, tmp_path: Path, tiny_bert_folder: Path) -> None:  # noqa: F811
    settings = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, **{**PLANNED, "noise_multiplier": 5.0})
    run: RunFolder = simulate(make_federation(tmp_path / "f", users=60), settings, tmp_path / "run")
    answer = fedrec("evaluate", run.path, "--repeats", "--json")
    assert answer.status == 0, answer.err
    rows = json.loads(answer.out)["repeats"]
    assert list(rows) == ["model", "personal frequency", "global frequency"]
    k = settings.top_k
    for row in rows.values():
        assert all(0 <= row[f"{name}@{k}"] <= 1 for name in ("ndcg", "recall", "explore_recall"))
    shown = fedrec("evaluate", run.path, "--repeats")
    assert shown.status == 0 and f"EXPLORE RECALL@{k}" in shown.out and "what is bought again included" in shown.out
