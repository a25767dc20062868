"""The objective `rating`: how a user rates an item, on a public range that stands for -1 to 1.

The score is the rating itself, and the loss its squared error, or with `rating-absolute` the absolute one. What a record is asked
are a user's ratings, in blocks (`fedrec.objectives.blocks`). Of each block's label is taken what the user's own earlier ratings
say already (`fedrec.data.rated.own_taste`): a function of those and of what is public, so it is in no other user's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedrec.data import Histories
from fedrec.data.rated import in_units, own_taste
from fedrec.model.devices import moved
from fedrec.objectives.blocks import block_records
from fedrec.objectives.examples import Examples
from fedrec.objectives.objective import Asked, Known
from fedrec.objectives.records import Records, padded_where_small

__all__ = ["Rating", "own_offsets", "rating_records"]


@dataclass(frozen=True)
class Rating:
    """Weighted squared error of a record's ratings, or absolute error; an `Objective`."""

    name: str = "rating"
    negatives: bool = False
    terms: bool = True
    rates: bool = True
    absolute: bool = False

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Examples | Records:
        """See `Objective`; a user without ratings has an empty record."""
        records = rating_records(histories, asked)
        said = records.index.answer
        if said is not None and known is not None:
            own = own_offsets(records, asked, known)
            records = replace(records, index=replace(records.index, answer=(said - own).astype(np.float32)))
        return padded_where_small(records, asked.merge)

    def losses(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        target = torch.as_tensor(chunk.target, device=scores.device).T
        weight, answer = (torch.as_tensor(one, device=scores.device).to(scores.dtype) for one in _said(chunk))
        error = scores[tuple(target)] - answer
        each = weight * (error.abs() if self.absolute else error.square() / 2)
        return scores.new_zeros(len(scores)).index_add(0, target[0], each)

    def at_scores(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        _, positions, items = scores.shape
        rows = moved((chunk.target[:, 0] * positions + chunk.target[:, 1]) * items + chunk.target[:, 2], scores.device)
        weight, answer = (moved(one, scores.device).double() for one in _said(chunk))
        error = scores.view(-1)[rows].double() - answer
        at = weight * (torch.sign(error) if self.absolute else error)
        scores.zero_().view(-1).index_add_(0, rows, at.to(scores.dtype))
        return scores

    def wanted(self, chunk: Examples) -> Sequence[np.ndarray]:
        """Each rating's weight, and what it is times that."""
        weight, answer = _said(chunk)
        return weight, weight * answer

    def sampled_losses(self, own: Tensor, negatives: Tensor, masked: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """See `Objective`; nobody rates an item twice, so a text is no position's target twice."""
        weight, answer = wanted
        error = weight * own - answer
        each = error.abs() if self.absolute else error.square() / (2 * weight.clamp_min(1e-12))
        return each.sum((1, 2))


def rating_records(histories: Histories, asked: Asked) -> Records:
    """Each user's ratings as a record, in the order of the users; labels in units, as they are."""
    records = block_records(histories, histories.rated, asked)
    said = records.index.answer
    if said is None:
        return records
    units = in_units(said, asked.rating_min, asked.rating_max).astype(np.float32)
    return replace(records, index=replace(records.index, answer=units))


def own_offsets(records: Records, asked: Asked, known: Known) -> np.ndarray:
    """What users' earlier ratings say of each of the records' targets, in units: (targets,) float64."""
    index, rated = records.index, records.index.histories.rated
    out = np.zeros(len(index.target))
    if rated is None:
        return out
    last = int(max(rated.before.max(initial=0), index.basket.max(initial=0))) + 2
    owner = np.repeat(np.arange(len(rated.offsets) - 1), np.diff(rated.offsets))
    of_position = np.repeat(records.user, records.until - records.at)
    begin = rated.offsets[of_position]
    end = np.searchsorted(owner * last + rated.before, of_position * last + index.basket)
    # A server could choose numbers with which the solution fails, for some data only: what is honest is within these bounds.
    prior, texts = (np.clip(np.nan_to_num(one), -1, 1) for one in (known.prior, known.texts))
    off = in_units(rated.answer, asked.rating_min, asked.rating_max) - prior[rated.items]
    for position in np.flatnonzero(end > begin):
        early, asks = slice(begin[position], end[position]), slice(*index.targets[position : position + 2])
        out[asks] = own_taste(texts[rated.items[early]], off[early], texts[index.target[asks]])
    return out


def _said(chunk: Examples) -> tuple[np.ndarray, np.ndarray]:
    if chunk.answer is None:
        raise ValueError("the records say what users did, and not how they rated it")
    return chunk.target_weight, chunk.answer
