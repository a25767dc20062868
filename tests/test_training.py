"""Private steps: what moves, what is clipped, what a chunk or a broken record changes; and the examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedrec.aggregation import apply_update, weighted_mean
from fedrec.data import Catalogue, Histories, MerchantData
from fedrec.model import Arrays, Scoring, TextEncoder, init_base, init_trained, log_prior
from fedrec.model.adapter import norm, of_part
from fedrec.privacy import Gradients, PerRecord, Policy, SeededNoise, UserDPOptimizer
from fedrec.training import Examples, RoundTask, build_examples, train_round
from simulations.reference import Pooled, reference_rounds

from .conftest import make_catalogue, make_encoder, make_histories
from .helpers import settings_of, subset

PARTS = ("heads", "encoder")
TASK = RoundTask(
    run="r", round=1, part="heads", trunk="", encoder_layers=1, encoder_rank=2, max_tokens=16,
    local_steps=1, sample_rate=1.0, clip_norm=0.1, noise_multiplier=1e-12, delta=1e-5,
    unit="user", learning_rate=1.0, history=8, positions=2, negatives=9, encoder_history=6,
    temperature=3.0, decay=0.1, prior_weight=1.0, update_code="float32",
)  # fmt: skip


@dataclass(frozen=True)
class Shop:
    """One merchant with a model, ready for rounds."""

    encoder: TextEncoder
    catalogue: Catalogue
    histories: Histories
    base: Arrays
    trained: Arrays
    prior: np.ndarray

    def examples(self, task: RoundTask = TASK) -> Examples:
        return build_examples(self.histories, history=task.history, positions=task.positions, decay=task.decay, unit=task.unit)

    def round(self, task: RoundTask, examples: Examples | None = None, population: int | None = None, seed: int = 0) -> Arrays:
        return train_round(
            task,
            self.catalogue,
            self.examples(task) if examples is None else examples,
            encoder=self.encoder,
            base=self.base,
            trained=self.trained,
            prior=self.prior,
            population=population or len(self.histories),
            noise=SeededNoise(seed, "training"),
        )


@pytest.fixture(scope="module")
def shop(tiny_bert_folder: Path) -> Shop:
    encoder, catalogue = make_encoder(tiny_bert_folder), make_catalogue(25)
    base = init_base(encoder, encoder.states(catalogue), True, 4, "principal", 0)
    trained = init_trained(encoder, True, 4)
    prior = log_prior(np.random.default_rng(0).exponential(3, len(catalogue)), 0.5)
    return Shop(encoder, catalogue, make_histories(14, catalogue, 6), base, trained, prior)


@pytest.mark.parametrize("part", PARTS)
def test_a_step_moves_every_trained_matrix_and_nothing_else(shop: Shop, part: str) -> None:
    shop.encoder.load({**shop.base, **shop.trained})
    frozen = {name: value.clone() for name, value in shop.encoder.state_dict().items() if "lora_B" not in name}
    base = {name: value.copy() for name, value in shop.base.items()}
    start = {name: value.copy() for name, value in shop.trained.items()}
    update = shop.round(replace(TASK, part=part, noise_multiplier=1.0, local_steps=2))  # type: ignore[arg-type]
    assert update.keys() == of_part(shop.trained, part).keys() and update  # type: ignore[arg-type]
    for name, value in update.items():
        assert value.dtype == np.float32 and value.shape == shop.trained[name].shape
        assert np.count_nonzero(value) == value.size, f"{name} did not move everywhere"
    after = shop.encoder.state_dict()
    assert any("lora_A" in name for name in frozen) and any("embeddings" in name for name in frozen)
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(np.array_equal(base[name], shop.base[name]) for name in base)
    assert all(np.array_equal(start[name], shop.trained[name]) for name in start)


@pytest.mark.parametrize("unit", ["user", "event"])
def test_without_noise_and_clipping_heads_train_as_the_reference_does(shop: Shop, unit: str) -> None:
    config = settings_of(
        Path("unused"), rounds=3, encoder_rounds=0, local_steps=2, history=TASK.history, unit=unit, server_optimizer="momentum",
        server_learning_rate=0.5,
    )  # fmt: skip
    task = replace(TASK, local_steps=2, clip_norm=1e6, noise_multiplier=1e-16, unit=unit)  # type: ignore[arg-type]
    policy = Policy(epsilon=1, delta=1e-5, population=len(shop.histories))
    counts = {
        "prior.keys": shop.catalogue.keys,
        "prior.counts": np.exp(shop.prior) * 1000,
        "prior.floor": np.array([1e-3], np.float32),
    }
    merchant = Pooled("m0", MerchantData(shop.catalogue, shop.histories), policy)
    prior = log_prior(counts["prior.counts"], 1e-3)
    private, state, compared = shop.trained, {}, 0
    public, under = {**shop.base, **counts}, Scoring(config.temperature, config.decay, config.prior_weight)
    for number, plain in reference_rounds(config, [merchant], shop.encoder, public, shop.trained, under):
        update = replace_trained(shop, private, prior).round(replace(task, round=number))
        moved, state = apply_update("momentum", private, weighted_mean([update], [1.0]), state, 0.5, 0.0)
        private = {**private, **moved}
        for name in of_part(plain, "heads"):
            assert np.linalg.norm(private[name] - plain[name]) < 1e-4 * np.linalg.norm(plain[name])
            compared += 1
    assert compared == 6


def replace_trained(shop: Shop, trained: Arrays, prior: np.ndarray) -> Shop:
    return Shop(shop.encoder, shop.catalogue, shop.histories, shop.base, trained, prior)


@pytest.mark.parametrize("part", PARTS)
def test_one_user_never_moves_the_sum_by_more_than_the_clipping_norm(shop: Shop, part: str) -> None:
    everyone = shop.examples()
    user = int(everyone.target[0, 0])
    one = everyone.take(np.array([user]))
    huge = replace(one, target_weight=one.target_weight * 1e6)
    for examples in (one, huge):
        update = shop.round(replace(TASK, part=part, clip_norm=0.05), examples, population=1)  # type: ignore[arg-type]
        assert norm(update) <= 0.05 + 1e-5
    assert norm(update) == pytest.approx(0.05, rel=3e-3), "the huge user is clipped, not dropped"


def test_adding_one_user_moves_the_noiseless_step_by_no_more_than_the_clipping_norm(shop: Shop) -> None:
    """Neighbouring data sets: everybody, and everybody but one."""
    task, everyone = replace(TASK, clip_norm=0.02), shop.examples()
    full = shop.round(task, population=10)
    for user in range(len(shop.histories)):
        rest = everyone.take(np.delete(np.arange(len(everyone)), user))
        without = shop.round(task, rest, population=10)
        assert norm({name: full[name] - without[name] for name in full}) * 10 <= 0.02 + 1e-6


def sgd(value: float, noise: SeededNoise, **settings: float) -> tuple[nn.Parameter, UserDPOptimizer]:
    parameter = nn.Parameter(torch.full((3,), value))
    defaults = {"learning_rate": 1.0, "noise_multiplier": 1e-12, "clip_norm": 1.0, "expected_lot": 1.0}
    return parameter, UserDPOptimizer([parameter], noise, **{**defaults, **settings})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero(bad: float) -> None:
    parameter, optimizer = sgd(0.0, SeededNoise(0))
    optimizer.add(PerRecord([torch.tensor([[0.1, 0, 0], [bad, 0, 0.5], [0, 0.2, 0]])]))
    optimizer.finish_step()
    assert parameter.tolist() == pytest.approx([-0.1, -0.2, 0], abs=1e-6)


def test_a_record_whose_gradients_square_overflows_in_float32_is_clipped() -> None:
    parameter, optimizer = sgd(0.0, SeededNoise(0))
    optimizer.add(PerRecord([torch.tensor([[1e30, 0, 0], [0, 0.2, 0]])]))
    optimizer.finish_step()
    assert parameter.tolist() == pytest.approx([-1, -0.2, 0], abs=1e-6)


def test_a_record_is_clipped_over_all_parameters_together() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = UserDPOptimizer(
        parameters, SeededNoise(0), learning_rate=1.0, noise_multiplier=1e-12, clip_norm=1.0, expected_lot=2.0
    )
    optimizer.add(PerRecord([torch.tensor([[30.0], [0.3]]), torch.tensor([[40.0], [0.4]])]))
    optimizer.finish_step()
    assert [p.item() for p in parameters] == pytest.approx([-(0.6 + 0.3) / 2, -(0.8 + 0.4) / 2], rel=1e-4)


def test_an_empty_draw_still_adds_noise(shop: Shop) -> None:
    for part in PARTS:
        task = replace(TASK, part=part, sample_rate=1e-9, noise_multiplier=2.0)  # type: ignore[arg-type]
        update = shop.round(task, population=10**9)
        values = np.concatenate([value.ravel() for value in update.values()])
        assert np.count_nonzero(values) == values.size
        assert values.std() == pytest.approx(2.0 * task.clip_norm, rel=5 / np.sqrt(2 * values.size))


def test_the_sum_is_divided_by_the_declared_population_and_not_by_the_draw(shop: Shop) -> None:
    declared, twice = (shop.round(TASK, population=count) for count in (50, 100))
    for name in declared:
        assert declared[name] == pytest.approx(2 * twice[name], rel=1e-3, abs=1e-8)


def test_noise_that_reaches_nothing_is_an_error(shop: Shop) -> None:
    nobody = shop.examples().take(np.zeros(0, dtype=np.int64))
    with pytest.raises(RuntimeError, match="moved nothing"):
        shop.round(replace(TASK, noise_multiplier=1e-300), nobody)


@pytest.mark.parametrize("part", PARTS)
def test_a_lot_in_chunks_gives_the_same_step(shop: Shop, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(TASK, part=part, noise_multiplier=1e-9)  # type: ignore[arg-type]
    whole = shop.round(task)
    monkeypatch.setattr("fedrec.training.heads.FLOATS_IN_FLIGHT", 1)
    kept = len(shop.catalogue) + task.positions * (8 + shop.encoder.hidden)
    monkeypatch.setattr("fedrec.training.heads.FLOATS_KEPT", 3 * kept)
    monkeypatch.setattr("fedrec.model.shapes.Shapes.records_per_chunk", 3)
    seen: list[int] = []
    original = UserDPOptimizer.add

    def count(optimizer: UserDPOptimizer, gradients: Gradients) -> None:
        seen.append(len(gradients.squared_norms()))
        original(optimizer, gradients)

    monkeypatch.setattr(UserDPOptimizer, "add", count)
    chunked = shop.round(task)
    assert seen == [3, 3, 3, 3, 2]
    for name in whole:
        assert chunked[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-6)


# -- examples ---------------------------------------------------------------------------------------------------------------

random_histories = st.builds(
    lambda users, items, seed: make_histories(users, make_catalogue(items), 6, seed),
    st.integers(1, 9), st.integers(2, 12), st.integers(0, 10_000),
)  # fmt: skip
shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.floats(0, 1))


def build(histories: Histories, shape: tuple[int, int, float], unit: str = "user") -> Examples:
    history, positions, decay = shape
    return build_examples(histories, history=history, positions=positions, decay=decay, unit=unit)  # type: ignore[arg-type]


def naive(histories: Histories, user: int, shape: tuple[int, int, float]) -> list[tuple[dict[int, float], list[int], set[int]]]:
    """A user's positions, latest first: (pooling weight of each item, new items, items to mask)."""
    history, positions, decay = shape
    items, baskets = (values.tolist() for values in histories.of(user))
    numbers = [
        n
        for n in sorted(set(baskets), reverse=True)
        if n and {i for i, b in zip(items, baskets, strict=True) if b == n} - before(items, baskets, n)
    ]
    out = []
    window = [e for e in range(len(items)) if numbers and baskets[e] < numbers[0]][-2 * history :]
    for number in numbers[:positions]:
        events = [e for e in window if baskets[e] < number][-history:]
        if not events:  # nothing to predict from
            continue
        raw = [np.exp(-decay * (number - 1 - baskets[e])) for e in events]
        pooled: dict[int, float] = {}
        for event, value in zip(events, raw, strict=True):
            pooled[items[event]] = pooled.get(items[event], 0) + value / sum(raw)
        new = [i for i, b in zip(items, baskets, strict=True) if b == number and i not in before(items, baskets, number)]
        out.append((pooled, new, before(items, baskets, number)))
    return out


