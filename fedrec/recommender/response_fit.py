"""Which delivered response model a merchant uses, and what it is worth there, by the impressions of its own users.

One that arrived is used where it tells the choosing users' responses better than the one before and than popularity alone,
each with a slope and an intercept of its own; so one that is spoilt does no harm. Where none is better, none is used. All of
it stays at the merchant.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedrec.data import MerchantData
from fedrec.errors import InputError
from fedrec.evaluation import Judged, fit_logistic, gain_in, log_losses, summarise_responses
from fedrec.model.towers import log_prior
from fedrec.recommender.blend import FEWEST
from fedrec.recommender.contest import popularity_here
from fedrec.recommender.fitting import made_from
from fedrec.recommender.merchant_text import Adapter, MerchantPlace
from fedrec.recommender.responding import OwnResponses, judged_by, over_catalogue
from fedrec.recommender.responses import ResponseScores

__all__ = ["POPULARITY", "ResponseFit", "fit_responses", "measure_responses", "responses_up_to_date"]

POPULARITY, DELIVERED, CALIBRATED = "popularity here", "delivered", "delivered, calibrated here"
SLOPE, LEAST = (0.0, 10.0), 0.05
"""Range of a slope, and the least of what was delivered: it is never turned round, and what tells nothing is not as good as
popularity."""


@dataclass(frozen=True)
class ResponseFit:
    """What was decided.

    Attributes:
        own: what was written.
        compared: log-loss by version, and of popularity alone, on the users who choose, or where they are too few on those who
            train; empty where even they are: then what was used before stays.
        refused: why a version was not compared, by version.
    """

    own: OwnResponses
    compared: dict[str, float]
    refused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and for the verdict that is kept beside an adapter."""
        said = asdict(self.own)
        del said["made_from"]
        return {**said, "log_loss": self.compared, "refused": self.refused}


def responses_up_to_date(place: MerchantPlace, data: MerchantData) -> bool:
    """Whether no response model is here, or nothing has changed since the last fit."""
    versions = place.versions_of("response")
    if not versions.names():
        return True
    own, current = OwnResponses.read(place.own), _current(place)
    if own is None or own.version != current or versions.arrived() is not None:
        return False
    return own.made_from == _made_from(place, data)


def fit_responses(place: MerchantPlace, data: MerchantData) -> ResponseFit | None:
    """Compare, calibrate, and have the best version predict from now on; None where none has arrived.

    What a person chose by `fedrec merchant model use` stays that until the next one arrives.

    Raises:
        InputError: the encoder cannot be loaded.
    """
    versions = place.versions_of("response")
    if not versions.names():
        return None
    arrived, stays, before = versions.arrived(), _current(place), OwnResponses.read(place.own)
    by_hand = arrived is None and stays is not None and (before is None or before.version != stays or before.by_hand)
    entered, refused = _entered(place, data, [stays] if by_hand else [stays, arrived or versions.newest])
    fitted, compared, users = _compared(place, data, entered)
    best = stays if by_hand or not compared else min(compared, key=lambda name: compared[name])
    best = best if best in entered else None
    on = place.settings.recommender.own_layer
    at = fitted[best] if on and best is not None and best in fitted else np.array([1.0, 0.0])
    own = OwnResponses(best, float(at[0]), float(at[1]), users if on and best in fitted else 0, by_hand, _made_from(place, data))
    result = ResponseFit(own, compared, refused)
    own.write(place.own)
    versions.use(best)
    if arrived is not None:
        versions.judged(arrived, {"predicts": best == arrived, **result.to_json()})
    versions.tidy()
    return result


