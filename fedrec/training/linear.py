"""The linear terms of a score, beside the heads: what they add, and each record's gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from fedrec.model.towers import linear_terms

__all__ = ["Linear"]


class Linear:
    """`fedrec.model.towers.linear_terms` over a catalogue.

    A record's gradient is `at @ features` summed over its pairs, with the frozen embeddings as features: small enough to be made
    as it is.

    Args:
        weight: (2, hidden + 1).
        e: (items, hidden) frozen embeddings.
        prior: (items,) log popularity.
    """

    def __init__(self, weight: np.ndarray, e: Tensor, prior: np.ndarray) -> None:
        self.weight = nn.Parameter(torch.tensor(weight, device=e.device))
        popularity = linear_terms(weight, prior)[-1]
        self.e, self.popularity = e, torch.as_tensor(popularity, device=e.device, dtype=e.dtype)

    @torch.no_grad()
    def add(
        self, scores: Tensor, items: Tensor, weights: Tensor, asked: Tensor | None = None, asked_weights: Tensor | None = None
    ) -> Tensor:
        """Add them to scores (records, P, items), which are changed.

        Args:
            items: (records, L) history.
            weights: (records, P, L) its pooling weights.
            asked, asked_weights: (records, room, hidden) embeddings of searches that are history too, and (records, P, room).

        Returns:
            Mean embeddings of the histories, (records, P, hidden).
        """
        user, item = self.weight
        means = weights @ embedding(items, self.e)
        if asked is not None and asked_weights is not None:
            means = means + asked_weights @ asked
        # Not a product of matrix and vector: that rounds a row by where it stands.
        scores.add_((means * user[:-1]).sum(2)[:, :, None])
        scores.add_(self.e @ item[:-1] + user[-1] + item[-1] * self.popularity)
        return means

    def gradients(self, at_scores: Tensor, means: Tensor) -> Tensor:
        """Each record's, (records, 2, hidden + 1), from derivatives by the scores (records, P, items)."""
        of_users, of_items = at_scores.sum(2), at_scores.sum(1)
        user = torch.cat([(of_users[:, :, None] * means).sum(1), of_users.sum(1, keepdim=True)], dim=1)
        item = torch.cat([of_items @ self.e, (of_items * self.popularity).sum(1, keepdim=True)], dim=1)
        return torch.stack([user, item], dim=1)
