"""Metrics and the central evaluation protocol."""

from fedrec.evaluation.baskets import hidden_items
from fedrec.evaluation.breadth import coverage, lists_of, novelty, popular_share
from fedrec.evaluation.likelihood import FEWEST, fit_scoring, mean_loss
from fedrec.evaluation.metrics import METRICS, PerUser, bootstrap_interval, metric_names, metrics_from_ranks, pessimistic_ranks
from fedrec.evaluation.protocol import EvaluationSet, Group, calibrate, evaluate, evaluate_popularity, summarise
from fedrec.evaluation.ratings import Rated, fit_ratings, gain_in_ratings, rating_metrics, summarise_ratings
from fedrec.evaluation.repeats import (
    best_decay,
    evaluate_repeats,
    global_frequency,
    model_scores,
    personal_frequency,
    summarise_repeats,
)
from fedrec.evaluation.responses import (
    RESPONSE_METRICS,
    Judged,
    fit_logistic,
    gain_in,
    log_losses,
    reliability,
    summarise_responses,
)

__all__ = [
    "FEWEST",
    "METRICS",
    "RESPONSE_METRICS",
    "EvaluationSet",
    "Group",
    "Judged",
    "PerUser",
    "Rated",
    "best_decay",
    "bootstrap_interval",
    "calibrate",
    "coverage",
    "evaluate",
    "evaluate_popularity",
    "evaluate_repeats",
    "fit_logistic",
    "fit_ratings",
    "fit_scoring",
    "gain_in",
    "gain_in_ratings",
    "global_frequency",
    "hidden_items",
    "lists_of",
    "log_losses",
    "mean_loss",
    "metric_names",
    "metrics_from_ranks",
    "model_scores",
    "novelty",
    "personal_frequency",
    "pessimistic_ranks",
    "popular_share",
    "rating_metrics",
    "reliability",
    "summarise",
    "summarise_ratings",
    "summarise_repeats",
    "summarise_responses",
]
