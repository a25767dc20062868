"""What a merchant fitted on its own events, in one file of its folder that only its owner may read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.sparse import csr_array

from fedrec.config import make_private, write_atomically
from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.adapter import digest
from fedrec.recommender.baskets.model import BasketModel
from fedrec.recommender.blend import Blend
from fedrec.recommender.frequency import SHARED, PersonalFrequency
from fedrec.recommender.own_layer import OWN_LAYERS, OwnLayer

__all__ = ["FILE", "OwnModel", "Placed"]

FILE, FORMAT = "layer.safetensors", 1
LAYER, BASKETS, IDS = "layer.", "baskets.", "item_ids"
FIT = "fit it again: `fedrec merchant fit`"


@dataclass(frozen=True)
class OwnModel:
    """The own layer, and how it is joined with the text.

    Attributes:
        item_ids: the items of the catalogue at that time; the layer's are in their order.
        blend: how the parts are joined.
        version: the adapter that it was chosen beside; None for the untrained text.
        frequency: what a person's own past adds where people buy again; a file that says nothing of it has the shared defaults.
        facts: digests of what it was made from, and numbers of users; for people and for `fedrec merchant fit`.
        baskets: what goes with what in one basket; None where nobody bought two things at once, and in an earlier version's file.
    """

    layer: OwnLayer
    item_ids: tuple[str, ...]
    blend: Blend
    version: str | None
    frequency: PersonalFrequency
    facts: Mapping[str, Any]
    baskets: BasketModel | None = None

    def write(self, folder: Path) -> None:
        """Into `folder`, whole or not at all."""
        make_private(folder)
        arrays = {LAYER + name: np.ascontiguousarray(value) for name, value in self.layer.arrays().items()}
        if self.baskets is not None:
            arrays |= {BASKETS + name: np.ascontiguousarray(value) for name, value in self.baskets.arrays().items()}
        arrays[IDS] = np.frombuffer(json.dumps(self.item_ids).encode(), dtype=np.uint8)
        blend = {**asdict(self.blend), "pooling": list(self.blend.pooling.items())}
        said = {
            "format": FORMAT, "kind": self.layer.kind, "version": self.version, "blend": blend,
            "frequency": asdict(self.frequency), "facts": dict(self.facts), "digest": digest(arrays),
            "baskets": None if self.baskets is None else self.baskets.said,
        }  # fmt: skip
        write_atomically(folder / FILE, save(arrays, {"fedrec": json.dumps(said)}), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What was written, None where nothing was.

        Raises:
            InputError: it is damaged, or of another version of this program.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                said = json.loads(file.metadata()["fedrec"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if said["format"] != FORMAT:
                raise InputError(f"has format {said['format']!r}", where=str(path), expected=f"format {FORMAT}", hint=FIT)
            if said["digest"] != digest(arrays):
                raise ValueError("it is not what was written, by its digest")
            layer = {name.removeprefix(LAYER): value for name, value in arrays.items() if name.startswith(LAYER)}
            beside = {name.removeprefix(BASKETS): value for name, value in arrays.items() if name.startswith(BASKETS)}
            pooling = {float(decay): float(weight) for decay, weight in said["blend"]["pooling"]}
            return cls(
                OWN_LAYERS[said["kind"]].from_arrays(layer), tuple(json.loads(arrays[IDS].tobytes())),
                Blend(**{**said["blend"], "pooling": pooling}), said["version"],
                PersonalFrequency(**said.get("frequency", asdict(SHARED))), said["facts"],
                BasketModel.read(beside, said["baskets"]) if said.get("baskets") else None,
            )  # fmt: skip
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the own layer cannot be read ({error})", where=str(path), hint=FIT) from None

    def placed(self, catalogue: Catalogue, layer: OwnLayer | None = None) -> Placed:
        """The own layer, or another of the same items, over another state of the catalogue, where items have come, gone or
        changed places.
        """
        places = catalogue.index.get_indexer(list(self.item_ids))
        kept = np.flatnonzero(places >= 0)
        return Placed(self.layer if layer is None else layer, kept, places[kept], len(self.item_ids), len(catalogue))


@dataclass(frozen=True)
class Placed:
    """A layer over a catalogue that has changed since; a new item has no neighbours yet.

    Attributes:
        kept: which of the layer's items are still there.
        places: where they are now.
        known: items of the layer.
        items: items of the catalogue.
    """

    layer: OwnLayer
    kept: np.ndarray
    places: np.ndarray
    known: int
    items: int

    def scores(self, histories: csr_array) -> np.ndarray:
        """(users, items) float32 for histories (users, items) of the catalogue as it is now."""
        then = self._then
        rows = np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr))
        columns = then[histories.indices]
        held = columns >= 0
        shape = (histories.shape[0], self.known)
        past = csr_array((np.ones(int(held.sum()), dtype=np.float32), (rows[held], columns[held])), shape=shape)
        out = np.zeros((histories.shape[0], self.items), dtype=np.float32)
        out[:, self.places] = self.layer.scores(past)[:, self.kept]
        return out

    def between(self, held: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(held, items) of the catalogue as it is now; see `Scores.between`."""
        of_held, of_items = self._then[held], self._then[items]
        found = np.zeros((len(held), len(items)), dtype=np.float32)
        known = np.ix_(of_held >= 0, of_items >= 0)
        found[known] = self.layer.between(of_held[of_held >= 0], of_items[of_items >= 0])
        return found

    @property
    def _then(self) -> np.ndarray:
        """(items,) where each item was when the layer was fitted, -1 for a new one."""
        then = np.full(self.items, -1)
        then[self.places] = self.kept
        return then
