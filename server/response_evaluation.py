"""Central evaluation of `response`: the server's own users' impressions, after every round.

Users are split as for the ranking: some fit the scoring, some judge what was trained, the others are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from fedrec.config import RunConfig
from fedrec.data import CentralData, Histories
from fedrec.errors import InputError
from fedrec.evaluation import (
    FEWEST,
    RESPONSE_METRICS,
    Judged,
    fit_logistic,
    gain_in,
    log_losses,
    reliability,
    summarise_responses,
)
from fedrec.evaluation.protocol import DECAYS, is_calibration
from fedrec.model import Arrays, Scoring, TextEncoder, centred, role_table
from fedrec.model.adapter import TERMS
from fedrec.model.towers import linear_terms, log_prior
from fedrec.objectives import Asked, Examples, Records
from fedrec.objectives.response import response_records
from server.evaluation import COUNTS, FLOOR, JUDGING

__all__ = ["ResponseEvaluator"]

EVERY = 1_000_000_000
"""Most impressions of a user that are evaluated: all of them."""
ROWS = 20_000
"""Impressions whose embeddings are in memory at once."""
TRAINS, CHOSEN = ((1.0, 100.0), (0.0, 10.0), (-100.0, 100.0)), ((0.0, 100.0), (0.0, 10.0), (-100.0, 100.0))
"""Ranges of temperature, weight of the prior and bias: where merchants train, a temperature of 0 would stop the heads."""


@dataclass(frozen=True)
class CentralPairs:
    """A group's users: their records, and who of them serves what.

    Attributes:
        records: before they are padded, in the same order.
        positions: (items,) of the group in the central catalogue.
        role: (users,) 0 is measured, 1 fits, 2 judges.
    """

    records: Records
    examples: Examples
    positions: np.ndarray
    role: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """(targets,) where in `positions` each target's item is."""
        return np.searchsorted(self.positions, self.examples.target[:, 2])


@dataclass(frozen=True)
class _Features:
    """(impressions,) each: what the score is made of, and the linear terms, of all central impressions."""

    cosine: np.ndarray
    prior: np.ndarray
    linear: np.ndarray

    def logits(self, scoring: Scoring) -> np.ndarray:
        found: np.ndarray = scoring.temperature * self.cosine + scoring.prior_weight * self.prior + scoring.bias + self.linear
        return found


