"""Rows of the quality benchmark against other ways to the same figure, on small federations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import trained
from benchmarks.quality.central import CEILING, central_rows, sequential_rows
from benchmarks.quality.datasets import DataSet
from benchmarks.quality.table import write_table_of
from fedrec.config import RunConfig
from fedrec.data import load_central
from fedrec.evaluation import EvaluationSet, evaluate_popularity
from fedrec.model import Arrays, Scoring
from fedrec.recommender.contest import FEDERATED, ROWS
from server.evaluation import COUNTS, FLOOR, KEYS
from server.start import first_state, load_encoder_for
from simulations.reference import Pooled, plain_counts, reference_rounds

from .helpers import make_federation, settings_of
from .test_at_merchants import KINDS, federation_of


@pytest.mark.parametrize("kind", KINDS)
def test_central_rows_have_the_users_and_catalogues_of_the_protocol(kind: str, tmp_path: Path, tiny_bert_folder: Path) -> None:
    pytest.importorskip("implicit")
    federation, config = federation_of(kind, tmp_path), settings_of(tiny_bert_folder)
    found = {row["name"]: row for row in central_rows(federation, config)["rows"]}
    central = load_central(federation)
    users, _ = EvaluationSet.build(central, config.history, config.calibration_share, config.seed)
    popular = evaluate_popularity(users, plain_counts(Pooled.read(federation), central.catalogue.keys), config.top_k)
    assert found["popularity"]["ndcg@10"] == pytest.approx(popular.ndcg.mean())
    assert {row["users"] for row in found.values()} == {users.users}
    assert len(found) == 6 and CEILING in found
    # Users walk through the catalogue in small steps: who sees what follows what is far above the popularity list.
    assert found["EASE"]["ndcg@10"] > found["popularity"]["ndcg@10"] + 0.1


@pytest.mark.slow
def test_the_sequential_model_learns_what_follows_what(tmp_path: Path, tiny_bert_folder: Path) -> None:
    pytest.importorskip("cornac")
    federation, config = make_federation(tmp_path, users=120), settings_of(tiny_bert_folder)
    (row,) = sequential_rows(federation, config)["rows"]
    central = load_central(federation)
    users, _ = EvaluationSet.build(central, config.history, config.calibration_share, config.seed)
    popular = evaluate_popularity(users, plain_counts(Pooled.read(federation), central.catalogue.keys), config.top_k)
    assert row["users"] == users.users and row["ndcg@10"] > popular.ndcg.mean() + 0.1


def test_clipping_at_a_norm_that_nobody_has_is_the_training_without(tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = make_federation(tmp_path)
    config = settings_of(tiny_bert_folder, rounds=2, encoder_rounds=0, clip_norm=1e6)
    central, encoder, merchants = load_central(federation), load_encoder_for(config), Pooled.read(federation)
    state, keys = first_state(config, central, encoder), central.catalogue.keys
    public = {**state.public, KEYS: keys, COUNTS: plain_counts(merchants, keys), FLOOR: np.ones(1, dtype=np.float32)}
    under = Scoring(2.0, 0.3, 0.7)

    def sharper(_: Arrays, scoring: Scoring) -> Scoring:
        return replace(scoring, temperature=1.2 * scoring.temperature)

    ways = [
        list(rounds(config, merchants, encoder, public, state.trained, under, sharper))
        for rounds in (trained._clipped_rounds, reference_rounds)
    ]
    clipped, plain = (one[-1][1] for one in ways)
    for name, value in plain.items():
        assert np.linalg.norm(clipped[name] - value) <= 1e-3 * np.linalg.norm(value), name
    tight = config.model_copy(update={"clip_norm": 1e-3, "server_optimizer": "average"})
    (_, first), *_ = trained._clipped_rounds(tight, merchants, encoder, public, state.trained, under, sharper)
    assert 0 < max(np.linalg.norm(first[name] - state.trained[name]) for name in first) < 2e-3


def test_the_smallest_merchant_says_how_many_of_its_users_a_step_on_the_encoder_needs(tmp_path: Path) -> None:
    federation, config = make_federation(tmp_path), RunConfig(encoder_sample_rate=0.1, min_lot=5)
    least = min(one.policy.population for one in Pooled.read(federation))
    rate = trained.for_all(config, federation).encoder_sample_rate
    assert 5 <= rate * least < 5.1
    assert trained.for_all(config.model_copy(update={"encoder_sample_rate": 0.9}), federation).encoder_sample_rate == 0.9
    assert trained.for_all(config.model_copy(update={"min_lot": 1e3}), federation).encoder_sample_rate == 1.0


@pytest.mark.parametrize("own", [False, True])
def test_public_users_are_those_who_calibrate_and_are_measured_nowhere(own: bool, tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation, config = federation_of("own" if own else "shared", tmp_path), settings_of(tiny_bert_folder)
    central = load_central(federation)
    shops = list(trained._public_users(central, config))
    _, choosing = EvaluationSet.build(central, config.history, config.calibration_share, config.seed)
    assert sum(len(shop.data.histories) for shop in shops) == choosing.users + choosing.left_out > 0
    assert [shop.name for shop in shops] == [group.name for group in choosing.groups]
    assert len(shops) == (3 if own else 1)
    for shop, group in zip(shops, central.groups, strict=True):
        names = list(group.histories.user_ids)
        for number, name in enumerate(shop.data.histories.user_ids):
            items, _ = shop.data.histories.of(number)
            bought = [shop.data.catalogue.item_ids[item] for item in items]
            there, _ = group.histories.of(names.index(name))
            assert bought == [central.catalogue.item_ids[item] for item in there]


@pytest.mark.slow
@pytest.mark.parametrize("kind", trained.PLAIN)
def test_a_plain_piece_has_every_row_and_the_private_one_its_epsilon(kind: str, tmp_path: Path, tiny_bert_folder: Path) -> None:
    federation = make_federation(tmp_path)
    config = settings_of(tiny_bert_folder, rounds=2, encoder_rounds=1)
    plain, private = trained.plain(federation, config, kind), trained.federated(federation, config, tmp_path / "run")
    for found in (plain, private):
        assert [row["name"] for row in found["rows"]] == list(ROWS)
    assert plain["epsilon"] is None and 0 < private["epsilon"] <= 8.5
    # What needs nothing of the federation is the same in both.
    assert plain["rows"][:4] == private["rows"][:4] and plain["rows"][-1] != private["rows"][-1]
    assert not (tmp_path / "run").exists()


def row(name: str, ndcg: float, worst: Any) -> dict[str, Any]:
    return {
        "name": name, "users": 90.0, "ndcg@10": ndcg, "ndcg@10_low": ndcg - 0.01, "ndcg@10_high": ndcg + 0.02, "hr@10": 0.25,
        "hr@10_low": 0.2, "hr@10_high": 0.3, "coverage@10": 0.125, "novelty@10": 6.25, "popular@10": 0.5, "worst": worst,
    }  # fmt: skip


def test_the_table_shows_means_over_seeds_the_widest_interval_and_its_command(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.0), (1, 0.02)):
        worst = {"name": f"m{seed}", "users": 40, "ndcg@10": 0.03 + shift}
        rows = [row(name, 0.1 + shift, worst if name == FEDERATED else None) for name in ROWS]
        gain = {"mean": 0.005 - shift, "low": -0.02, "high": 0.01 + shift}
        (tmp_path / f"office-local-8-{seed}.json").write_text(json.dumps({"rows": rows, "gain": gain, "epsilon": 7.9 + shift}))
    (tmp_path / "office-no-noise-0.json").write_text(json.dumps({"rows": rows, "gain": gain, "epsilon": None}))
    (tmp_path / "office-central-0.json").write_text(json.dumps({"rows": [row("EASE", 0.3, None)]}))
    write_table_of(tmp_path, [DataSet("office", tmp_path)])
    text = (tmp_path / "quality.md").read_text()
    assert "| EASE | .3000 [.2900, .3200] | .2500 [.2000, .3000] | 0 |" in text
    mean = ".1100 [.0900, .1400]"
    gains = "+.0050, -.0150 [-.0200, .0300]"
    breadth = ".0300 (m0, 40) | 12% | 6.2 | 50%"
    assert f"| local-8 | {mean} | {mean} | {mean} | {gains} | {breadth} | 7.920 | 0, 1 |" in text
    assert f"| {ROWS[0]} | {mean} | - | 12% | 6.2 | 50% | 0, 1 |" in text
    assert "| no privacy | 0 |" in text and text.index("local-8 |") < text.index("no-noise |")
    command = next(line for line in text.splitlines() if "python -m" in line)
    assert command.startswith("    python -m benchmarks.quality OUT office=FOLDER --seeds 0 1 --only ")
    assert set(command.split("--only ")[1].split()) == {"'office-local-8-[0-9]*'", "office-no-noise-0", "office-central-0"}
    found = json.loads((tmp_path / "quality.json").read_text())
    assert set(found["office"]) == {"central", "local-8", "no-noise"} and found["office"]["local-8"]["1"]["epsilon"] == 7.92
