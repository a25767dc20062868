"""An export is the model: opened by other programs it says what the original says, and holds nothing of a merchant's own."""

# ruff: noqa: F811

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertModel

from fedrec.config import RunConfig
from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.export import export, measure_export
from fedrec.export.measuring import Users
from fedrec.export.source import Source
from fedrec.model import load_encoder, saved
from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, Arrays
from fedrec.model.onnx_encoder import OnnxEncoder
from fedrec.model.towers import centred, role_table
from fedrec.recommender import Recommender
from fedrec.recommender.merchant_text import MerchantPlace
from simulations.run import simulate

from .conftest import WORDS
from .helpers import make_federation, settings_of
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_merchant_recommender import adapter, make_shop  # noqa: F401

TEXTS = ["red lamp", "a small steel mug for tea and soap", "clock", " ".join(WORDS * 3), "", "blue chair desk"]


@pytest.fixture(scope="module")
def source(tiny_bert_folder: Path) -> Source:
    """With a LoRA and heads that say something."""
    encoder, rng = load_encoder(str(tiny_bert_folder), 2, 4, 16, "cpu"), np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    arrays = {name: drawn(*value.shape) for name, value in sorted((encoder.frozen() | encoder.trained()).items())}
    arrays |= {CENTRE: drawn(32), HEAD_A: drawn(32, 8), **{name: drawn(8, 32) for name in HEAD_B.values()}}
    arrays["prior.counts"] = np.ones(3, dtype=np.float32)
    encoder.load(arrays)
    settings = {
        "scoring": {"temperature": 4.0, "decay": 0.2, "prior_weight": 0.0}, "max_tokens": 16, "history": 10,
        "encoder_fingerprint": encoder.fingerprint,
    }  # fmt: skip
    return Source(encoder, arrays, settings, Catalogue(tuple(f"i{i}" for i in range(len(TEXTS))), tuple(TEXTS)))


