"""Per-user gradients of the encoder's LoRA.

A user expands to several texts: recent history, targets, and negatives drawn from the
public catalogue. Per-user gradients need three passes: the distinct texts go forward once; each user's loss is
differentiated with respect to its own copies of the embeddings; and those derivatives are sent back through the top
layers for each (user, text), a user's texts of one length together. The result is exact. How many records are in a chunk
and how much is kept between the passes are public sizes; what would be more is computed again.

Who else is in a lot must not change how a user's gradient is rounded, which in bf16 matters: on some processors by a
five-hundredth of it. So a processor computes in float32, batches have the sizes of `Shapes`, what is between the passes is
computed in float64, and parts are added up in the user's own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedrec.model.adapter import Arrays
from fedrec.model.cache import States
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import Scoring
from fedrec.objectives import OBJECTIVES, Examples, Lot, Objective, parts_of
from fedrec.privacy import PerRecord
from fedrec.training.sampled import SampledLoss, layout
from fedrec.training.top_layers import Kept, TopLayers

__all__ = ["EncoderTrainer", "forget_top_layers"]

FLOATS_SHARED, FLOATS_PER_RECORD, FLOATS_AHEAD = 4_000_000, 24_000_000, 128_000_000
"""Most numbers of a chunk's copies of the negatives, of anything else that a server or a record can make large, and of what
is kept for the way back of its texts, `Shapes.times` as many on a GPU: public sizes, whatever a record holds."""


class _Group(NamedTuple):
    """The distinct texts of one padded length.

    Attributes:
        texts: (texts,) which of the distinct texts.
        items: (texts,) where they are in the catalogue.
        kept: what their way back needs; None where that is too much and they go forward again.
    """

    texts: np.ndarray
    items: np.ndarray
    tokens: int
    kept: Kept | None


class EncoderTrainer:
    """The encoder of one merchant's catalogue, ready for private steps; `negatives` are set for each step.

    Args:
        states: of the catalogue's texts, and after them of what users searched for.
        prior: (items,) of the catalogue.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        states: States,
        prior: np.ndarray,
        base: Arrays,
        trained: Arrays,
        scoring: Scoring,
        *,
        history: int,
        objective: Objective = OBJECTIVES["next-item"],
    ) -> None:
        encoder.load({**base, **trained})
        self.encoder, self.states, self.items, self.parts = encoder, states, len(prior), len(parts_of(objective))
        self.history = history * self.parts  # most events of a record
        self.shapes, self.objective = encoder.shapes, objective
        # A query is no candidate, and its popularity is asked for and not used.
        prior = np.append(prior, np.full(len(states) - len(prior), prior.mean(), dtype=prior.dtype))
        self.loss = SampledLoss(prior, base, trained, scoring, encoder.device, self.shapes.records, objective)
        self.negatives = np.zeros(0, dtype=np.int64)
        modules = encoder.top.named_modules()
        self._parameters = [cast(nn.Parameter, module.weight) for name, module in modules if "lora_B." in name]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return self._parameters

    def arrays(self) -> Arrays:
        """The trained LoRA matrices as they are now, by PEFT's names."""
        return self.encoder.trained()

    def chunks(self, lot: Lot) -> Iterator[Examples]:
        """The lot in pieces of a bounded number of users."""
        hidden, negatives, times = self.encoder.hidden, len(self.negatives), self.shapes.times
        padded = lot.length * (hidden + 8 * lot.positions)  # embeddings that are pooled, and weights with what they are made of
        scored = 8 * lot.positions * (negatives + self.items)  # products, and masks by item
        pieces = 1 + (negatives + self.history) // self.shapes.texts_per_piece
        trained = pieces * sum(parameter.numel() for parameter in self.parameters())
        bounds = [FLOATS_SHARED // max(1, negatives * hidden), FLOATS_PER_RECORD // max(padded, scored, trained)]
        searched = len(self.states) > self.items
        # How long the longest query is, and how many there are, is nobody's to see: public sizes stand for them.
        longest = np.array(self.encoder.max_tokens) if searched else self.states.length
        tokens = int(self.shapes.padded(longest).max())
        texts = times * FLOATS_AHEAD // _top_layers(self.encoder).numbers(tokens)
        targets = max(1, times * FLOATS_PER_RECORD // hidden)
        most = min(self.shapes.records_per_chunk, *(times * bound for bound in bounds))
        if searched or texts < self.items:
            most = min(most, (texts - negatives) // (self.history + lot.positions))
        most = max(1, most)
        for start in range(0, len(lot), most):
            chunk = lot.take(np.arange(start, min(start + most, len(lot)))).padded()
            sums = np.cumsum(np.bincount(chunk.target[:, 0], minlength=len(chunk)))
            for records in np.split(np.arange(len(chunk)), np.flatnonzero(np.diff(sums // targets)) + 1):
                yield chunk.take(records)

    def gradients(self, lot: Lot) -> Iterator[PerRecord]:
        """The gradients of a lot's records, in chunks of a bounded number of them."""
        top = _top_layers(self.encoder)
        top.update()
        for chunk in self.chunks(lot):
            yield PerRecord(self._gradients(chunk, top))

    def _gradients(self, chunk: Examples, top: TopLayers) -> list[Tensor]:
        pairs = layout(chunk, self.history // self.parts, self.parts)
        if not len(pairs.text) and not len(self.negatives):
            # Nobody here was shown anything. A failure would tell of it.
            return [torch.zeros(len(chunk), *one.shape, device=one.device) for one in self.parameters()]
        distinct, where = np.unique(np.concatenate([pairs.text, self.negatives]), return_inverse=True)
        own, shared = np.split(where, [len(pairs.text)])
        pooled, groups = self._forward(distinct, top)
        at, at_own, at_shared = self.loss.derivatives(pooled, own, shared, pairs, chunk, self.negatives)
        asks = np.unique(chunk.target[:, 0])  # the others' gradients are zero
        keep = np.isin(pairs.record, asks)
        record = np.concatenate([pairs.record[keep], np.repeat(asks, len(shared))])
        text = np.concatenate([own[keep], np.tile(shared, len(asks))])
        source = np.concatenate([at_own[keep], at_shared[asks].ravel()])
        order = np.argsort(record, kind="stable")
        return self._backward(at, _Used(record[order], text[order], source[order], len(at) - 1, len(chunk)), groups, top)

    def _forward(self, distinct: np.ndarray, top: TopLayers) -> tuple[Tensor, list[_Group]]:
        """The pooled vectors of distinct texts, (texts, hidden), and what their way back needs."""
        padded = self.shapes.padded(self.states.length[distinct])
        pooled = torch.empty(len(distinct), self.encoder.hidden, device=self.encoder.device)
        groups, room = [], self.shapes.times * FLOATS_AHEAD
        for tokens in map(int, np.unique(padded)):
            texts, size, needed = np.flatnonzero(padded == tokens), self.shapes.texts(tokens), top.numbers(tokens)
            keep = len(texts) * needed <= room
            room -= len(texts) * needed if keep else 0
            for start in range(0, len(texts), len(texts) if keep else size):
                some = texts[start:] if keep else texts[start : start + size]
                filled = distinct[self.shapes.filled(some, tokens)]
                means, kept = top.forward(*self.encoder.gather(self.states, filled), size)
                pooled.index_copy_(0, self.encoder.moved(some), means[: len(some)])
            groups.append(_Group(texts, distinct[texts], tokens, kept if keep else None))
        return pooled, groups

    def _backward(self, at: Tensor, used: _Used, groups: list[_Group], top: TopLayers) -> list[Tensor]:
        """Each record's gradients, one tensor (records, *shape) a parameter, from derivatives by the pooled vectors."""
        texts, parameters, records = self.shapes.texts_per_piece, self.parameters(), used.records
        sizes = [one.numel() for one in parameters]
        planned = [used.pieces(group.texts, texts) for group in groups]
        if not len(used.record):
            return [torch.zeros(records, *one.shape, device=one.device) for one in parameters]
        room = max(self.shapes.texts(group.tokens) // texts for group in groups)
        room = max(room, self.shapes.times * FLOATS_PER_RECORD // sum(sizes))
        rows = records + min(room, sum(len(pieces.record) for pieces in planned))
        found = torch.empty(rows, sum(sizes), device=self.encoder.device)
        # The sums so far come first: they are added to as if all pieces were there at once.
        found[:records].zero_()
        owner = np.arange(records)
        for group, pieces in zip(groups, planned, strict=True):
            for record, own in self._pieces(at, group, pieces, top):
                if len(owner) + len(record) > rows:
                    found[:records] = self._summed(found, owner, records)
                    owner = np.arange(records)
                found[len(owner) : len(owner) + len(record)].copy_(own)
                owner = np.append(owner, record)
        parts = self._summed(found, owner, records).split(sizes, dim=1)
        return [part.reshape(-1, *one.shape) for part, one in zip(parts, parameters, strict=True)]

    def _pieces(self, at: Tensor, group: _Group, pieces: _Pieces, top: TopLayers) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Whose each piece is and its gradients, a batch at a time, each until the next."""
        if not len(pieces.record):
            return
        size, texts = self.shapes.texts(group.tokens), self.shapes.texts_per_piece
        row, source = (self.shapes.filled(one, group.tokens, capacity=False) for one in (pieces.row, pieces.source))
        place = row if group.kept is not None else np.arange(len(row)) % size
        for number, index in enumerate(self.encoder.moved(np.stack([place, source])).split(size, dim=1)):
            kept, start = group.kept, number * size
            if kept is None:
                again = group.items[row[start : start + size]]
                kept = top.forward(*self.encoder.gather(self.states, again), size)[1]
            record = pieces.record[start // texts : (start + size) // texts]
            yield record, top.backward(kept, at, index, texts)[: len(record)]

    def _summed(self, found: Tensor, owner: np.ndarray, records: int) -> Tensor:
        """Sums of each record's rows of `found`, one after the other: (records, numbers)."""
        order, counts = np.argsort(owner, kind="stable"), np.bincount(owner, minlength=records)
        rows = found.index_select(0, self.encoder.moved(order))
        return torch.segment_reduce(rows, "sum", lengths=self.encoder.moved(counts), axis=0, unsafe=True, initial=0.0)


_TOPS: WeakKeyDictionary[TextEncoder, dict[torch.dtype, TopLayers]] = WeakKeyDictionary()


def _top_layers(encoder: TextEncoder) -> TopLayers:
    """One for an encoder and a precision: what it has recorded is of use in every round."""
    known, dtype = _TOPS.setdefault(encoder, {}), encoder.training_dtype
    if dtype not in known:
        known[dtype] = TopLayers(encoder.top, dtype)
    return known[dtype]


def forget_top_layers() -> None:
    """Nothing of them is kept on a device any more; the next step makes them anew."""
    _TOPS.clear()


class _Pieces(NamedTuple):
    """Texts of one padded length, so many of one record together; where there are fewer, others of its own that count as zero.

    Attributes:
        record: (pieces,) whose each is.
        row: (pieces * texts,) which text of the group.
        source: (pieces * texts,) which derivative.
    """

    record: np.ndarray
    row: np.ndarray
    source: np.ndarray


class _Used(NamedTuple):
    """Which texts each record uses, sorted by record: (pairs,) each, and how many records there are.

    `source` is where the derivative by that copy of the text is; the last of all derivatives is zero and nobody's.
    """

    record: np.ndarray
    text: np.ndarray
    source: np.ndarray
    zero: int
    records: int

    def pieces(self, texts: np.ndarray, size: int) -> _Pieces:
        """The pairs of these texts, in a record's own order."""
        row = np.full(int(self.text.max(initial=0)) + 1, -1)
        row[texts[texts < len(row)]] = np.flatnonzero(texts < len(row))
        here = np.flatnonzero(row[self.text] >= 0)
        record, own = self.record[here], row[self.text[here]]
        starts = np.flatnonzero(np.diff(record, prepend=-1))
        place = np.arange(len(record)) - np.repeat(starts, np.diff(starts, append=len(record)))
        first = place % size == 0
        slot = (np.cumsum(first) - 1) * size + place % size
        rows, source = np.repeat(own[first], size), np.full(int(first.sum()) * size, self.zero)
        rows[slot], source[slot] = own, self.source[here]
        return _Pieces(record[first], rows, source)
