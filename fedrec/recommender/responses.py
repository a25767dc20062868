"""The probability that a user responds to items that are shown, from a model that was trained for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from fedrec.model.towers import Scoring, linear_terms, recency_weights

__all__ = ["Asked", "ResponseScores"]


@dataclass(frozen=True)
class Asked:
    """Who was shown what, and what each had bought or searched for until then.

    Attributes:
        items: (histories, L) rows of the texts, any where not `valid`.
        ages: (histories, L) baskets ago, up to a constant of the history.
        valid: (histories, L) whether there is an event.
        owner: (impressions,) row of the history of whoever it was shown to.
        shown: (impressions,) rows of the catalogue.
    """

    items: np.ndarray
    ages: np.ndarray
    valid: np.ndarray
    owner: np.ndarray
    shown: np.ndarray

    @classmethod
    def of_one(cls, items: np.ndarray, baskets: np.ndarray, shown: np.ndarray) -> Asked:
        """One history, (events,) with the number of each one's basket, and what is shown to its owner."""
        ages = (baskets.max(initial=0) - baskets)[None].astype(float)
        return cls(items[None], ages, np.ones((1, len(items)), dtype=bool), np.zeros(len(shown), dtype=np.int64), shown)


@dataclass(frozen=True)
class ResponseScores:
    """A trained model over a catalogue.

    Attributes:
        e: (texts, hidden) frozen embeddings: of the catalogue, then of what users searched for.
        history: (texts, hidden) the same as history.
        candidate: (items, hidden) the catalogue as candidates.
        prior: (items,) what was released of each, such as log popularity; nan for what is not sold.
        terms: (2, hidden + 1) the linear terms.
        scoring: fitted on consenting users.
        length: how many of a history's latest events count.
    """

    e: np.ndarray
    history: np.ndarray
    candidate: np.ndarray
    prior: np.ndarray
    terms: np.ndarray
    scoring: Scoring
    length: int

    def logits(self, asked: Asked) -> np.ndarray:
        """(impressions,) scores with the linear terms: of a response the logit, among impressions as they are in the data."""
        scoring, sold = self.scoring, ~np.isnan(self.prior)
        weights = recency_weights(asked.ages, asked.valid, scoring.decay)
        user = _pooled(self.history, asked.items, weights)
        user /= np.maximum(np.linalg.norm(user, axis=1, keepdims=True), 1e-12)
        by_item = np.full(len(self.prior), np.nan)
        of_user, of_item, by_item[sold], _ = linear_terms(self.terms, self.prior[sold])
        cosines = np.einsum("nh,nh->n", user[asked.owner], self.candidate[asked.shown])
        linear = (_pooled(self.e, asked.items, weights) @ of_user)[asked.owner]
        linear = linear + self.e[asked.shown] @ of_item + by_item[asked.shown]
        found: np.ndarray = scoring.temperature * cosines + scoring.prior_weight * self.prior[asked.shown] + scoring.bias + linear
        return found.astype(np.float64)


def _pooled(table: np.ndarray, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of rows of a table, (histories, hidden)."""
    found: np.ndarray = embedding_bag(
        torch.from_numpy(np.ascontiguousarray(items)), torch.from_numpy(np.ascontiguousarray(table)),
        per_sample_weights=torch.from_numpy(weights.astype(table.dtype)), mode="sum",
    ).numpy()  # fmt: skip
    return found
