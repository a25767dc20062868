"""Recommending: an exact search of the catalogue against the approximate index, alternating in one run.

    python -m benchmarks.serving --items 5000 100000 1000000

A `Recommender` is asked as a shop would ask it, from item ids to item ids. First the texts of all
products of the embedded data, with households' last purchases; then synthetic embeddings
(clusters of about a hundred items, users of ten items from three clusters, log-normal popularity),
because no catalogue of a million texts is at hand. By default popularity has no weight: the more it
has, the more of the best ten are among the popular items that the index always searches, so this is
its hardest case. A million items need 8 GB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd

from benchmarks.clusters import clustered, tastes
from benchmarks.measure import options, report
from fedrec.data import Catalogue, Columns
from fedrec.data.demo import demo_tables
from fedrec.model import TextEncoder, centred, load_encoder
from fedrec.model.adapter import CENTRE
from fedrec.recommender import Recommender
from fedrec.recommender.index import ItemIndex

__all__ = ["main"]

K, WIDTH, HISTORY = 10, 384, 10


@dataclass(frozen=True)
class Shop:
    """What is searched and by whom.

    Attributes:
        embeddings: (items, width) of unit length; item n has the id `i<n>`.
        popularity: (items,).
    """

    name: str
    embeddings: np.ndarray
    popularity: np.ndarray
    histories: list[list[str]]


def synthetic(items: int, users: int) -> Shop:
    """Clusters."""
    embeddings, cluster = clustered(items, WIDTH)
    popularity = 1000 * np.random.default_rng(2).lognormal(size=items)
    return Shop("synthetic", embeddings, popularity, [[f"i{item}" for item in row] for row in tastes(cluster, users, HISTORY)])


def real(users: int) -> Shop:
    """Every product text of the embedded data, through the packaged encoder, and the last purchases of households."""
    items, events = demo_tables("store")
    catalogue = Catalogue.from_table(items)
    pooled = load_encoder(layers=0, device="cpu").embed(catalogue)
    bought = catalogue.index.get_indexer(events[Columns.ITEM])
    latest = events.assign(item=bought).sort_values(Columns.TIME, kind="stable").groupby(Columns.USER)["item"]
    histories = latest.apply(lambda items: [f"i{item}" for item in dict.fromkeys(items.tail(HISTORY))])
    return Shop(
        "real texts",
        centred(pooled, {CENTRE: pooled.mean(0).numpy()}).numpy(),
        np.bincount(bought, minlength=len(catalogue)).astype(np.float64),
        histories.tolist()[:users],
    )


class Embedded(Recommender):
    """A recommender whose items were embedded before."""

    def __init__(self, shop: Shop, prior_weight: float) -> None:
        embeddings, popularity = shop.embeddings, shop.popularity
        items = len(embeddings)
        table = pd.DataFrame({Columns.ITEM: [f"i{item}" for item in range(items)], "text": "", "popularity": popularity})
        scoring = {"temperature": 3.0, "decay": 0.1, "prior_weight": prior_weight}
        super().__init__(cast(TextEncoder, None), {}, {"history": 50, "floor": 1.0, "scoring": scoring}, table)
        self.embeddings = embeddings

    def _tables(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
        return self.embeddings, self.embeddings


def measure(shop: Shop, prior_weight: float, probes: int | None, repeats: int) -> dict[str, Any]:
    """Latency and throughput of both, the time to build the index, and its recall."""
    histories, asked = shop.histories, len(shop.histories)
    exact, approximate = Embedded(shop, prior_weight), Embedded(shop, prior_weight)
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
        "shop": shop.name,
        "items": len(shop.embeddings),
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
        "| items | | search | median, ms | p95, ms | times faster | many: users/s | times faster | recall@10 | built in, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in found:
        base = size["median"]["exact"], size["throughput"]["exact"]
        for name in ("exact", "approximate"):
            median, throughput = size["median"][name], size["throughput"][name]
            recall, build = ("1", "") if name == "exact" else (f"{size['recall']:.3f}", f"{size['build']:.0f}")
            rows.append(
                f"| {size['items']:,} | {size['shop']} | {name} "
                f"| {1e3 * median:.2f} | {1e3 * size['p95'][name]:.2f} | {base[0] / median:.1f} "
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
    shops = (lambda: real(arguments.users), *(partial(synthetic, items, arguments.users) for items in arguments.items))
    sizes = [measure(shop(), arguments.prior_weight, arguments.probes, arguments.repeats) for shop in shops]
    report({"sizes": sizes}, table(sizes), arguments.json)


if __name__ == "__main__":
    main()
