"""Whole runs on a tiny federation: what is written, what crosses the wire, what goes wrong and how it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from clients.merchant import forget_merchants
from fedrec import wire
from fedrec.aggregation import weighted_mean
from fedrec.model.adapter import of_part
from fedrec.privacy import Ledger
from fedrec.wire import Reply, Statement
from server.progress import watching
from server.run_folder import RunFolder
from simulations.run import resume, simulate

from .helpers import central, ledger_rounds, ledgers, make_federation, recorded, set_policy, settings_of, simulate_with

Crossed = list[tuple[Message, Message]]


@pytest.fixture(scope="module", params=[False, True], ids=["shared catalogue", "own catalogues"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("own" if request.param else "shared"), own_catalogues=request.param)


@pytest.fixture(scope="module")
def run(federation: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Crossed]:
    with recorded() as crossed:
        folder = simulate(federation, settings_of(tiny_bert_folder), tmp_path_factory.mktemp("run") / "a")
    return folder, crossed


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A federation of the test's own, to change policies in."""
    return make_federation(tmp_path / "own")


# -- the run folder ---------------------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_that_it_promises(run: tuple[RunFolder, Crossed], tiny_bert_folder: Path) -> None:
    folder, _ = run
    assert [line["round"] for line in folder.metrics()] == [0, 1, 2, 3]
    assert [line["part"] for line in folder.metrics()] == ["histogram", "heads", "heads", "encoder"]
    assert folder.config == settings_of(tiny_bert_folder)
    assert len(list((folder.path / "checkpoints").glob("round-*.safetensors"))) == 3
    state = folder.load()
    assert state is not None and state.round == 3
    assert all(np.any(value != 0) for value in state.trained.values()), "every B was trained"
    assert sorted(ledgers(folder)) == ["m0", "m1", "m2"]
    for line in folder.metrics():
        assert (line["took_part"], line["declined"], line["refused"]) == (["m0", "m1", "m2"], {}, {})
        assert all(0 <= line["central"][name] <= 1 for name in ("hr@10", "ndcg@10", "recall@10", "mrr"))


def test_peft_opens_the_adapter(run: tuple[RunFolder, Crossed], tiny_bert_folder: Path) -> None:
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from transformers import BertModel

    folder, _ = run
    opened = PeftModel.from_pretrained(
        BertModel.from_pretrained(tiny_bert_folder, add_pooling_layer=False), folder.path / "adapter"
    )
    state = folder.load()
    assert state is not None
    arrays = {**state.public, **state.trained}
    loaded = get_peft_model_state_dict(opened)
    assert loaded and all(np.array_equal(value.numpy(), arrays[name]) for name, value in loaded.items())


def test_the_reported_epsilon_is_the_ledgers_and_within_the_policy(run: tuple[RunFolder, Crossed]) -> None:
    folder, _ = run
    spent = [line["privacy"] for line in folder.metrics()]
    for name, ledger in ledgers(folder).items():
        assert spent[-1][name]["epsilon"] == ledger.spent().value
        assert [line[name]["epsilon"] for line in spent] == sorted(line[name]["epsilon"] for line in spent)
        assert spent[-1][name]["epsilon"] <= folder.config.epsilon < spent[-1][name]["budget"] == 8.5
        assert spent[-1][name]["epsilon"] > 0.95 * folder.config.epsilon, "the plan uses the budget"


# -- the wire ---------------------------------------------------------------------------------------------------------------


def test_a_reply_holds_noisy_arrays_and_the_statement_and_nothing_else(run: tuple[RunFolder, Crossed]) -> None:
    folder, crossed = run
    state = folder.load()
    assert state is not None and len(crossed) == 12
    for request, reply in crossed:
        assert set(reply.content) == {"arrays", "statement"}
        assert set(reply.content["statement"]) == wire.STATEMENT_KEYS
        arrays = wire.from_record(reply.content["arrays"])
        if request.metadata.message_type == "train.histogram":
            expected = {wire.HISTOGRAM}
        else:
            expected = set(of_part(state.trained, request.content["task"]["part"]))
        assert set(arrays) == expected
        assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
        assert reply.metadata.message_type == request.metadata.message_type


def test_no_user_is_named_in_any_message(run: tuple[RunFolder, Crossed]) -> None:
    _, crossed = run
    for message in (message for pair in crossed for message in pair):
        assert b"customer" not in recorddict_to_proto(message.content).SerializeToString()


