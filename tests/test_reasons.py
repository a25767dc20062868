"""Reasons: shares that add up for every ranker, what may be told of them and to whom, and the words of a text."""

# ruff: noqa: F811

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from fedrec.data import Catalogue, Columns, Histories, MerchantData
from fedrec.errors import InputError
from fedrec.recommender import Person, Recommender, Wish
from fedrec.recommender.answers import Ranker, answer_many
from fedrec.recommender.asking import Asking, HistoryRanker
from fedrec.recommender.blend import Blend, TextPart
from fedrec.recommender.contest import HERE, THEIRS, popularity_here
from fedrec.recommender.ease import Ease
from fedrec.recommender.frequency import PersonalFrequency
from fedrec.recommender.item_knn import ItemKnn
from fedrec.recommender.merchant_ranker import MerchantRanker
from fedrec.recommender.own_layer import bought_by
from fedrec.recommender.own_model import Placed
from fedrec.recommender.past import Past
from fedrec.recommender.reasons import sentences, words
from fedrec.recommender.reasons.reasons import BASE, HISTORY, POPULARITY, QUERY, Reasons, class_of, reasons_of
from fedrec.recommender.reasons.shares import FEWEST_CUSTOMERS, OWN, Customers, Shares, count_customers
from fedrec.recommender.reasons.words import Reader, split_words, words_of
from fedrec.recommender.selection import Filter
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

from .conftest import make_catalogue, make_histories
from .test_answers import HISTORY as RUN_HISTORY
from .test_answers import recommender  # noqa: F401

ITEMS, WIDTH = 40, 8
NOW = datetime(2026, 7, 1, tzinfo=UTC)


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    found = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def merchant(kind: type[Ease] | type[ItemKnn] = Ease, sign: float = 1.0, histories: Histories | None = None) -> MerchantRanker:
    """A merchant's ranker under random texts. Since its layer was fitted the last two items have come, the one before has
    gone and come again as another, and the others have changed places.
    """
    rng, catalogue = np.random.default_rng(5), make_catalogue(ITEMS)
    histories = histories or make_histories(300, make_catalogue(ITEMS - 2))
    places = np.append(ITEMS - 3, rng.permutation(ITEMS - 3))  # of the layer's items
    layer = kind.fit(bought_by(histories, ITEMS)[:, places], kind.strengths[0])
    priors = {HERE: rng.normal(-5, 1, ITEMS).astype(np.float32), THEIRS: rng.normal(-4, 1, ITEMS).astype(np.float32)}
    part = TextPart(unit(rng, ITEMS), unit(rng, ITEMS), priors)
    blend = Blend({0.0: 2.0, 0.3: -1.0, 1.0: 4.0}, {HERE: 0.7, THEIRS: sign * 0.2}, sign * 0.6, 10.0)
    return MerchantRanker(
        MerchantData(catalogue, histories), part,
        Placed(layer, np.arange(1, ITEMS - 2), places[1:], ITEMS - 2, ITEMS),
        popularity_here(histories, ITEMS), blend, 6, lambda _: unit(rng, 1), "both", PersonalFrequency(0.2, 8.0),
    )  # fmt: skip


