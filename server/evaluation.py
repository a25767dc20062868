"""Central evaluation: the server's own users, the full catalogue, after every round."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fedrec.config import RunConfig
from fedrec.data import CentralData, CentralGroup
from fedrec.errors import InputError
from fedrec.evaluation import (
    EvaluationSet,
    PerUser,
    best_decay,
    bootstrap_interval,
    calibrate,
    evaluate,
    evaluate_popularity,
    evaluate_repeats,
    fit_scoring,
    global_frequency,
    mean_loss,
    metric_names,
    model_scores,
    personal_frequency,
    summarise,
    summarise_repeats,
)
from fedrec.evaluation.protocol import DECAYS, PRIOR_WEIGHTS, group_of, is_calibration
from fedrec.model import Arrays, Scoring, TextEncoder, centred, role_table

__all__ = ["COUNTS", "FLOOR", "KEYS", "RATINGS", "CentralEvaluator"]

COUNTS, FLOOR, KEYS, RATINGS = "prior.counts", "prior.floor", "prior.keys", "prior.ratings"
JUDGING = 1 / 3
"""Share of the calibration users who judge what was trained; on the others the scoring is fitted."""


class CentralEvaluator:
    """Evaluates adapters on the central users, choosing decay and prior weight on others."""

    def __init__(self, central: CentralData, config: RunConfig, encoder: TextEncoder) -> None:
        self.central, self.config, self.encoder = central, config, encoder
        share = config.calibration_share if config.calibrate else 0.0
        self.users, self.calibration = self.split(central, share, config.seed)
        calibrating = replace(central, groups=tuple(_calibrating(group, share, config.seed) for group in central.groups))
        self.fitting, self.judging = self.split(calibrating, JUDGING, config.seed + 1)

    def split(self, central: CentralData, share: float, seed: int) -> tuple[EvaluationSet, EvaluationSet]:
        """What is asked of the central users, and of a share of them that is apart."""
        return EvaluationSet.build(central, self.config.history, share, seed)

    def tables(self, public: Arrays, trained: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """The central catalogue as history, (items + searches, hidden), with the central users' searches after the items; and as
        candidates, (items, hidden)."""
        self.encoder.load({**public, **trained})
        e = centred(self.encoder.embed(self.central.catalogue), public)
        history = role_table(e, public, trained, "history")
        if self.central.queries:
            asked = centred(self.encoder.embed_private(self.central.queries), public)
            history = torch.cat([history, role_table(asked, public, trained, "history")])
        return history.cpu().numpy(), role_table(e, public, trained, "candidate").cpu().numpy()

    def trains_under(self, public: Arrays, trained: Arrays, before: Scoring | None = None) -> Scoring:
        """What merchants train under: fitted on the calibration users, or the settings as they are.

        Args:
            before: what it was in the round before, whose decay is kept: merchants pool each history under it once.
        """
        start = before or self._as_set()
        if not self.config.calibrate:
            return start
        decays = DECAYS if before is None else (before.decay,)
        tables, floor = self.tables(public, trained), float(public[FLOOR][0])
        return fit_scoring(self.fitting, *tables, public[COUNTS], floor, start, decays)

    @property
    def choosing(self) -> tuple[int, int]:
        """How many users the scoring is fitted on, and how many judge what was trained."""
        return self.fitting.users, self.judging.users

    def fitted(self, public: Arrays, trained: Arrays, under: Scoring) -> Scoring:
        """The scoring that fits an adapter best, with the decay of another."""
        return self.trains_under(public, trained, under)

    def loss(self, public: Arrays, trained: Arrays, under: Scoring) -> float:
        """How unlikely what the judging users bought is, in nats, under the scoring that was fitted to the adapter."""
        return mean_loss(self.judging, *self.tables(public, trained), public[COUNTS], float(public[FLOOR][0]), under)

    def scoring(self, public: Arrays, trained: Arrays, with_prior: bool = True) -> Scoring:
        """What the ranking uses: chosen on the calibration users, or the settings as they are."""
        config = self.config
        if not config.calibrate:
            return self._as_set() if with_prior else replace(self._as_set(), prior_weight=0.0)
        return calibrate(
            self.calibration,
            *self.tables(public, trained),
            public[COUNTS],
            float(public[FLOOR][0]),
            temperature=config.temperature,
            prior_weights=PRIOR_WEIGHTS if with_prior else (0.0,),
            k=config.top_k,
        )

    def per_user(self, public: Arrays, trained: Arrays, scoring: Scoring) -> PerUser:
        """Metrics of each evaluation user."""
        floor = float(public[FLOOR][0])
        return evaluate(self.users, *self.tables(public, trained), scoring, public[COUNTS], floor, self.config.top_k)

    def summary(self, metrics: PerUser) -> dict[str, float]:
        """Means and intervals."""
        return summarise(metrics, self.config.top_k, self.config.bootstrap, self.config.seed)

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that a table shows, the most important first."""
        return metric_names(self.config.top_k)

    def gain(self, public: Arrays, before: Arrays, after: Arrays) -> dict[str, Any]:
        """NDCG of an adapter minus that of another, user by user, with a 95% interval."""
        first, second = (self.per_user(public, one, self.scoring(public, one)) for one in (before, after))
        low, high = bootstrap_interval(second.ndcg - first.ndcg, self.config.bootstrap, self.config.seed)
        return {"metric": self.shown[0], "mean": float((second.ndcg - first.ndcg).mean()), "low": low, "high": high}

    def line(self, public: Arrays, trained: Arrays) -> dict[str, Any]:
        """A round's central metrics, and the scoring they were computed with."""
        scoring = self.scoring(public, trained)
        return {"scoring": scoring.by_name(), "central": self.summary(self.per_user(public, trained, scoring))}

    def baselines(self, public: Arrays, trained: Arrays, under: Scoring) -> dict[str, dict[str, float]]:
        """At round 0: text alone, the private popularity list alone, and both `under` the scoring that merchants train under."""
        text = self.scoring(public, trained, with_prior=False)
        return {
            "text zero-shot": self.summary(self.per_user(public, trained, text)),
            "popularity, private histograms": self.popularity(public[COUNTS]),
            "untrained start": self.summary(self.per_user(public, trained, under)),
        }

    def repeats(self, public: Arrays, trained: Arrays) -> dict[str, dict[str, float]]:
        """Where people buy again: the model, personal frequency and the popularity list on whole last baskets.

        Everything that is chosen is chosen for this, on the calibration users.

        Raises:
            InputError: there is no user to measure, or to choose on.
        """
        config, counts, floor = self.config, public[COUNTS], float(public[FLOOR][0])
        share = config.calibration_share if config.calibrate else 0.0
        again = partial(group_of, repeats=True)
        users, calibration = EvaluationSet.build(self.central, config.history, share, config.seed, asks=again)
        if not users.users:
            raise InputError("no held-out user has two baskets", where="central/events", hint="hold out more users")
        tables, scoring, decay = self.tables(public, trained), self._as_set(), config.decay
        if config.calibrate:
            temperature, k = config.temperature, config.top_k
            scoring = calibrate(calibration, *tables, counts, floor, temperature=temperature, k=k)
            decay = best_decay(calibration, counts, k)
        scores = {
            "model": model_scores(users, *tables, scoring, counts, floor),
            "personal frequency": personal_frequency(users, counts, decay),
            "global frequency": global_frequency(users, counts),
        }
        return {
            name: summarise_repeats(evaluate_repeats(values, config.top_k), config.top_k, config.bootstrap, config.seed)
            for name, values in scores.items()
        }

    def popularity(self, counts: np.ndarray) -> dict[str, float]:
        """A popularity list as a recommender; `counts` (items,) of the central catalogue."""
        return self.summary(evaluate_popularity(self.users, counts, self.config.top_k))

    def _as_set(self) -> Scoring:
        return Scoring(self.config.temperature, self.config.decay, self.config.prior_weight)


def _calibrating(group: CentralGroup, share: float, seed: int) -> CentralGroup:
    chosen = [place for place, name in enumerate(group.histories.user_ids) if is_calibration(name, share, seed)]
    return replace(group, histories=group.histories.take(np.array(chosen, dtype=np.int64)))
