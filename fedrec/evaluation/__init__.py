"""Metrics and the central evaluation protocol."""

from fedrec.evaluation.breadth import coverage, lists_of, novelty, popular_share
from fedrec.evaluation.likelihood import FEWEST, fit_scoring, mean_loss
from fedrec.evaluation.metrics import METRICS, PerUser, bootstrap_interval, metrics_from_ranks, pessimistic_ranks
from fedrec.evaluation.protocol import EvaluationSet, Group, calibrate, evaluate, evaluate_popularity, summarise
from fedrec.evaluation.repeats import (
    best_decay,
    evaluate_repeats,
    global_frequency,
    model_scores,
    personal_frequency,
    summarise_repeats,
)

__all__ = [
    "FEWEST",
    "METRICS",
    "EvaluationSet",
    "Group",
    "PerUser",
    "best_decay",
    "bootstrap_interval",
    "calibrate",
    "coverage",
    "evaluate",
    "evaluate_popularity",
    "evaluate_repeats",
    "fit_scoring",
    "global_frequency",
    "lists_of",
    "mean_loss",
    "metrics_from_ranks",
    "model_scores",
    "novelty",
    "personal_frequency",
    "pessimistic_ranks",
    "popular_share",
    "summarise",
    "summarise_repeats",
]
