"""An approximate index of a catalogue too large to multiply with for every recommendation.

Items with a large inner product are found as near neighbours: with `M` the largest length of an
item, (x, sqrt(M^2 - |x|^2)) and (q, 0) are at the squared distance M^2 + |q|^2 - 2 <q, x>
(Bachrach et al., RecSys 2014, section 3). faiss sorts the items into lists around centres
(inverted file) and keeps one byte a dimension; a search reads the lists next to the query. The
most popular items are outside of the lists and always searched: they suit everybody, also those
whose lists are elsewhere. What is found is scored again with the exact table, so scores are those
of an exact search and only an item that was not found can be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import write_atomically
from fedrec.errors import InputError
from fedrec.model.ranking import best_items, blocks, pairs_of, top_k

__all__ = ["ItemIndex"]

NOTHING = np.zeros((0, 2), dtype=np.int64)
HEAD, PART = 4096, 8
"""Most popular items, which every search scores, or an eighth of a small catalogue."""
SHARE = 5
"""A search reads every fifth list, unless `probes` says otherwise: a smaller part misses many where items have many small
clusters and popularity counts for little."""
SPARE = 4
"""How many times `k` items are scored again: a byte a dimension confuses neighbours."""
SAMPLE = 64
"""Items a list is trained on."""
CHUNK = 2**15
"""Items that are added at once."""


class ItemIndex:
    """Finds the items of a table with the largest inner products.

    Attributes:
        probes: lists a search reads, 1 to `lists`; more find more and take longer.
        lists: how many there are.
    """

    def __init__(self, table: np.ndarray, index: Any) -> None:
        self.table, self._index = table, index
        self._head, _ = _parts(table)
        self._popular = table[self._head]
        self.lists = int(index.nlist)
        self.probes = max(1, self.lists // SHARE)

    @classmethod
    def build(cls, table: np.ndarray) -> ItemIndex:
        """Train and fill an index; about two minutes for a million items of width 384 on two cores.

        Args:
            table: (items, width) float32, at least one item; it is kept, for the exact scores. The
                last column is what every query takes alike: popularity.

        Raises:
            InputError: faiss is not installed.
        """
        faiss = _faiss()
        _, tail = _parts(table)
        # Lists of about half the square root of the items each; faiss wants 39 items a list to learn where it is.
        lists = max(1, min(int(2 * np.sqrt(len(tail))), len(tail) // 39))
        # Taking the mean out changes no order and makes the lengths, and so the added dimension, small.
        mean = float(table[tail, -1].mean())
        bound = max(_squares(part).max() for part in _chunks(table, tail, mean))
        width = _padded(table[:1]).shape[1]
        quantizer = faiss.IndexFlatL2(width)
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2)
        sample = np.sort(np.random.default_rng(0).permutation(tail)[: SAMPLE * lists])
        index.train(np.concatenate([_lifted(part, bound) for part in _chunks(table, sample, mean)]))
        for start, part in zip(range(0, len(tail), CHUNK), _chunks(table, tail, mean), strict=True):
            index.add_with_ids(_lifted(part, bound), tail[start : start + CHUNK])
        return cls(table, index)

    @classmethod
    def open(cls, path: Path, table: np.ndarray, fingerprint: bytes) -> ItemIndex:
        """Read the index at `path`; build and write it if there is none with this fingerprint.

        Args:
            table: (items, width) float32, what was or is to be indexed.
            fingerprint: of what the table was made from.

        Raises:
            InputError: faiss is not installed.
        """
        faiss = _faiss()
        fingerprint += repr((HEAD, PART)).encode()  # which items are in the file is decided by these
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(len(fingerprint)) == fingerprint:
                    return cls(table, faiss.deserialize_index(np.frombuffer(file.read(), dtype=np.uint8)))
        built = cls.build(table)
        with contextlib.suppress(OSError):  # a folder that cannot be written only costs building it again
            built.save(path, fingerprint)
        return built

    def save(self, path: Path, fingerprint: bytes) -> None:
        """Write what `open` reads, which is not the table."""
        write_atomically(path, fingerprint + _faiss().serialize_index(self._index).tobytes())

    def search(self, queries: np.ndarray, k: int, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `best_items` finds, approximately.

        Args:
            queries: (users, width) float32.
            masked: (pairs, 2) distinct user and item that are not to be found, sorted by user.

        Returns:
            Items and exact scores, (users, min(k, items)) each, best first; -1 and -inf where there are fewer.
        """
        items = len(self.table)
        k = min(k, items)
        hidden = np.bincount(masked[:, 0], minlength=len(queries))  # (users,)
        asked = min(SPARE * k + int(hidden.max(initial=0)), items)
        parameters = _faiss().SearchParametersIVF(nprobe=self.probes)
        found, best = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, dtype=self.table.dtype)
        for rows in blocks(len(queries), asked * self.table.shape[1]):
            near = self._index.search(_padded(queries[rows]), asked, params=parameters)[1]  # -1 for none
            popular, _ = best_items(queries[rows], self._popular, asked, NOTHING)
            near = np.concatenate([near, self._head[popular]], axis=1)
            near.sort(axis=1)  # so that equal scores come in the catalogue's order
            scores = np.einsum("uw,uaw->ua", queries[rows], self.table[near])
            user, item = pairs_of(masked, rows).T
            gone = np.isin(near + np.arange(len(near))[:, None] * items, user * items + item)
            scores[gone | (near < 0)] = -np.inf
            column, best[rows] = top_k(scores, k)
            found[rows] = np.where(column < 0, -1, np.take_along_axis(near, column, axis=1))
        # The lists that were read may hold fewer than there are.
        short = np.flatnonzero((found >= 0).sum(axis=1) < np.minimum(k, items - hidden))
        if len(short):
            mine = masked[np.isin(masked[:, 0], short)]
            mine = np.stack([np.searchsorted(short, mine[:, 0]), mine[:, 1]], axis=1)
            found[short], best[short] = best_items(queries[short], self.table, k, mine)
        return found, best

    def recall(self, queries: np.ndarray, k: int, masked: np.ndarray) -> float:
        """Share of the exact `k` best items of all queries that `search` finds; arguments as there."""
        (exact, _), (found, _) = best_items(queries, self.table, k, masked), self.search(queries, k, masked)
        user = np.arange(len(queries))[:, None] * len(self.table)
        return float(np.isin((exact + user)[exact >= 0], (found + user)[found >= 0]).mean())


