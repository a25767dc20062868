"""Where a deployed merchant's randomness comes from: its replies are a function of the operating system's bytes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tomli_w
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from clients.merchant import forget_merchants
from fedrec import secure, wire
from fedrec.data.roles import BYTES, SECRET_FILE
from fedrec.deploy.certificates import new_node_key
from fedrec.merchant import OWN
from fedrec.model.adapter import Arrays, digest, of_part
from fedrec.secure import Roster
from fedrec.training import RoundTask
from fedrec.training.update_code import SCALES
from fedrec.wire import Announce, HistogramTask, Step

from .merchants import open_shop, public_and_trained, task, write_merchant

NAMES = ("m0", "m1", "m2")
PSEUDORANDOM = {
    np.random: [name for name in dir(np.random) if not name.startswith("_") and callable(getattr(np.random, name))],
    random: [name for name in random.__all__ if name != "SystemRandom"],
    torch: [
        "Generator", "bernoulli", "manual_seed", "multinomial", "normal", "poisson", "rand", "rand_like", "randint",
        "randint_like", "randn", "randn_like", "randperm", "seed", "default_generator",
    ],
    torch.Tensor: ["bernoulli_", "exponential_", "normal_", "random_", "uniform_", "bernoulli", "multinomial"],
}  # fmt: skip
"""Every generator that can be seeded, and all that draws from a hidden one."""


@dataclass
class Tape:
    """Stands for the operating system's entropy: other bytes for each `label`, and how many were read."""

    label: str
    read: int = 0
    calls: int = 0

    def urandom(self, count: int) -> bytes:
        self.read, self.calls = self.read + count, self.calls + 1
        return hashlib.shake_256(f"{self.label} {self.calls}".encode()).digest(count)


@contextmanager
def nothing_else_is_random() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a generator other than the operating system was asked")

    before = [(module, name, getattr(module, name)) for module, names in PSEUDORANDOM.items() for name in names]
    try:
        for module, name, _ in before:
            setattr(module, name, refuse)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@dataclass
class Shops:
    """Three deployed merchants in their folders, and the adapter that a server would send them."""

    root: Path
    trained: Arrays
    public: Arrays
    task: RoundTask

    def ask(self, kind: str, content: RecordDict, name: str = "m0") -> wire.Reply:
        context = Context(1, 2, {"folder": str(self.root / name)}, RecordDict(), {})
        return wire.decode_reply(app(Message(content, 2, kind), context))

    def under(self, tape: Tape, state: Path, kind: str, content: RecordDict) -> Arrays:
        """What m0 answers when the operating system says what is on the tape; its state stays as it was."""
        shutil.copytree(self.root, state)
        forget_merchants()
        there = Shops(state, self.trained, self.public, self.task)
        with nothing_else_is_random(), patch.object(os, "urandom", tape.urandom):
            reply = there.ask(kind, content)
        forget_merchants()
        assert reply.statement.status == "ok" and not reply.statement.simulated, reply.statement.reason
        return reply.arrays


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Iterator[Shops]:
    root = tmp_path_factory.mktemp("shops")
    keys = {name: new_node_key(name) for name in NAMES}
    roster = Roster({name: " ".join(pair.public.decode().split()[:2]) for name, pair in keys.items()})
    privacy = {"epsilon": 8.0, "delta": 1e-5, "population": 30, "trust": "secure-aggregation"}
    model = {"encoder": str(tiny_bert_folder), "device": "cpu", "texts_per_batch": 64}  # as `open_shop`, which loads it
    for name, pair in keys.items():
        folder = write_merchant(root / name)
        settings = {"name": name, "privacy": privacy, "model": model}
        (folder / "merchant.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
        (folder / OWN).mkdir()
        (folder / OWN / SECRET_FILE).write_bytes(bytes(BYTES))  # drawn once for good; who trains must not differ between tapes
        (folder / "tls").mkdir()
        (folder / "tls" / "node.key").write_bytes(pair.private)
        roster.write(folder / "roster.txt")
    shop = open_shop(root / "m0", tiny_bert_folder, root / "unused")
    public, trained = public_and_trained(shop)
    before = dict(vars(TaskIdentity))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield Shops(root, trained, public, task(shop, sample_rate=0.5))
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, before[name])


Asked = tuple[str, RecordDict, int]


def training(part: str, code: str = "float32") -> Callable[[Shops], Asked]:
    def request(shops: Shops) -> Asked:
        asked = replace(shops.task, part=part, update_code=code)
        numbers = sum(value.size for value in of_part(shops.trained, asked.part).values())
        return "train", wire.encode_train(asked, shops.trained, digest(shops.public), shops.public), numbers

    return request


def histogram(shops: Shops) -> Asked:
    keys = shops.public["prior.keys"]
    return "train.histogram", wire.encode_histogram_task(HistogramTask("run", 20.0, 1e-5, "user"), keys), len(keys)


def masks(shops: Shops) -> Asked:
    """A sum up to where m0 is asked for its masked integers."""
    asked = shops.task
    offer = Announce(
        asked.run, asked.round, "one", 0, 1, "dp-sgd", asked.noise_multiplier, asked.sample_rate, asked.clip_norm, "user", 1e-5
    )
    first = {name: shops.ask("train.announce", wire.encode_announce(offer), name).step for name in NAMES}
    rows = [step.listed("first", "second", "third", "fourth")[0][1:] for step in first.values() if step]
    keys = Step("one", "", 0, NAMES, *(tuple(column) for column in zip(*rows, strict=True)))
    sealed = {name: shops.ask("train.share", wire.encode_step(asked.run, asked.round, keys), name).step for name in NAMES}
    boxes = {name: dict(step.listed("first")).get("m0", b"") for name, step in sealed.items() if step and name != "m0"}
    numbers = sum(value.size for value in of_part(shops.trained, "heads").values())
    scale = secure.finest(numbers, asked.clip_norm, 90, 2 * asked.noise_multiplier, 2.0**23)
    step = Step("one", names=tuple(boxes), first=tuple(boxes.values()), there=NAMES, scale=scale)
    content = wire.encode_train(asked, shops.trained, digest(shops.public), shops.public)
    return "train.mask", wire.with_step(content, step), numbers


REQUESTS = {
    "heads": training("heads"), "encoder": training("encoder"), "int8": training("heads", "int8"), "histogram": histogram,
    "masks": masks,
}  # fmt: skip


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_deployed_reply_is_a_function_of_the_operating_systems_bytes(shops: Shops, tmp_path: Path, kind: str) -> None:
    message, content, numbers = REQUESTS[kind](shops)
    tapes = [Tape("one"), Tape("one"), Tape("another")]
    one, same, other = (shops.under(tape, tmp_path / f"{i}", message, content) for i, tape in enumerate(tapes))
    assert one.keys() == same.keys() == other.keys()
    assert all(np.array_equal(one[name], same[name]) for name in one), "something else than these bytes is in it"
    assert tapes[0].read == tapes[1].read
    for tape in tapes:
        assert tape.read >= 8 * numbers, "fewer bytes than numbers in float64: some are stretched or come from elsewhere"
    released = {name: value for name, value in one.items() if not name.endswith(SCALES)}
    assert sum(value.size for value in released.values()) == numbers
    changed = np.concatenate([(value != other[name]).ravel() for name, value in released.items()])
    # Integers of a few thousand steps, or of eight bits, may be the same by chance.
    assert changed.all() if kind in ("heads", "encoder", "histogram") else changed.mean() > 0.8, "some noise ignores the bytes"
