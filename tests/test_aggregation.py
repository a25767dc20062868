"""Averaging, checks of updates, server optimizers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fedrec.aggregation import (
    OPTIMIZERS,
    Updates,
    apply_update,
    combine,
    honest_norm,
    noise_in_combined,
    update_fault,
    weighted_mean,
)
from fedrec.config import Aggregation
from fedrec.model.adapter import Arrays

SHAPES = {"heads.history.B": (2, 3), "heads.candidate.B": (4,)}


def draw(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def copy(arrays: Arrays) -> Arrays:
    return {name: value.copy() for name, value in arrays.items()}


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_the_mean_is_weighted() -> None:
    one, two = draw(1), draw(2)
    mean = weighted_mean([one, two], [1, 3])
    for name in SHAPES:
        assert mean[name] == pytest.approx((one[name] + 3 * two[name]) / 4, rel=1e-6)
        assert mean[name].dtype == np.float32


def test_the_mean_of_the_products_is_the_product_of_the_mean_because_a_is_shared() -> None:
    """FFA-LoRA, Sun et al., ICLR 2024, section 3; with an A of each merchant's own it is not."""
    rng = np.random.default_rng(0)
    weights, shared = [1.0, 2.0, 5.0], rng.normal(size=(16, 4))
    updates = [{"B": rng.normal(size=(4, 16)).astype(np.float32)} for _ in weights]

    def of_products(a: list[np.ndarray]) -> np.ndarray:
        return np.average([one @ update["B"] for one, update in zip(a, updates, strict=True)], axis=0, weights=weights)

    mean = weighted_mean(updates, weights)["B"]
    assert shared @ mean == pytest.approx(of_products([shared] * 3), abs=1e-6)
    own = [rng.normal(size=(16, 4)) for _ in weights]
    assert np.abs(np.average(own, axis=0, weights=weights) @ mean - of_products(own)).max() > 0.1


def test_the_mean_of_one_update_is_the_update() -> None:
    assert same(weighted_mean([draw(1)], [7.0]), draw(1))


def test_the_mean_is_summed_in_double_precision() -> None:
    big, small = ({"x": np.array([value], np.float32)} for value in (1e8, 1.0))
    mean = weighted_mean([big, small, {"x": np.array([-1e8], np.float32)}], [1, 1, 1])
    assert mean["x"][0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("updates", "weights"), [([], []), ([{}], [0.0])])
def test_nothing_to_average_is_an_error(updates: list[Arrays], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one update"):
        weighted_mean(updates, weights)


def test_a_good_update_has_no_fault() -> None:
    assert update_fault(draw(1), draw(2), 100) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads.A": np.zeros(2, np.float32)}, r"names: missing \[\], unexpected \['heads.A'\]"),
        ({"heads.candidate.B": None}, r"names: missing \['heads.candidate.B'\]"),
        ({"heads.candidate.B": np.zeros((4, 1), np.float32)}, r"heads.candidate.B: expected shape \(4,\), found \(4, 1\)"),
        ({"heads.candidate.B": np.zeros(4)}, "heads.candidate.B: expected float32, found float64"),
        ({"heads.candidate.B": np.array([0, np.nan, 0, 0], np.float32)}, "heads.candidate.B: holds NaN or infinity"),
        ({"heads.candidate.B": np.array([0, -np.inf, 0, 0], np.float32)}, "heads.candidate.B: holds NaN or infinity"),
        ({"heads.candidate.B": np.full(4, 1e6, np.float32)}, "norm 2e.06 is over the plausible 100"),
    ],
)
def test_each_fault_is_named(change: dict[str, np.ndarray | None], named: str) -> None:
    bad = {name: value for name, value in {**draw(1), **change}.items() if value is not None}
    fault = update_fault(bad, draw(2), 100.0)
    assert fault is not None
    assert re.search(named, fault), fault


