"""Central evaluation: the server's own users, the full catalogue, after every round."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import CentralData
from fedrec.evaluation import EvaluationSet, PerUser, calibrate, evaluate, evaluate_popularity, summarise
from fedrec.evaluation.protocol import PRIOR_WEIGHTS
from fedrec.model import Arrays, Scoring, TextEncoder, centred, role_table

__all__ = ["COUNTS", "FLOOR", "KEYS", "CentralEvaluator"]

COUNTS, FLOOR, KEYS = "prior.counts", "prior.floor", "prior.keys"


class CentralEvaluator:
    """Evaluates adapters on the central users, choosing decay and prior weight on others."""

    def __init__(self, central: CentralData, config: RunConfig, encoder: TextEncoder) -> None:
        self.central, self.config, self.encoder = central, config, encoder
        share = config.calibration_share if config.calibrate else 0.0
        self.users, self.calibration = EvaluationSet.build(central, config.history, share, config.seed)

    def tables(self, public: Arrays, trained: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """History and candidate embeddings of the central catalogue, (items, hidden) each."""
        self.encoder.load({**public, **trained})
        e = centred(self.encoder.embed(self.central.catalogue), public)
        return role_table(e, public, trained, "history").cpu().numpy(), role_table(e, public, trained, "candidate").cpu().numpy()

    def scoring(self, public: Arrays, trained: Arrays, with_prior: bool = True) -> Scoring:
        """What the ranking uses: chosen on the calibration users, or the settings as they are."""
        config = self.config
        if not config.calibrate:
            return Scoring(config.temperature, config.decay, config.prior_weight if with_prior else 0.0)
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

    def line(self, public: Arrays, trained: Arrays) -> dict[str, Any]:
        """A round's central metrics, and the scoring they were computed with."""
        scoring = self.scoring(public, trained)
        return {"scoring": asdict(scoring), "central": self.summary(self.per_user(public, trained, scoring))}

    def baselines(self, public: Arrays, trained: Arrays) -> dict[str, dict[str, float]]:
        """At round 0: text alone, the private popularity list alone, and both as merchants train under them."""
        config = self.config
        text = self.scoring(public, trained, with_prior=False)
        as_trained = Scoring(config.temperature, config.decay, config.prior_weight)
        return {
            "text zero-shot": self.summary(self.per_user(public, trained, text)),
            "popularity, private histograms": self.popularity(public[COUNTS]),
            "untrained start": self.summary(self.per_user(public, trained, as_trained)),
        }

    def popularity(self, counts: np.ndarray) -> dict[str, float]:
        """A popularity list as a recommender; `counts` (items,) of the central catalogue."""
        return self.summary(evaluate_popularity(self.users, counts, self.config.top_k))