def test_all_reported_numbers_are_equal_at_all_merchants_or_from_the_policy(run: tuple[RunFolder, Crossed]) -> None:
    """Nothing in a statement can depend on the merchant's users."""
    _, crossed = run
    for kind in ("train.histogram", "train"):
        statements = [dict(reply.content["statement"]) for request, reply in crossed if request.metadata.message_type == kind]
        for start in range(0, len(statements), 3):
            lot = statements[start : start + 3]
            assert [one.pop("merchant") for one in lot] == ["m0", "m1", "m2"]
            assert all(one.pop("population") % 5 == 0 for one in lot)
            assert lot[0] == lot[1] == lot[2]


def test_the_public_part_is_sent_once(run: tuple[RunFolder, Crossed]) -> None:
    _, crossed = run
    assert [("public" in request.content) for request, _ in crossed] == [False] * 3 + [True] * 3 + [False] * 6


def test_counted_bytes_are_those_of_the_messages(run: tuple[RunFolder, Crossed]) -> None:
    folder, crossed = run
    for number, line in enumerate(folder.metrics()):
        for place, name in enumerate(("m0", "m1", "m2")):
            request, reply = crossed[3 * number + place]
            serialised = len(recorddict_to_proto(reply.content).SerializeToString())
            assert line["bytes_up"][name] == wire.size(reply.content) == pytest.approx(serialised, rel=0.3)
            assert line["bytes_down"][name] == wire.size(request.content)


def test_a_reply_is_the_size_of_its_matrices_and_far_under_the_model() -> None:
    from fedrec.model.adapter import HEAD_B
    from fedrec.model.encoder import load_encoder

    arrays = {name: np.ones((8, 384), dtype=np.float32) for name in HEAD_B.values()}
    statement = Statement("a-merchant-with-a-name", "ok", mechanism="dp-sgd", population=1500, epsilon_spent=1.2345678)
    size = wire.size(wire.encode_reply(Reply(arrays, statement)))
    assert size <= 1.05 * sum(value.nbytes for value in arrays.values())
    assert load_encoder(layers=0).base_size >= 500 * size


# -- again, interrupted, resumed --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(run: tuple[RunFolder, Crossed], federation: Path, tmp_path: Path) -> None:
    folder, _ = run
    again = simulate(federation, folder.config, tmp_path / "again")
    assert central(again) == central(folder)
    states = folder.load(), again.load()
    for group in ("public", "trained", "optimizer"):
        one, two = (getattr(state, group) for state in states)
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one), "the same to the last bit"
    assert [line["scoring"] for line in again.metrics()] == [line["scoring"] for line in folder.metrics()]
    other = simulate(
        federation, folder.config.model_copy(update={"seed": 1, "rounds": 1, "encoder_rounds": 0}), tmp_path / "other"
    )
    assert central(other)[1] != central(folder)[1]


def test_a_run_starts_from_the_pretrained_encoder_whatever_ran_before(federation: Path, tiny_bert_folder: Path) -> None:
    from fedrec.data import load_central
    from server.start import first_state, load_encoder_for

    config, central_data = settings_of(tiny_bert_folder, encoder_layers=2), load_central(federation)
    encoder = load_encoder_for(config)
    fresh = first_state(config, central_data, encoder)
    encoder.load({name: np.ones_like(value) for name, value in encoder.trained().items()})
    later = first_state(config, central_data, encoder)
    assert all(np.array_equal(fresh.public[name], later.public[name]) for name in fresh.public)


def interrupt(event: str, number: int, **fields: Any) -> Any:
    """A watcher that breaks the run off at an event of a round."""
    at = {"round": 0}

    def watcher(name: str, values: dict[str, Any]) -> None:
        if name == "round_started":
            at["round"] = values["round"]
        if name == event and at["round"] == number and all(values[key] == value for key, value in fields.items()):
            raise KeyboardInterrupt

    return watcher