@pytest.fixture(scope="module")
def hugging_face(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "out"
    export(source, out, "hf")
    return out


@pytest.fixture(scope="module")
def onnx(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "out"
    export(source, out, "onnx", int8=True)
    return out


def pooled(source: Source) -> torch.Tensor:
    """(texts, hidden) of the model with its LoRA beside the weights, in float32: no cache rounds the trunk's states."""
    batch = source.encoder.tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")  # type: ignore[operator]
    with torch.no_grad():
        hidden, mask = source.encoder.bert(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def original(source: Source) -> torch.Tensor:
    return normalize(pooled(source), dim=-1)


def test_transformers_alone_opens_it_and_says_the_same(source: Source, hugging_face: Path) -> None:
    bert = BertModel.from_pretrained(str(hugging_face), add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(hugging_face))
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = bert(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    found = normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert float((found - original(source)).abs().max()) < 1e-4
    own = normalize(load_encoder(str(hugging_face), 0, 1, 16, "cpu").encode(TEXTS), dim=-1)
    assert float((own - found).abs().max()) < 0.05, "as an encoder for another run, in this processor's precision"


def test_the_lora_is_in_the_weights(source: Source, hugging_face: Path) -> None:
    weights = load_file(hugging_face / "model.safetensors")
    name = "encoder.layer.2.attention.self.query"
    lora = {key: value for key, value in source.arrays.items() if name in key}
    (a,), (b,) = ([value for key, value in lora.items() if kind in key] for kind in ("lora_A", "lora_B"))
    base = source.encoder.bert.get_submodule(f"{name}.base_layer").weight.detach().numpy()
    np.testing.assert_allclose(weights[f"{name}.weight"], base + b @ a, atol=1e-5)
    assert not any("lora" in key for key in weights)


def test_exporting_leaves_the_encoder_as_it_is(source: Source) -> None:
    before = original(source)
    assert source.merged is not source.encoder.bert
    assert torch.equal(original(source), before)
    assert source.encoder.trained().keys() <= source.arrays.keys()


@pytest.mark.slow  # the exporter takes seconds
def test_onnx_says_the_same_of_any_number_and_length_of_texts(source: Source, onnx: Path) -> None:
    encoder, wanted = OnnxEncoder(onnx), original(source)
    assert float((normalize(encoder.encode(TEXTS), dim=-1) - wanted).abs().max()) < 1e-4
    for row, text in enumerate(TEXTS):
        assert float((normalize(encoder.encode([text]), dim=-1) - wanted[row]).abs().max()) < 1e-4
    encoder.check(source.encoder.fingerprint, source.arrays)


@pytest.mark.slow
def test_int8_is_near_and_smaller(source: Source, onnx: Path) -> None:
    found = normalize(OnnxEncoder(onnx, int8=True).encode(TEXTS), dim=-1)
    assert float((found * original(source)).sum(-1).min()) > 0.95
    assert (onnx / "encoder.int8.onnx").stat().st_size < 0.5 * (onnx / "encoder.onnx").stat().st_size


@pytest.mark.slow
def test_an_export_of_another_adapter_is_refused(source: Source, onnx: Path) -> None:
    name = next(name for name in source.arrays if "lora_B" in name)
    with pytest.raises(InputError, match="another model"):
        OnnxEncoder(onnx).check(source.encoder.fingerprint, source.arrays | {name: source.arrays[name] + 1})
    with pytest.raises(InputError, match="another model"):
        OnnxEncoder(onnx).check("other", source.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hugging_face", "onnx"])
def test_the_lines_that_come_with_it_rank_as_the_towers_do(kind: str, source: Source, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    code = f"import json, use; print(json.dumps([float(s) for s in use.rank({TEXTS[:3]!r}, {TEXTS!r})]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    table = centred(pooled(source), source.arrays)
    history, candidate = (role_table(table, source.arrays, source.arrays, role) for role in ("history", "candidate"))
    user = normalize(torch.softmax(-0.2 * torch.tensor([2.0, 1.0, 0.0]), 0) @ history[:3], dim=-1)
    np.testing.assert_allclose(json.loads(run.stdout), (4.0 * candidate @ user).numpy(), atol=1e-3)


def test_nothing_but_the_delivered_model_is_written(hugging_face: Path) -> None:
    assert set(load_file(hugging_face / "fedrec.safetensors")) == {CENTRE, HEAD_A, *HEAD_B.values()}
    named = {path.name for path in hugging_face.iterdir()}
    assert named >= {"config.json", "model.safetensors", "tokenizer.json", "fedrec.json", "use.py"}
    assert not [name for name in named if "layer" in name or "catalogue" in name or "events" in name]


@pytest.mark.slow
def test_every_form_is_measured_against_the_original(source: Source, hugging_face: Path) -> None:
    found = measure_export(source, hugging_face, Users.of_items(source.catalogue), RunConfig())
    assert [row["name"].split(",")[0] for row in found["rows"]] == ["original", "transformers"]
    assert found["rows"][0]["overlap"] == 1.0
    assert found["rows"][1]["overlap"] > 0.9
    assert found["rows"][1]["bytes"] == (hugging_face / "model.safetensors").stat().st_size
    assert all(row["latency_ms"]["median"] > 0 for row in found["rows"])


def test_what_is_asked_for_and_cannot_be(source: Source, hugging_face: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there already"):
        export(source, hugging_face, "hf")
    with pytest.raises(InputError, match="int8"):
        export(source, tmp_path / "new", "hf", int8=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="exported encoder"):
        OnnxEncoder(tmp_path)


def test_what_does_not_rank_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / saved.SETTINGS).write_text(json.dumps({"objective": "response"}))
    pd.DataFrame({"item_id": ["i0"], "text": ["lamp"]}).to_parquet(tmp_path / saved.TABLE)
    save_file({"b": np.ones(1, dtype=np.float32)}, tmp_path / saved.ARRAYS)
    with pytest.raises(InputError, match="objective = 'response'"):
        Source.open(tmp_path)


@pytest.mark.slow
def test_a_recommender_reads_words_with_its_own_export_and_no_other(tiny_bert_folder: Path, tmp_path: Path, onnx: Path) -> None:
    run = simulate(make_federation(tmp_path, merchants=2, users=40), settings_of(tiny_bert_folder, rounds=2), tmp_path / "run")
    with pytest.raises(InputError, match="another model"):
        Recommender.load(run.path, onnx=onnx)
    export(Source.open(run.path), tmp_path / "out", "onnx")
    plain, fast = Recommender.load(run.path), Recommender.load(run.path, onnx=tmp_path / "out")
    found = [dict(one.rank(["i3"], 20, query="red lamp")) for one in (plain, fast)]
    assert found[0] == pytest.approx(found[1], abs=0.05)
    assert isinstance(fast, Recommender)
    assert fast._encoder is None, "the encoder itself was not loaded"


@pytest.mark.slow  # the adapter is a run's
def test_a_merchants_export_is_what_was_delivered_and_its_figures_are_only_shown(
    fedrec: Fedrec, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]], tmp_path: Path
) -> None:
    folder, out = make_shop(tmp_path / "shop", tiny_bert_folder), tmp_path / "out"
    assert_refused(fedrec("export", folder, out), "no delivered model ranks here", "fedrec merchant model")
    place = MerchantPlace(folder)
    place.versions.use(place.versions.keep(*adapter)[0])
    assert_refused(fedrec("export", folder, out, "--format", "gguf"), "gguf", "one of hf, onnx")
    assert not out.exists()
    answer = fedrec("export", folder, out, "--json")
    assert answer.status == 0, answer.err
    shown = json.loads(answer.out)
    assert all("ndcg@10" in row for row in shown["rows"]), "its own measured users were ranked for"
    assert "measured.json" not in {path.name for path in out.iterdir()}
    assert set(load_file(out / "fedrec.safetensors")) <= {CENTRE, HEAD_A, *HEAD_B.values()}
    bytes_ = b"".join(path.read_bytes() for path in out.iterdir())
    assert b"customer-" not in bytes_ and place.data().catalogue.texts[3].encode() not in bytes_
