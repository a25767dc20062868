"""The tables of `benchmarks.baskets`: means over the customers of all merchants, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedrec.evaluation import bootstrap_interval

__all__ = ["tables"]

OURS, RESAMPLES = "own baskets", 2000
AGAINST = ("item-kNN", "association rules", "text alone")
HEADS = {
    "recall": "Recall@10",
    "ndcg": "NDCG@10",
    "hr": "HR@10",
    "repeat recall": "repeat recall@10",
    "explore recall": "explore recall@10",
}


def tables(merchants: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    """Markdown, and the same as numbers."""
    found: dict[str, Any] = {"chosen": {one["merchant"]: one["chosen"] for one in merchants}}
    parts = []
    for kind in dict.fromkeys(kind for one in merchants for kind in one["metrics"]):
        some = [one["metrics"][kind] for one in merchants if kind in one["metrics"]]
        values = {way: {metric: _all([one[way][metric] for one in some]) for metric in some[0][way]} for way in some[0]}
        if kind == "warm, one":
            for way in values:
                values[way]["substitutes"] = _all([one["substitutes"][way] for one in merchants if one["substitutes"]])
        found[kind] = {way: {metric: _said(one) for metric, one in metrics.items()} for way, metrics in values.items()}
        gains = {other: _said(values[OURS]["recall"] - values[other]["recall"]) for other in AGAINST}
        found[kind]["gains"] = gains
        parts.append(f"### {kind}: {len(values[OURS]['recall']):,} customers\n\n{_table(found[kind], values)}")
        parts.append(
            "Recall@10 of own baskets, customer by customer: "
            + "; ".join(f"{_gain(one)} over {name}" for name, one in gains.items())
            + "."
        )
    some_again = [one for one in again if one]
    if some_again:
        rows = {
            way: {metric: _all([one[way][metric] for one in some_again]) for metric in some_again[0][way]}
            for way in some_again[0]
        }
        found["next basket"] = {
            way: {metric: _said(one[~np.isnan(one)]) for metric, one in metrics.items()} for way, metrics in rows.items()
        }
        parts.append(f"### next basket, with repeats\n\n{_table(found['next basket'], rows)}")
    return {**found, "markdown": "\n\n".join(parts)}


def _all(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(parts))


def _said(values: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(values, RESAMPLES, 0)
    return {"mean": float(values.mean()), "low": low, "high": high, "customers": len(values)}


def _table(said: Mapping[str, Any], values: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    metrics = list(next(iter(values.values())))
    rows = [f"| | {' | '.join(HEADS.get(metric, metric) for metric in metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for way in values:
        cells = [f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (said[way][metric] for metric in metrics)]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _gain(one: Mapping[str, float]) -> str:
    return f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
