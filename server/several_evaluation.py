"""Central evaluation of a run with several objectives: each part's own, on the same users, after every round."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import CentralData
from fedrec.model import Arrays, Scoring, TextEncoder
from server.evaluation import CentralEvaluator
from server.response_evaluation import ResponseEvaluator

__all__ = ["SeveralEvaluator"]


class SeveralEvaluator:
    """Evaluates adapters that rank and predict responses; each score has numbers of its own, fitted on the same users.

    Raises:
        InputError: see `ResponseEvaluator`.
    """

    def __init__(self, central: CentralData, config: RunConfig, encoder: TextEncoder) -> None:
        self.ranking, self.response = CentralEvaluator(central, config, encoder), ResponseEvaluator(central, config, encoder)
        self.weights = config.objective_weights

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that a table shows: the most important of both first."""
        first, second = self.ranking.shown, self.response.shown
        return (first[0], second[0], *first[1:], *second[1:])

    @property
    def choosing(self) -> tuple[int, int]:
        """See `CentralEvaluator`: of the part that has fewer."""
        fit, judge = zip(self.ranking.choosing, self.response.choosing, strict=True)
        return min(fit), min(judge)

    def trains_under(self, public: Arrays, trained: Arrays, before: Scoring | None = None) -> Scoring:
        """See `CentralEvaluator`, of each part."""
        ranking, response = before.parts if before else (None, None)
        return Scoring.of_parts(
            [self.ranking.trains_under(public, trained, ranking), self.response.trains_under(public, trained, response)]
        )

    def fitted(self, public: Arrays, trained: Arrays, under: Scoring) -> Scoring:
        """See `CentralEvaluator`, of each part."""
        ranking, response = under.parts
        return Scoring.of_parts([self.ranking.fitted(public, trained, ranking), self.response.fitted(public, trained, response)])

    def loss(self, public: Arrays, trained: Arrays, under: Scoring) -> float:
        """The judging users' mean losses, weighed as in training."""
        ranking, response = under.parts
        of_ranking, of_response = self.ranking.loss(public, trained, ranking), self.response.loss(public, trained, response)
        return self.weights[0] * of_ranking + self.weights[1] * of_response

    def line(self, public: Arrays, trained: Arrays) -> dict[str, Any]:
        """A round's central metrics of both, the reliability curve, and the scorings they were computed with."""
        ranking, response = self.ranking.line(public, trained), self.response.line(public, trained)
        central = _both(ranking["central"], response["central"])
        return {**response, **ranking, "central": central, "response_scoring": response["scoring"]}

    def baselines(self, public: Arrays, trained: Arrays, under: Scoring) -> dict[str, dict[str, float]]:
        """See `CentralEvaluator`; what is no part of a baseline is not in its row."""
        of_ranking, of_response = under.parts
        ranking = self.ranking.baselines(public, trained, of_ranking)
        response = self.response.baselines(public, trained, of_response)
        return {name: _both(metrics, response.get(name, {})) for name, metrics in ranking.items()}

    def popularity(self, counts: np.ndarray) -> dict[str, float]:
        """A popularity list as a recommender, and as a prediction."""
        return _both(self.ranking.popularity(counts), self.response.popularity(counts))

    def gain(self, public: Arrays, before: Arrays, after: Arrays) -> dict[str, Any]:
        """NDCG, AUC and log-loss of an adapter minus those of another, with paired intervals."""
        response = self.response.gain(public, before, after)
        others = {response["metric"]: {name: response[name] for name in ("mean", "low", "high")}, **response["others"]}
        return {**self.ranking.gain(public, before, after), "others": others}


def _both(ranking: dict[str, float], response: dict[str, float]) -> dict[str, float]:
    """The metrics of both; the users who were shown something are others than those who bought something new."""
    users = {"response_users": response["users"]} if response else {}
    return {**response, **users, **ranking}