@pytest.mark.parametrize(
    ("event", "number", "fields"),
    [
        ("merchant_done", 0, {"done": 2}),
        ("round_done", 0, {}),
        ("round_done", 1, {}),
        ("merchant_done", 2, {"done": 2}),
        ("round_done", 3, {}),
    ],
)
def test_a_run_that_was_interrupted_ends_as_if_it_was_not(
    run: tuple[RunFolder, Crossed], federation: Path, tmp_path: Path, event: str, number: int, fields: dict[str, int]
) -> None:
    whole, _ = run
    if federation.parent.name.startswith("own"):
        pytest.skip("the same code whatever the catalogues")
    out = tmp_path / "interrupted"
    with watching(interrupt(event, number, **fields)), pytest.raises(KeyboardInterrupt):
        simulate(federation, whole.config, out)
    folder = resume(out)
    assert central(folder) == central(whole)
    assert ledger_rounds(folder) == {name: [0, 1, 2, 3] for name in ("m0", "m1", "m2")}, "a retry costs nothing"
    assert len({release.run for ledger in ledgers(folder).values() for release in ledger.releases()}) == 1


def test_a_finished_run_is_left_alone(run: tuple[RunFolder, Crossed]) -> None:
    folder, _ = run
    before = folder.metrics()
    with recorded(deliveries=True) as crossed:
        resume(folder.path)
    assert not crossed and folder.metrics() == before


# -- merchants who break the rules ------------------------------------------------------------------------------------------


def rewritten(reply: Message, change: Any) -> Message:
    """The same reply with arrays or statement changed."""
    decoded = wire.decode_reply(reply)
    return replaced(reply, wire.encode_reply(change(decoded)))


def replaced(reply: Message, content: RecordDict) -> Message:
    reply.content = content
    return reply


def with_arrays(change: Any) -> Any:
    return lambda reply: rewritten(reply, lambda r: Reply({n: change(v) for n, v in r.arrays.items()}, r.statement))


def with_statement(**values: Any) -> Any:
    return lambda reply: rewritten(reply, lambda r: Reply(r.arrays, replace(r.statement, **values)))


def raw(name: str, record: Any) -> Any:
    def change(reply: Message) -> Message:
        return replaced(reply, RecordDict({**dict(reply.content), name: record(reply.content) if callable(record) else record}))

    return change


def bytes_instead(data: bytes) -> Any:
    """Arrays whose bytes are not what they say."""

    def change(reply: Message) -> Message:
        arrays = {n: Array(dtype=v.dtype, shape=v.shape, stype=v.stype, data=data) for n, v in reply.content["arrays"].items()}
        return replaced(reply, RecordDict({**dict(reply.content), "arrays": ArrayRecord(arrays)}))

    return change


def an_npz() -> bytes:
    from io import BytesIO

    file = BytesIO()
    np.savez(file, x=np.zeros(3, np.float32))
    return file.getvalue()


