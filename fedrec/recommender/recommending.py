"""What a run's recommender and a merchant's have in common for whoever asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.explore.log import read_log
from fedrec.model.adapter import Arrays
from fedrec.recommender.answers import Answer, Person, Ranker, Wish, answer_each, answer_many, answer_search, first_few
from fedrec.recommender.asking import Asking
from fedrec.recommender.bandit import Bandit
from fedrec.recommender.baskets import BasketRanker
from fedrec.recommender.exploring import Explorer, Shown
from fedrec.recommender.reasons.words import Reader, words_of
from fedrec.recommender.selection import Filter
from fedrec.recommender.words import LANGUAGE, BM25Index, Searcher, Tokeniser

if TYPE_CHECKING:  # importing it takes seconds, and few ask for it
    from fedrec.model.onnx_encoder import OnnxEncoder

__all__ = ["Recommending", "exported"]


def exported(folder: str | Path, fingerprint: str, arrays: Arrays) -> OnnxEncoder:
    """An exported encoder, if it is that of this model.

    Raises:
        InputError: it is no export, or one of another model.
    """
    from fedrec.model.onnx_encoder import OnnxEncoder

    encoder = OnnxEncoder(folder)
    encoder.check(fingerprint, arrays)
    return encoder


class Recommending(ABC):
    """An answer for whoever asks.

    Attributes:
        catalogue: what is ranked.
    """

    catalogue: Catalogue
    language: str = LANGUAGE
    """Of the catalogue's texts."""
    _onnx: OnnxEncoder | None = None
    """What reads words in place of the encoder."""
    _shown: Shown | None = None
    _bandit: Bandit | None = None
    """What was learned before and is kept; a log that is given counts in its place."""
    _bandit_fault: str | None = None
    """Why what is kept does not count, for people."""

    @abstractmethod
    def _ranker(self, merchant: str | None) -> Ranker:
        """Who ranks."""

    @abstractmethod
    def _basket_ranker(self, held: np.ndarray, merchant: str | None) -> BasketRanker:
        """Who ranks for a basket of these positions."""

    @abstractmethod
    def _reader(self) -> Reader:
        """How texts are read that are not the catalogue's; it needs the encoder."""

    @abstractmethod
    def _text(self) -> np.ndarray:
        """(items, hidden) unit vectors of the catalogue's texts, as the encoder has them."""

    @abstractmethod
    def _encoded(self, texts: Sequence[str]) -> Tensor:
        """(texts, hidden) unit vectors of texts that are not the catalogue's, among these."""

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        times: Sequence[object] | None = None,
        k: int = 10,
        query: str | None = None,
        filter: Filter | None = None,
        exclude: Sequence[str] = (),
        repeats: bool = False,
        diversity: float = 0.0,
        merchant: str | None = None,
        explain: bool = False,
        explore: float = 0.0,
        seed: int | None = None,
    ) -> Answer:
        """A list for a person, and why it is as it is; see `Person` and `Wish` for the arguments.

        Unlike `rank` it has an answer for whoever asks: an item that is not in the catalogue is ignored, who has no
        history gets the popularity list, and filters that leave nothing get an empty one; the notes say so. A run knows
        no user by name, a merchant its own.

        Args:
            merchant: only this merchant's items of a run's catalogue.

        Raises:
            InputError: an argument that means nothing, an unknown merchant, or a filter on a column that the catalogue lacks.
        """
        wish = Wish(k, query, filter or Filter(), exclude, repeats, diversity, explain, explore, seed)
        return self.recommend_many([Person(history, user_id, times)], wish, merchant)[0]

    def recommend_many(self, people: Sequence[Person], wish: Wish, merchant: str | None = None) -> list[Answer]:
        """`recommend` for many people, in their order."""
        ranker = self._ranker(merchant)
        return answer_many(ranker, people, wish, self._explorer(merchant, ranker) if wish.explore else None)

    def basket(
        self,
        items: Sequence[str],
        k: int = 10,
        query: str | None = None,
        filter: Filter | None = None,
        exclude: Sequence[str] = (),
        merchant: str | None = None,
        explain: bool = False,
    ) -> Answer:
        """What completes a basket: what goes with its items and would not replace one of them; see `docs/baskets.md`.

        Args:
            items: item ids, in any order; those that are not in the catalogue are ignored.
            k: most items.
            query: words for what is looked for; the basket orders what they find.
            filter: what the list may hold.
            exclude: item ids that it must not hold, beside the filter's and the basket's.
            merchant: only this merchant's items of a run's catalogue.
            explain: whether the answer has the reasons of each item.

        Raises:
            InputError: no item, an argument that means nothing, an unknown merchant, or a filter on a column that the
                catalogue lacks.
        """
        if isinstance(items, str):
            raise InputError(f"found the text {items!r}", where="items", expected="a list")
        if not len(items):
            raise InputError("the basket is empty", where="items", expected="at least one item id")
        held = np.unique(self.catalogue.positions(items))
        ranker = self._basket_ranker(held[held >= 0], merchant)
        wish = Wish(k, query, filter or Filter(), exclude, explain=explain)
        person = Person(items, times=[0] * len(items))  # one time is one basket
        return answer_many(Asking(ranker, lambda: self._searcher(self.language)), [person], wish)[0]

    def learn_from(self, log: Path) -> None:
        """Have what was shown count where lists explore: a log with `position`, `reward` and the `value` that each place had.

        What is learned is kept in memory alone, so that the log is all there is to erase.

        Raises:
            InputError: the log cannot be read, lacks a column, or is of other items.
        """
        self._shown = Shown.of(read_log(log), self.catalogue)
        self._explorers.clear()

    def recommend_each(self, asked: Sequence[tuple[Person, Wish]], merchant: str | None = None) -> list[Answer | InputError]:
        """`recommend` for people with a wish each; what is wrong with one question is in its place."""
        ranker = self._ranker(merchant)
        return answer_each(ranker, asked, self._explorer(merchant, ranker) if any(wish.explore for _, wish in asked) else None)

    def explain(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        times: Sequence[object] | None = None,
        k: int = 10,
        query: str | None = None,
        items: Sequence[str] | None = None,
        repeats: bool = False,
        merchant: str | None = None,
        words: bool = False,
    ) -> Answer:
        """`recommend` with the reasons of each item, which `Reasons` and `docs/reasons.md` describe.

        Args:
            items: explain these and no others, best first, however many they are; what is in the history is not among them
                unless there are `repeats`.
            words: also which words of each item's text carry its score: this loads the encoder.

        Raises:
            InputError: as `recommend`; or the encoder cannot be loaded.
        """
        if isinstance(items, str):
            raise InputError(f"found the text {items!r}", where="items", expected="a list")
        only, gone = Filter(), list[str]()
        if items is not None:
            known = (self.catalogue.index.get_indexer(list(items)) >= 0).tolist()
            gone = [item for item, here in zip(items, known, strict=True) if not here]
            only = Filter(only=[item for item, here in zip(items, known, strict=True) if here])
        wish = Wish(k if items is None else max(len(items), 1), query, only, repeats=repeats, explain=True)
        (answer,) = self.recommend_many([Person(history, user_id, times)], wish, merchant)
        if gone:
            note = f"asked for and not in the catalogue, so ignored: {first_few([repr(item) for item in gone])}"
            answer = replace(answer, notes=(note, *answer.notes))
        return self.with_words(answer) if words else answer

    def with_words(self, answer: Answer) -> Answer:
        """The same with the words of each item's text; a popularity list has no text to read.

        Raises:
            InputError: the encoder cannot be loaded.
        """
        explained = [one for one in answer.reasons if len(one.direction)]
        if not explained:
            return answer
        places = self.catalogue.index.get_indexer([one.item_id for one in explained])
        directions = np.stack([one.direction for one in explained])
        found = words_of([self.catalogue.texts[place] for place in places], directions, self._reader())
        return replace(answer, reasons=tuple(replace(one, words=said) for one, said in zip(explained, found, strict=True)))

    def search(
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        exclude: Sequence[str] = (),
        merchant: str | None = None,
        language: str | None = None,
    ) -> Answer:
        """The best items for words alone: what they name exactly, then words and meaning fused; see `docs/search.md`.

        The catalogue's words are indexed by the first search. A query is kept nowhere.

        Args:
            query: words, an item id, a title or a part number.
            k: most items.
            filter: what the list may hold.
            exclude: item ids that it must not hold, beside the filter's.
            merchant: only this merchant's items of a run's catalogue.
            language: of the catalogue's texts, whose words are found by their stems; `none` for no stems. As set, by default.

        Raises:
            InputError: there are no words, an argument that means nothing, an unknown merchant or language, or a filter on
                a column that the catalogue lacks.
        """
        wish = Wish(k, query, filter or Filter(), exclude)
        return answer_search(self._ranker(merchant), self._searcher(language or self.language), wish)

    def _query(self, query: str) -> np.ndarray:
        found: np.ndarray = self._encoded([query]).cpu().numpy()
        return found

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self._text()

    @cached_property
    def _explorers(self) -> dict[str | None, Explorer]:
        return {}

    def _explorer(self, merchant: str | None, ranker: Ranker) -> Explorer:
        if merchant not in self._explorers:
            explorer = Explorer.of(ranker.vectors, ranker.popularity(), self._shown)
            if self._shown is None and self._bandit is not None:
                names = [ranker.catalogue.item_ids[item] for item in explorer.offered]
                explorer = replace(explorer, learned=self._bandit.over(names, ranker.vectors[explorer.offered]))
            elif self._shown is None and self._bandit_fault is not None:
                explorer = replace(explorer, notes=(self._bandit_fault,))
            self._explorers[merchant] = explorer
        return self._explorers[merchant]

    @cached_property
    def _searchers(self) -> dict[str, Searcher]:
        return {}

    def _searcher(self, language: str) -> Searcher:
        if language not in self._searchers:
            self._searchers[language] = self._indexed(self.catalogue, self._vectors, language)
        return self._searchers[language]

    def _indexed(self, catalogue: Catalogue, vectors: np.ndarray, language: str) -> Searcher:
        return Searcher(catalogue, BM25Index(catalogue.texts, Tokeniser(language)), vectors, self._query)
