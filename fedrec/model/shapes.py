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
LENGTHS = 16, 24, 48, 96, 192, 384
"""With fixed shapes a text is padded to the first of these, in tokens, that it fits, or to the most there are."""
TOKENS_A_TEXT = 64
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
        return 2 if self.fixed else 1

    @property
    def records_per_chunk(self) -> int:
        """Most records whose texts go forward together."""
        return 512 if self.fixed else 64

    @property
    def times(self) -> int:
        """How many times what a processor takes at once a GPU takes."""
        return 16 if self.fixed else 1

    @property
    def records(self) -> int:
        """How many records' losses are computed together, empty ones included, or 0 for those that there are."""
        return 64 if self.fixed else 0

    def padded(self, lengths: np.ndarray) -> np.ndarray:
        """To how many tokens texts of these lengths are padded: (texts,)."""
        if self.fixed:
            tokens = np.append(LENGTHS, self.most_tokens)[np.searchsorted(LENGTHS, lengths)]
        else:
            tokens = -(-lengths // TOKENS_STEP) * TOKENS_STEP
        return np.minimum(tokens, self.most_tokens)

    def texts(self, tokens: int) -> int:
        """Most texts of so many tokens in a batch."""
        if self.fixed:
            pieces = self.texts_per_batch * TOKENS_A_TEXT // (tokens * self.texts_per_piece)
            return max(1, pieces) * self.texts_per_piece
        return max(self.texts_per_batch, -(-LEAST_ROWS // tokens))

    def filled(self, rows: np.ndarray, tokens: int, capacity: bool = True) -> np.ndarray:
        """`rows` of texts of so many tokens, and the last of them again until the last batch is as large as it must be.

        With fixed shapes and `capacity` also until the number of batches is a power of two.
        """
        size, count = self.texts(tokens), len(rows)
        if self.fixed:
            batches = -(-count // size)
            wanted = size * (1 << (batches - 1).bit_length() if capacity else batches)
        else:
            wanted = count + max(0, -(-LEAST_ROWS // tokens) - count % size) if count % size else count
        return np.append(rows, np.full(wanted - count, rows[-1])) if wanted > count else rows

    def batches(self, lengths: np.ndarray, times: int = 1) -> Iterator[np.ndarray]:
        """Texts of these lengths in batches, up to `times` as large, that are padded to one length, which is each text's own."""
        tokens = self.padded(lengths)
        order = np.argsort(tokens, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(tokens[order])) + 1):
            size = times * self.texts(int(tokens[same[0]])) if len(same) else 1
            for start in range(0, len(same), size):
                yield same[start : start + size]
