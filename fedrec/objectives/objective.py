"""What a record is asked, and how wrong its scores are: the one thing that trainers know of what they train for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from fedrec.config import Unit
from fedrec.data import Histories
from fedrec.objectives.examples import Examples
from fedrec.objectives.joint import Lot

__all__ = ["Asked", "Known", "Objective"]


@dataclass(frozen=True)
class Asked:
    """How a run makes records of histories: see the settings of these names.

    Attributes:
        merge: whether an item that is pooled twice is there once.
        rating_min, rating_max: the public range of ratings.
        decays, weights: of the parts of several objectives, in their order, where there are several.
    """

    history: int
    positions: int
    decay: float
    unit: Unit
    impressions: int
    merge: bool
    rating_min: float = 1.0
    rating_max: float = 5.0
    decays: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is public of a merchant's items when records are made.

    Attributes:
        prior: (items,) what was released of each, as the trainers have it.
        texts: (items, width) features of their texts.
    """

    prior: np.ndarray
    texts: np.ndarray


class Objective(Protocol):
    """A loss that is a function of a record's scores alone, so that no record's gradient depends on another's data.

    Scores are `temperature * <user, item> + offset`, and the linear terms where there are any, of a record's positions
    against items. The heads have those of the whole catalogue, and ask for the derivative. The encoder has those of a record's
    own texts and of negatives that all records of a step share, and differentiates the loss. Objectives are values: equal ones
    are interchangeable, and they can be hashed.

    Attributes:
        name: as in `objective` of a run's settings.
        negatives: whether the encoder's loss needs items that the record does not name.
        terms: whether the score has linear terms of its own (`fedrec.model.towers.linear_terms`), trained with the heads.
        rates: whether it is about ratings, so that what is expected of an item is no popularity but a rating.
    """

    @property
    def name(self) -> str: ...

    @property
    def negatives(self) -> bool: ...

    @property
    def terms(self) -> bool: ...

    @property
    def rates(self) -> bool: ...

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Lot:
        """What is asked of each user, which pairs of user and item that needs; a user's record depends on that user alone.

        Args:
            known: what is public of the items, for an objective that `rates`.
        """
        ...

    def losses(self, scores: Tensor, chunk: Examples) -> Tensor:
        """Each record's loss from the scores of the whole catalogue: (records, P, items) to (records,)."""
        ...

    def at_scores(self, scores: Tensor, chunk: Examples) -> Tensor:
        """The derivative of `losses` by the scores, which are overwritten: (records, P, items)."""
        ...

    def wanted(self, chunk: Examples) -> Sequence[np.ndarray]:
        """What `sampled_losses` must know of each target: numbers (targets,), as many arrays for every chunk."""
        ...

    def sampled_losses(self, own: Tensor, negatives: Tensor, masked: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """Each record's loss from the scores of some items: (records,) float64.

        Args:
            own: (records, P, K) of the record's own texts.
            negatives: (records, P, N) of what is drawn from the catalogue; N is 0 where `negatives` is False.
            masked: (records, P, N) bool, which of those the record has or is to predict.
            wanted: (records, P, K) each, what `wanted` says where a text is a target, and 0 elsewhere.
        """
        ...
