"""Search by size of the catalogue: how long the index takes, how large it is, how soon an answer is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import timed
from fedrec.data import Catalogue, ItemDetails
from fedrec.recommender.answers import Person, Wish, answer_many, answer_search
from fedrec.recommender.asking import Asking
from fedrec.recommender.of_run import RunRanker
from fedrec.recommender.shelf import Shelf
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

__all__ = ["speed"]

TYPOS = ("labtop stand", "bluetoth hedphones")
HISTORY = 10


def offer_of(size: int, texts: Sequence[str], vectors: np.ndarray) -> RunRanker:
    """A catalogue of any size: the texts themselves, and then halves of two of them, with vectors between theirs."""
    rng = np.random.default_rng(0)
    made, points = list(texts[:size]), vectors[:size]
    if (more := size - len(made)) > 0:
        first, second = rng.integers(len(texts), size=(2, more))
        made += [f"{texts[i][: len(texts[i]) // 2]} {texts[j][len(texts[j]) // 2 :]}" for i, j in zip(first, second, strict=True)]
        points = np.concatenate([points, vectors[first] + vectors[second]])
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    details = ItemDetails(*(np.full(size, "", dtype=object) for _ in range(2)), np.full(size, np.nan))
    catalogue, counts = Catalogue([f"i{item}" for item in range(size)], made), np.zeros(size, dtype=np.float32)
    return RunRanker(Shelf.stocked(catalogue, unit, np.arange(size), unit, counts, 1.0), details, unit, counts, 0.1, 50)


def speed(
    size: int, texts: Sequence[str], vectors: np.ndarray, encode: Callable[[str], np.ndarray], queries: Sequence[str], turns: int
) -> dict[str, Any]:
    """Seconds to index, bytes, and milliseconds of an answer in a warm process, from words to item ids."""
    offer, made = offer_of(size, texts, vectors), list[BM25Index]()
    build = timed(lambda: made.append(BM25Index(offer.catalogue.texts, Tokeniser())))
    searcher = Searcher(offer.catalogue, made[0], offer.vectors, encode)
    rng = np.random.default_rng(1)

    def search(query: str) -> None:
        answer_search(Asking(offer, lambda: searcher), searcher, Wish(10, query))

    def both(query: str, explain: bool = False) -> None:
        held = [offer.catalogue.item_ids[item] for item in rng.integers(size, size=HISTORY)]
        answer_many(Asking(offer, lambda: searcher), [Person(held)], Wish(10, query, explain=explain))

    first = timed(lambda: [search(typo) for typo in TYPOS])
    asked = [query for _ in range(turns) for query in queries]
    wall, processor = clocked(search, asked)
    person, person_processor = clocked(both, asked)
    explained, _ = clocked(partial(both, explain=True), queries)
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
        "person_p50_ms": 1e3 * float(np.median(person)),
        "person_p95_ms": 1e3 * float(np.quantile(person, 0.95)),
        "person_p95_processor_ms": 1e3 * float(np.quantile(person_processor, 0.95)),
        "explained_p50_ms": 1e3 * float(np.median(explained)),
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