def asking(who: HistoryRanker) -> Asking:
    """The same for words too, of random meaning; the history has a part in some of them."""
    rng, texts = np.random.default_rng(8), who.catalogue.texts
    vectors = unit(rng, len(texts)) + 1.0 * unit(rng, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    said = unit(rng, 1)
    searcher = Searcher(who.catalogue, BM25Index(texts, Tokeniser()), vectors, lambda _: said)
    return Asking(who, lambda: searcher)


RANKERS: dict[str, Callable[[Recommender], Ranker]] = {
    "run": lambda run: run._ranker(None),
    "a part of a run": lambda run: run._ranker("half"),
    "merchant, ease": lambda _: asking(merchant(Ease)),
    "merchant, item-knn, negative weights": lambda _: asking(merchant(ItemKnn, -1.0)),
    "merchant without a layer": lambda _: asking(replace(merchant(), layer=None)),
}


@pytest.fixture(scope="module", params=RANKERS)
def ranker(request: pytest.FixtureRequest, recommender: Recommender) -> Ranker:
    return RANKERS[request.param](recommender)


def person(rng: np.random.Generator, items: int, longest: int = 14) -> Past:
    """Items bought or looked at, some again, some together."""
    count = int(rng.integers(1, longest))
    return Past(rng.integers(0, items, count), np.sort(rng.integers(0, 5, count)), rng.random(count) < 0.8)


# The contract of every ranker


@pytest.mark.parametrize("query", [None, "red mug"])
def test_shares_are_the_scores(ranker: Ranker, query: str | None) -> None:
    rng, size = np.random.default_rng(0), len(ranker.catalogue)
    pasts = [person(rng, size) for _ in range(60)]
    if query:
        pasts.append(Past(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)))
    for past, expected in zip(pasts, ranker.scores(pasts, query), strict=True):
        items = np.flatnonzero(np.isfinite(expected))
        found = ranker.shares(past, query, items)
        assert found.total == pytest.approx(expected[items], abs=1e-5)
        assert set(found.held) == set(past.items) and len(found.held) == len(set(past.items))
        if len(past.items):
            assert found.held[-1] == past.items[-1], "the latest is the last"
        assert bool(np.any(found.words)) == bool(query)


def test_who_has_no_history_is_told_of_the_popularity_list(ranker: Ranker) -> None:
    nobody, expected = Past(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)), ranker.popularity()
    items = np.flatnonzero(np.isfinite(expected))
    assert ranker.shares(nobody, None, items).total == pytest.approx(expected[items])


def test_reasons_add_up_for_every_item_of_a_thousand_users(ranker: Ranker) -> None:
    rng, ids = np.random.default_rng(1), ranker.catalogue.item_ids
    users = 1000 // len(RANKERS)
    for number in range(users):
        past = person(rng, len(ids), 40 if number % 10 == 0 else 9)
        who = Person([ids[item] for item in past.items], times=[int(one) for one in past.baskets] if number % 2 else None)
        wish = Wish(len(ids), "red" if number % 5 == 0 else None, repeats=number % 3 == 0, explain=True)
        (answer,) = answer_many(ranker, [who], wish)
        assert len(answer.reasons) == len(answer.items) > 0
        for (item, score), reasons in zip(answer.items, answer.reasons, strict=True):
            assert (reasons.item_id, reasons.score) == (item, score)
            assert sum(share.value for share in reasons.shares) == pytest.approx(score, abs=1e-5)
            for share in reasons.shares:
                assert sum(share.through.values()) == pytest.approx(share.value if share.through else 0.0, abs=1e-9)


def test_the_latest_events_alone_count_through_the_text_and_all_of_them_through_the_layer() -> None:
    """Each share from its definition, one number after the other."""
    who = merchant()
    past = Past(np.array([7, 1, 2, 3, 2, 4, 5, 6]), np.array([0, 1, 1, 2, 3, 3, 4, 5]))
    scores, item = who.scores([past])[0], 9
    found = who.shares(past, np.array([item]))
    latest = list(zip(past.items[-6:], past.baskets[-6:], strict=True))
    for decay, weight in who.blend.pooling.items():
        softmax = np.exp([-decay * (5 - basket) for _, basket in latest])
        softmax /= softmax.sum()
        pooled = sum(w * who.part.history[i].astype(float) for w, (i, _) in zip(softmax, latest, strict=True))
        for row, held in enumerate(found.held):
            mine = sum(
                w * float(who.part.history[i] @ who.part.candidate[item])
                for w, (i, _) in zip(softmax, latest, strict=True)
                if i == held
            )
            assert found.text[decay][row, 0] == pytest.approx(weight * mine / np.linalg.norm(pooled), abs=1e-5)
    assert who.layer is not None
    row = np.flatnonzero(found.held == 7)[0]
    assert found.text[0.0][row, 0] == 0 and found.own[row, 0] != 0
    alone = np.zeros((1, ITEMS), dtype=np.float32)
    alone[0, np.unique(past.items)] = 1
    spread = who.layer.scores(csr_array(alone)).std()
    assert isinstance(who.layer.layer, Ease)
    then = dict(zip(who.layer.places.tolist(), who.layer.kept.tolist(), strict=True))
    at = {known: number for number, known in enumerate(who.layer.layer.rows.tolist())}
    assert found.own[row, 0] == pytest.approx(0.6 * who.layer.layer.weights[at[then[7]], at[then[item]]] / spread, rel=1e-4)
    assert np.isfinite(scores).all()


