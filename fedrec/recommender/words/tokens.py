"""From a text to the terms that an index counts: words by their stem, identifiers whole and by their parts.

    "HP-CE285A toners"     hpce285a  hp  ce285a  ~ce  ~285  ~a  toner
    "juice 1,5l"           juic  1.5l  ~1.5  ~l

A run of letters and digits that punctuation holds together is one term without that punctuation, so that `TN-2110` and
`TN2110` are the same, and each of its pieces is one too; a point or comma between digits is a decimal point and stays. A
piece of letters and digits gives its *fragments* beside them, marked so that an index can let them count less: `ce285a` is
the better match for `ce285a`. Scripts that are written without spaces are taken in pairs of characters, as Lucene's CJK
analyzer does.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import Stemmer

from fedrec.errors import InputError

__all__ = ["FRAGMENT", "LANGUAGE", "LANGUAGES", "NO_LANGUAGE", "Tokeniser", "is_alphabetic", "is_one_word", "normalised"]

LANGUAGE = "english"
NO_LANGUAGE = "none"
LANGUAGES = (NO_LANGUAGE, *Stemmer.algorithms())
"""Snowball's stemmers, and none."""
FRAGMENT = "~"
"""Before a term that is only a part of what was written."""
LONGEST = 64
"""Characters of a term: what is longer is no word, and would cost a speller seconds."""

MOST_MARKS = 8
"""Marks on one letter: to put a run of them in their order costs the square of its length."""

# Vowel signs of Indic scripts, points of Arabic and Hebrew: parts of a word that are no letters. A set with any beyond the
# basic plane costs a scan of its ranges for each letter, and only scripts of scholars have them.
MARKS = "".join(re.escape(one) for one in map(chr, range(0x10000)) if unicodedata.category(one) in ("Mn", "Mc"))
MARK = re.compile(f"[{MARKS}]+")
TOO_MANY = re.compile(f"([{MARKS}]{{{MOST_MARKS}}})[{MARKS}]+")
LETTERS = rf"[^\W_](?:[^\W_]|[{MARKS}])*"
RUN = re.compile(rf"{LETTERS}(?:[.,'\u2019\-/+&_]+{LETTERS})*")
PIECE = re.compile(rf"{LETTERS}(?:(?<=\d)[.,](?=\d){LETTERS})*")
FRAGMENTS = re.compile(rf"[^\W\d_](?:[^\W\d_]|[{MARKS}])*|\d+(?:\.\d+)*")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def normalised(text: str) -> str:
    """One form for what looks the same: compatibility characters, case, accents on Latin letters, and runs of blanks."""
    if not text.isascii():
        text = TOO_MANY.sub(r"\1", text)
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    if not decomposed.isascii():
        decomposed = re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", TOO_MANY.sub(r"\1", decomposed))
    return " ".join(unicodedata.normalize("NFKC", decomposed).split())


def is_alphabetic(word: str) -> bool:
    """Whether a word is of letters and the marks on them alone."""
    return word.isalpha() or (not word.isascii() and MARK.sub("", word).isalpha())


def is_one_word(text: str) -> bool:
    """Whether a text is one word or identifier, and nothing else."""
    text = normalised(text)
    return len(text) <= LONGEST and RUN.fullmatch(text) is not None and UNSPACED.search(text) is None


class Tokeniser:
    """Terms of texts in one language.

    Raises:
        InputError: there is no stemmer for the language.
    """

    def __init__(self, language: str = LANGUAGE) -> None:
        if language not in LANGUAGES:
            raise InputError(f"found {language!r}", where="language", expected=f"one of {', '.join(LANGUAGES)}")
        self._stemmer: Any = None if language == NO_LANGUAGE else Stemmer.Stemmer(language)

    def words(self, text: str) -> list[str]:
        """The words of a text in its order, as they are written but for case and accents."""
        found: list[str] = []
        for run in RUN.findall(normalised(text)):
            pieces = [piece.replace(",", ".")[:LONGEST] for piece in PIECE.findall(run)]
            if len(pieces) > 1 and len(whole := "".join(pieces)) <= LONGEST:
                found.append(whole)
            found += pieces
        return found

    def terms_of(self, word: str) -> tuple[str, ...]:
        """The terms of one of them: its stem, or the whole of an identifier and then its fragments."""
        if UNSPACED.search(word):
            return tuple(term for part in _scripts(word) for term in part)
        if is_alphabetic(word):
            return (word if self._stemmer is None else str(self._stemmer.stemWord(word)),)
        fragments = FRAGMENTS.findall(word)
        return (word, *(FRAGMENT + fragment for fragment in fragments if len(fragments) > 1))


def _scripts(piece: str) -> list[list[str]]:
    """Pairs of characters where there are no spaces between words, the rest as it is."""
    parts: list[list[str]] = []
    end = 0
    for match in UNSPACED.finditer(piece):
        run = match.group()
        parts += [[piece[end : match.start()]]] if match.start() > end else []
        parts.append([run[at : at + 2] for at in range(max(len(run) - 1, 1))])
        end = match.end()
    return parts + ([[piece[end:]]] if end < len(piece) else [])