def test_an_honest_update_is_under_its_norm() -> None:
    rng = np.random.default_rng(0)
    steps, rate, clip, sigma, numbers, lot = 3, 0.5, 0.1, 4.0, 2000, 20.0
    most = honest_norm(steps=steps, learning_rate=rate, clip_norm=clip, noise_multiplier=sigma, numbers=numbers, lot=lot)
    signal = steps * rate * clip  # every drawn user clipped, all in one direction
    noise = rate / lot * np.linalg.norm(rng.normal(0, sigma * clip, (steps, numbers)).sum(0))
    assert signal + noise < most


def test_adam_equals_torch() -> None:
    current, state = draw(0), {}
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in current.items()}
    oracle = torch.optim.Adam(parameters.values(), lr=0.03, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        update = draw(10 + step)
        current, state = apply_update("adam", current, update, state, 0.03, 0.0)
        for name, parameter in parameters.items():
            parameter.grad = -torch.tensor(update[name])
        oracle.step()
        for name, parameter in parameters.items():
            assert current[name] == pytest.approx(parameter.detach().numpy(), rel=1e-5, abs=1e-6)


def test_adam_counts_the_steps_of_each_array_for_itself() -> None:
    first, second = "heads.history.B", "heads.candidate.B"
    update = draw(1)
    _, state = apply_update("adam", draw(0), {first: update[first]}, {}, 0.1, 0.0)
    moved, state = apply_update("adam", draw(0), {second: update[second]}, state, 0.1, 0.0)
    alone, _ = apply_update("adam", draw(0), {second: update[second]}, {}, 0.1, 0.0)
    assert same(moved, alone)
    assert (state[f"{first}/t"], state[f"{second}/t"]) == (1, 1)


def test_momentum_equals_its_formula() -> None:
    current, state = draw(0), {}
    one, two = draw(1), draw(2)
    after, state = apply_update("momentum", current, one, state, 0.5, 0.0)
    after, state = apply_update("momentum", after, two, state, 0.5, 0.0)
    for name in SHAPES:
        assert after[name] == pytest.approx(
            current[name] + 0.5 * one[name] + 0.5 * (0.9 * one[name] + two[name]), rel=1e-5, abs=1e-6
        )


def test_average_adds_the_mean_update() -> None:
    after, state = apply_update("average", draw(0), draw(1), {}, 123.0, 1.0)
    assert same(after, {name: draw(0)[name] + draw(1)[name] for name in SHAPES})
    assert state == {}


def test_an_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(KeyError):
        apply_update("no such", draw(0), draw(1), {}, 1.0, 0.0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_keeps_the_contract(name: str) -> None:
    current, update, state = {**draw(0), "of another part": np.ones(3, np.float32)}, draw(1), {}
    for _ in range(3):
        before = copy(current), copy(update), copy(state)
        after, new_state = apply_update(name, current, update, state, 0.1, 0.0)
        assert all(same(left, right) for left, right in zip(before, (current, update, state), strict=True)), "inputs changed"
        assert {key: value.shape for key, value in after.items()} == SHAPES
        assert {value.dtype for value in after.values()} == {np.dtype(np.float32)}
        assert all(isinstance(value, np.ndarray) and value.dtype == np.float32 for value in new_state.values())
        assert all(float(((after[key] - current[key]) * update[key]).sum()) > 0 for key in update), "moved against the update"
        current, state = {**current, **after}, new_state
    assert np.array_equal(current["of another part"], np.ones(3))


def oracle(mean: np.ndarray, variance: float) -> np.ndarray:
    """The step of `wiener`, number by number."""
    rows, columns = mean.shape
    row = [max(sum(mean[i, j] ** 2 - variance for j in range(columns)), 0.0) for i in range(rows)]
    column = [max(sum(mean[i, j] ** 2 - variance for i in range(rows)), 0.0) for j in range(columns)]
    total = max(sum(mean[i, j] ** 2 - variance for i in range(rows) for j in range(columns)), 0.0)
    out = np.zeros_like(mean)
    for i in range(rows):
        for j in range(columns):
            signal = total * row[i] / max(sum(row), 1e-300) * column[j] / max(sum(column), 1e-300)
            out[i, j] = mean[i, j] * signal**0.5 / (signal + variance + 1e-16)
    return out


def test_wiener_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    signal = np.outer(rng.normal(size=6), rng.normal(size=9))
    first, second = (rng.normal(0, 0.5, signal.shape) + signal for _ in range(2))
    first, second = first.astype(np.float32), second.astype(np.float32)
    start = {"b": np.zeros(signal.shape, np.float32)}
    after, state = apply_update("wiener", start, {"b": first}, {}, 0.1, 0.5)
    assert after["b"] == pytest.approx(0.1 * oracle(first.astype(float), 0.25), rel=1e-4, abs=1e-6)
    # The bias-corrected mean of two has weights .09 and .1 over .19, and the noise of both with their squares.
    mean = (0.09 * first.astype(float) + 0.1 * second) / 0.19
    moved, _ = apply_update("wiener", after, {"b": second}, state, 0.1, 0.5)
    expected = after["b"] + 0.1 * oracle(mean, 0.25 * (0.09**2 + 0.1**2) / 0.19**2)
    assert moved["b"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_wiener_stands_still_in_noise_and_moves_like_adam_without() -> None:
    rng = np.random.default_rng(1)
    start = {"b": np.zeros((32, 100), np.float32)}
    noise = {"b": rng.normal(0, 1, (32, 100)).astype(np.float32)}
    moved, _ = apply_update("wiener", start, noise, {}, 0.1, 1.0)
    adam, _ = apply_update("adam", start, noise, {}, 0.1, 1.0)
    assert np.linalg.norm(moved["b"]) < 0.2 * np.linalg.norm(adam["b"])
    product = {"b": np.outer(rng.normal(size=32), rng.normal(size=100)).astype(np.float32)}
    moved, _ = apply_update("wiener", start, product, {}, 0.1, 0.0)
    adam, _ = apply_update("adam", start, product, {}, 0.1, 0.0)
    assert moved["b"] == pytest.approx(adam["b"], rel=1e-3)


def test_wiener_finds_a_direction_in_noise_better_than_adam() -> None:
    rng = np.random.default_rng(2)
    truth = np.outer(rng.normal(size=32) * np.geomspace(3, 0.01, 32), rng.normal(size=100))

    def cosine(name: str) -> float:
        current, state = {"b": np.zeros(truth.shape, np.float32)}, {}
        for _ in range(18):
            update = {"b": (truth + rng.normal(0, 2.0, truth.shape)).astype(np.float32)}
            current, state = apply_update(name, current, update, state, 0.01, 2.0)
        return float((current["b"] * truth).sum() / np.linalg.norm(current["b"]) / np.linalg.norm(truth))

    assert cosine("wiener") > cosine("adam") + 0.05


@pytest.mark.parametrize(("name", "slack"), [("mean", 0.01), ("median", 0.06), ("trimmed-mean", 0.12), ("multi-krum", 0.25)])
def test_the_noise_of_what_a_rule_makes_is_that_of_its_draws(name: Aggregation, slack: float) -> None:
    deviations, weights = [2.0] * 15, [1.0] * 15
    if name == "mean":
        deviations, weights = [0.5, 2.0, 1.0] * 5, [10.0, 1.0, 4.0] * 5
    drawn = np.random.default_rng(0).normal(0, 1, (15, 40_000)) * np.array(deviations)[:, None]
    updates = Updates([{"b": one.astype(np.float32)} for one in drawn], weights, [1e9] * 15, 2)
    assert noise_in_combined(name, deviations, weights) == pytest.approx(combine(name, updates)["b"].std(), rel=slack)


def test_krum_has_the_noise_of_one_update() -> None:
    assert noise_in_combined("krum", [0.5, 2.0, 1.0], [10.0, 1.0, 4.0]) == 2.0
