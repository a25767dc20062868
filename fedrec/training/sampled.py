"""The encoder's loss: what an objective says of the scores of each user's own copies of its texts.

Besides its own texts a record has the negatives, which all records of a step share. They are drawn uniformly
from the public catalogue and independently of any user, so one user's loss depends on no other user's
data. Which of them a user already has, the objective is told.

It is computed in float64: a product's last bits depend on how many rows it has, and what comes
out goes into bf16, where a last bit may become the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, TERMS, Arrays
from fedrec.model.devices import moved
from fedrec.model.graphs import Graphs
from fedrec.model.towers import Scoring, linear_terms
from fedrec.objectives import OBJECTIVES, Examples, Objective, parts_of

__all__ = ["Pairs", "SampledLoss", "layout"]

WIDTH = 32
"""The least room for a record's own texts, which is doubled until they fit."""
PLACES, BATCHES = 4096, 8
"""Most room for texts in a batch of more than one record, and most batches that are planned at once."""
_GRAPHS = Graphs(kept=False)


@dataclass(frozen=True)
class Pairs:
    """A chunk's own texts, one row for each (record, text), and where each is used."""

    text: np.ndarray  # (pairs,) item positions
    record: np.ndarray  # (pairs,)
    history: np.ndarray  # (records, L) pairs, or the number of pairs where there is no event
    weights: np.ndarray  # (records, P, L)
    target: np.ndarray  # (targets,) pairs


