"""Everything that ranks for a person: a run's model, or a merchant's with its own layer."""

from __future__ import annotations

from fedrec.recommender.recommender import Recommender

__all__ = ["Recommender"]
