"""What goes with a basket: a merchant's baskets, what is learned from them, what completes one, and what would only replace."""

from __future__ import annotations

from fedrec.recommender.baskets.baskets import Baskets
from fedrec.recommender.baskets.choosing import choose_text, fit_baskets, model_under
from fedrec.recommender.baskets.model import BasketModel, BasketParts
from fedrec.recommender.baskets.ranker import BasketRanker, OwnBaskets
from fedrec.recommender.baskets.substitutes import substitutes

__all__ = [
    "BasketModel",
    "BasketParts",
    "BasketRanker",
    "Baskets",
    "OwnBaskets",
    "choose_text",
    "fit_baskets",
    "model_under",
    "substitutes",
]
