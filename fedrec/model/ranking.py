"""Scores of many users against a whole catalogue, in blocks, and the best of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["best_items", "blocks", "pairs_of", "products", "top_k"]

FLOATS = 2**21
"""Scores in flight: 8 MB, which a processor's cache still helps with."""
ROWS = 16
"""Users a block at least: with fewer, reading a huge catalogue takes longer than multiplying it."""


def blocks(rows: int, width: int) -> Iterator[slice]:
    """`rows` in slices of about `FLOATS` numbers each, `width` being the length of a row."""
    size = max(ROWS, FLOATS // max(width, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def pairs_of(pairs: np.ndarray, rows: slice) -> np.ndarray:
    """The (pairs, 2 or more) of user and item whose user is in `rows`, counted from the first; `pairs` is sorted by user."""
    start, stop = np.searchsorted(pairs[:, 0], (rows.start, rows.stop))
    part = pairs[start:stop].copy()
    part[:, 0] -= rows.start
    return part


def products(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Inner products (users, items) of queries (users, width) with a table (items, width)."""
    # Torch's BLAS sums every item's row in the same order. NumPy's does not, and then two items of
    # one text differ in the last bit, which breaks the tie between them by chance.
    found: np.ndarray = (torch.from_numpy(queries) @ torch.from_numpy(table).T).numpy()
    return found


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and scores of the `k` best of each row, best first; of equal scores the earlier column.

    Args:
        scores: (rows, items); what is not to be taken is -inf.

    Returns:
        Two arrays (rows, min(k, items)); places that nothing is left for hold -1 and -inf.
    """
    rows, items = scores.shape
    k = min(k, items)
    columns, best = np.full((rows, k), -1), np.full((rows, k), -np.inf, dtype=scores.dtype)
    if k:
        least = np.partition(scores, items - k, axis=1)[:, items - k, None]
        # More than k where scores are equal to the k-th: which of them come in is for the order to say, not the partition.
        row, column = np.divmod(np.flatnonzero((scores >= least) & (scores > -np.inf)), items)
        value = scores[row, column]
        order = np.lexsort((column, -value, row))
        count = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        taken, place = order[place < k], place[place < k]
        columns[row[taken], place], best[row[taken], place] = column[taken], value[taken]
    return columns, best


def best_items(queries: np.ndarray, table: np.ndarray, k: int, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `k` items with the largest inner product with each query, by `top_k`'s rule.

    Args:
        queries: (users, width).
        table: (items, width).
        masked: (pairs, 2) user and item that are not to be found, sorted by user.

    Returns:
        Items and scores, (users, min(k, items)) each; -1 and -inf where there are fewer.
    """
    found = [top_k(np.zeros((0, len(table)), dtype=table.dtype), k)]
    for rows in blocks(len(queries), len(table)):
        scores = products(queries[rows], table)
        user, item = pairs_of(masked, rows).T
        scores[user, item] = -np.inf
        found.append(top_k(scores, k))
    items, best = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return items, best
