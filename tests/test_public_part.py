"""What a server can make a merchant keep before anything is paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from clients.merchant import PUBLIC, Merchant, forget_merchants
from fedrec import wire
from fedrec.model.adapter import Arrays, digest
from fedrec.wire import MOST_TEXTS, HistogramTask, WireError

from .merchants import open_shop, public_and_trained, task, write_merchant

Change = Callable[[Arrays, Arrays], object]


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path) -> Merchant:
    return open_shop(write_merchant(tmp_path / "shop", epsilon=50.0), tiny_bert_folder, tmp_path / "state")


@pytest.fixture
def a_run() -> Iterator[None]:
    """Flower makes messages inside a run only."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        if name in ("_task_id", "_run_id", "_node_id"):
            setattr(TaskIdentity, name, value)


def kept(shop: Merchant) -> bool:
    return (shop.site.replies / shop.name / PUBLIC).exists()


def without(name: str) -> Change:
    return lambda public, trained: (public if name in public else trained).pop(name)


def instead(name: str, value: np.ndarray) -> Change:
    return lambda public, trained: (trained if name in trained else public).update({name: value})


BAD: dict[str, Change] = {
    "no centre": without("centre"),
    "no prior": without("prior.counts"),
    "no A of the heads": without("heads.A"),
    "no B": without("heads.history.B"),
    "one more in public": instead("more", np.zeros(1, np.float32)),
    "one more trained": lambda public, trained: trained.update(more=np.zeros(1, np.float32)),
    "another width": instead("centre", np.zeros(33, np.float32)),
    "another rank": instead("heads.candidate.B", np.zeros((3, 32), np.float32)),
    "huge rank": instead("heads.A", np.zeros((32, 1001), np.float32)),
    "counts for other texts": instead("prior.counts", np.ones(7, np.float32)),
    "keys that are no keys": instead("prior.keys", np.zeros(20, np.float32)),
    "float64": instead("centre", np.zeros(32)),
    "a square floor": instead("prior.floor", np.ones((1, 1), np.float32)),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_arrays_that_the_encoder_has_no_use_for_are_not_kept(shop: Merchant, change: Change) -> None:
    public, trained = public_and_trained(shop)
    change(public, trained)
    with pytest.raises(WireError):
        shop.held(task(shop), trained, digest(public), public)
    assert not kept(shop)


def test_more_texts_than_the_ceiling_are_not_kept(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    public["prior.keys"], public["prior.counts"] = np.zeros(MOST_TEXTS + 1, np.uint64), np.zeros(MOST_TEXTS + 1, np.float32)
    with pytest.raises(WireError, match="texts"):
        shop.held(task(shop), trained, digest(public), public)
    assert not kept(shop)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_multiplier": 0.01}, "policy: noise_multiplier"),
        ({"clip_norm": 1e3}, "policy: clip_norm"),
        ({"delta": 0.5}, "policy: delta"),
        ({"unit": "event"}, "policy: unit"),
        ({"trunk": "another"}, "the encoder here is not the server's"),
    ],
)
def test_nothing_is_kept_for_a_round_that_is_refused(shop: Merchant, changes: dict[str, object], reason: str) -> None:
    public, trained = public_and_trained(shop)
    found = shop.held(replace(task(shop), **changes), trained, digest(public), public)
    assert isinstance(found, str) and found.startswith(reason)
    assert not kept(shop)


def test_what_fits_is_kept_and_found_again(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    assert shop.held(task(shop), trained, digest(public), None) == "needs the public part of the adapter"
    assert shop.held(task(shop), trained, "another digest", public) == "needs the public part of the adapter"
    assert not kept(shop)
    assert shop.held(task(shop), trained, digest(public), public) == public
    again = shop.held(task(shop), trained, digest(public), None)
    assert isinstance(again, dict) and digest(again) == digest(public)


@pytest.mark.usefixtures("a_run")
def test_a_decline_names_nothing_of_this_machine(shop: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    public, trained = public_and_trained(shop)
    assert shop.site.model.encoder.startswith("/")
    content = wire.encode_train(task(shop), trained, digest(public), public)
    content["task"]["trunk"] = "another"
    forget_merchants()
    for module in ("merchant", "recorder"):
        monkeypatch.setattr(f"clients.{module}.site_of", lambda _: shop.site)
    reply = wire.decode_reply(app(Message(content, 2, "train"), Context(1, 2, {}, RecordDict(), {})))
    assert reply.statement.reason == "the encoder here is not the server's"


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": np.zeros(MOST_TEXTS + 1, np.uint64)},
        {"keys": np.zeros((2, 2), np.uint64)},
        {"keys": np.zeros(3, np.float32)},
        {"keys": np.zeros(3, np.uint64), "more": np.zeros(3, np.uint64)},
        {},
    ],
)
@pytest.mark.usefixtures("a_run")
def test_a_histogram_of_what_are_no_keys_is_refused(arrays: Arrays) -> None:
    content = wire.encode_histogram_task(HistogramTask("run", 5.0, 1e-5, "user"), np.zeros(1, np.uint64))
    content["arrays"] = wire.to_record(arrays)
    with pytest.raises(WireError, match="keys"):
        wire.decode_histogram_task(Message(content, 2, "train.histogram"))
