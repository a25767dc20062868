"""The trained recommender: loading, ranking, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import CentralData, CentralGroup, Columns, Histories, load_central
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet
from fedrec.evaluation.protocol import user_vectors
from fedrec.model import Scoring, log_prior
from fedrec.model.recommender import Recommender
from server.evaluation import CentralEvaluator
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.run import simulate

from .conftest import make_catalogue
from .helpers import make_federation, settings_of

HISTORY = ["i3", "i11", "i5"]


@pytest.fixture(scope="module", params=[False, True], ids=["shared catalogue", "own catalogues"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation"), own_catalogues=request.param)


@pytest.fixture(scope="module")
def run(federation: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulate(federation, settings_of(tiny_bert_folder, rounds=2), tmp_path_factory.mktemp("run") / "a")


@pytest.fixture(scope="module")
def recommender(run: RunFolder) -> Recommender:
    return Recommender.load(run.path, device="cpu")


def test_it_ranks_k_items_best_first_without_the_history(recommender: Recommender) -> None:
    for k in (1, 5, 10):
        ranked = recommender.rank(HISTORY, k)
        scores = [score for _, score in ranked]
        assert len(ranked) == len({item for item, _ in ranked}) == k
        assert scores == sorted(scores, reverse=True)
        assert not {item for item, _ in ranked} & set(HISTORY)


def test_a_list_longer_than_the_catalogue_ends_with_it(recommender: Recommender) -> None:
    ranked = recommender.rank(HISTORY, 1000)
    assert {item for item, _ in ranked} == {f"i{i}" for i in range(30)} - set(HISTORY)


def test_items_and_merchants_that_nobody_knows_are_errors(recommender: Recommender) -> None:
    with pytest.raises(InputError, match="'i999' is not in the catalogue"):
        recommender.rank(["i3", "i999"])
    with pytest.raises(InputError, match="no merchant 'nobody'"):
        recommender.rank(HISTORY, merchant="nobody")
    with pytest.raises(InputError, match="neither a history nor a query"):
        recommender.rank([])


def test_a_query_alone_ranks_and_a_query_moves_a_history(recommender: Recommender) -> None:
    assert len(recommender.rank([], 4, query="a red lamp of steel")) == 4
    assert recommender.rank([], 30, query="red lamp") != recommender.rank([], 30, query="soap")
    assert recommender.rank(HISTORY, 30, query="soap") != recommender.rank(HISTORY, 30)


def test_the_order_of_the_history_matters_where_recency_does(recommender: Recommender) -> None:
    fresh = Recommender(recommender.encoder, recommender.arrays, recommender.settings, recommender.table)
    fresh.scoring = Scoring(3.0, 2.0, 0.0)
    assert fresh.rank(HISTORY, 30) != fresh.rank(HISTORY[::-1], 30)
    fresh.scoring = Scoring(3.0, 0.0, 0.0)
    assert [item for item, _ in fresh.rank(HISTORY, 5)] == [item for item, _ in fresh.rank(HISTORY[::-1], 5)]


def test_it_ranks_a_catalogue_that_it_never_saw(recommender: Recommender) -> None:
    strange = make_catalogue(12, seed=77)
    ranked = recommender.rank(["i2", "i7"], 5, catalogue=strange)
    assert len(ranked) == 5 and not {"i2", "i7"} & {item for item, _ in ranked}
    table = pd.DataFrame({Columns.ITEM: strange.item_ids, Columns.TITLE: strange.texts})
    assert recommender.rank(["i2", "i7"], 5, catalogue=table) == ranked


def test_a_merchants_own_items_are_ranked_alone(recommender: Recommender) -> None:
    columns = [name for name in recommender.table.columns if name.startswith("merchant:")]
    table = recommender.table.assign(**{"merchant:half": np.arange(30) < 15})
    half = Recommender(recommender.encoder, recommender.arrays, recommender.settings, table)
    assert {item for item, _ in half.rank(["i3", "i20"], 1000, merchant="half")} == {f"i{i}" for i in range(15)} - {"i3"}
    if columns:
        assert sorted(columns) == ["merchant:m0", "merchant:m1", "merchant:m2"]
        assert len(recommender.rank(HISTORY, 1000, merchant="m1")) == 27


def test_saved_and_loaded_it_ranks_the_same(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "copy")
    copy = Recommender.load(tmp_path / "copy", device="cpu")
    assert copy.rank(HISTORY, 30) == recommender.rank(HISTORY, 30)
    assert copy.rank([], 30, query="lamp") == recommender.rank([], 30, query="lamp")


def test_a_folder_without_an_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained adapter"):
        Recommender.load(tmp_path)


def test_the_ranking_is_the_one_that_was_evaluated(run: RunFolder, federation: Path, recommender: Recommender) -> None:
    """For a user with one item a basket, which is what `rank` takes a history for."""
    central, state = load_central(federation), run.load()
    assert state is not None
    scoring = Scoring(**run.metrics()[-1]["scoring"])
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(4), unit="D")
    events = pd.DataFrame({Columns.USER: "somebody", Columns.ITEM: [*HISTORY, "i8"], Columns.TIME: days})
    name, positions = central.groups[0].name, central.groups[0].positions
    somebody = CentralData(central.catalogue, (CentralGroup(name, positions, Histories.from_table(events, central.catalogue)),))
    (group,) = EvaluationSet.build(somebody, run.config.history, 1e-12, 0)[0].groups
    history, candidate = CentralEvaluator(central, run.config, load_encoder_for(run.config)).tables(state.public, state.trained)
    counts, floor = state.public["prior.counts"], float(state.public["prior.floor"][0])
    scores = scoring.temperature * user_vectors(group, history, scoring.decay)[0] @ candidate[group.positions].T
    scores = scores + scoring.prior_weight * log_prior(counts[group.positions], floor)
    evaluated = {central.catalogue.item_ids[position]: float(s) for position, s in zip(group.positions, scores, strict=True)}
    merchant = name if len(central.groups) > 1 else None
    ranked = recommender.rank(HISTORY, 1000, merchant=merchant)
    assert len(ranked) == len(group.positions) - len(HISTORY)
    assert dict(ranked) == pytest.approx({item: evaluated[item] for item, _ in ranked}, abs=1e-4)
