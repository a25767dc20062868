"""A merchant's recommender: the federated text joined with what the merchant knows of its own customers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize

from fedrec.config import RunConfig
from fedrec.data import Catalogue, ItemDetails, MerchantData
from fedrec.errors import InputError
from fedrec.model.ranking import products
from fedrec.model.towers import centred, role_table
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.asking import Asking, listed
from fedrec.recommender.bandit import Bandit
from fedrec.recommender.baskets import BasketParts, BasketRanker, Baskets, OwnBaskets, substitutes
from fedrec.recommender.blend import Blend, TextPart, own_scores
from fedrec.recommender.contest import (
    ALONE,
    FEDERATED,
    HERE,
    SERVED,
    TEXT,
    THEIRS,
    contenders,
    plain_part,
    popularity_here,
    trained_part,
)  # fmt: skip
from fedrec.recommender.frequency import SHARED, PersonalFrequency
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.own_layer import bought_by
from fedrec.recommender.own_model import OwnModel, Placed
from fedrec.recommender.past import Past
from fedrec.recommender.pooled import Pooled
from fedrec.recommender.reasons.shares import (
    OWN,
    Shares,
    count_customers,
    held_items_of,
    own_shares,
    prior_shares,
    text_shares,
)
from fedrec.recommender.reasons.words import Reader
from fedrec.recommender.recommending import Recommending, exported
from fedrec.recommender.responding import ResponseModel
from fedrec.recommender.shelf import Ranked

__all__ = ["MerchantRanker", "MerchantRecommender"]

SEARCHES = 4096
"""Vectors of past searches that a process keeps: encoding one takes longer than ranking."""


@dataclass(frozen=True)
class MerchantRanker:
    """A catalogue ranked under a merchant's blend; a `HistoryRanker`.

    Attributes:
        data: catalogue, details and the users by name.
        part: the text over the catalogue.
        layer: the own layer; None where there is none.
        counts: (items,) how often each was bought here, or in the federation where the own layer is turned off.
        blend: how they are joined.
        length: how many of a history's latest events the text pools.
        said: from what users searched for to its vectors as history, (searches, hidden).
        source: what ranks.
        frequency: what is added where people buy again.
    """

    data: MerchantData
    part: TextPart
    layer: Placed | None
    counts: np.ndarray
    blend: Blend
    length: int
    said: Callable[[Sequence[str]], np.ndarray]
    source: str
    frequency: PersonalFrequency

    @property
    def catalogue(self) -> Catalogue:
        """The merchant's items."""
        return self.data.catalogue

    @property
    def details(self) -> ItemDetails:
        """Their brand, category and price."""
        return self.data.details

    @property
    def vectors(self) -> np.ndarray:
        """(items, hidden) the items as candidates."""
        return self.part.candidate

    def scores(self, pasts: Sequence[Past]) -> np.ndarray:
        """See `HistoryRanker`."""
        history, pasts = self._searched(pasts)
        events = Pooled.of(pasts, history, self.length)
        # The catalogue is read once: to join the users first is the same sum as to join their scores.
        joined = np.zeros((len(pasts), self.vectors.shape[1]), dtype=np.float32)
        for decay, weight in self.blend.pooling.items():
            joined += np.float32(weight) * events.users(decay)
        out = products(joined, self.vectors)
        for name, weight in self.blend.priors.items():
            out += np.float32(weight) * self.part.priors[name]
        if self.layer is not None and self.blend.own:
            out += np.float32(self.blend.own) * own_scores(self.layer, _bought(pasts, len(self.catalogue)))
        return out

    def shares(self, past: Past, items: np.ndarray) -> Shares:
        """See `HistoryRanker`."""
        held, own = held_items_of(past), HERE in self.blend.priors or bool(self.blend.own)
        nothing = np.zeros((len(held), len(items)))
        customers = count_customers(self._buyers, past, held, items) if own else None
        if not len(held):
            counts, none = {HERE if own else THEIRS: self.counts[items].astype(np.float64)}, np.zeros((len(items), 0))
            return Shares(held, {}, nothing, nothing, {}, counts, np.zeros(len(items)), none, customers=customers)
        candidate = self.part.candidate[items]
        history, (numbered,) = self._searched([past])
        text = text_shares(numbered, held_items_of(numbered), history, candidate, self.length, self.blend.pooling)
        popularity, base = prior_shares(self.part.priors, self.blend.priors, items)
        together = nothing
        if self.layer is not None and self.blend.own:
            together = own_shares(self.layer, past, held, items, self.blend.own, len(self.catalogue))
        weights: list[tuple[str | float, float]] = [
            *self.blend.pooling.items(),
            *self.blend.priors.items(),
            (OWN, self.blend.own),
        ]
        opposite = frozenset(part for part, weight in weights if weight < 0)
        return Shares(held, text.text, together, nothing, {}, popularity, base, text.direction, opposite, customers)

    def popularity(self) -> np.ndarray:
        """See `HistoryRanker`."""
        return self.counts

    def past_of(self, user_id: str) -> Past | None:
        """See `HistoryRanker`."""
        number = self._numbers.get(user_id)
        if number is None:
            return None
        alone, size = self.data.histories.take(np.array([number])), len(self.catalogue)
        own = np.unique(alone.items[alone.items >= size])
        items = np.where(alone.items < size, alone.items, size + np.searchsorted(own, alone.items))
        queries = tuple(alone.queries[number - size] for number in own)
        return Past(items, alone.baskets, alone.target, alone.times, queries)

    def _searched(self, pasts: Sequence[Past]) -> tuple[np.ndarray, Sequence[Past]]:
        """The catalogue as history, with what these people searched for after it, and their events numbered by that."""
        size = len(self.catalogue)
        searches: list[str] = []
        numbered: list[Past] = []
        for past in pasts:
            recent = np.unique(past.items[-self.length :])
            recent = recent[recent >= size] - size
            # What is too long ago to be pooled is numbered too, and not read.
            order = np.concatenate([recent, np.setdiff1d(np.arange(len(past.queries)), recent)])
            place = np.append(np.argsort(order), 0)[np.maximum(past.items - size, -1)]
            numbered.append(past._replace(items=np.where(past.items < size, past.items, size + len(searches) + place)))
            searches += [past.queries[number] for number in recent]
        if not searches:
            return self.part.history, pasts
        return np.concatenate([self.part.history, self.said(searches)]), numbered

    @cached_property
    def _buyers(self) -> csr_array:
        """(items, users) of ones, who bought what here."""
        return bought_by(self.data.histories, len(self.catalogue)).T.tocsr()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.data.histories.user_ids)}