def _parts(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the most popular items, and of the others, both ascending."""
    order = np.argsort(-table[:, -1], kind="stable")
    head = min(HEAD, len(table) // PART)
    return np.sort(order[:head]), np.sort(order[head:])


def _chunks(table: np.ndarray, positions: np.ndarray, mean: float) -> Iterator[np.ndarray]:
    for start in range(0, len(positions), CHUNK):
        part = table[positions[start : start + CHUNK]]
        part[:, -1] -= mean
        yield part


def _squares(items: np.ndarray) -> np.ndarray:
    squares: np.ndarray = np.einsum("nd,nd->n", items, items)
    return squares


def _padded(vectors: np.ndarray) -> np.ndarray:
    """(vectors, width) with room for the added dimension, in zeros; faiss is fast where the width divides by 16."""
    out = np.zeros((len(vectors), -(-(vectors.shape[1] + 1) // 16) * 16), dtype=np.float32)
    out[:, : vectors.shape[1]] = vectors
    return out


def _lifted(items: np.ndarray, bound: float) -> np.ndarray:
    """Items with the dimension that gives all of them the squared length `bound`."""
    out = _padded(items)
    out[:, items.shape[1]] = np.sqrt(np.maximum(bound - _squares(items), 0))
    return out


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise InputError("the package faiss-cpu is not installed", where="index", hint="pip install 'fedrec[index]'") from None
    return faiss
