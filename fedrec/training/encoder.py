"""Per-user gradients of the encoder's LoRA.

A user expands to several texts: recent history, targets, and negatives drawn from the
public catalogue. Per-user gradients need three passes: the distinct texts go forward once; each user's loss is
differentiated with respect to its own copies of the embeddings; and those derivatives are sent back through the top
layers for each (user, text), a user's texts of one length together. The result is exact, and memory is bounded by the
number of records in a chunk and of texts in a batch.

Who else is in a lot must not change how a user's gradient is rounded, which in bf16 matters: on some processors by a
five-hundredth of it. So a processor computes in float32, batches have the sizes of `Shapes`, what is between the passes is
computed in float64, and parts are added up in the user's own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedrec.model.adapter import Arrays
from fedrec.model.cache import States
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import Scoring
from fedrec.privacy import PerRecord
from fedrec.training.examples import Examples
from fedrec.training.records import Records
from fedrec.training.sampled import Pairs, SampledSoftmax, layout
from fedrec.training.top_layers import Kept, TopLayers

__all__ = ["EncoderTrainer"]

FLOATS_SHARED, FLOATS_PER_RECORD = 4_000_000, 24_000_000
"""Most numbers of a chunk's copies of the negatives, and most of anything else that a server can make large: public sizes, so
that no lot needs more memory than another."""


class _Group(NamedTuple):
    """The distinct texts of one padded length."""

    texts: np.ndarray  # which of the distinct texts
    tokens: int
    kept: Kept


class EncoderTrainer:
    """The encoder of one merchant's catalogue, ready for private steps; `negatives` are set for each step."""

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
    ) -> None:
        encoder.load({**base, **trained})
        self.encoder, self.states, self.history = encoder, states, history
        self.shapes = encoder.shapes
        self.softmax = SampledSoftmax(prior, base, trained, scoring, encoder.device, self.shapes.records)
        self.negatives = np.zeros(0, dtype=np.int64)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        modules = self.encoder.top.named_modules()
        return [cast(nn.Parameter, module.weight) for name, module in modules if "lora_B." in name]

    def arrays(self) -> Arrays:
        """The trained LoRA matrices as they are now, by PEFT's names."""
        return self.encoder.trained()

    def chunks(self, lot: Examples | Records) -> Iterator[Examples]:
        """The lot in pieces of a bounded number of users."""
        hidden, negatives = self.encoder.hidden, len(self.negatives)
        padded = lot.length * (hidden + 8 * lot.positions)  # embeddings that are pooled, and weights with what they are made of
        scored = 8 * lot.positions * (negatives + len(self.states))  # products, and masks by item
        pieces = 1 + (negatives + self.history) // self.shapes.texts_per_piece
        trained = pieces * sum(parameter.numel() for parameter in self.parameters())
        bounds = FLOATS_SHARED // max(1, negatives * hidden), FLOATS_PER_RECORD // max(padded, scored, trained)
        most = max(1, min(self.shapes.records_per_chunk, *bounds))
        for start in range(0, len(lot), most):
            yield lot.take(np.arange(start, min(start + most, len(lot)))).padded()

    def gradients(self, lot: Examples | Records) -> Iterator[PerRecord]:
        """The gradients of a lot's records, in chunks of a bounded number of them."""
        top = TopLayers(self.encoder.top, self.encoder.training_dtype)
        for chunk in self.chunks(lot):
            yield PerRecord(self._gradients(chunk, top))

    def _gradients(self, chunk: Examples, top: TopLayers) -> list[Tensor]:
        pairs = layout(chunk, self.history)
        distinct, where = np.unique(np.concatenate([pairs.text, self.negatives]), return_inverse=True)
        pooled, groups = self._forward(distinct, top)
        own_at, shared_at = np.split(where, [len(pairs.text)])
        own = pooled[self.encoder.moved(own_at)].requires_grad_(True)  # (pairs, hidden)
        shared = pooled[self.encoder.moved(shared_at)].expand(len(chunk), -1, -1).requires_grad_(True)  # (records, N, hidden)
        losses = self.softmax.losses(own, shared, pairs, chunk, self.negatives)
        upstream = torch.autograd.grad(losses.sum(), (own, shared))
        at = torch.cat([upstream[0], upstream[1].flatten(0, 1), own.new_zeros(1, own.shape[1])])
        return self._backward(at, _pairs_of(pairs, chunk, own_at, shared_at), groups, top)

    def _forward(self, distinct: np.ndarray, top: TopLayers) -> tuple[Tensor, list[_Group]]:
        """The pooled vectors of distinct texts, (texts, hidden), and what their way back needs."""
        lengths = self.states.length[distinct]
        pooled = torch.empty(len(distinct), self.encoder.hidden, device=self.encoder.device)
        found: dict[int, list[tuple[np.ndarray, Kept]]] = {}
        for rows in self.shapes.batches(lengths):
            tokens = int(self.shapes.padded(lengths[rows[:1]])[0])
            filled = self.shapes.filled(rows, tokens)
            out, kept = top.forward(*self.encoder.gather(self.states, distinct[filled]))
            pooled.index_copy_(0, self.encoder.moved(rows), out[: len(rows)])
            found.setdefault(tokens, []).append((rows, kept))
        groups = []
        for tokens, parts in found.items():
            rows, kept = zip(*parts, strict=True)
            groups.append(_Group(np.concatenate(rows), tokens, Kept.joined(kept)))
        return pooled, groups

    def _backward(self, at: Tensor, pairs: _Used, groups: list[_Group], top: TopLayers) -> list[Tensor]:
        """Each record's gradients, one tensor (records, *shape) a parameter, from derivatives by the pooled vectors."""
        owners, found = [], []
        for group in groups:
            pieces = pairs.pieces(group.texts, self.shapes.texts_per_piece)
            size = self.shapes.texts(group.tokens)
            rows, sources = (self.encoder.moved(self.shapes.filled(one, group.tokens)) for one in (pieces.row, pieces.source))
            parts = [
                top.backward(group.kept.rows(some), at.index_select(0, source), self.shapes.texts_per_piece)
                for some, source in zip(rows.split(size), sources.split(size), strict=True)
            ]
            owners.append(pieces.record)
            found.append([torch.cat(same)[: len(pieces.record)] for same in zip(*parts, strict=True)])
        owner = np.concatenate(owners)
        order = self.encoder.moved(np.argsort(owner, kind="stable"))
        counts = self.encoder.moved(np.bincount(owner, minlength=pairs.records))
        return [_summed(torch.cat(same), order, counts) for same in zip(*found, strict=True)]


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


def _pairs_of(pairs: Pairs, chunk: Examples, own: np.ndarray, shared: np.ndarray) -> _Used:
    """A record's own texts and the negatives, for records that have anything to predict."""
    count = len(pairs.text)
    asks = np.unique(chunk.target[:, 0])
    keep = np.isin(pairs.record, asks)
    record = np.concatenate([pairs.record[keep], np.repeat(asks, len(shared))])
    text = np.concatenate([own[keep], np.tile(shared, len(asks))])
    of_shared = count + asks[:, None] * len(shared) + np.arange(len(shared))
    source = np.concatenate([np.flatnonzero(keep), of_shared.ravel()])
    order = np.argsort(record, kind="stable")
    return _Used(record[order], text[order], source[order], count + len(chunk) * len(shared), len(chunk))


def _summed(pieces: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Sums of each record's pieces, one after the other: (records, *shape)."""
    rows = pieces.flatten(1).index_select(0, order)
    sums = torch.segment_reduce(rows, "sum", lengths=counts, axis=0, unsafe=True, initial=0.0)
    return sums.unflatten(1, pieces.shape[1:])
