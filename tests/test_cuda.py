"""On a GPU, where there is one: equal to the processor's within a bound, and to the bit whoever else is in the lot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from clients.merchant import Merchant
from fedrec.config import RunConfig
from fedrec.data import Catalogue
from fedrec.model import load_encoder
from fedrec.model.adapter import HEAD_A, HEAD_B
from fedrec.model.encoder import PACKAGED
from fedrec.model.towers import Scoring, init_base, init_trained
from fedrec.privacy import SeededNoise
from fedrec.recommender import Recommender
from fedrec.training import Examples, build_examples, merged
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.heads import HeadsTrainer
from fedrec.wire import HistogramTask
from simulations.run import simulate

from .conftest import WORDS, make_catalogue, make_encoder, make_histories
from .helpers import central, make_federation, settings_of, with_searches
from .merchants import open_shop, public_and_trained, task, write_merchant
from .test_per_user_gradients import factors_of, flat_gradients, hostile_heads, setup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
LOW = pytest.mark.parametrize("low_precision", [False, True], ids=["float32", "bfloat16"])


@pytest.fixture(params=[False, True], ids=["bought", "searched"])
def shops(request: pytest.FixtureRequest, tiny_bert_folder: Path, tmp_path: Path) -> list[Merchant]:
    """One merchant on the processor and on the GPU, with the same seed of noise; its users may have searched for something."""
    folder, out = write_merchant(tmp_path / "shop", epsilon=50.0), list[Merchant]()
    if request.param:
        with_searches(pd.read_parquet(folder / "events.parquet")).to_parquet(folder / "events.parquet", index=False)
    for device in ("cpu", "cuda"):
        shop = open_shop(folder, tiny_bert_folder, tmp_path / device)
        model = shop.site.model.model_copy(update={"device": device})
        out.append(Merchant(shop.name, shop.data, shop.policy, dataclasses.replace(shop.site, model=model)))
    return out


def assert_close(found: np.ndarray, wanted: np.ndarray, share: float) -> None:
    assert np.abs(wanted).max() > 0
    assert np.abs(found - wanted).max() <= share * np.abs(wanted).max()


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


# -- equal to the processor's --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["heads", "encoder"])
def test_a_round_on_the_gpu_equals_one_on_the_processor(shops: list[Merchant], part: str) -> None:
    updates = []
    for shop in shops:
        public, trained = public_and_trained(shop)
        reply = shop.train(task(shop, part=part), trained, public)
        assert reply.statement.status == "ok"
        updates.append(flat(reply.arrays))
    # The noise is the same, so what differs is the gradient's rounding (bf16 in the encoder).
    assert_close(updates[1], updates[0], 0.02)


@pytest.mark.parametrize(("part", "share"), [("heads", 0.02), ("encoder", 0.1)])
def test_a_share_of_a_secure_sum_equals_the_processors(shops: list[Merchant], part: str, share: float) -> None:
    """Without noise; of the encoder in bf16 on both sides of the trunk's boundary."""
    sums = []
    for shop in shops:
        public, trained = public_and_trained(shop)
        rng = np.random.default_rng(0)  # from B = 0 most gradients are small
        trained = {name: rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in sorted(trained.items())}
        sums.append(flat(shop.clipped_sum(task(shop, part=part), trained, public, SeededNoise(0, "sum"))))
    assert_close(sums[1], sums[0], share)


def test_the_histogram_is_the_processors(shops: list[Merchant]) -> None:
    replies = [shop.histogram(HistogramTask("run", 1.0, 1e-5, "user"), shop.data.catalogue.keys) for shop in shops]
    assert np.array_equal(flat(replies[0].arrays), flat(replies[1].arrays))


