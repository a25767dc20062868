"""The files of an export.

config.json, model.safetensors, tokenizer files   a `BertModel` without pooler, as transformers opens it   (hf)
encoder.onnx                 token ids and mask to mean-pooled vectors, any number and length of texts     (onnx)
encoder.int8.onnx            the same with weights in int8                                          (onnx --int8)
fedrec.safetensors           centre, heads.A, heads.history.B, heads.candidate.B
fedrec.json                  scoring, max_tokens, history, and which adapter it is
use.py                       twenty lines that rank with them
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from fedrec.config import make_folder, write_atomically
from fedrec.errors import InputError
from fedrec.export.source import Source
from fedrec.model.adapter import save_arrays
from fedrec.model.onnx_encoder import FULL, INT8, SETTINGS, adapter_digest, onnx_missing

__all__ = ["FORMATS", "export"]

Format = Literal["hf", "onnx"]
FORMATS: tuple[Format, ...] = ("hf", "onnx")
HEADS, USE, WEIGHTS = "fedrec.safetensors", "use.py", "model.safetensors"
OPSET = 18


class _Pooled(nn.Module):
    """A BERT and the mean over real tokens."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (texts, tokens, hidden)
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)


def export(source: Source, out: Path, format: Format, int8: bool = False) -> None:
    """Write a model's files; the folder appears whole or not at all.

    Raises:
        InputError: `out` is there already, `int8` is asked of a format that has none, or a package is missing.
    """
    if int8 and format != "onnx":
        raise InputError("int8 is a form of ONNX", where="--int8", expected="--format onnx")
    if out.exists():
        raise InputError("it is there already", where=str(out), expected="a new folder")
    if format == "onnx":
        onnx_missing("onnx", "onnxscript", "onnxruntime")
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        if format == "hf":
            source.merged.save_pretrained(str(folder))
            (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # as the umask has it
        else:
            with _quiet():
                _write_onnx(source.merged, folder / FULL)
                if int8:
                    _quantise(folder / FULL, folder / INT8)
        source.encoder.tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]
        save_arrays(source.heads, folder / HEADS)
        write_atomically(folder / SETTINGS, json.dumps(_settings(source), indent=2).encode())
        shutil.copyfile(str(resources.files("fedrec.export") / f"use_{format}.txt"), folder / USE)
        folder.rename(out)


def _settings(source: Source) -> dict[str, object]:
    kept = {name: source.settings[name] for name in ("scoring", "max_tokens", "history")}
    which = {"encoder_fingerprint": source.encoder.fingerprint, "adapter": adapter_digest(source.arrays)}
    return {**kept, "pooling": "mean", **which}


def _write_onnx(bert: BertModel, path: Path) -> None:
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens")
    # Two tensors, and one text shorter than the other: the exporter takes one tensor given twice for one input, and a mask
    # without a zero for none.
    ids, mask = torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    program = torch.onnx.export(
        _Pooled(bert).eval(), (ids, mask), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["pooled"],
        dynamic_shapes={name: {0: texts, 1: tokens} for name in ("input_ids", "attention_mask")},
    )  # fmt: skip
    assert program is not None, "what dynamo returns"
    program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quantise(full: Path, path: Path) -> None:
    """Weights in int8 with a scale for each output, activations in int8 as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(full), str(path), weight_type=QuantType.QInt8, per_channel=True)