def test_the_direction_is_the_text_part_of_the_score(recommender: Recommender) -> None:
    reader, texts = recommender._reader(), recommender.catalogue.texts
    (first, *_) = recommender.recommend(RUN_HISTORY, explain=True).reasons
    place = recommender.catalogue.index.get_loc(first.item_id)
    text = sum(share.value for share in first.shares if share.kind == HISTORY)
    assert 3.0 * recommender._own_tables()[1][place] @ first.direction == pytest.approx(text, abs=1e-5)
    rest = []
    for one in recommender.recommend(RUN_HISTORY, query="a lamp", explain=True, k=30).reasons:
        place = recommender.catalogue.index.get_loc(one.item_id)
        through = {name: value for share in one.shares if share.kind == QUERY for name, value in share.through.items()}
        text = through["meaning"] + sum(share.value for share in one.shares if share.kind == HISTORY)
        rest.append(float(reader.vectors([texts[place]])[0] @ one.direction) - text)
    assert rest == pytest.approx([rest[0]] * len(rest), abs=2e-3), "what all texts have of the meaning is counted out of it"


# Who stands behind, and what may be told


def shop(both: int, other: int = 30) -> Histories:
    """`both` customers bought i0 and i1, thirty i0 and i2; every one bought something else beside, so that items differ."""
    rng, rows = np.random.default_rng(2), []
    for user in range(both + other + 60):
        items = {0, 1} if user < both else {0, 2} if user < both + other else set()
        rows += [(f"u{user}", f"i{item}", day) for day, item in enumerate([*items, *rng.integers(5, 30, 3)])]
    frame = pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME])
    frame[Columns.TIME] = pd.Timestamp("2026-01-01") + pd.to_timedelta(frame[Columns.TIME], unit="D")
    return Histories.from_table(frame, make_catalogue(ITEMS))


def only_own(histories: Histories) -> MerchantRanker:
    who = merchant(histories=histories)
    return replace(who, blend=Blend({0.0: 0.0}, {HERE: 0.0}, 1.0, 10.0))


def of_item(who: Ranker, past: Past, item: int, **more: Any) -> Reasons:
    ranker = asking(who)
    score = float(ranker.scores([past], more.get("query"))[0, item])
    return reasons_of(ranker, past, [(item, score)], more.get("query"), more.get("repeats", False), NOW)[0]


def test_customers_are_counted_each_once_and_without_the_one_who_asks() -> None:
    rng = np.random.default_rng(4)
    bought = bought_by(make_histories(200, make_catalogue(ITEMS), seed=9), ITEMS)
    dense = bought.toarray().astype(bool)
    for _ in range(30):
        past = person(rng, ITEMS)
        held, items = np.unique(past.items), rng.permutation(ITEMS)[:7]
        found = count_customers(bought.T.tocsr(), past, held, items)
        for column, item in enumerate(items):
            one = int(item in past.bought)
            pairs = np.maximum([(dense[:, item] & dense[:, i]).sum() - one for i in held], 0)
            assert found.pairs[:, column].tolist() == pairs.tolist()
            assert found.buyers[column] == max(dense[:, item].sum() - one, 0)


