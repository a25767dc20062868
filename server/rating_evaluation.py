"""Central evaluation of `rating`, and what is expected of each item from the sums that merchants have released.

Users are split as for the other objectives: some fit the scoring, some judge what was trained, the others are measured. A rating
is predicted from the baskets before its block, and from how its user rated what came before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import CentralData, Histories
from fedrec.data.rated import from_units
from fedrec.errors import InputError
from fedrec.evaluation import Rated, fit_ratings, gain_in_ratings, rating_metrics, summarise_ratings
from fedrec.model import Arrays, Scoring, TextEncoder, centred
from fedrec.model.adapter import HEAD_A
from fedrec.objectives import Asked, Known, Records
from fedrec.objectives.expected import expected_ratings
from fedrec.objectives.rating import own_offsets, rating_records
from server.evaluation import COUNTS, FLOOR, KEYS, RATINGS
from server.response_evaluation import CentralPairs, ResponseEvaluator

__all__ = ["RatingEvaluator", "noise_by_item", "with_expected"]

TRAINS, CHOSEN = ((0.3, 10.0), (0.0, 2.0), (-2.0, 2.0)), ((0.0, 10.0), (0.0, 2.0), (-2.0, 2.0))
"""Ranges of temperature, weight of the expected rating and bias, in units."""


class RatingEvaluator(ResponseEvaluator):
    """Evaluates adapters on the central users' ratings, fitting the scoring by least squares on others.

    Raises:
        InputError: the measured users rated nothing after a first basket.
    """

    trains, chosen = TRAINS, CHOSEN

    def __init__(self, central: CentralData, config: RunConfig, encoder: TextEncoder) -> None:
        self.shown = rating_metrics(config.top_k)
        super().__init__(central, config, encoder)

    def trains_under(self, public: Arrays, trained: Arrays, before: Scoring | None = None) -> Scoring:
        """See `CentralEvaluator`: least squares before the first round, and the same in all.

        The mean of the few users that it is fitted on is not that of merchants' users, and a bias that is fitted anew would undo
        what the linear terms have learned, round after round.
        """
        return before or super().trains_under(public, trained)

    def line(self, public: Arrays, trained: Arrays) -> dict[str, Any]:
        """A round's central metrics, and the scoring they were computed with."""
        scoring = self.scoring(public, trained)
        return {"scoring": scoring.by_name(), "central": self._summary(self.rated(public, trained, scoring))}

    def rated(self, public: Arrays, trained: Arrays, scoring: Scoring) -> Rated:
        """The measured users' ratings, with what is predicted."""
        return self._rated(self._features(public, trained, scoring.decay).logits(scoring))

    def baselines(self, public: Arrays, trained: Arrays, under: Scoring) -> dict[str, dict[str, float]]:
        """At round 0: the mean of all ratings alone, user and item as they are expected, and the untrained score."""
        counts = np.maximum(public[COUNTS].astype(np.float64), float(public[FLOOR][0]))
        mean = float(np.average(public[RATINGS], weights=counts))
        return {
            "mean, private sums": self._summary(self._rated(np.full(len(self.user), mean))),
            "user and item, private sums": self.of_user_and_item(public[RATINGS]),
            "untrained start": self._summary(self.rated(public, trained, under)),
        }

    def of_user_and_item(self, expected: np.ndarray) -> dict[str, float]:
        """What is expected of the item, and the user's offset; `expected` (items,) of the central catalogue."""
        groups, alike = self._groups(self.config.decay), Known(expected, np.zeros((len(expected), 0)))
        found = [expected[group.examples.target[:, 2]] + self._own(group, alike) for group in groups]
        return self._summary(self._rated(np.concatenate([np.zeros(0), *found])))

    def gain(self, public: Arrays, before: Arrays, after: Arrays) -> dict[str, Any]:
        """RMSE and NDCG of an adapter minus those of another, with paired intervals."""
        k = self.config.top_k
        first, second = (self.rated(public, one, self.scoring(public, one)) for one in (before, after))
        others = {name: gain_in_ratings(name, first, second, k) for name in ("mae", f"ndcg@{k}")}
        return {"metric": "rmse", **gain_in_ratings("rmse", first, second, k), "others": others}

    def _check(self) -> None:
        if not (self.role == 0).any():
            raise InputError(
                "the users who are measured rated nothing after their first basket", where="central/events",
                expected="events of kind rating with a value", hint="hold out more users",
            )  # fmt: skip

    def _summary(self, rated: Rated) -> dict[str, float]:
        return summarise_ratings(rated, self.config.top_k)

    def _rated(self, scores: np.ndarray) -> Rated:
        measured, ends = self.role == 0, (self.config.rating_min, self.config.rating_max)
        value, predicted = (from_units(one[measured], *ends) for one in (self.answer, scores))
        return Rated(self.user[measured], value, predicted, ends[0])

    def _prior(self, group: CentralPairs, public: Arrays) -> np.ndarray:
        return public[RATINGS][group.positions]

    def _known(self, group: CentralPairs, public: Arrays, e: np.ndarray) -> np.ndarray:
        return self._own(group, Known(public[RATINGS], e @ public[HEAD_A]))

    def _own(self, group: CentralPairs, known: Known) -> np.ndarray:
        asked = Asked(0, 0, 0.0, "user", 0, False, self.config.rating_min, self.config.rating_max)
        return own_offsets(group.records, asked, known)

    def _losses(self, scores: np.ndarray, answer: np.ndarray) -> np.ndarray:
        error = scores - answer
        return np.abs(error) if self.config.objective == "rating-absolute" else np.square(error)

    def _likeliest(
        self, features: np.ndarray, chosen: np.ndarray, ranges: list[tuple[float, float]], start: np.ndarray, offset: np.ndarray
    ) -> np.ndarray:
        # Where merchants train every user weighs the same: a bias of who rates much would be learned round after round.
        alike = ranges == list(self.trains)
        weight = 1 / np.bincount(self.user)[self.user[chosen]] if alike else np.ones(features.shape[1])
        return fit_ratings(features, self.answer[chosen], ranges, offset, weight)

    def _records(self, histories: Histories, asked: Asked) -> Records:
        return rating_records(histories, asked)


