"""Updates in int8: how far off and how right on average, what crosses, what a malformed code does, and a run with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedrec import wire
from fedrec.aggregation import update_fault
from fedrec.model.adapter import HEAD_B, Arrays, norm
from fedrec.privacy import NoiseSource, SeededNoise, SystemNoise
from fedrec.training import CodeError, decode_update, encode_update
from fedrec.training.update_code import BUCKET, LEVELS, SCALES, buckets
from fedrec.wire import Reply, Statement, WireError
from server.progress import watching
from server.run_folder import RunFolder
from simulations.run import resume, simulate

from .helpers import PLANNED, ledger_rounds, make_federation, recorded, settings_of, simulate_with

MODEL_BYTES = 90_261_504
"""The packaged encoder's weights."""
HEADER = 128
"""Bytes before the numbers of an array as numpy writes it."""
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MAGNITUDES = st.sampled_from([np.float32(value) for value in (1e-45, 1e-38, 1e-30, 1e-3, 1.0, 1e30, 3.4e38)])
UPDATES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20), elements=FINITE) | st.builds(
    lambda values, size: values * size,
    hnp.arrays(np.float32, st.integers(1, 3 * BUCKET), elements=st.floats(-1, 1, width=32)),
    MAGNITUDES,
)


class Fixed:
    """A source that draws the same number every time."""

    simulated = True

    def __init__(self, number: float) -> None:
        self.number = number

    def uniform(self, size: int) -> np.ndarray:
        """See `NoiseSource`."""
        return np.full(size, self.number)


def there_and_back(value: np.ndarray, noise: Any) -> np.ndarray:
    update = {"a": value}
    return decode_update(encode_update(update, noise), update)["a"]


def largest(value: np.ndarray) -> np.ndarray:
    """The largest magnitude in each value's bucket, (*shape) float64: a loop over buckets."""
    flat = value.astype(np.float64).ravel()
    out = np.zeros(flat.size)
    for start in range(0, flat.size, 256):
        out[start : start + 256] = np.abs(flat[start : start + 256]).max()
    return out.reshape(value.shape)


def steps(value: np.ndarray) -> np.ndarray:
    """The distance of two levels at each value."""
    return largest(value) / 127


def rounding(value: np.ndarray) -> np.ndarray:
    """What a float32 near such values may be off by."""
    return largest(value) * 2.0**-24 + 2.0**-149


# -- the code -----------------------------------------------------------------------------------------------------------------


@given(value=UPDATES, seed=st.integers(0, 2**32))
def test_a_value_comes_back_within_a_step_of_its_bucket(value: np.ndarray, seed: int) -> None:
    code = encode_update({"a": value}, SeededNoise(seed))
    assert set(code) == {"a", f"a{SCALES}"}
    assert (code["a"].dtype, code["a"].shape) == (np.int8, value.shape)
    assert (code[f"a{SCALES}"].dtype, code[f"a{SCALES}"].shape) == (np.float32, (buckets(value.size),))
    assert not (code["a"] == -128).any()
    decoded = decode_update(code, {"a": value})["a"]
    assert (decoded.dtype, decoded.shape) == (np.float32, value.shape)
    off = np.abs(decoded.astype(np.float64) - value)
    assert np.all(off <= steps(value) + rounding(value))
    assert np.all(decoded[np.asarray(value == 0)] == 0), "nothing stays nothing"
    allowed = np.sqrt(value.size) * (steps(value) + rounding(value)).max(initial=0)
    assert norm({"a": decoded}) <= norm({"a": value}) * (1 + 1e-9) + allowed, "how much longer an update can become"


@given(value=UPDATES)
def test_a_value_lies_between_the_two_levels_that_it_can_become_in_proportion(value: np.ndarray) -> None:
    """The expectation, exactly: weigh the level below and the one above as the draw does."""
    low, high = (there_and_back(value, Fixed(number)).astype(np.float64) for number in (np.nextafter(1, 0), 0.0))
    assert np.all(low <= value + rounding(value)) and np.all(high >= value - rounding(value))
    most = largest(value)
    level = 127 * np.divide(value, most, out=np.zeros(value.shape), where=most > 0)
    mean = low + (level - np.floor(level)) * (high - low)
    assert np.all(np.abs(mean - value) <= 2 * rounding(value))


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "code")], ids=["system", "seeded"])
def test_the_mean_of_many_codes_is_the_update(noise: NoiseSource) -> None:
    value = np.random.default_rng(1).normal(0, 0.01, (20, 30)).astype(np.float32)
    times = 3000
    mean = np.mean([there_and_back(value, noise).astype(np.float64) for _ in range(times)], axis=0)
    error = mean - value
    assert np.all(np.abs(error) <= 6 * steps(value) / 2 / np.sqrt(times)), "a step of two points has at most half of it as sd"
    assert abs(error.mean()) <= 6 * steps(value).max() / 2 / np.sqrt(times * value.size)
    assert error.std() > 0