@LOW
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_the_encoder_are_the_processors(tiny_bert_folder: Path, seed: int, low_precision: bool) -> None:
    """Over the same states, one to three layers."""
    rng, encoder, states, base, trained, scoring, prior, _, examples, (history, _, _) = setup(tiny_bert_folder, seed)
    rank = next(value.shape[1] for name, value in trained.items() if "lora_B" in name)
    other = make_encoder(tiny_bert_folder, encoder.layers, rank, device="cuda")
    other.low_precision = low_precision
    negatives, found = rng.integers(0, len(prior), 9), []
    for one in (other, encoder):
        trainer = EncoderTrainer(one, states, prior, base, trained, scoring, history=2 * history)
        trainer.negatives = negatives
        found.append(flat_gradients(trainer, examples).cpu())
    largest = found[1].norm(dim=1).max()
    assert largest > 1e-3
    assert float((found[0] - found[1]).norm(dim=1).max()) <= (0.1 if low_precision else 1e-4) * float(largest)


def test_the_item_table_is_the_processors(tiny_bert_folder: Path) -> None:
    catalogue, tables = make_catalogue(200), []
    for device in ("cpu", "cuda"):
        encoder = load_encoder(str(tiny_bert_folder), 1, 2, 32, device, 16)
        encoder.load(shaken(encoder.trained()))
        tables.append(encoder.embed(catalogue).cpu())
    assert float(torch.nn.functional.cosine_similarity(*tables).min()) > 0.995


def test_a_run_its_evaluation_and_its_recommender(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """The central metrics of every round, with the same noise; and one run's recommender on both."""
    federation = make_federation(tmp_path, merchants=2, users=40)
    runs = [simulate(federation, config_of(tiny_bert_folder, device), tmp_path / device) for device in ("cpu", "cuda")]
    for wanted, found in zip(*map(central, runs), strict=True):
        assert found.keys() == wanted.keys()
        assert all(abs(found[name] - wanted[name]) <= 0.15 for name in wanted), (found, wanted)
    lists = [
        Recommender.load(runs[0].path, device=device).rank(["i3", "i11"], 30, query="red lamp") for device in ("cpu", "cuda")
    ]
    scores = [{str(item): score for item, score in ranked} for ranked in lists]
    both = scores[0].keys() & scores[1].keys()
    assert len(both) >= 0.8 * len(scores[0])
    spread = max(scores[0].values()) - min(scores[0].values())
    assert max(abs(scores[0][item] - scores[1][item]) for item in both) <= 0.1 * spread


def config_of(bert: Path, device: str) -> RunConfig:
    return settings_of(bert, rounds=2, device=device)


def shaken(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.05, value.shape).astype(np.float32) for name, value in sorted(arrays.items())}


# -- who else is there ---------------------------------------------------------------------------------------------------------


def real_trainer(low_precision: bool) -> tuple[EncoderTrainer, Examples]:
    """On the packaged model: kernels are chosen by size."""
    encoder = load_encoder(PACKAGED, 1, 4, 32, "cuda", 128)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.choice([1, 2, 4, 6, 12, 20]))) + f" {i}" for i in range(80)]
    catalogue = Catalogue(tuple(f"i{i}" for i in range(80)), tuple(texts))
    states = encoder.states(catalogue)
    base = init_base(encoder, states, True, 8, "principal", 0)
    trained = shaken(init_trained(encoder, True, 8))
    examples = build_examples(make_histories(700, catalogue, baskets=9), history=6, positions=3, decay=0.3)
    trainer = EncoderTrainer(encoder, states, np.zeros(80, dtype=np.float32), base, trained, Scoring(10.0, 0.3, 0.0), history=6)
    trainer.negatives = rng.integers(0, 80, 7)
    encoder.low_precision = low_precision
    return trainer, examples


