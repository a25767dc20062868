"""The heads' per-user gradients in closed form, from what an objective says of the scores of the full catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from fedrec.model.adapter import HEAD_A, HEAD_B, TERMS, Arrays
from fedrec.model.devices import moved
from fedrec.model.graphs import Graphs
from fedrec.model.towers import Scoring
from fedrec.objectives import OBJECTIVES, Examples, Lot, Objective, parts_of
from fedrec.training.factors import HeadGradients, RecordGradients, Table, common_items, strongest
from fedrec.training.linear import Linear

__all__ = ["Head", "HeadsTrainer"]

FLOATS_IN_FLIGHT = 1000000
"""Bound on the numbers that are computed at once: small enough for a processor's cache."""
FLOATS_KEPT = 4_000_000
"""Bound on the numbers of a head's factors that are kept, which bounds memory."""
FLOATS_PADDED = 24_000_000
"""Bound on the numbers of the embeddings that are pooled, and of the weights with what they are made of."""
LEAST_RECORDS, WIDTH = 128, 8
"""Fewest records that are computed at once, empty ones included, where the bounds allow it; and the least room for their
items, which is doubled until they fit. On a GPU there is room for as many events as a record may pool."""
TIMES, RECORDS = 64, 1024
"""On a GPU the bounds are so many times as large, and so many records are computed at once, or what the bounds allow."""
LEAST_TARGETS = 16
"""The least room for a record's targets, which is doubled until they fit."""
MOST_RANK = 1000
"""Ceiling of the heads' rank, which the rounding of norms is reckoned for."""
_GRAPHS = Graphs(kept=False)
Temperatures = tuple[float, ...]
"""Of the parts of an objective, each for as many of a record's positions."""


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
        table = Table(z / length, self.ea / length, common_items(len(z)))
        if not table.whole:
            table = replace(table, known_spread=table.spread)
        if not (torch.isfinite(table.unit).all() and torch.isfinite(table.scaled).all()):
            raise ValueError("the heads of this adapter are not finite over the catalogue")
        return table