@pytest.mark.parametrize(("both", "named"), [(FEWEST_CUSTOMERS - 1, False), (FEWEST_CUSTOMERS, True)])
def test_a_pair_is_named_where_enough_customers_are_behind_it(both: int, named: bool) -> None:
    who, past = only_own(shop(both)), Past(np.array([0]), np.array([0]))
    reasons = of_item(who, past, 1)
    said = json.dumps([reasons.for_staff(), reasons.for_shopper()])
    assert ('"i0"' in said) == named
    assert sum(share.value for share in reasons.shares) == pytest.approx(reasons.score, abs=1e-5) and reasons.score > 0
    assert (reasons.sentence is None) != named and bool(reasons.told) == named
    (undivided,) = [share for share in reasons.shares if share.kind == OWN]
    assert undivided.value == pytest.approx(0.0 if named else reasons.score, abs=1e-5)


def test_what_few_are_behind_is_not_told_however_many_are_behind_all_of_it() -> None:
    """Nine bought i1 with i0 and up to nine others with i2: were both told as one, a single customer of i1 and i2 would show."""
    views = set()
    for others in (0, 1, FEWEST_CUSTOMERS - 1):
        rows = [(f"u{user}", item, 0) for user in range(9 + others) for item in ("i1", "i0" if user < 9 else "i2")]
        rows += [("w", "i2", 0), *((f"v{user}", f"i{user % 20 + 5}", 0) for user in range(60))]
        frame = pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME])
        frame[Columns.TIME] = pd.Timestamp("2026-01-01")
        who = only_own(Histories.from_table(frame, make_catalogue(ITEMS)))
        for held in ([0], [2], [0, 2]):
            reasons = of_item(who, Past(np.array(held), np.arange(len(held))), 1)
            views.add(json.dumps(reasons.for_shopper()))
            assert {share.kind for share in reasons.shares if share.value} <= {OWN}
            assert sum(share.value for share in reasons.shares) == pytest.approx(reasons.score, abs=1e-5)
    assert views == {json.dumps({"item_id": "i1", "because": None, "shares": [], "words": None})}


def test_a_share_that_may_not_be_told_enters_neither_sentence_nor_classes() -> None:
    """The same shares but for another undivided one and another score: the same view, and no number in it."""
    who, past = merchant(), Past(np.array([3, 4, 5]), np.array([0, 1, 2]))
    reasons = of_item(who, past, 8)
    found = reasons.teller.shares
    few = Customers(np.zeros_like(found.own, dtype=np.int64), np.full(1, 50))
    views = []
    for size in (0.0, 0.3, 50.0):
        other = replace(found, own=np.full_like(found.own, size), customers=few)
        told = replace(reasons, score=size, teller=replace(reasons.teller, shares=other))
        assert (size < 50) or max(told.shares, key=lambda one: one.value).kind == OWN
        views.append(json.dumps(told.for_shopper()))
    assert len(set(views)) == 1 and "strong" in views[0]
    view = json.loads(views[0])
    assert view.keys() == {"item_id", "because", "shares", "words"} and view["words"] is None
    assert all(isinstance(value, str) for share in view["shares"] for value in share.values())


def test_a_pair_that_may_not_be_told_moves_one_that_may_through_the_spread_alone() -> None:
    who, past = only_own(shop(30)), Past(np.array([0, 7]), np.array([0, 1]))
    assert who.layer is not None and isinstance(who.layer.layer, Ease)
    then = dict(zip(who.layer.places.tolist(), who.layer.kept.tolist(), strict=True))
    weights = who.layer.layer.weights.copy()
    weights[who.layer.layer.rows.tolist().index(then[7])] *= 20  # of i7 with every item
    other = replace(who, layer=replace(who.layer, layer=replace(who.layer.layer, weights=weights)))
    held = np.zeros((1, ITEMS), dtype=np.float32)
    held[0, past.items] = 1
    found = []
    for one in (who, other):
        reasons = of_item(one, past, 1)
        customers, named = reasons.teller.shares.customers, [share for share in reasons.shares if share.kind == HISTORY]
        assert customers is not None and customers.pairs.ravel()[1] < FEWEST_CUSTOMERS <= customers.pairs.ravel()[0]
        assert [share.name for share in named] == ["i0"] and one.layer is not None
        found.append((named[0].told, float(one.layer.scores(csr_array(held)).std())))
    (value, spread), (moved, wider) = found
    assert moved * wider == pytest.approx(value * spread, rel=1e-5) and moved < 0.9 * value


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_popularity_of_negative_weight_is_not_told_by_its_name(sign: float) -> None:
    """Shares positive, and enough customers behind them; whether they are told is for the sign of the weights to say."""
    reasons = of_item(merchant(Ease, sign), Past(np.array([3]), np.array([0])), 8)
    found = reasons.teller.shares
    many = Customers(np.zeros((1, 1), dtype=np.int64), np.array([50]))
    positive = replace(found, popularity={name: np.ones(1) for name in found.popularity}, customers=many)
    told = {(one.kind, one.name) for one in replace(reasons, teller=replace(reasons.teller, shares=positive)).told}
    assert ((POPULARITY, THEIRS) in told) == (sign > 0) and (POPULARITY, HERE) in told


