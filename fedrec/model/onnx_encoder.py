"""An exported encoder under ONNX Runtime, which reads a short text several times faster than PyTorch does on a processor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest

__all__ = ["FULL", "INT8", "SETTINGS", "OnnxEncoder", "adapter_digest", "onnx_missing"]

FULL, INT8, SETTINGS = "encoder.onnx", "encoder.int8.onnx", "fedrec.json"
TEXTS = 64
"""At a time; of like lengths, so that little of a batch is padding."""


def onnx_missing(*packages: str) -> None:
    """Raises:
    InputError: one of these packages is not installed.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"{missing[0]} is not installed", where="onnx", hint="pip install 'fedrec[onnx]'")


def adapter_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of the part of an adapter that changes what the encoder says of a text: its LoRA."""
    return digest({name: value for name, value in arrays.items() if "lora_" in name})


class OnnxEncoder:
    """Texts to mean-pooled vectors, float32, on the processor.

    Args:
        folder: what `fedrec export --format onnx` wrote.
        int8: use the form with weights in int8, which the folder must have.

    Raises:
        InputError: it is no such folder, a file cannot be read, or ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | Path, int8: bool = False) -> None:
        onnx_missing("onnxruntime")
        import onnxruntime

        self.folder = Path(folder)
        path = self.folder / (INT8 if int8 else FULL)
        hint = "make one: `fedrec export PATH OUT --format onnx`"
        try:
            settings = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            self.max_tokens, self.fingerprint = int(settings["max_tokens"]), str(settings["encoder_fingerprint"])
            self.adapter = str(settings["adapter"])
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._tokenizer = AutoTokenizer.from_pretrained(str(self.folder))
        except Exception as error:  # of many kinds, whatever is wrong with the files
            found = " ".join(str(error).split())[:200]
            raise InputError(f"cannot be read ({found})", where=str(path), expected="an exported encoder", hint=hint) from None

    def check(self, fingerprint: str, arrays: Arrays) -> None:
        """Whether this is the encoder of a model.

        Raises:
            InputError: it was exported from another.
        """
        if (self.fingerprint, self.adapter) != (fingerprint, adapter_digest(arrays)):
            raise InputError(
                "it was exported from another model", where=str(self.folder), expected="an export of the model that ranks",
                hint="export it again: `fedrec export PATH OUT --format onnx`",
            )  # fmt: skip

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Pooled vectors (texts, hidden), as `TextEncoder.encode` gives them."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: len(encoded[row]))
        out: list[np.ndarray] = [np.empty(0)] * len(texts)
        for start in range(0, len(order), TEXTS):
            rows = order[start : start + TEXTS]
            width = max(len(encoded[row]) for row in rows)
            ids, mask = np.zeros((2, len(rows), width), dtype=np.int64)
            for place, row in enumerate(rows):
                ids[place, : len(encoded[row])], mask[place, : len(encoded[row])] = encoded[row], 1
            (pooled,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
            for place, row in enumerate(rows):
                out[row] = pooled[place]
        return torch.from_numpy(np.stack(out))
