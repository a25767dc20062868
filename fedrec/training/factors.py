"""Per-user gradients of a head, kept in the factors they are made of.

A user's gradient of a head is a few outer products and one sum over the catalogue:

    G = sum_p left[p] (x) right[p] - sum_j along[j] scaled[j] (x) unit[j].

A text that the catalogue does not have, such as a user's own query, is one more outer product.

Its norm, which clipping needs, and the clipped sum, which leaves, both come from the factors;
the gradient itself (rank, hidden) is made for nobody but the audit. This is ghost clipping
(Goodfellow 2015, arXiv:1510.01799; Li et al., ICLR 2022, sec. 4) for a layer whose output is
normalised.

Exact norms would need items^2 products a user. Clipping needs no exact norm, only one that is
never too small, so in a large catalogue the items that matter are counted exactly (the most popular
ones, and the user's own) and the rest enters by a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["HeadGradients", "Own", "RecordGradients", "Table", "common_items", "strongest"]

COMMON, SHARE, MOST_COMMON = 128, 6, 1024
"""Popular items that are counted exactly for everybody: one in `SHARE`, within these ends. More of them
cost their square in products a user; fewer make the norms, and so the clipping, a few percent too large."""
OWN = 4
"""Items of a record that are counted one by one on top of those."""
MARGIN = 3e-4
"""What float32 may have rounded, relative to the square of all that was added up: chains of sums of at
most four thousand products (rank, hidden, twice the common items), each off by 2^-24, and sums over all items."""

LONGEST = 64
"""Outer products of a record whose inner products, the square of their number, are added up in float32."""
UNDERFLOW = 1e-12
"""Lengths over this lose nothing to squares under 2^-126."""


@dataclass(frozen=True)
class Table:
    """A head's catalogue.

    Attributes:
        unit: (items, hidden) embeddings of length 1.
        scaled: (items, rank) `e A` over the length that the embedding had.
        common: how many items, from the first on, are counted exactly for everybody. Which ones are
            first must not depend on anybody's data.
        known_spread: `spread`, where it is known.
    """

    unit: Tensor
    scaled: Tensor
    common: int
    known_spread: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether every item is a common one."""
        return self.common == len(self.unit)

    @cached_property
    def columns(self) -> Tensor:
        """(items, common) inner products of the matrices scaled[j] (x) unit[j] with the common ones."""
        return (self.scaled @ self.scaled[: self.common].T) * (self.unit @ self.unit[: self.common].T)

    @cached_property
    def gram(self) -> Tensor:
        """(common, common) the same among the common items."""
        return self.columns[: self.common]

    @cached_property
    def sizes(self) -> Tensor:
        """(items,) norms of the matrices scaled[j] (x) unit[j]."""
        return self.scaled.norm(dim=1)

    @cached_property
    def spread(self) -> Tensor:
        """A number s with |sum_j x[j] scaled[j] (x) unit[j]| <= s |x| for every x.

        The Gram matrix is the entrywise product of those of `scaled` and `unit`, and the latter has
        ones on its diagonal, so its largest eigenvalue is at most that of the former (Schur, 1911;
        Horn and Johnson, Topics in Matrix Analysis, 1991, th. 5.3.4).
        """
        if self.known_spread is not None:
            return self.known_spread
        scaled = self.scaled.double()
        # On a processor, as the matrix is small.
        largest = torch.linalg.eigvalsh((scaled.T @ scaled).cpu())[-1].clamp_min(0).sqrt()
        return largest.to(self.scaled.device)


@dataclass(frozen=True)
class Own:
    """Items of each record that are counted exactly though they are not common.

    Attributes:
        items: (records, k) items.
        along: (records, k) their numbers in the sum over the catalogue, 0 where there is no item.
    """

    items: Tensor
    along: Tensor


