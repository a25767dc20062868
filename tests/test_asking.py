"""Words and a history as one score: the formula, what each of the two is alone, and who uses it."""

# ruff: noqa: F811

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.towers import centred
from fedrec.recommender import Filter, MerchantRecommender, Recommender
from fedrec.recommender.asking import FIRST, LATEST, TRUST_FROM, TRUST_WHOLE, WEIGHT, Asking, trusted
from fedrec.recommender.ease import Ease
from fedrec.recommender.past import Past
from fedrec.recommender.words import BM25Index, Found, Searcher, Tokeniser

from .test_answers import HISTORY, ids, recommender  # noqa: F401
from .test_reasons import ITEMS, asking, merchant, person
from .test_search import CATALOGUE, TEXTS, run, shop  # noqa: F401

NOBODY = Past(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def fixed(found: Found, vectors: np.ndarray, who: Asking) -> Asking:
    """Whatever is asked, this is found."""

    class Fixed(Searcher):
        def search(self, query: str) -> Found:
            return found

    searcher = Fixed(who.catalogue, BM25Index(who.catalogue.texts, Tokeniser()), vectors, lambda _: vectors[:1])
    return Asking(who.ranker, lambda: searcher)


def some_found(rng: np.random.Generator, items: int) -> Found:
    words, meaning = (rng.random(items).astype(np.float32) for _ in range(2))
    named = np.zeros(items, dtype=np.float32)
    named[3] = 10.0
    return Found(words + meaning + named, {"words": words, "meaning": meaning, "named": named}, np.zeros(8, np.float32), ())


def test_the_score_is_its_formula() -> None:
    """One number after the other, from the head of the module."""
    rng, differ = np.random.default_rng(3), 0
    vectors = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    plain = asking(merchant(Ease))
    for _ in range(20):
        found, past = some_found(rng, ITEMS), person(rng, ITEMS, 4)
        who = fixed(found, vectors, plain)
        (scores,), (alone,) = who.scores([past], "x"), who.ranker.scores([past])
        first = sorted(range(ITEMS), key=lambda item: -found.scores[item])[:FIRST]
        cosine = max(float(vectors[item] @ vectors[held]) for item in first for held in past.items)
        trust = min(1.0, max(0.0, (cosine - TRUST_FROM) / (TRUST_WHOLE - TRUST_FROM)))
        fused = [float(found.parts["words"][item] + found.parts["meaning"][item]) for item in range(ITEMS)]
        for item in range(ITEMS):
            among = max(0.0, 2 * fused[item] / max(fused) - 1)
            unit = (alone[item] - alone.min()) / (alone.max() - alone.min())
            assert scores[item] == pytest.approx(found.scores[item] + WEIGHT * trust * among * unit, abs=1e-5)
        assert scores.argmax() == 3, "what is named exactly stays first"
        differ += not np.array_equal(scores, found.scores)
    assert differ > 10


def test_words_alone_are_the_search_and_a_history_alone_is_as_it_was() -> None:
    who = asking(merchant(Ease))
    past = person(np.random.default_rng(0), ITEMS)
    both = who.scores([NOBODY, past], "red mug")
    assert np.array_equal(both[0], who.searcher().search("red mug").scores) and not np.array_equal(both[0], both[1])
    assert np.array_equal(who.scores([past], None), who.ranker.scores([past]))
    assert np.array_equal(replace(who, weight=0.0).scores([past], "red mug")[0], both[0])


def test_a_history_of_something_else_has_no_part() -> None:
    vectors = np.eye(ITEMS, dtype=np.float32)
    rng = np.random.default_rng(1)
    found = some_found(rng, ITEMS)
    last = np.argsort(-found.scores, kind="stable")[FIRST:]
    who = fixed(found, vectors, asking(merchant(Ease)))
    for held, part in ((last[:3], False), (np.append(last[:3], 3), True)):
        past = Past(held, np.arange(len(held)))
        assert np.array_equal(who.scores([past], "x")[0], found.scores) != part


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.lists(st.integers(0, 9), max_size=6, unique=True))
@example([0, *[9] * LATEST], [0])
def test_trust_is_a_share_and_goes_by_the_latest(held: list[int], first: list[int]) -> None:
    angle = np.arange(10) * 0.3
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    found = trusted(vectors, np.array(held), np.array(first, dtype=np.int64))
    cosine = max((np.cos(0.3 * (one - other)) for one in held[-LATEST:] for other in first), default=-1)
    assert found == pytest.approx(min(1.0, max(0.0, (cosine - TRUST_FROM) / (TRUST_WHOLE - TRUST_FROM))), abs=1e-5)