class HeadsTrainer:
    """The heads of one merchant's catalogue, ready for private steps.

    Args:
        e: (items, hidden) frozen item embeddings.
        prior: (items,) log popularity.
        events: most events that a record pools, which bounds the records that are computed at once.
        queries: (queries, hidden) the same of what users searched for; an event's item past the catalogue's last is one of them.
        objective: what is asked of the scores; `scoring` has as many parts as it has.

    Raises:
        ValueError: the rank is over `MOST_RANK`.
    """

    def __init__(
        self,
        e: Tensor,
        prior: np.ndarray,
        base: Arrays,
        trained: Arrays,
        scoring: Scoring,
        events: int = 100,
        queries: Tensor | None = None,
        objective: Objective = OBJECTIVES["next-item"],
    ) -> None:
        self.scoring, self.events, self.objective = scoring, events, objective
        self.fixed = e.device.type == "cuda"
        self.queries = e.new_zeros(0, e.shape[1]) if queries is None else queries
        self.parts, parts = parts_of(objective), scoring.parts
        self.temperatures = tuple(part.temperature for part in parts)
        offset = torch.stack([torch.as_tensor(prior, device=e.device) * part.prior_weight + part.bias for part in parts])
        # Popular items first, by public counts: see `Table`.
        order = torch.argsort(offset[0], descending=True, stable=True)
        self.place = torch.argsort(order).cpu().numpy()
        self.offset, e = offset[:, order], e[order]  # (parts, items)
        self.a = a = torch.as_tensor(base[HEAD_A], device=e.device)
        if a.shape[1] > MOST_RANK:
            raise ValueError(f"the heads have rank {a.shape[1]}, at most {MOST_RANK} is allowed")
        b = {role: torch.as_tensor(trained[name], device=e.device) for role, name in HEAD_B.items()}
        self.history, self.candidate = Head(e, a, b["history"]), Head(e, a, b["candidate"])
        self.trained = {HEAD_B["history"]: self.history.weight, HEAD_B["candidate"]: self.candidate.weight}
        self.linear: Linear | None = None
        if objective.terms:
            self.linear = Linear(trained[TERMS], e, prior[order.cpu().numpy()])
            self.trained[TERMS] = self.linear.weight

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.trained.values())

    def arrays(self) -> Arrays:
        """The heads as they are now, and the linear terms if there are any, by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.trained.items()}

    def gradients(self, lot: Lot) -> Iterator[RecordGradients]:
        """The gradients of a lot's records, as many at a time as fit the memory bound."""
        history, candidate = self.history.table(), self.candidate.table()
        for part in self._parts(lot):
            rows, chunks = zip(*self._chunks(part), strict=True)
            found = [
                self._gradients(chunk, asked, len(own), history, candidate)
                for own, (chunk, asked) in zip(rows, chunks, strict=True)
            ]
            heads, terms = zip(*found, strict=True)
            yield RecordGradients(heads, self._moved(np.concatenate(rows)), None if self.linear is None else torch.cat(terms))

    @torch.no_grad()
    def losses(self, lot: Lot) -> Tensor:
        """Each record's loss, shape (records,); zero where a record has no target."""
        history, candidate = self.history.table(), self.candidate.table()
        out = [self.offset.new_zeros(0)]
        for part in self._parts(lot):
            out.append(self.offset.new_zeros(len(part)))
            for rows, (chunk, asked) in self._chunks(part):
                losses = self.objective.losses(self._scores(chunk, asked, history, candidate)[0].logits, chunk)
                out[-1][self._moved(rows)] = losses[: len(rows)]
        return torch.cat(out)

    def _parts(self, lot: Lot) -> Iterator[Examples]:
        """The lot in pieces whose factors are kept together."""
        items, hidden = self.history.e.shape
        kept = items + lot.positions * (self.history.ea.shape[1] + hidden)
        times = TIMES if self.fixed else 1
        padded = self.events * 8 * lot.positions
        if len(self.queries):
            padded = max(padded, self.events * (self.history.ea.shape[1] + hidden))
        most = max(1, min(times * FLOATS_KEPT // kept, times * FLOATS_PADDED // padded))
        for start in range(0, len(lot), most):
            yield lot.take(np.arange(start, min(start + most, len(lot)))).padded()

    def _chunks(self, part: Examples) -> Iterator[tuple[np.ndarray, tuple[Examples, _Asked | None]]]:
        """Records of one width each, what they searched for, and which rows of the part they are.

        How a product is rounded depends on its shape, and hostile weights can make much of rounding: a record
        that was computed with fewer others, or beside one with a longer history, had another gradient. So a
        record's width is its own, and empty records fill up a chunk that is small or of an odd size. On the
        processors tested a gradient is then the same to the bit in every lot. On a GPU, where it took chunks of one size
        for that, all are of one size and width: small ones would take as long.
        """
        items, hidden = self.history.e.shape
        times = TIMES if self.fixed else 1
        floats = times * FLOATS_PADDED // (self.events * (hidden + 8 * part.positions))
        size = max(8, min(times * FLOATS_IN_FLIGHT // (part.positions * (items + hidden)), floats) // 8 * 8)
        if self.fixed:
            size, longest = min(size, RECORDS), np.full(len(part), self.events)
        else:
            used = np.any(part.weights, axis=1)  # (records, L)
            longest = np.where(used.any(axis=1), part.length - used[:, ::-1].argmax(axis=1), 1)
        asked = (part.items >= len(self.place)).sum(axis=1)
        rooms = np.where(asked > 0, _doublings(np.full(len(part), self.events) if self.fixed else asked), -1)
        kinds = np.stack([_doublings(longest), rooms], axis=1)
        for times, room in np.unique(kinds, axis=0).tolist():
            rows, most = np.flatnonzero((kinds == (times, room)).all(axis=1)), size if room < 0 else max(8, size // 16 * 8)
            for start in range(0, len(rows), most):
                own = rows[start : start + most]
                records = most if self.fixed else max(min(most, LEAST_RECORDS), -(-len(own) // 8) * 8)
                yield own, self._filled(part.take(own), records, WIDTH << times, 0 if room < 0 else WIDTH << room)

    def _filled(self, chunk: Examples, records: int, width: int, room: int) -> tuple[Examples, _Asked | None]:
        items = np.zeros((records, width), dtype=np.int64)
        weights = np.zeros((records, chunk.positions, width), dtype=chunk.weights.dtype)
        columns = min(width, chunk.length)
        items[: len(chunk), :columns] = chunk.items[:, :columns]
        weights[: len(chunk), :, :columns] = chunk.weights[:, :, :columns]
        asked = self._asked(items, weights, room) if room else None
        target, seen = self._placed(chunk.target), self._placed(chunk.seen)
        return Examples(self.place[items], weights, target, chunk.target_weight, seen, chunk.answer), asked

    def _asked(self, items: np.ndarray, weights: np.ndarray, room: int) -> _Asked:
        """What records searched for, which is taken out of `items` and `weights`."""
        record, slot = np.nonzero(items >= len(self.place))
        column = np.arange(len(record)) - np.searchsorted(record, record)
        vectors = self.queries.new_zeros(len(items), room, self.queries.shape[1])
        of_asked = np.zeros((*weights.shape[:2], room), dtype=weights.dtype)
        of_asked[record, :, column] = weights[record, :, slot]
        texts = self._moved(items[record, slot] - len(self.place))
        vectors[self._moved(record), self._moved(column)] = self.queries[texts]
        items[record, slot], weights[record, :, slot] = 0, 0
        return _Asked(vectors, self._moved(of_asked))

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        return np.column_stack([rows[:, :2], self.place[rows[:, 2]]])

    def _moved(self, values: np.ndarray) -> Tensor:
        return moved(values, self.offset.device)

    def _scores(self, chunk: Examples, asked: _Asked | None, history: Table, candidate: Table) -> tuple[_Scores, list[Tensor]]:
        """The scores, and the mean embeddings that are in those of each part with linear terms."""
        scores = self._of_heads(chunk, asked, history, candidate)
        if self.linear is None:
            return scores, []
        given = [scores.logits, self._moved(chunk.weights), *(() if asked is None else (asked.weights,))]
        means = []
        for logits, weights, *words in self._with_terms(*given):
            of_words = (asked.vectors, words[0].contiguous()) if asked is not None else ()
            means.append(self.linear.add(logits, scores.items, weights.contiguous(), *of_words))
        return scores, means

    def _with_terms(self, *values: Tensor) -> list[list[Tensor]]:
        """Views of (records, P, ...) for each part whose score has linear terms: its positions."""
        cut = zip(self.parts, *(one.chunk(len(self.parts), dim=1) for one in values), strict=True)
        return [own for part, *own in cut if part.terms]

    def _of_heads(self, chunk: Examples, asked: _Asked | None, history: Table, candidate: Table) -> _Scores:
        scale, given = self.temperatures, (self._moved(chunk.items), self._moved(chunk.weights), self.offset)
        words = () if asked is None else (*asked, self.a, self.history.weight.detach())
        if not self.fixed:
            return _scored(*given, history, candidate, *words, temperature=scale)
        some = [part for table in (history, candidate) for part in (table.unit, table.scaled, table.known_spread)]
        tables = [part for part in some if part is not None]

        def function(items: Tensor, weights: Tensor, offset: Tensor, *parts: Tensor) -> _Scores:
            half = len(tables) // 2
            both = _table(*parts[:half]), _table(*parts[half : 2 * half])
            return _scored(items, weights, offset, *both, *parts[2 * half :], temperature=scale)._replace(used=None)

        return cast(_Scores, _GRAPHS(("scores", scale), function, [*given, *tables, *words]))

    @torch.no_grad()
    def _gradients(
        self, chunk: Examples, asked: _Asked | None, count: int, history: Table, candidate: Table
    ) -> tuple[tuple[HeadGradients, HeadGradients], Tensor | None]:
        (scores, means), scale = self._scores(chunk, asked, history, candidate), self.temperatures
        given = self._moved(_targets(chunk)), self.objective.at_scores(scores.logits, chunk)
        terms = None
        if self.linear is not None:
            of_parts = zip(self._with_terms(given[1]), means, strict=True)
            terms = torch.stack([self.linear.gradients(at, mean) for (at,), mean in of_parts]).sum(0)[:count]
        if not self.fixed:
            of_history, of_candidate = _factors(*given, scores, temperature=scale)
        else:

            def function(targets: Tensor, at_logits: Tensor, scores: _Scores) -> tuple[HeadGradients, HeadGradients]:
                # Tables that have nothing in store, or what they have would be recorded as it is now; and what is written to.
                fresh = scores._replace(tables=tuple(map(replace, scores.tables)), cosines=scores.cosines.clone())
                return _factors(targets, at_logits, fresh, temperature=scale)

            found = _GRAPHS(("factors", scale), function, given, scores)
            # What is there is overwritten for the next chunk.
            of_history, of_candidate = (head.copied(own) for head, own in zip(found, (history, candidate), strict=True))
        return (replace(of_history, count=count), replace(of_candidate, count=count)), terms


class _Asked(NamedTuple):
    """What a chunk's records searched for.

    Others' searches must be in no table that a record is computed with, so each has its own vectors, in room for its own number.

    Attributes:
        vectors: (records, room, hidden) embeddings, zeros after a record's last.
        weights: (records, P, room) pooling weights.
    """

    vectors: Tensor
    weights: Tensor


class _Words(NamedTuple):
    """`_Asked` under the history head: `unit` and `scaled` as in `Table`, for each record."""

    unit: Tensor
    scaled: Tensor
    weights: Tensor


def _doublings(longest: np.ndarray) -> np.ndarray:
    """How often `WIDTH` is doubled until so many fit."""
    return np.ceil(np.log2(np.maximum(longest, WIDTH) / WIDTH)).astype(int)


class _Scores(NamedTuple):
    """A chunk's forward pass, and what it was made of.

    Attributes:
        items: (records, L).
        weights: (records, P, L) pooling weights.
        used: (records, L, hidden) embeddings that are pooled; None where it is quicker to look them up again than to keep them.
        tables: of the history head and of the candidate head.
        words: what was searched for; None where nobody did.
    """

    items: Tensor
    weights: Tensor
    used: Tensor | None
    length: Tensor
    users: Tensor
    cosines: Tensor
    logits: Tensor
    tables: tuple[Table, ...]
    words: _Words | None = None


def _table(unit: Tensor, scaled: Tensor, spread: Tensor | None = None) -> Table:
    return Table(unit, scaled, common_items(len(unit)), spread)


def _scored(
    items: Tensor, weights: Tensor, offset: Tensor, history: Table, candidate: Table, *asked: Tensor, temperature: Temperatures
) -> _Scores:
    """`asked`: vectors and weights of `_Asked`, and the history head's two factors; nothing where nobody searched.

    `offset` (parts, items) and `temperature` are of the parts that share the positions.
    """
    used = embedding(items, history.unit)  # (records, L, hidden); several times faster than indexing
    pooled = weights @ used  # (records, P, hidden)
    words = _words(*asked) if asked else None
    if words is not None:
        pooled = pooled + words.weights @ words.unit
    length = pooled.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    users = pooled / length
    cosines = users @ candidate.unit.T  # (records, P, items)
    cut = zip(offset, cosines.chunk(len(offset), dim=1), temperature, strict=True)
    by_part = [torch.add(own, cosine, alpha=scale) for own, cosine, scale in cut]
    logits = by_part[0] if len(by_part) == 1 else torch.cat(by_part, dim=1)
    return _Scores(items, weights, used, length, users, cosines, logits, (history, candidate), words)


def _words(vectors: Tensor, weights: Tensor, a: Tensor, b: Tensor) -> _Words:
    scaled = vectors @ a  # (records, room, rank)
    z = vectors + scaled @ b
    length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return _Words(z / length, scaled / length, weights)


def _factors(
    targets: Tensor, at_logits: Tensor, scores: _Scores, temperature: Temperatures
) -> tuple[HeadGradients, HeadGradients]:
    """Of the history head and of the candidate head, with their norms; what it is given is overwritten."""
    history, candidate = scores.tables
    users, cosines, weights = scores.users, scores.cosines, scores.weights
    for own_logits, scale in zip(at_logits.chunk(len(temperature), dim=1), temperature, strict=True):
        own_logits.mul_(scale)
    at_cosines = at_logits  # (records, P, items)
    at_users = at_cosines @ candidate.unit
    left = at_cosines @ candidate.scaled  # (records, P, rank)
    product = at_cosines.mul_(cosines)
    # The inner product of `users` and `at_users`, summed over the items instead.
    right = at_users.addcmul_(users, product.sum(-1, keepdim=True), value=-1)
    along = product.sum(1)  # (records, items)
    cross = (left * (cosines.mul_(along[:, None]) @ candidate.scaled)).sum((1, 2), dtype=torch.float64)
    own = strongest(along, targets, candidate)
    of_candidate = HeadGradients(left, users, along, cross, own, candidate)

    size = right.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # (records, P, 1)
    right = right.div_(size)
    size = size / scores.length
    scaled = embedding(scores.items, history.scaled)  # (records, L, rank)
    left = (weights @ scaled) * size
    used = embedding(scores.items, history.unit) if scores.used is None else scores.used
    projected = right @ used.mT  # (records, P, L)
    own_along = (projected * weights * size).sum(1)  # (records, L)
    if scores.words is not None:
        left, right = _with_words(left, right, size, scores.words)
        projected = right @ used.mT  # (records, P + room, L)
    cross = (own_along * ((left @ scaled.mT) * projected).sum(1)).sum(1, dtype=torch.float64)
    along = torch.zeros_like(cosines[:, 0]).scatter_add_(1, scores.items, own_along)
    own = strongest(along, scores.items.masked_fill(weights.amax(1) == 0, -1), history)
    of_history = HeadGradients(left, right, along, cross, own, history)
    return of_history.with_norms(), of_candidate.with_norms()


def _with_words(left: Tensor, right: Tensor, size: Tensor, words: _Words) -> tuple[Tensor, Tensor]:
    """The outer products with those of what was searched for: terms of the sum over texts that are in nobody else's table."""
    along = ((right @ words.unit.mT) * words.weights * size).sum(1)  # (records, room)
    left = left + (words.weights @ words.scaled) * size
    return torch.cat([left, -along[:, :, None] * words.scaled], 1), torch.cat([right, words.unit], 1)


def _targets(chunk: Examples) -> np.ndarray:
    """Each record's targets, (records, K), -1 after the last.

    K is the first of a few sizes that the most of any record fit: it sets the shapes that are recorded on a GPU.
    """
    record, item = chunk.target[:, 0], chunk.target[:, 2]
    count = np.bincount(record, minlength=len(chunk))
    width = LEAST_TARGETS
    while width < count.max(initial=0):
        width *= 2
    out = np.full((len(chunk), width), -1, dtype=np.int64)
    out[record, np.arange(len(record)) - (np.cumsum(count) - count)[record]] = item
    return out
