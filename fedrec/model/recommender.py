"""A trained recommender, from a run folder: load, rank, save.

`adapter/` holds the encoder's LoRA in PEFT's format, the heads and the public base as
safetensors, the scoring as JSON and the public catalogue as Parquet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedrec.config import RunConfig, write_atomically
from fedrec.data import Catalogue, CentralData, Columns
from fedrec.data.tables import write_table
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest, load_arrays, save_arrays
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.index import ItemIndex
from fedrec.model.ranking import best_items
from fedrec.model.towers import Scoring, centred, log_prior, role_table, user_vectors

__all__ = ["Recommender", "save_recommender"]

COUNT, TEXT = "popularity", "text"
INDEX, EMBEDDED, ITEMS = "items.faiss", "items-{}.safetensors", "items"
Ranked = list[tuple[str, float]]


def save_recommender(
    folder: Path,
    config: RunConfig,
    encoder: TextEncoder,
    central: CentralData,
    public: Arrays,
    trained: Arrays,
    scoring: dict[str, float],
) -> None:
    """Write everything that `Recommender.load` needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.load({**public, **trained})
    encoder.save_peft(folder)
    arrays = {name: value for name, value in {**public, **trained}.items() if not name.startswith("prior.")}
    save_arrays(arrays, folder / "fedrec.safetensors")
    frame = pd.DataFrame({Columns.ITEM: central.catalogue.item_ids, TEXT: central.catalogue.texts, COUNT: public["prior.counts"]})
    for group in central.groups:
        if len(central.groups) > 1:
            frame[f"{Columns.MERCHANT}:{group.name}"] = np.isin(np.arange(len(frame)), group.positions)
    write_table(frame, folder / "catalogue.parquet")
    settings = {
        "encoder": config.encoder,
        "encoder_layers": config.encoder_layers,
        "encoder_rank": config.encoder_rank,
        "max_tokens": config.max_tokens,
        "history": config.history,
        "scoring": scoring,
        "floor": float(public["prior.floor"][0]),
    }
    write_atomically(folder / "fedrec.json", json.dumps(settings, indent=2).encode())


@dataclass(frozen=True)
class _Shelf:
    """What is ranked.

    Attributes:
        catalogue: what a history may name.
        history: (catalogue, hidden) its items as history.
        positions: (items,) which of them may be recommended, ascending.
        table: (items, hidden + 1) `tau c` and `w log prior`; its product with a user's vector and
            a one is the score, with a zero the score without popularity.
        search: from queries (users, hidden + 1), k and masked pairs to the best rows of `table`.
    """

    catalogue: Catalogue
    history: np.ndarray
    positions: np.ndarray
    table: np.ndarray
    search: Callable[..., tuple[np.ndarray, np.ndarray]]


