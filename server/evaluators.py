"""Which central evaluation belongs to which objective."""

from __future__ import annotations

from fedrec.config import RunConfig
from fedrec.data import CentralData
from fedrec.model import TextEncoder
from server.basket_evaluation import BasketEvaluator
from server.evaluation import CentralEvaluator
from server.rating_evaluation import RatingEvaluator
from server.response_evaluation import ResponseEvaluator
from server.several_evaluation import SeveralEvaluator

__all__ = ["EVALUATORS", "Evaluator", "evaluator_of"]

Evaluator = CentralEvaluator | ResponseEvaluator | SeveralEvaluator
EVALUATORS: dict[str, type[CentralEvaluator] | type[ResponseEvaluator] | type[SeveralEvaluator]] = {
    "next-item": CentralEvaluator,
    "response": ResponseEvaluator,
    "rating": RatingEvaluator,
    "rating-absolute": RatingEvaluator,
    "next-item+response": SeveralEvaluator,
    "basket": BasketEvaluator,
}


def evaluator_of(config: RunConfig, central: CentralData, encoder: TextEncoder) -> Evaluator:
    """The evaluation of a run.

    Raises:
        InputError: there is nobody to measure.
    """
    return EVALUATORS[config.objective](central, config, encoder)
