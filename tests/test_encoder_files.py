"""An encoder is weights and tokenizer, whole: what is missing, cut, or another's is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizer

from fedrec.cli import main
from fedrec.errors import InputError
from fedrec.model.encoder import TextEncoder, _load, load_encoder
from fedrec.model.encoder_files import absolute_encoder, files_digest, files_seen, first_line

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "lamp", "blue", "soap", "##s"]
TEXTS = ["red lamp", "Blue soaps", "rope"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)


def bert_config(**changes: Any) -> BertConfig:
    small = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(**{**small, "intermediate_size": 48, "max_position_embeddings": 32, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers with ten words."""
    folder = tmp_path_factory.mktemp("whole") / "bert"
    torch.manual_seed(0)
    BertModel(bert_config(initializer_range=0.3), add_pooling_layer=False).save_pretrained(folder)
    (folder / "words.txt").write_text("\n".join(WORDS))
    BertTokenizer.from_pretrained(folder, vocab_file=str(folder / "words.txt")).save_pretrained(folder)
    (folder / "words.txt").rename(folder / "vocab.txt")
    return folder


@pytest.fixture
def bert(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "bert"))


def load(folder: Path | str, **changes: Any) -> TextEncoder:
    encoder = load_encoder(str(folder), **{"layers": 1, "rank": 2, "max_tokens": 16, "device": "cpu", **changes})
    encoder.low_precision = False
    return encoder


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    weights = change({name: value.clone() for name, value in load_file(path).items()})
    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path, part: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def as_bin(folder: Path, change: Callable[[Any], Any] = lambda weights: weights) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(change(load_file(folder / "model.safetensors")), path)
    (folder / "model.safetensors").unlink()
    return path


def sharded(folder: Path, lost: bool = False) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{'layer.1' in name:05d}.safetensors" for name in weights}
    for shard in set(where.values()):
        save_file({name: weights[name] for name in weights if where[name] == shard}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if lost:
        (folder / "model-00001.safetensors").unlink()


def infinite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights["encoder.layer.1.output.dense.bias"][3] = float("nan")
    return weights


def int8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(torch.int8) if name.endswith("dense.weight") else value for name, value in weights.items()}


def twice(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{side}.{name}": value.clone() for side in ("query", "item") for name, value in weights.items()}


def other_words(folder: Path, words: list[str]) -> None:
    without_tokenizer(folder)
    (folder / "vocab.txt").write_text("\n".join(words))


def retoken(folder: Path, part: str, change: Callable[[Any], Any]) -> None:
    """Change a part of `tokenizer.json`, and have it read to the letter."""
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    path.write_text(json.dumps({**rules, part: change(rules[part])}))
    (folder / "vocab.txt").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))


def japanese(folder: Path) -> None:
    kind = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "sudachi"}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


