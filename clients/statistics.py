"""The statistics that a merchant may be asked for, each once a run: sums over users that one user moves by at most 1.

A statistic says what the release of it is, what it asks (for a secure sum), how many numbers it has, which of them are noisy
under local noise, and how it is computed. Policy, budget, ledger, noise and reply are the same for all of them:
`Merchant.statistic` under `local`, `clients.secure.answer_mask_statistic` under `secure-aggregation`. To add one: its task
in `fedrec.wire.values`, its name in `fedrec.privacy.events.Mechanism`, its function here, and its request in
`server.statistics`. Its round is a number under 1 that no other has: with the run it is what a ledger knows it by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from fedrec import wire
from fedrec.data import MerchantData
from fedrec.data.rated import in_units
from fedrec.model.adapter import CENTRE, Arrays
from fedrec.model.complements import KINDS, kinds_of, numbers_of
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import centred
from fedrec.privacy import Release, rated_votes, votes
from fedrec.privacy.events import Mechanism
from fedrec.privacy.pairs import basket_pairs
from fedrec.wire import ComplementTask, HistogramTask

if TYPE_CHECKING:
    from clients.merchant import Merchant

__all__ = ["STATISTICS", "Statistic", "complements", "pairs_of", "popularity", "purchases", "ratings_of"]


@dataclass(frozen=True)
class Statistic:
    """One statistic as it was asked for.

    Attributes:
        release: the ledger's line of it; the L2 norm of a user's part is its `clip_norm`, 1.
        delta: that the request names.
        array: what the numbers are called in a reply.
        content: digest of all that the sum depends on.
        size: how many numbers it has.
        total: the sum WITHOUT noise: (size,) float64. Nothing but noisy sums of it may leave.
        noisy: of those that may be other than zero, by what is public: positions; None for all.
        refusal: why this merchant cannot compute it, or None.
    """

    release: Release
    delta: float
    array: str
    content: str
    size: int
    total: Callable[[], np.ndarray]
    noisy: np.ndarray | None = None
    refusal: str | None = None


def popularity(merchant: Merchant, task: HistogramTask, keys: np.ndarray) -> Statistic:
    """How popular the texts with these keys are, and how rated if that is asked: see `fedrec.privacy.votes`, `rated_votes`."""
    # Which texts a merchant sells is public, so a text it does not sell is a plain zero.
    users, bought, sold = purchases(merchant.data, keys)

    def total() -> np.ndarray:
        if task.ratings:
            return rated_votes(*ratings_of(merchant.data, keys, task.rating_min, task.rating_max), len(keys))
        return votes(users, bought, len(keys))

    return Statistic(
        _release(merchant, "histogram", 0, task), task.delta, wire.HISTOGRAM, wire.content_of_histogram(task, keys),
        task.size(len(keys)), total, np.concatenate([sold, sold + len(keys)]) if task.ratings else sold,
    )  # fmt: skip


def complements(merchant: Merchant, task: ComplementTask, arrays: Arrays) -> Statistic:
    """Which kinds of item share a basket: see `fedrec.privacy.pairs`."""
    encoder, centres = merchant.encoder(task), arrays[KINDS]
    fits = encoder.fingerprint == task.trunk and encoder.hidden == centres.shape[1]
    content = wire.content_of_complements(task, arrays)
    return Statistic(
        _release(merchant, "complements", task.round, task), task.delta, wire.COMPLEMENTS, content,
        numbers_of(len(centres)), lambda: pairs_of(merchant.data, encoder, arrays),
        refusal=None if fits else "the encoder here is not the server's",
    )  # fmt: skip


def _release(merchant: Merchant, mechanism: Mechanism, number: int, task: HistogramTask | ComplementTask) -> Release:
    return Release(task.run, number, mechanism, task.noise_multiplier, 1.0, 1, 1.0, task.unit, merchant.policy.delta)


def pairs_of(data: MerchantData, encoder: TextEncoder, arrays: Arrays) -> np.ndarray:
    """The sum of `basket_pairs` over a merchant's users, by the kinds that its texts are of before any training."""
    encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
    centres = arrays[KINDS]
    kind = kinds_of(centred(encoder.embed(data.catalogue), {CENTRE: arrays[CENTRE]}).cpu().numpy(), centres)
    histories = data.histories.targets()
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    return basket_pairs(users, histories.baskets, histories.items, kind, len(centres))


def purchases(data: MerchantData, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who bought what: user and position in `keys` of each target, and the positions of all that is sold here.

    Items with one text are one position, so that a user's vote has norm 1 however they are listed.
    """
    position = _places(data, keys)
    histories = data.histories.targets()
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    bought = position[histories.items]
    return users[bought >= 0], bought[bought >= 0], np.unique(position[position >= 0])


def _places(data: MerchantData, keys: np.ndarray) -> np.ndarray:
    """(items,) the position in `keys` of each item's text, the last where there are several; -1 where there is none."""
    place = {int(key): i for i, key in enumerate(keys)}
    return np.array([place.get(int(key), -1) for key in data.catalogue.keys], dtype=np.int64)


def ratings_of(data: MerchantData, keys: np.ndarray, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who rated what and how: user, position in `keys`, and the rating clamped to its range, in units."""
    rated = data.histories.rated
    if rated is None:
        none = np.zeros(0, dtype=np.int64)
        return none, none, none.astype(np.float64)
    place = _places(data, keys)[rated.items]
    users = np.repeat(np.arange(len(data.histories)), np.diff(rated.offsets))
    known = place >= 0
    return users[known], place[known], in_units(rated.answer[known], lowest, highest)


STATISTICS: Mapping[Mechanism, Callable[[Merchant, Message], Statistic]] = {
    "histogram": lambda merchant, message: popularity(merchant, *wire.decode_histogram_task(message)),
    "complements": lambda merchant, message: complements(merchant, *wire.decode_complement_task(message)),
}
"""What can be asked for, by mechanism."""
