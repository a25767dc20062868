"""`fedrec merchant fit` of the own baskets, and whose text they are joined with: that of what ranks, or one trained to complete.

An adapter of a run with objective `basket` is used where the choosing users' baskets are completed better by its text than by
that of what ranks and by that of the one before, each under weights of its own; so one that is spoilt does no harm. All of it
stays at the merchant.
"""

from __future__ import annotations

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import MerchantData
from fedrec.data.roles import Roles
from fedrec.errors import InputError
from fedrec.recommender.baskets import BasketModel, Baskets, choose_text, model_under
from fedrec.recommender.blend import TextPart
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.own_model import OwnModel

__all__ = ["RANKING", "baskets_up_to_date", "current_for_baskets", "fit_merchant_baskets"]

RANKING = "that of what ranks"


def baskets_up_to_date(place: MerchantPlace, model: BasketModel | None) -> bool:
    """Whether nothing has arrived for baskets since the last fit, and nobody chose another version."""
    arrived = place.versions_of("basket").arrived()
    return arrived is None and (model is None or model.version == current_for_baskets(place))


def current_for_baskets(place: MerchantPlace) -> str | None:
    """The version whose text completes baskets; None for that of what ranks, which stands in for one that is gone."""
    try:
        return place.versions_of("basket").current
    except InputError:
        return None


def fit_merchant_baskets(
    place: MerchantPlace, data: MerchantData, roles: Roles, part: TextPart, here: np.ndarray, seed: int
) -> BasketModel | None:
    """The model of the merchant's own baskets, and the version whose text is used from now on.

    What a person chose by `fedrec merchant model use` stays that until the next one arrives.

    Args:
        part: the text that ranks.
        here: (items,) how often each was bought by those who train.

    Returns:
        None where nobody has ever bought two things at once.
    """
    histories, items, k = data.histories, len(data.catalogue), RunConfig().top_k
    everyone, known, choosing = (
        Baskets.of(some, items) for some in (histories, histories.take(roles.train), histories.take(roles.choose))
    )
    if not len(everyone.joint()):
        return None
    versions = place.versions_of("basket")
    current, arrived = current_for_baskets(place), versions.arrived()
    by_hand = arrived is None and _by_hand(place, current)
    texts: dict[str | None, TextPart] = {None: part}
    refused = {}
    for name in dict.fromkeys([current] if by_hand else [current, arrived or versions.newest]):
        if name is None:
            continue
        try:
            texts[name] = place.received(data.catalogue, Adapter(name, *versions.read(name)), here).part
        except InputError as error:
            refused[name] = str(error)
    if by_hand and current in texts:
        texts = {current: texts[current]}
    found = choose_text(known, choosing, texts, k, seed, stays=current)
    model = model_under(found.weights, everyone, found.version, by_hand)
    versions.use(found.version)
    if arrived is not None:
        compared = {name or RANKING: ndcg for name, ndcg in found.compared.items()}
        versions.judged(arrived, {"completes": found.version == arrived, "ndcg": compared, "refused": refused})
    versions.tidy()
    return model


def _by_hand(place: MerchantPlace, current: str | None) -> bool:
    try:
        model = OwnModel.read(place.own)
    except InputError:
        return False
    return model is not None and model.baskets is not None and (model.baskets.version != current or model.baskets.by_hand)