@dataclass(frozen=True)
class HeadGradients:
    """Each record's gradient of one head, in factors.

    Attributes:
        left: (records, P, rank); P counts a record's own texts too.
        right: (records, P, hidden), of a size near 1.
        along: (records, items), without what `own` holds.
        cross: (records,) float64, inner products of the outer products and the sum over the catalogue.
        own: None where all items are common.
        table: the catalogue.
        count: how many records there are, the rest being there to make products of an even shape; None for all.
        known_norms: `squared_norms`, where they are known.
    """

    left: Tensor
    right: Tensor
    along: Tensor
    cross: Tensor
    own: Own | None
    table: Table
    count: int | None = None
    known_norms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.left[: self.count])

    def squared_norms(self) -> Tensor:
        """(records,) squared Frobenius norms or a little more, float64, never too small.

        A server chooses the weights, and could choose them so that the sums cancel: with a margin
        relative to what is summed (`mass` bounds the norm by the triangle inequality), neither
        the norm nor the sum that is scaled by it loses its bound to rounding. What underflows is far
        below any clipping norm, and what overflows makes the record count as zero.
        """
        if self.known_norms is not None:
            return self.known_norms[: self.count]
        table, left, right = self.table, self.left, self.right
        common, rest = self.along[:, : table.common], self.along[:, table.common :]
        rights = torch.bmm(right, right.mT)  # (records, P, P)
        lengths = left.norm(dim=2) * rights.diagonal(dim1=1, dim2=2).sqrt()
        mass = (lengths.sum(1) + _masses(common, table.sizes[: table.common])).double()
        # Up to `LONGEST` outer products the chain of sums is as `MARGIN` has it.
        exact = torch.float64 if left.shape[1] > LONGEST else None
        first = (torch.bmm(left, left.mT) * rights).sum((1, 2), dtype=exact).double()
        second = ((common @ table.gram) * common).sum(1).double()  # of the items that are counted exactly
        if self.own is not None:
            items, along = self.own.items, self.own.along
            own_mass = (along.abs() * table.sizes[items]).sum(1).double()
            with_common = torch.bmm(table.columns[items], common[:, :, None])[:, :, 0]  # (records, k)
            # The cosines among a record's own few items are taken for ones: they add little.
            second += 2 * (along * with_common).sum(1) + own_mass.square()
            by_mass, length = _masses(rest, table.sizes[table.common :]).double(), rest.norm(dim=1).double()
            # The squares in a short length may have underflowed, while `scaled` may be large.
            by_spread = torch.where(length > UNDERFLOW, table.spread * length, torch.inf)
            beyond = torch.minimum(by_mass, by_spread) * (1 + rest.shape[1] * 2.0**-24)
            mass += own_mass + by_mass
            # The margin is under the root as well: what was rounded off a small number is large after it.
            second = ((_at_least_zero(second) + _margin(table, mass)).sqrt() + beyond).square()
        return (_at_least_zero(first - 2 * self.cross.double() + second) + _margin(table, mass))[: self.count]

    def sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """sum over records of weights[u] times the outer products, (rank, hidden), and times `along`, (items,); float64.

        The two nearly cancel where a server chose the weights so. In float32 that would leave rounding of the
        size of a user's gradient in what thousands of them sum up to.
        """
        used = weights != 0
        if len(used) < len(self.left):
            return self.take(slice(self.count)).sums(weights)
        if not used.all():  # a row that is not finite would spoil the sum even with weight 0
            return self.take(used).sums(weights[used])
        left = (self.left * weights[:, None, None]).flatten(0, 1)
        along = weights @ self.along.double()
        if self.own is not None:
            along.index_add_(0, self.own.items.flatten(), (weights[:, None] * self.own.along).flatten())
        return left.T @ self.right.double().flatten(0, 1), along

    def per_record(self) -> Tensor:
        """The gradients themselves, (records, rank, hidden)."""
        if self.count is not None:
            return self.take(slice(self.count)).per_record()
        along = self.along if self.own is None else self.along.scatter_add(1, self.own.items, self.own.along)
        first = torch.einsum("upr,upd->urd", self.left, self.right)
        return first - torch.einsum("uj,jr,jd->urd", along, self.table.scaled, self.table.unit)

    def with_norms(self) -> HeadGradients:
        """The same, knowing its norms."""
        return replace(self, known_norms=self.squared_norms())

    def copied(self, table: Table) -> HeadGradients:
        """The same in memory of its own, of an equal table."""
        own = self.own and Own(self.own.items.clone(), self.own.along.clone())
        norms = None if self.known_norms is None else self.known_norms.clone()
        left, right, along, cross = (part.clone() for part in (self.left, self.right, self.along, self.cross))
        return HeadGradients(left, right, along, cross, own, table, self.count, norms)

    def take(self, used: Tensor | slice) -> HeadGradients:
        """Those of some records, (records,) bool or a slice."""
        own = self.own and Own(self.own.items[used], self.own.along[used])
        return HeadGradients(self.left[used], self.right[used], self.along[used], self.cross[used], own, self.table)


