"""Nothing private crosses: every message, log line and error of a run, searched for what was planted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.common.serde import message_to_proto

import clients.merchant
from fedrec import wire
from fedrec.data import load_central, load_merchant, text_key
from fedrec.data.split import split_source
from fedrec.model import encoder
from fedrec.model.adapter import HEAD_B, digest
from fedrec.training.heads import HeadsTrainer
from fedrec.training.update_code import SCALES
from simulations.run import simulate

from .conftest import write_source
from .helpers import QUERIES, recorded, settings_of, with_searches

ITEM, TITLE = "sku-{}-planted", "planted title of {}"


@pytest.fixture(scope="module", params=["float32", "int8"])
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> dict[str, Any]:
    """A run with planted ids and titles, all its messages, its log, the merchants' true losses, and a merchant that fails."""
    folder = tmp_path_factory.mktemp("audit")
    source = write_source(folder / "source")
    events, items = pd.read_parquet(source / "events.parquet"), pd.read_parquet(source / "items.parquet")
    events["user_id"] = [f"planted-user-{name}" for name in events["user_id"]]
    events["item_id"] = [ITEM.format(name) for name in events["item_id"]]
    items["title"] = [TITLE.format(name) for name in items["item_id"]]
    items["item_id"] = [ITEM.format(name) for name in items["item_id"]]
    with_searches(events, words=QUERIES).to_parquet(source / "events.parquet", index=False)
    items.to_parquet(source / "items.parquet", index=False)
    split_source(source, folder / "federation", 0.3, {"epsilon": 9.0, "delta": 1e-5})

    losses: list[float] = []
    original_gradients, original_train = HeadsTrainer.gradients, clients.merchant.train_round

    def watched_gradients(trainer: HeadsTrainer, lot: Any) -> Any:
        value = trainer.losses(lot)
        losses.extend([float(value.sum()), float(value.mean()), *value.tolist()])
        return original_gradients(trainer, lot)

    def failing_train(task: Any, catalogue: Any, *rest: Any, **named: Any) -> Any:
        if task.round == 2 and named["noise"].uniform(1)[0] < 1 and len(failed) < 1:
            failed.append(task.round)
            raise ValueError("planted-user-u1 bought sku-i1-planted")
        return original_train(task, catalogue, *rest, **named)

    failed: list[int] = []
    log: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: log.append(record.getMessage())  # type: ignore[method-assign]
    logs = [logging.getLogger(name) for name in ("flwr", "fedrec")]
    for one in logs:
        one.addHandler(handler)
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDREC_CACHE", str(folder / "cache"))
    encoder._load.cache_clear()  # one that is in use already remembers texts, and writes none of them
    patch.setattr(HeadsTrainer, "gradients", watched_gradients)
    patch.setattr(clients.merchant, "train_round", failing_train)
    try:
        with recorded(deliveries=True) as crossed:
            config = settings_of(tiny_bert_folder, update_code=request.param)
            run = simulate(folder / "federation", config, folder / "run", record_wire=True)
    finally:
        patch.undo()
        for one in logs:
            one.removeHandler(handler)
    assert failed and losses
    training = [pair for pair in crossed if pair[0].metadata.message_type != wire.DELIVER]
    home = [pair for pair in crossed if pair[0].metadata.message_type == wire.DELIVER]
    return {
        "crossed": training, "home": home, "log": log, "losses": losses, "run": run, "federation": folder / "federation",
        "cache": folder / "cache",
    }  # fmt: skip


def planted(federation: Path) -> list[str]:
    out = []
    for folder in sorted((federation / "merchants").iterdir()):
        data = load_merchant(folder)
        out += [*data.histories.user_ids, *data.catalogue.item_ids, *data.catalogue.texts, *data.histories.queries]
    return out


def test_no_id_or_title_is_in_any_reply_or_server_log_or_metrics(audited: dict[str, Any]) -> None:
    needles = [text.encode() for text in planted(audited["federation"])]
    assert len(needles) > 100
    replies = [message_to_proto(reply).SerializeToString() for _, reply in [*audited["crossed"], *audited["home"]]]
    files = [(audited["run"].path / name).read_bytes() for name in ("metrics.jsonl", "delivered.json")]
    places = [*replies, *(line.encode() for line in audited["log"]), *files]
    assert len(replies) == 3 * 5
    for place in places:
        assert not [needle for needle in needles if needle in place]