LAYER = "encoder.layer.1.attention.output.LayerNorm.bias"
REFUSED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no tokenizer files": (without_tokenizer, ["there is no tokenizer", "vocab.txt", "tokenizer.json"]),
    "a tokenizer configuration and no vocabulary": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "vocab.txt")],
        ["there is no tokenizer"],
    ),
    "a vocabulary of special tokens": (lambda f: other_words(f, WORDS[:5]), ["tokenizer knows no words"]),
    "a vocabulary larger than the model's": (lambda f: other_words(f, [*WORDS, "rope"]), ["up to 10", "10 embeddings"]),
    "a tokenizer without [CLS] and [SEP]": (lambda f: retoken(f, "post_processor", lambda _: None), ["puts no tokens around"]),
    "a pointer for a vocabulary": (lambda f: (f / "vocab.txt").write_text(POINTER), ["vocab.txt", "Git LFS pointer"]),
    "a pointer for a tokenizer": (lambda f: (f / "tokenizer.json").write_text(POINTER), ["tokenizer.json", "Git LFS pointer"]),
    "a cut tokenizer": (lambda f: cut(f / "tokenizer.json"), ["tokenizer cannot be read"]),
    "a tokenizer that needs a package": (japanese, ["needs a package", "sudachi"]),
    "a pointer for weights": (lambda f: (f / "model.safetensors").write_text(POINTER), ["model.safetensors", "Git LFS pointer"]),
    "a pointer for pickled weights": (lambda f: as_bin(f).write_text(POINTER), ["pytorch_model.bin", "Git LFS pointer"]),
    "a pointer for the configuration": (lambda f: (f / "config.json").write_text(POINTER), ["config.json", "Git LFS pointer"]),
    "cut weights": (lambda f: cut(f / "model.safetensors"), ["model.safetensors", "cut short"]),
    "weights of no bytes": (lambda f: cut(f / "model.safetensors", 0), ["model.safetensors", "cut short"]),
    "cut pickled weights": (lambda f: cut(as_bin(f)), ["pytorch_model.bin", "cut short"]),
    "pickled things that are no weights": (lambda f: as_bin(f, lambda weights: {"epoch": 3, **weights}), ["other things"]),
    "a cut configuration": (lambda f: cut(f / "config.json"), ["config.json", "not valid JSON"]),
    "a configuration that is a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "no JSON object"]),
    "no configuration": (lambda f: (f / "config.json").unlink(), ["config.json", "no such file"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["there are no weights", "pytorch_model.bin"]),
    "a shard that is not there": (lambda f: sharded(f, lost=True), ["model-00001.safetensors", "no such file"]),
    "an index of nothing": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text("{}")),
        ["names no files"],
    ),
    "fewer layers than configured": (lambda f: reconfigure(f, num_hidden_layers=3), ["missing: encoder.layer.2", "13 more"]),
    "more layers than configured": (lambda f: reconfigure(f, num_hidden_layers=1), ["not ask for: encoder.layer.1", "13 more"]),
    "one weight missing": (
        lambda f: reweigh(f, lambda w: {name: w[name] for name in w if name != LAYER}),
        [f"missing: {LAYER};"],
    ),
    "one weight more": (lambda f: reweigh(f, lambda w: {**w, f"{LAYER}.scale": torch.ones(1)}), [f"ask for: {LAYER}.scale"]),
    "a projection after the pooling": (lambda f: reweigh(f, lambda w: {**w, "linear.weight": torch.ones(1)}), ["linear.weight"]),
    "two encoders in one file": (lambda f: reweigh(f, twice), ["several models", "'item.'", "'query.'"]),
    "other widths than configured": (lambda f: reconfigure(f, intermediate_size=64), ["(48, 32)", "(64, 32)"]),
    "fewer embeddings than configured": (lambda f: reconfigure(f, vocab_size=11), ["word_embeddings", "(10, 32)", "(11, 32)"]),
    "heads that do not divide the width": (lambda f: reconfigure(f, num_attention_heads=5), ["config.json", "no model"]),
    "an activation that nobody knows": (lambda f: reconfigure(f, hidden_act="nonsense"), ["config.json", "describes no model"]),
    "weights that are not finite": (lambda f: reweigh(f, infinite), ["not finite", "encoder.layer.1.output.dense.bias"]),
    "a quantised model": (lambda f: reconfigure(f, quantization_config={"quant_method": "gptq", "bits": 4}), ["quantised"]),
    "weights in int8": (lambda f: reweigh(f, int8), ["int8", "quantised"]),
    "no BERT": (lambda f: reconfigure(f, model_type="roberta"), ["'roberta'", "a BERT"]),
    "a decoder": (lambda f: reconfigure(f, is_decoder=True), ["decoder"]),
    "relative positions": (lambda f: reconfigure(f, position_embedding_type="relative_key"), ["relative positions"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_encoder_that_is_not_whole_is_refused(case: str, bert: Path) -> None:
    spoil, named = REFUSED[case]
    spoil(bert)
    with pytest.raises(InputError) as raised:
        load(bert)
    message = str(raised.value)
    assert message.startswith(f"encoder {bert}") and "\n" not in message and "http" not in message
    assert all(part in message for part in named), message


PREFIXES = ["bert.", "0.auto_model.", "0.model.", "auto_model.", "module.", "model.", "module.bert.", "_orig_mod.", "encoder."]
SAME: dict[str, Callable[[Path], object]] = {
    **{
        f"the prefix {prefix}": lambda f, prefix=prefix: reweigh(f, lambda w: {prefix + name: w[name] for name in w})
        for prefix in PREFIXES
    },
    "pickled": as_bin,
    "in shards": sharded,
    "in float64": lambda f: reweigh(f, lambda w: {name: value.double() for name, value in w.items()}),
    "buffers of old versions": lambda f: reweigh(f, lambda w: {**w, "embeddings.position_ids": torch.arange(32)[None]}),
    "names from TensorFlow": lambda f: reweigh(
        f,
        lambda w: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w[name] for name in w
        },
    ),
    "the vocabulary in tokenizer.json alone": lambda f: (f / "vocab.txt").unlink(),
    "plain attention asked for": lambda f: reconfigure(f, attn_implementation="eager"),
    "its weights asked for": lambda f: reconfigure(f, output_attentions=True),
    "a README beside it": lambda f: (f / "README.md").write_text(POINTER),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_encoder_in_other_words_is_the_same(case: str, whole: Path, bert: Path) -> None:
    expected = load(whole)
    SAME[case](bert)
    found = load(bert)
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found.encode(TEXTS), expected.encode(TEXTS))


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification], ids=["masked words", "classes"])
def test_heads_and_pooler_are_left_out(kind: Any, whole: Path, bert: Path) -> None:
    model = kind(bert_config())
    model.bert.load_state_dict(BertModel.from_pretrained(whole, add_pooling_layer=False).state_dict(), strict=False)
    model.save_pretrained(bert)
    assert load(bert).fingerprint == load(whole).fingerprint


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(kind: torch.dtype, whole: Path, bert: Path) -> None:
    reweigh(bert, lambda weights: {name: value.to(kind) for name, value in weights.items()})
    reconfigure(bert, dtype=str(kind).removeprefix("torch."))
    found = load(bert)
    assert {parameter.dtype for parameter in found.bert.parameters()} == {torch.float32}
    torch.testing.assert_close(found.encode(TEXTS), load(whole).encode(TEXTS), rtol=0.1, atol=0.05)


