"""`fedrec merchant fit`: the own layer, how it is joined with the text, and which adapter ranks.

All of it is chosen on the merchant's own users, and stays at the merchant. An adapter that arrived ranks only where it is
better there than the one before and than the untrained text, so one that is spoilt does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import Histories, MerchantData
from fedrec.data.roles import Roles, own_secret
from fedrec.errors import InputError
from fedrec.model.versions import UNTRAINED
from fedrec.recommender.basket_fit import baskets_up_to_date, fit_merchant_baskets
from fedrec.recommender.blend import FEWEST, Blend, Fold, choose_blend, measure
from fedrec.recommender.contest import ALONE, FEDERATED, Contender, contenders, folds_of, popularity_here
from fedrec.recommender.frequency import NONE, SHARED, choose_frequency
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.own_layer import bought_by, choose_kind
from fedrec.recommender.own_model import OwnModel

__all__ = ["UNTRAINED", "Fit", "fit_merchant", "made_from", "up_to_date"]


@dataclass(frozen=True)
class Fit:
    """What a fit did.

    Attributes:
        model: what was written.
        compared: NDCG by version, on the users who choose, or where they are too few on those who train; empty where even
            they are: then what ranked before stays.
        refused: why a version was not compared, by version.
    """

    model: OwnModel
    compared: dict[str, float]
    refused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and for the verdict that is kept beside an adapter."""
        blend = self.model.blend
        return {
            "kind": self.model.layer.kind, "version": self.model.version or UNTRAINED, "strength": blend.strength,
            "own_weight": blend.own, "priors": dict(blend.priors), "pooling": {str(d): a for d, a in blend.pooling.items()},
            "chosen_on": blend.users, "frequency": asdict(self.model.frequency), "ndcg": self.compared,
            "refused": self.refused, "baskets": None if self.model.baskets is None else self.model.baskets.said,
            **self.model.facts,
        }  # fmt: skip


def up_to_date(place: MerchantPlace, data: MerchantData) -> bool:
    """Whether nothing has changed since the last fit: events, catalogue, settings, what arrived and what ranks."""
    versions = place.versions
    try:
        model, current = OwnModel.read(place.own), versions.current
    except InputError:
        return False  # a layer that is damaged or a version that is gone: the fit puts another in its place
    before = None if model is None else model.facts.get("made_from")
    same = model is not None and before == made_from(place, data) and model.version == current
    return same and versions.arrived() is None and model is not None and baskets_up_to_date(place, model.baskets)


def fit_merchant(
    place: MerchantPlace, data: MerchantData, tell: Callable[[int, int], None] = lambda *_: None, seed: int = 0
) -> Fit:
    """Fit, choose, and have the best version rank from now on.

    What a person chose by `fedrec merchant model use` stays that until the next one arrives.

    Args:
        tell: is told how many layers are fitted, of how many.

    Raises:
        InputError: there is no user, or the encoder cannot be loaded.
    """
    roles, histories, items, config = place.roles(data), data.histories, len(data.catalogue), RunConfig()
    if not len(roles.train):
        raise InputError("no user is left to fit on", where=str(place.path), hint="lower the shares in [users]")
    # Looked up once: what arrives meanwhile was not compared, and must not count as that.
    versions, arrived = place.versions, place.versions.arrived()
    by_hand = arrived is None and _by_hand(place)
    known = histories.take(roles.train)
    here = popularity_here(known, items)
    folds = folds_of(histories, roles, items, config.history, seed, tell) if len(roles.choose) else []
    kind = choose_kind(bought_by(known, items))
    names = [_current(place)] if by_hand else [_current(place), arrived or versions.newest]
    entered, refused = _entered(place, data, here, kind.strengths, names)
    if by_hand:
        chosen = list(entered)[-1]
        entered = {chosen: entered[chosen]}
    blends = {name: _chosen(one, folds, config.top_k, seed) for name, one in entered.items()}
    choosing = folds
    if _users(folds) < FEWEST:
        # Too few to choose weights on. Those who train can still tell an adapter that is spoilt, though they favour what
        # was trained on them.
        none = roles.choose[:0]
        folds = folds_of(histories, Roles(np.union1d(roles.train, roles.choose), none, none), items, config.history, seed, tell)
    compared: dict[str, float] = {}
    if _users(folds) >= FEWEST:
        compared = {name: _ndcg(one, blends[name], folds, config.top_k) for name, one in entered.items()}
    stays = _current(place)
    best = max(compared, key=lambda name: compared[name]) if compared else stays if stays in entered else next(iter(entered))
    blend = blends[best]
    everyone = bought_by(histories, items)
    again = SHARED if len(histories.targets().items) > everyone.nnz else NONE  # nobody here has ever bought an item twice
    frequency = choose_frequency(choosing, entered[best].part, blend, config.top_k, again)
    baskets = fit_merchant_baskets(place, data, roles, entered[best].part, here, seed)
    facts = {
        "made_from": made_from(place, data), "users": len(histories), "training": len(roles.train),
        "choosing": len(roles.choose), "measured": len(roles.measure), "items": items, "by_hand": by_hand,
        "changed_roles": place.changed_roles(),
    }  # fmt: skip
    model = OwnModel(
        kind.fit(everyone, blend.strength), data.catalogue.item_ids, blend,
        None if best == UNTRAINED else best, frequency, facts, baskets,
    )  # fmt: skip
    found = Fit(model, compared, refused)
    model.write(place.own)
    versions.use(model.version)
    if arrived is not None:
        versions.judged(arrived, {"ranks": model.version == arrived, **found.to_json()})
    versions.tidy()
    return found


