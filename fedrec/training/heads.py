"""Per-user gradients of the two heads, with the full catalogue as the softmax.

Both heads are layers that Opacus knows how to differentiate user by user: a module each,
with a grad sampler registered on it. Nothing of size (users, items, hidden) is ever made:
a user's gradient is contracted from quantities of size (items, rank) and (users, items).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedrec.model.adapter import HEAD_A, HEAD_B, Arrays
from fedrec.model.towers import Scoring
from fedrec.training.examples import Examples

__all__ = ["CandidateScores", "HeadsTrainer", "HistoryPool", "masked_loss"]

FLOATS_IN_FLIGHT = 16_000_000
"""Bound on users * positions * items in one chunk, which bounds memory."""
ITEMS_PER_BLOCK = 4096
DENSE_FACTOR = 6
"""Pooling weights are dense where the catalogue is at most this many times the history: one
matrix product over all items is then faster than gathering each user's."""


class _Head(nn.Module):
    """`normalise(e + (e A) B)` over a catalogue; only `B` (rank, hidden) is trained."""

    def __init__(self, e: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(b.clone())
        # Plain attributes: Opacus takes buffers for batch statistics and refuses them.
        self.e, self.ea = e, e @ a

    @torch.no_grad()
    def table(self) -> tuple[Tensor, Tensor]:
        """Embeddings (items, hidden) of unit length, and `e A` over their lengths before (items, rank).

        Outside the graph: the grad samplers below have the derivative in closed form, and
        autograd's own would cost several times as much for a sum that nobody reads.
        """
        z = self.e + self.ea @ self.weight
        length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return z / length, self.ea / length


class HistoryPool(_Head):
    """Pooling weights, dense or sparse, to pooled vectors (users, P, hidden), not normalised."""

    def forward(self, items: Tensor, weights: Tensor) -> Tensor:
        """Sparse: (users, L) items and (users, P, L) weights; dense: no items (users, 0), weights (users, P, items)."""
        table = self.table()[0]
        pooled = weights @ (table[items] if items.shape[1] else table)
        # Opacus sees a layer through the graph, so the weight has to be in it.
        return pooled + 0 * self.weight.sum()


class CandidateScores(_Head):
    """User vectors (users, P, hidden) to their cosines with every item (users, P, items)."""

    def forward(self, users: Tensor) -> Tensor:
        """`users` has unit length."""
        return users @ self.table()[0].T


# For y = normalise(z), z = e + (e A) B, and g = dL/dy:  dL/dB = (eA)^T (g - y <y, g>) / |z|.


@register_grad_sampler(HistoryPool)
def _history_gradients(layer: HistoryPool, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    items, weights = activations
    table, scaled = layer.table()  # (items, hidden), (items, rank)
    if not items.shape[1]:
        along = ((backprops @ table.T) * weights).sum(1)  # (users, items)
        second = _contract(along, scaled, table)
    else:
        table, scaled = table[items], scaled[items]  # (users, L, hidden), (users, L, rank)
        along = (torch.bmm(backprops, table.transpose(1, 2)) * weights).sum(1)  # (users, L)
        second = torch.bmm((scaled * along[:, :, None]).transpose(1, 2), table)
    first = torch.einsum("upr,upd->urd", weights @ scaled, backprops)
    return {layer.weight: first - second}


@register_grad_sampler(CandidateScores)
def _candidate_gradients(layer: CandidateScores, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    users = activations[0]
    table, scaled = layer.table()  # (items, hidden), (items, rank)
    first = torch.einsum("upr,upd->urd", backprops @ scaled, users)
    along = (backprops * (users @ table.T)).sum(1)  # (users, items)
    return {layer.weight: first - _contract(along, scaled, table)}


def _contract(along: Tensor, scaled: Tensor, table: Tensor) -> Tensor:
    """sum over items of along[u, j] scaled[j] (x) table[j], as one matrix product: (users, rank, hidden)."""
    rank, hidden = scaled.shape[1], table.shape[1]
    out = along.new_zeros(len(along), rank * hidden)
    for start in range(0, len(table), ITEMS_PER_BLOCK):
        block = slice(start, start + ITEMS_PER_BLOCK)
        out.addmm_(along[:, block], torch.einsum("jr,jd->jrd", scaled[block], table[block]).flatten(1))
    return out.view(-1, rank, hidden)


class HeadsTrainer:
    """The heads of one merchant's catalogue, ready for private steps.

    Args:
        e: (items, hidden) frozen item embeddings.
        prior: (items,) log popularity.
    """

    def __init__(self, e: Tensor, prior: np.ndarray, base: Arrays, trained: Arrays, scoring: Scoring) -> None:
        a = torch.as_tensor(base[HEAD_A], device=e.device)
        b = {role: torch.as_tensor(trained[name], device=e.device) for role, name in HEAD_B.items()}
        self.history, self.candidate = HistoryPool(e, a, b["history"]), CandidateScores(e, a, b["candidate"])
        self.module = nn.ModuleList([self.history, self.candidate])
        self.scoring = scoring
        self.offset = torch.as_tensor(prior, device=e.device) * scoring.prior_weight

    def watch(self) -> GradSampleModule:
        """Opacus's hooks on the heads; call once."""
        return GradSampleModule(self.module, loss_reduction="sum", strict=False)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [self.history.weight, self.candidate.weight]

    def arrays(self) -> Arrays:
        """The heads as they are now, by name."""
        heads = {"history": self.history, "candidate": self.candidate}
        return {HEAD_B[role]: head.weight.detach().cpu().numpy().copy() for role, head in heads.items()}

    def chunks(self, lot: Examples) -> Iterator[Examples]:
        """The lot in pieces that fit the memory bound."""
        size = max(1, FLOATS_IN_FLIGHT // max(1, lot.weights.shape[1] * len(self.offset)))
        for start in range(0, len(lot), size):
            yield lot.take(np.arange(start, min(start + size, len(lot))))

    def gradients(self, chunk: Examples) -> None:
        """Leave each record's gradient in `grad_sample`, shape (records, rank, hidden)."""
        with warnings.catch_warnings():
            # The history's inputs are data, so only its output has a gradient; torch warns of that.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self.losses(chunk).sum().backward()

    def losses(self, chunk: Examples) -> Tensor:
        """Each record's loss, shape (records,); zero where a record has no target."""
        device = self.offset.device
        items, weights = torch.as_tensor(chunk.items, device=device), torch.as_tensor(chunk.weights, device=device)
        if len(self.offset) <= DENSE_FACTOR * items.shape[1]:
            dense = weights.new_zeros(*weights.shape[:2], len(self.offset))
            weights = dense.scatter_add_(2, items[:, None].expand_as(weights), weights)
            items = items[:, :0]
        users = normalize(self.history(items, weights), dim=-1)  # (records, P, hidden)
        cosines = self.candidate(users)  # (records, P, items)
        return masked_loss(cosines * self.scoring.temperature + self.offset, chunk)


def masked_loss(logits: Tensor, chunk: Examples) -> Tensor:
    """Weighted cross-entropy of the targets with seen items masked: (records, P, items) to (records,)."""
    seen, target = (torch.as_tensor(rows, device=logits.device).T for rows in (chunk.seen, chunk.target))
    logits = logits.index_put(tuple(seen), logits.new_tensor(-1e9))
    log_total = torch.logsumexp(logits, dim=-1)  # (records, P)
    losses = log_total[target[0], target[1]] - logits[tuple(target)]
    weight = torch.as_tensor(chunk.target_weight, device=logits.device)
    return logits.new_zeros(len(logits)).index_add(0, target[0], (losses * weight).to(logits.dtype))