class ResponseEvaluator:
    """Evaluates adapters on the central users' impressions, fitting the scoring on others.

    Raises:
        InputError: the measured users were shown nothing, or answered everything alike.
    """

    shown: Sequence[str] = RESPONSE_METRICS
    trains, chosen = TRAINS, CHOSEN

    def __init__(self, central: CentralData, config: RunConfig, encoder: TextEncoder) -> None:
        self.central, self.config, self.encoder = central, config, encoder
        self._by_decay: dict[float, list[CentralPairs]] = {}
        groups = self._groups(config.decay)
        starts = np.cumsum([0, *(len(group.examples) for group in groups)])
        owner = [group.examples.target[:, 0] for group in groups]
        none = [np.zeros(0, dtype=np.int64)]
        self.user = np.concatenate([*none, *(start + own for start, own in zip(starts[:-1], owner, strict=True))])
        self.role = np.concatenate([*none, *(group.role[own] for group, own in zip(groups, owner, strict=True))])
        said = [group.examples.answer for group in groups if group.examples.answer is not None]
        self.answer = np.concatenate([np.zeros(0), *said])
        self._check()

    def _check(self) -> None:
        self.answer = self.answer.astype(bool)
        measured = self.answer[self.role == 0]
        if measured.all() or not measured.any():
            raise InputError(
                f"of {len(measured):,} impressions of the users who are measured {int(measured.sum()):,} have a response",
                where="central/events", expected="some with and some without", hint="hold out more users",
            )  # fmt: skip

    def trains_under(self, public: Arrays, trained: Arrays, before: Scoring | None = None) -> Scoring:
        """See `CentralEvaluator`: temperature, weight of the prior and bias by maximum likelihood."""
        start = before or self._as_set()
        decays = DECAYS if before is None else (before.decay,)
        return self._fitted(public, trained, start, decays, self.trains, self.role == 1)[1] if self.config.calibrate else start

    @property
    def choosing(self) -> tuple[int, int]:
        """See `CentralEvaluator`: of users who have labels."""
        return self._users(1), self._users(2)

    def fitted(self, public: Arrays, trained: Arrays, under: Scoring) -> Scoring:
        """See `CentralEvaluator`."""
        return self._fitted(public, trained, under, (under.decay,), self.trains, self.role == 1)[1]

    def loss(self, public: Arrays, trained: Arrays, under: Scoring) -> float:
        """See `CentralEvaluator`: of the judging users' labels."""
        judging = self.role == 2
        logits = self._features(public, trained, under.decay).logits(under)[judging]
        return float(self._losses(logits, self.answer[judging]).mean())

    def scoring(self, public: Arrays, trained: Arrays, under: Scoring | None = None) -> Scoring:
        """What predictions are made with: fitted on all calibration users, or the settings as they are."""
        start = under or self._as_set()
        if not self.config.calibrate:
            return start
        decays = DECAYS if under is None else (start.decay,)
        return self._fitted(public, trained, start, decays, self.chosen, self.role > 0)[1]

    def line(self, public: Arrays, trained: Arrays) -> dict[str, Any]:
        """A round's central metrics, the reliability curve, and the scoring they were computed with."""
        scoring = self.scoring(public, trained)
        judged = self.judged(public, trained, scoring)
        return {"scoring": scoring.by_name(), "central": summarise_responses(judged), "reliability": reliability(judged)}

    def judged(self, public: Arrays, trained: Arrays, scoring: Scoring) -> Judged:
        """The measured users' impressions, with what is predicted."""
        return self._judged(self._features(public, trained, scoring.decay).logits(scoring))

    def baselines(self, public: Arrays, trained: Arrays, under: Scoring) -> dict[str, dict[str, float]]:
        """At round 0: the private popularity list alone, and the untrained score, each fitted on the calibration users."""
        return {
            "popularity, private histograms": self.popularity(public[COUNTS], float(public[FLOOR][0])),
            "untrained start": summarise_responses(self.judged(public, trained, under)),
        }

    def popularity(self, counts: np.ndarray, floor: float = 1.0) -> dict[str, float]:
        """Log popularity and a bias, fitted; `counts` (items,) of the central catalogue."""
        groups = self._groups(self.config.decay)
        prior = np.concatenate([log_prior(counts[one.positions], floor)[one.places] for one in groups])
        features, chosen = np.stack([prior, np.ones(len(prior))]), self.role > 0
        at = np.array([1.0, 0.0])
        if self.config.calibrate and len(np.unique(self.user[chosen])) >= FEWEST:
            at = fit_logistic(features[:, chosen], self.answer[chosen], [(None, None)] * 2, at)
        return summarise_responses(self._judged(at @ features))

    def gain(self, public: Arrays, before: Arrays, after: Arrays) -> dict[str, Any]:
        """AUC and log-loss of an adapter minus those of another, with paired intervals."""
        first, second = (self.judged(public, one, self.scoring(public, one)) for one in (before, after))
        return {"metric": "auc", **gain_in("auc", first, second), "others": {"log_loss": gain_in("log_loss", first, second)}}

    def _judged(self, logits: np.ndarray) -> Judged:
        measured = self.role == 0
        return Judged(self.user[measured], self.answer[measured], logits[measured], self.config.negative_share)

    def _users(self, role: int) -> int:
        return int(np.unique(self.user[self.role == role]).size)

    def _fitted(
        self, public: Arrays, trained: Arrays, start: Scoring, decays: Sequence[float],
        ranges: Sequence[tuple[float, float]], chosen: np.ndarray,
    ) -> tuple[float, Scoring]:  # fmt: skip
        """The loss of the chosen impressions under the most likely scoring, and that; `start` where they are of few users."""
        if np.unique(self.user[chosen]).size < FEWEST:
            return np.inf, start
        found = []
        for decay in decays:
            features = self._features(public, trained, decay)
            columns = np.stack([features.cosine, features.prior, np.ones(len(self.user))])[:, chosen]
            at = np.clip([start.temperature, start.prior_weight, start.bias], *np.array(ranges).T)
            at = self._likeliest(columns, chosen, list(ranges), at, features.linear[chosen])
            loss = float(self._losses(at @ columns + features.linear[chosen], self.answer[chosen]).mean())
            found.append((loss, Scoring(float(at[0]), decay, float(at[1]), float(at[2]))))
        return min(found, key=lambda one: one[0])

    def _features(self, public: Arrays, trained: Arrays, decay: float) -> _Features:
        self.encoder.load({**public, **trained})
        frozen = centred(self.encoder.embed(self.central.catalogue), public)
        held = torch.cat([frozen, centred(self.encoder.embed_private(self.central.queries), public)])
        history = role_table(held, public, trained, "history").cpu().numpy()
        candidate = role_table(frozen, public, trained, "candidate").cpu().numpy()
        texts, e, parts = held.cpu().numpy(), frozen.cpu().numpy(), []
        for group in self._groups(decay):
            examples = group.examples
            prior = self._prior(group, public)
            user, item, by_item, _ = linear_terms(trained[TERMS], prior)
            place = group.places
            by_position = np.stack([pooled(examples, history), pooled(examples, texts)])  # (2, records, P, hidden)
            users = by_position[0] / np.maximum(np.linalg.norm(by_position[0], axis=-1, keepdims=True), 1e-12)
            cosine, linear = np.zeros(len(place)), (by_position[1] @ user)[examples.target[:, 0], examples.target[:, 1]]
            for first in range(0, len(place), ROWS):
                rows = examples.target[first : first + ROWS]
                cosine[first : first + ROWS] = np.einsum("nh,nh->n", users[rows[:, 0], rows[:, 1]], candidate[rows[:, 2]])
            linear = linear + (e @ item)[examples.target[:, 2]] + by_item[place] + self._known(group, public, e)
            parts.append((cosine, prior[place], linear))
        return _Features(*(np.concatenate(one).astype(np.float64) for one in zip(*parts, strict=True)))

    def _prior(self, group: CentralPairs, public: Arrays) -> np.ndarray:
        """(items,) of the group: what was released of each."""
        return log_prior(public[COUNTS][group.positions], float(public[FLOOR][0]))

    def _known(self, group: CentralPairs, public: Arrays, e: np.ndarray) -> np.ndarray | float:
        """What is added to each score besides; `e` (items, hidden) of the central catalogue."""
        return 0.0

    def _losses(self, scores: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return log_losses(scores, answer)

    def _likeliest(
        self, features: np.ndarray, chosen: np.ndarray, ranges: list[tuple[float, float]], start: np.ndarray, offset: np.ndarray
    ) -> np.ndarray:
        return fit_logistic(features, self.answer[chosen], list(ranges), start, offset)

    def _records(self, histories: Histories, asked: Asked) -> Records:
        return response_records(histories, asked)

    def _groups(self, decay: float) -> list[CentralPairs]:
        """The central users, their histories pooled under a decay; one pooling is kept, and that of the settings."""
        if decay not in self._by_decay:
            kept = {one: groups for one, groups in self._by_decay.items() if one == self.config.decay}
            self._by_decay = {**kept, decay: list(self._built(decay))}
        return self._by_decay[decay]

    def _built(self, decay: float) -> list[CentralPairs]:
        config, out = self.config, []
        share = config.calibration_share if config.calibrate else 0.0
        for group in self.central.groups:
            asked = Asked(
                config.history, config.positions, decay, "user", EVERY, False, config.rating_min, config.rating_max
            )  # fmt: skip
            records = self._records(group.histories, asked)
            role = [
                0 if not is_calibration(name, share, config.seed) else 2 if is_calibration(name, JUDGING, config.seed + 1) else 1
                for name in group.histories.user_ids
            ]
            out.append(CentralPairs(records, records.padded(), np.asarray(group.positions), np.array(role, dtype=np.int64)))
        return out

    def _as_set(self) -> Scoring:
        return Scoring(self.config.temperature, self.config.decay, self.config.prior_weight)


def pooled(examples: Examples, table: np.ndarray) -> np.ndarray:
    """Weighted sums of histories, (records, P, hidden), from the rows of a table (items, hidden)."""
    records, positions, length = examples.weights.shape
    items = np.broadcast_to(examples.items[:, None], (records, positions, length)).reshape(-1, length)
    found = embedding_bag(
        torch.from_numpy(np.ascontiguousarray(items)), torch.from_numpy(table), mode="sum",
        per_sample_weights=torch.from_numpy(examples.weights.reshape(-1, length).astype(table.dtype)),
    )  # fmt: skip
    out: np.ndarray = found.numpy().reshape(records, positions, -1)
    return out
