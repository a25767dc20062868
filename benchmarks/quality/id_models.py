"""Central models that know items by their ids, fitted on all merchants' raw training events: yardsticks without privacy.

Popularity, item-kNN and EASE are ours (`fedrec.recommender`), ALS and BPR those of `implicit`, GRU4Rec that of `cornac`. The
smoothing of item-kNN and EASE is chosen on the calibration users; the others have their library's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, csr_matrix, vstack

from benchmarks.quality.sequential import Gru4Rec
from fedrec.data import Histories
from fedrec.errors import InputError
from fedrec.evaluation import Group
from fedrec.recommender.ease import Ease
from fedrec.recommender.item_knn import ItemKnn
from fedrec.recommender.own_layer import Scores, bought_by

__all__ = ["MODELS", "SEQUENTIAL", "Central", "Fit", "Ranker"]

Ranker = Callable[[Group], np.ndarray]
"""A whole group of users to their scores (users, items) of its items."""

Choose = Callable[[list[Ranker]], Ranker]
"""The one that ranks the calibration users best."""

FACTORS, PASSES, EPOCHS = 64, 20, 5


@dataclass(frozen=True)
class Central:
    """What a central model is fitted on.

    Attributes:
        histories: of all merchants' users, by central items; a person is one user at each merchant.
        bought: (users, items) of ones.
        measured: those whom nothing but their history may be known of.
        seed: of what is drawn.
    """

    histories: tuple[Histories, ...]
    bought: csr_array
    measured: tuple[Group, ...]
    seed: int

    @classmethod
    def of(cls, histories: tuple[Histories, ...], items: int, measured: tuple[Group, ...], seed: int) -> Central:
        """From the histories alone."""
        return cls(histories, csr_array(vstack([bought_by(one, items) for one in histories], format="csr")), measured, seed)

    @property
    def items(self) -> int:
        """The central catalogue's."""
        return self.bought.shape[1]


def held_by(users: Group, items: int) -> csr_array:
    """(users, items) of ones where a user's history holds a central item."""
    ones = np.ones(len(users.masked), dtype=np.float32)
    return csr_array((ones, (users.masked[:, 0], users.positions[users.masked[:, 1]])), shape=(len(users.items), items))


def of_layer(layer: Scores, items: int) -> Ranker:
    """A layer over the central catalogue."""
    return lambda users: layer.scores(held_by(users, items))[:, users.positions]


def _popularity(data: Central, choose: Choose) -> Ranker:
    counts = np.asarray(data.bought.sum(axis=0)).ravel().astype(np.float32)
    return lambda users: np.broadcast_to(counts[users.positions], (len(users.items), len(users.positions)))


def _item_knn(data: Central, choose: Choose) -> Ranker:
    return choose([of_layer(ItemKnn.fit(data.bought, strength), data.items) for strength in ItemKnn.strengths])


def _ease(data: Central, choose: Choose) -> Ranker:
    return choose([of_layer(Ease.fit(data.bought, strength), data.items) for strength in Ease.strengths])


def _als(data: Central, choose: Choose) -> Ranker:
    try:
        from implicit.als import AlternatingLeastSquares
    except ModuleNotFoundError:
        raise _missing("implicit") from None
    model = AlternatingLeastSquares(factors=FACTORS, iterations=PASSES, random_state=data.seed, num_threads=1, use_gpu=False)
    model.fit(csr_matrix(data.bought), show_progress=False)

    def scores(users: Group) -> np.ndarray:
        factors = model.recalculate_user(np.arange(len(users.items)), csr_matrix(held_by(users, data.items)))
        return np.asarray(factors @ model.item_factors[users.positions].T, dtype=np.float32)

    return scores


def _bpr(data: Central, choose: Choose) -> Ranker:
    """It has no factors for a user it has not been fitted on: measured users' histories (no last basket) are rows of the fit.

    That leaves none to choose its rate on, so that it is the library's.
    """
    try:
        from implicit.bpr import BayesianPersonalizedRanking
    except ModuleNotFoundError:
        raise _missing("implicit") from None
    rows = [data.bought, *(held_by(group, data.items) for group in data.measured)]
    starts = dict(zip((group.name for group in data.measured), np.cumsum([one.shape[0] for one in rows]), strict=False))
    model = BayesianPersonalizedRanking(factors=FACTORS, random_state=data.seed, num_threads=1, use_gpu=False)
    model.fit(csr_matrix(vstack(rows)), show_progress=False)

    def scores(users: Group) -> np.ndarray:
        start = starts[users.name]
        factors = model.user_factors[start : start + len(users.items)]
        return np.asarray(factors @ model.item_factors[users.positions].T, dtype=np.float32)

    return scores


def _gru4rec(data: Central, choose: Choose) -> Ranker:
    return Gru4Rec(data.histories, data.items, EPOCHS, data.seed).scores


def _missing(package: str) -> InputError:
    return InputError(f"the package {package} is not installed", hint="pip install 'fedrec[benchmarks]'")


Fit = Callable[[Central, Choose], Ranker]
MODELS: dict[str, Fit] = {
    "popularity": _popularity, "item-kNN": _item_knn, "EASE": _ease, "ALS, 64 factors (`implicit`)": _als,
    "BPR, 64 factors (`implicit`)": _bpr,
}  # fmt: skip
SEQUENTIAL: dict[str, Fit] = {"GRU4Rec (`cornac`)": _gru4rec}
"""Apart, because it takes longer than all others together."""