BROKEN = {
    "NaN": (with_arrays(lambda v: np.full_like(v, np.nan)), "NaN"),
    "wrong shape": (with_arrays(lambda v: v.T.copy()), "expected shape"),
    "norm": (with_arrays(lambda v: v + np.float32(1e6)), "over the plausible"),
    "names": (lambda reply: rewritten(reply, lambda r: Reply({"a": np.zeros(1, np.float32)}, r.statement)), "names: missing"),
    "no arrays": (lambda reply: rewritten(reply, lambda r: Reply({}, r.statement)), "names: missing"),
    "less noise than asked": (with_statement(noise_multiplier=0.01), "is under the task's"),
    "noise that is no number": (
        raw("statement", lambda content: ConfigRecord({**dict(content["statement"]), "noise_multiplier": float("nan")})),
        "not finite",
    ),
    "no population": (with_statement(population=0), "population"),
    "one more record": (raw("extra", MetricRecord({"loss": 1.0})), "expected the records"),
    "statement with one more field": (
        raw("statement", lambda content: ConfigRecord({**dict(content["statement"]), "loss": 0.5})), "no field 'loss'"
    ),
    "statement of another kind": (raw("statement", MetricRecord({"loss": 1.0})), "Statement"),
    "arrays of another kind": (raw("arrays", MetricRecord({"loss": 1.0})), ""),
    "no bytes": (bytes_instead(b""), ""),
    "not an array": (bytes_instead(b"rubbish"), ""),
    "an archive": (bytes_instead(an_npz()), ""),
    "a pickle": (bytes_instead(b"\x80\x04K\x01."), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("crowd"), merchants=3)


def test_broken_replies_are_refused_by_name_and_the_others_are_averaged(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    """One run, in which one merchant breaks every round in another way."""
    kinds = list(BROKEN)
    honest: dict[int, list[wire.Reply]] = {number: [] for number in range(1, len(kinds) + 1)}

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type != "train":
            return reply
        number = int(request.content["task"]["round"])
        if context.node_config["partition-id"] == 1:
            return BROKEN[kinds[number - 1]][0](reply)
        honest[number].append(wire.decode_reply(reply))
        return reply

    config = settings_of(tiny_bert_folder, rounds=len(kinds), encoder_rounds=0, server_optimizer="average", calibrate=False)
    folder = simulate_with(crowd, config, tmp_path / "run", tamper)
    expected: dict[str, Any] = {}
    for number, kind in enumerate(kinds, 1):
        line = folder.metrics()[number]
        assert line["took_part"] == ["m0", "m2"], kind
        assert list(line["refused"]) == ["m1"] and BROKEN[kind][1] in line["refused"]["m1"], (kind, line["refused"])
        weights = [float(reply.statement.population) for reply in honest[number]]
        mean = weighted_mean([reply.arrays for reply in honest[number]], weights)
        expected = {name: expected.get(name, np.float32(0)) + value for name, value in mean.items()}
    state = folder.load()
    assert state is not None
    for name, value in expected.items():
        assert np.array_equal(state.trained[name], value)


def test_a_histogram_that_is_no_number_is_refused(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    def tamper(request: Message, context: Context, reply: Message) -> Message:
        bad = request.metadata.message_type == "train.histogram" and context.node_config["partition-id"] == 1
        return BROKEN["NaN"][0](reply) if bad else reply

    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    first, second = simulate_with(crowd, config, tmp_path / "run", tamper).metrics()
    assert first["took_part"] == ["m0", "m2"] and len(first["refused"]) == 1
    assert second["took_part"] == ["m0", "m1", "m2"]


def test_too_few_usable_updates_leave_the_adapter_as_it_is(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, min_merchants=3)

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        return BROKEN["NaN"][0](reply) if context.node_config["partition-id"] == 1 and "task" in request.content else reply

    folder = simulate_with(crowd, config, tmp_path / "run", tamper)
    state = folder.load()
    assert state is not None and state.round == 1
    assert not any(value.any() for value in state.trained.values())


# -- policies ---------------------------------------------------------------------------------------------------------------


def test_a_merchant_without_budget_declines_and_the_others_go_on(shared: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    set_policy(shared, "m1", epsilon=3.0)
    folder = simulate(shared, settings_of(tiny_bert_folder), tmp_path / "run")
    lines = folder.metrics()
    assert lines[0]["took_part"] == ["m0", "m1", "m2"], "the histogram alone still fits"
    assert lines[-1]["took_part"] == ["m0", "m2"]
    assert lines[-1]["declined"]["m1"].startswith("budget: epsilon ")
    assert ledgers(folder)["m1"].spent().value <= 3.0
    assert len(ledgers(folder)["m0"].releases()) == 4


def test_a_run_ends_early_when_all_have_declined(shared: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    for name in ("m0", "m1", "m2"):
        set_policy(shared, name, epsilon=6.0)
    folder = simulate(shared, settings_of(tiny_bert_folder), tmp_path / "run")
    ended = json.loads((folder.path / "ended_early.json").read_text())
    assert ended["reason"].startswith("budget: ") and sorted(ended["declined"]) == ["m0", "m1", "m2"]
    assert ended["round"] == 1 and [line["round"] for line in folder.metrics()] == [0, 1]
    assert all(ledger.spent().value <= 6.0 for ledger in ledgers(folder).values())
    resume(folder.path)
    assert [line["round"] for line in folder.metrics()] == [0, 1]


def test_the_budget_is_for_life_and_not_for_a_run(shared: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """A second run with the ledgers of the first finds less room."""
    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    first = simulate(shared, config, tmp_path / "first")
    out = tmp_path / "second"
    with watching(interrupt("preparing", 0)), pytest.raises(KeyboardInterrupt):
        simulate(shared, config, out)
    (first.path / "privacy").rename(out / "privacy")
    second = resume(out)
    assert (out / "ended_early.json").exists() or not second.metrics()[-1]["took_part"]
    assert all(ledger.spent().value <= 8.5 for ledger in ledgers(second).values())


@pytest.mark.parametrize(
    ("rule", "asked", "reason"),
    [
        ({"min_noise_multiplier": 50.0}, {}, "policy: noise_multiplier"),
        ({"max_clip_norm": 0.01}, {}, "policy: clip_norm 0.1"),
        ({"delta": 1e-7}, {}, "policy: delta"),
        ({"max_rounds": 1}, {}, "policy: round 2"),
        ({"unit": "user"}, {"unit": "event"}, "policy: unit 'event'"),
    ],
)
def test_a_task_that_would_weaken_the_policy_is_declined(
    shared: Path, tiny_bert_folder: Path, tmp_path: Path, rule: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    for name in ("m1", "m2") if asked else ():
        set_policy(shared, name, unit="event")
    set_policy(shared, "m0", **rule)
    folder = simulate(shared, settings_of(tiny_bert_folder, rounds=2, encoder_rounds=0, **asked), tmp_path / "run")
    last = folder.metrics()[-1]
    assert last["took_part"] == ["m1", "m2"]
    assert last["declined"]["m0"].startswith(reason)


# -- failures and retries at one merchant -----------------------------------------------------------------------------------


def test_a_failing_merchant_says_what_kind_of_failure_and_no_more(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clients.merchant

    original = clients.merchant.train_round

    def failing(task: Any, *args: Any, **kwargs: Any) -> Any:
        if task.round == 1:
            raise ValueError("user u7 bought i3")
        return original(task, *args, **kwargs)

    monkeypatch.setattr(clients.merchant, "train_round", failing)
    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    with recorded() as crossed:
        folder = simulate(crowd, config, tmp_path / "run")
    ended = json.loads((folder.path / "ended_early.json").read_text())
    assert ended["declined"] == dict.fromkeys(("m0", "m1", "m2"), "failed: ValueError")
    for _, reply in crossed[3:]:
        content = recorddict_to_proto(reply.content).SerializeToString()
        assert b"u7" not in content and b"i3" not in content
        assert not reply.has_error()


@contextmanager
def a_merchant(federation: Path, config: Any, out: Path) -> Iterator[tuple[Context, Message]]:
    """The context of the first merchant, with the training request that it got in round 1."""
    with recorded() as crossed:
        folder = simulate(federation, config, out)
    yield context_of(0), next(request for request, _ in crossed if "public" in request.content)
    assert folder


def context_of(partition: int) -> Context:
    return Context(run_id=1, node_id=2, node_config={"partition-id": partition}, state=RecordDict(), run_config={})


def ask(context: Context, request: Message, **task: Any) -> Message:
    """Send the request again, with changes to its task, to the ClientApp."""
    from clients.app import app

    content = RecordDict(dict(request.content))
    content["task"] = ConfigRecord({**dict(request.content["task"]), **task})
    return app(Message(content, 2, "train"), context)


def array_bytes(reply: Message) -> dict[str, bytes]:
    return {name: value.data for name, value in reply.content["arrays"].items()}


def reason_of(reply: Message) -> str:
    return str(reply.content["statement"]["reason"])


def test_a_repeated_request_gets_the_same_bytes_and_costs_nothing(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        ledger = Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5)
        lines = ledger.path.read_bytes()
        first, second = ask(context, request), ask(context, request)
        assert array_bytes(first) == array_bytes(second) != {}
        assert ledger.path.read_bytes() == lines and len(ledger.releases()) == 2
        sigma = request.content["task"]["noise_multiplier"]
        for changed in ({"noise_multiplier": sigma * 2}, {"local_steps": 2}, {"sample_rate": 0.5}, {"clip_norm": 0.2}):
            reply = ask(context, request, **changed)
            assert reason_of(reply) == "the same round was asked before with other settings" and not array_bytes(reply)
        assert ledger.path.read_bytes() == lines
        third = ask(context, request, learning_rate=3.0, temperature=9.0, update_code="int8")
        assert array_bytes(third) == array_bytes(first), "other weights cannot draw a second answer from the same round"


def test_a_round_that_is_over_is_not_answered_again(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=2, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        assert reason_of(ask(context, request)) == "the round is over"
        assert array_bytes(ask(context, request, round=2))


def test_a_failure_after_the_payment_is_not_computed_again(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clients.merchant

    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        ledger = Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5)
        with monkeypatch.context() as patched:
            patched.setattr(clients.merchant, "train_round", lambda *_, **__: (_ for _ in ()).throw(MemoryError("of u7")))
            assert reason_of(ask(context, request, round=2)) == "failed: MemoryError"
        spent = ledger.spent().value
        assert len(ledger.releases()) == 3, "the cost is written before anything is computed"
        assert reason_of(ask(context, request, round=2)) == "the round is over", "a second draw would be a second release"
        assert len(ledger.releases()) == 3 and ledger.spent().value == spent


def test_a_reply_that_was_lost_is_not_drawn_again(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        first = array_bytes(ask(context, request, round=2, noise_multiplier=500.0))
        assert first and array_bytes(ask(context, request, round=2, noise_multiplier=500.0)) == first
        for kept in (out / "replies" / "m0").glob("*.safetensors"):
            kept.unlink()
        assert reason_of(ask(context, request, round=2, noise_multiplier=500.0)) == "the round is over"


@pytest.mark.parametrize("where", ["public", "arrays"])
def test_numbers_that_are_not_finite_are_declined_before_anything_is_paid(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path, where: str
) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        record = request.content[where]
        name = next(key for key in record if "heads" in key)
        spoilt = record[name].numpy().copy()
        spoilt.flat[0] = np.nan
        record[name] = Array(spoilt)
        assert reason_of(ask(context, request, round=2)) == "failed: WireError"
        assert len(Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5).releases()) == 2


def test_a_merchant_without_the_public_part_asks_for_it(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        del request.content["public"]
        (out / "replies" / "m0" / "public.part").unlink()
        assert reason_of(ask(context, request, round=7)) == "needs the public part of the adapter"
        assert len(Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5).releases()) == 2


def test_a_merchant_who_restarts_still_has_the_public_part(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        del request.content["public"]
        forget_merchants()
        fresh = Context(context.run_id, context.node_id, context.node_config, RecordDict(), {})
        assert ask(fresh, request, round=7, noise_multiplier=500.0).content["statement"]["status"] == "ok"


def test_a_merchant_with_another_encoder_declines(crowd: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0)
    with a_merchant(crowd, config, out) as (context, request):
        assert "is not the server's" in reason_of(ask(context, request, round=7, trunk="0" * 24))
        assert len(Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5).releases()) == 2


@pytest.mark.parametrize(
    "task",
    [
        {"noise_multiplier": float("nan")}, {"noise_multiplier": 0.0}, {"noise_multiplier": -5.0}, {"sample_rate": 0.0},
        {"sample_rate": float("nan")}, {"sample_rate": 1.5}, {"local_steps": 0}, {"local_steps": -1}, {"clip_norm": float("nan")},
        {"clip_norm": float("inf")}, {"clip_norm": 0.0}, {"delta": float("nan")}, {"unit": "none"}, {"part": "all"}, {"more": 1},
        {"local_steps": 100_000}, {"history": 100_000}, {"positions": 0}, {"negatives": 100_000}, {"encoder_layers": -1},
        {"update_code": "int4"}, {"positions": 1000, "history": 101},
    ],
)  # fmt: skip
def test_a_hostile_task_gets_nothing_and_costs_nothing(hostile: tuple[Path, Context, Message], task: dict[str, Any]) -> None:
    out, context, request = hostile
    os.environ["FEDREC_SITE"] = str((out / "site.json").resolve())
    ledger = out / "privacy" / "m0.ledger.jsonl"
    before = ledger.read_bytes()
    reply = ask(context, request, **{"round": 9, **task})
    assert reply.content["statement"]["status"] == "declined" and not array_bytes(reply)
    assert ledger.read_bytes() == before


@pytest.fixture(scope="module")
def hostile(crowd: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Context, Message]:
    out = tmp_path_factory.mktemp("hostile") / "run"
    with a_merchant(crowd, settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0, epsilon=4.0), out) as (context, request):
        return out, context, request


def test_a_request_for_what_nobody_has_fails_without_an_answer(hostile: tuple[Path, Context, Message]) -> None:
    """Weights that are not numbers are refused before the ledger is touched."""
    out, context, request = hostile
    os.environ["FEDREC_SITE"] = str((out / "site.json").resolve())
    broken = RecordDict(dict(request.content))
    arrays = {name: np.full_like(value, np.nan) for name, value in wire.from_record(request.content["arrays"]).items()}
    broken["arrays"] = wire.to_record(arrays)
    reply = ask(context, Message(broken, 2, "train"), round=9)
    assert reason_of(reply) == "failed: WireError"
    assert len(Ledger(out / "privacy" / "m0.ledger.jsonl", 1e-5).releases()) == 2
