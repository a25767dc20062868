"""Words: what a text's terms are, BM25 against its formula, spelling against all words, and the seam that an index keeps."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import InputError
from fedrec.recommender.words import BM25Index, Lexical, LexicalIndex, Tokeniser
from fedrec.recommender.words.lexical import CORRECTED, K1, MOST_WORDS, B
from fedrec.recommender.words.spelling import Speller
from fedrec.recommender.words.tokens import FRAGMENT, MOST_MARKS, normalised

ENGLISH, PLAIN = Tokeniser(), Tokeniser("none")
TEXTS = (
    "HP CE285A toner cartridge, black",
    "Brother TN-2110 toner, black, 1,500 pages",
    "Orange juice 1,5l",
    "Orange juice 1 l",
    "Red running shoes, size 42",
    "Shoe polish, black",
    "Headset with microphone",
    "",
    "日本語のテキスト",
    "Crème brûlée dish, 10x15 cm",
)
WORD = st.text("abcdefg", min_size=1, max_size=4)


def terms_of(tokeniser: Tokeniser, text: str) -> list[str]:
    """As an index counts them."""
    return [term for word in tokeniser.words(text) for term in tokeniser.terms_of(word)]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("HP-CE285A toners", ["hpce285a", f"{FRAGMENT}hpce", f"{FRAGMENT}285", f"{FRAGMENT}a", "hp", "ce285a", f"{FRAGMENT}ce",
                              f"{FRAGMENT}285", f"{FRAGMENT}a", "toner"]),
        ("1,5L", ["1.5l", f"{FRAGMENT}1.5", f"{FRAGMENT}l"]),
        ("size 42", ["size", "42"]),
        ("Crème", ["creme"]),
        ("日本語", ["日本", "本語"]),
        ("iPad日本", ["ipad", "日本"]),
        ("!!! <> 😀 \x00", []),
        ("\uff21\uff22", ["ab"]),
    ],
)  # fmt: skip
def test_terms_of_a_text(text: str, terms: list[str]) -> None:
    assert terms_of(ENGLISH, text) == terms


@given(st.text())
def test_any_text_has_terms_that_are_its_normal_forms(text: str) -> None:
    assert terms_of(ENGLISH, text) == terms_of(ENGLISH, normalised(text))
    assert all(term and not term.isspace() and len(term) <= 65 for term in terms_of(ENGLISH, text))


@given(st.lists(st.text("abc0123456789", min_size=1, max_size=5), min_size=2, max_size=4), st.sampled_from("-/_+&"))
def test_an_identifier_is_one_word_however_it_is_joined(parts: list[str], mark: str) -> None:
    assert PLAIN.words(mark.join(parts))[0] == "".join(parts) == PLAIN.words("".join(parts))[0]


@pytest.mark.parametrize(
    ("language", "text", "words", "terms"),
    [
        ("hindi", "हिन्दी किताबें", ["हिन्दी", "किताबें"], ["हिन्द", "किताब"]),
        ("arabic", "كِتَابٌ جَدِيد", ["كِتَابٌ", "جَدِيد"], ["كتاب", "جديد"]),
        ("none", "தமிழ் שָׁלוֹם", ["தமிழ்", "שָׁלוֹם"], ["தமிழ்", "שָׁלוֹם"]),
        ("none", "हिन्दी500", ["हिन्दी500"], ["हिन्दी500", f"{FRAGMENT}हिन्दी", f"{FRAGMENT}500"]),
    ],
)
def test_marks_are_part_of_their_word(language: str, text: str, words: list[str], terms: list[str]) -> None:
    tokeniser = Tokeniser(language)
    assert tokeniser.words(text) == [normalised(word) for word in words]
    assert terms_of(tokeniser, text) == [normalised(term) for term in terms]


def test_a_letter_keeps_only_so_many_marks() -> None:
    text = "a\u05b0" + "\u05b1\u05b0" * 50_000  # in their order only by a sort that is the square of the run
    before = time.process_time()
    assert len(normalised(text)) == 1 + MOST_MARKS and normalised(normalised(text)) == normalised(text)
    assert time.process_time() - before < 1


def test_languages_stem_and_an_unknown_one_is_refused() -> None:
    assert terms_of(Tokeniser("german"), "Lampen Häuser") == terms_of(Tokeniser("german"), "lampe haus")
    assert terms_of(PLAIN, "lamps") == ["lamps"] != terms_of(ENGLISH, "lamps")
    with pytest.raises(InputError, match="klingon"):
        Tokeniser("klingon")


def plain_bm25(texts: list[list[str]], query: list[str]) -> np.ndarray:
    """Robertson and Zaragoza 2009, with Lucene's idf, term by term."""
    mean = sum(map(len, texts)) / len(texts)
    scores = np.zeros(len(texts))
    for term in dict.fromkeys(query):
        holders = sum(term in text for text in texts)
        idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for place, text in enumerate(texts):
            count = Counter(text)[term]
            scores[place] += idf * count / (count + K1 * (1 - B + B * len(text) / mean))
    return scores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(WORD, max_size=6), min_size=1, max_size=8), st.data())
