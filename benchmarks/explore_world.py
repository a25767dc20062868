"""Shoppers who respond by a known model, made from purchases that the recommender never saw.

The users of a merchant are cut in two. The recommender is fitted on one half, without a fifth of the items that were sold: these
are new to it. The other half are the shoppers. How they respond is made from all that they bought, the new items too: the logit
of a click is a constant, plus `SCALE` times (standardised) what EASE on their purchases and how often they buy an item say. The
recommender is asked with what a shopper bought before the last three baskets, the new items left out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from fedrec.data import Columns, Histories
from fedrec.recommender import MerchantRecommender
from fedrec.recommender.blend import own_scores
from fedrec.recommender.ease import Ease
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_layer import bought_by
from fedrec.recommender.past import Past

__all__ = ["EXAMINED", "PLACES", "World", "make_world"]

PLACES = 10
EXAMINED = 1 / np.log2(np.arange(PLACES) + 2)
"""(places,) how likely a shopper looks at a place."""
SHOPPERS, LAST, NEW = 400, 3, 5
SCALE, CLICKED = 1.0, 0.15
"""Standard deviation of a shopper's logits, and the mean chance of a click on the ten best, when looked at."""


@dataclass(frozen=True)
class World:
    """What the recommender thinks, and what is true.

    Attributes:
        scores: (shoppers, items) the recommender's.
        chance: (shoppers, items) of a click on an item that is looked at.
        vectors: (items, width); counts: (items,) purchases that the recommender knows.
        new: (items,) which were kept from it.
    """

    scores: np.ndarray
    chance: np.ndarray
    vectors: np.ndarray
    counts: np.ndarray
    new: np.ndarray


def make_world(merchant: Path, work: Path, seed: int) -> World:
    """From a merchant's folder, of which a copy is made in `work`."""
    rng = np.random.default_rng(seed)
    events = pd.read_parquet(merchant / "events.parquet")
    users, sold = (np.unique(events[name]) for name in (Columns.USER, Columns.ITEM))
    shoppers, new = rng.permutation(users)[: len(users) // 2], rng.permutation(sold)[: len(sold) // NEW]
    theirs, hidden = events[Columns.USER].isin(set(shoppers)), events[Columns.ITEM].isin(set(new))
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(merchant, work)
    events[~theirs & ~hidden].to_parquet(work / "events.parquet", index=False)
    place = MerchantPlace(work.resolve())
    fit_merchant(place, place.data())
    recommender = MerchantRecommender.load(work)
    catalogue, ranker = recommender.catalogue, recommender._ranker(None)
    is_new = np.isin(np.array(catalogue.item_ids), new.astype(str))
    histories = Histories.from_table(events[theirs], catalogue)
    pasts = list[Past]()
    for user in range(len(histories)):
        items, baskets = histories.of(user)
        kept = (baskets <= baskets.max() - LAST) & ~is_new[items]
        if kept.sum() >= LAST:
            pasts.append(Past(items[kept], baskets[kept]))
    pasts = [pasts[number] for number in rng.permutation(len(pasts))[:SHOPPERS]]
    bought = bought_by(histories, len(catalogue))
    held = np.zeros((len(pasts), len(catalogue)), dtype=np.float32)
    for user, past in enumerate(pasts):
        held[user, past.bought] = 1.0
    together = own_scores(Ease.fit(bought, 300.0), type(bought)(held))
    wanted = together + 0.7 * np.log1p(np.asarray(bought.sum(axis=0)).ravel())
    wanted *= SCALE / wanted.std(axis=1).mean()
    best = np.sort(wanted, axis=1)[:, -PLACES:]
    level = brentq(lambda at: float(expit(best + at).mean()) - CLICKED, -30, 30)
    return World(
        ranker.scores(pasts, None).astype(np.float64), expit(wanted + level), ranker.vectors, ranker.popularity(), is_new
    )
