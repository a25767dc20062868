"""Several objectives of one adapter: a user's loss is the weighted sum of the parts' losses.

Each part has its own record of a user, its own numbers of the score, and as many positions as the others. A joint record has
the parts' positions one after the other, and their events side by side. So it is a record like any other to the trainers: its
gradient is that of the sum, and its norm, the cross terms between the parts included, is that of one record with more positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedrec.data import Histories
from fedrec.objectives.examples import Examples
from fedrec.objectives.joint import Lot, is_of_part, joint_records, of_part
from fedrec.objectives.objective import Asked, Known, Objective

__all__ = ["Several", "parts_of"]

_NONE = np.zeros((0, 3), dtype=np.int64)
_NOTHING = Examples(_NONE[:, :1], np.zeros((0, 1, 1)), _NONE, np.zeros(0), _NONE, np.zeros(0))
"""Of nobody: how many arrays an objective wants is the same for all records."""


@dataclass(frozen=True)
class Several:
    """A weighted sum of objectives; an `Objective`. `parts` have as many positions each."""

    parts: tuple[Objective, ...]

    @property
    def name(self) -> str:
        """The parts' names, joined by `+`."""
        return "+".join(part.name for part in self.parts)

    @property
    def negatives(self) -> bool:
        """Whether a part needs them."""
        return any(part.negatives for part in self.parts)

    @property
    def terms(self) -> bool:
        """Whether a part's score has them."""
        return any(part.terms for part in self.parts)

    @property
    def rates(self) -> bool:
        """Whether a part is about ratings."""
        return any(part.rates for part in self.parts)

    def records(self, histories: Histories, asked: Asked, known: Known | None = None) -> Lot:
        """See `Objective`."""
        parts = [
            part.records(histories, replace(asked, decay=decay, merge=False), known)
            for part, decay in zip(self.parts, asked.decays, strict=True)
        ]
        return joint_records(parts, asked.weights, asked.merge)

    def losses(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        parts = zip(self.parts, scores.chunk(len(self.parts), dim=1), strict=True)
        found = [part.losses(own, of_part(chunk, number, len(self.parts))) for number, (part, own) in enumerate(parts)]
        return torch.stack(found).sum(0)

    def at_scores(self, scores: Tensor, chunk: Examples) -> Tensor:
        """See `Objective`."""
        for number, (part, own) in enumerate(zip(self.parts, scores.chunk(len(self.parts), dim=1), strict=True)):
            own.copy_(part.at_scores(own.contiguous(), of_part(chunk, number, len(self.parts))))
        return scores

    def wanted(self, chunk: Examples) -> Sequence[np.ndarray]:
        """What each part wants of its own targets, and 0 of the others'."""
        out = []
        for number, part in enumerate(self.parts):
            own = is_of_part(chunk.target, number, chunk.positions // len(self.parts))
            for values in part.wanted(of_part(chunk, number, len(self.parts))):
                out.append(np.zeros(len(chunk.target), dtype=values.dtype))
                out[-1][own] = values
        return out

    def sampled_losses(self, own: Tensor, negatives: Tensor, masked: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """See `Objective`."""
        count, found, first = len(self.parts), [], 0
        cut = zip(self.parts, *(one.chunk(count, dim=1) for one in (own, negatives, masked)), strict=True)
        for number, (part, *of_own) in enumerate(cut):
            last = first + len(part.wanted(_NOTHING))
            mine = [one.chunk(count, dim=1)[number] for one in wanted[first:last]]
            found.append(part.sampled_losses(of_own[0], of_own[1], of_own[2], mine))
            first = last
        return torch.stack(found).sum(0)


def parts_of(objective: Objective) -> tuple[Objective, ...]:
    """The parts of a sum, or the objective alone."""
    return objective.parts if isinstance(objective, Several) else (objective,)
