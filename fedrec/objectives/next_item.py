"""The objective `next-item`: what the next basket holds that is new, by a softmax over the catalogue.

Items that a user has are masked. The encoder, which cannot encode a whole catalogue in a step, has a softmax of each target
against negatives that are drawn uniformly from the public catalogue and independently of any user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.data import Histories
from fedrec.model.devices import moved
from fedrec.objectives.examples import Examples
from fedrec.objectives.objective import Asked, Known
from fedrec.objectives.records import Records, build_records

__all__ = ["NextItem"]

MASK = -1e9
"""In place of the score of an item that a user has."""


@dataclass(frozen=True)
class NextItem:
    """Weighted cross-entropy of a position's targets; an `Objective`."""

    name: str = "next-item"
    negatives: bool = True
    terms: bool = False
    rates: bool = False

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Examples | Records:
        """See `Objective` and `build_records`."""
        return build_records(
            histories, history=asked.history, positions=asked.positions, decay=asked.decay, unit=asked.unit, merge=asked.merge
        )

    def losses(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        seen, target = (torch.as_tensor(rows, device=scores.device).T for rows in (chunk.seen, chunk.target))
        scores = scores.index_put(tuple(seen), scores.new_tensor(MASK))
        log_total = torch.logsumexp(scores, dim=-1)  # (records, P)
        losses = log_total[target[0], target[1]] - scores[tuple(target)]
        weight = torch.as_tensor(chunk.target_weight, device=scores.device)
        return scores.new_zeros(len(scores)).index_add(0, target[0], (losses * weight).to(scores.dtype))

    def at_scores(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        records, positions, items = scores.shape
        seen, target = ((rows[:, 0] * positions + rows[:, 1]) * items + rows[:, 2] for rows in (chunk.seen, chunk.target))
        weight = chunk.target_weight.astype(chunk.weights.dtype)
        total = np.bincount(target // items, weight, records * positions).astype(weight.dtype)
        scores.view(-1).index_fill_(0, moved(seen, scores.device), MASK)
        out = torch.softmax(scores, dim=-1).mul_(moved(total, scores.device).view(records, positions, 1))
        out.view(-1).index_add_(0, moved(target, scores.device), moved(weight, scores.device), alpha=-1)
        return out

    def wanted(self, chunk: Examples) -> Sequence[np.ndarray]:
        """Each target's weight."""
        return (chunk.target_weight,)

    def sampled_losses(self, own: Tensor, negatives: Tensor, masked: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """See `Objective`."""
        (weight,) = wanted
        total = torch.logsumexp(negatives.masked_fill(masked, MASK), dim=-1, keepdim=True)
        return ((torch.logaddexp(own, total) - own) * weight).sum((1, 2))
