"""Arrays on their way to a device, and the trunk's states that live there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.model.cache import States

__all__ = ["Resident", "moved"]

SHARE = 4
"""Catalogues' states live on a GPU where together they take at most one part in so many of what would be free without them."""
TEXTS_AT_ONCE = 8192
"""How many texts' states are copied at once."""


def moved(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device; where that is a GPU nobody waits for it, which from memory that is not pinned one would."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Resident:
    """The states of a catalogue on a device.

    Attributes:
        rows: (tokens + 1, hidden) float16, text after text, and a row of zeros.
        start, length: (texts,) a text's first row and its number of tokens.
    """

    rows: Tensor
    start: Tensor
    length: Tensor

    @classmethod
    def of(cls, states: States, device: torch.device, held: int) -> Resident | None:
        """All of them, or None where with the `held` bytes of others they take too much. Either way leads to the same numbers."""
        tokens, hidden = int(states.length.sum()), states.shards[0].shape[1]
        if device.type == "cuda" and held + 2 * tokens * hidden > (held + torch.cuda.mem_get_info(device)[0]) // SHARE:
            return None
        rows = torch.zeros(tokens + 1, hidden, dtype=torch.float16, device=device)
        ends = np.cumsum(states.length)
        for start in range(0, len(states), TEXTS_AT_ONCE):
            texts = np.arange(start, min(start + TEXTS_AT_ONCE, len(states)))
            part = states.rows(texts)
            rows[ends[texts[-1]] - len(part) : ends[texts[-1]]] = moved(part, device)
        return cls(rows, moved(ends - states.length, device), moved(states.length, device))

    def padded(self, texts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """(texts, tokens, hidden) float32, zeros after the end, and the mask of real tokens, (texts, tokens)."""
        within = torch.arange(tokens, device=texts.device)
        mask = within < self.length[texts][:, None]
        at = torch.where(mask, self.start[texts][:, None] + within, len(self.rows) - 1)
        return self.rows[at].float(), mask