@pytest.mark.parametrize("noise", [SystemNoise(), SeededNoise(0, "x")], ids=["system", "seeded"])
def test_both_sources_draw_uniformly(noise: NoiseSource) -> None:
    from scipy.stats import kstest

    draws = noise.uniform(100_000)
    assert draws.shape == (100_000,) and draws.min() >= 0 and draws.max() < 1
    assert kstest(draws, "uniform").pvalue > 1e-6
    assert not np.any(draws[:50] == noise.uniform(50))


def test_the_same_source_gives_the_same_code_and_another_a_different_one() -> None:
    update = {"a": np.random.default_rng(0).normal(size=(9, 40)).astype(np.float32)}
    one, two, other = (encode_update(update, SeededNoise(seed, "m0")) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert np.array_equal(one[f"a{SCALES}"], other[f"a{SCALES}"]) and not np.array_equal(one["a"], other["a"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_no_number_is_still_refused_and_its_bucket_hides_nothing(bad: float) -> None:
    value = np.ones((2, BUCKET), np.float32)
    value[1, 3] = bad
    code = encode_update({"a": value}, SeededNoise(0))
    assert not code["a"][1].any()
    with pytest.raises(CodeError, match="a: a scale is negative or not finite"):
        decode_update(code, {"a": value})


# -- the size -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "shape", "times"),
    [
        (list(HEAD_B.values()), (32, 384), 3.7),
        ([f"base_model.model.encoder.layer.5.attention.self.{role}.lora_B.weight" for role in ("query", "value")], (384, 8), 3),
    ],
    ids=["heads", "encoder"],
)
def test_a_reply_at_full_size_is_two_thousand_times_smaller_than_the_model(
    names: list[str], shape: tuple[int, int], times: float
) -> None:
    rng = np.random.default_rng(0)
    update = {name: rng.normal(size=shape).astype(np.float32) for name in names}
    statement = Statement("a-merchant-with-a-name", "ok", mechanism="dp-sgd", population=1500, epsilon_spent=1.2345678)
    both = update, encode_update(update, SystemNoise())
    plain, coded = (wire.size(wire.encode_reply(Reply(arrays, statement))) for arrays in both)
    assert coded < MODEL_BYTES / 2000
    assert coded < plain / times


# -- the wire -----------------------------------------------------------------------------------------------------------------

LIKE = {"heads.history.B": np.zeros((4, 100), np.float32), "heads.candidate.B": np.zeros((4, 100), np.float32)}
B, S = "heads.history.B", f"heads.history.B{SCALES}"


def good() -> Arrays:
    rng = np.random.default_rng(0)
    return encode_update({name: rng.normal(size=value.shape).astype(np.float32) for name, value in LIKE.items()}, SeededNoise(0))


def test_a_code_crosses_as_it_is() -> None:
    code = good()
    content = wire.encode_reply(Reply(code, Statement("m0", "ok")))
    back = wire.from_record(content["arrays"])
    assert list(back) == list(code) and all(np.array_equal(back[name], code[name]) for name in code)
    assert [back[name].dtype for name in (B, S)] == [np.int8, np.float32]
    assert update_fault(decode_update(back, LIKE), LIKE, 100.0) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({S: None}, f"array {B}: int8 without its scales"),
        ({S: np.zeros(3, np.float32)}, f"array {B}: int8 without its scales"),
        ({S: np.zeros(2)}, f"array {S}: expected float32, found float64"),
        ({B: np.zeros((4, 100), np.int16)}, f"array {B}: expected float32, found int16"),
        ({B: np.zeros((4, 100), np.uint8)}, f"array {B}: expected float32, found uint8"),
        ({S: np.zeros(2, np.int8)}, f"array {S}: int8 without its scales"),
    ],
)
def test_nothing_else_in_int8_leaves_a_merchant(change: dict[str, Any], named: str) -> None:
    arrays = {name: value for name, value in {**good(), **change}.items() if value is not None}
    with pytest.raises(WireError) as caught:
        wire.encode_reply(Reply(arrays, Statement("m0", "ok")))
    assert str(caught.value) == named


