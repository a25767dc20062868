"""Search by size of the catalogue: how long the index takes, how large it is, how soon an answer is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measure import timed
from fedrec.data import Catalogue, ItemDetails
from fedrec.recommender.answers import Wish, answer_search
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

__all__ = ["speed"]

TYPOS = ("labtop stand", "bluetoth hedphones")


@dataclass(frozen=True)
class Offer:
    """What a search asks of who ranks."""

    catalogue: Catalogue
    details: ItemDetails
    vectors: np.ndarray

    def popularity(self) -> np.ndarray:
        """(items,): all are offered."""
        return np.zeros(len(self.catalogue), dtype=np.float32)


def offer_of(size: int, texts: Sequence[str], vectors: np.ndarray) -> Offer:
    """A catalogue of any size: the texts themselves, and then halves of two of them, with vectors between theirs."""
    rng = np.random.default_rng(0)
    made, points = list(texts[:size]), vectors[:size]
    if (more := size - len(made)) > 0:
        first, second = rng.integers(len(texts), size=(2, more))
        made += [f"{texts[i][: len(texts[i]) // 2]} {texts[j][len(texts[j]) // 2 :]}" for i, j in zip(first, second, strict=True)]
        points = np.concatenate([points, vectors[first] + vectors[second]])
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    details = ItemDetails(*(np.full(size, "", dtype=object) for _ in range(2)), np.full(size, np.nan))
    return Offer(Catalogue([f"i{item}" for item in range(size)], made), details, unit)


def speed(
    size: int, texts: Sequence[str], vectors: np.ndarray, encode: Callable[[str], np.ndarray], queries: Sequence[str], turns: int
) -> dict[str, Any]:
    """Seconds to index, bytes, and milliseconds of an answer in a warm process, from words to item ids."""
    offer, made = offer_of(size, texts, vectors), list[BM25Index]()
    build = timed(lambda: made.append(BM25Index(offer.catalogue.texts, Tokeniser())))
    searcher = Searcher(offer.catalogue, made[0], offer.vectors, encode)
    first = timed(lambda: [answer_search(offer, searcher, Wish(10, typo)) for typo in TYPOS])
    asked = [query for _ in range(turns) for query in queries]
    wall, processor = clocked(lambda query: answer_search(offer, searcher, Wish(10, query)), asked)
    _, encoding = clocked(encode, queries)
    return {
        "items": size,
        "build_s": build,
        "first_s": first,
        "index_mb": made[0].nbytes / 1e6,
        "vectors_mb": offer.vectors.nbytes / 1e6,
        "p50_ms": 1e3 * float(np.median(wall)),
        "p95_ms": 1e3 * float(np.quantile(wall, 0.95)),
        "p50_processor_ms": 1e3 * float(np.median(processor)),
        "p95_processor_ms": 1e3 * float(np.quantile(processor, 0.95)),
        "encoding_processor_ms": 1e3 * float(np.median(encoding)),
    }


def clocked(work: Callable[[str], object], queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(queries,) seconds by the wall and of all the process's threads: the second one is not what others' work makes of it."""
    found = []
    for query in queries:
        wall, processor = time.perf_counter(), time.process_time()
        work(query)
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return tuple(np.array(found).T)
