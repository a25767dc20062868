"""A merchant's response model: the delivered one over its own catalogue, calibrated on its own users.

The popularity in it is the federation's, as it was trained with. What the merchant adds are two numbers, so that what a shop is
told about an item does not give away how many customers here bought it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from scipy.special import expit

from fedrec.config import make_private, write_atomically
from fedrec.data import Histories, MerchantData
from fedrec.errors import InputError
from fedrec.model.adapter import TERMS
from fedrec.model.towers import centred, log_prior, role_table
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.past import Past
from fedrec.recommender.responses import Asked, ResponseScores
from fedrec.recommender.shelf import look_up

__all__ = ["FILE", "Impressions", "OwnResponses", "ResponseModel", "impressions_of", "judged_by", "over_catalogue"]

FILE = "response.json"
"""In `own/`: what `fedrec merchant fit` made of the merchant's own impressions."""
USERS = 500
"""So many users' impressions are in memory at once."""


@dataclass(frozen=True)
class OwnResponses:
    """What the merchant's own users say of the delivered model; it never leaves.

    Attributes:
        version: that it belongs to, None where none is used.
        slope, intercept: of the logit, by maximum likelihood; 1 and 0 where the own layer is turned off or users are too few.
        users: whose impressions they were fitted on, 0 for none.
        by_hand: whether a person chose the version.
        made_from: a digest of the data; empty where the own layer is turned off.
    """

    version: str | None
    slope: float = 1.0
    intercept: float = 0.0
    users: int = 0
    by_hand: bool = False
    made_from: str = ""

    def write(self, folder: Path) -> None:
        """Write it into `own/`, for its owner alone."""
        make_private(folder)
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=2).encode(), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What was written, None where nothing was, or nothing that can be read: the next fit puts another in its place."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Impressions:
    """What some users were shown after their first basket, and how they responded.

    Attributes:
        asked: what was shown to whom.
        user: (impressions,) number of the user in the histories that it was asked of.
        answer: (impressions,) bool.
    """

    asked: Asked
    user: np.ndarray
    answer: np.ndarray


def impressions_of(histories: Histories, users: np.ndarray, length: int) -> Impressions | None:
    """The impressions of some users, each with at most the `length` latest events of the baskets before it; None for none."""
    if histories.shown is None or not len(users):
        return None
    some = histories.take(users)
    shown = some.shown
    assert shown is not None
    kept = np.flatnonzero(shown.before > 0)
    if not len(kept):
        return None
    owner = np.repeat(np.arange(len(users)), np.diff(shown.offsets))[kept]
    last = max(int(some.baskets.max(initial=0)), int(shown.before.max())) + 2
    moments, place = np.unique(owner * last + shown.before[kept], return_inverse=True)
    of_user, before = np.divmod(moments, last)
    end = np.searchsorted(np.repeat(np.arange(len(users)), np.diff(some.offsets)) * last + some.baskets, moments)
    start = np.maximum(some.offsets[of_user], end - length)
    rows = start[:, None] + np.arange(int((end - start).max()))  # (moments, L)
    valid = rows < end[:, None]
    rows = np.where(valid, rows, 0)
    ages = (before[:, None] - some.baskets[rows]).astype(float)
    asked = Asked(some.items[rows], ages, valid, place, shown.items[kept])
    return Impressions(asked, users[owner], shown.answer[kept])


def judged_by(
    scores: ResponseScores, histories: Histories, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Some users' impressions under a model: user, item, answer and logit of each, (impressions,)."""
    none = np.zeros(0, dtype=np.int64)
    found: list[tuple[np.ndarray, ...]] = [(none, none, none.astype(bool), np.zeros(0))]
    for first in range(0, len(users), USERS):
        part = impressions_of(histories, users[first : first + USERS], scores.length)
        if part is not None:
            found.append((part.user, part.asked.shown, part.answer, scores.logits(part.asked)))
    user, item, answer, logits = (np.concatenate(one) for one in zip(*found, strict=True))
    return user, item, answer, logits


def over_catalogue(place: MerchantPlace, data: MerchantData, adapter: Adapter, queries: Sequence[str]) -> ResponseScores:
    """A delivered model over the merchant's catalogue as it is now.

    Args:
        queries: what histories may hold after the catalogue's items.

    Raises:
        InputError: see `MerchantPlace.encoder`; or its numbers are finite and what they make of a text here is not.
    """
    arrays = adapter.arrays
    frozen = centred(place.pooled(data.catalogue, adapter), arrays)
    searched = place.asked(queries, adapter)
    texts = frozen if searched is None else torch.cat([frozen, centred(searched, arrays)])
    prior = log_prior(*adapter.counts(data.catalogue))
    history, candidate = role_table(texts, arrays, arrays, "history"), role_table(frozen, arrays, arrays, "candidate")
    e, as_history, as_candidate = (one.cpu().numpy() for one in (texts, history, candidate))
    length = adapter.settings["history"]
    found = ResponseScores(e, as_history, as_candidate, prior, arrays[TERMS], adapter.scoring, length)
    if not all(np.isfinite(one).all() for one in (found.e, found.history, found.candidate, prior)):
        raise InputError(
            f"version {adapter.name} makes no finite numbers of the texts here", where=str(place.path / "model"),
            hint="`fedrec merchant model use` another one",
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class ResponseModel:
    """What predicts at a merchant.

    Attributes:
        place, data: the merchant's folder and its tables.
        adapter: the current version.
        scores: it over the catalogue.
        own: what the merchant's users say of it.
    """

    place: MerchantPlace
    data: MerchantData
    adapter: Adapter
    scores: ResponseScores
    own: OwnResponses

    @classmethod
    def open(cls, place: MerchantPlace, data: MerchantData) -> Self:
        """The current response model of a merchant's folder.

        Raises:
            InputError: there is none, or it cannot be used here.
        """
        versions = place.versions_of("response")
        name = versions.current
        if name is None:
            arrived = versions.newest
            raise InputError(
                "no response model is in use here" if arrived else "no response model has come home",
                where=str(versions.folder), expected="one of a run with objective = 'response'",
                hint=f"`fedrec merchant fit` compares {arrived}, or `fedrec merchant model use` it as it is" if arrived else None,
            )  # fmt: skip
        adapter = Adapter(name, *versions.read(name))
        own = OwnResponses.read(place.own) if place.settings.recommender.own_layer else None
        if own is None or own.version != name:
            own = OwnResponses(name)
        return cls(place, data, adapter, over_catalogue(place, data, adapter, ()), own)

    def past_of(self, history: Sequence[str]) -> Past:
        """A history of item ids, each a basket of its own.

        Raises:
            InputError: an item is not in the catalogue.
        """
        return Past(look_up([history], self.data.catalogue)[:, 1], np.arange(len(history)))

    def predict(self, past: Past, items: Sequence[str]) -> np.ndarray:
        """(items,) the probability that somebody with this past responds to each item when it is shown.

        Raises:
            InputError: nothing is in the past, no item is asked for, or one is not in the catalogue.
        """
        if not len(past.items) or not len(items):
            raise InputError("there is no history, or no item", expected="at least one of each")
        shown, scores = look_up([items], self.data.catalogue, where="items")[:, 1], self.scores
        held, baskets = past.items[-scores.length :], past.baskets[-scores.length :]
        if (held >= len(self.data.catalogue)).any():
            scores = over_catalogue(self.place, self.data, self.adapter, past.queries)
        logits = self.own.slope * scores.logits(Asked.of_one(held, baskets, shown)) + self.own.intercept
        found: np.ndarray = expit(logits + np.log(self.adapter.settings["negative_share"]))
        return found
