"""The encoder's loss: a sampled softmax over each user's own copies of its texts.

The prediction of a target is a softmax of it against negatives, which all records of a step
share. They are drawn uniformly from the public catalogue and independently of any user, so one
user's loss depends on no other user's data. Those that a user already has are masked.

It is computed in float64: a product's last bits depend on how many rows it has, and what comes
out goes into bf16, where a last bit may become the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedrec.model.adapter import HEAD_A, HEAD_B, Arrays
from fedrec.model.towers import Scoring, centred
from fedrec.training.examples import Examples

__all__ = ["Pairs", "SampledSoftmax", "layout"]


@dataclass(frozen=True)
class Pairs:
    """A chunk's own texts, one row for each (record, text), and where each is used."""

    text: np.ndarray  # (pairs,) item positions
    record: np.ndarray  # (pairs,)
    history: np.ndarray  # (records, L) pairs, or the number of pairs where there is no event
    weights: np.ndarray  # (records, P, L)
    target: np.ndarray  # (targets,) pairs


class SampledSoftmax:
    """The loss of a merchant's records under an adapter.

    Args:
        prior: (items,) log popularity.
        base: the centre, and the heads' `A`.
        trained: the heads' `B`; without them both roles are the embedding itself.
    """

    def __init__(self, prior: np.ndarray, base: Arrays, trained: Arrays, scoring: Scoring, device: torch.device) -> None:
        self.base, self.scoring, self.device = base, scoring, device
        self.prior = self._double(prior) * scoring.prior_weight
        self.heads = {role: self._double(trained[name]) for role, name in HEAD_B.items() if name in trained}

    def losses(self, own: Tensor, shared: Tensor, pairs: Pairs, chunk: Examples, negatives: np.ndarray) -> Tensor:
        """Each record's loss from its own copies of the pooled vectors, float64 of shape (records,).

        Args:
            own: (pairs, hidden).
            shared: (records, N, hidden) negatives.
            negatives: (N,) which items they are.
        """
        e = centred(own.double(), self.base)
        history, candidate = self._role(e, "history"), self._role(e, "candidate")
        # What stands for no event is nobody's text: a derivative that is not finite must stay with its record.
        history = torch.cat([history, history.new_zeros(1, history.shape[1])])
        against = self._role(centred(shared.double(), self.base), "candidate")
        weights = self._double(pairs.weights)
        users = normalize(torch.bmm(weights, history[torch.as_tensor(pairs.history)]), dim=-1)  # (records, P, hidden)
        others = torch.bmm(users, against.mT)  # (records, P, N)
        others = self.scoring.temperature * others + self.prior[torch.as_tensor(negatives)]
        record, position, item = torch.as_tensor(chunk.target, device=self.device).T
        hits = (users[record, position] * candidate[torch.as_tensor(pairs.target)]).sum(-1)  # (targets,)
        hits = self.scoring.temperature * hits + self.prior[item]
        masked = torch.as_tensor(_masked(chunk, negatives, pairs.weights.shape[1]), device=self.device)
        logits = torch.cat([hits[:, None], others.masked_fill(masked, -1e9)[record, position]], dim=1)  # (targets, 1 + N)
        losses = (torch.logsumexp(logits, dim=1) - hits) * self._double(chunk.target_weight)
        return losses.new_zeros(len(chunk)).index_add(0, record, losses)

    def _role(self, e: Tensor, role: str) -> Tensor:
        if role not in self.heads:
            return e
        return normalize(e + (e @ self._double(self.base[HEAD_A])) @ self.heads[role], dim=-1)

    def _double(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=self.device).double()


def layout(chunk: Examples, history: int) -> Pairs:
    """Lay out each record's own texts, each once: the last events of any position, and its targets."""
    used = chunk.weights.max(1) > 0  # (records, L)
    from_end = used.sum(1, keepdims=True) - np.cumsum(used, axis=1)
    keep = used & (from_end < history)
    weights = np.where(keep[:, None], chunk.weights, 0)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    record, place = np.nonzero(keep)
    texts = np.concatenate([chunk.items[record, place], chunk.target[:, 2]])
    width = int(texts.max(initial=0)) + 1
    pairs, pair = np.unique(np.concatenate([record, chunk.target[:, 0]]) * width + texts, return_inverse=True)
    history_pair = np.full(keep.shape, len(pairs))
    history_pair[record, place] = pair[: len(record)]
    return Pairs(pairs % width, pairs // width, history_pair, weights.astype(np.float32), pair[len(record) :])


def _masked(chunk: Examples, negatives: np.ndarray, positions: int) -> np.ndarray:
    """Which negatives a record has seen, or is to predict, at each position: (records, P, N) bool."""
    known = np.concatenate([chunk.seen, chunk.target])
    out = np.zeros((len(chunk), positions, len(negatives)), dtype=bool)
    order = np.argsort(negatives, kind="stable")
    start = np.searchsorted(negatives[order], known[:, 2])
    end = np.searchsorted(negatives[order], known[:, 2], side="right")
    hit = np.flatnonzero(end > start)
    for step in range(int((end - start).max(initial=0))):
        rows = hit[start[hit] + step < end[hit]]
        out[known[rows, 0], known[rows, 1], order[start[rows] + step]] = True
    return out
