"""Everything that ranks for a person: a run's model, or a merchant's with its own layer."""

from __future__ import annotations

from fedrec.recommender.answers import Answer, Person, Wish
from fedrec.recommender.of_merchant import MerchantRecommender
from fedrec.recommender.recommender import Recommender
from fedrec.recommender.selection import Filter

__all__ = ["Answer", "Filter", "MerchantRecommender", "Person", "Recommender", "Wish"]
