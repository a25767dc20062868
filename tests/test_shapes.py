"""What a GPU is given, on a processor: batches of fixed sizes, states that live on a device, recorded functions."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel

from fedrec.model.cache import States, TrunkCache
from fedrec.model.devices import Resident
from fedrec.model.encoder import TextEncoder
from fedrec.model.shapes import LEAST_ROWS, Shapes
from fedrec.training import Examples, build_examples, merged, sampled
from fedrec.training.encoder import EncoderTrainer, _top_layers
from fedrec.training.heads import _targets
from fedrec.training.sampled import Shape
from fedrec.training.top_layers import Kept, TopLayers, _Weights

from .conftest import make_catalogue, make_encoder, make_histories
from .test_per_user_gradients import factors_of, flat_gradients, hostile_heads, setup


def with_shapes(encoder: TextEncoder, fixed: bool, texts_per_batch: int = 1) -> TextEncoder:
    encoder.shapes = Shapes(texts_per_batch, 64, fixed)
    return encoder


def trainer_of(folder: Path, seed: int, fixed: bool, items: int | None = None) -> tuple[EncoderTrainer, Examples]:
    rng, encoder, states, base, trained, scoring, prior, _, examples, (history, _, _) = setup(folder, seed, items)
    trainer = EncoderTrainer(with_shapes(encoder, fixed), states, prior, base, trained, scoring, history=2 * history)
    trainer.negatives = rng.integers(0, len(prior), 9)
    return trainer, examples


@pytest.mark.parametrize("seed", range(3))
def test_a_gpus_sizes_give_the_same_gradients(tiny_bert_folder: Path, seed: int) -> None:
    found, wanted = (flat_gradients(*trainer_of(tiny_bert_folder, seed, fixed)) for fixed in (True, False))
    assert wanted.norm(dim=1).max() > 1e-3
    assert float((found - wanted).norm(dim=1).max() / wanted.norm(dim=1).max()) < 1e-5


def test_in_a_gpus_sizes_a_gradient_is_the_same_to_the_bit_in_every_lot(tiny_bert_folder: Path) -> None:
    trainer, examples = trainer_of(tiny_bert_folder, 1, fixed=True)
    whole = flat_gradients(trainer, examples)
    for lot in ([0], [3, 7], [1, 2, 3, 4, 8, 9]):
        assert torch.equal(flat_gradients(trainer, examples.take(np.array(lot))), whole[lot])


@pytest.mark.parametrize("fixed", [False, True])
def test_where_the_way_back_needs_much_memory_few_records_are_taken_at_once(
    tiny_bert_folder: Path, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, examples = trainer_of(tiny_bert_folder, 2, fixed)
    whole = flat_gradients(trainer, examples)
    monkeypatch.setattr("fedrec.training.encoder.FLOATS_AHEAD", 1)
    assert len(list(trainer.chunks(examples))) == len(examples) > 1
    assert torch.equal(flat_gradients(trainer, examples), whole)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_large_basket_needs_no_more_memory_and_rounds_no_other_gradient(
    tiny_bert_folder: Path, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two records of 80 targets each among small ones: what is kept stays below a public size and a batch."""
    trainer, small = trainer_of(tiny_bert_folder, 0, fixed, items=90)
    rng, first = np.random.default_rng(0), len(small) - 2
    rows = np.array([(record, 0, item) for record in (first, first + 1) for item in rng.permutation(90)[:80]])
    before = small.target[:, 0] < first
    weight = np.append(small.target_weight[before], np.full(len(rows), 1 / 80, np.float32))
    lot = dataclasses.replace(small, target=np.concatenate([small.target[before], rows]), target_weight=weight)
    whole, alone = flat_gradients(trainer, lot), flat_gradients(trainer, lot.take(np.array([0, first])))
    assert torch.equal(whole[[0, first]], alone) and whole[first].norm() > 0

    top = _top_layers(trainer.encoder)
    bound = 8 * top.numbers(32)
    kept: list[tuple[int, weakref.ref[torch.Tensor]]] = []
    most, rooms, forward = [0], [], top.forward

    def watched(hidden: torch.Tensor, mask: torch.Tensor, batch: int) -> tuple[torch.Tensor, Kept]:
        means, found = forward(hidden, mask, batch)
        kept.append((top.numbers(hidden.shape[1]) * len(hidden), weakref.ref(found.share)))
        most[0] = max(most[0], sum(size for size, share in kept if share() is not None))
        return means, found

    def noted(own: torch.Tensor, *rest: torch.Tensor, shape: Shape) -> torch.Tensor:
        rooms.append((shape.records, shape.own))
        return derivatives(own, *rest, shape=shape)

    derivatives = sampled._derivatives
    monkeypatch.setattr(top, "forward", watched)
    monkeypatch.setattr(sampled, "_derivatives", noted)
    monkeypatch.setattr("fedrec.training.encoder.FLOATS_AHEAD", bound // trainer.shapes.times)
    pieces = 30 * sum(one.numel() for one in trainer.parameters())
    monkeypatch.setattr("fedrec.training.encoder.FLOATS_PER_RECORD", pieces // trainer.shapes.times)
    again = flat_gradients(trainer, lot)
    batches = [trainer.shapes.texts(int(tokens)) * top.numbers(int(tokens)) for tokens in (16, 24, 32)]
    filled = 2 if fixed else 1  # batches are filled up to a power of two
    assert 0 < most[0] <= filled * bound + 2 * max(batches)
    assert max(own for _, own in rooms) >= 128 and all(records * own <= 4096 for records, own in rooms)
    assert torch.equal(again, whole)


def test_every_batch_of_fixed_sizes_has_one_shape(tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in the lot: a library's choice of kernel cannot tell of it."""
    seen: list[set[tuple[int, ...]]] = []
    product = torch.nn.functional.linear

    def watched(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen[-1].add((*x.shape, *rest[0].shape))
        return product(x, *rest)

    def watched_back(layer: _Weights, kept: Any, at: torch.Tensor, lowest: bool) -> Any:
        back[-1].add((*at.shape, *kept.attention.shape))
        return backward(layer, kept, at, lowest)

    back: list[set[tuple[int, ...]]] = []
    backward = _Weights.backward
    monkeypatch.setattr("fedrec.training.top_layers.linear", watched)
    monkeypatch.setattr(_Weights, "backward", watched_back)
    trainer, examples = trainer_of(tiny_bert_folder, 1, fixed=True)
    trainer.shapes = Shapes(5, 64, fixed=True)
    for lot in ([0], list(range(len(examples)))):
        seen.append(set())
        back.append(set())
        flat_gradients(trainer, examples.take(np.array(lot)))
    assert seen[0] and seen[0] <= seen[1]
    assert len({shape[:2] for shape in seen[1]}) == len({shape[1] for shape in seen[1]}), "two batches of one length differ"
    assert back[0] and back[0] <= back[1] and len(back[1]) == len({shape[1] for shape in back[1]}), "nor on the way back"


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu"])
@pytest.mark.parametrize("heads", [1, 4])
def test_the_way_back_is_the_layers_own(activation: str, heads: int) -> None:
    """Of any BERT's layers, against autograd through the library's modules; inputs so small that the norms' epsilon counts."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=24, hidden_act=activation,
        layer_norm_eps=1e-2, max_position_embeddings=8, initializer_range=0.3,
    )  # fmt: skip
    lora = LoraConfig(r=3, lora_alpha=3, target_modules=["query", "value"])
    model = get_peft_model(BertModel(config, add_pooling_layer=False), lora).eval()
    layers = model.base_model.model.encoder.layer
    parameters = [value for name, value in layers.named_parameters() if "lora_B" in name]
    for value in parameters:
        torch.nn.init.normal_(value, std=0.3)
    hidden, at = 0.1 * torch.randn(5, 6, 16), torch.randn(5, 16)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5, 2])[:, None]
    top = TopLayers(layers, torch.float32)
    out = hidden
    for layer in layers:
        out = layer(out, mask[:, None, None, :])
    means = (out * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    found, kept = top.forward(hidden, mask, 2)
    torch.testing.assert_close(found, means)
    text = torch.tensor([0, 2, 3, 1, 4, 0])
    back = top.backward(kept, at, torch.stack([text, text]), 2)
    for own, some in zip(back, text.split(2), strict=True):
        wanted = torch.autograd.grad((means * at)[some].sum(), parameters, retain_graph=True)
        exact = torch.cat([one.flatten() for one in wanted])
        torch.testing.assert_close(own, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_heads_in_a_gpus_sizes_have_the_same_gradients_in_every_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of 512 records; with and without items that are only bounded in the norms."""
    monkeypatch.setattr("fedrec.training.heads.RECORDS", 512)
    examples = merged(build_examples(make_histories(600, make_catalogue(40), baskets=8), history=20, positions=2, decay=0.1))
    for common in (128, 8):
        monkeypatch.setattr("fedrec.training.factors.COMMON", common)
        trainer = hostile_heads(1, 40)
        (wanted,) = trainer.gradients(examples)
        trainer.fixed = True
        (found,) = trainer.gradients(examples)
        exact = wanted.per_record()
        assert exact.norm(dim=1).max() > 0
        torch.testing.assert_close(found.per_record(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
        assert (found.squared_norms() >= found.per_record().double().square().sum(1) * (1 - 1e-5)).all()
        whole = factors_of(trainer, examples)
        for lot in (np.array([5]), np.array([5, 400]), np.arange(1, 600)):
            for one, other in zip(whole, factors_of(trainer, examples.take(lot)), strict=True):
                assert np.array_equal(one[lot], other, equal_nan=True)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_room_for_targets_has_few_sizes(counts: list[int]) -> None:
    """How many a user has in a basket is private, and a size is one that shapes on a GPU are made of."""
    record = np.repeat(np.arange(len(counts)), counts)
    target = np.column_stack([record, np.zeros_like(record), np.arange(len(record))])
    empty = np.zeros((len(counts), 1, 1))
    found = _targets(Examples(empty[:, 0], empty, target, np.ones(len(record)), target[:0]))
    assert found.shape == (len(counts), 16 if max(counts) <= 16 else 32 if max(counts) <= 32 else 64)
    for own, row in enumerate(found):
        assert row[: counts[own]].tolist() == target[record == own, 2].tolist() and (row[counts[own] :] == -1).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 9), st.booleans())
def test_batches_hold_every_text_once_at_a_length_of_its_own(lengths: list[int], texts_per_batch: int, fixed: bool) -> None:
    shapes = Shapes(texts_per_batch, 512, fixed)
    of_each = np.array([int(shapes.padded(np.array([one]))[0]) for one in lengths])
    assert (of_each >= lengths).all() and (of_each <= 512).all()
    assert np.array_equal(shapes.padded(np.array(lengths)), of_each)
    batches = list(shapes.batches(np.array(lengths)))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        (tokens,) = set(of_each[rows])
        filled = shapes.filled(rows, int(tokens))
        assert set(filled) == set(rows) and len(filled) * tokens >= LEAST_ROWS
        assert len(rows) <= shapes.texts(int(tokens)) and shapes.texts(int(tokens)) % shapes.texts_per_piece == 0
        if fixed:
            assert len(filled) == shapes.texts(int(tokens))


def test_states_on_a_device_are_those_of_the_cache(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {key: rng.normal(size=(int(rng.integers(1, 9)), 6)).astype(np.float16) for key in range(30)}
    cache, states = TrunkCache(tmp_path, "f"), None
    for last in (10, 30):  # two shards
        keys = np.arange(last, dtype=np.uint64)
        states = cache.states([str(key) for key in keys], keys, lambda texts: iter([rows[int(text)] for text in texts]))
    assert isinstance(states, States) and len(states.shards) == 2
    resident = Resident.of(states, torch.device("cpu"), 0)
    assert resident is not None
    texts = np.array([3, 29, 3, 0, 17])
    hidden, mask = resident.padded(torch.as_tensor(texts), 9)
    expected, lengths = states.padded(texts, 9)
    np.testing.assert_array_equal(hidden.numpy(), expected.astype(np.float32))
    assert mask.sum(1).tolist() == lengths.tolist()


def test_states_live_on_a_gpu_where_they_take_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have taken the rest: what it has in all says nothing."""
    states = States((np.zeros((100, 6), np.float16),), np.zeros(10, np.int64), np.arange(0, 100, 10), np.full(10, 10))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 1200 - 1, 10**9))
    assert Resident.of(states, torch.device("cuda"), 0) is None


def test_a_catalogue_is_looked_up_in_the_shards_once(tmp_path: Path) -> None:
    cache, keys = TrunkCache(tmp_path, "f"), np.arange(3, dtype=np.uint64)
    compute = lambda texts: iter([np.zeros((2, 6), np.float16)] * len(texts))
    first = cache.states(["a", "b", "c"], keys, compute)
    assert cache.states(["a", "b", "c"], keys, compute) is first
    assert len(cache.states(["a", "b"], keys[:2], compute)) == 2


def test_pooled_vectors_are_the_same_in_a_gpus_sizes(tiny_bert_folder: Path) -> None:
    encoder = make_encoder(tiny_bert_folder)
    texts = ["red lamp", "blue chair of cotton " * 6, "tea", "soap and rope on a desk"]
    assert torch.allclose(
        encoder.encode(texts), with_shapes(encoder, True).encode(texts), atol=2e-3
    )  # the trunk's states are float16