@dataclass(frozen=True)
class RecordGradients:
    """The gradients of some records over all trained parameters.

    Attributes:
        parts: one `HeadGradients` a head, for each part of the records.
        order: (records,) which records the parts hold, one part after the other; None where that is their order.
        terms: (records, *shape) of one parameter more, as they are and in the parts' order; None where there is none.
    """

    parts: tuple[tuple[HeadGradients, ...], ...]
    order: Tensor | None = None
    terms: Tensor | None = None

    def squared_norms(self) -> Tensor:
        """(records,) of all parameters together."""
        norms = torch.cat([torch.stack([head.squared_norms() for head in heads]).sum(0) for heads in self.parts])
        if self.terms is not None:
            # Exact but for float64's rounding, since what is summed are these very numbers.
            own = self.terms.double().flatten(1).square().sum(1)
            norms = norms + torch.where(own.isfinite(), own, torch.inf)
        return self._ordered([norms])

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """sum over records of weights[u] times the gradient, one float64 tensor a parameter."""
        each = (weights if self.order is None else weights[self.order]).split([len(heads[0]) for heads in self.parts])
        out = []
        for parts in zip(*self.parts, strict=True):
            outer, along = (sum(sums) for sums in zip(*map(HeadGradients.sums, parts, each), strict=True))
            table = parts[0].table
            out.append(outer - table.scaled.double().T @ (along[:, None] * table.unit))  # type: ignore[index]
        if self.terms is not None:
            in_parts = weights if self.order is None else weights[self.order]
            used = in_parts != 0  # a row that is not finite would spoil the sum even with weight 0
            rows = self.terms[used].double()
            out.append(torch.tensordot(in_parts[used].double(), rows, dims=1))
        return out

    def per_record(self) -> Tensor:
        """(records, numbers): each record's gradient in one row."""
        rows = torch.cat([torch.cat([head.per_record().flatten(1) for head in heads], dim=1) for heads in self.parts])
        return self._ordered([rows if self.terms is None else torch.cat([rows, self.terms.flatten(1)], dim=1)])

    def _ordered(self, rows: list[Tensor]) -> Tensor:
        found = torch.cat(rows)
        return found if self.order is None else torch.empty_like(found).index_copy_(0, self.order, found)


def _masses(along: Tensor, sizes: Tensor) -> Tensor:
    # Not a product of matrix and vector: that rounds a row by where it stands.
    return torch.linalg.vector_norm(along * sizes, ord=1, dim=1)


def _margin(table: Table, mass: Tensor) -> Tensor:
    return (MARGIN + len(table.unit) * 2.0**-24) * mass.square()


def _at_least_zero(squared: Tensor) -> Tensor:
    # Minus infinity is an overflow, not a small norm.
    return torch.where(squared.isfinite(), squared.clamp_min(0), torch.inf)


def common_items(items: int) -> int:
    """How many of a catalogue's items are counted exactly for everybody."""
    return min(items, MOST_COMMON, max(COMMON, items // SHARE))


def strongest(along: Tensor, candidates: Tensor, table: Table) -> Own | None:
    """Move the candidates that weigh most out of `along`, which is changed, to be counted exactly.

    Args:
        along: (records, items).
        candidates: (records, K) items of each record, -1 where there is none. One that is there twice
            makes the norm a little larger and never too small.
    """
    if table.whole:
        return None
    found = candidates.clamp_min(0)
    values = along.gather(1, found).masked_fill(candidates < table.common, 0.0)
    _, place = (values.abs() * table.sizes[found]).topk(min(OWN, candidates.shape[1]), dim=1)
    items, values = found.gather(1, place), values.gather(1, place)
    along.scatter_add_(1, items, -values)
    return Own(items, values)