def test_no_search_is_in_a_message_a_run_folder_a_log_or_a_cache(audited: dict[str, Any]) -> None:
    """Not its words; and of a cache, whose files hold what a text becomes under the key of that text, not its key either."""
    shops = [load_merchant(folder) for folder in sorted((audited["federation"] / "merchants").iterdir())]
    queries = {*load_central(audited["federation"]).queries, *(query for data in shops for query in data.histories.queries)}
    assert len(queries) > 100 and all("searched-secret" in query for query in queries)
    messages = [message for pair in [*audited["crossed"], *audited["home"]] for message in pair]
    files = [path.read_bytes() for root in (audited["run"].path, audited["cache"]) for path in root.rglob("*") if path.is_file()]
    for place in [*(message_to_proto(one).SerializeToString() for one in messages), *files]:
        assert b"searched-secret" not in place
    assert "searched" not in "".join(audited["log"])
    cached = {int(key) for path in audited["cache"].rglob("*.index.npy") for key in np.load(path)["key"]}
    assert cached >= {int(key) for data in shops for key in data.catalogue.keys}
    assert cached.isdisjoint(map(text_key, queries))
    sold = pd.read_parquet(audited["run"].path / "adapter" / "catalogue.parquet")  # compressed, so its bytes would not show it
    assert len(sold) == len(shops[0].catalogue) and "searched-secret" not in sold.to_csv()


def test_no_loss_is_in_any_reply(audited: dict[str, Any]) -> None:
    losses = np.array(audited["losses"])
    losses = losses[np.abs(losses) > 1e-6]
    sent = np.concatenate(
        [value.ravel() for _, reply in audited["crossed"] for value in wire.decode_reply(reply).arrays.values()]
    )
    assert not np.isin(losses.astype(np.float32), np.abs(sent)).any()
    scalars = [
        value for _, reply in audited["crossed"] for value in reply.content["statement"].values() if isinstance(value, float)
    ]
    assert not np.isin(losses.astype(np.float32), np.array(scalars, dtype=np.float32)).any()


def test_every_reply_holds_only_what_is_on_the_list(audited: dict[str, Any]) -> None:
    for request, reply in audited["crossed"]:
        assert not reply.has_error()
        assert set(reply.content) == {"arrays", "statement"}
        assert set(reply.content["statement"]) == wire.STATEMENT_KEYS
        arrays = {name: value.dtype for name, value in reply.content["arrays"].items()}
        if request.metadata.message_type == "train.histogram":
            assert arrays == {wire.HISTOGRAM: "float32"}
            continue
        if audited["run"].config.update_code == "int8":
            coded = {name for name, dtype in arrays.items() if dtype == "int8"}
            assert arrays == dict.fromkeys(coded, "int8") | {name + SCALES: "float32" for name in coded}
        else:
            coded = set(arrays)
            assert set(arrays.values()) <= {"float32"}
        assert coded in (set(), set(HEAD_B.values())) or all(name.endswith("lora_B.weight") for name in coded)


def test_the_answer_to_a_delivery_is_a_receipt_from_the_list(audited: dict[str, Any]) -> None:
    sent = {request.content["task"]["digest"] for request, _ in audited["home"]}
    assert len(sent) == 1 and len(audited["home"]) == 3
    for request, reply in audited["home"]:
        assert not reply.has_error()
        assert set(reply.content) == {"receipt"} and set(reply.content["receipt"]) == wire.RECEIPT_KEYS
        said = dict(reply.content["receipt"])
        assert said.pop("outcome") in wire.OUTCOMES and said.pop("merchant") in {"m0", "m1", "m2"}
        asked = request.content["task"]
        assert said == {name: asked[name] for name in ("run", "round", "digest")}, "only what was sent comes back"


def test_what_is_delivered_is_public(audited: dict[str, Any]) -> None:
    state = audited["run"].load()
    released = {**state.public, **state.trained}
    for request, _ in audited["home"]:
        public, trained = wire.delivered_arrays(request)
        assert digest({**public, **trained}) == digest(released)


def test_a_failure_says_its_kind_and_nothing_else(audited: dict[str, Any]) -> None:
    reasons = [wire.decode_reply(reply).statement.reason for _, reply in audited["crossed"]]
    assert reasons.count("failed: ValueError") == 1
    assert set(reasons) <= {"", "failed: ValueError"}


def test_the_record_on_the_merchants_disk_agrees_with_what_crossed(audited: dict[str, Any]) -> None:
    files = sorted((audited["run"].path / "privacy" / "wire").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    crossed = [*audited["crossed"], *audited["home"]]
    assert len(files) == 3 and len(lines) == len(crossed)
    assert sum(line["bytes"] for line in lines) == sum(wire.size(reply.content) for _, reply in crossed)
    names = {(value["record"], value["name"]) for line in lines for value in line["values"]}
    assert {name for record, name in names if record == "statement"} == wire.STATEMENT_KEYS
    assert {name for record, name in names if record == "receipt"} == wire.RECEIPT_KEYS
    assert {record for record, _ in names} == {"arrays", "statement", "receipt"}
    receipts = [{one["name"]: one["value"] for one in line["values"]} for line in lines if line["type"] == wire.DELIVER]
    assert receipts == [dict(reply.content["receipt"]) for _, reply in audited["home"]]
