"""`fedrec merchant evaluate`: what a merchant has alone and with the federation, on its own users who train nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import Catalogue, MerchantData
from fedrec.errors import InputError
from fedrec.evaluation import Group, PerUser, bootstrap_interval, summarise
from fedrec.recommender.contest import (
    ALONE,
    FEDERATED,
    LAYER,
    ROWS,
    Entry,
    Received,
    popularity_here,
    run_contest,
    users_as_group,
)  # fmt: skip
from fedrec.recommender.merchant_text import Adapter, MerchantPlace

__all__ = ["LONG", "measure_merchant"]

LONG = 20
"""Events from which a history is a long one."""


def measure_merchant(
    place: MerchantPlace, data: MerchantData, tell: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """The table of this merchant alone; it comes from private data and never leaves.

    Args:
        tell: is told how many layers are fitted, of how many.

    Returns:
        `rows` of a name and metrics with intervals; `gain`, the paired difference of the last row and *alone* in NDCG, None
        where no adapter can be used; `parts` of the users with both rows' NDCG; `k`, `seed`, `version`, why the newest one is
        `refused`, numbers of users, and why some of them may have trained after all (`changed_roles`).

    Raises:
        InputError: nobody is measured, nobody of them has a last basket with something new, or the current adapter cannot be
            used here.
    """
    config, roles = RunConfig(), place.roles(data)
    where = f"{place.path}: [users] measure"
    if not len(roles.measure):
        raise InputError("no user is measured", where=where, hint="a share such as 0.1, and enough users")
    items, histories = len(data.catalogue), data.histories
    measured = users_as_group(histories, roles.measure, items, config.history)
    if measured is None:
        raise InputError("no measured user's last basket holds anything new", where=where, hint="wait for more events")
    known = histories.take(roles.train)
    here = popularity_here(known, items)
    adapter, received, refused = _received(place, data.catalogue, here)
    entries = run_contest(
        histories, roles, measured, place.plain(data.catalogue, here), received,
        length=config.history, k=config.top_k, seed=config.seed, trainers_choose=False, tell=tell,
    )  # fmt: skip
    metrics = {name: entry.metrics for name, entry in entries.items() if entry.metrics is not None}
    summary = {name: summarise(found, config.top_k, config.bootstrap, config.seed) for name, found in metrics.items()}
    rows = [{"name": name, **summary[name]} for name in ROWS if name in summary]
    last = FEDERATED if FEDERATED in metrics else ALONE
    return {
        "merchant": place.settings.name, "version": adapter, "refused": refused, "k": config.top_k, "seed": config.seed,
        "users": {"train": len(roles.train), "choose": len(roles.choose), "measured": len(measured.items)},
        "rows": rows, "gain": _gain(metrics, config) if FEDERATED in metrics else None,
        "changed_roles": place.changed_roles(),
        "parts": list(_parts(measured, here, metrics, last, config)), "chosen": _chosen(entries),
    }  # fmt: skip


def _received(place: MerchantPlace, catalogue: Catalogue, here: np.ndarray) -> tuple[str | None, Received | None, str | None]:
    """The current version, or the newest where none is; or why that one cannot be used."""
    current = place.versions.current
    name = current or place.versions.newest
    if name is None:
        return None, None, None
    try:
        return name, place.received(catalogue, Adapter(name, *place.versions.read(name)), here), None
    except InputError as error:
        if current is not None:
            raise  # it should rank, and does not
        return None, None, f"version {name}: {error.found}"


def _gain(metrics: Mapping[str, PerUser], config: RunConfig) -> dict[str, float]:
    difference = metrics[FEDERATED].ndcg - metrics[ALONE].ndcg
    low, high = bootstrap_interval(difference, config.bootstrap, config.seed)
    return {"mean": float(difference.mean()), "low": low, "high": high}


def _parts(
    measured: Group, here: np.ndarray, metrics: Mapping[str, PerUser], last: str, config: RunConfig
) -> list[dict[str, Any]]:
    """NDCG of the main rows for kinds of users."""
    events = measured.valid.sum(axis=1)
    cold = np.zeros(len(events), dtype=bool)
    cold[measured.relevant[here[measured.relevant[:, 1]] == 0, 0]] = True
    kinds = {
        "one event before": events == 1,
        f"{LONG} events or more": events >= LONG,
        "an item among the truth that nobody bought in training": cold,
    }
    found = []
    for name, users in kinds.items():
        if users.any():
            values = {row: float(metrics[row].ndcg[users].mean()) for row in dict.fromkeys([LAYER, ALONE, last])}
            found.append({"name": name, "users": int(users.sum()), "ndcg": values})
    return found


def _chosen(entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """The weights of each row that has some."""
    return {
        name: {
            "pooling": {str(decay): weight for decay, weight in entry.blend.pooling.items()}, "priors": dict(entry.blend.priors),
            "own": entry.blend.own, "strength": entry.blend.strength, "users": entry.blend.users,
        }
        for name, entry in entries.items() if entry.blend is not None
    }  # fmt: skip
