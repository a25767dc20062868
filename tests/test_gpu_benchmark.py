"""What a step asks of a device is counted and bounded here; that the command for a GPU works is tried on the processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.bench import Bench, clipped
from benchmarks.counts import Counts, counted
from benchmarks.gpu_pieces import PIECES, SMALL, Machine
from fedrec.training import Examples, merged

USERS, ENCODER, HEADS, CROSSINGS = 64, 700, 240, 16
"""Of a step's lot; launches that a step on the encoder and on the heads may ask for, and copies of either."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A shop whose texts are batched as on a GPU."""
    machine = Machine(torch.device("cpu"), replace(SMALL, users=100), tmp_path_factory.mktemp("shop"))
    found = machine.bench(history=12)
    found.encoder.shapes = replace(found.encoder.shapes, fixed=True)
    return found


def counts_of(step: Callable[[Examples], object], lot: Examples) -> Counts:
    """What a step asks for once what is made once is made."""
    step(lot)
    with counted() as counts:
        step(lot)
    return counts


def test_launches_copies_and_operations_are_counted() -> None:
    left = torch.ones(4, 5, requires_grad=True)
    with counted() as counts:
        right = torch.from_numpy(np.ones((5, 3), dtype=np.float32))
        (left @ right).sum().backward()
        assert left.grad is not None and left.grad.view(-1)[0].item() == 3
    assert counts.launches["mm"] == 2 and counts.operations == {"float32": 2 * 2 * 4 * 5 * 3}
    assert counts.crossings == {"from_numpy": 1, "_local_scalar_dense": 1}


def test_a_step_on_the_encoder_asks_for_few_launches_whatever_the_lot(bench: Bench) -> None:
    step = bench.ours()
    few, many = (counts_of(step, bench.lot(users)) for users in (USERS // 4, USERS))
    assert many.launches.total() < ENCODER and many.crossings.total() < CROSSINGS
    assert many.launches.total() < 2 * few.launches.total()


def test_a_step_on_the_heads_asks_for_few_launches(bench: Bench) -> None:
    trainer = bench.heads_trainer()
    trainer.fixed = True
    counts = counts_of(clipped(trainer), merged(bench.lot(USERS)))
    assert counts.launches.total() < HEADS and counts.crossings.total() < CROSSINGS


def test_without_the_device_there_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([str(tmp_path / "out"), "--device", "cuda:63"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: device: device 'cuda:63' cannot be used") and "--device cpu --small" in line
    assert not (tmp_path / "out").exists()


def test_a_piece_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PIECES, "checks", lambda machine: [][0])
    assert gpu.main([str(tmp_path), "--device", "cpu", "--small", "--only", "checks", "larger"]) == 1
    out = capsys.readouterr().out
    assert (
        "| checks |  | failed | IndexError: list index out of range |" in out
        and "large encoder, LoRA of rank 2 in 1 layers" in out
    )
    assert json.loads((tmp_path / "larger.json").read_text())["rows"][0]["seconds"] > 0


@pytest.mark.slow
def test_all_pieces_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in PIECES if name != "checks"]  # tests, which run here anyway
    for some in (names[:2], names[2:]):
        assert gpu.main([str(tmp_path), "--device", "cpu", "--small", "--only", *some]) == 0
    table = capsys.readouterr().out.rpartition("| what |")[2]
    for row in (
        "private step on the encoder, 4 users",
        "plain, heads",
        "plain, encoder",
        "new catalogue",
        "new adapter",
        "a round",
    ):
        assert row in table
    assert all((tmp_path / f"{name}.json").exists() for name in names)