def test_a_person_whose_items_are_told_apart_by_rounding_alone_changes_nothing() -> None:
    who = asking(merchant(Ease))

    class Flat:
        def __getattr__(self, name: str) -> object:
            return getattr(who.ranker, name)

        def scores(self, pasts: list[Past]) -> np.ndarray:
            return (7 + 1e-6 * np.random.default_rng(0).random((len(pasts), ITEMS))).astype(np.float32)

    past = person(np.random.default_rng(0), ITEMS)
    flat = replace(who, ranker=Flat())  # type: ignore[arg-type]
    assert np.array_equal(flat.scores([past], "red mug")[0], who.scores([NOBODY], "red mug")[0])


Ask = Callable[..., list[tuple[str, float]]]


@pytest.mark.parametrize("of", ["run", "shop"])
def test_all_who_rank_for_words_and_a_history_agree(of: str, request: pytest.FixtureRequest) -> None:
    """recommend, many of it, rank, rank of the same catalogue as a given one, and explain."""
    who: Recommender | MerchantRecommender = request.getfixturevalue(of)
    asked = {"history": ["m-2", "m-3"], "query": "red mug with tonner", "k": 8}
    answer = who.recommend(**asked, explain=True)  # type: ignore[arg-type]
    assert who.rank(**asked) == answer.items == who.explain(**asked).items  # type: ignore[arg-type]
    assert answer.source.endswith(" + search") and "'toner'" in answer.notes[0]
    assert answer.items != who.recommend(["l-2"], query="red mug with tonner", k=8).items
    for item, reasons in zip(answer.items, answer.reasons, strict=True):
        assert sum(share.value for share in reasons.shares) == pytest.approx(item[1], abs=1e-5)
    given_list = who.rank([], 8, "red mug", catalogue=CATALOGUE)
    assert [item for item, _ in given_list] == ids(who.search("red mug", 8))
    words = who.explain(**asked, words=True).reasons[0].words  # type: ignore[arg-type]
    assert words is not None and words.shares and np.isfinite(words.shares).all()
    with pytest.raises(InputError, match="no words"):
        who.recommend(["m-2"], query=" ")


def test_a_given_list_is_ranked_by_its_own_words(run: Recommender) -> None:
    """The index is of the given texts: a word that the run's catalogue lacks counts, and misspelt it is found."""
    given_list = Catalogue(("a", "b", "c"), ("zeppelin, paper", TEXTS[0], TEXTS[3]))
    run.encoder.load(run.arrays)
    vectors = centred(run.encoder.embed(given_list), run.arrays).numpy()
    expected = Searcher(given_list, BM25Index(given_list.texts, Tokeniser()), vectors, run._query).search("zepelin")
    assert expected.parts["words"].tolist() == [0.5, 0, 0]
    assert dict(run.rank([], 3, "zepelin", given_list)) == pytest.approx(dict(zip("abc", expected.scores, strict=True)), abs=1e-4)


def test_filters_and_merchants_take_items_out_and_change_nothing_else(run: Recommender) -> None:
    whole = run.recommend(["m-2"], query="red mug or a lamp", k=8).items
    kept = [item for item, _ in whole[::2]]
    part = run.recommend(["m-2"], query="red mug or a lamp", k=8, filter=Filter(only=kept))
    assert part.items == [one for one in whole if one[0] in kept]
    half = run.recommend(["m-2"], query="red mug or a lamp", k=8, merchant="half")
    assert set(ids(half)) == {"m-1", "m-3", "t-1"}


def test_a_query_is_kept_by_nobody(recommender: Recommender) -> None:
    recommender.recommend(HISTORY, query="unspeakable", explain=True)
    assert "unspeakable" not in repr(vars(recommender)) + repr(vars(recommender._searcher(recommender.language)))
