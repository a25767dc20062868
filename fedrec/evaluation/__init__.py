"""Metrics and the central evaluation protocol."""

from fedrec.evaluation.metrics import METRICS, PerUser, bootstrap_interval, metrics_from_ranks, pessimistic_ranks
from fedrec.evaluation.protocol import EvaluationSet, Group, calibrate, evaluate, evaluate_popularity, summarise

__all__ = [
    "METRICS",
    "EvaluationSet",
    "Group",
    "PerUser",
    "bootstrap_interval",
    "calibrate",
    "evaluate",
    "evaluate_popularity",
    "metrics_from_ranks",
    "pessimistic_ranks",
    "summarise",
]
