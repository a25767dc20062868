"""A run's embedded catalogue, kept beside its adapter: a fresh process ranks without encoding a text of it."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest, load_arrays, save_arrays

__all__ = ["embedding_key", "read_embedded", "write_embedded"]

NAME, ITEMS = "items-{}.safetensors", "items"


def embedding_key(fingerprint: str, arrays: Arrays, catalogue: Catalogue) -> str:
    """A digest of all that the pooled embeddings are made from: encoder and tokenizer, its LoRA, the texts in order.

    Heads, centre and scoring come after them, so a round on the heads leaves the file as it is.
    """
    lora = {name: value for name, value in arrays.items() if "lora_" in name}
    state = hashlib.blake2b(digest_size=16)
    for part in (fingerprint, digest(lora), catalogue.digest):
        state.update(part.encode())
    return state.hexdigest()


def read_embedded(folder: Path, key: str, items: int) -> np.ndarray | None:
    """The (items, hidden) float32 embeddings kept under `key`, or None: there are none, or the file is damaged."""
    with contextlib.suppress(InputError):
        found = load_arrays(folder / NAME.format(key)).get(ITEMS)
        if found is not None and found.ndim == 2 and len(found) == items and found.dtype == np.float32:
            return found
    return None


def write_embedded(folder: Path, key: str, embedded: np.ndarray, mode: int = 0o666) -> None:
    """Keep (items, hidden) embeddings under `key` in place of others; a folder that cannot be written is left alone.

    Args:
        mode: permissions of the file; the process's umask applies.
    """
    path = folder / NAME.format(key)
    with contextlib.suppress(OSError):
        save_arrays({ITEMS: embedded}, path, mode)
        for other in folder.glob(NAME.format("*")):
            if other != path:
                other.unlink()