def noise_by_item(sigma: float, names: list[str], central: CentralData) -> np.ndarray:
    """(items,) standard deviation of the noise in a sum of these merchants' histograms, each with that of its own.

    Each adds noise to the texts that it sells, which is public. One of whom the central catalogue does not say what it sells is
    taken to sell all.
    """
    keys, sellers = central.catalogue.keys, np.zeros(len(central.catalogue))
    sold = {group.name: np.isin(keys, keys[group.positions]) for group in central.groups}
    for name in names:
        sellers += sold.get(name, np.ones(len(keys), dtype=bool))
    return sigma * np.sqrt(sellers)


def with_expected(public: Arrays, encoder: TextEncoder, central: CentralData, noise: float | np.ndarray) -> Arrays:
    """The public part with the expected rating of each item in place of the sums that were released, where there are any.

    Args:
        noise: standard deviation of the noise in each number of the sums, of all alike or (items,).
    """
    if RATINGS not in public:
        return public
    encoder.load({name: value for name, value in public.items() if not name.startswith("prior.")} | _zeros(encoder))
    texts = centred(encoder.embed(central.catalogue), public).cpu().numpy() @ public[HEAD_A]
    found = expected_ratings(public[COUNTS], public[RATINGS], noise, texts)
    # Of items with one text the last stands for all, as merchants have it.
    last = {key: place for place, key in enumerate(public[KEYS].tolist())}
    return {**public, RATINGS: found[[last[key] for key in public[KEYS].tolist()]]}


def _zeros(encoder: TextEncoder) -> Arrays:
    return {name: np.zeros_like(value) for name, value in encoder.trained().items()}
