"""Pairs of texts that mean the same item, made of its public text alone.

    dropout   the text twice, told apart by the dropout of the top layers (Gao, Yao and Chen, SimCSE, EMNLP 2021, sec. 3)
    fields    the title, and brand, category and description
    words     the text, and the text with a fifth of its words left out
    order     the text, and its words in another order

The last two are augmentations of ConSERT (Yan et al., ACL 2021, sec. 3.2), made of words before the trunk reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrec.adaptation.items import PublicItems
from fedrec.data import Catalogue
from fedrec.model.cache import States, TrunkCache
from fedrec.model.encoder import TextEncoder

__all__ = ["KINDS", "Pairs"]

KINDS = ("dropout", "fields", "words", "order")
LEFT_OUT = 0.2
"""Share of the words that `words` leaves out."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of several kinds.

    Attributes:
        catalogue: the items.
        added: texts that are in no catalogue.
        sides: a kind's left and right, (2, pairs) places of texts, those added after those of the catalogue.
    """

    catalogue: Catalogue
    added: Catalogue
    sides: tuple[np.ndarray, ...]

    @classmethod
    def make(cls, items: PublicItems, kinds: Sequence[str], seed: int) -> Pairs:
        """Pairs of these kinds; items of one text are one item, and one without title or without other fields has no `fields`."""
        first = np.sort(np.unique(items.catalogue.keys, return_index=True)[1])
        rng, added, sides = np.random.default_rng(seed), list[str](), list[np.ndarray]()
        for kind in kinds:
            at = len(items.catalogue) + len(added)
            if kind == "fields":
                both = [place for place in first if items.titles[place] and items.others[place]]
                added += [items.titles[place] for place in both] + [items.others[place] for place in both]
                sides.append(np.arange(at, at + 2 * len(both)).reshape(2, -1))
            elif kind == "dropout":
                sides.append(np.stack([first, first]))
            else:
                added += [_changed(items.catalogue.texts[place], kind, rng) for place in first]
                sides.append(np.stack([first, np.arange(at, at + len(first))]))
        return cls(items.catalogue, Catalogue(tuple(map(str, range(len(added)))), tuple(added)), tuple(sides))

    @property
    def keys(self) -> np.ndarray:
        """(texts,) text keys: what is the same text is no negative of it."""
        return np.concatenate([self.catalogue.keys, self.added.keys])

    def states(self, encoder: TextEncoder, folder: Path) -> States:
        """The trunk's output for all texts; for those that are in no catalogue it is kept in `folder`."""
        states = encoder.states(self.catalogue)
        if not len(self.added):
            return states
        return states.followed_by(encoder.states(self.added, TrunkCache(folder, encoder.fingerprint)))


def _changed(text: str, kind: str, rng: np.random.Generator) -> str:
    words = text.split()
    if kind == "order":
        return " ".join(rng.permutation(np.array(words, dtype=object)))
    kept = [word for word in words if rng.random() >= LEFT_OUT]
    return " ".join(kept or words)
