"""A BERT and its tokenizer from a folder: whole, or refused by name.

The weights are read here and not by Transformers, which starts what it does not find at random, reads an empty
tokenizer where there is none, and says so in a log at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from fedrec.errors import InputError
from fedrec.model.encoder_files import encoder_files, first_line

__all__ = ["load_bert", "tokenizer_identity"]

POINTER = b"version https://git-lfs"
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
BODY = re.compile(r"(?:^|\.)((?:embeddings|encoder\.layer)\..+)")
"""A weight of the encoder proper, under whatever prefix a wrapper has given it (`bert.`, `0.auto_model.`, `module.`)."""
IGNORED = {"pooler", "cls", "classifier", "qa_outputs", "position_ids", "token_type_ids"}
"""Parts of a name that say that it is none of the encoder's weights: heads above it, and buffers."""


TENSORFLOW = {"gamma": "weight", "beta": "bias"}
"""What old checkpoints, converted from TensorFlow, call the parameters of a layer norm."""
UNQUANTISED = "weights in float32, float16 or bfloat16"


def load_bert(folder: Path) -> tuple[BertModel, Any]:
    """A float32 `BertModel` without pooler, and its tokenizer.

    Raises:
        InputError: a file is missing, cut or a pointer; the model is quantised or no BERT encoder; weights are missing,
            unexpected, of another shape or not finite; the tokenizer is missing, needs a package, or does not fit.
    """
    config = _config(folder)
    weights = _weights(folder)
    try:
        bert = BertModel(config, add_pooling_layer=False)
    except Exception as error:  # of any kind: whatever the numbers in the file lead to
        raise _refused(folder / "config.json", f"describes no model ({first_line(error)})") from None
    _check(folder, bert.state_dict(), weights)
    bert.load_state_dict(weights)
    return bert, _tokenizer(folder, config.vocab_size)


def tokenizer_identity(tokenizer: Any) -> bytes:
    """All that decides which tokens a text has: equal tokenizers have equal ones."""
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {name: value for name, value in backend.items() if name not in ("truncation", "padding", "version")}
    else:
        kept = {name: str(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(("_file", "_path"))}
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": kept}
    return json.dumps([tokenizer.truncation_side, special, rules], sort_keys=True).encode()


def _config(folder: Path) -> BertConfig:
    path = folder / "config.json"
    raw = _json(path)
    if raw.get("model_type") != "bert":
        raise _refused(path, f"is a {raw.get('model_type')!r}", expected="a BERT (model_type 'bert')")
    if "quantization_config" in raw:
        raise _refused(path, "the model is quantised", expected=UNQUANTISED)
    if raw.get("is_decoder") or raw.get("position_embedding_type", "absolute") != "absolute":
        raise _refused(path, "is a decoder or has relative positions", expected="an encoder with absolute positions")
    try:
        config = BertConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of any kind, as above
        raise _refused(path, f"describes no model ({first_line(error)})") from None
    # PEFT writes this beside the adapter, and asks a hub about a name; the file may hold the name of who made the model.
    config.name_or_path = str(folder)
    # The file may ask for another, and not all take the masks of real tokens that the layers are given here.
    config._attn_implementation = "sdpa"
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        _not_a_pointer(path)
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _refused(path, "no such file", expected="a folder with a Hugging Face BERT and its tokenizer") from None
    except ValueError as error:
        raise _refused(path, f"is not valid JSON ({error})", hint="copy it again") from None
    if not isinstance(value, dict):
        raise _refused(path, "is no JSON object")
    return value


def _not_a_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise _refused(path, "is a Git LFS pointer, not the file itself", hint="fetch it with `git lfs pull`")


def _weights(folder: Path) -> dict[str, Tensor]:
    """Float32 weights by the names that a `BertModel` has, without heads."""
    found: dict[str, Tensor] = {}
    prefixes, others = set(), []
    for path in _weight_files(folder):
        for key, value in _read(path).items():
            if IGNORED & set(key.split(".")):
                continue
            body = BODY.search(key)
            if body is None:
                others.append(key)
                continue
            if value.dtype not in FLOATS:
                kind = str(value.dtype).removeprefix("torch.")
                raise _refused(path, f"{key} is {kind}, so the model is quantised", expected=UNQUANTISED)
            prefixes.add(key[: body.start(1)])
            module, _, last = body[1].rpartition(".")
            found[f"{module}.{TENSORFLOW.get(last, last)}"] = value.float()
    if len(prefixes) > 1:
        raise _refused(folder, f"the weights are of several models ({_some(map(repr, prefixes))})", expected="one BERT")
    if others:
        raise _refused(folder, f"weights that a BERT does not have: {_some(others)}", expected="a BERT without parts of its own")
    return found


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise _refused(index, "names no files")
            return [folder / shard for shard in sorted(set(shards.values()))]
    raise _refused(folder, "there are no weights", expected="model.safetensors or pytorch_model.bin")


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise _refused(path, "no such file", hint="its index names it: copy it too")
    _not_a_pointer(path)
    read: Callable[[Path], Any] = load_file if path.suffix == ".safetensors" else _unpickled
    try:
        weights = read(path)
    except Exception as error:  # safetensors, pickle and zip each raise their own kinds
        raise _refused(path, f"is cut short or no file of weights ({first_line(error)})", hint="copy it again") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _refused(path, "holds other things than weights by name")
    return weights


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _check(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Names, shapes and values: every weight is there, no other, and none is nonsense."""
    again = "copy weights and config.json again"
    if missing := expected.keys() - found.keys():
        raise _refused(folder, f"weights that config.json asks for are missing: {_some(missing)}", hint=again)
    if unexpected := found.keys() - expected.keys():
        raise _refused(folder, f"weights that config.json does not ask for: {_some(unexpected)}", hint=again)
    for name, value in expected.items():
        if found[name].shape != value.shape:
            shapes = [tuple(weights.shape) for weights in (found[name], value)]
            raise _refused(folder, f"{name} has the shape {shapes[0]}", expected=f"{shapes[1]}, as in config.json", hint=again)
    if broken := [name for name, value in found.items() if not torch.isfinite(value).all()]:
        raise _refused(folder, f"weights that are not finite: {_some(broken)}")


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    for path in encoder_files(folder, (".json", ".txt", ".model")):
        _not_a_pointer(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise _refused(folder, f"its tokenizer needs a package that is not installed ({first_line(error)})") from None
    except Exception as error:  # tokenizers raises plain exceptions
        raise _refused(folder, f"its tokenizer cannot be read ({first_line(error)})", hint="copy its files again") from None
    files = sorted(set(tokenizer.vocab_files_names.values()) | {"tokenizer.json"})
    if not any((folder / name).is_file() for name in files):
        raise _refused(folder, "there is no tokenizer", expected=f"one of {', '.join(files)}", hint="copy its files too")
    tokens = tokenizer.get_vocab()
    if not set(tokens) - set(tokenizer.all_special_tokens):
        raise _refused(folder, "its tokenizer knows no words")
    if max(tokens.values()) >= vocabulary:
        raise _refused(
            folder, f"its tokenizer has tokens up to {max(tokens.values())}, the model {vocabulary} embeddings",
            expected="the model's own tokenizer",
        )  # fmt: skip
    if not tokenizer("")["input_ids"]:
        raise _refused(folder, "its tokenizer puts no tokens around a text", expected="those of a BERT, such as [CLS] and [SEP]")
    return tokenizer


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def _refused(path: Path, found: str, expected: str | None = None, hint: str | None = None) -> InputError:
    return InputError(found, where=f"encoder {path}", expected=expected, hint=hint)
