"""Search of a run's and of a merchant's catalogue: what comes first, what is left out, odd input, and where a query stays."""

# ruff: noqa: F811

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import Catalogue, CentralData, ItemDetails
from fedrec.errors import InputError
from fedrec.merchant import RecommenderSettings, read_merchant_file
from fedrec.model.saved import table_of_run
from fedrec.model.towers import centred, init_base, init_trained
from fedrec.recommender import Answer, Filter, MerchantRecommender, Recommender
from fedrec.recommender.words import FUSION, LANGUAGES, BM25Index, Fusion, Lexical, Searcher, Tokeniser
from fedrec.recommender.words.fusion import unit
from fedrec.recommender.words.lexical import MOST_WORDS

from .conftest import make_encoder
from .test_answers import SETTINGS, ids
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop

TEXTS = (
    "red mug, acme, mugs, holds 0,3 l of tea",
    "blue mug, acme, mugs, holds 0.5 l of tea",
    "red mug",
    "toner CE285A, acme, ink, black",
    "toner CE285X, acme, ink, black",
    "desk lamp, zeta, lamps, with a switch",
    "lamp",
    "gift box, zeta, paper, \x1b[31m for a red mug or a lamp",
)
IDS = ("m-1", "m-2", "m-3", "t-1", "t-2", "l-1", "l-2", "g-1")
CATALOGUE = Catalogue(IDS, TEXTS)
ODD = (
    "x", "!!!", "\U0001f600", "word " * 10_000, "a" * 20_000, "日本語", "مرحبا", "<script>alert(1)</script>",
    "'; DROP TABLE items; --",
    "\x00\x1b[31mred", "\ud800 mug", "%s {0} ${x}", "-1", "mug\nlamp\ttea", "1" * 400, "ﬃ", "../../etc/passwd",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_bert_folder: Path) -> Recommender:
    """Random heads over the catalogue above, with an encoder that is found again."""
    encoder, rng = make_encoder(tiny_bert_folder), np.random.default_rng(0)
    base = init_base(encoder, encoder.states(CATALOGUE), True, 3, "principal", 0)
    trained = {name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in init_trained(encoder, True, 3).items()}
    kinds = ("mugs", "mugs", "mugs", "ink", "ink", "lamps", "lamps", "paper")
    details = ItemDetails(category=np.array(kinds, dtype=object), price=np.arange(8.0))
    table = table_of_run(CentralData(CATALOGUE, (), details=details), {"prior.counts": np.arange(8, dtype=np.float32)})
    table["merchant:half"] = np.arange(8) < 4
    held = SETTINGS | {"encoder_fingerprint": encoder.fingerprint, "encoder": str(tiny_bert_folder), "encoder_files": ""}
    held |= {"encoder_layers": 1, "encoder_rank": 3, "max_tokens": 32}
    return Recommender(encoder, {**base, **trained}, held, table, device="cpu")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> MerchantRecommender:
    """A merchant's folder with the same items, without an adapter."""
    folder = make_shop(tmp_path_factory.mktemp("search") / "shop", tiny_bert_folder, users=20, recommender={"language": "none"})
    pd.DataFrame({"item_id": IDS, "title": TEXTS}).to_csv(folder / "items.csv", index=False)
    users = pd.read_csv(folder / "events.csv")
    users.assign(item_id=[IDS[row % 8] for row in range(len(users))]).to_csv(folder / "events.csv", index=False)
    return MerchantRecommender.load(folder)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-100, 100)), min_size=1, max_size=9), st.floats(0, 2))
def test_fusion_is_its_formula(items: list[tuple[int, int]], lexical: float) -> None:
    words, cosines = np.array(items, dtype=np.float32).T / 100
    found = Fusion(lexical).scores(words, cosines)
    for place in range(len(items)):
        expected = 0.0
        for weight, all_of in ((lexical, words.tolist()), (1.0, cosines.tolist())):
            least, most = min(all_of), max(all_of)
            expected += weight * (all_of[place] - least) / (most - least) if most > least else 0.0
        assert found[place] == pytest.approx(expected, abs=1e-5)


def test_rounding_is_no_meaning() -> None:
    """Cosines of texts that the encoder does not tell apart differ in their last digits."""
    alike = np.float32(0.9) + np.float32(1e-7) * np.arange(4, dtype=np.float32)
    assert np.ptp(alike) > 0 and unit(alike).tolist() == [0.0] * 4
    assert unit(np.array([0.90, 0.91])).tolist() == [0.0, 1.0]


def test_a_misspelt_word_is_read_by_the_encoder_as_it_was_meant() -> None:
    said: list[str] = []

    def encode(words: str) -> np.ndarray:
        said.append(words)
        return np.ones((1, 8), dtype=np.float32)

    searcher = Searcher(CATALOGUE, BM25Index(TEXTS, Tokeniser()), np.eye(8, dtype=np.float32), encode)
    for query in ("Tonner, for tonner-x", "Red MUG"):
        searcher.search(query)
    assert said == ["toner, for toner-x", "Red MUG"]