def changed(name: str, change: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[Arrays], Arrays]:
    def apply(code: Arrays) -> Arrays:
        if change is None:
            return {other: value for other, value in code.items() if other != name}
        return {**code, name: change(code[name])}

    return apply


def first(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def apply(value: np.ndarray) -> np.ndarray:
        out = value.copy()
        out.flat[0] = number
        return out

    return apply


MALFORMED: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "scales missing": (changed(S, None), f"{B}: its scales are missing"),
    "levels missing": (changed(B, None), f"{B}: is missing"),
    "nothing": (lambda _: {}, f"{B}: is missing"),
    "another shape": (changed(B, lambda v: v.T.copy()), f"{B}: expected shape"),
    "another number of scales": (changed(S, lambda v: np.append(v, v)), f"{B}: expected scales float32"),
    "scales in another form": (changed(S, lambda v: v[:, None]), f"{B}: expected scales float32"),
    "scales in float64": (changed(S, lambda v: v.astype(np.float64)), f"{B}: expected scales float32"),
    "scales in another byte order": (changed(S, lambda v: v.astype(">f4")), f"{B}: expected scales float32"),
    "a scale that is no number": (changed(S, first(np.nan)), f"{B}: a scale is negative or not finite"),
    "a scale without end": (changed(S, first(np.inf)), f"{B}: a scale is negative or not finite"),
    "a negative scale": (changed(S, first(-1.0)), f"{B}: a scale is negative or not finite"),
    "a level too low": (changed(B, first(-128)), f"{B}: -128 is not a level"),
    "float32 for int8": (changed(B, lambda v: v.astype(np.float32)), f"{B}: expected int8, found float32"),
    "uint8 for int8": (changed(B, lambda v: v.astype(np.uint8)), f"{B}: expected int8, found uint8"),
    "one more array": (lambda code: {**code, "loss": np.zeros(1, np.float32)}, "names: unexpected ['loss']"),
    "a scale too large": (changed(S, first(1e30)), "over the plausible"),
}


@pytest.mark.parametrize("kind", [kind for kind in MALFORMED if kind != "a scale too large"])
def test_a_malformed_code_is_an_error_that_names_the_array(kind: str) -> None:
    with pytest.raises(CodeError) as caught:
        decode_update(MALFORMED[kind][0](good()), LIKE)
    assert str(caught.value).startswith(MALFORMED[kind][1])


LEVELS_OR_NOT = hnp.arrays(
    st.sampled_from([np.int8, np.uint8, np.float32, np.float64, np.bool_]),  # type: ignore[arg-type]
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
)


@given(code=st.dictionaries(st.sampled_from(["a", f"a{SCALES}", "b"]), LEVELS_OR_NOT))
def test_whatever_comes_is_decoded_to_finite_numbers_or_is_a_code_error(code: Arrays) -> None:
    like = {"a": np.zeros((2, 2), np.float32)}
    try:
        decoded = decode_update(code, like)
    except CodeError:
        return
    assert set(decoded) == set(like) and decoded["a"].shape == (2, 2) and np.isfinite(decoded["a"]).all()


# -- runs ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("code"))


def trained(folder: RunFolder) -> Arrays:
    state = folder.load()
    assert state is not None
    return state.trained


@pytest.mark.parametrize("part", ["heads", "encoder"])
def test_one_round_in_int8_differs_by_no_more_than_the_rounding(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, part: str
) -> None:
    values: dict[str, Any] = {"rounds": 1, "server_optimizer": "average", "weighting": "equal", "rank": 32, "encoder_rank": 16}
    values |= PLANNED
    values |= {"encoder_rounds": 0} if part == "heads" else {"heads": False}
    plain = simulate(federation, settings_of(tiny_bert_folder, **values), tmp_path / "float32")
    with recorded() as crossed:
        coded = simulate(federation, settings_of(tiny_bert_folder, update_code="int8", **values), tmp_path / "int8")
    codes = [wire.decode_reply(reply).arrays for request, reply in crossed if request.metadata.message_type == "train"]
    assert len(codes) == 3 and coded.config.update_code == "int8"
    before, after = trained(plain), trained(coded)
    moved = [name for name in before if name in codes[0]]
    assert moved and before.keys() == after.keys()
    for name in moved:
        assert all(code[name].dtype == np.int8 for code in codes)
        step = np.mean([np.repeat(code[name + SCALES], BUCKET)[: before[name].size] for code in codes], axis=0) / LEVELS
        off = np.abs(before[name] - after[name])
        assert np.all(off <= step.reshape(off.shape) * (1 + 1e-4)) and off.any()
    saved = sum(3 * before[name].size for name in moved)
    scales = sum(len(name + SCALES) + HEADER + 4 * buckets(before[name].size) for name in moved)
    for one, two in zip(plain.metrics()[1]["bytes_up"].values(), coded.metrics()[1]["bytes_up"].values(), strict=True):
        assert two == one - saved + scales < one / 2
    assert coded.metrics()[0]["bytes_up"] == plain.metrics()[0]["bytes_up"], "histograms stay as they are"
    assert coded.metrics()[-1]["privacy"] == plain.metrics()[-1]["privacy"], "rounding costs no privacy"