@pytest.mark.parametrize("query", [None, "mug"])
@pytest.mark.parametrize(("pooling", "own"), [({0.0: -3.0}, 0.0), ({0.0: 0.0}, -1.0)])
def test_what_counts_against_an_item_is_never_why_it_is_there(pooling: dict[float, float], own: float, query: str | None) -> None:
    """All that there is has negative weight, so the items that score best are those least like the history."""
    who = replace(merchant(histories=shop(30)), blend=Blend(pooling, {HERE: 0.0}, own, 10.0))
    assert who.layer is not None and isinstance(who.layer.layer, Ease)
    apart = replace(who.layer.layer, weights=-who.layer.layer.weights)  # thirty bought i0 and i1, and are said to go apart
    who, past, against = replace(who, layer=replace(who.layer, layer=apart)), Past(np.array([0]), np.array([0])), 0
    for item in (one for one in range(ITEMS) if one not in past.items):
        reasons = of_item(who, past, item, query=query)
        assert {one.kind for one in reasons.told} <= {QUERY}
        assert reasons.sentence in (None, "Because you asked for “mug”") and (query or reasons.sentence is None)
        assert sum(share.value for share in reasons.shares) == pytest.approx(reasons.score, abs=1e-5)
        against += any(share.kind == HISTORY and share.value > 0 for share in reasons.shares)
    assert against


def test_the_history_is_told_by_its_parts_of_positive_weight() -> None:
    who, past = merchant(), Past(np.array([1, 3, 7]), np.array([0, 1, 2]))
    pooling = {decay: weight for decay, weight in who.blend.pooling.items() if weight > 0}
    kept = replace(who, blend=replace(who.blend, pooling=pooling, priors={}))
    all_of_it, differ = replace(who, blend=replace(who.blend, priors={})), 0
    for item in (one for one in range(ITEMS) if one not in past.items):
        exact, told = (of_item(one, past, item) for one in (all_of_it, kept))
        assert exact.for_shopper() == told.for_shopper()
        differ += exact.shares != told.shares
    assert differ


@pytest.mark.parametrize("own", [0.0, -1.0, -3.0])
def test_of_two_alike_the_sentence_does_not_tell_which_has_more_that_may_not_be_told(own: float) -> None:
    """i0 and i7 have one text; thirty bought i0 with i1, whose own layer counts against it, and under ten i7."""
    who = merchant(histories=shop(30))
    history = who.part.history.copy()
    history[7] = history[0]
    for item in np.flatnonzero(who.part.candidate @ history[0] > 0.1).tolist():
        if item not in (0, 7):
            one = replace(who, part=replace(who.part, history=history), blend=Blend({0.0: 3.0}, {HERE: 0.0}, own, 10.0))
            first, second = (of_item(one, Past(np.array(held), np.array([0, 0])), item) for held in ([0, 7], [7, 0]))
            assert first.sentence == second.sentence == f"Because you bought “{who.catalogue.texts[7]}”"