class MerchantRecommender(Recommending):
    """Ranks a merchant's catalogue as it is now: new items at once, and events as they come.

    The own layer is the last that `fedrec merchant fit` wrote; where there is none, the text ranks under shared defaults. Lists
    that explore go by what `fedrec explore learn` wrote, as long as the adapter is the one that it was learned beside.
    Where it is turned off, nothing ranks that was computed from customers without noise.
    """

    def __init__(self, place: MerchantPlace, version: str | None = None) -> None:
        self.place, self.settings, self._data = place, place.settings, place.data()
        self.catalogue, self.details = self._data.catalogue, self._data.details
        self.language = self.settings.recommender.language
        on = self.settings.recommender.own_layer
        version = place.versions.current if version is None else None if version == UNTRAINED else version
        self._version = version
        own = OwnModel.read(place.own) if on else None
        learned = Bandit.read(place.own) if on else None
        self._bandit = learned if learned is not None and learned.version == version else None
        self.adapter = place.adapter(version)
        here = popularity_here(self._data.histories, len(self.catalogue))
        received = None if self.adapter is None else place.received(self.catalogue, self.adapter, here)
        self.part = place.plain(self.catalogue, here) if received is None else received.part
        layer = None if own is None else own.placed(self.catalogue)
        if own is not None and own.version == version:
            blend = own.blend
        else:
            strength = () if own is None else (own.blend.strength,)
            found = contenders(self.part, received, strength or (0.0,))
            both, alone = (FEDERATED, ALONE) if on else (SERVED, TEXT)
            blend = found[both if received is not None else alone].default
        self._own = own
        counts = here if on else self._federations
        self._searches: dict[str, np.ndarray] = {}
        source = "untrained text" if self.adapter is None else f"federated text {self.adapter.name}"
        self._ranks = MerchantRanker(
            self._data, self.part, layer, counts, blend, RunConfig().history, self._said,
            source if layer is None or not blend.own else f"{source} + own layer",
            SHARED if own is None else own.frequency,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, onnx: str | Path | None = None, version: str | None = None) -> MerchantRecommender:
        """Open a merchant's folder.

        Args:
            onnx: an export of the model that ranks here; see `Recommender.load`.
            version: another one to rank under than the current one: of those in `model/`, or `untrained`. The own layer joins
                with the weights that it was fitted with where it was fitted beside this one, and else with default ones.

        Raises:
            InputError: `merchant.toml` or the tables cannot be read, or the current adapter cannot be used here; `onnx` is no
                export, or one of another model.
        """
        recommender = cls(MerchantPlace(Path(folder).resolve()), version)
        if onnx is not None:
            adapter = recommender.adapter
            fingerprint = "" if adapter is None else adapter.settings["encoder_fingerprint"]
            recommender._onnx = exported(onnx, fingerprint, {} if adapter is None else adapter.arrays)
        return recommender

    def rank(
        self, history: Sequence[str], k: int = 10, query: str | None = None, catalogue: Catalogue | pd.DataFrame | None = None
    ) -> Ranked:
        """The `k` best items that the history does not hold; see `Recommender.rank`.

        Another catalogue is ranked by its texts alone.

        Raises:
            InputError: an unknown item, a query without words, or neither history nor query.
        """
        if not len(history) and not query:
            raise InputError("there is neither a history nor a query", expected="at least one of them")
        asking = self._ranker(None) if catalogue is None else self._strange(catalogue)
        return listed(asking, [history], k, query)[0]

    def rank_many(self, histories: Sequence[Sequence[str]], k: int = 10) -> list[Ranked]:
        """`rank` for many histories, in their order.

        Raises:
            InputError: an unknown item, or an empty history.
        """
        if empty := [number for number, history in enumerate(histories) if not len(history)]:
            raise InputError("there is an empty history", where=f"histories[{empty[0]}]")
        return listed(self._ranker(None), histories, k, None)

    def predict(
        self, history: Sequence[str] | None, items: Sequence[str], merchant: str | None = None, user_id: str | None = None
    ) -> np.ndarray:
        """The probability that a user responds to each item when it is shown, (items,), by the response model in use here.

        Args:
            history: item ids, most recent last, each a basket of its own; where it is given, whoever the user is.
            user_id: a user whose events the merchant has.

        Raises:
            InputError: no response model is in use, an item is unknown, or there is no history or no item.
        """
        self._check_name(merchant)
        model = self._responses
        past = model.past_of(history) if history is not None else self._ranks.past_of(user_id or "")
        if past is None:
            raise InputError("no events of this user are known here", expected="a known user, or a history")
        return model.predict(past, items)

    @property
    def response_version(self) -> str:
        """The version that predicts responses.

        Raises:
            InputError: none is in use, or it cannot be used here.
        """
        return self._responses.adapter.name

    @cached_property
    def _responses(self) -> ResponseModel:
        return ResponseModel.open(self.place, self._data)

    def _check_name(self, merchant: str | None) -> None:
        if merchant not in (None, self.settings.name):
            raise InputError(f"there is no merchant {merchant!r}", where=str(self.place.path), expected=self.settings.name)

    def _ranker(self, merchant: str | None) -> Asking:
        self._check_name(merchant)
        return Asking(self._ranks, lambda: self._searcher(self.language))

    def _basket_ranker(self, held: np.ndarray, merchant: str | None) -> BasketRanker:
        ranker = self._ranker(merchant).ranker
        on = self.settings.recommender.own_layer
        baskets = self._baskets if on else None
        return BasketRanker(ranker, substitutes(self._vectors, held, baskets), self._own_baskets, baskets)

    @cached_property
    def _baskets(self) -> Baskets:
        return Baskets.of(self._data.histories, len(self.catalogue))

    @cached_property
    def _own_baskets(self) -> OwnBaskets | None:
        own = self._own
        if own is None or own.baskets is None:
            return None
        layer, lifts = (own.placed(self.catalogue, one) for one in (own.baskets.layer, own.baskets.lifts))
        weights = own.baskets.weights if own.version == self._version else own.baskets.weights.default
        parts = BasketParts.of(self.part, layer, lifts, self._baskets.counts())
        text = "untrained text" if self.adapter is None else f"federated text {self.adapter.name}"
        return OwnBaskets(parts, weights, f"{text} + own baskets")

    @property
    def _federations(self) -> np.ndarray:
        """(items,) float32: how often each was bought in the federation, with noise; zeros where nothing has come."""
        return np.zeros(len(self.catalogue), dtype=np.float32) if self.adapter is None else self.adapter.counts(self.catalogue)[0]

    @cached_property
    def _centre(self) -> Tensor:
        """(hidden,) of the untrained texts of this catalogue: what words and other items are told apart by."""
        return self.place.pooled(self.catalogue, None).mean(0)

    def _said(self, searches: Sequence[str]) -> np.ndarray:
        """What people searched for, as events of a history, (searches, hidden); the last ones asked for stay in memory."""
        if new := [text for text in dict.fromkeys(searches) if text not in self._searches]:
            arrays = {} if self.adapter is None else self.adapter.arrays
            vectors = role_table(self._encoded(new), arrays, arrays, "history").cpu().numpy()
            self._searches |= dict(zip(new, vectors, strict=True))
        found = np.stack([self._searches[text] for text in searches])
        while len(self._searches) > SEARCHES:
            self._searches.pop(next(iter(self._searches)))
        return found

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        """See `Reader`."""
        arrays = {} if self.adapter is None else self.adapter.arrays
        encoded = self._encoded(texts)
        return np.hstack([role_table(encoded, arrays, arrays, "candidate").cpu().numpy(), encoded.cpu().numpy()])

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        """See `Recommending`."""
        if self._onnx is not None:
            return self._unit(self._onnx.encode(texts))
        encoder = self.place.encoder(self.adapter)
        arrays = {} if self.adapter is None else self.adapter.arrays
        encoder.load({name: value for name, value in arrays.items() if "lora_" in name})
        return self._unit(encoder.encode(texts))

    def _reader(self) -> Reader:
        return Reader(self.place.encoder(self.adapter).read_until, self._read)

    def _text(self) -> np.ndarray:
        """See `Recommending`: without the heads, which know what is bought together."""
        found: np.ndarray = self._unit(self.place.pooled(self.catalogue, self.adapter)).cpu().numpy()
        return found

    def _unit(self, pooled: Tensor) -> Tensor:
        """Pooled vectors without what all texts have in common."""
        return normalize(pooled - self._centre, dim=-1) if self.adapter is None else centred(pooled, self.adapter.arrays)

    def _strange(self, catalogue: Catalogue | pd.DataFrame) -> Asking:
        """Items that are not the merchant's, by their texts alone."""
        items = catalogue if isinstance(catalogue, Catalogue) else Catalogue.from_table(catalogue)
        nothing = np.zeros(len(items), dtype=np.float32)
        adapter: Adapter | None = self.adapter
        pooled = self.place.pooled(items, adapter, keep=False)
        if adapter is None:
            part = plain_part(pooled, nothing, self._centre)
        else:
            part = trained_part(pooled, adapter.arrays, nothing, *adapter.counts(items))
        blend = Blend(self._ranks.blend.pooling, {}, 0.0, 0.0)
        data = MerchantData(items, self._data.histories)
        ranks = replace(self._ranks, data=data, part=part, layer=None, counts=nothing, blend=blend)
        return Asking(ranks, lambda: self._indexed(items, self._unit(pooled).cpu().numpy(), self.language))


def _bought(pasts: Sequence[Past], items: int) -> csr_array:
    """(users, items) of ones where an item was bought."""
    held = [past.bought for past in pasts]
    rows = np.repeat(np.arange(len(held)), [len(found) for found in held])
    columns = np.concatenate([np.zeros(0, dtype=np.int64), *held])
    return csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(pasts), items))
