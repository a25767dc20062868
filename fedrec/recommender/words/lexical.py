"""A lexical index: from words to a score of every item. BM25 is one; another implements the protocol.

BM25 as Lucene has it (Robertson and Zaragoza, Foundations and Trends in IR 2009, section 3.5), by `bm25s` (Lu 2024), which
keeps every term's share of every item's score, so that a query is a sum of a few short lists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import bm25s
import numpy as np

from fedrec.recommender.words.spelling import Speller
from fedrec.recommender.words.tokens import FRAGMENT, Tokeniser, is_alphabetic, is_one_word

__all__ = ["BM25Index", "Lexical", "LexicalIndex"]

K1, B = 0.9, 0.4
"""Of BM25; Anserini's defaults. On the graded queries of `docs/search.md` anything from .6 to 1.2 is within .005 of it."""
FRAGMENTS = 0.25
"""What a part of an identifier counts beside one that was written whole."""
JOINED = 0.5
"""What two words written as one count beside each of them: `head set` also finds `headset`. An identifier, such as `1.5l` for
`1.5 l`, counts in full."""
CORRECTED = 0.8
"""What the nearest word of the catalogue counts in place of one that it does not have."""
MOST_WORDS = 64
"""Words of a query that count: a page of text pasted into a search box says no more after them."""
MOST_CORRECTED = 4
"""Unknown words of a query that a neighbour is looked for, which takes a millisecond each."""


@dataclass(frozen=True)
class Lexical:
    """What an index found.

    Attributes:
        scores: (items,) float32, 0 for an item that holds none of the words.
        coverage: (items,) float32 from 0 to 1: the share of the words that an item holds, the rarer a word the larger its part.
        words: how many words were asked for, each counted once.
        unknown: those that the catalogue does not have.
        corrected: what was read in place of an unknown word.
    """

    scores: np.ndarray
    coverage: np.ndarray
    words: int
    unknown: tuple[str, ...]
    corrected: dict[str, str]


class LexicalIndex(Protocol):
    """What a search needs of an index over words."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays in memory."""

    def search(self, query: str) -> Lexical:
        """Scores of all items."""

    def holders(self, word: str) -> np.ndarray:
        """Positions of the items that hold a word as it is written, none for what is not one word."""


class BM25Index:
    """BM25 over whole texts.

    Args:
        texts: of the items.
        tokeniser: makes terms of them and of queries.
    """

    def __init__(self, texts: Sequence[str], tokeniser: Tokeniser) -> None:
        numbers: dict[str, int] = {}
        known: dict[str, list[int]] = {}
        self._held: Counter[str] = Counter()
        rows = []
        for text in texts:
            words = tokeniser.words(text)
            for word in set(words):
                self._held[word] += 1
                if word not in known:
                    known[word] = [numbers.setdefault(term, len(numbers)) for term in tokeniser.terms_of(word)]
            rows.append([number for word in words for number in known[word]])
        self._items, self._tokeniser, self._numbers = len(texts), tokeniser, numbers
        self._data, self._rows, self._starts = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int32)
        if numbers:
            bm25 = bm25s.BM25(k1=K1, b=B, method="lucene")
            bm25.index((rows, dict(numbers)), show_progress=False)  # it adds a term of its own to what it is given
            self._data, self._rows, self._starts = (bm25.scores[name] for name in ("data", "indices", "indptr"))

    @property
    def nbytes(self) -> int:
        """See `LexicalIndex`."""
        return int(self._data.nbytes + self._rows.nbytes + self._starts.nbytes)

    def search(self, query: str) -> Lexical:
        """See `LexicalIndex`. A word counts once, however often it is repeated, and the first `MOST_WORDS` do."""
        asked = list(dict.fromkeys(self._tokeniser.words(query)))
        words = asked[:MOST_WORDS]
        unknown = tuple(word for word in words if self._numbers.keys().isdisjoint(self._readings(word, None)))
        nearest = {word: self._speller.nearest(word) for word in unknown[:MOST_CORRECTED]}
        corrected = {word: found for word, found in nearest.items() if found is not None}
        readings = {word: self._readings(word, corrected.get(word)) for word in words}
        for first, second in pairwise(words):
            joined = first + second
            for word in (first, second):
                readings[word].setdefault(self._tokeniser.terms_of(joined)[0], JOINED if is_alphabetic(joined) else 1.0)
        weights: dict[str, float] = {}
        for read in readings.values():
            for term, weight in read.items():
                weights[term] = max(weight, weights.get(term, 0.0))
        return Lexical(self._scores(weights), self._coverage(readings.values()), len(asked), unknown, corrected)

    def holders(self, word: str) -> np.ndarray:
        """See `LexicalIndex`."""
        if not is_one_word(word):
            return self._rows[:0]
        return self._rows[self._range(self._tokeniser.terms_of(self._tokeniser.words(word)[0])[0])]

    def _readings(self, word: str, corrected: str | None) -> dict[str, float]:
        """What a word may be in the index, and what each counts: itself, a part of an identifier, its parts, its neighbour."""
        found: dict[str, float] = {}
        for term in self._tokeniser.terms_of(word):
            bare = term.removeprefix(FRAGMENT)
            found[bare] = 1.0 if term == bare else FRAGMENTS
            found[FRAGMENT + bare] = FRAGMENTS
        for term in () if corrected is None else self._tokeniser.terms_of(corrected):
            found.setdefault(term, CORRECTED)
        return found

    def _scores(self, weights: dict[str, float]) -> np.ndarray:
        scores = np.zeros(self._items, dtype=np.float32)
        for term, weight in weights.items():
            where = self._range(term)
            scores[self._rows[where]] += np.float32(weight) * self._data[where]
        return scores

    def _coverage(self, readings: Iterable[Mapping[str, float]]) -> np.ndarray:
        coverage, whole = np.zeros(self._items, dtype=np.float32), 0.0
        for read in readings:
            parts = [self._rows[where] for term in read if (where := self._range(term)).stop > where.start]
            if parts:
                held = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))  # a term has an item once
                rarity = math.log(1 + self._items / len(held))
                coverage[held] += np.float32(rarity)
                whole += rarity
        return coverage / np.float32(whole) if whole else coverage

    def _range(self, term: str) -> slice:
        """Where a term's items are; empty for one that no item holds."""
        number = self._numbers.get(term)
        return slice(0, 0) if number is None else slice(self._starts[number], self._starts[number + 1])

    @cached_property
    def _speller(self) -> Speller:
        return Speller(self._held)
