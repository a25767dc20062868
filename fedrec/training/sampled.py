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

from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, Arrays
from fedrec.model.devices import moved
from fedrec.model.towers import Scoring
from fedrec.training.examples import Examples

__all__ = ["Pairs", "SampledSoftmax", "layout"]

WIDTH = 32
"""The least room for a record's own texts, which is doubled until they fit."""


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
        records: how many records are computed at once, empty ones included; 0 for those that there are.
    """

    def __init__(
        self, prior: np.ndarray, base: Arrays, trained: Arrays, scoring: Scoring, device: torch.device, records: int = 0
    ) -> None:
        self.scoring, self.device, self.records = scoring, device, records
        self.prior = prior.astype(np.float64) * scoring.prior_weight
        self.centre = self._moved(base[CENTRE]).double()
        self.heads = {
            role: (self._moved(base[HEAD_A]).double(), self._moved(trained[name]).double())
            for role, name in HEAD_B.items()
            if name in trained
        }

    def losses(self, own: Tensor, shared: Tensor, pairs: Pairs, chunk: Examples, negatives: np.ndarray) -> Tensor:
        """Each record's loss from its own copies of the pooled vectors, float64 of shape (records,).

        Args:
            own: (pairs, hidden).
            shared: (records, N, hidden) negatives.
            negatives: (N,) which items they are.
        """
        counts = np.bincount(pairs.record, minlength=len(chunk))
        # A record has room for its own texts by their number alone: how a product is rounded depends on its shape.
        widths = WIDTH << np.ceil(np.log2(np.maximum(counts, WIDTH) / WIDTH)).astype(np.int64)
        masked = _masked(chunk, negatives, pairs.weights.shape[1])
        out = own.new_zeros(len(chunk), dtype=torch.float64)
        for width in np.unique(widths):
            records = np.flatnonzero(widths == width)
            size = max(len(records), self.records)
            slots = _slots(pairs, chunk, records, int(width), size)
            rows, at, pair = (self._moved(values) for values in (records, slots.at, slots.pair))
            texts = own.new_zeros(size * slots.width, own.shape[1]).index_copy(0, at, own[pair]).double()
            others = shared
            if size > len(shared) or len(records) < len(shared):
                first = torch.arange(len(records), device=self.device)
                others = shared.new_zeros(size, *shared.shape[1:]).index_copy(0, first, shared[rows])
            hidden = np.zeros((size, *masked.shape[1:]), dtype=bool)
            hidden[: len(records)] = masked[records]
            losses = self._losses(texts.unflatten(0, (size, -1)), others.double(), slots, hidden, negatives)
            out = out.index_copy(0, rows, losses[: len(records)])
        return out

    def _losses(self, own: Tensor, shared: Tensor, slots: _Slots, masked: np.ndarray, negatives: np.ndarray) -> Tensor:
        """(records,) from (records, K, hidden) and (records, N, hidden)."""
        e = normalize(own - self.centre, dim=-1)
        # Where there is no text is nobody's: what is not finite must stay with its record.
        empty = self._moved(slots.empty)[:, :, None]
        history, candidate = (self._role(e, role).masked_fill(empty, 0.0) for role in ("history", "candidate"))
        against = self._role(normalize(shared - self.centre, dim=-1), "candidate")
        users = normalize(torch.bmm(self._moved(slots.weights), history), dim=-1)  # (records, P, hidden)
        prior = self._moved(self.prior[slots.item])[:, None], self._moved(self.prior[negatives])
        hits = self.scoring.temperature * torch.bmm(users, candidate.mT) + prior[0]  # (records, P, K)
        others = self.scoring.temperature * torch.bmm(users, against.mT) + prior[1]  # (records, P, N)
        total = torch.logsumexp(others.masked_fill(self._moved(masked), -1e9), dim=-1, keepdim=True)
        return ((torch.logaddexp(hits, total) - hits) * self._moved(slots.wanted)).sum((1, 2))

    def _role(self, e: Tensor, role: str) -> Tensor:
        if role not in self.heads:
            return e
        a, b = self.heads[role]
        return normalize(e + (e @ a) @ b, dim=-1)

    def _moved(self, values: np.ndarray) -> Tensor:
        return moved(values, self.device)


@dataclass(frozen=True)
class _Slots:
    """Some records' own texts in K places a record, records that are empty after them.

    Attributes:
        pair, at: (pairs,) which pairs they are, and their places among (records * K).
        empty: (records, K) bool, where there is no text.
        item: (records, K) items, 0 where there is none.
        weights: (records, P, K) float64, how much of each text is pooled.
        wanted: (records, P, K) float64, how much each counts as a target.
    """

    pair: np.ndarray
    at: np.ndarray
    empty: np.ndarray
    item: np.ndarray
    weights: np.ndarray
    wanted: np.ndarray

    @property
    def width(self) -> int:
        """K."""
        return self.item.shape[1]


def _slots(pairs: Pairs, chunk: Examples, records: np.ndarray, width: int, size: int) -> _Slots:
    number = np.full(len(chunk) + 1, -1)
    number[records] = np.arange(len(records))
    counts = np.bincount(pairs.record, minlength=len(chunk))
    place = np.arange(len(pairs.text)) - np.repeat(np.cumsum(counts) - counts, counts)
    pair = np.flatnonzero(number[pairs.record] >= 0)
    at = number[pairs.record[pair]] * width + place[pair]
    item, empty = np.zeros(size * width, dtype=np.int64), np.ones(size * width, dtype=bool)
    item[at], empty[at] = pairs.text[pair], False

    positions = pairs.weights.shape[1]

    def spread(record: np.ndarray, position: np.ndarray, of: np.ndarray, values: np.ndarray) -> np.ndarray:
        where = (number[record] * positions + position) * width + place[of]
        return np.bincount(where, values, size * positions * width).reshape(size, positions, width)

    record, event = np.nonzero((pairs.history < len(pairs.text)) & (number[:-1] >= 0)[:, None])
    owner, position = np.repeat(record, positions), np.tile(np.arange(positions), len(record))
    event = np.repeat(event, positions)
    weights = spread(owner, position, pairs.history[owner, event], pairs.weights[owner, position, event])
    target = np.flatnonzero(number[chunk.target[:, 0]] >= 0)
    record, position = chunk.target[target, 0], chunk.target[target, 1]
    wanted = spread(record, position, pairs.target[target], chunk.target_weight[target])
    return _Slots(pair, at, empty.reshape(size, width), item.reshape(size, width), weights, wanted)


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
