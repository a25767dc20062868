"""What the search benchmark measures: NDCG and fusions against other packages, and that held-out queries choose nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rapidfuzz.distance import OSA
from torchmetrics.functional.retrieval import retrieval_normalized_dcg

from benchmarks.search import misspelt
from benchmarks.search_fusions import Queries, held_out, min_max, oracles, reciprocal_rank
from fedrec.recommender.words import Lexical

ITEMS = 40


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Queries:
    """Three queries, of which one has no relevant item."""
    folder, rng = tmp_path_factory.mktemp("graded"), np.random.default_rng(0)
    ids = [f"i{item}" for item in range(ITEMS)]
    pd.DataFrame({"item_id": ids, "title": ids}).to_parquet(folder / "items.parquet")
    rows = [(f"q{query}", item, int(rng.integers(4)) * (query > 0)) for query in range(3) for item in rng.permutation(ids)[:15]]
    pd.DataFrame(rows, columns=["query", "item_id", "rating"]).to_parquet(folder / "relevance.parquet")
    return Queries.read(Path(folder))


def test_ndcg_is_that_of_torchmetrics(queries: Queries) -> None:
    assert (queries.words, queries.without) == (["q1", "q2"], 1)
    scores = np.random.default_rng(1).permutation(ITEMS).astype(np.float32)
    for number, (judged, gains) in enumerate(zip(queries.judged, queries.gains, strict=True)):
        worth = np.zeros(ITEMS, dtype=np.float32)
        worth[judged] = gains
        expected = [
            float(retrieval_normalized_dcg(torch.from_numpy(scores[at]), torch.from_numpy(worth[at]), top_k=10))
            for at in (np.arange(ITEMS), judged)
        ]
        assert queries.ndcg(number, scores) == pytest.approx(expected, abs=1e-5)


def test_of_equal_scores_the_catalogue_s_order_counts(queries: Queries) -> None:
    falling = np.arange(ITEMS, 0, -1).astype(np.float32)
    for number in range(2):
        assert queries.ndcg(number, np.zeros(ITEMS)) == queries.ndcg(number, falling)


def test_reciprocal_rank_is_its_formula() -> None:
    words, cosines = np.array([0.0, 3.0, 1.0, 0.0]), np.array([0.9, 0.1, 0.5, 0.7])
    found = reciprocal_rank(60, 2.0)(Lexical(words, words, 1, (), {}), cosines)
    assert found == pytest.approx([1 / 61, 2 / 61 + 1 / 64, 2 / 62 + 1 / 63, 1 / 62])


@pytest.mark.filterwarnings("ignore")  # Numba's, of what it compiles
def test_fusions_are_those_of_ranx() -> None:
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(2)
    words, cosines = rng.random(ITEMS) + 0.1, rng.random(ITEMS)
    lexical = Lexical(words.astype(np.float32), words, 1, (), {})
    runs = [ranx.Run({"q": {f"i{item}": float(one[item]) for item in range(ITEMS)}}) for one in (lexical.scores, cosines)]
    for ours, norm, method, params in (
        (min_max(1.0), "min-max", "sum", None),
        (reciprocal_rank(60, 1.0), None, "rrf", {"k": 60}),
        (min_max(0.5), "min-max", "wsum", {"weights": (0.5, 1.0)}),
    ):
        theirs = ranx.fuse(runs=runs, norm=norm, method=method, params=params).run["q"]
        found = ours(lexical, cosines)
        assert [theirs[f"i{item}"] for item in range(ITEMS)] == pytest.approx(found.tolist(), abs=1e-5)


def test_a_held_out_query_has_no_part_in_the_choice() -> None:
    """Each of as many ways as queries is perfect for one query and bad for the others: only who looks finds it."""
    found = np.full((10, 10, 2), 0.5)
    found[np.arange(10), np.arange(10)] = 1.0
    assert (held_out(found, np.zeros(10), 10).figures == 0.5).all()
    assert all((one == 1.0).all() for one in oracles(found).values())
    best = found.copy()
    best[3] = 0.9
    chosen = held_out(best, np.zeros(10), 5)
    assert (
        chosen.figures == pytest.approx(np.full((10, 2), 0.9))
        and chosen.chosen == 3
        and chosen.fitted == pytest.approx([0.9, 0.9])
    )
    halves, split = np.zeros((2, 10, 2)), np.arange(10) % 2
    halves[split, np.arange(10)] = 1.0
    assert (held_out(halves, split, 5).figures == 1.0).all()


def test_oracles_are_the_best_way_for_each_query() -> None:
    found = np.array([[[0.2, 0.9]], [[0.8, 0.4]]])
    assert oracles(found)["one ranking"].tolist() == [[0.8, 0.4]]
    assert oracles(found)["each figure alone"].tolist() == [[0.8, 0.9]]


def test_a_typo_is_one_edit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = misspelt("usb committee", rng)
        assert found.startswith("usb c") and OSA.distance(found, "usb committee") == 1
    assert misspelt("tv usb", rng) == "tv usb"
