"""Aggregation rules: one contract for all, plain loops as oracles, what a hostile merchant can do, and a run under them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from fedrec import wire
from fedrec.aggregation import RULES, Updates, combine, honest_norm
from fedrec.config import Aggregation, RunConfig, least_updates, load_config
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, flat, norm
from simulations.run import simulate

from .helpers import PLANNED, make_federation, settings_of, simulate_with

SHAPES = {"heads.history.B": (2, 3), "heads.candidate.B": (4,)}
NAMES = sorted(RULES)
ROBUST = sorted(set(RULES) - {"mean"})
WEIGHTED = ("mean", "norm-bound")


def draw(seed: int, dtype: type = np.float32) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def drawn(count: int = 8, byzantine: int = 2, dtype: type = np.float32) -> Updates:
    """Updates of norms from about 2 to 4, of which those over 3 are cut."""
    return Updates([draw(seed, dtype) for seed in range(count)], list(range(1, count + 1)), [3.0] * count, byzantine)


def test_every_rule_that_can_be_set_is_there() -> None:
    assert set(RULES) == set(RunConfig.model_fields["aggregation"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_merchants_does_not_matter(name: Aggregation) -> None:
    given = drawn()
    expected = combine(name, given)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(given))
        arrays, weights, norms = ([values[i] for i in order] for values in (given.arrays, given.weights, given.norms))
        shuffled = Updates(arrays, weights, norms, given.byzantine)
        assert flat(combine(name, shuffled)) == pytest.approx(flat(expected), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_equal_updates_give_that_update(name: Aggregation) -> None:
    given = Updates([draw(1)] * 7, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [100.0] * 7, 2)
    assert flat(combine(name, given)) == pytest.approx(flat(draw(1)), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_types(name: Aggregation) -> None:
    given = drawn()
    before = [flat(one) for one in given.arrays]
    out = combine(name, given)
    assert {key: value.shape for key, value in out.items()} == SHAPES
    assert {value.dtype for value in out.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(left, flat(right)) for left, right in zip(before, given.arrays, strict=True)), "inputs changed"
    assert flat(combine(name, drawn(dtype=np.float64))) == pytest.approx(flat(out), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("byzantine", [0, 1, 2])
def test_too_few_updates_are_refused(name: Aggregation, byzantine: int) -> None:
    least = least_updates(name, byzantine)
    combine(name, drawn(least, byzantine))
    with pytest.raises(ValueError, match=f"{name} with byzantine = {byzantine}: expected at least {least} updates, found "):
        combine(name, drawn(least - 1, byzantine))


@pytest.mark.parametrize("name", NAMES)
def test_only_means_are_weighted(name: Aggregation) -> None:
    given = drawn()
    same = np.array_equal(flat(combine(name, given)), flat(combine(name, replace(given, weights=given.weights[::-1]))))
    assert same == (name not in WEIGHTED)


# Oracles: one number after the other.


def looped(rule: Callable[[list[float]], float], given: Updates) -> np.ndarray:
    return np.array([rule([float(v) for v in column]) for column in np.stack([flat(one) for one in given.arrays]).T])


def middle(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def trimmed(values: list[float], cut: int) -> float:
    kept = list(values)
    for _ in range(cut):
        kept.remove(max(kept))
        kept.remove(min(kept))
    return sum(kept) / len(kept)


def by_score(given: Updates) -> list[int]:
    """Who has the smallest score of Krum first."""
    rows = [flat(one) for one in given.arrays]
    scores = []
    for i, own in enumerate(rows):
        others = sorted(sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[: len(rows) - given.byzantine - 2]))
    return sorted(range(len(rows)), key=scores.__getitem__)


def cut_to_norm(given: Updates) -> np.ndarray:
    total = np.zeros(10)
    for one, weight, most in zip(given.arrays, given.weights, given.norms, strict=True):
        length = sum(float(v) ** 2 for v in flat(one)) ** 0.5
        total += weight / sum(given.weights) * flat(one) * (most / length if length > most else 1)
    return total


ORACLES: dict[Aggregation, Callable[[Updates], np.ndarray]] = {
    "mean": lambda given: sum(w * flat(one) for w, one in zip(given.weights, given.arrays, strict=True)) / sum(given.weights),
    "norm-bound": cut_to_norm,
    "median": lambda given: looped(middle, given),
    "trimmed-mean": lambda given: looped(lambda values: trimmed(values, given.byzantine), given),
    "krum": lambda given: flat(given.arrays[by_score(given)[0]]),
    "multi-krum": lambda given: np.mean([flat(given.arrays[i]) for i in by_score(given)[: len(given) - given.byzantine]], axis=0),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("count", "byzantine"), [(8, 2), (7, 1), (5, 0)])
def test_each_rule_equals_a_plain_loop(name: Aggregation, count: int, byzantine: int) -> None:
    given = drawn(count, byzantine)
    assert flat(combine(name, given)) == pytest.approx(ORACLES[name](given), rel=1e-5, abs=1e-6)


# What a hostile merchant can do.


@pytest.mark.parametrize(("name", "places", "size"), itertools.product(ROBUST, [(0,), (3, 6)], [10.0, 1e4, 1e12]))
def test_outliers_move_a_robust_rule_no_further_than_honest_updates_reach(
    name: Aggregation, places: tuple[int, ...], size: float
) -> None:
    given = drawn()
    huge = {key: np.float32(size) * value for key, value in draw(20).items()}
    hostile = [huge if i in places else one for i, one in enumerate(given.arrays)]
    out = flat(combine(name, replace(given, arrays=hostile)))
    if name == "norm-bound":
        assert norm({"all": out}) <= 3.0 * (1 + 1e-6)
    else:
        honest = np.stack([flat(one) for i, one in enumerate(given.arrays) if i not in places])
        assert (honest.min(axis=0) - 1e-6 <= out).all() and (out <= honest.max(axis=0) + 1e-6).all()


def test_one_outlier_moves_the_mean_as_far_as_it_likes() -> None:
    given = drawn()
    huge = {name: np.full(shape, 1e6, np.float32) for name, shape in SHAPES.items()}
    assert norm(combine("mean", replace(given, arrays=[*given.arrays[:-1], huge]))) > 1e5


def test_krum_prefers_a_small_false_update_to_honest_ones_with_noise() -> None:
    """Each honest update is one direction and noise of ten times its norm; the false one has a third of that norm."""
    rng = np.random.default_rng(0)
    true, false = np.eye(2, 2000)
    honest = [{"B": (true + rng.normal(0, 10 / 2000**0.5, 2000)).astype(np.float32)} for _ in range(7)]
    given = Updates([*honest, {"B": (3 * false).astype(np.float32)}], [1.0] * 8, [100.0] * 8, 1)
    assert np.array_equal(combine("krum", given)["B"], given.arrays[-1]["B"])


# Settings.


@pytest.mark.parametrize("name", ROBUST)
def test_what_needs_single_updates_is_refused_by_name_under_secure_aggregation(name: Aggregation) -> None:
    with pytest.raises(InputError) as raised:
        load_config(overrides={"trust": "secure-aggregation", "aggregation": name, "min_merchants": 5})
    assert f"aggregation = '{name}' needs every merchant's own update" in str(raised.value)


def test_a_rule_that_a_round_could_be_too_small_for_is_refused_before_the_run() -> None:
    with pytest.raises(InputError, match=r"min_merchants \(4\) is under 5, which aggregation = 'krum' needs for byzantine = 1"):
        load_config(overrides={"aggregation": "krum", "min_merchants": 4})
    assert load_config(overrides={"aggregation": "krum", "min_merchants": 5}).byzantine == 1


# In a run.


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("crowd"), merchants=3)


@pytest.mark.parametrize("name", ["median", "norm-bound"])
def test_a_run_uses_the_rule_that_is_set(crowd: Path, tiny_bert_folder: Path, tmp_path: Path, name: Aggregation) -> None:
    """One merchant sends eight times its update, and what is left of it is what the rule leaves."""
    sent: list[Arrays] = []
    populations: list[int] = []

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type != "train":
            return reply
        answer = wire.decode_reply(reply)
        if context.node_config["partition-id"] == 1:
            answer = replace(answer, arrays={key: np.float32(8) * value for key, value in answer.arrays.items()})
        sent.append(answer.arrays)
        populations.append(answer.statement.population)
        return Message(wire.encode_reply(answer), reply_to=request)

    config = settings_of(
        tiny_bert_folder, **PLANNED, rounds=1, encoder_rounds=0, server_optimizer="average", aggregation=name, min_merchants=3,
        weighting="equal", calibrate=False, min_lot=5,
    )  # fmt: skip
    folder = simulate_with(crowd, config, tmp_path / "run", tamper)
    state = folder.load()
    assert state is not None and folder.metrics()[1]["took_part"] == ["m0", "m1", "m2"]
    rows = np.stack([flat(one) for one in sent])
    found = flat({key: state.trained[key] for key in sent[0]})
    if name == "median":
        assert found == pytest.approx(np.median(rows, axis=0), abs=1e-7)
    else:
        rest = 3 * found - rows[0] - rows[2]  # honest updates count as they are
        cosine = rest @ rows[1] / np.linalg.norm(rest) / np.linalg.norm(rows[1])
        assert cosine == pytest.approx(1, abs=1e-4)
        most = honest_norm(
            steps=1, learning_rate=config.learning_rate, clip_norm=config.clip_norm, noise_multiplier=PLANNED["noise_multiplier"],
            numbers=rows.shape[1], lot=populations[1],
        )  # fmt: skip
        assert np.linalg.norm(rest) == pytest.approx(most, rel=1e-4)


def test_norm_bound_changes_nothing_where_all_are_honest(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    states = []
    for name in ("mean", "norm-bound"):
        config = settings_of(tiny_bert_folder, **PLANNED, rounds=2, encoder_rounds=0, aggregation=name)
        state = simulate(crowd, config, tmp_path / name).load()
        assert state is not None
        states.append(state.trained)
    assert all(np.array_equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["mean", "median"])
def test_a_false_histogram_says_no_more_than_the_declared_users_can(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path, name: Aggregation
) -> None:
    """One merchant claims five times, another a hundred times what all of its users could add."""
    sent: list[np.ndarray] = []
    bounds: list[float] = []
    sigma = PLANNED["histogram_noise_multiplier"]

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type != "train.histogram":
            return reply
        answer, times = wire.decode_reply(reply), {1: 5, 2: 100}.get(int(context.node_config["partition-id"]))
        counts = answer.arrays[wire.HISTOGRAM]
        most = answer.statement.population + sigma * counts.size**0.5
        if times is not None:
            counts = np.float32(times * most) * counts / np.float32(np.linalg.norm(counts))
            answer = replace(answer, arrays={wire.HISTOGRAM: counts})
        sent.append(counts)
        bounds.append(most)
        return Message(wire.encode_reply(answer), reply_to=request)

    config = settings_of(
        tiny_bert_folder, **PLANNED, rounds=1, encoder_rounds=0, aggregation=name, min_merchants=3, calibrate=False, min_lot=5
    )
    folder = simulate_with(crowd, config, tmp_path / "run", tamper)
    state = folder.load()
    assert state is not None and folder.metrics()[0]["took_part"] == ["m0", "m1"]
    assert "is over the plausible" in folder.metrics()[0]["refused"]["m2"]
    assert np.linalg.norm(sent[0]) < bounds[0]  # an honest one counts as it is
    second = sent[1] if name == "mean" else sent[1] * bounds[1] / np.linalg.norm(sent[1])
    assert state.public["prior.counts"] == pytest.approx(sent[0] + second, rel=1e-5)
