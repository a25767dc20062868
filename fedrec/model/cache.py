"""The frozen trunk's output for each text, computed once and memory-mapped.

Everything below the first trained layer never changes, so a text's hidden states there are
a function of the model and the text alone. They are kept as shards that are written to a
temporary name, renamed and never changed, so processes may share the folder without locks:
at worst two of them compute the same text twice. For the same reason any of it may be deleted
while they run: what a process has mapped stays until it ends, and the rest is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["States", "TrunkCache", "prune_caches"]

log = logging.getLogger("fedrec.model")

FINGERPRINT = r"[0-9a-f]{24}"

REMEMBERED = 32
"""How many catalogues' places in the shards a process keeps; a GPU may hold the states of as many."""

Compute = Callable[[Sequence[str]], Iterator[np.ndarray]]


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of texts: rows of memory-mapped shards.

    Attributes:
        shards: arrays of shape (tokens, hidden), float16.
        shard: (texts,) which shard a text is in.
        start: (texts,) its first row there.
        length: (texts,) its number of tokens.
    """

    shards: tuple[np.ndarray, ...]
    shard: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    def followed_by(self, other: States) -> States:
        """These texts and then others'."""
        if not len(other):
            return self
        shard = np.concatenate([self.shard, other.shard + len(self.shards)])
        start, length = np.concatenate([self.start, other.start]), np.concatenate([self.length, other.length])
        return States((*self.shards, *other.shards), shard, start, length)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> States:
        """Of (tokens, hidden) arrays, one a text, that are kept in memory alone."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        joined = [np.concatenate(rows).astype(np.float16)] if rows else []
        return cls(tuple(joined), np.zeros(len(rows), dtype=np.int64), np.cumsum(lengths) - lengths, lengths)

    def padded(self, texts: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """States of `texts` as (texts, tokens, hidden) float16, zeros after the end, and their lengths."""
        lengths = self.length[texts]
        hidden = self.shards[0].shape[1]
        out = np.zeros((len(texts), tokens, hidden), dtype=np.float16)
        rows = np.arange(out.shape[1])
        inside = rows < lengths[:, None]
        for number, shard in enumerate(self.shards):
            here = self.shard[texts] == number
            if here.any():
                at = (self.start[texts][here][:, None] + rows)[inside[here]]
                chosen = inside & here[:, None]
                out[chosen] = shard[at]
        return out, lengths

    def rows(self, texts: np.ndarray) -> np.ndarray:
        """States of `texts`, one after the other: (tokens, hidden) float16."""
        lengths = self.length[texts]
        shard, within = np.repeat(self.shard[texts], lengths), np.arange(lengths.sum())
        at = np.repeat(self.start[texts] - (np.cumsum(lengths) - lengths), lengths) + within
        if len(self.shards) == 1:
            return self.shards[0][at]
        out = np.empty((len(at), self.shards[0].shape[1]), dtype=np.float16)
        for number, rows in enumerate(self.shards):
            out[shard == number] = rows[at[shard == number]]
        return out


class TrunkCache:
    """A folder of shards for one model, one boundary layer and one cut-off length.

    Where the folder cannot be written, what was computed is kept in memory, as long as this object.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder / fingerprint
        self._warned = False
        self._shards: dict[str, np.ndarray] = {}
        self._where: dict[int, tuple[str, int, int]] = {}
        self._states: dict[bytes, States] = {}

    def states(self, texts: Sequence[str], keys: np.ndarray, compute: Compute) -> States:
        """The states of `texts`, computing and storing those that no shard holds yet; the same object for the last catalogues.

        Args:
            keys: (texts,) uint64 text keys.
            compute: yields (tokens, hidden) for each of the texts it is given, in order.
        """
        name = hashlib.blake2b(keys.tobytes(), digest_size=16).digest()
        if name not in self._states:
            self._states[name] = self._found(texts, keys, compute)
            while len(self._states) > REMEMBERED:
                self._states.pop(next(iter(self._states)))
        return self._states[name]

    def _found(self, texts: Sequence[str], keys: np.ndarray, compute: Compute) -> States:
        self._read_new_shards()
        missing = {int(key): text for key, text in zip(keys, texts, strict=True) if int(key) not in self._where}
        if missing:
            self._write_shard(list(missing), compute(list(missing.values())))
        places = [self._where[int(key)] for key in keys]
        names = sorted({name for name, _, _ in places})
        number = {name: i for i, name in enumerate(names)}
        return States(
            shards=tuple(self._shards[name] for name in names),
            shard=np.array([number[name] for name, _, _ in places]),
            start=np.array([start for _, start, _ in places]),
            length=np.array([length for _, _, length in places]),
        )

    def _read_new_shards(self) -> None:
        found: list[Path] = []
        with contextlib.suppress(OSError):  # a folder that cannot be read holds nothing
            found += sorted(self.folder.glob("*.index.npy"))
        for path in found:
            name = path.name.removesuffix(".index.npy")
            if name in self._shards:
                continue
            with contextlib.suppress(OSError, ValueError, EOFError):  # what a power cut has left of it is computed again
                self._add(name, np.load(path), np.load(self.folder / f"{name}.states.npy", mmap_mode="r"))

    def _add(self, name: str, index: np.ndarray, states: np.ndarray) -> None:
        self._shards[name] = states
        for key, start, length in zip(index["key"], index["start"], index["length"], strict=True):
            self._where[int(key)] = (name, int(start), int(length))

    def _write_shard(self, keys: list[int], states: Iterator[np.ndarray]) -> None:
        rows = [np.asarray(row, dtype=np.float16) for row in states]
        lengths = np.array([len(row) for row in rows])
        index = np.zeros(len(keys), dtype=[("key", np.uint64), ("start", np.int64), ("length", np.int64)])
        index["key"], index["length"], index["start"] = keys, lengths, np.cumsum(lengths) - lengths
        name, joined = uuid.uuid4().hex, np.concatenate(rows)
        temporary = self.folder / f".{name}.tmp.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The index is renamed last: a reader that sees it finds the states complete.
            for suffix, array in (("states", joined), ("index", index)):
                np.save(temporary, array)
                os.replace(temporary, self.folder / f"{name}.{suffix}.npy")
            joined = np.load(self.folder / f"{name}.states.npy", mmap_mode="r")
        except OSError as error:
            self._warn(error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._add(name, index, joined)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: cannot be written (%s); item texts are computed again by each process: set FEDREC_CACHE to another folder",
                self.folder.parent, error.strerror or error,
            )  # fmt: skip


def prune_caches(folder: Path, keep: Collection[str]) -> None:
    """Delete the caches in `folder` but for those of these fingerprints; what cannot be deleted is left."""
    with contextlib.suppress(OSError):  # there is no such folder
        for path in [one for one in folder.iterdir() if re.fullmatch(FINGERPRINT, one.name) and one.name not in keep]:
            with contextlib.suppress(OSError):
                path.rename(folder / f".{path.name}.{uuid.uuid4().hex}.tmp")  # at once, and not file by file
        for gone in folder.glob(".*.tmp"):  # and what an interrupted one has left
            shutil.rmtree(gone, ignore_errors=True)
