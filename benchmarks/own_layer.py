"""Fitting an own layer: ours against the obvious way, alternating in one run.

    python -m benchmarks.own_layer

EASE against its paper's code, `np.linalg.inv` of the whole Gram matrix in float64; item-kNN against one product X'X of all
items in SciPy, of which each row's nearest are then kept. Purchases are synthetic: items with Zipf popularity, a log-normal
number to each user. Peak memory is that by which a process of its own grows during the fit, its data not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from benchmarks.measure import Way, alternate, memory, options, report
from fedrec.recommender.ease import Ease
from fedrec.recommender.item_knn import NEIGHBOURS, ItemKnn
from fedrec.recommender.own_layer import OWN_LAYERS

__all__ = ["main"]

LAMBDA, SHRINK = 100.0, 10.0


@dataclass(frozen=True)
class Size:
    """A kind of layer and what it is fitted on.

    Attributes:
        each: median number of purchases of a user.
        most: seconds and MB it may take.
    """

    kind: str
    users: int
    items: int
    each: float
    most: tuple[float, float]


SIZES = (Size(Ease.kind, 4_000, 4_000, 30.0, (10.0, 4000.0)), Size(ItemKnn.kind, 50_000, 100_000, 15.0, (120.0, 4000.0)))


def purchases(size: Size) -> csr_array:
    """(users, items) of ones: who bought what."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, size.items + 1)
    counts = np.ceil(size.each * rng.lognormal(sigma=0.7, size=size.users)).astype(np.int64)
    bought = rng.permutation(size.items)[rng.choice(size.items, counts.sum(), p=share / share.sum())]
    user = np.repeat(np.arange(size.users), counts)
    found = csr_array((np.ones(len(user), dtype=np.float32), (user, bought)), shape=(size.users, size.items))
    found.data[:] = 1.0  # once, however often it was drawn
    return found


def obvious_ease(bought: csr_array) -> np.ndarray:
    """(items, items) weights, as in the appendix of the paper."""
    gram = (bought.T @ bought).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += LAMBDA
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def obvious_knn(bought: csr_array) -> csr_array:
    """(items, items) similarities, the nearest of each row kept."""
    together = (bought.T @ bought).tocoo()
    root = np.sqrt(bought.sum(axis=0))
    value = together.data / (root[together.row] * root[together.col] + SHRINK)
    value[together.row == together.col] = 0.0
    found = csr_array((value, (together.row, together.col)), shape=together.shape)
    for start, stop in zip(found.indptr[:-1], found.indptr[1:], strict=True):
        if stop - start > NEIGHBOURS:
            row = found.data[start:stop]
            row[np.argpartition(row, -NEIGHBOURS)[:-NEIGHBOURS]] = 0.0
    found.eliminate_zeros()
    return found


def ways(size: Size, bought: csr_array) -> dict[str, Way]:
    """Ours and the obvious one."""
    if size.kind == Ease.kind:
        return {"ours": lambda: Ease.fit(bought, LAMBDA), "obvious": lambda: obvious_ease(bought)}
    return {"ours": lambda: ItemKnn.fit(bought, SHRINK), "obvious": lambda: obvious_knn(bought)}


def watched(size: Size, name: str) -> tuple[Way, Way]:
    """What `memory` runs."""
    small = Size(size.kind, 50, 50, 5.0, size.most)
    return ways(small, purchases(small))[name], ways(size, purchases(size))[name]


def difference(size: Size, bought: csr_array) -> float:
    """The largest of any user's sum of scores, of the first hundred users, over the sum itself."""
    layer = OWN_LAYERS[size.kind].fit(bought, LAMBDA if size.kind == Ease.kind else SHRINK)
    found = layer.scores(bought[:100]).sum(axis=1, dtype=np.float64)
    expected = (bought[:100] @ (obvious_ease(bought) if size.kind == Ease.kind else obvious_knn(bought))).sum(axis=1)
    return float(np.abs(found / expected - 1).max())


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Seconds and memory of both."""
    bought = purchases(size)
    return {
        "kind": size.kind,
        "users": size.users,
        "items": size.items,
        "sold": len(np.unique(bought.indices)),
        "purchases": int(bought.nnz),
        "most": size.most,
        "difference": difference(size, bought),
        "seconds": alternate(ways(size, bought), repeats),
        "memory": {name: memory(watched, size, name) for name in ("ours", "obvious")},
    }


def table(found: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    rows = [
        "| layer | users | items (with a buyer) | purchases | way | seconds | times faster | peak, MB | of obvious | within |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in found:
        seconds, peak = size["seconds"], size["memory"]
        for name in ("ours", "obvious"):
            within = f"{size['most'][0]:.0f} s, {size['most'][1]:,.0f} MB: " + (
                "yes" if seconds["ours"] < size["most"][0] and peak["ours"] < size["most"][1] else "no"
            )
            rows.append(
                f"| {size['kind']} | {size['users']:,} | {size['items']:,} ({size['sold']:,}) | {size['purchases']:,} | {name} "
                f"| {seconds[name]:.1f} | {seconds['obvious'] / seconds[name]:.1f} | {peak[name]:,.0f} "
                f"| {peak[name] / peak['obvious']:.2f} | {within if name == 'ours' else ''} |"
            )
    rows += [f"\n{size['kind']}: scores differ by {size['difference']:.0e} at most." for size in found]
    return "\n".join(rows)


def main() -> None:
    """The command."""
    arguments = options(__doc__, repeats=1).parse_args()
    found = [measure(size, arguments.repeats) for size in SIZES]
    report({"sizes": found}, table(found), arguments.json)


if __name__ == "__main__":
    main()