def measure_responses(place: MerchantPlace, data: MerchantData) -> dict[str, Any] | None:
    """What the response model in use, or the newest, tells of users who are in no training, beside popularity alone.

    Returns:
        `rows` of a name and metrics with intervals, `gain` of the last over the first in AUC and log-loss, `version`, `users`
        who chose slope and intercept. None where no model can be used here, or measured users do not have both answers.

    Raises:
        InputError: the current model cannot be used here.
    """
    versions = place.versions_of("response")
    name = versions.current or versions.newest
    if name is None:
        return None
    adapter, roles = Adapter(name, *versions.read(name)), place.roles(data)
    scores = over_catalogue(place, data, adapter, data.histories.queries)
    user, item, answer, logits = judged_by(scores, data.histories, roles.measure)
    if answer.all() or not answer.any():
        return None
    share = float(adapter.settings["negative_share"])
    found, gain = {DELIVERED: Judged(user, answer, logits, share)}, None
    chosen, popularity = judged_by(scores, data.histories, roles.choose), _popularity(data, roles.train)
    if users := _enough(chosen[0], chosen[2]):
        own, alone = _calibrated(chosen[3], chosen[2], LEAST)[0], _calibrated(popularity[chosen[1]], chosen[2])[0]
        first = Judged(user, answer, alone[0] * popularity[item] + alone[1], share)
        last = Judged(user, answer, own[0] * logits + own[1], share)
        found = {POPULARITY: first, **found, CALIBRATED: last}
        gain = {metric: gain_in(metric, first, last) for metric in ("auc", "log_loss")}
    rows = [{"name": row, **summarise_responses(one)} for row, one in found.items()]
    return {"version": name, "rows": rows, "gain": gain, "users": users}


def _compared(
    place: MerchantPlace, data: MerchantData, entered: dict[str, ResponseScores]
) -> tuple[dict[str, np.ndarray], dict[str, float], int]:
    """Slope and intercept of each version; its log-loss under them, and that of popularity; and of how many users that is."""
    roles = place.roles(data)
    # Where those who choose are too few, those who train can still tell a model that is spoilt.
    for some in (roles.choose, np.union1d(roles.train, roles.choose)):
        fitted, compared = {}, {}
        for name, scores in entered.items():
            user, item, answer, logits = judged_by(scores, data.histories, some)
            if not (users := _enough(user, answer)):
                break
            fitted[name], compared[name] = _calibrated(logits, answer, LEAST)
            compared[POPULARITY] = _calibrated(_popularity(data, roles.train)[item], answer)[1]
        if compared:
            return fitted, compared, users
    return {}, {}, 0


def _entered(
    place: MerchantPlace, data: MerchantData, names: list[str | None]
) -> tuple[dict[str, ResponseScores], dict[str, str]]:
    """These versions in their order, as far as each can be used here; and why others cannot."""
    entered: dict[str, ResponseScores] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name is not None:
            try:
                adapter = Adapter(name, *place.versions_of("response").read(name))
                entered[name] = over_catalogue(place, data, adapter, data.histories.queries)
            except InputError as error:
                refused[name] = str(error)
    return entered, refused


def _enough(user: np.ndarray, answer: np.ndarray) -> int:
    """How many users these impressions are of, 0 where they are too few or have one answer only."""
    users = int(np.unique(user).size)
    return users if users >= FEWEST and answer.any() and not answer.all() else 0


def _calibrated(logits: np.ndarray, answer: np.ndarray, least: float = SLOPE[0]) -> tuple[np.ndarray, float]:
    """Slope, at least `least`, and intercept (2,) under which the answers are most likely, and their mean log-loss."""
    features = np.stack([logits, np.ones(len(logits))])
    at = fit_logistic(features, answer, [(least, SLOPE[1]), (-100.0, 100.0)], np.array([1.0, 0.0]))
    return at, float(log_losses(at @ features, answer).mean())


def _popularity(data: MerchantData, users: np.ndarray) -> np.ndarray:
    """(items,) log of what these users bought here."""
    return log_prior(popularity_here(data.histories.take(users), len(data.catalogue)), 1.0).astype(np.float64)


def _current(place: MerchantPlace) -> str | None:
    try:
        return place.versions_of("response").current
    except InputError:
        return None  # it is gone; the fit chooses another


def _made_from(place: MerchantPlace, data: MerchantData) -> str:
    """A digest of all that a fit goes by, empty where the own layer is turned off: then nothing is made of users."""
    if not place.settings.recommender.own_layer:
        return ""
    state, shown = hashlib.blake2b(made_from(place, data).encode(), digest_size=16), data.histories.shown
    for array in () if shown is None else (shown.offsets, shown.items, shown.before, shown.answer):
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