class Recommender:
    """Ranks a catalogue for histories of item ids.

    What does not change between calls is computed by the first one. The arguments are taken as
    they are and must not be changed afterwards.
    """

    def __init__(self, encoder: TextEncoder, arrays: Arrays, settings: dict[str, Any], table: pd.DataFrame) -> None:
        self.encoder, self.arrays, self.settings = encoder, arrays, settings
        self.scoring = Scoring(**settings["scoring"])
        self.table = table
        self.catalogue = Catalogue(tuple(table[Columns.ITEM]), tuple(table[TEXT]))
        self.index: ItemIndex | None = None
        self._folder: Path | None = None
        self._shelves: dict[str | None, _Shelf] = {}
        self._roles: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def load(cls, run: str | Path, device: str = "auto", index: bool = False) -> Recommender:
        """Open a run folder, or its `adapter/`.

        Args:
            index: search the run's whole catalogue through an approximate index, which pays from
                about a hundred thousand items on. It and the embedded catalogue are read from the
                adapter's folder; where there are none yet, or those of another adapter, they are
                made and written there.

        Raises:
            InputError: there is no adapter, its encoder cannot be loaded, or faiss is missing.
        """
        folder = Path(run) / "adapter" if (Path(run) / "adapter").is_dir() else Path(run)
        try:
            settings = json.loads((folder / "fedrec.json").read_text(encoding="utf-8"))
            table = pd.read_parquet(folder / "catalogue.parquet")
        except OSError:
            raise InputError("there is no trained adapter", where=str(folder), expected="a run folder with adapter/") from None
        encoder = load_encoder(
            settings["encoder"], settings["encoder_layers"], settings["encoder_rank"], settings["max_tokens"], device
        )
        recommender = cls(encoder, load_arrays(folder / "fedrec.safetensors"), settings, table)
        if index:
            recommender._folder = folder
            recommender._open_index(folder / INDEX)
        return recommender

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.encoder.load(self.arrays)
        self.encoder.save_peft(path)
        save_arrays(self.arrays, path / "fedrec.safetensors")
        write_table(self.table, path / "catalogue.parquet")
        write_atomically(path / "fedrec.json", json.dumps(self.settings, indent=2).encode())

    def use(self, index: ItemIndex) -> None:
        """Search the whole catalogue through `index` from now on; a merchant's part is still searched exactly."""
        self.index = index
        self._shelves[None] = replace(self._shelf(None), search=index.search)

    def rank(
        self,
        history: Sequence[str],
        k: int = 10,
        query: str | None = None,
        catalogue: Catalogue | pd.DataFrame | None = None,
        merchant: str | None = None,
    ) -> Ranked:
        """The `k` best items that the history does not hold.

        Args:
            history: item ids, most recent last; each counts as a basket of its own.
            query: words that count as one more, most recent, item. Who asks says what is wanted,
                so popularity, which is weighed for histories, is then left out.
            catalogue: rank these items instead (a `Catalogue`, or a table with `item_id` and
                `title`); without popularity, since none is known for them.
            merchant: rank only this merchant's items of the run's catalogue.

        Returns:
            (item id, score), best first; equal scores in the catalogue's order.

        Raises:
            InputError: an unknown item or merchant, or neither history nor query.
        """
        if not len(history) and not query:
            raise InputError("there is neither a history nor a query", expected="at least one of them")
        shelf = self._shelf(merchant) if catalogue is None else self._strange(_as_catalogue(catalogue))
        asked = _look_up([history], shelf.catalogue)
        vectors = shelf.history[asked[-self.settings["history"] :, 1]]
        if query:
            self.encoder.load(self.arrays)
            said = role_table(centred(self.encoder.encode([query]), self.arrays), self.arrays, self.arrays, "history")
            vectors = np.concatenate([vectors, said.cpu().numpy()])
        rows = np.stack([np.zeros(len(vectors), dtype=np.int64), np.arange(len(vectors))], axis=1)
        users = self._users(vectors, rows, 1, len(vectors))
        return self._best(shelf, users, 0.0 if query else 1.0, asked, k)[0]

    def rank_many(self, histories: Sequence[Sequence[str]], k: int = 10, merchant: str | None = None) -> list[Ranked]:
        """`rank` for many histories, in their order: a matrix product for a block of them.

        Raises:
            InputError: an unknown item or merchant, or an empty history.
        """
        shelf = self._shelf(merchant)
        asked = _look_up(histories, shelf.catalogue)
        users = self._users(shelf.history, asked, len(histories), self.settings["history"])
        return self._best(shelf, users, 1.0, asked, k)

    def recall(self, histories: Sequence[Sequence[str]], k: int = 10) -> float:
        """Share of the exact `k` best items that the approximate index finds for these histories."""
        if self.index is None:
            raise InputError("there is no index", where="Recommender", hint="load the run with index=True")
        asked = _look_up(histories, self.catalogue)
        users = self._users(self._shelf(None).history, asked, len(histories), self.settings["history"])
        return self.index.recall(_with(users, 1.0), k, np.unique(asked, axis=0))

    def _users(self, vectors: np.ndarray, rows: np.ndarray, users: int, most: int) -> np.ndarray:
        """(users, hidden) from (events, 2) of user and row of `vectors`, in time order; the `most` latest count."""
        count = np.bincount(rows[:, 0], minlength=users)
        if not count.all():
            raise InputError("there is an empty history", where=f"histories[{int(count.argmin())}]")
        age = np.repeat(np.cumsum(count), count) - 1 - np.arange(len(rows))
        rows, age = rows[age < most], age[age < most]
        shape = (users, min(most, int(count.max(initial=1))))
        items, valid = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        items[rows[:, 0], age], valid[rows[:, 0], age] = rows[:, 1], True
        return user_vectors(vectors, items, np.broadcast_to(np.arange(float(shape[1])), shape), valid, self.scoring.decay)

    def _best(self, shelf: _Shelf, users: np.ndarray, prior: float, asked: np.ndarray, k: int) -> list[Ranked]:
        """Lists of the `k` best for users (users, hidden) who have the (events, 2) `asked` behind them."""
        place = np.searchsorted(shelf.positions, asked[:, 1])
        held = np.append(shelf.positions, -1)[place] == asked[:, 1]  # others are not on the shelf anyway
        masked = np.unique(np.stack([asked[held, 0], place[held]], axis=1), axis=0)
        items, scores = shelf.search(_with(users, prior), k=k, masked=masked)
        ids = shelf.catalogue.item_ids
        return [
            [(ids[shelf.positions[item]], score) for item, score in zip(row, best, strict=True) if item >= 0]
            for row, best in zip(items.tolist(), scores.tolist(), strict=True)
        ]

    def _shelf(self, merchant: str | None) -> _Shelf:
        """The run's catalogue, or a merchant's part of it; made once."""
        if merchant not in self._shelves:
            positions = self._positions(merchant)
            history, candidate = self._own_tables()
            prior = self.scoring.prior_weight * log_prior(self.table[COUNT].to_numpy()[positions], self.settings["floor"])
            self._shelves[merchant] = self._stocked(self.catalogue, history, positions, candidate, prior)
        return self._shelves[merchant]

    def _strange(self, catalogue: Catalogue) -> _Shelf:
        """Another catalogue, whose popularity nobody knows."""
        history, candidate = self._tables(catalogue)
        items = len(catalogue)
        return self._stocked(catalogue, history, np.arange(items), candidate, np.zeros(items, dtype=np.float32))

    def _stocked(
        self, catalogue: Catalogue, history: np.ndarray, positions: np.ndarray, candidate: np.ndarray, prior: np.ndarray
    ) -> _Shelf:
        table = np.empty((len(positions), candidate.shape[1] + 1), dtype=np.float32)
        table[:, :-1] = candidate if len(positions) == len(candidate) else candidate[positions]
        table[:, :-1] *= self.scoring.temperature
        table[:, -1] = prior
        return _Shelf(catalogue, history, positions, table, partial(best_items, table=table))

    def _tables(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        """Its items as history and as candidates, (items, hidden) each."""
        e = centred(self._embedded(catalogue), self.arrays)
        history, candidate = (role_table(e, self.arrays, self.arrays, role).cpu().numpy() for role in ("history", "candidate"))
        return history, candidate

    def _embedded(self, catalogue: Catalogue) -> Tensor:
        """Its items through the encoder, (items, hidden); the run's own are kept where its index is."""
        self.encoder.load(self.arrays)
        if self._folder is None or catalogue is not self.catalogue:
            return self.encoder.embed(catalogue)
        path = self._folder / EMBEDDED.format(self._fingerprint().hex())
        with contextlib.suppress(InputError):  # there is none yet, or it was cut short
            return torch.from_numpy(load_arrays(path)[ITEMS]).to(self.encoder.device)
        older = [other for other in self._folder.glob(EMBEDDED.format("*")) if other != path]
        embedded = self.encoder.embed(catalogue)
        save_arrays({ITEMS: embedded.cpu().numpy()}, path)
        for other in older:
            other.unlink(missing_ok=True)
        return embedded

    def _own_tables(self) -> tuple[np.ndarray, np.ndarray]:
        if self._roles is None:
            self._roles = self._tables(self.catalogue)
        return self._roles

    def _fingerprint(self) -> bytes:
        """Of all that the run's embedded catalogue is made from."""
        state = hashlib.blake2b(digest_size=16)
        for part in (self.encoder.fingerprint, digest(self.arrays), self.catalogue.digest):
            state.update(part.encode())
        return state.digest()

    def _open_index(self, path: Path) -> None:
        state = hashlib.blake2b(self._fingerprint(), digest_size=16)
        state.update(json.dumps(self.settings).encode())
        state.update(self.table[COUNT].to_numpy(np.float64).tobytes())
        self.use(ItemIndex.open(path, self._shelf(None).table, state.digest()))

    def _positions(self, merchant: str | None) -> np.ndarray:
        if merchant is None:
            return np.arange(len(self.catalogue))
        column = f"{Columns.MERCHANT}:{merchant}"
        if column not in self.table:
            names = [name.split(":", 1)[1] for name in self.table.columns if name.startswith(f"{Columns.MERCHANT}:")]
            raise InputError(
                f"there is no merchant {merchant!r}", expected=f"one of {', '.join(names) or '(all share a catalogue)'}"
            )
        return np.flatnonzero(self.table[column].to_numpy())


def _as_catalogue(catalogue: Catalogue | pd.DataFrame) -> Catalogue:
    return catalogue if isinstance(catalogue, Catalogue) else Catalogue.from_table(catalogue)


def _look_up(histories: Sequence[Sequence[str]], catalogue: Catalogue) -> np.ndarray:
    """(events, 2) of history and position in the catalogue."""
    items = [item for history in histories for item in history]
    positions = catalogue.index.get_indexer(items)
    if (positions < 0).any():
        raise InputError(f"item {items[int((positions < 0).argmax())]!r} is not in the catalogue", where="history")
    return np.stack([np.repeat(np.arange(len(histories)), [len(history) for history in histories]), positions], axis=1)


def _with(users: np.ndarray, prior: float) -> np.ndarray:
    return np.column_stack([users, np.full(len(users), prior, dtype=np.float32)])