class SampledLoss:
    """The loss of a merchant's records under an adapter.

    Args:
        prior: (items,) log popularity.
        base: the centre, and the heads' `A`.
        trained: the heads' `B`, without which both roles are the embedding itself; and the linear terms if there are any.
        records: how many records' derivatives are computed at once, empty ones included, where `PLACES` allows it; 0 for
            those that there are.
        objective: what is asked of the scores; `scoring` has as many parts as it has.
    """

    def __init__(
        self, prior: np.ndarray, base: Arrays, trained: Arrays, scoring: Scoring, device: torch.device, records: int = 0,
        objective: Objective = OBJECTIVES["next-item"],
    ) -> None:  # fmt: skip
        self.scoring, self.device, self.records, self.objective = scoring, device, records, objective
        self.prior = np.stack([prior.astype(np.float64) * part.prior_weight + part.bias for part in scoring.parts])
        fixed = [base[CENTRE]]
        if objective.terms:
            user, item, by_item, _ = linear_terms(trained[TERMS].astype(np.float64), prior.astype(np.float64))
            self.prior[[part.terms for part in parts_of(objective)]] += by_item
            fixed += [user, item]
        fixed += [one for name in HEAD_B.values() if name in trained for one in (base[HEAD_A], trained[name])]
        self.weights = [self._moved(value).double() for value in fixed]

    def losses(self, own: Tensor, shared: Tensor, pairs: Pairs, chunk: Examples, negatives: np.ndarray) -> Tensor:
        """Each record's loss from its own copies of the pooled vectors, float64 of shape (records,).

        Args:
            own: (pairs, hidden).
            shared: (records, N, hidden) negatives.
            negatives: (N,) which items they are.
        """
        out = own.new_zeros(len(chunk), dtype=torch.float64)
        for slots in self._slots(pairs, chunk, negatives, 0):
            records, at, pair = (self._moved(values) for values in (slots.records, slots.at, slots.pair))
            texts = own.new_zeros(len(records) * slots.shape.own, own.shape[1]).index_copy(0, at, own[pair])
            losses = _losses(texts, shared[records], self._moved(slots.plan[0]), *self.weights, shape=slots.shape)
            out = out.index_copy(0, records, losses)
        return out

    def derivatives(
        self, pooled: Tensor, own: np.ndarray, shared: np.ndarray, pairs: Pairs, chunk: Examples, negatives: np.ndarray
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The losses' derivatives by each record's own copies of the pooled vectors.

        Args:
            pooled: (texts, hidden) float32.
            own, shared: (pairs,) and (N,), which texts they are.

        Returns:
            Derivatives (rows, hidden) float32, the last row zero; where the pairs' are, (pairs,); and where each record's
            of the negatives are, (records, N).
        """
        against = pooled.index_select(0, self._moved(shared))
        found, rows = [], 0
        at_own, at_shared = np.zeros(len(pairs.text), dtype=np.int64), np.zeros((len(chunk), len(shared)), dtype=np.int64)
        for slots in self._slots(pairs, chunk, negatives, self.records):
            shape = slots.shape
            text = np.zeros(len(slots.plan) * shape.records * shape.own, dtype=np.int64)
            text[slots.at] = own[slots.pair]  # in an empty place is any text: what comes of it is not used
            texts, plans = self._moved(text).view(len(slots.plan), -1), self._moved(slots.plan)
            block = shape.records * (shape.own + shape.shared)
            size = shape.records * shape.own
            at_own[slots.pair] = rows + slots.at // size * block + slots.at % size
            number = np.arange(len(slots.records))
            first = rows + number // shape.records * block + size + number % shape.records * shape.shared
            at_shared[slots.records] = first[:, None] + np.arange(shape.shared)
            rows += len(slots.plan) * block
            for some, plan in zip(texts, plans, strict=True):
                inputs = (pooled.index_select(0, some), against, plan, *self.weights)
                found.append(_GRAPHS(shape, partial(_derivatives, shape=shape), inputs).clone())
        return torch.cat([*found, pooled.new_zeros(1, pooled.shape[1])]), at_own, at_shared

    def _slots(self, pairs: Pairs, chunk: Examples, negatives: np.ndarray, size: int) -> Iterator[_Slots]:
        """The records by the room that their own texts need, up to `size` in a batch, or those that there are where it is 0."""
        counts = np.bincount(pairs.record, minlength=len(chunk))
        # A record has room for its own texts by their number alone: how a product is rounded depends on its shape.
        widths = WIDTH << np.ceil(np.log2(np.maximum(counts, WIDTH) / WIDTH)).astype(np.int64)
        place = np.arange(len(pairs.text)) - np.repeat(np.cumsum(counts) - counts, counts)
        masked, wanted = _masked(chunk, negatives, pairs.weights.shape[1]), self.objective.wanted(chunk)
        for width in np.unique(widths):
            same, most = np.flatnonzero(widths == width), max(1, PLACES // int(width))
            batch = min(size, most)
            planned = BATCHES * batch if size else most
            for start in range(0, len(same), planned):
                records = same[start : start + planned]
                shape = Shape(
                    batch or len(records), pairs.weights.shape[1], int(width), len(negatives),
                    tuple(part.temperature for part in self.scoring.parts), self.objective, len(wanted),
                )  # fmt: skip
                yield _slots(pairs, chunk, records, place, masked, wanted, self.prior, negatives, shape)

    def _moved(self, values: np.ndarray) -> Tensor:
        return moved(values, self.device)


class Shape(NamedTuple):
    """Of a batch: records, positions, places for a record's own texts, negatives; the temperature of each part; the objective,
    and how many numbers it wants of a target."""

    records: int
    positions: int
    own: int
    shared: int
    temperature: tuple[float, ...]
    objective: Objective
    wanted: int

    @property
    def parts(self) -> int:
        """Of the objective."""
        return len(self.temperature)

    def scaled(self, cosines: Tensor) -> Tensor:
        """(records, P, ...) times the temperature of each position's part."""
        cut = zip(self.temperature, cosines.chunk(self.parts, dim=1), strict=True)
        found = [scale * own for scale, own in cut]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


class _Slots(NamedTuple):
    """Some records' own texts in so many places each.

    Attributes:
        records: (records,) which.
        pair, at: (pairs,) which pairs they are, and their places, counted through all batches.
        plan: (batches, numbers) float64, what `_losses` takes apart.
    """

    records: np.ndarray
    pair: np.ndarray
    at: np.ndarray
    plan: np.ndarray
    shape: Shape


def _slots(
    pairs: Pairs, chunk: Examples, records: np.ndarray, place: np.ndarray, masked: np.ndarray,
    wanted: Sequence[np.ndarray], prior: np.ndarray, negatives: np.ndarray, shape: Shape,
) -> _Slots:  # fmt: skip
    size = -(-len(records) // shape.records) * shape.records
    number = np.full(len(chunk), -1)
    number[records] = np.arange(len(records))
    pair = np.flatnonzero(number[pairs.record] >= 0)
    at = number[pairs.record[pair]] * shape.own + place[pair]
    priors, empty = np.zeros((size * shape.own, shape.parts)), np.ones(size * shape.own)
    priors[at], empty[at] = prior[:, pairs.text[pair]].T, 0

    def spread(record: np.ndarray, position: np.ndarray, of: np.ndarray, values: np.ndarray) -> np.ndarray:
        where = (number[record] * shape.positions + position) * shape.own + place[of]
        return np.bincount(where, values, size * shape.positions * shape.own)

    record, event = np.nonzero((pairs.history < len(pairs.text)) & (number >= 0)[:, None])
    owner, position = np.repeat(record, shape.positions), np.tile(np.arange(shape.positions), len(record))
    event = np.repeat(event, shape.positions)
    weights = spread(owner, position, pairs.history[owner, event], pairs.weights[owner, position, event])
    target = np.flatnonzero(number[chunk.target[:, 0]] >= 0)
    asked = [spread(chunk.target[target, 0], chunk.target[target, 1], pairs.target[target], values[target]) for values in wanted]
    hidden = np.zeros((size, *masked.shape[1:]))
    hidden[: len(records)] = masked[records]
    by_record = np.concatenate([one.reshape(size, -1) for one in (weights, *asked, hidden, priors, empty)], axis=1)
    by_batch = by_record.reshape(-1, shape.records * by_record.shape[1])
    of_negatives = prior[:, negatives].reshape(-1)
    plan = np.concatenate([by_batch, np.broadcast_to(of_negatives, (len(by_batch), len(of_negatives)))], axis=1)
    return _Slots(records, pair, at, plan, shape)


def _losses(own: Tensor, shared: Tensor, plan: Tensor, centre: Tensor, *fixed: Tensor, shape: Shape) -> Tensor:
    """(records,) float64 from (records * K, hidden), (records, N, hidden) and what `_slots` has planned."""
    each = shape.positions // shape.parts
    numbers, prior = plan.split([len(plan) - shape.parts * shape.shared, shape.parts * shape.shared])
    prior = prior.view(shape.parts, -1).repeat_interleave(each, dim=0)  # (P, N)
    scored, against = shape.positions * shape.own, shape.positions * shape.shared
    sizes = [scored] * (1 + shape.wanted) + [against, shape.own * shape.parts, shape.own]
    *by_position, priors, empty = numbers.view(shape.records, -1).split(sizes, dim=1)
    weights, *wanted, masked = (one.unflatten(1, (shape.positions, -1)) for one in by_position)

    def role(e: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return normalize(e + (e @ a) @ b, dim=-1)

    terms, roles = (fixed[:2], fixed[2:]) if shape.objective.terms else ((), fixed)
    e = normalize(own.double() - centre, dim=-1).unflatten(0, (shape.records, -1))
    others = normalize(shared.double() - centre, dim=-1)
    history, candidate = (role(e, *roles[:2]), role(e, *roles[2:])) if roles else (e, e)
    others = role(others, *roles[2:]) if roles else others
    # Where there is no text is nobody's: what is not finite must stay with its record.
    nobody = empty[:, :, None] != 0
    history, candidate = history.masked_fill(nobody, 0.0), candidate.masked_fill(nobody, 0.0)
    users = normalize(torch.bmm(weights.contiguous(), history), dim=-1)  # (records, P, hidden)
    priors = priors.unflatten(1, (shape.own, -1)).mT.repeat_interleave(each, dim=1)
    hits = shape.scaled(torch.bmm(users, candidate.mT)) + priors  # (records, P, K)
    scores = shape.scaled(torch.bmm(users, others.mT)) + prior  # (records, P, N)
    if terms:
        e = e.masked_fill(nobody, 0.0)
        linear = torch.bmm(weights, e) @ terms[0][:, None] + (e @ terms[1])[:, None]
        cut = zip(parts_of(shape.objective), hits.chunk(shape.parts, dim=1), linear.chunk(shape.parts, dim=1), strict=True)
        hits = torch.cat([own + more if part.terms else own for part, own, more in cut], dim=1)
    return shape.objective.sampled_losses(hits, scores, masked != 0, wanted)


def _derivatives(own: Tensor, shared: Tensor, plan: Tensor, *weights: Tensor, shape: Shape) -> Tensor:
    """By (records * K, hidden) and then by each record's copies of (N, hidden): (records * (K + N), hidden)."""
    with torch.enable_grad():
        own = own.detach().requires_grad_(True)
        copies = shared.detach().expand(shape.records, -1, -1).requires_grad_(True)
        total = _losses(own, copies, plan, *weights, shape=shape).sum()
    # What is not in an objective's loss has the derivative zero.
    found = torch.autograd.grad(total, (own, copies), materialize_grads=True)
    return torch.cat([found[0], found[1].flatten(0, 1)])


def layout(chunk: Examples, history: int, parts: int = 1) -> Pairs:
    """Lay out each record's own texts, each once: the last events of any position of each part, and its targets."""
    used = (chunk.weights.max(1) > 0).reshape(len(chunk), parts, chunk.length // parts)  # (records, parts, L of a part)
    from_end = used.sum(2, keepdims=True) - np.cumsum(used, axis=2)
    keep = (used & (from_end < history)).reshape(chunk.items.shape)
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
