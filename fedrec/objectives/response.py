"""The objective `response`: whether a user responds to an item when it is shown.

The probability is the logistic function of the score, and the loss the cross-entropy of what the user did (Bernoulli; no item
stands in another's way, so nothing is masked and no negative is drawn). A record is a user, however much was
shown to it: see `fedrec.objectives.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedrec.data import Histories
from fedrec.model.devices import moved
from fedrec.objectives.blocks import block_records
from fedrec.objectives.examples import Examples
from fedrec.objectives.objective import Asked, Known
from fedrec.objectives.records import Records, padded_where_small

__all__ = ["Response", "response_records"]


@dataclass(frozen=True)
class Response:
    """Weighted binary cross-entropy of a record's impressions; an `Objective`."""

    name: str = "response"
    negatives: bool = False
    terms: bool = True
    rates: bool = False

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Examples | Records:
        """See `Objective`; a user without impressions has an empty record."""
        return padded_where_small(response_records(histories, asked), asked.merge)

    def losses(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        target = torch.as_tensor(chunk.target, device=scores.device).T
        weight, answer = (torch.as_tensor(one, device=scores.device).to(scores.dtype) for one in _said(chunk))
        score = scores[tuple(target)]
        return scores.new_zeros(len(scores)).index_add(0, target[0], weight * softplus(score) - answer * score)

    def at_scores(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        _, positions, items = scores.shape
        rows = moved((chunk.target[:, 0] * positions + chunk.target[:, 1]) * items + chunk.target[:, 2], scores.device)
        weight, answer = (moved(one, scores.device).double() for one in _said(chunk))
        # In float64: the last bit of a sigmoid depends on where a number stands among the others.
        at = weight * torch.sigmoid(scores.view(-1)[rows].double()) - answer
        scores.zero_().view(-1).index_add_(0, rows, at.to(scores.dtype))
        return scores

    def wanted(self, chunk: Examples) -> Sequence[np.ndarray]:
        """Each impression's weight, and the same where the user responded."""
        return _said(chunk)

    def sampled_losses(self, own: Tensor, negatives: Tensor, masked: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """See `Objective`."""
        weight, answer = wanted
        return (weight * softplus(own) - answer * own).sum((1, 2))


def response_records(histories: Histories, asked: Asked) -> Records:
    """Each user's impressions as a record, in the order of the users."""
    return block_records(histories, histories.shown, asked)


def _said(chunk: Examples) -> tuple[np.ndarray, np.ndarray]:
    if chunk.answer is None:
        raise ValueError("the records say what users did, and not what they were shown")
    return chunk.target_weight, chunk.target_weight * chunk.answer
