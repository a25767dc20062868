"""A piece is what is computed in one go and kept in a file of its own, so that a benchmark goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality.central import central_rows, sequential_rows
from benchmarks.quality.datasets import DataSet
from benchmarks.quality.trained import PLAIN, federated, plain
from fedrec.config import RunConfig, Trust, write_atomically

__all__ = ["CENTRAL", "EPSILONS", "SEQUENTIAL", "TRUSTS", "Piece", "plan"]

TRUSTS: tuple[Trust, ...] = ("local", "secure-aggregation")
EPSILONS = (8.0, 4.0, 2.0, 1.0)
CENTRAL, SEQUENTIAL = "central", "sequential"
ENCODER = "encoder"


@dataclass(frozen=True)
class Piece:
    """A part of the table.

    Attributes:
        data: the name of the data set.
        kind: what of it.
        config: the settings, which are kept beside what was found, unless that says which it used.
    """

    data: str
    kind: str
    config: RunConfig
    compute: Callable[[], dict[str, Any]]

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.data}-{self.kind}-{self.config.seed}"

    def path(self, out: Path) -> Path:
        """Its file."""
        return out / f"{self.name}.json"

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether its name fits any of the patterns, as the shell writes them."""
        return any(fnmatchcase(self.name, pattern) for pattern in patterns)

    def run(self, out: Path) -> None:
        """Compute it, unless it is there, and say how long that took."""
        if self.path(out).exists():
            return
        sys.stderr.write(f"{self.name} ... ")
        sys.stderr.flush()
        start = time.monotonic()
        found = self.compute()
        seconds = round(time.monotonic() - start, 1)
        kept = {"settings": self.config.model_dump(exclude_none=True), **found, "seconds": seconds}
        write_atomically(self.path(out), json.dumps(kept, indent=2).encode())
        sys.stderr.write(f"{seconds:,.0f} s\n")


def plan(
    out: Path, sets: Sequence[DataSet], seeds: Sequence[int], epsilons: Sequence[float], trusts: Sequence[Trust]
) -> Iterator[Piece]:
    """All pieces in the order in which they are computed: the heads of the first seed before those of the next, and what trains
    the encoder, with the first seed alone, at the end."""
    for seed in seeds:
        for one in sets:
            yield from _of_heads(out, one, seed, epsilons, trusts)
    for one in sets:
        yield from _of_encoder(out, one, seeds[0], epsilons, trusts)


def _of_heads(out: Path, one: DataSet, seed: int, epsilons: Sequence[float], trusts: Sequence[Trust]) -> Iterator[Piece]:
    config = RunConfig(seed=seed, encoder_rounds=0)
    where = partial(one.federation, out / "federations")
    yield Piece(one.name, CENTRAL, config, lambda: central_rows(where("local"), config))
    for epsilon in epsilons:
        for trust in trusts:
            yield _private(out, one, f"{trust}-{epsilon:g}", config, trust, epsilon)
    for kind in PLAIN:
        yield _plain(out, one, kind, config, kind)
    yield Piece(one.name, SEQUENTIAL, config, lambda: sequential_rows(where("local"), config))


def _of_encoder(out: Path, one: DataSet, seed: int, epsilons: Sequence[float], trusts: Sequence[Trust]) -> Iterator[Piece]:
    config = RunConfig(seed=seed)
    for trust in trusts:
        yield _private(out, one, f"{ENCODER}-{trust}-{max(epsilons):g}", config, trust, max(epsilons))
    for kind in PLAIN[:2]:
        yield _plain(out, one, f"{ENCODER}-{kind}", config, kind)


def _plain(out: Path, one: DataSet, name: str, config: RunConfig, kind: str) -> Piece:
    return Piece(one.name, name, config, lambda: plain(one.federation(out / "federations", "local"), config, kind))


def _private(out: Path, one: DataSet, kind: str, config: RunConfig, trust: Trust, epsilon: float) -> Piece:
    settings = RunConfig.model_validate({**config.model_dump(), "trust": trust, "epsilon": epsilon})
    run = out / "runs" / f"{one.name}-{kind}-{config.seed}"
    return Piece(one.name, kind, settings, lambda: federated(one.federation(out / "federations", trust), settings, run))
