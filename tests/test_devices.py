"""Which device computes, and what is said where there is none or its memory does not suffice."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from clients.memory import is_out_of_memory
from clients.merchant import safely
from clients.site import SITE_VARIABLE
from fedrec.cli.main import app
from fedrec.errors import InputError
from fedrec.model import graphs
from fedrec.model.encoder import resolve_device
from fedrec.privacy import Ledger
from fedrec.training.encoder import _TOPS, _top_layers
from fedrec.training.heads import HeadsTrainer
from fedrec.wire import Reply
from simulations import workers
from simulations.engines import client_resources
from simulations.run import simulate

from .conftest import make_encoder
from .helpers import settings_of
from .merchants import open_shop, public_and_trained, task, write_merchant


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine that says it has three GPUs; which of them a process has chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_workers_take_the_gpus_in_turn(gpus: list[int]) -> None:
    for number in range(5):
        workers._take_gpu(number)
    assert gpus == [0, 1, 2, 0, 1]


def test_a_gpu_with_a_number_is_the_process_s_own(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)  # there is none to allocate on
    assert [resolve_device(name) for name in ("cuda:1", "cuda", "cpu")] == [torch.device(n) for n in ("cuda:1", "cuda", "cpu")]
    assert gpus == [torch.device("cuda:1")]


def test_ray_keeps_a_share_of_a_gpu_for_who_computes_on_one(gpus: list[int]) -> None:
    shares = {device: client_resources(device)["num_gpus"] for device in ("auto", "cuda", "cpu")}
    assert shares["cpu"] == 0 and 0 < shares["auto"] == shares["cuda"] < 1


def test_ray_is_asked_for_no_gpu_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"device: found 'cuda:1'; expected auto, cuda or cpu"):
        simulate(tmp_path, settings_of(tmp_path, device="cuda:1"), tmp_path / "run", "flower")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cuda:7", "abacus"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"device: device '{name}' cannot be used"):
        resolve_device(name)


def asked(shop: Path, bert: Path, out: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Reply, Ledger]:
    """What a simulated merchant answers to a round of training, and its ledger."""
    shop_here = open_shop(shop, bert, out / "state")
    public, trained = public_and_trained(shop_here)
    model = {"encoder": str(bert), "device": device, "texts_per_batch": 64}
    site = {"federation": str(shop.parents[1]), "run": str(out), "seed": 0, "model": model}
    (out / "site.json").write_text(json.dumps(site), encoding="utf-8")
    monkeypatch.setenv(SITE_VARIABLE, str(out / "site.json"))
    context = Context(run_id=1, node_id=2, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    reply = safely(context, lambda merchant: merchant.train(task(merchant), trained, public))
    return reply, Ledger(out / "privacy" / "shop.ledger.jsonl", 1e-5)


def on_the_processor(monkeypatch: pytest.MonkeyPatch) -> str:
    # What a chunk of a lot is made of, far larger than any machine.
    monkeypatch.setattr(HeadsTrainer, "_parts", lambda *_: iter([torch.empty(2**58)]))
    return "cpu"


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(HeadsTrainer, "_parts", lambda *_: iter([torch.empty(2**44, device="cuda")]))
    return "cuda"


@pytest.mark.parametrize(
    "limit",
    [on_the_processor, pytest.param(on_a_gpu, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
def test_a_round_that_does_not_fit_is_paid_for_and_one_line_says_what_helps(
    tiny_bert_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: Callable[[pytest.MonkeyPatch], str],
) -> None:
    shop = write_merchant(tmp_path / "federation" / "merchants" / "shop", epsilon=50.0)
    with caplog.at_level(logging.ERROR):
        reply, ledger = asked(shop, tiny_bert_folder, tmp_path, limit(monkeypatch), monkeypatch)
    assert reply.statement.status == "declined" and reply.statement.reason.startswith("failed: ") and not reply.arrays
    assert [release.mechanism for release in ledger.releases()] == ["dp-sgd"] and ledger.spent().value > 0
    [line] = [record for record in caplog.records if record.name == "fedrec.merchant"]
    assert line.exc_info is None and "\n" not in line.getMessage()
    for said in ("merchant shop: out of memory", "paid for", "fewer workers", "texts_per_batch, which is 64"):
        assert said in line.getMessage()


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublas"])
def test_what_a_round_that_did_not_fit_held_is_free_for_the_next(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    """What the failing frames held is gone, and what is kept between rounds, before the allocator gives back what is free."""
    held: list[weakref.ref[torch.Tensor]] = []
    left: list[tuple[int, int]] = []
    encoder = make_encoder(tiny_bert_folder)
    _top_layers(encoder)

    def parts(*_: object) -> None:
        large = torch.zeros(9)
        held.append(weakref.ref(large))
        raise RuntimeError(f"{said}\nSee the documentation")

    monkeypatch.setattr(HeadsTrainer, "_parts", parts)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append((sum(one() is not None for one in held), len(_TOPS))))
    shop = write_merchant(tmp_path / "federation" / "merchants" / "shop", epsilon=50.0)
    with caplog.at_level(logging.ERROR):
        reply, _ = asked(shop, tiny_bert_folder, tmp_path, "cpu", monkeypatch)
    assert reply.statement.status == "declined" and len(held) == 1 and left == [(0, 0)]
    [line] = [record.getMessage() for record in caplog.records if record.name == "fedrec.merchant"]
    assert "out of memory on device 'cpu'" in line and said in line


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not any(map(is_out_of_memory, (RuntimeError("CUDA error: an illegal access"), ValueError("out of memory"))))


def test_graphs_keep_those_that_were_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that goes without a GPU: recording is left out."""
    recorded: list[int] = []

    def record(_: object, inputs: list[Any], *__: object) -> Callable[..., None]:
        recorded.append(inputs[0].shape)
        return lambda _: None

    monkeypatch.setattr(graphs, "_Graph", record)
    monkeypatch.setattr(graphs, "MOST", 2)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    ours = graphs.Graphs(kept=True)
    for shape in (1, 2, 1, 3, 1, 2):
        ours("f", abs, [SimpleNamespace(shape=shape, dtype=torch.float32, device=torch.device("cuda"))])  # type: ignore[list-item]
    assert recorded == [1, 2, 3, 2]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: out of memory"), MemoryError("2 GB")]
)
def test_a_simulation_that_does_not_fit_stops_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise type(error)(f"{error}\nSee the documentation")

    monkeypatch.setattr("simulations.run.simulate", encode)
    done = CliRunner().invoke(app, ["simulate", str(tmp_path), "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("stopped")]
    assert str(error) in line and "fewer workers" in line