def test_bm25_is_the_formula(texts: list[list[str]], data: st.DataObject) -> None:
    """Of one word, so that no two are read as one; of several the sum, where their words are too far apart to join."""
    held = [word for text in texts for word in text]
    query = data.draw(st.sampled_from(held)) if held else "zz"
    found = BM25Index([" ".join(text) for text in texts], PLAIN).search(query)
    assert found.scores == pytest.approx(plain_bm25(texts, [query]) if held else np.zeros(len(texts)), abs=1e-5)


def test_several_words_are_summed_and_repeats_count_once() -> None:
    texts = [["red", "mug", "mug"], ["blue", "mug"], ["red", "lamp", "for", "desks"], ["green"]]
    index = BM25Index([" ".join(text) for text in texts], PLAIN)
    expected = plain_bm25(texts, ["red", "mug"])
    for query in ("red mug", "Mug, red!", "red mug red mug"):
        assert index.search(query).scores == pytest.approx(expected, abs=1e-5)
    assert index.search("red mug").coverage == pytest.approx([1, 0.5, 0.5, 0], abs=1e-5)  # each of two items of four


class Made(Protocol):
    def __call__(self, texts: tuple[str, ...]) -> LexicalIndex: ...


def bm25(texts: tuple[str, ...]) -> LexicalIndex:
    return BM25Index(texts, ENGLISH)


INDEXES = [bm25]