def test_weights_are_never_drawn_at_random(whole: Path) -> None:
    first = load(whole)
    torch.manual_seed(1)
    _load.cache_clear()
    assert load(whole).fingerprint == first.fingerprint


TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "two words in each other's place": lambda f: retoken(f, "model", lambda m: {**m, "vocab": swapped(m["vocab"])}),
    "capitals kept": lambda f: retoken(f, "normalizer", lambda n: {**n, "lowercase": False}),
    "accents kept": lambda f: retoken(f, "normalizer", lambda n: {**n, "strip_accents": False}),
    "longer words unknown": lambda f: retoken(f, "model", lambda m: {**m, "max_input_chars_per_word": 3}),
    "texts cut at their beginning": lambda f: (f / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((f / "tokenizer_config.json").read_text()), "truncation_side": "left"})
    ),
}


def swapped(vocabulary: dict[str, int]) -> dict[str, int]:
    return {**vocabulary, "red": vocabulary["blue"], "blue": vocabulary["red"]}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_another_tokenizer_is_another_encoder(case: str, bert: Path) -> None:
    if case != "texts cut at their beginning":
        retoken(bert, "model", lambda model: model)
    before = load(bert).fingerprint
    TOKENIZERS[case](bert)
    assert load(bert).fingerprint != before


def test_what_a_call_leaves_in_a_tokenizer_does_not_count(whole: Path) -> None:
    encoder = load(whole)
    encoder.encode(["red " * 40])  # sets truncation in the tokenizer
    _load.cache_clear()
    assert load(whole).fingerprint == encoder.fingerprint


def test_files_that_change_are_loaded_again(bert: Path) -> None:
    before = load(bert)
    assert load(bert) is before
    reweigh(bert, lambda weights: {name: value + 0.1 for name, value in weights.items()})
    assert load(bert).fingerprint != before.fingerprint
    with pytest.raises(InputError, match=f"expected the fingerprint {before.fingerprint}") as raised:
        load(bert).check_fingerprint(before.fingerprint)
    assert "tokenizer" in str(raised.value)
    load(bert).check_fingerprint("")


