"""Per-user gradients of the two heads, with the full catalogue as the softmax.

A user's gradient of a head is a few outer products and one sum over the catalogue. It is kept
in those factors: its norm, which clipping needs, and the clipped sum, which leaves, both come
from the factors, and the gradient itself (users, rank, hidden) is made for nobody but the
audit. This is ghost clipping (Goodfellow 2015, arXiv:1510.01799; Li et al., ICLR 2022, sec. 4)
for a layer whose output is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedrec.model.adapter import HEAD_A, HEAD_B, Arrays
from fedrec.model.towers import Scoring
from fedrec.training.examples import Examples

__all__ = ["Head", "HeadGradients", "HeadsTrainer", "masked_loss"]

FLOATS_IN_FLIGHT = 4_000_000
"""Bound on users * positions * items in one chunk, which bounds memory."""
ITEMS_PER_BLOCK = 4096
MOST_GRAM = 4096
"""Items up to which norms come from a Gram matrix of the catalogue, which has items^2 numbers."""
MARGIN = 1e-5
"""What float32 may have rounded, relative to the square of all that was added up."""
DENSE_FACTOR = 6
"""Pooling weights are dense where the catalogue is at most this many times the history: one
matrix product over all items is then faster than gathering each user's."""


class Head(nn.Module):
    """`normalise(e + (e A) B)` over a catalogue; only `B` (rank, hidden) is trained."""

    def __init__(self, e: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(b.clone())
        self.e, self.ea = e, e @ a

    @torch.no_grad()
    def table(self) -> Table:
        """The catalogue under the weight as it is now.

        Raises:
            ValueError: it is not finite. That depends on public numbers only, and must not be
                found out record by record.
        """
        z = self.e + self.ea @ self.weight
        length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        table = Table(z / length, self.ea / length)
        if not (torch.isfinite(table.unit).all() and torch.isfinite(table.scaled).all()):
            raise ValueError("the heads of this adapter are not finite over the catalogue")
        return table


@dataclass(frozen=True)
class Table:
    """A head's catalogue.

    Attributes:
        unit: (items, hidden) embeddings of length 1.
        scaled: (items, rank) `e A` over the length that the embedding had.
    """

    unit: Tensor
    scaled: Tensor

    @cached_property
    def gram(self) -> Tensor:
        """(items, items) inner products of the matrices scaled[j] (x) unit[j], float64."""
        scaled = self.scaled.double()
        return (scaled @ scaled.T) * (self.unit @ self.unit.T)


# For y = normalise(z), z = e + (e A) B, and g = dL/dy:  dL/dB = (eA)^T (g - y <y, g>) / |z|.
# Summed over a user's items: sum_p left[p] (x) right[p] - sum_j along[j] scaled[j] (x) unit[j].


@dataclass(frozen=True)
class HeadGradients:
    """Each record's gradient of one head, in factors.

    Attributes:
        left: (records, P, rank).
        right: (records, P, hidden), of a size near 1.
        along: (records, items).
        projected: (records, P, items) inner products of `right` and the embeddings.
        table: the catalogue.
    """

    left: Tensor
    right: Tensor
    along: Tensor
    projected: Tensor
    table: Table

    def squared_norms(self) -> Tensor:
        """(records,) squared Frobenius norms, float64, never too small.

        A server chooses the weights, and could choose them so that the sums cancel: in double
        precision, and with a margin relative to what is summed (`mass` bounds the norm by the
        triangle inequality), neither the norm nor the sum that is scaled by it loses its bound.
        """
        left, right, along = self.left.double(), self.right.double(), self.along.double()
        scaled = self.table.scaled.double()
        mass = (left.norm(dim=2) * right.norm(dim=2)).sum(1) + along.abs() @ scaled.norm(dim=1)
        if self.along.shape[1] > MOST_GRAM:
            squared = self.per_record().double().flatten(1).square().sum(1)
        else:
            first = (torch.bmm(left, left.transpose(1, 2)) * torch.bmm(right, right.transpose(1, 2))).sum((1, 2))
            cross = (along * ((left @ scaled.T) * self.projected).sum(1)).sum(1)
            second = ((along @ self.table.gram) * along).sum(1)
            squared = (first - 2 * cross + second).clamp_min(0)
        return squared + MARGIN * mass.square()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """sum over records of weights[u] times the gradient: (rank, hidden)."""
        used = weights != 0
        if not used.all():  # a row that is not finite would spoil the sum even with weight 0
            chosen = HeadGradients(self.left[used], self.right[used], self.along[used], self.projected[used], self.table)
            return chosen.weighted_sum(weights[used])
        left = (self.left * weights[:, None, None]).flatten(0, 1)
        return left.T @ self.right.flatten(0, 1) - self.table.scaled.T @ ((weights @ self.along)[:, None] * self.table.unit)

    def per_record(self) -> Tensor:
        """The gradients themselves, (records, rank, hidden)."""
        first = torch.einsum("upr,upd->urd", self.left, self.right)
        return first - _contract(self.along, self.table.scaled, self.table.unit)


def _contract(along: Tensor, scaled: Tensor, unit: Tensor) -> Tensor:
    """sum over items of along[u, j] scaled[j] (x) unit[j], as one matrix product: (users, rank, hidden)."""
    rank, hidden = scaled.shape[1], unit.shape[1]
    out = along.new_zeros(len(along), rank * hidden)
    for start in range(0, len(unit), ITEMS_PER_BLOCK):
        block = slice(start, start + ITEMS_PER_BLOCK)
        out.addmm_(along[:, block], torch.einsum("jr,jd->jrd", scaled[block], unit[block]).flatten(1))
    return out.view(-1, rank, hidden)


@dataclass(frozen=True)
class RecordGradients:
    """The gradients of a chunk of records, over all trained parameters."""

    heads: tuple[HeadGradients, ...]

    def squared_norms(self) -> Tensor:
        """(records,) of all parameters together."""
        return torch.stack([head.squared_norms() for head in self.heads]).sum(0)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """sum over records of weights[u] times the gradient, one tensor a parameter."""
        return [head.weighted_sum(weights) for head in self.heads]

    def per_record(self) -> Tensor:
        """(records, numbers): each record's gradient in one row."""
        return torch.cat([head.per_record().flatten(1) for head in self.heads], dim=1)


class HeadsTrainer:
    """The heads of one merchant's catalogue, ready for private steps.

    Args:
        e: (items, hidden) frozen item embeddings.
        prior: (items,) log popularity.
    """

    def __init__(self, e: Tensor, prior: np.ndarray, base: Arrays, trained: Arrays, scoring: Scoring) -> None:
        a = torch.as_tensor(base[HEAD_A], device=e.device)
        b = {role: torch.as_tensor(trained[name], device=e.device) for role, name in HEAD_B.items()}
        self.history, self.candidate = Head(e, a, b["history"]), Head(e, a, b["candidate"])
        self.scoring = scoring
        self.offset = torch.as_tensor(prior, device=e.device) * scoring.prior_weight

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [self.history.weight, self.candidate.weight]

    def arrays(self) -> Arrays:
        """The heads as they are now, by name."""
        heads = {"history": self.history, "candidate": self.candidate}
        return {HEAD_B[role]: head.weight.detach().cpu().numpy().copy() for role, head in heads.items()}

    def gradients(self, lot: Examples) -> Iterator[RecordGradients]:
        """The gradients of a lot's records, in chunks that fit the memory bound."""
        history, candidate = self.history.table(), self.candidate.table()
        for chunk in self._chunks(lot):
            yield self._gradients(chunk, history, candidate)

    @torch.no_grad()
    def losses(self, lot: Examples) -> Tensor:
        """Each record's loss, shape (records,); zero where a record has no target."""
        history, candidate = self.history.table(), self.candidate.table()
        parts = [masked_loss(self._scores(chunk, history, candidate).logits, chunk) for chunk in self._chunks(lot)]
        return torch.cat([self.offset.new_zeros(0), *parts])

    def _chunks(self, lot: Examples) -> Iterator[Examples]:
        size = max(1, FLOATS_IN_FLIGHT // max(1, lot.weights.shape[1] * len(self.offset)))
        for start in range(0, len(lot), size):
            yield lot.take(np.arange(start, min(start + size, len(lot))))

    def _scores(self, chunk: Examples, history: Table, candidate: Table) -> _Scores:
        items, weights = (torch.as_tensor(value, device=self.offset.device) for value in (chunk.items, chunk.weights))
        if len(self.offset) <= DENSE_FACTOR * items.shape[1]:
            dense = weights.new_zeros(*weights.shape[:2], len(self.offset))
            weights, items = dense.scatter_add_(2, items[:, None].expand_as(weights), weights), items[:, :0]
        pooled = weights @ (history.unit[items] if items.shape[1] else history.unit)  # (records, P, hidden)
        length = pooled.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        users = pooled / length
        cosines = users @ candidate.unit.T  # (records, P, items)
        return _Scores(items, weights, length, users, cosines, cosines * self.scoring.temperature + self.offset)

    @torch.no_grad()
    def _gradients(self, chunk: Examples, history: Table, candidate: Table) -> RecordGradients:
        scores = self._scores(chunk, history, candidate)
        users, cosines, weights = scores.users, scores.cosines, scores.weights
        at_cosines = _at_logits(scores.logits, chunk).mul_(self.scoring.temperature)  # (records, P, items)
        at_users = at_cosines @ candidate.unit
        at_pooled = (at_users - users * (users * at_users).sum(-1, keepdim=True)) / scores.length

        left = at_cosines @ candidate.scaled  # (records, P, rank)
        along = (at_cosines * cosines).sum(1)  # (records, items)
        of_candidate = HeadGradients(left, users, along, cosines, candidate)

        size = at_pooled.abs().amax((1, 2), keepdim=True).clamp_min(1e-30)
        right = at_pooled / size
        projected = right @ history.unit.T  # (records, P, items)
        if scores.items.shape[1]:
            dense = torch.zeros_like(projected)
            weights = dense.scatter_add_(2, scores.items[:, None].expand_as(weights), weights)
        along = (projected * weights).sum(1) * size[:, 0]
        left = (weights @ history.scaled) * size
        return RecordGradients((HeadGradients(left, right, along, projected, history), of_candidate))


@dataclass(frozen=True)
class _Scores:
    """A chunk's forward pass; `items` is empty where the pooling weights are over the whole catalogue."""

    items: Tensor
    weights: Tensor
    length: Tensor
    users: Tensor
    cosines: Tensor
    logits: Tensor


def masked_loss(logits: Tensor, chunk: Examples) -> Tensor:
    """Weighted cross-entropy of the targets with seen items masked: (records, P, items) to (records,)."""
    seen, target = (torch.as_tensor(rows, device=logits.device).T for rows in (chunk.seen, chunk.target))
    logits = logits.index_put(tuple(seen), logits.new_tensor(-1e9))
    log_total = torch.logsumexp(logits, dim=-1)  # (records, P)
    losses = log_total[target[0], target[1]] - logits[tuple(target)]
    weight = torch.as_tensor(chunk.target_weight, device=logits.device)
    return logits.new_zeros(len(logits)).index_add(0, target[0], (losses * weight).to(logits.dtype))


def _at_logits(logits: Tensor, chunk: Examples) -> Tensor:
    """The derivative of `masked_loss` by the logits, which are overwritten: (records, P, items)."""
    seen, target = (torch.as_tensor(rows, device=logits.device).T for rows in (chunk.seen, chunk.target))
    weight = torch.as_tensor(chunk.target_weight, device=logits.device).to(logits.dtype)
    logits.index_put_(tuple(seen), logits.new_tensor(-1e9))
    total = logits.new_zeros(logits.shape[:2]).index_put_((target[0], target[1]), weight, accumulate=True)
    out = torch.softmax(logits, dim=-1).mul_(total[:, :, None])
    return out.index_put_(tuple(target), -weight, accumulate=True)
