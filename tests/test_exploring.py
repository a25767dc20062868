"""Exploring: stated propensities against draws and against another integral, and what a list may never hold."""

# ruff: noqa: F811

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, norm

from fedrec.errors import InputError
from fedrec.explore.beliefs import Prior
from fedrec.explore.places import FLOOR, Thompson, draw_places
from fedrec.recommender import Answer, Filter, Person, Recommender, Wish

from .test_answers import HISTORY, ids, recommender  # noqa: F401
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_cli_recommend import run  # noqa: F401


def chances_of(answer: Answer) -> tuple[float, ...]:
    return tuple(place.propensity for place in answer.places)


@given(seed=st.integers(0, 10**6), items=st.integers(2, 7), gone=st.integers(0, 4))
@settings(max_examples=6, deadline=None)
def test_thompson_probabilities_are_the_integral(seed: int, items: int, gone: int) -> None:
    rng = np.random.default_rng(seed)
    mean, sd = rng.normal(0, 2, items), rng.choice([0.1, 0.5, 1.0, 1.5], items)
    values = Thompson(mean, sd, items)
    for item in rng.permutation(items)[: min(gone, items - 1)].tolist():
        values.take(item)
    sd = np.maximum(sd, 0.05 * sd.max())
    left = np.flatnonzero(values.left).tolist()
    found = [deepcopy(values).take(item) for item in left]
    assert sum(found) == pytest.approx(1, abs=1e-8)
    for item, chance in zip(left, found, strict=True):
        rest = [one for one in left if one != item]
        wide = (mean[item] - 8 * sd[item], mean[item] + 8 * sd[item])
        product = lambda x, item=item, rest=rest: norm.pdf(x, mean[item], sd[item]) * norm.cdf(x, mean[rest], sd[rest]).prod()
        expected = quad(product, *wide, points=[m for m in mean.tolist() if wide[0] < m < wide[1]], limit=300)[0]
        assert chance == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("items", [7, 1_000])
def test_items_that_are_alike_have_the_same_chance(items: int) -> None:
    """The largest of many varies little, so the grid has to be finer for them."""
    assert Thompson(np.zeros(items), np.ones(items), 10).take(0) == pytest.approx(1 / items, rel=1e-7)


