"""How a user would rate items, from a run that was trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedrec.data.rated import from_units, in_units, own_taste
from fedrec.errors import InputError
from fedrec.model.towers import Scoring
from fedrec.recommender.responses import Asked, ResponseScores

__all__ = ["ratings"]


def ratings(
    held: np.ndarray, said: Sequence[float] | None, asked: np.ndarray, expected: np.ndarray, texts: np.ndarray,
    e: np.ndarray,
    roles: tuple[np.ndarray, np.ndarray], terms: np.ndarray, settings: dict[str, Any],
) -> np.ndarray:  # fmt: skip
    """(asked,) predicted ratings on the data's own scale, within the range of the run.

    Args:
        held: (events,) rows of the catalogue, most recent last, each a basket of its own.
        said: (events,) how the user rated them; None where nothing is known but that it did.
        asked: (asked,) rows of the catalogue.
        expected: (items,) expected ratings in units, nan for what the merchant does not sell.
        texts: (items, width) features of the texts.
        e, roles: (items, hidden) frozen embeddings, and as history and candidate.

    Raises:
        InputError: as many ratings as events were expected, and each finite.
    """
    ends, most = (float(settings["rating_min"]), float(settings["rating_max"])), settings["history"]
    own: np.ndarray | float = 0.0
    if said is not None:
        value = np.asarray(said, dtype=np.float64)
        if value.shape != held.shape or not np.isfinite(value).all():
            raise InputError(f"found {len(value)} ratings", where="ratings", expected=f"{len(held)} finite numbers, one an item")
        sold = ~np.isnan(expected[held])
        off = in_units(value[sold], *ends) - expected[held[sold]]
        own = own_taste(texts[held[sold]], off, texts[asked])
    model = ResponseScores(e, *roles, expected, terms, Scoring(**settings["scoring"]), most)
    latest = held[-most:]
    return from_units(model.logits(Asked.of_one(latest, np.arange(len(latest)), asked)) + own, *ends)
