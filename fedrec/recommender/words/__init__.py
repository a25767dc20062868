"""Search by words: a lexical index and the encoder's vectors, fused."""

from __future__ import annotations

from fedrec.recommender.words.fusion import FUSION, Fusion
from fedrec.recommender.words.lexical import BM25Index, Lexical, LexicalIndex
from fedrec.recommender.words.searcher import Found, Searcher
from fedrec.recommender.words.tokens import LANGUAGE, LANGUAGES, Tokeniser

__all__ = ["FUSION", "LANGUAGE", "LANGUAGES", "BM25Index", "Found", "Fusion", "Lexical", "LexicalIndex", "Searcher", "Tokeniser"]