def lots(users: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    some = [np.array([5]), np.array([5, users - 1]), np.delete(np.arange(users), 100), np.arange(users // 2, users)]
    return [*some, *(np.flatnonzero(rng.random(users) < rate) for rate in (0.1, 0.6))]


@LOW
def test_on_the_encoder_a_gradient_is_the_same_to_the_bit_in_every_lot(low_precision: bool) -> None:
    trainer, examples = real_trainer(low_precision)
    try:
        whole = flat_gradients(trainer, examples)
        assert float(whole.norm(dim=1).median()) > 0
        assert torch.equal(flat_gradients(trainer, examples), whole), "the same lot twice"
        for lot in lots(len(examples)):
            assert torch.equal(flat_gradients(trainer, examples.take(lot)), whole[torch.as_tensor(lot, device="cuda")])
    finally:
        trainer.encoder.low_precision = True


def heads_on_gpu(seed: int, items: int) -> HeadsTrainer:
    """`hostile_heads`, moved."""
    here = hostile_heads(seed, items)
    base = {HEAD_A: np.linalg.lstsq(here.history.e.numpy(), here.history.ea.numpy(), rcond=None)[0].astype(np.float32)}
    trained = {HEAD_B[role]: getattr(here, role).weight.detach().numpy() for role in HEAD_B}
    prior = np.zeros(items, dtype=np.float32)
    return HeadsTrainer(here.history.e.cuda(), prior, base, trained, here.scoring, events=60)


@pytest.mark.parametrize("items", [40, 400])
@pytest.mark.parametrize("seed", range(3))
def test_on_the_heads_a_gradient_is_the_same_to_the_bit_in_every_lot(seed: int, items: int) -> None:
    users = 1500
    histories = make_histories(users, make_catalogue(items), baskets=12)
    examples = merged(build_examples(histories, history=30, positions=2, decay=0.1))
    trainer = heads_on_gpu(seed, items)
    whole = on_host(factors_of, trainer, examples)
    for lot in lots(users):
        for wanted, found in zip(whole, on_host(factors_of, trainer, examples.take(lot)), strict=True):
            assert np.array_equal(wanted[lot], found, equal_nan=True)


def on_host(function: Any, trainer: HeadsTrainer, lot: Examples) -> list[np.ndarray]:
    """`factors_of` with its chunks brought to the processor."""

    class Host:
        @staticmethod
        def gradients(lot: Examples) -> Any:
            for chunk in trainer.gradients(lot):
                parts = tuple(tuple(moved(head) for head in heads) for heads in chunk.parts)
                yield dataclasses.replace(chunk, parts=parts, order=chunk.order.cpu())

    def moved(head: Any) -> Any:
        names = ("left", "right", "along", "known_norms")
        return dataclasses.replace(head, **{name: getattr(head, name).cpu() for name in names})

    return function(Host(), lot)  # type: ignore[no-any-return]


@LOW
def test_a_gradient_that_is_not_finite_spoils_no_other_users(low_precision: bool) -> None:
    """An infinite state of one text: whoever bought it is not finite, and everybody else is as before, to the bit."""
    trainer, examples = real_trainer(low_precision)
    try:
        states, broken = trainer.states, int(np.setdiff1d(np.arange(80), trainer.negatives)[3])
        whole = flat_gradients(trainer, examples)
        shards = [np.array(shard) for shard in states.shards]
        shards[states.shard[broken]][states.start[broken]] = np.inf
        trainer.states = dataclasses.replace(states, shards=tuple(shards))
        found = flat_gradients(trainer, examples)
        spoilt = ~found.isfinite().all(dim=1)
        used = (examples.items == broken) & (examples.weights.max(axis=1) > 0)
        bought = used.any(axis=1)
        bought[examples.target[examples.target[:, 2] == broken, 0]] = True
        assert spoilt.any() and not spoilt.cpu().numpy()[~bought].any()
        assert torch.equal(found[~spoilt], whole[~spoilt])
    finally:
        trainer.encoder.low_precision = True


def test_on_the_heads_what_overflows_counts_for_its_record_alone() -> None:
    """Weights of 1e30 on one direction: norms that are not finite are those of records that have to do with it."""
    items, users = 40, 300
    examples = merged(build_examples(make_histories(users, make_catalogue(items), baskets=6), history=30, positions=2, decay=0.1))
    trainer = heads_on_gpu(1, items)
    with torch.no_grad():
        trainer.history.weight[0] *= 1e12
    (whole,) = trainer.gradients(examples)
    norms = whole.squared_norms()
    for lot in lots(users):
        (part,) = trainer.gradients(examples.take(lot))
        assert torch.equal(part.squared_norms().nan_to_num(), norms[torch.as_tensor(lot, device="cuda")].nan_to_num())
    total = whole.weighted_sum(torch.where(norms.isfinite(), 1.0, 0.0).double())
    assert all(part.isfinite().all() for part in total)
