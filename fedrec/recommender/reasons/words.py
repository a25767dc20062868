"""Which words of an item's text carry the text's part of its score.

    share(word) = (f(text) - f(text without the word) + f(the word alone) - f(no text)) / 2,    f(text) = <direction, c(text)>

`direction` is the person, with words also the query's meaning, and c the whole way of a text: encoder with its LoRA, pooling,
centring, normalisation, head. It is the mean of what the word adds as the last and as the first one: the two ends of its
Shapley value, and the whole of it for two words. To leave out alone (occlusion; Zeiler and Fergus, ECCV 2014, section 4.2) is
blind to a word that is said twice. f is not linear in the words, so the shares do not add up; what they leave of f(text) - f(no
text) is reported. `docs/reasons.md` has the measurement against both ends and against integrated gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Reader", "Words", "split_words", "without", "words_of"]

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:[-'\u2019._][^\W_]+)*")
"""A word, with what it is joined by inside; of scripts that write without spaces a character is one."""


class Reader(NamedTuple):
    """How texts are read.

    Attributes:
        until: how many characters of a text the encoder takes in.
        vectors: (texts, 2 hidden): as a candidate, and as the encoder has it. The product of the first `width` of these with a
            row of `Shares.direction` is the text's part of the score.
    """

    until: Callable[[str], int]
    vectors: Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Words:
    """The words of a text, in its order.

    Attributes:
        text: as far as it was read.
        spans: where each word starts and ends.
        shares: of each word, as the head of this module has it.
        score: the text's part of the score.
        gap: score - score of no text - sum of the shares.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    shares: tuple[float, ...]
    score: float
    gap: float

    def for_staff(self) -> dict[str, Any]:
        """For JSON: exact."""
        words = [
            {"word": self.text[start:end], "start": start, "end": end, "share": share}
            for (start, end), share in zip(self.spans, self.shares, strict=True)
        ]
        return {"text": self.text, "score": self.score, "gap": self.gap, "words": words}

    def for_shopper(self) -> dict[str, Any]:
        """For JSON: those that carry the score at all, each marked alike."""
        return {"text": self.text, "words": [{"start": start, "end": end} for start, end in self.marked]}

    @property
    def marked(self) -> tuple[tuple[int, int], ...]:
        """The words with at least half of the largest share."""
        most = max(self.shares, default=0.0)
        return tuple(span for span, share in zip(self.spans, self.shares, strict=True) if most > 0 and share >= most / 2)


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    """Where each word starts and ends.

    >>> [text[start:end] for text in ["Mug, 12-oz (0.5 l)"] for start, end in split_words(text)]
    ['Mug', '12-oz', '0.5', 'l']
    """
    return tuple(found.span() for found in WORD.finditer(text))


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text less some of its words."""
    parts, last = [], 0
    for start, end in sorted(spans):
        parts.append(text[last:start])
        last = end
    return "".join([*parts, text[last:]])


def words_of(texts: Sequence[str], directions: np.ndarray, reader: Reader) -> list[Words]:
    """The words of some items' texts for one person; all are read in one call.

    Args:
        directions: (texts, width) of `Shares`.
    """
    read = [text[: reader.until(text)] for text in texts]
    spans = [split_words(text) for text in read]
    asked = [""]
    for text, words in zip(read, spans, strict=True):
        asked += [text, *(without(text, [span]) for span in words), *(text[start:end] for start, end in words)]
    vectors = reader.vectors(asked)[:, : directions.shape[1]].astype(np.float64)
    found, place = [], 1
    for text, words, direction in zip(read, spans, directions, strict=True):
        count = len(words)
        nothing, score = float(vectors[0] @ direction), float(vectors[place] @ direction)
        values = vectors[place + 1 :][: 2 * count] @ direction
        last, first = score - values[:count], values[count:] - nothing
        shares = tuple(((last + first) / 2).tolist())
        found.append(Words(text, words, shares, score, score - nothing - sum(shares)))
        place += 1 + 2 * count
    return found