def test_without_an_own_layer_nothing_is_said_of_other_customers() -> None:
    who = replace(merchant(), layer=None, blend=Blend({0.0: 3.0}, {THEIRS: 1.0}, 0.0, 0.0))
    found = of_item(who, Past(np.array([3]), np.array([0])), 8)
    assert found.teller.shares.customers is None
    assert {(share.kind, share.name) for share in found.shares} == {(HISTORY, "i3"), (POPULARITY, THEIRS), (BASE, "")}


def test_the_sentence_names_the_largest_share_that_may_be_told(ranker: Ranker) -> None:
    rng, kinds = np.random.default_rng(6), set()
    for number in range(80):
        past, query = person(rng, len(ranker.catalogue)), "red mug" if number % 4 == 0 else None
        scores = ranker.scores([past], query)[0]
        for reasons in reasons_of(
            ranker, past, [(int(i), float(scores[i])) for i in np.flatnonzero(np.isfinite(scores))[:5]], query, False
        ):
            told = [share for share in reasons.shares if share.sentence and share.told > 0]
            if not told:
                assert reasons.sentence is None and reasons.told == ()
                continue
            most = max(share.told for share in told)
            named = next(share for share in told if share.sentence == reasons.sentence)
            assert named.told == most and ("strong" in {one.how for one in reasons.told})
            assert {one.how for one in reasons.told} <= {"strong", "some", "slight"}
            kinds.add(named.kind)
            assert BASE not in {one.kind for one in reasons.told}
    assert {HISTORY, QUERY} <= kinds


def test_sentences_say_what_was_done_and_when() -> None:
    who = replace(merchant(), blend=Blend({0.0: 1.0}, {}, 0.0, 1.0), layer=None)
    when = np.array(["2026-06-10", "2026-06-30"], dtype="datetime64[us]")
    texts = who.catalogue.texts
    alike = who.part.history @ who.part.candidate.T
    np.fill_diagonal(alike, -1)
    best = {held: int(alike[held].argmax()) for held in (3, 4)}
    looked = Past(np.array([3]), np.array([0]), np.array([False]), when[:1])
    assert of_item(who, looked, best[3]).sentence == f"Because you looked at “{texts[3]}” three weeks ago"
    bought = Past(np.array([4, 4]), np.array([0, 1]), np.array([True, False]), when)
    assert of_item(who, bought, best[4]).sentence == f"Because you bought “{texts[4]}” three weeks ago"
    assert of_item(who, bought._replace(times=None), best[4]).sentence == f"Because you bought “{texts[4]}”"
    again = replace(who, frequency=PersonalFrequency(0.2, 80.0))
    assert of_item(again, bought, 4, repeats=True).sentence == "Because you bought this three weeks ago"
    assert class_of(0.0, 0.0) is None and class_of(0.01, 1.0) is None and class_of(0.3, 1.0) == "some"


def test_times_are_told_where_they_are_dates(recommender: Recommender) -> None:
    dated = [str(datetime.now(UTC).date() - pd.Timedelta(days=days)) for days in (20, 15, 1)]
    for times, ends in ((dated, ("” two weeks ago", "” two weeks ago", "” yesterday")), ([1, 2, 3], "”””"), (None, "”””")):
        reasons = recommender.recommend(RUN_HISTORY, times=times, explain=True, query="x").reasons[0]
        said = {share.name: share.sentence or "" for share in reasons.shares if share.kind == HISTORY}
        assert len(said) == 3 and all(said[name].endswith(end) for name, end in zip(RUN_HISTORY, ends, strict=True)), said
    assert recommender.recommend(RUN_HISTORY).reasons == ()


def test_the_documented_examples_hold() -> None:
    for module in (sentences, words):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed
    times = ["2026-07-02", "2026-07-01", "2026-06-30", "2026-06-29", "2026-06-01", "2026-04-01", "2024-01-01", "1990-01-01"]
    said = [
        "",
        " today",
        " yesterday",
        " two days ago",
        " four weeks ago",
        " three months ago",
        " two years ago",
        " 36 years ago",
    ]
    assert [sentences.ago(np.datetime64(time), NOW) for time in times] == said
    assert sentences.quoted("a\x1b[2J\nb") == "“a\\x1b[2J b”"