@pytest.mark.parametrize("made", INDEXES)
class TestLexicalIndex:
    """What every index has to keep."""

    def test_it_finds_what_is_written(self, made: Made) -> None:
        index = made(TEXTS)
        for query, best in {
            "CE285A": 0, "ce-285a": 0, "285": 0, "2110": 1,
            "tn2110": 1, "TN 2110": 1, "1.5 l": 2, "1,5L": 2, "shoe": 5, "running shoe": 4,
            "head set": 6, "creme brulee": 9, "テキスト": 8, "10x15": 9,
        }.items():  # fmt: skip
            scores = index.search(query).scores
            assert scores.argmax() == best and scores.max() > 0, query

    def test_a_typo_finds_its_word_and_says_so(self, made: Made) -> None:
        for query, word, best in (("microfone", "microphone", 6), ("tonner", "toner", 0), ("hedaset", "headset", 6)):
            found = made(TEXTS).search(query)
            assert found.corrected == {query: word} and found.unknown == (query,)
            assert 0 < found.scores.max() == pytest.approx(CORRECTED * made(TEXTS).search(word).scores.max(), rel=1e-5)
            assert found.scores[best] > 0

    @settings(max_examples=60, deadline=None)
    @given(query=st.text(max_size=40))
    def test_any_words_have_finite_scores(self, made: Made, query: str) -> None:
        found = made(TEXTS).search(query)
        assert isinstance(found, Lexical) and found.scores.shape == found.coverage.shape == (len(TEXTS),)
        assert found.scores.dtype == found.coverage.dtype == np.float32
        assert np.isfinite(found.scores).all() and (found.scores >= 0).all()
        assert (found.coverage >= 0).all() and (found.coverage <= 1 + 1e-5).all()
        assert set(found.corrected) <= set(found.unknown) and len(found.unknown) <= min(found.words, MOST_WORDS)

    def test_a_page_of_text_is_read_as_far_as_its_first_words(self, made: Made) -> None:
        page = " ".join("qz" * 3 + chr(97 + number % 26) + chr(97 + number // 26) for number in range(2 * MOST_WORDS))
        found = made(TEXTS).search(f"{page} toner")
        assert found.words == 2 * MOST_WORDS + 1 and len(found.unknown) == MOST_WORDS and not found.scores.any()

    def test_a_catalogue_without_words(self, made: Made) -> None:
        for texts in ((), ("",), ("!", "?")):
            index = made(texts)
            found = index.search("anything at all")
            assert not found.scores.any() and len(found.scores) == len(texts) and len(found.unknown) == 3
            assert len(index.holders("anything")) == 0 and index.nbytes >= 0

    def test_who_holds_a_word(self, made: Made) -> None:
        index = made(TEXTS)
        assert index.holders("TN-2110").tolist() == [1] and index.holders("black").tolist() == [0, 1, 5]
        assert len(index.holders("")) == len(index.holders("2111")) == 0

    @pytest.mark.parametrize(
        "text", ["black#1234", "black:220v", 'black"toner', "テキスト500g", "black toner", "black" + "-a1" * 30]
    )
    def test_who_holds_the_first_word_of_many_is_not_named(self, made: Made, text: str) -> None:
        assert len(made(("black", "テキ", "a1")).holders(text)) == 0

    def test_a_number_that_is_a_part_is_not_taken_for_another(self, made: Made) -> None:
        found = made(("Brother HL-2280 printer", "Brother HL-2270DW printer")).search("2270")
        assert (found.unknown, found.corrected, found.scores.argmax()) == ((), {}, 1) and found.scores[0] == 0


def distance(a: str, b: str) -> int:
    """Optimal string alignment, by its recurrence."""
    table = {(i, j): i or j for i in range(len(a) + 1) for j in range(len(b) + 1) if not (i and j)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            best = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, table[i - 2, j - 2] + 1)
            table[i, j] = best
    return table[len(a), len(b)]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("abc1", min_size=1, max_size=8), st.integers(1, 9), max_size=60), st.text("abc1", max_size=8))
def test_the_nearest_word_is_the_nearest_of_all(words: dict[str, int], word: str) -> None:
    edits = 2 if len(word) > 5 and word.isalpha() else 1
    able = [
        (distance(word, one), one[0] != word[0], -held)
        for one, held in words.items()
        if len(word) >= 3 and one.isalpha() == word.isalpha() and distance(word, one) <= edits
    ]
    found = Speller(words).nearest(word)
    if not able:
        assert found is None
    else:
        assert found is not None and (distance(word, found), found[0] != word[0], -words[found]) == min(able)


def test_the_commoner_of_two_neighbours_is_meant() -> None:
    assert Speller({"coffee": 50, "toffee": 3, "cofees": 1}).nearest("cofee") == "coffee"
    assert Speller({"lamp": 2, "lamb": 9, "damp": 99}).nearest("lamk") == "lamb"
    many = {f"lam{chr(0x3B1 + number)}": 1 for number in range(60)}
    assert Speller(many | {"lamb": 9}).nearest("lamk") == "lamb"
    assert Speller({"ce285a": 1}).nearest("ce258a") == "ce285a" and Speller({"ce285a": 1}).nearest("ce258b") is None
