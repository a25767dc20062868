"""The benchmark of a person's search: histories of other queries' products alone, what is measured, and the weight's choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.search_fusions import Queries
from benchmarks.search_person import KINDS, WEIGHTS, Case, Makers, chosen, measured
from fedrec.data import ItemDetails
from fedrec.recommender.asking import Asking
from fedrec.recommender.of_run import RunRanker
from fedrec.recommender.shelf import Shelf
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

ITEMS, QUERIES = 120, 8


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Queries:
    """Neighbouring queries have judged items in common, others have none."""
    folder, rng = tmp_path_factory.mktemp("graded"), np.random.default_rng(0)
    ids = [f"i{item}" for item in range(ITEMS)]
    titles = [f"thing w{item // 10}" for item in range(ITEMS)]
    pd.DataFrame({"item_id": ids, "title": titles}).to_parquet(folder / "items.parquet")
    judged = [(query, item) for query in range(QUERIES) for item in range(10 * query, 10 * query + 25)]
    rows = [(f"w{query}", ids[item], int(rng.integers(4))) for query, item in judged]
    pd.DataFrame(rows, columns=["query", "item_id", "rating"]).to_parquet(folder / "relevance.parquet")
    return Queries.read(Path(folder))


@pytest.fixture(scope="module")
def cases(queries: Queries) -> dict[str, list[Case]]:
    angle = np.arange(QUERIES) * 0.3
    brands = np.array([f"b{item % 2}" for item in range(ITEMS)])
    return Makers.of(queries, np.stack([np.cos(angle), np.sin(angle)], axis=1), brands).cases()


def test_no_history_holds_what_is_judged_for_its_query(queries: Queries, cases: dict[str, list[Case]]) -> None:
    for kind in KINDS:
        assert cases[kind]
        for case in cases[kind]:
            judged = queries.judged[case.number]
            assert not np.intersect1d(case.history, judged).size and 2 <= len(np.unique(case.history)) == len(case.history) <= 8
            whole = queries.gains[case.number]
            assert np.isin(case.gains, [0, 1, 3, 7]).all() and (case.gains > 0).any() and len(case.gains) == len(judged)
            assert np.array_equal(case.gains, whole) == (kind in ("related", "unrelated"))
            if kind == "brand":
                (brand,) = {item % 2 for item in case.history}
                assert {item % 2 for item in judged[case.gains > 0]} == {brand}
            if kind == "unrelated":
                apart = [other for other in range(QUERIES) if not np.intersect1d(queries.judged[other], judged).size]
                assert np.isin(case.history, np.concatenate([queries.judged[other] for other in apart])).all()


def test_a_weight_of_nothing_is_the_words_and_masks_count_for_all(queries: Queries, cases: dict[str, list[Case]]) -> None:
    angle = np.linspace(0, np.pi, ITEMS, dtype=np.float32)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    index = BM25Index(queries.catalogue.texts, Tokeniser())
    searcher = Searcher(queries.catalogue, index, vectors, lambda _: vectors[:1])
    nothing = np.zeros(ITEMS, dtype=np.float32)
    shelf = Shelf.stocked(queries.catalogue, vectors, np.arange(ITEMS), vectors, nothing, 1.0)
    asking = Asking(RunRanker(shelf, ItemDetails(), vectors, nothing, 0.1, 50), lambda: searcher, 1.0)
    found, expected = measured(queries, asking, cases["related"]), []
    for case in cases["related"]:
        scores = searcher.search(queries.words[case.number]).scores.copy()
        scores[case.history] = -np.inf
        expected.append(queries.ndcg(case.number, scores, case.gains))
    assert found.shape == (1 + len(WEIGHTS), len(expected), 2) and found[1] == pytest.approx(np.array(expected))
    assert not np.array_equal(found[1], found[-1]) and not np.array_equal(found[0], found[-1])
    twice = measured(queries, asking, [cases["related"][0]] * 2)
    assert twice.shape[1] == 1 and twice[:, 0] == pytest.approx(found[:, 0])


def test_the_weight_is_the_largest_that_costs_little_on_the_queries_it_is_chosen_on() -> None:
    lost = {"related": [0, 0, 0.001, 0.009, 0.009, 0.02, 0.02, 0.02], "unrelated": [0, 0, 0, 0.001, 0.004, 0.002, 0, 0]}
    found = {kind: np.stack([np.zeros((4, 2)), *(np.full((4, 2), 0.5 - one) for one in values)]) for kind, values in lost.items()}
    numbers = {kind: np.arange(4) for kind in lost}
    train = np.array([True, True, True, False])
    assert chosen(found, numbers, train) == 3
    found["related"][1:, 3] = 0.0  # a query that is not chosen on
    assert chosen(found, numbers, train) == 3
