"""One loaded state of a run or of a merchant's folder, and how a change on disk is noticed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fedrec.data.feedback import FEEDBACK, LOG
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE, OWN, read_merchant_file
from fedrec.model.adapter import digest
from fedrec.model.encoder import encoders_apart
from fedrec.model.versions import UNTRAINED, Versions
from fedrec.recommender import Answer, MerchantRecommender, Person, Recommender, Wish
from fedrec.recommender.bandit import BANDIT
from fedrec.recommender.own_model import FILE
from fedrec.recommender.responding import FILE as RESPONSES

__all__ = ["Model", "Stamp", "check_export", "load_model", "stamp_of", "versions_of"]

SETTLED = 3
"""How often a folder that changes while it is loaded is loaded again."""
TABLES = ("items.csv", "items.parquet", "events.csv", "events.parquet")
RUN_FILES = ("fedrec.json", "fedrec.safetensors", "adapter_model.safetensors", "catalogue.parquet")


@dataclass(frozen=True)
class Stamp:
    """What a state is told from another by, without reading it.

    Attributes:
        files: name, inode, time and size of each file that is loaded.
        late: the same of what is only read again now and then: feedback that comes in.
        database: whether the tables come from one, where no change can be seen.
    """

    files: tuple[tuple[str, int, int, int], ...]
    late: tuple[int, int] = (0, 0)
    database: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded state; it never changes.

    Attributes:
        recommender: what ranks.
        version: the adapter's name.
        responses: the name of what predicts responses, None where nothing does.
        snapshot: tells loaded states of one folder apart, also where the adapter is the same.
        stamp: what was on disk.
        loaded: when, in seconds since 1970.
        words: whether there is an encoder for words.
        export: whether an export reads them in its place; None where there is none.
    """

    recommender: Recommender | MerchantRecommender
    version: str
    snapshot: str
    stamp: Stamp
    words: bool
    responses: str | None = None
    export: bool | None = None
    loaded: float = field(default_factory=time.time)

    @property
    def ranks(self) -> bool:
        """Whether it makes lists; a run that was only trained to predict does not."""
        return _ranks(self.recommender)

    @property
    def data_time(self) -> float:
        """When the newest of its files was written, in seconds since 1970."""
        return max([file[2] for file in self.stamp.files] + [self.stamp.late[0]]) / 1e9

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of each item."""
        catalogue = self.recommender.catalogue
        return dict(zip(catalogue.item_ids, catalogue.texts, strict=True))

    def lists(self, asked: Sequence[tuple[Person, Wish]], merchant: str | None = None) -> list[Answer | InputError]:
        """Lists for people with a wish each."""
        return self.recommender.recommend_each(asked, merchant)


def check_export(folder: Path, onnx: Path) -> None:
    """Whether an export is of the model that ranks in a folder.

    Raises:
        InputError: it is not, or either cannot be loaded.
    """
    Recommender.load(folder, onnx=onnx)


def versions_of(folder: Path) -> list[str]:
    """Every version that a merchant's folder can be ranked under: the untrained text, and what was delivered as it arrived."""
    return [UNTRAINED, *Versions(folder / "model").names()]


def load_model(folder: Path, onnx: Path | None = None, version: str | None = None) -> Model:
    """Load what is there now and ask it everything once, so that no customer waits for what only the first one needs.

    Args:
        onnx: an export that reads words where it is of the model that is there now; else the model's own encoder does.
        version: of a merchant's `versions_of`, to compare; by default the one that ranks.

    Raises:
        InputError: it cannot be loaded.
    """
    with encoders_apart():
        for _ in range(SETTLED):
            before = stamp_of(folder)
            recommender, export = _open(folder, onnx, version)
            responses = _responses(recommender)
            words = _warm(recommender)
            if stamp_of(folder) == before:
                break
        name = _version(recommender)
    snapshot = blake2b(f"{name}{before}".encode(), digest_size=6).hexdigest()
    model = Model(recommender, name, snapshot, before, words, responses, None if onnx is None else export)
    _ = model.texts
    return model


def _open(folder: Path, onnx: Path | None, version: str | None) -> tuple[Recommender | MerchantRecommender, bool]:
    """What ranks, and whether the export can be used."""
    if version is not None:
        return MerchantRecommender.load(folder, version=version), False
    if onnx is not None:
        with suppress(InputError):
            return Recommender.load(folder, onnx=onnx), True
    return Recommender.load(folder), False


def stamp_of(folder: Path) -> Stamp:
    """What is there now; a file that is missing is part of it."""
    if not (folder / MERCHANT_FILE).is_file():
        adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
        return Stamp(tuple(_file(adapter / name) for name in RUN_FILES))
    source = None
    with suppress(InputError):
        source = read_merchant_file(folder / MERCHANT_FILE).data
    tables = folder / ((source.path if source else None) or "")
    paths = [folder / MERCHANT_FILE, *(tables / name for name in TABLES)]
    paths += [folder / OWN / name for name in (FILE, RESPONSES, BANDIT)]
    for current in (versions.current_file for versions in Versions.of_each_objective(folder / "model")):
        paths.append(current)
        with suppress(OSError, ValueError):
            paths.append(folder / "model" / current.read_text(encoding="utf-8").strip() / "fedrec.json")
    _, inode, written, size = _file(folder / FEEDBACK / LOG)
    # What is appended waits for its turn. Another file means that a person was taken out of it, and that does not.
    files = (*map(_file, paths), (LOG, inode, 0, 0))
    return Stamp(files, (written, size), source is not None and source.url is not None)


def _file(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path.name, 0, 0, 0
    return path.name, found.st_ino, found.st_mtime_ns, found.st_size


def _version(recommender: Recommender | MerchantRecommender) -> str:
    if isinstance(recommender, MerchantRecommender):
        return UNTRAINED if recommender.adapter is None else recommender.adapter.name
    return f"run-{digest(recommender.arrays)[:12]}"


def _ranks(recommender: Recommender | MerchantRecommender) -> bool:
    return isinstance(recommender, MerchantRecommender) or recommender.ranks


def _responses(recommender: Recommender | MerchantRecommender) -> str | None:
    """What predicts responses, asked once; None where nothing does, or it cannot be used: ranking goes on without it."""
    some = list(recommender.catalogue.item_ids[:1])
    try:
        if isinstance(recommender, MerchantRecommender):
            recommender.predict(some, some)
            return recommender.response_version
        return _version(recommender) if "response" in recommender.settings.get("objective", "") else None
    except InputError:
        return None


def _warm(recommender: Recommender | MerchantRecommender) -> bool:
    """Ask for one of everything; whether words can be read here."""
    if not _ranks(recommender):
        return True  # what does not rank says so itself, to whoever asks with words
    ask: dict[str, Any] = {"history": list(recommender.catalogue.item_ids[:3]), "k": 5}
    recommender.recommend([], k=1)
    recommender.recommend(**ask, diversity=0.1, explain=True)
    recommender.recommend(user_id="", k=1, explore=0.1)
    recommender.basket(ask["history"], k=1, explain=True)
    if isinstance(recommender, MerchantRecommender):
        recommender.recommend(**ask, repeats=True)
    try:
        recommender.recommend(**ask, query="a")
        recommender.search("a", k=1)
    except InputError:
        return False  # a run can rank without its encoder
    return True