def test_malformed_codes_are_refused_by_name_and_the_run_goes_on(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    """One run, in which one merchant breaks its code in another way every round."""
    kinds = list(MALFORMED)

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            broken = MALFORMED[kinds[int(request.content["task"]["round"]) - 1]][0](wire.from_record(reply.content["arrays"]))
            reply.content["arrays"] = wire.to_record(broken)
        return reply

    config = settings_of(tiny_bert_folder, rounds=len(kinds), encoder_rounds=0, rank=10, calibrate=False, update_code="int8")
    lines = simulate_with(federation, config, tmp_path / "run", tamper).metrics()[1:]
    assert [line["took_part"] for line in lines] == [["m0", "m2"]] * len(kinds)
    for kind, line in zip(kinds, lines, strict=True):
        assert list(line["refused"]) == ["m1"] and MALFORMED[kind][1] in line["refused"]["m1"], (kind, line["refused"])


def test_codes_that_nobody_asked_for_are_refused(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    def tamper(request: Message, context: Context, reply: Message) -> Message:
        decoded = wire.decode_reply(reply)
        partition = context.node_config["partition-id"]
        if partition == 0:
            reply.content = wire.encode_reply(Reply(encode_update(decoded.arrays, SeededNoise(0)), decoded.statement))
        elif partition == 1:
            reply.content["arrays"] = wire.to_record({name: value.astype(np.int8) for name, value in decoded.arrays.items()})
        return reply

    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    histogram, training = simulate_with(federation, config, tmp_path / "run", tamper).metrics()
    for line, name in ((histogram, wire.HISTOGRAM), (training, "heads.candidate.B")):
        assert line["took_part"] == ["m2"]
        assert line["refused"]["m0"].startswith("names: missing [], unexpected ['" + name + SCALES)
        assert line["refused"]["m1"].endswith("B: expected float32, found int8") or name == wire.HISTOGRAM
    assert histogram["refused"]["m1"] == f"{wire.HISTOGRAM}: expected float32, found int8"


def test_a_repeated_round_sends_the_same_code(federation: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    from clients.app import app

    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, update_code="int8")
    again: list[Message] = []

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type == "train":
            again.append(app(request, context))
        return reply

    with recorded() as crossed:
        folder = simulate_with(federation, config, tmp_path / "run", tamper)
    sent = [reply for request, reply in crossed if request.metadata.message_type == "train"]
    assert len(sent) == len(again) == 3
    for one, two in zip(sent, again, strict=True):
        arrays = [[(name, value.dtype, value.data) for name, value in reply.content["arrays"].items()] for reply in (one, two)]
        assert arrays[0] == arrays[1] and {dtype for _, dtype, _ in arrays[0]} == {"int8", "float32"}
        assert json.dumps(dict(one.content["statement"])) == json.dumps(dict(two.content["statement"]))
    assert ledger_rounds(folder) == {name: [0, 1] for name in ("m0", "m1", "m2")}


def test_a_run_that_was_interrupted_goes_on_with_the_stored_codes(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    config = settings_of(tiny_bert_folder, rounds=2, encoder_rounds=0, update_code="int8")
    whole = simulate(federation, config, tmp_path / "whole")
    at = {"round": 0}

    def break_off(event: str, values: dict[str, Any]) -> None:
        at["round"] = values["round"] if event == "round_started" else at["round"]
        if event == "merchant_done" and at["round"] == 1 and values["done"] == 2:
            raise KeyboardInterrupt

    with watching(break_off), pytest.raises(KeyboardInterrupt):
        simulate(federation, config, tmp_path / "broken")
    folder = resume(tmp_path / "broken")
    one, two = trained(whole), trained(folder)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert [line["took_part"] for line in folder.metrics()] == [["m0", "m1", "m2"]] * 3
    assert ledger_rounds(folder) == {name: [0, 1, 2] for name in ("m0", "m1", "m2")}
