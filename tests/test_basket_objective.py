"""The objective `basket`: its records, its central evaluation, and a run from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec import wire
from fedrec.data import CentralGroup, Histories, load_central
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet, hidden_items
from fedrec.evaluation.protocol import scored
from fedrec.model.adapter import HEAD_B
from fedrec.model.versions import Versions
from fedrec.objectives import OBJECTIVES, Asked, Examples
from fedrec.recommender import Recommender
from fedrec.report.run_report import write_report
from server.evaluation import COUNTS, FLOOR
from server.evaluators import evaluator_of
from server.start import load_encoder_for
from simulations.checks import check_federation
from simulations.run import finish, simulate

from .conftest import make_catalogue, make_histories
from .helpers import ledger_rounds, make_federation, recorded, settings_of

ITEMS = 14
BASKET = OBJECTIVES["basket"]


def histories_of(users: int = 40, looked_at: bool = True) -> Histories:
    histories = make_histories(users, make_catalogue(ITEMS), baskets=5)
    target = np.random.default_rng(0).random(len(histories.items)) < 0.8
    return replace(histories, target=target) if looked_at else histories


def asked(history: int = 50, positions: int = 2) -> Asked:
    return Asked(history, positions, 0.3, "user", 9, merge=False)


def part(examples: Examples, name: str, record: int, position: int) -> list[int]:
    rows = getattr(examples, name)
    return sorted(rows[(rows[:, 0] == record) & (rows[:, 1] == position)][:, 2].tolist())


@pytest.mark.parametrize(("history", "positions"), [(50, 2), (1, 3), (2, 4), (50, 1)])
def test_a_position_is_one_basket_and_nothing_else(history: int, positions: int) -> None:
    """Against a plain count: half is pooled with equal weights, the rest is asked, the half alone is masked."""
    histories = histories_of()
    found, seen = BASKET.records(histories, asked(history, positions)).padded(), 0
    assert found.length == 2 * history
    for user in range(len(histories)):
        items, baskets = histories.targets().of(user)
        whole = [sorted(items[baskets == one].tolist()) for one in np.unique(baskets) if (baskets == one).sum() > 1]
        for position, basket in enumerate(whole[::-1][: min(positions, 2 * history)]):
            held, wanted = part(found, "seen", user, position), part(found, "target", user, position)
            assert sorted(held + wanted) == basket
            assert len(held) == len(basket) // 2
            weights = found.weights[user, position]
            pooled = found.items[user][weights > 0]
            assert set(pooled.tolist()) <= set(held)
            assert len(pooled) == min(len(held), history, max(1, 2 * history // positions))
            np.testing.assert_allclose(weights[weights > 0], 1 / len(pooled), rtol=1e-6)
            seen += len(wanted)
        of_user = found.target[:, 0] == user
        assert found.target_weight[of_user].sum() == pytest.approx(1.0 if whole else 0.0)
    assert seen == len(found.target) > 20


def test_other_users_change_no_users_record() -> None:
    histories = histories_of()
    everyone = BASKET.records(histories, asked())
    for user in range(0, len(histories), 5):
        only = np.array([user])
        alone, beside = BASKET.records(histories.take(only), asked()).padded(), everyone.take(only).padded()
        for name in ("items", "weights", "target", "target_weight", "seen"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name))


def test_of_the_same_two_items_either_is_asked() -> None:
    """Or the heads would learn what goes with a kettle, and never what a kettle goes with."""
    users = 200
    offsets, items = np.arange(0, 2 * users + 1, 2), np.tile([3, 7], users)
    histories = Histories(tuple(f"u{user}" for user in range(users)), offsets, items, np.zeros(2 * users, dtype=np.int64))
    wanted = BASKET.records(histories, asked()).padded().target[:, 2]
    assert 70 < (wanted == 3).sum() < 130


def test_one_item_of_the_last_basket_is_hidden() -> None:
    """Against a loop: the last basket of two, all of its other items pooled and masked, and everybody else left out."""
    histories, users = histories_of(60), np.arange(5, 60)
    positions = pd.RangeIndex(ITEMS)
    group, left_out = hidden_items(CentralGroup("m0", positions, histories), users, 50)
    row = 0
    for user in users:
        items, baskets = histories.targets().of(user)
        joint = [items[baskets == one] for one in np.unique(baskets) if (baskets == one).sum() > 1]
        if not joint:
            continue
        rest, (hidden,) = group.masked[group.masked[:, 0] == row, 1], group.relevant[group.relevant[:, 0] == row, 1]
        assert sorted([*rest, hidden]) == sorted(joint[-1])
        assert sorted(group.items[row][group.valid[row]]) == sorted(rest)
        assert not group.ages.any()
        row += 1
    assert row == len(group.items) == len(users) - left_out > 20
    short, _ = hidden_items(CentralGroup("m0", positions, histories), users, 1)
    assert short.items.shape == (row, 1)
    np.testing.assert_array_equal(short.masked, group.masked)


def without_baskets(federation: Path) -> None:
    """Everybody buys one thing at a time."""
    for path in federation.rglob("events.parquet"):
        events = pd.read_parquet(path)
        events["timestamp"] = events["timestamp"] + pd.to_timedelta(np.arange(len(events)), unit="s")
        events.to_parquet(path, index=False)


def test_a_federation_without_baskets_of_two_is_refused(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = make_federation(tmp_path)
    config = settings_of(tiny_bert_folder, objective="basket")
    check_federation(federation, config)
    without_baskets(federation)
    with pytest.raises(InputError, match="no user has a basket of two items"):
        check_federation(federation, config)


@pytest.mark.slow
@pytest.mark.parametrize("trust", ["local", "secure-aggregation"])
def test_a_run_from_end_to_end(tmp_path: Path, tiny_bert_folder: Path, trust: str) -> None:
    federation = make_federation(tmp_path, merchants=4, policy={"trust": trust})
    config = settings_of(tiny_bert_folder, objective="basket", trust=trust)
    with recorded() as crossed:
        run = simulate(federation, config, tmp_path / "run")
    if trust == "local":
        sent = [set(wire.decode_reply(reply).arrays) for _, reply in crossed if reply.content["statement"]["status"] == "ok"]
        assert {frozenset(one) for one in sent} >= {frozenset(HEAD_B.values()), frozenset({wire.HISTOGRAM})}
    assert all(rounds == [0, 1, 2, 3] for rounds in ledger_rounds(run).values())
    results, lines = finish(run, with_reference=trust == "local"), run.metrics()
    assert results["objective"] == "basket" and results["metrics"] == ["ndcg@10", "hr@10", "recall@10", "mrr"]
    html = write_report(run.path, run.config, lines, results).read_text(encoding="utf-8")
    assert "How well it completes baskets" in html and "How well it ranks" not in html

    evaluator = evaluator_of(run.config, load_central(federation), load_encoder_for(run.config))
    assert {row["users"] for row in results["rows"]} == {float(evaluator.users.users)}
    recommender = Recommender.load(run.path)
    state, scoring = run.load(), lines[-1]["scoring"]
    tables, ids = evaluator.tables(state.public, state.trained), load_central(federation).catalogue.item_ids
    public, numbers = (state.public[COUNTS], float(state.public[FLOOR][0])), (scoring["temperature"], scoring["decay"])
    group = evaluator.users.groups[0].part(slice(0, 5))
    ((_, _, scores),) = scored(EvaluationSet((group,), 0), *tables, *public, *numbers, (scoring["prior_weight"],))
    for row in range(5):  # what the product answers is what was measured
        rest = [ids[item] for item in group.items[row][group.valid[row]]]
        answer = recommender.basket(rest, k=4)
        assert answer.source == "model" and len(answer.items) and not {name for name, _ in answer.items} & set(rest)
        for name, score in answer.items:
            assert score == pytest.approx(scores[row, ids.index(name)], abs=1e-4)
    for refused in (lambda: recommender.recommend(rest), lambda: recommender.search("tea"), lambda: recommender.rank(rest)):
        with pytest.raises(InputError, match="does not rank"):
            refused()
    for merchant in ledger_rounds(run):
        home = {versions.objective: versions.names() for versions in Versions.of_each_objective(run.path / "models" / merchant)}
        assert (len(home["basket"]), home["next-item"]) == (1, [])
    assert json.loads((run.path / "adapter" / "fedrec.json").read_text())["objective"] == "basket"