# Words


def test_words_are_what_each_adds_as_the_first_and_as_the_last(recommender: Recommender) -> None:
    answer = recommender.explain(RUN_HISTORY, k=6, words=True)
    for reasons in answer.reasons:
        found = reasons.words
        assert found is not None
        text = recommender.catalogue.texts[recommender.catalogue.index.get_loc(reasons.item_id)]
        assert found.text == text and [text[a:b] for a, b in found.spans] == text.split()
        assert found.score == pytest.approx(sum(one.value for one in reasons.shares if one.kind == HISTORY), abs=2e-3)
        nothing = _text_score(recommender, "", reasons)
        for (start, end), share in zip(found.spans, found.shares, strict=True):
            last = found.score - _text_score(recommender, text[:start] + text[end:], reasons)
            first = _text_score(recommender, text[start:end], reasons) - nothing
            assert share == pytest.approx((last + first) / 2, abs=2e-3)
        assert found.score == pytest.approx(found.gap + sum(found.shares) + nothing, abs=2e-3)
        assert set(found.marked) <= set(found.spans)
    assert recommender.explain(words=True).reasons[0].words is None, "a popularity list has no text to read"


def _text_score(recommender: Recommender, text: str, reasons: Reasons) -> float:
    """The text's part of the score of an item that has this text, the way a catalogue goes."""
    return float(3.0 * recommender._tables(Catalogue(("x",), (text,)))[1][0] @ reasons.direction)


def test_a_text_counts_as_far_as_it_is_read(recommender: Recommender) -> None:
    long = "red mug " * 40
    until = recommender.encoder.read_until(long)
    assert 0 < until < len(long) and long[until - 1] != " "
    (found,) = words_of([long], np.ones((1, 32)), recommender._reader())
    assert found.text == long[:until] and len(found.spans) == 30  # 32 tokens less the two at the ends


def test_hostile_texts_are_split_all_the_same() -> None:
    def vectors(texts: Any) -> np.ndarray:
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    texts = ["", "😀 ☕", "<script>alert(1)</script>", "'; DROP TABLE x;--", "赤いマグ", "a\x00b\x1b[2J", "x" * 5000]
    for text, found in zip(texts, words_of(texts, np.ones((len(texts), 1)), Reader(len, vectors)), strict=True):
        assert found.text == text and all(0 <= a < b <= len(text) for a, b in found.spans)
        assert found.gap + sum(found.shares) == pytest.approx(len(text))
    assert len(split_words("赤いマグ")) == 4 and split_words("") == ()


def test_given_items_are_explained_and_no_others(recommender: Recommender) -> None:
    answer = recommender.explain(RUN_HISTORY, items=["i1", "i2", "gone", "i3"])
    assert {one.item_id for one in answer.reasons} == {"i1", "i2"}
    assert answer.notes[0] == "asked for and not in the catalogue, so ignored: 'gone'"
    assert not any("stock" in note for note in answer.notes)
    stock = recommender.recommend(RUN_HISTORY, filter=Filter(only=["i1", "gone"]), explain=True)
    assert "in stock and not in the catalogue, so ignored: 'gone'" in stock.notes
    assert recommender.explain(RUN_HISTORY, items=["gone"]).reasons == ()
    with pytest.raises(InputError, match="items"):
        recommender.explain(RUN_HISTORY, items="i1")
    assert {one.item_id for one in recommender.explain(RUN_HISTORY, items=["i3"], repeats=True).reasons} == {"i3"}
    assert recommender.explain(RUN_HISTORY, items=[]).reasons == ()


def test_shares_of_nobody_are_empty() -> None:
    nothing = np.zeros((0, 2))
    found = Shares(np.zeros(0, dtype=np.int64), {}, nothing, nothing, {}, {}, np.full(2, 1.5), np.zeros((2, 0)))
    assert found.total.tolist() == [1.5, 1.5] and found.history.shape == (0, 2)