def _entered(
    place: MerchantPlace, data: MerchantData, here: np.ndarray, strengths: Sequence[float], names: Sequence[str | None]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """The untrained text and these versions in their order, as far as each can be used here; and why others cannot."""
    plain = place.plain(data.catalogue, here, data.histories.queries)
    entered, refused = {UNTRAINED: contenders(plain, None, strengths)[ALONE]}, {}
    versions = place.versions
    for name in dict.fromkeys(names):
        if name is None:
            continue
        try:
            adapter = Adapter(name, *versions.read(name))
            received = place.received(data.catalogue, adapter, here, data.histories.queries)
        except InputError as error:
            refused[name] = str(error)
            continue
        entered[name] = contenders(plain, received, strengths)[FEDERATED]
    return entered, refused


def _current(place: MerchantPlace) -> str | None:
    try:
        return place.versions.current
    except InputError:
        return None  # it is gone; the fit chooses another


def _by_hand(place: MerchantPlace) -> bool:
    """Whether a person chose what ranks, since the last fit or before it."""
    try:
        model = OwnModel.read(place.own)
        return model is not None and (model.version != place.versions.current or bool(model.facts.get("by_hand")))
    except InputError:
        return False


def _chosen(contender: Contender, folds: Sequence[Fold], k: int, seed: int) -> Blend:
    return choose_blend(folds, contender.part, contender.default, k, seed=seed) if folds else contender.default


def _users(folds: Sequence[Fold]) -> int:
    return sum(len(fold.users.items) for fold in folds)


def _ndcg(contender: Contender, blend: Blend, folds: Sequence[Fold], k: int) -> float:
    some = [fold for fold in folds if len(fold.users.items)]
    found = [measure(fold.users, fold.seen(contender.part), fold.layers[blend.strength], blend, k).ndcg for fold in some]
    return float(np.concatenate(found).mean())


def made_from(place: MerchantPlace, data: MerchantData) -> str:
    """A digest of events, catalogue, users' roles and encoder; it has the users' ids in it and stays at the merchant."""
    state, settings = hashlib.blake2b(own_secret(place.own), digest_size=16), place.settings
    items = data.catalogue.digest, "\0".join(data.catalogue.item_ids)
    for part in (*items, _events(data.histories), str(settings.users), settings.model.encoder):
        state.update(part.encode() + b"\n")
    return state.hexdigest()


def _events(histories: Histories) -> str:
    state = hashlib.blake2b("\0".join(histories.user_ids).encode(), digest_size=16)
    for array in (histories.offsets, histories.items, histories.baskets, histories.target):
        if array is not None:
            state.update(np.ascontiguousarray(array).tobytes())
    state.update("\0".join(histories.queries).encode())
    return state.hexdigest()
