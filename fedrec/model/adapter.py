"""The adapter as a value: named float32 arrays, nothing else.

Two of them exist. The *base* is public and fixed for a run: the centre of the embeddings
and the frozen `A` matrices. The *trained* part is what merchants and server exchange: the
`B` matrices. Keeping A out of the messages halves them and makes averaging exact
(FFA-LoRA; Sun et al., ICLR 2024, section 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from fedrec.config import Part, write_atomically
from fedrec.errors import InputError

__all__ = [
    "CENTRE",
    "HEAD_A",
    "HEAD_B",
    "TERMS",
    "Arrays",
    "digest",
    "flat",
    "load_arrays",
    "norm",
    "of_part",
    "save_arrays",
    "unflat",
]

Arrays = dict[str, np.ndarray]

CENTRE = "centre"
HEAD_A = "heads.A"
HEAD_B = {"history": "heads.history.B", "candidate": "heads.candidate.B"}
TERMS = "heads.terms"
"""Linear terms of a score that has any: see `fedrec.model.towers.linear_terms`."""


def of_part(arrays: Mapping[str, np.ndarray], part: Part) -> Arrays:
    """The trained arrays that belong to `part`: the heads, or the encoder's LoRA."""
    return {name: value for name, value in arrays.items() if name.startswith("heads.") == (part == "heads")}


def norm(arrays: Mapping[str, np.ndarray]) -> float:
    """L2 norm over all arrays together."""
    return float(np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in arrays.values())))


def flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(numbers,) float64: all arrays one after the other, by name."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float64).ravel() for name in sorted(arrays)])


def unflat(vector: np.ndarray, like: Mapping[str, np.ndarray]) -> Arrays:
    """The float32 arrays behind what `flat` made, with the names and shapes of `like`."""
    ends = np.cumsum([like[name].size for name in sorted(like)])
    parts = np.split(vector, ends[:-1])
    return {name: part.reshape(like[name].shape).astype(np.float32) for name, part in zip(sorted(like), parts, strict=True)}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of names, types, shapes and bytes: equal adapters have equal digests, and others different ones."""
    header = [[name, arrays[name].dtype.str, list(arrays[name].shape)] for name in sorted(arrays)]
    state = hashlib.blake2b(json.dumps(header).encode(), digest_size=16)
    for name in sorted(arrays):
        state.update(np.ascontiguousarray(arrays[name]).tobytes())
    return state.hexdigest()


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path, mode: int = 0o666) -> None:
    """Write safetensors to a temporary name, flush, and rename.

    Args:
        mode: permissions of the file; the process's umask applies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}), mode)


def load_arrays(path: Path) -> Arrays:
    """Read what `save_arrays` wrote.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(f"cannot be read ({error})", where=str(path), expected="a safetensors file") from None
