"""The probability that a user responds to items that are shown, from a run that was trained for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from fedrec.model.towers import Scoring, linear_terms, recency_weights

__all__ = ["responses", "scores"]


def responses(
    held: np.ndarray, shown: np.ndarray, prior: np.ndarray, e: np.ndarray, roles: tuple[np.ndarray, np.ndarray],
    terms: np.ndarray, settings: dict[str, Any],
) -> np.ndarray:  # fmt: skip
    """(shown,) probabilities among all impressions, of which the run's data had a share of those without a response.

    Args: see `scores`.
    """
    logit = scores(held, shown, prior, e, roles, terms, settings)
    found: np.ndarray = expit(logit + np.log(settings["negative_share"]))
    return found


def scores(
    held: np.ndarray, shown: np.ndarray, prior: np.ndarray, e: np.ndarray, roles: tuple[np.ndarray, np.ndarray],
    terms: np.ndarray, settings: dict[str, Any],
) -> np.ndarray:  # fmt: skip
    """(shown,) scores with the linear terms.

    Args:
        held: (events,) rows of the catalogue, most recent last, each a basket of its own.
        shown: (shown,) rows of the catalogue.
        prior: (items,) what was released of each, such as log popularity; nan for what the merchant does not sell.
        e, roles: (items, hidden) frozen embeddings, and as history and candidate.
    """
    scoring, sold = Scoring(**settings.get("response_scoring", settings["scoring"])), ~np.isnan(prior)
    ages = np.arange(len(held))[::-1].astype(float)
    weights = recency_weights(ages, np.ones(len(held), dtype=bool), scoring.decay)
    user = weights @ roles[0][held]
    cosines = roles[1][shown] @ (user / max(float(np.linalg.norm(user)), 1e-12))
    by_item = np.full(len(prior), np.nan)
    of_user, of_item, by_item[sold], _ = linear_terms(terms, prior[sold])
    linear = weights @ e[held] @ of_user + e[shown] @ of_item + by_item[shown]
    found: np.ndarray = scoring.temperature * cosines + scoring.prior_weight * prior[shown] + scoring.bias + linear
    return found
