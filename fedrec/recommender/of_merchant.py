"""A merchant's recommender: the federated text joined with what the merchant knows of its own customers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn.functional import normalize

from fedrec.config import RunConfig
from fedrec.data import Catalogue, MerchantData
from fedrec.errors import InputError
from fedrec.model.towers import centred, role_table
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.asking import Asking, listed
from fedrec.recommender.bandit import bandit_beside
from fedrec.recommender.basket_fit import current_for_baskets
from fedrec.recommender.baskets import BasketParts, BasketRanker, Baskets, OwnBaskets, substitutes
from fedrec.recommender.blend import Blend, TextPart
from fedrec.recommender.contest import ALONE, FEDERATED, SERVED, TEXT, contenders, plain_part, popularity_here, trained_part
from fedrec.recommender.frequency import SHARED
from fedrec.recommender.merchant_ranker import MerchantRanker
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.own_model import OwnModel
from fedrec.recommender.reasons.words import Reader
from fedrec.recommender.recommending import Recommending, exported
from fedrec.recommender.responding import ResponseModel
from fedrec.recommender.shelf import Ranked

__all__ = ["MerchantRecommender"]

SEARCHES = 4096
"""Vectors of past searches that a process keeps: encoding one takes longer than ranking."""


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
        self._bandit, self._bandit_fault = bandit_beside(place.own, version) if on else (None, None)
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
        # Which it is now: what is opened stays the same, whatever is chosen later.
        self._basket_version = None if own is None else current_for_baskets(place)
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
        adapter, part = self._completing or (self.adapter, self.part)
        parts = BasketParts.of(part, layer, lifts, self._baskets.counts())
        text = "untrained text" if adapter is None else f"federated text {adapter.name}"
        weights, ranks = own.baskets.weights, self._basket_version is None
        chosen = own.baskets.version == self._basket_version and (own.version == self._version or not ranks)
        return OwnBaskets(parts, weights if chosen else weights.default, f"{text} + own baskets", ranks)

    @cached_property
    def _completing(self) -> tuple[Adapter, TextPart] | None:
        """The version that was trained to complete baskets and is in use, and its text; None where that of what ranks is."""
        if (name := self._basket_version) is None:
            return None
        adapter = Adapter(name, *self.place.versions_of("basket").read(name))
        here = popularity_here(self._data.histories, len(self.catalogue))
        return adapter, self.place.received(self.catalogue, adapter, here).part

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
