"""The word of a catalogue that a misspelt one most likely is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from rapidfuzz.distance import OSA
from rapidfuzz.process import extract

from fedrec.recommender.words.tokens import is_alphabetic

__all__ = ["Speller"]

SHORTEST = 3
"""Letters; of a shorter word every other one is a neighbour."""
LONG = 5
"""Letters, up to which one edit is allowed; longer words may have two, as in Lucene."""


class Speller:
    """Looks for the word with the fewest edits: insertions, deletions, substitutions and transpositions of neighbours.

    Args:
        words: the vocabulary, and how many items hold each word.
    """

    def __init__(self, words: Mapping[str, int]) -> None:
        self._held = words
        self._groups: dict[tuple[bool, int], list[str]] = defaultdict(list)
        for word in words:
            self._groups[is_alphabetic(word), len(word)].append(word)

    def nearest(self, word: str) -> str | None:
        """The nearest word; None where none is near enough, or the word is too short to tell.

        Of words at the same distance, one with the same first letter comes before the others, and then what more items hold.
        """
        if len(word) < SHORTEST:
            return None
        alphabetic = is_alphabetic(word)
        edits = 2 if len(word) > LONG and alphabetic else 1  # two away from an identifier is another product
        found: list[tuple[str, int, int]] = []
        for length in range(len(word) - edits, len(word) + edits + 1):
            words = self._groups.get((alphabetic, length), [])
            found += extract(word, words, scorer=OSA.distance, score_cutoff=edits, limit=None)
        nearest = min(found, key=lambda one: (one[1], one[0][0] != word[0], -self._held[one[0]]), default=None)
        return None if nearest is None else nearest[0]
