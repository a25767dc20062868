"""Of which sizes batches of texts are, so that how one is rounded does not depend on what is beside it.

A processor's products of so many rows or more were found to be rounded row by row alike, whatever their number, so there a
text is padded to little more than its own length and a batch is as large as it comes out. A GPU's library takes other
kernels, which round otherwise, for other numbers of rows, but was found to round a row of one shape alike wherever it
stands: there every batch is filled up to one size, and lengths are few. On both a text's length is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Shapes"]

TOKENS_STEP = 4
"""Without fixed shapes a text is padded to a multiple of so many tokens."""
LEAST_ROWS = 32
"""Fewest tokens that a layer is given at once: products with fewer rows than 16 were found to be rounded otherwise."""
LEAST_TOKENS = 16
"""With fixed shapes a text is padded to so many tokens, or twice as many, until it fits."""
TOKENS_A_TEXT = 128
"""With fixed shapes a batch has room for `texts_per_batch` texts of so many tokens, or more of shorter ones."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of batches.

    Attributes:
        texts_per_batch: most texts at once; with `fixed`, of `TOKENS_A_TEXT` tokens.
        most_tokens: the most that a text is padded to.
        fixed: whether lengths are few and every batch is filled up, as on a GPU.
    """

    texts_per_batch: int
    most_tokens: int
    fixed: bool

    @property
    def texts_per_piece(self) -> int:
        """How many texts of one user are taken together on the way back."""
        return 4 if self.fixed else 1

    @property
    def records_per_chunk(self) -> int:
        """Most records whose losses are computed together."""
        return 256 if self.fixed else 64

    @property
    def records(self) -> int:
        """How many records are computed together, empty ones included, or 0 for those that there are."""
        return self.records_per_chunk if self.fixed else 0

    def padded(self, lengths: np.ndarray) -> np.ndarray:
        """To how many tokens texts of these lengths are padded: (texts,)."""
        if self.fixed:
            doublings = np.ceil(np.log2(np.maximum(lengths, LEAST_TOKENS) / LEAST_TOKENS)).astype(np.int64)
            tokens = LEAST_TOKENS << doublings
        else:
            tokens = -(-lengths // TOKENS_STEP) * TOKENS_STEP
        return np.minimum(tokens, self.most_tokens)

    def texts(self, tokens: int) -> int:
        """Most texts of so many tokens in a batch."""
        if self.fixed:
            pieces = self.texts_per_batch * TOKENS_A_TEXT // (tokens * self.texts_per_piece)
            return max(1, pieces) * self.texts_per_piece
        return max(self.texts_per_batch, -(-LEAST_ROWS // tokens))

    def filled(self, rows: np.ndarray, tokens: int) -> np.ndarray:
        """`rows` of texts of so many tokens, and the last of them again until the last batch is as large as it must be."""
        size = self.texts(tokens)
        beyond = len(rows) % size
        least = size if self.fixed else -(-LEAST_ROWS // tokens)
        return np.append(rows, np.full(least - beyond, rows[-1])) if 0 < beyond < least else rows

    def batches(self, lengths: np.ndarray, times: int = 1) -> Iterator[np.ndarray]:
        """Texts of these lengths in batches, up to `times` as large, that are padded to one length, which is each text's own."""
        tokens = self.padded(lengths)
        order = np.argsort(tokens, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(tokens[order])) + 1):
            size = times * self.texts(int(tokens[same[0]])) if len(same) else 1
            for start in range(0, len(same), size):
                yield same[start : start + size]