def test_more_tokens_than_positions_are_refused(whole: Path) -> None:
    assert len(load(whole, max_tokens=32).encode(["red " * 100])) == 1
    with pytest.raises(InputError, match="max_tokens: found 33; expected at most 32, the positions"):
        load(whole, max_tokens=33)


# Where an encoder is: a folder is a folder.


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model", "./bert", "encoders/minilm", "/no/such/folder", "~/none", ""])
def test_a_folder_that_is_not_there_is_never_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_free: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"encoder: .* is no folder; expected 'minilm-l6' or a folder.*hf:NAME"):
        load(name or "none")


@pytest.fixture
def socket_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online, but any way out of this machine fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something looked up an address")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def test_a_model_of_the_hub_that_is_not_here_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="encoder: 'hf:nobody/nothing' is not on this machine and cannot be fetched") as raised:
        load("hf:nobody/nothing")
    assert "http" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_of_the_hub_that_is_here_is_read_without_a_request(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_free: None
) -> None:
    held = tmp_path / "models--some--bert"
    shutil.copytree(whole, held / "snapshots" / "0123")
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load("hf:some/bert").fingerprint == load(whole).fingerprint


def test_a_relative_folder_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_encoder("bert") == str(tmp_path / "bert") == absolute_encoder("./x/../bert")
    assert absolute_encoder("bert", tmp_path / "shop") == str(tmp_path / "shop" / "bert")
    assert absolute_encoder("/opt/bert", tmp_path) == "/opt/bert"
    assert [absolute_encoder(name) for name in ("minilm-l6", "hf:org/model")] == ["minilm-l6", "hf:org/model"]


def test_the_digest_of_files_is_of_names_and_bytes(bert: Path) -> None:
    digest, seen = files_digest(bert), files_seen(bert)
    (bert / "README.md").write_text("another")
    assert (files_digest(bert), files_seen(bert)) == (digest, seen)
    (bert / "vocab.txt").rename(bert / "words.txt")
    assert files_digest(bert) != digest and files_seen(bert) != seen


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("You need fugashi. See https://somewhere.org/x for more.", "You need fugashi."),
        ("could not reach 'https://somewhere.org' now", "could not"),
        ("one\ntwo", "one"),
        ("", "ValueError"),
    ],
)
def test_a_librarys_words_are_kept_without_addresses(said: str, kept: str) -> None:
    assert first_line(ValueError(said)) == kept


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]),
    at=st.floats(0, 1, exclude_max=True),
    change=st.one_of(st.none(), st.binary(min_size=0, max_size=4)),
)
@example(name="model.safetensors", at=0.0, change=b"\xff\xff\xff\xff")
def test_damaged_files_are_read_or_refused(whole: Path, tmp_path: Path, name: str, at: float, change: bytes | None) -> None:
    """Cut at a place (None), or with bytes written over: never an exception of another kind, and never a NaN."""
    folder = tmp_path / "bert"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    content = (folder / name).read_bytes()
    place = int(at * len(content))
    (folder / name).write_bytes(content[:place] if change is None else content[:place] + change + content[place + len(change) :])
    try:
        encoder = load(folder)
    except InputError:
        return
    assert np.isfinite(encoder.encode(TEXTS).numpy()).all()


# Through the command line


@pytest.mark.parametrize("case", ["no tokenizer files", "a cut tokenizer", "cut weights", "fewer layers than configured"])
def test_the_command_line_says_it_in_one_line(
    case: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from .helpers import make_federation

    federation = make_federation(tmp_path / "data", merchants=2, users=8)
    spoil, named = REFUSED[case]
    spoil(bert)
    run = tmp_path / "run"
    settings = [f"encoder={bert}", "encoder_sample_rate=0.5", "min_lot=1"]
    command = ["fedrec", "simulate", federation, "--out", run, *(part for pair in settings for part in ("--set", pair))]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and not run.exists()
    assert len(err.strip().splitlines()) == 1 and all(part in err for part in [str(bert), *named])
