"""What `recommend` answers, and that whoever asks gets an answer with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import CentralData, CentralGroup, Columns, Histories, ItemDetails
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet
from fedrec.model import log_prior
from fedrec.model.saved import COUNT, table_of_run
from fedrec.model.towers import init_base, init_trained, user_vectors
from fedrec.recommender import Answer, Filter, Person, Recommender, Wish
from fedrec.recommender.answers import answer_many
from fedrec.recommender.asking import Asking
from fedrec.recommender.of_run import RunRanker
from fedrec.recommender.past import Past

from .conftest import make_catalogue, make_encoder

ITEMS = 30
HISTORY = ["i3", "i11", "i5"]
SETTINGS = {
    "scoring": {"temperature": 3.0, "decay": 0.4, "prior_weight": 0.3}, "history": 5, "floor": 1.0, "encoder_fingerprint": "x",
}  # fmt: skip


@pytest.fixture(scope="module")
def recommender(tiny_bert_folder: Path) -> Recommender:
    """Random heads on 30 items, of which those with an even number cost something."""
    encoder, catalogue, rng = make_encoder(tiny_bert_folder), make_catalogue(ITEMS), np.random.default_rng(0)
    base = init_base(encoder, encoder.states(catalogue), True, 3, "principal", 0)
    trained = {name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in init_trained(encoder, True, 3).items()}
    number = np.arange(ITEMS)
    details = ItemDetails(
        brand=np.where(number < 10, "Acme", "").astype(object),
        category=np.where(number % 3 == 0, "Lamps", "Mugs").astype(object),
        price=np.where(number % 2 == 0, number, np.nan),
    )
    counts = rng.permutation(ITEMS).astype(np.float32)
    table = table_of_run(CentralData(catalogue, (), details=details), {"prior.counts": counts})
    table["merchant:half"] = number < 15
    return Recommender(encoder, {**base, **trained}, SETTINGS, table, device="cpu")


def ids(answer: Answer) -> list[str]:
    return [item for item, _ in answer.items]


def popular(recommender: Recommender, items: range = range(ITEMS)) -> list[str]:
    counts = recommender.table[COUNT].to_numpy()
    return [f"i{i}" for i in sorted(items, key=lambda i: -counts[i])]


def test_a_history_is_answered_as_it_is_ranked(recommender: Recommender) -> None:
    for asked in ({}, {"query": "red lamp"}, {"merchant": "half"}):
        answer = recommender.recommend(HISTORY, k=7, **asked)  # type: ignore[arg-type]
        ranked = recommender.rank(HISTORY, 7, **asked)  # type: ignore[arg-type]
        assert ids(answer) == [item for item, _ in ranked]
        assert dict(answer.items) == pytest.approx(dict(ranked), abs=1e-5)
        assert (answer.source, answer.notes) == ("model + search" if "query" in asked else "model", ())
    words = recommender.recommend(query="soap", k=30)
    assert ids(words) == [item for item, _ in recommender.rank([], 30, query="soap")] and words.source == "search"
    assert words.items == recommender.search("soap", k=30).items, "without a history words are a search's"


def test_many_people_are_answered_as_one_after_the_other(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [HISTORY, None, ["i0"] * 9, [f"i{i}" for i in range(29)]]
    people = [*map(Person, histories), Person(HISTORY, times=[1, 1, 2])]
    single = [recommender.recommend_many([person], Wish(k=6))[0] for person in people]
    monkeypatch.setattr("fedrec.model.ranking.FLOATS", 1)
    monkeypatch.setattr("fedrec.model.ranking.ROWS", 2)
    for many, alone in zip(recommender.recommend_many(people, Wish(k=6)), single, strict=True):
        assert ids(many) == ids(alone) and (many.source, many.notes) == (alone.source, alone.notes)
        assert dict(many.items) == pytest.approx(dict(alone.items), abs=1e-5)
    assert [one.source for one in single] == ["model", "popularity", "model", "model", "model"]
    assert recommender.recommend_many([], Wish()) == []


def test_items_of_one_time_are_one_basket_as_in_the_evaluation(recommender: Recommender) -> None:
    """Against the protocol's own ages and pooling, for a user with baskets of two."""
    items = ["i3", "i11", "i5", "i8", "i2", "i9", "i9"]
    times = ["2026-01-03", "2026-01-01", "2026-01-03T00:00:00Z", "2026-01-02", "2026-01-01", "2026-01-04", "2026-01-04"]
    rows = [("u", item, time[:10]) for item, time in [*zip(items, times, strict=True), ("i20", "2026-02-01")]]
    events = pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME])
    somebody = CentralGroup("all", pd.RangeIndex(ITEMS), Histories.from_table(events, recommender.catalogue))
    (group,) = EvaluationSet.build(CentralData(recommender.catalogue, (somebody,)), 5, 0.0, 0)[0].groups
    history, candidate = recommender._own_tables()
    (user,) = user_vectors(history, group.items, group.ages, group.valid, 0.4)
    scores = 3 * candidate @ user + 0.3 * log_prior(recommender.table[COUNT].to_numpy(), 1.0)
    days = [pd.Timestamp(time[:10]) for time in times]
    for given in (times, days, [float(day.day) for day in days]):
        answer = recommender.recommend(items, times=given, k=30)
        assert dict(answer.items) == pytest.approx({f"i{i}": scores[i] for i in range(ITEMS) if f"i{i}" not in items}, abs=1e-5)
    assert recommender.recommend(items, k=30).items != answer.items