def before(items: list[int], baskets: list[int], number: int) -> set[int]:
    return {i for i, b in zip(items, baskets, strict=True) if b < number}


def at(rows: np.ndarray, record: int, place: int) -> list[int]:
    return sorted(rows[(rows[:, 0] == record) & (rows[:, 1] == place), 2].tolist())


@given(random_histories, shapes)
@settings(max_examples=60, deadline=None)
def test_examples_equal_the_definition(histories: Histories, shape: tuple[int, int, float]) -> None:
    examples = build(histories, shape)
    assert len(examples) == len(histories), "users with nothing to predict stay in the population"
    for user in range(len(histories)):
        expected = naive(histories, user, shape)
        assert examples.target[examples.target[:, 0] == user, 1].max(initial=-1) == len(expected) - 1
        for place, (pooled, new, seen) in enumerate(expected):
            weights = examples.weights[user, place]
            assert weights.sum() == pytest.approx(1.0, abs=1e-5)
            assert set(examples.items[user][weights > 0]) == set(pooled)
            for item, weight in pooled.items():
                assert weights[examples.items[user] == item].sum() == pytest.approx(weight, abs=1e-5)
            assert at(examples.target, user, place) == sorted(new)
            assert at(examples.seen, user, place) == sorted(seen)
        mine = examples.target_weight[examples.target[:, 0] == user]
        assert mine.sum() == pytest.approx(1.0 if expected else 0.0, abs=1e-5)


