"""Central evaluation of a run that completes baskets: an item of the central users' last baskets, found from the rest."""

from __future__ import annotations

from fedrec.data import CentralData
from fedrec.evaluation import EvaluationSet, hidden_items
from server.evaluation import CentralEvaluator

__all__ = ["BasketEvaluator"]


class BasketEvaluator(CentralEvaluator):
    """As for a ranking, on baskets: all items of a history are of one age, and decay means nothing."""

    def split(self, central: CentralData, share: float, seed: int) -> tuple[EvaluationSet, EvaluationSet]:
        """See `CentralEvaluator`."""
        return EvaluationSet.build(central, self.config.history, share, seed, asks=hidden_items)