def test_a_whole_text_stands_above_what_begins_alike() -> None:
    """However much nearer in meaning the other is."""
    catalogue = Catalogue(("1", "2", "3"), ("Lamp, desk, black", "Lamp", "Table for a lamp"))
    vectors = np.array([[1, 0], [-1, 0], [1, 0]], dtype=np.float32)
    index = BM25Index(catalogue.texts, Tokeniser())
    searcher = Searcher(catalogue, index, vectors, lambda _: vectors[:1], Fusion(0.0))
    for query, order in (("lamp", [1, 0, 2]), ("2", [1, 0, 2]), ("lamp, desk", [0, 2, 1])):
        assert np.argsort(-searcher.search(query).scores, kind="stable").tolist() == order


def test_only_who_asks_for_more_words_than_count_is_told() -> None:
    searcher = Searcher(
        CATALOGUE, BM25Index(TEXTS, Tokeniser()), np.eye(8, dtype=np.float32), lambda _: np.eye(8, dtype=np.float32)[:1]
    )
    many = [f"w{chr(97 + number % 26)}{chr(97 + number // 26)}zzzzzz" for number in range(MOST_WORDS + 1)]
    for count, said in ((MOST_WORDS, False), (MOST_WORDS + 1, True)):
        notes = searcher.search(" ".join(many[:count])).notes
        assert any("only the first ones" in note for note in notes) == said
        assert any("nearest in meaning" in note for note in notes)


def test_a_run_is_searched_by_its_words_and_its_texts(run: Recommender) -> None:
    """Against the parts: index, encoder without heads, fusion, and the tie to the catalogue's order."""
    index = BM25Index(TEXTS, Tokeniser())
    run.encoder.load(run.arrays)
    e = centred(run.encoder.embed(CATALOGUE), run.arrays).numpy()
    query = "a gift for tea"
    said = centred(run.encoder.encode([query]), run.arrays).numpy()[0]
    scores = FUSION.scores(index.search(query).scores, e @ said)
    answer = run.search(query, k=8)
    assert ids(answer) == [IDS[place] for place in np.argsort(-scores, kind="stable")] and answer.source == "search"
    assert [score for _, score in answer.items] == pytest.approx(np.sort(scores)[::-1], abs=1e-4)
    assert answer.notes == () and answer.distance is not None


@pytest.mark.parametrize(
    ("query", "first"),
    [("CE285X", ["t-2"]), ("ce-285x", ["t-2"]), ("toner ce285a", ["t-1"]), ("Red  Mug", ["m-3", "m-1"]),
     ("l-1", ["l-1"]), ("lamp", ["l-2"]), ("0.3 l", ["m-1"]), ("0,5L", ["m-2"])],
)  # fmt: skip
def test_what_is_named_exactly_comes_first(run: Recommender, shop: MerchantRecommender, query: str, first: list[str]) -> None:
    for recommender in (run, shop):
        found = ids(recommender.search(query, k=len(first)))
        assert sorted(found) == sorted(first)
    if len(first) == 1:
        assert ids(run.search(query, filter=Filter(only=[one for one in IDS if one != first[0]]), k=8)) == [
            one for one in ids(run.search(query, k=8)) if one != first[0]
        ]


def test_a_typo_returns_what_was_meant(run: Recommender) -> None:
    answer = run.search("tonner", k=2)
    assert set(ids(answer)) == {"t-1", "t-2"} and answer.notes == ("no item has 'tonner'; 'toner' was searched for in its place",)
    assert "nearest in meaning" in run.search("zzzzzzzz").notes[0] and run.search("zzzzzzzz").items


def test_filters_take_items_out_and_change_nothing_else(run: Recommender) -> None:
    whole = run.search("red mug with a lamp", k=8).items
    for kept, answer in (
        ({"m-1", "m-2", "m-3", "l-1", "l-2"}, run.search("red mug with a lamp", filter=Filter(["mugs", "lamps"]))),
        ({"t-1", "t-2"}, run.search("red mug with a lamp", filter=Filter(price_min=3, price_max=4))),
        (set(IDS) - {"m-1", "g-1"}, run.search("red mug with a lamp", exclude=["m-1"], filter=Filter(exclude=["g-1"]))),
        (set(IDS[:4]), run.search("red mug with a lamp", merchant="half")),
    ):
        assert answer.items == [one for one in whole if one[0] in kept]
    outside = run.search("red", filter=Filter(["lamps"]), merchant="half")  # which offers none of them
    assert (outside.items, outside.source) == ([], "none") and "0 of the 10 asked for" in outside.notes[-1]
    nothing = run.search("red", filter=Filter(only=[]))
    assert (nothing.items, nothing.source) == ([], "none") and nothing.notes


