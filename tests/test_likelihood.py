"""The scoring that merchants train under: the one that makes what public users bought most likely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrec.config import RunConfig
from fedrec.data import load_central
from fedrec.evaluation import EvaluationSet, Group
from fedrec.evaluation.likelihood import FEWEST, TEMPERATURES, fit_scoring, mean_loss
from fedrec.model import Scoring, init_base, init_trained, load_encoder, log_prior, ranking
from fedrec.model.towers import user_vectors
from server.evaluation import COUNTS, FLOOR, KEYS, CentralEvaluator
from server.judging import kept
from simulations.reference import Pooled, reference_rounds
from simulations.run import simulate

from .helpers import make_federation, recorded, settings_of

ITEMS, HIDDEN, LENGTH = 60, 12, 4
START = Scoring(3.0, 0.1, 1.0)


def tables(seed: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.random.default_rng(seed).normal(size=(2, ITEMS, HIDDEN)).astype(np.float32)
    history, candidate = found / np.linalg.norm(found, axis=2, keepdims=True)
    return history, candidate


def counts() -> np.ndarray:
    return np.geomspace(1, 300, ITEMS).astype(np.float32)


def shoppers(users: int, scoring: Scoring, seed: int = 0) -> EvaluationSet:
    """Users who buy what the softmax under `scoring` says."""
    rng = np.random.default_rng(seed)
    history, candidate = tables(seed)
    items = np.stack([rng.permutation(ITEMS)[:LENGTH] for _ in range(users)])
    ages, valid = np.broadcast_to(np.arange(LENGTH)[::-1], items.shape), np.ones(items.shape, dtype=bool)
    cosines = user_vectors(history, items, ages, valid, scoring.decay) @ candidate.T
    scores = scoring.temperature * cosines + scoring.prior_weight * log_prior(counts(), 1.0)
    np.put_along_axis(scores, items, -np.inf, axis=1)
    bought = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    rows = np.arange(users)
    masked = np.column_stack([np.repeat(rows, LENGTH), np.sort(items, axis=1).ravel()])
    group = Group("all", np.arange(ITEMS), items, ages, valid, masked, np.column_stack([rows, bought]))
    return EvaluationSet((group,), 0)


def fitted(dataset: EvaluationSet, start: Scoring = START, seed: int = 0) -> Scoring:
    return fit_scoring(dataset, *tables(seed), counts(), 1.0, start)


@pytest.mark.parametrize("true", [Scoring(6.0, 0.5, 0.7), Scoring(3.0, 0.0, 1.2), Scoring(12.0, 1.0, 0.3)])
def test_it_finds_what_the_shoppers_were_drawn_with(true: Scoring) -> None:
    found = fitted(shoppers(8_000, true))
    assert found.temperature == pytest.approx(true.temperature, rel=0.08)
    assert found.prior_weight == pytest.approx(true.prior_weight, abs=0.06)
    assert abs(found.decay - true.decay) <= 0.2


def test_it_is_the_best_of_a_grid() -> None:
    """The likelihood by hand, user by user, of every neighbour."""
    dataset, (history, candidate) = shoppers(300, Scoring(6.0, 0.5, 0.7)), tables(0)
    group, found = dataset.groups[0], fitted(dataset)

    def by_hand(scoring: Scoring) -> float:
        total = 0.0
        for user in range(len(group.items)):
            age = group.ages[user].astype(float)
            vector = (np.exp(-scoring.decay * age)[:, None] * history[group.items[user]]).sum(0)
            score = scoring.temperature * candidate @ (vector / np.linalg.norm(vector))
            score = score + scoring.prior_weight * np.log(counts() / counts().sum())
            free = np.setdiff1d(np.arange(ITEMS), group.items[user])
            total += score[group.relevant[user, 1]] - np.log(np.exp(score[free]).sum())
        return total / len(group.items)

    best = by_hand(found)
    for other in (
        replace(found, temperature=found.temperature * 1.1), replace(found, temperature=found.temperature / 1.1),
        replace(found, prior_weight=found.prior_weight + 0.1), replace(found, prior_weight=found.prior_weight - 0.1),
        replace(found, decay=0.0), START,
    ):  # fmt: skip
        assert by_hand(other) < best + 1e-6


def test_too_few_users_and_users_who_say_nothing_move_it_within_bounds() -> None:
    assert fitted(shoppers(FEWEST - 1, Scoring(9.0, 0.5, 0.7))) == START
    assert fitted(EvaluationSet((), 0)) == START
    found = fitted(shoppers(500, Scoring(0.0, 0.0, 0.0)))
    assert found.temperature == TEMPERATURES[0] and found.prior_weight < 0.2


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = shoppers(400, Scoring(6.0, 0.5, 0.7))
    whole = fitted(dataset)
    monkeypatch.setattr(ranking, "FLOATS", 50 * ITEMS)
    monkeypatch.setattr(ranking, "ROWS", 8)
    assert sum(1 for _ in dataset.groups[0].blocks()) > 1
    parts = fitted(dataset)
    assert parts.decay == whole.decay and parts.temperature == pytest.approx(whole.temperature, rel=1e-3)


@pytest.mark.parametrize("calibrate", [True, False])
def test_merchants_train_under_it(tmp_path: Path, tiny_bert_folder: Path, calibrate: bool) -> None:
    federation = make_federation(tmp_path / "federation", users=320)
    with recorded() as messages:
        run = simulate(federation, settings_of(tiny_bert_folder, rounds=2, calibrate=calibrate), tmp_path / "run")
    state, under = run.load(), [one["trains_under"] for one in run.metrics()]
    assert state is not None and under[-1] == state.scoring.by_name()
    assert (under[0] == START.by_name()) is not calibrate
    asked = [message.content.config_records["task"] for message, _ in messages]
    sent = [one for one in asked if "temperature" in one]
    # Each round under what was fitted after the one before; the decay stays, and with it what merchants have pooled.
    assert {one["temperature"] for one in sent} == {one["temperature"] for one in under[:-1]}
    assert {one["prior_weight"] for one in sent} == {one["prior_weight"] for one in under[:-1]}
    assert {one["decay"] for one in sent} == {one["decay"] for one in under} and len({one["decay"] for one in under}) == 1
    assert (len({tuple(one.values()) for one in under}) > 1) is calibrate


def test_a_run_never_ends_worse_than_its_start(tiny_bert_folder: Path, tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "federation", users=400)
    central, encoder = load_central(federation), load_encoder(str(tiny_bert_folder), 0, 1, 48, "cpu")
    config = RunConfig(calibration_share=0.9, encoder_layers=0, rounds=15, rank=4, server_learning_rate=0.05)
    evaluator = CentralEvaluator(central, config, encoder)
    counts, keys = np.ones(len(central.catalogue), np.float32), central.catalogue.keys
    base = init_base(encoder, encoder.states(central.catalogue), True, 4, "principal", 0)
    public = {**base, COUNTS: counts, KEYS: keys, FLOOR: np.ones(1, np.float32)}
    start = init_trained(encoder, True, 4)

    *_, (_, good) = reference_rounds(config, Pooled.read(federation), encoder, public, start, START)
    share, best = kept(evaluator, public, start, good, START)
    assert share > 0 and all(np.array_equal(best[name], np.float32(share) * good[name]) for name in good)
    bad = {name: np.float32(-0.25) * value for name, value in good.items()}
    share, part = kept(evaluator, public, start, bad, START)
    assert share == 0 and not any(value.any() for value in part.values())
    far = {name: np.float32(-4) * value for name, value in good.items()}
    share, part = kept(evaluator, public, best, far, START)  # back to the start that it was given
    assert share == 0 and all(np.array_equal(part[name], value) for name, value in best.items())
    few = CentralEvaluator(central, config.model_copy(update={"calibration_share": 0.2}), encoder)
    assert few.judging.users < FEWEST and kept(few, public, start, bad, START) == (1.0, bad)  # nobody to judge


def test_who_judges_has_fitted_nothing_at_any_merchant(tmp_path: Path, tiny_bert_folder: Path) -> None:
    """The same people shop at two brands, each with a catalogue of its own."""
    central = load_central(make_federation(tmp_path / "federation", users=400))
    (group,) = central.groups
    twice = replace(central, groups=(replace(group, name="a"), replace(group, name="b")))
    encoder = load_encoder(str(tiny_bert_folder), 0, 1, 48, "cpu")
    evaluator = CentralEvaluator(twice, RunConfig(calibration_share=0.5, encoder_layers=0), encoder)

    def people(dataset: EvaluationSet) -> list[set[bytes]]:
        return [{row.tobytes() for row in one.items} for one in dataset.groups]

    fitting, judging = people(evaluator.fitting), people(evaluator.judging)
    assert fitting[0] == fitting[1] and judging[0] == judging[1] and not fitting[0] & judging[1]
    assert fitting[0] | judging[0] == people(evaluator.calibration)[0] and len(judging[0]) > 10


def test_the_mean_loss_is_that_of_all_users() -> None:
    dataset = shoppers(90, START)
    (group,) = dataset.groups
    first, rest = (EvaluationSet((group.part(rows),), 0) for rows in (slice(0, 60), slice(60, 90)))
    parts = [mean_loss(one, *tables(0), counts(), 1.0, START) for one in (first, rest)]
    assert (60 * parts[0] + 30 * parts[1]) / 90 == pytest.approx(mean_loss(dataset, *tables(0), counts(), 1.0, START), rel=1e-5)
