"""A trained recommender, from a run folder: load, rank, save."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from fedrec.data import Catalogue, Columns, ItemDetails
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE
from fedrec.model.adapter import HEAD_A, TERMS, Arrays, digest
from fedrec.model.embedded import embedding_key, read_embedded, write_embedded
from fedrec.model.saved import COUNT, EXPECTED, catalogue_of, check_held, encoder_of, read_adapter, save_adapter
from fedrec.model.towers import Scoring, centred, log_prior, role_table, user_vectors
from fedrec.model.versions import RANKS
from fedrec.recommender.asking import Asking, listed
from fedrec.recommender.baskets import BasketRanker, substitutes
from fedrec.recommender.index import ItemIndex
from fedrec.recommender.of_merchant import MerchantRecommender
from fedrec.recommender.of_run import RunRanker
from fedrec.recommender.ratings import ratings as predicted_ratings
from fedrec.recommender.reasons.words import Reader
from fedrec.recommender.recommending import Recommending, exported
from fedrec.recommender.responses import Asked, ResponseScores
from fedrec.recommender.shelf import Ranked, Shelf, look_up, with_prior

if TYPE_CHECKING:
    from fedrec.model.encoder import TextEncoder

__all__ = ["Recommender"]

INDEX = "items.faiss"


class Recommender(Recommending):
    """Ranks a catalogue for histories of item ids.

    What does not change between calls is computed by the first one. The arguments are taken as
    they are and must not be changed afterwards; without an encoder, the one that the settings name
    is loaded when a text has to be read.
    """

    def __init__(
        self, encoder: TextEncoder | None, arrays: Arrays, settings: dict[str, Any], table: pd.DataFrame, device: str = "auto"
    ) -> None:
        self.arrays, self.settings = arrays, settings
        self.scoring = Scoring(**settings["scoring"])
        self.table = table
        self.catalogue, self.details = catalogue_of(table), ItemDetails.from_table(table)
        self.index: ItemIndex | None = None
        self._encoder, self._device = encoder, device
        self._folder: Path | None = None
        self._shelves: dict[str | None, Shelf] = {}
        self._roles: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def load(
        cls, run: str | Path, device: str = "auto", index: bool = False, onnx: str | Path | None = None
    ) -> Recommender | MerchantRecommender:
        """Open a run folder, or its `adapter/`; or a merchant's folder, whose own catalogue is then ranked.

        The embedded catalogue is read from the adapter's folder; where there is none yet, or one of
        another encoder, LoRA or catalogue, it is made and, if the folder can be written, kept there.

        Args:
            index: search the run's whole catalogue through an approximate index, which pays from
                about a hundred thousand items on. It is kept like the embedded catalogue.
            onnx: an export of this model (`fedrec export --format onnx`), whose encoder then reads words: on a processor it
                needs a fraction of the time for a query.

        Raises:
            InputError: there is no adapter, its encoder has changed or cannot be loaded, or faiss is missing; `onnx` is no
                export, or one of another model.
        """
        if (Path(run) / MERCHANT_FILE).is_file():
            return MerchantRecommender.load(run, onnx)
        folder = Path(run) / "adapter" if (Path(run) / "adapter").is_dir() else Path(run)
        arrays, settings, table = read_adapter(folder)
        recommender = cls(None, arrays, settings, table, device)
        recommender._folder = folder
        check_held(settings, device)
        if onnx is not None:
            recommender._onnx = exported(onnx, settings.get("encoder_fingerprint", ""), arrays)
        if index:
            recommender._open_index(folder / INDEX)
        return recommender

    @property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded by the first use.

        Raises:
            InputError: it cannot be loaded, or is not the one that the run was made with.
        """
        if self._encoder is None:
            self._encoder = encoder_of(self.settings, self._device)
        return self._encoder

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""
        save_adapter(Path(folder), self.encoder, self.arrays, self.settings, self.table)

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
            query: words for what is looked for: as `search` ranks, and a history orders what they find
                (`fedrec.recommender.asking`).
            catalogue: rank these items instead (a `Catalogue`, or a table with `item_id` and
                `title`); without popularity, since none is known for them. The words of their own
                texts are then indexed.
            merchant: rank only this merchant's items of the run's catalogue.

        Returns:
            (item id, score), best first; equal scores in the catalogue's order.

        Raises:
            InputError: an unknown item or merchant, a query without words, or neither history nor query.
        """
        if not len(history) and not query:
            raise InputError("there is neither a history nor a query", expected="at least one of them")
        if query:
            asking = self._ranker(merchant) if catalogue is None else self._asking(_as_catalogue(catalogue))
            return listed(asking, [history], k, query)[0]
        shelf = self._shelf(merchant) if catalogue is None else self._strange(_as_catalogue(catalogue))
        asked = look_up([history], shelf.catalogue)
        vectors = shelf.history[asked[-self.settings["history"] :, 1]]
        rows = np.stack([np.zeros(len(vectors), dtype=np.int64), np.arange(len(vectors))], axis=1)
        users = self._users(vectors, rows, 1, len(vectors))
        return shelf.best(users, 1.0, asked, k)[0]

    def rank_many(self, histories: Sequence[Sequence[str]], k: int = 10, merchant: str | None = None) -> list[Ranked]:
        """`rank` for many histories, in their order: a matrix product for a block of them.

        Raises:
            InputError: an unknown item or merchant, or an empty history.
        """
        shelf = self._shelf(merchant)
        asked = look_up(histories, shelf.catalogue)
        users = self._users(shelf.history, asked, len(histories), self.settings["history"])
        return shelf.best(users, 1.0, asked, k)

    def predict(
        self, history: Sequence[str], items: Sequence[str], merchant: str | None = None, ratings: Sequence[float] | None = None
    ) -> np.ndarray:
        """What a run was trained to predict of each item, (items,).

        With `objective = "response"` the probability that a user responds when it is shown, with `"rating"` how it would rate it.

        Args:
            history: item ids, most recent last; each counts as a basket of its own.
            items: item ids, in any order.
            merchant: who shows them, where merchants have catalogues of their own.
            ratings: how the user rated each item of the history, where that is known; with `"rating"` alone.

        Raises:
            InputError: the run ranks, an item or merchant is unknown, or there is no history or no item.
        """
        if not self.predicts:
            expected = "a run with objective = 'response' or 'rating'"
            raise InputError("the run predicts neither", expected=expected, hint="basket" if self.completes else "recommend")
        rates = EXPECTED in self.table
        if ratings is not None and not rates:
            raise InputError("the run was trained on responses, and not on ratings", where="ratings")
        if not len(history) or not len(items):
            raise InputError("there is no history, or no item", expected="at least one of each")
        if merchant is None and any(name.startswith(f"{Columns.MERCHANT}:") for name in self.table.columns):
            raise InputError("it is not said who shows the items", where="merchant", expected="one of the run's merchants")
        positions = self._positions(merchant)
        held = look_up([history], self.catalogue)[:, 1]
        shown = look_up([items], self.catalogue, where="items")[:, 1]
        if not np.isin(shown, positions).all():
            raise InputError(f"an item is not one of merchant {merchant}'s", where="items")
        prior = np.full(len(self.catalogue), np.nan)
        if rates:
            prior[positions] = self.table[EXPECTED].to_numpy()[positions]
            text = self._text()
            parts = (prior, text @ self.arrays[HEAD_A], text, self._own_tables(), self.arrays[TERMS], self.settings)
            return predicted_ratings(held, ratings, shown, *parts)
        prior[positions] = log_prior(self.table[COUNT].to_numpy()[positions], self.settings["floor"])
        length = self.settings["history"]
        held = held[-length:]
        scoring = Scoring(**self.settings.get("response_scoring", self.settings["scoring"]))
        model = ResponseScores(self._text(), *self._own_tables(), prior, self.arrays[TERMS], scoring, length)
        logits = model.logits(Asked.of_one(held, np.arange(len(held)), shown))
        found: np.ndarray = expit(logits + np.log(self.settings["negative_share"]))
        return found

    def recall(self, histories: Sequence[Sequence[str]], k: int = 10) -> float:
        """Share of the exact `k` best items that the approximate index finds for these histories."""
        if self.index is None:
            raise InputError("there is no index", where="Recommender", hint="load the run with index=True")
        asked = look_up(histories, self.catalogue)
        users = self._users(self._shelf(None).history, asked, len(histories), self.settings["history"])
        return self.index.recall(with_prior(users, 1.0), k, np.unique(asked, axis=0))

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

    def _ranker(self, merchant: str | None) -> Asking:
        self._check_it_ranks()
        return Asking(self._towers(merchant), lambda: self._searcher(self.language))

    def _basket_ranker(self, held: np.ndarray, merchant: str | None) -> BasketRanker:
        if not self.completes:
            self._check_it_ranks()
        return BasketRanker(self._towers(merchant), substitutes(self._vectors, held, None))

    def _towers(self, merchant: str | None) -> RunRanker:
        shelf, (_, candidates) = self._made_shelf(merchant), self._own_tables()
        counts = self.table[COUNT].to_numpy(np.float32)
        return RunRanker(shelf, self.details, candidates, counts, self.scoring.decay, self.settings["history"])

    def _asking(self, catalogue: Catalogue) -> Asking:
        """Who ranks another catalogue for words."""
        e = centred(self._embedded(catalogue), self.arrays)
        (history, candidate), counts = self._roles_of(e), np.zeros(len(catalogue), dtype=np.float32)
        shelf = self._stocked(catalogue, history, candidate)
        ranker = RunRanker(shelf, ItemDetails(), candidate, counts, self.scoring.decay, self.settings["history"])
        return Asking(ranker, lambda: self._indexed(catalogue, e.cpu().numpy(), self.language))

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        """See `Reader`."""
        encoded = self._encoded(texts)
        _, candidate = self._roles_of(encoded)
        return np.hstack([candidate * self.scoring.temperature, encoded.cpu().numpy()])

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        """See `Recommending`."""
        if self._onnx is not None:
            return centred(self._onnx.encode(texts), self.arrays)
        self.encoder.load(self.arrays)
        return centred(self.encoder.encode(texts), self.arrays)

    def _reader(self) -> Reader:
        return Reader(self.encoder.read_until, self._read)

    def _text(self) -> np.ndarray:
        """See `Recommending`: without the heads, which know what is bought together."""
        found: np.ndarray = centred(self._embedded(self.catalogue), self.arrays).cpu().numpy()
        return found

    def _shelf(self, merchant: str | None) -> Shelf:
        """The run's catalogue, or a merchant's part of it, for a run that ranks."""
        self._check_it_ranks()
        return self._made_shelf(merchant)

    def _made_shelf(self, merchant: str | None) -> Shelf:
        if merchant not in self._shelves:  # made once
            positions = self._positions(merchant)
            history, candidate = self._own_tables()
            prior = self.scoring.prior_weight * log_prior(self.table[COUNT].to_numpy()[positions], self.settings["floor"])
            self._shelves[merchant] = Shelf.stocked(
                self.catalogue, history, positions, candidate, prior, self.scoring.temperature
            )
        return self._shelves[merchant]

    def _strange(self, catalogue: Catalogue) -> Shelf:
        """Another catalogue, whose popularity nobody knows."""
        return self._stocked(catalogue, *self._tables(catalogue))

    def _stocked(self, catalogue: Catalogue, history: np.ndarray, candidate: np.ndarray) -> Shelf:
        self._check_it_ranks()
        items = len(catalogue)
        unknown = np.zeros(items, dtype=np.float32)
        return Shelf.stocked(catalogue, history, np.arange(items), candidate, unknown, self.scoring.temperature)

    @property
    def ranks(self) -> bool:
        """Whether it was trained to rank; a run may also have been trained to predict."""
        return RANKS in self.settings.get("objective", RANKS)

    @property
    def completes(self) -> bool:
        """Whether it was trained to complete baskets; it then answers nothing else."""
        return bool(self.settings.get("objective") == "basket")

    @property
    def predicts(self) -> bool:
        """Whether it predicts responses or ratings: it has the linear terms of their scores."""
        return TERMS in self.arrays

    def _check_it_ranks(self) -> None:
        if not self.ranks:
            predicts = "Recommender.predict, or fedrec predict, says how likely a response is, or what a user would rate"
            raise InputError(
                f"the run was trained with objective = {self.settings['objective']!r} and does not rank",
                expected=f"a run with objective = {RANKS!r}",
                hint="Recommender.basket, or fedrec basket, says what goes with a basket" if self.completes else predicts,
            )

    def _tables(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        """Its items as history and as candidates, (items, hidden) each."""
        return self._roles_of(centred(self._embedded(catalogue), self.arrays))

    def _roles_of(self, e: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Texts as history and as candidates, from their unit vectors (items, hidden)."""
        history, candidate = (role_table(e, self.arrays, self.arrays, role).cpu().numpy() for role in ("history", "candidate"))
        return history, candidate

    def _embedded(self, catalogue: Catalogue) -> Tensor:
        """Its items through the encoder, (items, hidden); the run's own are kept beside the adapter."""
        keep = self._folder if catalogue is self.catalogue else None
        if keep and (kept := read_embedded(keep, self._key(), len(catalogue))) is not None:
            return torch.from_numpy(kept)
        self.encoder.load(self.arrays)
        embedded = self.encoder.embed(catalogue)
        if keep:
            write_embedded(keep, self._key(), embedded.cpu().numpy())
        return embedded

    def _own_tables(self) -> tuple[np.ndarray, np.ndarray]:
        if self._roles is None:
            self._roles = self._tables(self.catalogue)
        return self._roles

    def _key(self) -> str:
        """Under which the run's embedded catalogue is kept."""
        fingerprint = self.settings.get("encoder_fingerprint") or self.encoder.fingerprint
        return embedding_key(fingerprint, self.arrays, self.catalogue)

    def _open_index(self, path: Path) -> None:
        state = hashlib.blake2b(self._key().encode(), digest_size=16)
        state.update(digest(self.arrays).encode())
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
