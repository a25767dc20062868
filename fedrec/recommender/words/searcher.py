"""A catalogue that is searched by words: what is asked for exactly first, then words and meaning fused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.ranking import products
from fedrec.recommender.words.fusion import FUSION, Fusion
from fedrec.recommender.words.lexical import MOST_WORDS, Lexical, LexicalIndex
from fedrec.recommender.words.tokens import normalised

__all__ = ["Found", "Searcher"]

EXACT = 10.0
"""What an exact match is above everything else, and a whole one above the others: more than all weights together."""
RARE = 5
"""Items that hold a part number at most; what more of them hold, such as a size, is no name of one."""
SHORTEST = 4
"""Characters of a part number."""
MOST_CHARACTERS = 10_000
"""Of a query; what comes after them is not looked at."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        scores: (items,) float32.
        parts: (items,) float32 by name, what they are the sum of: the words, the meaning, and what is named exactly.
        meaning: (hidden,) whose product with a text's unit vector is its meaning, but for what all texts have.
        notes: what was read in place of what was asked for, each a sentence.
    """

    scores: np.ndarray
    parts: dict[str, np.ndarray]
    meaning: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Searcher:
    """Scores a catalogue for words.

    Attributes:
        catalogue: what is searched.
        index: over the words of its whole texts.
        vectors: (items, hidden) unit vectors of its texts.
        encode: a query to its unit vector among them, (1, hidden).
        fusion: how the two are joined.
    """

    catalogue: Catalogue
    index: LexicalIndex
    vectors: np.ndarray
    encode: Callable[[str], np.ndarray]
    fusion: Fusion = FUSION

    def search(self, query: str) -> Found:
        """Scores of all items for words.

        Raises:
            InputError: there are no words.
        """
        if not isinstance(query, str):
            raise InputError(f"found {query!r}", where="query", expected="a text")
        query = _readable(query)
        if not query:
            raise InputError("there are no words", where="query", expected="what is looked for")
        found = self.index.search(query)
        said = self.encode(_respelt(query, found))
        cosines = products(said, self.vectors)[0]
        words, meaning = self.fusion.parts(found.scores, cosines)
        exact = np.zeros(len(words), dtype=np.float32)
        for named in self._named(query, found):
            exact[named] += np.float32(EXACT)
        spread = float(np.ptp(cosines))
        towards = said[0] / np.float32(spread) if spread > 0 else np.zeros_like(said[0])
        return Found(words + meaning + exact, {"words": words, "meaning": meaning, "named": exact}, towards, _notes(found))

    @cached_property
    def _texts(self) -> list[str]:
        return [normalised(text) for text in self.catalogue.texts]

    def _named(self, query: str, found: Lexical) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the items that the query names by id, title or a part number that few items hold; and of those of
        which it is all: a text does not say where its title ends, so a comma may end only the title's first part."""
        asked = normalised(query)
        whole = [position for position in self.catalogue.index.get_indexer([query]) if position >= 0]
        named = []
        for position in np.flatnonzero(found.coverage > 1 - 1e-5):  # only who holds every word can begin with them all
            text = self._texts[position]
            whole += [position] if text == asked else []
            named += [position] if text.startswith(f"{asked}, ") else []
        if len(asked) >= SHORTEST and " " not in asked and any(letter.isdigit() for letter in asked):
            holders = self.index.holders(asked)
            named += holders.tolist() if len(holders) <= RARE else []
        return np.unique(np.array([*named, *whole], dtype=np.int64)), np.unique(np.array(whole, dtype=np.int64))


def _readable(query: str) -> str:
    """A query without what no text can hold: halves of characters, control characters, blanks at its ends."""
    return "".join(letter if letter.isprintable() else " " for letter in query[:MOST_CHARACTERS]).strip()


def _respelt(query: str, found: Lexical) -> str:
    """The query with the words that were read in place of others: an encoder makes little of a misspelt one."""
    if found.corrected:
        query = normalised(query)
        for word, near in found.corrected.items():
            query = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", near, query)
    return query


def _notes(found: Lexical) -> tuple[str, ...]:
    notes = [f"no item has {word!r}; {near!r} was searched for in its place" for word, near in found.corrected.items()]
    if len(found.unknown) == min(found.words, MOST_WORDS) and not found.corrected:
        notes.append("no item has any of these words, so this is what comes nearest in meaning")
    if found.words > MOST_WORDS:
        notes.append("of so many words only the first ones were looked for")
    return tuple(notes)
