"""Recommending: an exact search of the catalogue against the approximate index, alternating in one run.

    python -m benchmarks.serving --items 5000 100000 1000000

A `Recommender` is asked as a shop would ask it, from item ids to item ids. Its embeddings are
synthetic (clusters of about a hundred items, users of ten items from three clusters, log-normal
popularity), because no catalogue of a million texts is at hand. By default popularity has no weight:
the more it has, the more of the best ten are among the popular items that the index always searches,
so this is its hardest case. A million items need 8 GB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd

from benchmarks.clusters import clustered, tastes
from benchmarks.measure import options, report
from fedrec.data import Catalogue, Columns
from fedrec.model import TextEncoder
from fedrec.model.index import ItemIndex
from fedrec.model.recommender import Recommender

__all__ = ["main"]

K, WIDTH, HISTORY = 10, 384, 10


class Synthetic(Recommender):
    """A recommender whose items were embedded before."""

    def __init__(self, embeddings: np.ndarray, prior_weight: float) -> None:
        items = len(embeddings)
        popularity = 1000 * np.random.default_rng(2).lognormal(size=items)
        table = pd.DataFrame({Columns.ITEM: [f"i{item}" for item in range(items)], "text": "", "popularity": popularity})
        scoring = {"temperature": 3.0, "decay": 0.1, "prior_weight": prior_weight}
        super().__init__(cast(TextEncoder, None), {}, {"history": 50, "floor": 1.0, "scoring": scoring}, table)
        self.embeddings = embeddings

    def _tables(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        return self.embeddings, self.embeddings


def measure(items: int, asked: int, prior_weight: float, probes: int | None, repeats: int) -> dict[str, Any]:
    """Latency and throughput of both, the time to build the index, and its recall."""
    embeddings, cluster = clustered(items, WIDTH)
    histories = [[f"i{item}" for item in row] for row in tastes(cluster, asked, HISTORY)]
    exact, approximate = Synthetic(embeddings, prior_weight), Synthetic(embeddings, prior_weight)
    exact.rank_many(histories[:2])
    approximate._shelves = dict(exact._shelves)  # the table once
    started = time.perf_counter()
    index = ItemIndex.build(approximate._shelf(None).table)
    build = time.perf_counter() - started
    if probes:
        index.probes = probes
    approximate.use(index)
    ways = {"exact": exact, "approximate": approximate}
    latency = {name: list[float]() for name in ways}
    for number, history in enumerate(histories[: asked // 4]):
        for name, way in ways.items():
            spent = _seconds(lambda way=way, history=history: way.rank(history, K))
            if number:  # the first warms up
                latency[name].append(spent)
    many = {name: [_seconds(lambda way=way: way.rank_many(histories, K)) for _ in range(repeats)] for name, way in ways.items()}
    return {
        "items": items,
        "build": build,
        "lists": index.lists,
        "probes": index.probes,
        "recall": approximate.recall(histories, K),
        "median": {name: float(np.median(values)) for name, values in latency.items()},
        "p95": {name: float(np.quantile(values, 0.95)) for name, values in latency.items()},
        "throughput": {name: asked / statistics.median(values) for name, values in many.items()},
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(found: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    rows = [
        "| items | search | one: median, ms | p95, ms | times faster | many: users/s | times faster | recall@10 | built in, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in found:
        base = size["median"]["exact"], size["throughput"]["exact"]
        for name in ("exact", "approximate"):
            median, throughput = size["median"][name], size["throughput"][name]
            recall, build = ("1", "") if name == "exact" else (f"{size['recall']:.3f}", f"{size['build']:.0f}")
            rows.append(
                f"| {size['items']:,} | {name} | {1e3 * median:.2f} | {1e3 * size['p95'][name]:.2f} | {base[0] / median:.1f} "
                f"| {throughput:,.0f} | {throughput / base[1]:.1f} | {recall} | {build} |"
            )
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = options(__doc__, repeats=2)
    parser.add_argument("--items", type=int, nargs="+", default=[5_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--prior-weight", type=float, default=0.0)
    parser.add_argument("--probes", type=int, help="lists a search of the index reads")
    arguments = parser.parse_args()
    sizes = [
        measure(items, arguments.users, arguments.prior_weight, arguments.probes, arguments.repeats) for items in arguments.items
    ]
    report({"sizes": sizes}, table(sizes), arguments.json)


if __name__ == "__main__":
    main()