@pytest.mark.parametrize("query", ODD, ids=range(len(ODD)))
def test_strange_words_get_an_answer(run: Recommender, shop: MerchantRecommender, query: str) -> None:
    for recommender in (run, shop):
        answer = recommender.search(query, k=3)
        assert len(answer.items) == 3 and all(np.isfinite(score) for _, score in answer.items)


@settings(max_examples=25, deadline=None)
@given(query=st.text(max_size=30))
def test_any_words_get_an_answer_or_one_error(run: Recommender, query: str) -> None:
    try:
        assert len(run.search(query, k=3).items) == 3
    except InputError as error:
        assert "no words" in str(error)


Asked = Callable[[Recommender], Answer]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (lambda run: run.search(""), "no words"),
        (lambda run: run.search(" \t\x00\u200b"), "no words"),
        (lambda run: run.search(123), "query: found 123"),  # type: ignore[arg-type]
        (lambda run: run.search("mug", k=0), "k: found 0"),
        (lambda run: run.search("mug", merchant="nobody"), "nobody"),
        (lambda run: run.search("mug", language="klingon"), "klingon"),
        (lambda run: run.search("mug", filter=Filter(brand=["acme"])), "brand"),
        (lambda run: run.search("mug", exclude="m-1"), "exclude"),
    ],
)
def test_what_means_nothing_is_refused(run: Recommender, asked: Asked, names: str) -> None:
    with pytest.raises(InputError, match=names):
        asked(run)


def test_the_language_is_a_setting_and_an_argument(run: Recommender, shop: MerchantRecommender) -> None:
    assert run.search("lamps desks", 3).notes == () and shop.search("lamps desks", 3).notes  # as they are, no item has them
    assert shop.search("lamps desks", 3, language="english").notes == ()
    assert shop._searcher("none").vectors is shop._searcher("english").vectors


def test_an_unknown_language_of_a_merchant_is_one_error(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = make_shop(tmp_path / "shop", tiny_bert_folder, users=5, recommender={"language": "klingon"})
    with pytest.raises(InputError, match=r"(?s)merchant\.toml.*language.*klingon.*english"):
        read_merchant_file(folder / "merchant.toml")
    assert {RecommenderSettings(language=language).language for language in LANGUAGES} == set(LANGUAGES)


def test_another_index_is_used_as_it_is(run: Recommender) -> None:
    """The seam: who implements the protocol is searched."""

    class Last:
        nbytes = 0

        def search(self, query: str) -> Lexical:
            scores = np.arange(8, dtype=np.float32)
            return Lexical(scores, scores / 7, 1, (), {})

        def holders(self, word: str) -> np.ndarray:
            return np.zeros(0, dtype=np.int64)

    searcher = Searcher(CATALOGUE, Last(), np.eye(8, dtype=np.float32), lambda _: np.full((1, 8), 8**-0.5, dtype=np.float32))
    assert searcher.search("anything").scores.argmax() == 7
    assert replace(searcher, fusion=Fusion(0)).search("m-2").scores.argmax() == 1


def test_a_query_is_in_no_file_and_no_log(shop: MerchantRecommender, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    place = shop.place.path
    with caplog.at_level(logging.DEBUG):
        MerchantRecommender.load(place).search("unspeakable tonner")
    assert "unspeakable" not in caplog.text
    assert not [path for path in place.rglob("*") if path.is_file() and b"unspeakable" in path.read_bytes()]


def test_the_command_line(fedrec: Fedrec, run: Recommender, tmp_path: Path) -> None:
    run.save(tmp_path / "run" / "adapter")
    (tmp_path / "stock.txt").write_text("m-1\nm-2\nt-1\n")
    escaping = fedrec("search", "run", "gift", "--k", 1).out
    assert "g-1" in escaping and "[31m for a red mug" in escaping and "\x1b[31" not in escaping
    plain = fedrec("search", "run", "tonner\x1b", "--k", 2)
    assert plain.status == 0, plain.err
    assert "t-1" in plain.out and "source: search" in plain.out and "'toner'" in plain.out and "\x1b[31" not in plain.out
    options = ["--category", "mugs", "--price-max", 5, "--stock", "stock.txt", "--exclude", "m-2", "--merchant", "half", "--json"]
    shown = json.loads(fedrec("search", "run", "red mug", *options).out)
    wanted = Filter(["mugs"], price_max=5, only=["m-1", "m-2", "t-1"], exclude=["m-2"])
    assert [one["item_id"] for one in shown["items"]] == ids(run.search("red mug", filter=wanted, merchant="half")) == ["m-1"]
    assert shown["source"] == "search" and shown["items"][0]["text"] == TEXTS[0]
    assert fedrec("search", "run", "lamps", "--language", "none").out != fedrec("search", "run", "lamps").out
    for arguments, names in (
        (["run", ""], "no words"),
        (["nowhere", "mug"], "nowhere"),
        (["run", "mug", "--language", "no"], "language"),
    ):
        assert_refused(fedrec("search", *arguments), names)
