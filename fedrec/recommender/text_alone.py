"""`fedrec merchant fit` where the own layer is turned off: it is removed, and the best of the adapters ranks.

No weight is chosen here. An adapter is still compared with the one before and with the untrained text, each as it would
rank, so that one that is spoilt does no harm; which of them ranks is all that the merchant's users decide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedrec.config import RunConfig, flush_folder
from fedrec.data import MerchantData
from fedrec.errors import InputError
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.blend import FEWEST, measure
from fedrec.recommender.contest import SERVED, TEXT, Contender, contenders, users_as_group
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.own_model import FILE

__all__ = ["TextAlone", "settle", "settled"]


@dataclass(frozen=True)
class TextAlone:
    """What was decided.

    Attributes:
        version: what ranks.
        compared: NDCG by version, on the users who choose, or where they are too few on those who train; empty where even
            they are: then what ranked before stays.
        refused: why a version was not compared, by version.
        changed_roles: see `MerchantPlace.changed_roles`.
    """

    version: str
    compared: dict[str, float]
    refused: dict[str, str]
    changed_roles: str | None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and for the verdict that is kept beside an adapter."""
        return {"own_layer": False, **asdict(self)}


def settled(place: MerchantPlace) -> bool:
    """Whether there is no layer any more, and every adapter was compared."""
    return not (place.own / FILE).exists() and place.versions.arrived() is None


def settle(place: MerchantPlace, data: MerchantData) -> TextAlone:
    """Remove the own layer, and have the best version rank from now on.

    Raises:
        InputError: the encoder cannot be loaded.
    """
    if (place.own / FILE).exists():
        (place.own / FILE).unlink()
        flush_folder(place.own)
    versions, arrived, config = place.versions, place.versions.arrived(), RunConfig()
    entered, refused = _entered(place, data, arrived)
    roles = place.roles(data)
    compared: dict[str, float] = {}
    # Where those who choose are too few, those who train can still tell an adapter that is spoilt.
    for users in (roles.choose, np.union1d(roles.train, roles.choose)):
        group = users_as_group(data.histories, users, len(data.catalogue), config.history)
        if group is not None and len(group.items) >= FEWEST and not compared:
            for name, one in entered.items():
                compared[name] = float(np.mean(measure(group, one.part, None, one.default, config.top_k).ndcg))
    stays = versions.current if versions.current in entered else UNTRAINED
    best = max(compared, key=lambda name: compared[name]) if compared else stays
    found = TextAlone(best, compared, refused, place.changed_roles())
    versions.use(None if best == UNTRAINED else best)
    if arrived is not None:
        versions.judged(arrived, {"ranks": best == arrived, **found.to_json()})
    versions.tidy()
    return found


def _entered(place: MerchantPlace, data: MerchantData, arrived: str | None) -> tuple[dict[str, Contender], dict[str, str]]:
    """The untrained text, the current version and the one that arrived, as far as each can be used here."""
    nothing, versions = np.zeros(len(data.catalogue), dtype=np.float32), place.versions
    plain = place.plain(data.catalogue, nothing, data.histories.queries)
    entered, refused = {UNTRAINED: contenders(plain, None, (0.0,))[TEXT]}, {}
    try:
        current = versions.current
    except InputError:
        current = None  # it is gone, and another is found
    for name in dict.fromkeys([current, arrived or versions.newest]):
        if name is None:
            continue
        try:
            adapter = Adapter(name, *versions.read(name))
            received = place.received(data.catalogue, adapter, nothing, data.histories.queries)
        except InputError as error:
            refused[name] = str(error)
            continue
        entered[name] = contenders(plain, received, (0.0,))[SERVED]
    return entered, refused