@given(random_histories, shapes)
@settings(max_examples=60, deadline=None)
def test_pooling_weights_sum_to_one_and_no_target_was_seen(histories: Histories, shape: tuple[int, int, float]) -> None:
    shape = (12, *shape[1:])  # with a shorter history a position can lie before all that is kept
    for unit in ("user", "event"):
        examples = build(histories, shape, unit)
        used = np.zeros(examples.weights.shape[:2], dtype=bool)
        used[examples.target[:, 0], examples.target[:, 1]] = True
        assert examples.weights.sum(-1) == pytest.approx(used.astype(float), abs=1e-5)
        assert not set(map(tuple, examples.target.tolist())) & set(map(tuple, examples.seen.tolist()))


@given(random_histories, shapes, st.data())
@settings(max_examples=60, deadline=None)
def test_taking_users_equals_building_from_them_alone(
    histories: Histories, shape: tuple[int, int, float], data: st.DataObject
) -> None:
    users = sorted(data.draw(st.sets(st.integers(0, len(histories) - 1))))
    taken, rebuilt = build(histories, shape).take(np.array(users, dtype=np.int64)), build(subset(histories, users), shape)
    for name in ("items", "weights", "target", "target_weight", "seen"):
        assert np.array_equal(getattr(taken, name), getattr(rebuilt, name)), name


@given(random_histories, shapes)
@settings(max_examples=40, deadline=None)
def test_with_unit_event_each_position_is_a_record(histories: Histories, shape: tuple[int, int, float]) -> None:
    by_user, by_event = build(histories, shape), build(histories, shape, "event")
    used = np.unique(by_user.target[:, :2], axis=0)
    assert by_event.weights.shape[:2] == (len(used), 1)
    for record, (user, place) in enumerate(used):
        assert np.array_equal(by_event.items[record], by_user.items[user])
        assert np.array_equal(by_event.weights[record, 0], by_user.weights[user, place])
        assert at(by_event.target, record, 0) == at(by_user.target, user, place)
        assert at(by_event.seen, record, 0) == at(by_user.seen, user, place)
        assert by_event.target_weight[by_event.target[:, 0] == record].sum() == pytest.approx(1)
