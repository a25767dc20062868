"""The trained recommender: loading, ranking, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.data import CentralData, CentralGroup, Columns, Histories, load_central
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet
from fedrec.model import Scoring, TextEncoder, log_prior, ranking
from fedrec.model.adapter import CENTRE
from fedrec.model.towers import user_vectors
from fedrec.recommender import Recommender
from server.evaluation import CentralEvaluator
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.run import simulate

from .conftest import make_catalogue
from .helpers import PLANNED, make_federation, settings_of

HISTORY = ["i3", "i11", "i5"]


@pytest.fixture(scope="module", params=[False, True], ids=["shared catalogue", "own catalogues"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation"), own_catalogues=request.param)


@pytest.fixture(scope="module")
def run(federation: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulate(federation, settings_of(tiny_bert_folder, rounds=2, **PLANNED), tmp_path_factory.mktemp("run") / "a")


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
    def ranked(decay: float, history: list[str]) -> list[str]:
        settings = {**recommender.settings, "scoring": {"temperature": 3.0, "decay": decay, "prior_weight": 0.0}}
        fresh = Recommender(recommender.encoder, recommender.arrays, settings, recommender.table)
        return [item for item, _ in fresh.rank(history, 5)]

    assert ranked(2.0, HISTORY) != ranked(2.0, HISTORY[::-1])
    assert ranked(0.0, HISTORY) == ranked(0.0, HISTORY[::-1])


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


HISTORIES = [HISTORY, ["i0"], [f"i{i}" for i in range(29)], ["i5", "i5", "i4"], ["i8", "i2"]]


def test_many_histories_are_ranked_as_one_after_the_other(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [recommender.rank(history, 7) for history in HISTORIES]
    for rows in (100, 2, 1):
        monkeypatch.setattr(ranking, "FLOATS", 1)
        monkeypatch.setattr(ranking, "ROWS", rows)
        many = recommender.rank_many(HISTORIES, 7)
        assert [[item for item, _ in row] for row in many] == [[item for item, _ in row] for row in single]
        for row, alone in zip(many, single, strict=True):
            assert dict(row) == pytest.approx(dict(alone), abs=1e-5)
    assert [len(row) for row in single] == [7, 7, 1, 7, 7]
    assert recommender.rank_many([]) == []


def test_many_histories_of_a_merchant_and_bad_ones(recommender: Recommender) -> None:
    table = recommender.table.assign(**{"merchant:odd": np.arange(30) % 2 == 1})
    odd = Recommender(recommender.encoder, recommender.arrays, recommender.settings, table)
    for history, ranked in zip(HISTORIES, odd.rank_many(HISTORIES, 30, "odd"), strict=True):
        assert {item for item, _ in ranked} == {f"i{i}" for i in range(1, 30, 2)} - set(history)
        assert [item for item, _ in ranked] == [item for item, _ in odd.rank(history, 30, merchant="odd")]
    with pytest.raises(InputError, match="'i999' is not in the catalogue"):
        recommender.rank_many([HISTORY, ["i999"]])
    with pytest.raises(InputError, match=r"empty history.*") as raised:
        recommender.rank_many([HISTORY, []])
    assert "histories[1]" in str(raised.value)


def test_items_are_embedded_once(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender.rank(HISTORY)
    before = recommender.rank(HISTORY, 30)
    monkeypatch.setattr(recommender.encoder, "embed", None)
    assert recommender.rank(HISTORY, 30) == before


def test_with_an_index_it_ranks_the_same_and_never_the_history(
    run: RunFolder, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On so few items the index reads everything."""
    recommender.save(tmp_path / "copy")
    for again in range(2):  # built and written, then read
        with monkeypatch.context() as patched:
            if again:
                patched.setattr(TextEncoder, "embed", None)
            indexed = Recommender.load(tmp_path / "copy", device="cpu", index=True)
        assert indexed.index is not None and (tmp_path / "copy" / "items.faiss").is_file()
        assert indexed.recall(HISTORIES, 10) == 1
        for history, ranked, exact in zip(
            HISTORIES, indexed.rank_many(HISTORIES, 9), recommender.rank_many(HISTORIES, 9), strict=True
        ):
            assert [item for item, _ in ranked] == [item for item, _ in exact]
            assert dict(ranked) == pytest.approx(dict(exact), abs=1e-5)
            assert not {item for item, _ in ranked} & set(history)
        assert [item for item, _ in indexed.rank([], 5, query="lamp")] == [i for i, _ in recommender.rank([], 5, query="lamp")]
    with pytest.raises(InputError, match="index=True"):
        recommender.recall(HISTORIES)


def test_an_index_of_another_adapter_is_built_again(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save(tmp_path / "copy")
    Recommender.load(tmp_path / "copy", device="cpu", index=True)
    first = (tmp_path / "copy" / "items.faiss").read_bytes()
    table = recommender.table.assign(popularity=np.arange(30.0))
    Recommender(recommender.encoder, recommender.arrays, recommender.settings, table).save(tmp_path / "copy")
    again = Recommender.load(tmp_path / "copy", device="cpu", index=True)
    assert (tmp_path / "copy" / "items.faiss").read_bytes() != first
    assert again.rank(HISTORY, 5) != recommender.rank(HISTORY, 5)
    arrays = {**recommender.arrays, CENTRE: recommender.arrays[CENTRE] + 1}
    moved = Recommender(recommender.encoder, arrays, recommender.settings, table)
    moved.save(tmp_path / "copy")
    found = Recommender.load(tmp_path / "copy", device="cpu", index=True)
    assert [item for item, _ in found.rank(HISTORY, 5)] == [item for item, _ in moved.rank(HISTORY, 5)]
    assert dict(found.rank(HISTORY, 5)) == pytest.approx(dict(moved.rank(HISTORY, 5)), abs=1e-5)


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
    (user,) = user_vectors(history, group.items, group.ages, group.valid, scoring.decay)
    scores = scoring.temperature * user @ candidate[group.positions].T
    scores = scores + scoring.prior_weight * log_prior(counts[group.positions], floor)
    evaluated = {central.catalogue.item_ids[position]: float(s) for position, s in zip(group.positions, scores, strict=True)}
    merchant = name if len(central.groups) > 1 else None
    ranked = recommender.rank(HISTORY, 1000, merchant=merchant)
    assert len(ranked) == len(group.positions) - len(HISTORY)
    assert dict(ranked) == pytest.approx({item: evaluated[item] for item, _ in ranked}, abs=1e-4)