def test_times_that_are_none_are_refused(recommender: Recommender) -> None:
    for times in (["2026-01-01"], ["20260101"] * 3, ["now"] * 3, ["2026-01-01", "2026-01-02", 3], "123", [1, 2, float("nan")]):
        with pytest.raises(InputError, match="times"):
            recommender.recommend(HISTORY, times=times)
    with pytest.raises(InputError, match="no history"):
        recommender.recommend(user_id="u", times=[1])


Asked = Callable[[Recommender], Answer]
FALLBACKS: dict[str, tuple[Asked, str, list[str]]] = {
    "nothing": (lambda r: r.recommend(), "popularity", ["no history to go by"]),
    "an empty history": (lambda r: r.recommend([]), "popularity", ["no history to go by"]),
    "an unknown user": (lambda r: r.recommend(user_id="u\x1b"), "popularity", ["user 'u\\x1b' is not known", "no history"]),
    "unknown items": (lambda r: r.recommend(["a", "b", "c", "d"]), "popularity", ["'a', 'b', 'c' and 1 more", "no hist"]),
    "unknown items with times": (lambda r: r.recommend(["a"], times=["2026-01-01"]), "popularity", ["ignored: 'a'", "no hist"]),
    "an unknown item": (lambda r: r.recommend(["a", *HISTORY]), "model", ["ignored: 'a'"]),
    "an unknown user with words": (lambda r: r.recommend(user_id="u", query="soap"), "search", ["'u' is not known"]),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_whoever_asks_gets_a_list_and_why(case: str, recommender: Recommender) -> None:
    ask, source, said = FALLBACKS[case]
    answer = ask(recommender)
    assert answer.source == source and len(answer.items) == 10
    assert len(answer.notes) == len(said) and all(part in note for part, note in zip(said, answer.notes, strict=True)), answer
    if source == "popularity":
        assert ids(answer) == popular(recommender)[:10]
    elif "words" not in case:
        assert answer.items == recommender.recommend(HISTORY).items


def test_a_merchants_popularity_list_has_its_own_items(recommender: Recommender) -> None:
    assert ids(recommender.recommend(merchant="half", k=30)) == popular(recommender, range(15))
    with pytest.raises(InputError, match="no merchant 'nobody'"):
        recommender.recommend(HISTORY, merchant="nobody")


def test_filters_hold_for_every_source(recommender: Recommender) -> None:
    wanted = Filter(brand=["ACME"], category=["lamps"], price_min=1, only=["i0", "i6", "i3", "i12", "gone"])
    for history, source in ((["i20"], "model"), ([], "popularity")):
        answer = recommender.recommend(history, filter=wanted, k=5)
        assert ids(answer) == ["i6"] and answer.source == source
        assert any("'gone'" in note for note in answer.notes) and "1 of the 5 asked for" in answer.notes[-1]
    left = set(ids(recommender.recommend(HISTORY, filter=Filter(price_max=8, exclude=["i0"]), exclude=["i8"], k=30)))
    assert left == {"i2", "i4", "i6"}


def test_filters_that_leave_nothing_are_told_apart(recommender: Recommender) -> None:
    answer = recommender.recommend(HISTORY, filter=Filter(brand=["none such"], price_min=4))
    assert (answer.items, answer.source, answer.distance) == ([], "none", None)
    assert answer.notes == ("the filters leave none of the 30 items; each alone leaves: brand 0, price 13",)
    assert recommender.recommend(HISTORY, filter=Filter(only=[])).source == "none"
    known = recommender.recommend(HISTORY, filter=Filter(only=HISTORY))
    assert known.items == [] and known.notes == (
        "0 of the 10 asked for: nothing else is left to choose from; what is in the history is not repeated",
    )
    assert set(ids(recommender.recommend(HISTORY, filter=Filter(only=HISTORY), repeats=True))) == set(HISTORY)


def test_a_run_from_before_filters_says_what_it_lacks(recommender: Recommender) -> None:
    old = recommender.table.drop(columns=["brand", "price"])
    run = Recommender(recommender.encoder, recommender.arrays, recommender.settings, old)
    assert ids(run.recommend(HISTORY)) == ids(recommender.recommend(HISTORY))
    assert len(run.recommend(HISTORY, filter=Filter(category=["mugs"])).items) == 10
    for wanted, column in ((Filter(brand=["acme"]), "brand"), (Filter(price_max=1), "price")):
        with pytest.raises(InputError, match=f"no column '{column}'"):
            run.recommend(HISTORY, filter=wanted)


def test_with_repeats_the_history_is_ranked_too(recommender: Recommender) -> None:
    answer = recommender.recommend(HISTORY, k=30, repeats=True)
    assert set(ids(answer)) == {f"i{i}" for i in range(ITEMS)} and not answer.notes
    new = [item for item in ids(answer) if item not in HISTORY]
    assert new == ids(recommender.recommend(HISTORY, k=30))


def test_a_diverse_list_is_less_alike(recommender: Recommender) -> None:
    plain, diverse, most = (recommender.recommend(HISTORY, k=8, diversity=value) for value in (0.0, 0.5, 1.0))
    assert plain.distance is not None and diverse.distance is not None and most.distance is not None
    assert plain.distance < diverse.distance < most.distance
    assert plain.items[0] == diverse.items[0] == most.items[0]
    vectors = recommender._own_tables()[1][[int(item[1:]) for item in ids(plain)]]
    cosines = (vectors @ vectors.T)[np.triu_indices(8, 1)]
    assert plain.distance == pytest.approx(1 - cosines.mean(), abs=1e-5)


def test_what_means_nothing_is_refused(recommender: Recommender) -> None:
    for wrong in ({"k": 0}, {"diversity": 2.0}, {"exclude": "i1"}, {"history": "i1,i2"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            recommender.recommend(**{"history": HISTORY, **wrong})  # type: ignore[arg-type]


class Shop(RunRanker):
    """A ranker that knows two users, as a merchant's does."""

    def past_of(self, user_id: str) -> Past | None:
        known = {"ann": Past(np.array([3, 5, 11]), np.array([0, 0, 1])), "bob": Past(np.zeros(0, int), np.zeros(0, int))}
        return known.get(user_id)


def test_a_known_user_is_answered_from_what_was_bought_here(recommender: Recommender) -> None:
    run = recommender._ranker(None).ranker
    assert isinstance(run, RunRanker)
    shop = Shop(**{one.name: getattr(run, one.name) for one in fields(run)})
    people = [Person(user_id="ann"), Person(user_id="bob"), Person(["i8"], "ann"), Person(user_id="eve")]
    ann, bob, given, eve = answer_many(Asking(shop, lambda: recommender._searcher("none")), people, Wish())
    assert dict(ann.items) == pytest.approx(dict(recommender.recommend(HISTORY, times=[1, 2, 1]).items), abs=1e-5)
    assert dict(given.items) == pytest.approx(dict(recommender.recommend(["i8"]).items), abs=1e-5)
    assert ann.source == given.source == "model" and not ann.notes + given.notes
    assert "nothing is known here of user 'bob'" in bob.notes and "'eve' is not known" in eve.notes[0]
    assert bob.source == eve.source == "popularity"
