"""Drift of a merchant's folder: which model is measured, on whom, and what a person should know of it."""

from __future__ import annotations

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import MerchantData
from fedrec.recommender.contest import SERVED, TEXT, contenders, popularity_here
from fedrec.recommender.drift import Drift, measure_drift
from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["SURE", "drift_of", "drift_sentence"]

SURE = 0.05
"""A change of the hit rate with a p-value under this is told as one."""


def drift_of(place: MerchantPlace, data: MerchantData, weeks: int, windows: int) -> Drift:
    """`measure_drift` of the version that ranks in a folder, for its users who are held back from training.

    Args:
        data: of the folder.
        weeks: in a window.
        windows: at most so many, the last ones.

    Raises:
        InputError: the events span less than two windows, or the version cannot be used here.
    """
    config = RunConfig()
    adapter, here = place.adapter(place.versions.current), popularity_here(data.histories, len(data.catalogue))
    queries = data.histories.queries
    received = None if adapter is None else place.received(data.catalogue, adapter, here, queries)
    model = contenders(place.plain(data.catalogue, here, queries), received, (0.0,))[TEXT if received is None else SERVED]
    roles = place.roles(data)
    held_back = np.union1d(roles.choose, roles.measure)
    return measure_drift(
        data, model.part, model.default, held_back, weeks=weeks, windows=windows, length=config.history, k=config.top_k
    )


def drift_sentence(found: Drift) -> str:
    """What a person should know of it."""
    since = found.windows[-1].start.date().isoformat()
    of = "categories" if found.by == "category" else "items"
    names = {
        "mix": f"what is bought has shifted between {of}, further than in any other window",
        "unknown": "more of it than in any other window was not bought in the window before",
    }
    parts = [names[name] for name in found.unusual]
    if found.change is None:
        parts.append("too few users bought something new to say how the model does")
    elif found.p_value is not None and found.p_value < SURE:
        verb = "lost" if found.change < 0 else "gained"
        parts.append(f"the text has {verb} {abs(found.change):.0%} of its hit rate since {since} (p = {found.p_value:.2g})")
    else:
        parts.append(
            f"how often the text hits has not changed since {since} as far as these users can show ({found.change:+.0%})"
        )
    said = "; ".join(parts)
    return said[0].upper() + said[1:] + "."