@pytest.mark.parametrize("lists", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_stated_propensities_are_how_often_lists_are_drawn(lists: int, recommender: Recommender) -> None:
    people = [Person(HISTORY, f"u{number}") for number in range(lists)]
    wish = Wish(k=2, filter=Filter(only=ids(recommender.recommend(HISTORY, k=5))), explore=0.8, seed=3)
    drawn, stated = Counter[tuple[str, ...]](), dict[tuple[str, ...], tuple[float, ...]]()
    for answer in recommender.recommend_many(people, wish):
        outcome = tuple(ids(answer))
        assert stated.setdefault(outcome, chances_of(answer)) == pytest.approx(chances_of(answer), rel=1e-9)
        drawn[outcome] += 1
    firsts = {outcome[0]: chances[0] for outcome, chances in stated.items()}
    assert len(firsts) == 5 and sum(firsts.values()) == pytest.approx(1, abs=1e-7)
    assert sum(float(np.prod(chances)) for chances in stated.values()) == pytest.approx(1, abs=1e-7) and len(stated) == 20
    expected = np.array([lists * np.prod(stated[outcome]) for outcome in stated])
    observed = np.array([drawn[outcome] for outcome in stated])
    few = expected < 5  # together they make one cell
    cells = [(observed[~few], expected[~few]), (observed[few].sum(keepdims=True), expected[few].sum(keepdims=True))]
    statistic = sum(float(((o - e) ** 2 / np.maximum(e, 1e-12)).sum()) for o, e in cells)
    assert statistic < chi2.ppf(0.999, int((~few).sum()))


def test_a_seed_gives_the_same_list_to_the_same_person(recommender: Recommender) -> None:
    wish = Wish(k=8, explore=0.7, seed=5)
    people = [Person(HISTORY, "ann"), Person(HISTORY, "bob"), Person(["i8"]), Person()]
    first, again = recommender.recommend_many(people, wish), recommender.recommend_many(people[::-1], wish)[::-1]
    alone = recommender.recommend(HISTORY, "ann", k=8, explore=0.7, seed=5)
    for one, other in zip([*first, first[0]], [*again, alone], strict=True):
        assert ids(one) == ids(other) and chances_of(one) == pytest.approx(chances_of(other), rel=1e-4)
    assert ids(first[0]) != ids(first[1])
    assert len({tuple(ids(recommender.recommend(HISTORY, k=8, explore=0.7, seed=seed))) for seed in range(5)}) > 1
    free = {tuple(ids(recommender.recommend(HISTORY, k=8, explore=0.7))) for _ in range(5)}
    assert len(free) > 1
    plain = recommender.recommend(HISTORY, k=8, seed=5)
    assert plain == recommender.recommend(HISTORY, k=8) and plain.places == ()
    assert first[3].source == "popularity" and len(first[3].places) == 8
    scores = dict(recommender.recommend(HISTORY, k=30).items)
    assert all(score == pytest.approx(scores[item]) for item, score in first[0].items)


@given(
    seed=st.integers(0, 10**6), k=st.integers(1, 30), share=st.sampled_from([0.01, 0.5, 1.0]), diversity=st.sampled_from([0, 0.5])
)
@settings(max_examples=15, deadline=None)
def test_what_a_list_may_not_hold_it_never_holds(
    recommender: Recommender, seed: int, k: int, share: float, diversity: float
) -> None:
    rng = np.random.default_rng(seed)
    wanted = Filter(only=[f"i{i}" for i in rng.permutation(30)[:12]], exclude=["i0"])
    asked = {"k": k, "filter": wanted, "exclude": ["i1"], "diversity": diversity, "merchant": rng.choice([None, "half"])}
    plain = recommender.recommend(HISTORY, **asked)  # type: ignore[arg-type]
    answer = recommender.recommend(HISTORY, **asked, explore=share, seed=seed)  # type: ignore[arg-type]
    may = ids(recommender.recommend(HISTORY, **(asked | {"k": 30, "diversity": 0.0})))  # type: ignore[arg-type]
    assert len(set(ids(answer))) == len(answer.items) == len(plain.items) and set(ids(answer)) <= set(may)
    assert (answer.source, answer.notes) == (plain.source, plain.notes)
    least = (share if len(may) == 1 or k == 1 else share**2) * FLOOR / max(len(may), 1)
    assert len(answer.places) == len(answer.items) and all(least <= one <= 1 for one in chances_of(answer))
    if share == 0.01:
        following = [item for item, chance in zip(ids(answer), chances_of(answer), strict=True) if chance > 0.5]
        assert following == [item for item in ids(plain) if item in following]  # places that do not explore are as they were


def test_a_new_item_is_worth_what_its_kind_is_worth_and_is_tried() -> None:
    """Two kinds of items, of which the person likes the first; a new one of each kind, whose score says nothing yet."""
    rng = np.random.default_rng(0)
    kind = np.arange(42) % 2
    vectors = np.stack([kind == 0, kind == 1], axis=1) + rng.normal(0, 0.05, (42, 2))
    counts, scores = np.full(42, 200.0), np.where(kind == 0, 3.0, 0.0) + rng.normal(0, 0.3, 42)
    counts[:2], scores[:2] = (0, -1), -5.0
    mean, sd = Prior(vectors, counts).beliefs(scores)
    np.testing.assert_allclose(mean[2:], scores[2:], atol=0.1)
    assert mean[0] == pytest.approx(3, abs=0.3) and mean[1] == pytest.approx(0, abs=0.3)
    assert sd[0] == sd[1] > 3 * sd[2:].max()
    plain = np.argsort(-scores)[:5].tolist()
    shown = Counter(item for _ in range(300) for item, _ in draw_places(plain, mean, sd, 0.4, rng))
    assert shown[0] > 10 * shown[1]


def test_an_item_that_all_agree_on_breaks_nothing() -> None:
    """No spread at all, nothing known, a single item, and means that are far apart beside their spread."""
    rng = np.random.default_rng(0)
    for mean, sd in (
        (np.zeros(4), np.zeros(4)),
        (np.arange(4.0) * 1e6, np.full(4, 1e-6)),
        (np.array([2.0]), np.array([1.0])),
        (np.array([0.0, 50.0]), np.array([1e-3, 1.0])),
    ):
        found = draw_places(list(range(len(mean))), mean, sd, 1.0, rng)
        assert sorted(item for item, _ in found) == list(range(len(mean))) and found[-1][1] == pytest.approx(1, abs=1e-6)
        assert all(0 < chance <= 1 + 1e-9 for _, chance in found)
    mean, sd = Prior(np.eye(3), np.zeros(3)).beliefs(np.array([1.0, 2.0, 3.0]))
    assert np.isfinite(mean).all() and (sd > 0).all()


def test_the_command_says_the_propensity_of_each_place(
    fedrec: Fedrec, run: Path, recommender: Recommender, tmp_path: Path
) -> None:
    options = ["recommend", run, "--history", ",".join(HISTORY), "--k", 5, "--explore", 0.5, "--seed", 2]
    shown = json.loads(fedrec(*options, "--json").out)["items"]
    expected = recommender.recommend(HISTORY, k=5, explore=0.5, seed=2)
    assert [one["item_id"] for one in shown] == ids(expected)
    assert [one["propensity"] for one in shown] == pytest.approx(chances_of(expected))
    assert "propensity" in fedrec(*options).out and "propensity" not in fedrec(*options[:-4]).out
    assert "propensity" not in json.loads(fedrec(*options[:-4], "--json").out)["items"][0]
    (tmp_path / "users.csv").write_text("user_id,item_id\nann,i3\nbob,\n")
    fedrec("recommend", run, "--users", "users.csv", "--out", "lists.csv", "--explore", 0.5, "--seed", 2)
    lists = pd.read_csv(tmp_path / "lists.csv")
    assert len(lists) == 20 and lists["propensity"].between(0, 1, inclusive="right").all()
    assert lists["position"].tolist() == [*range(1, 11)] * 2 and lists.groupby("request_id").size().tolist() == [10, 10]
    # With what came of it and a policy to judge it is the log that the other commands read.
    lists.assign(click=lists["position"] % 2, target=lists["propensity"]).to_csv(tmp_path / "log.csv", index=False)
    judged = json.loads(fedrec("explore", "evaluate", "log.csv", "--json").out)
    assert judged["requests"] == 2 and judged["mean_weight"] == 1 and not any("without" in note for note in judged["notes"])
    assert fedrec("recommend", run, "--history", "i3", "--explore", 0.5, "--learn-from", "log.csv").status == 0
    assert fedrec("recommend", run, "--explore", 1.5).status == 2


def test_a_share_or_seed_that_means_nothing_is_refused(recommender: Recommender) -> None:
    for wrong in ({"explore": 1.1}, {"explore": float("nan")}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            recommender.recommend(HISTORY, **wrong)  # type: ignore[arg-type]


def test_words_and_chance_do_not_go_together(recommender: Recommender, fedrec: Fedrec, run: Path) -> None:
    """Clicks teach of items and not of words, so what was clicked would push out what was asked for."""
    with pytest.raises(InputError, match="explore: is asked for together with words"):
        recommender.recommend(HISTORY, query="mug", explore=0.1)
    (answer,) = recommender.recommend_each([(Person(HISTORY), Wish(query="mug", explore=0.1))])
    assert isinstance(answer, InputError) and answer.where == "explore"
    assert_refused(fedrec("recommend", run, "--query", "mug", "--explore", 0.1), "explore: is asked for together with words")
    assert recommender.recommend(HISTORY, explore=0.1).places and recommender.recommend(HISTORY, query="mug").items


def test_questions_of_many_kinds_explore_as_each_would_alone(recommender: Recommender) -> None:
    ann, bob = Person(HISTORY, "ann"), Person(["i8"], "bob")
    wishes = [Wish(k=8, explore=0.7, seed=5), Wish(k=8), Wish(explore=2.0)]
    first, plain, wrong = recommender.recommend_each([(ann, wishes[0]), (bob, wishes[1]), (ann, wishes[2])])
    assert isinstance(first, Answer) and isinstance(plain, Answer) and isinstance(wrong, InputError)
    (alone,) = recommender.recommend_many([ann], wishes[0])
    assert ids(first) == ids(alone) and chances_of(first) == pytest.approx(chances_of(alone), rel=1e-4)
    assert plain.places == () and ids(plain) == ids(recommender.recommend(["i8"], k=8))
