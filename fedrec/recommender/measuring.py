"""`fedrec merchant evaluate`: what a merchant has alone and with the federation, on its own users who train nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedrec.config import RunConfig
from fedrec.data import MerchantData
from fedrec.errors import InputError
from fedrec.evaluation import (
    EvaluationSet,
    Group,
    PerUser,
    best_decay,
    bootstrap_interval,
    evaluate_repeats,
    global_frequency,
    personal_frequency,
    summarise,
    summarise_repeats,
)
from fedrec.recommender.blend import FEWEST, Fold, TextPart, scores
from fedrec.recommender.contest import (
    ALONE,
    FEDERATED,
    LAYER,
    ROWS,
    Entry,
    Received,
    folds_of,
    popularity_here,
    run_contest,
    users_as_group,
)  # fmt: skip
from fedrec.recommender.frequency import NONE, SHARED, PersonalFrequency, choose_frequency
from fedrec.recommender.merchant_text import Adapter, MerchantPlace

__all__ = ["LONG", "measure_merchant"]

GLOBAL, PERSONAL = "global frequency", "personal frequency"
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
        where no adapter can be used; `parts` of the users with both rows' NDCG; `repeats`, the rows where people buy again
        (see `_repeats`), None where nobody did; `k`, `seed`, `version`, why the newest one is `refused`, numbers of
        users, and why some of them may have trained after all (`changed_roles`).

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
    adapter, received, refused = _received(place, data, here)
    plain = place.plain(data.catalogue, here, histories.queries)
    folds = folds_of(histories, roles, items, config.history, config.seed, tell) if len(roles.choose) else []
    entries = run_contest(histories, roles, measured, plain, received, folds, k=config.top_k, seed=config.seed)
    metrics = {name: entry.metrics for name, entry in entries.items() if entry.metrics is not None}
    summary = {name: summarise(found, config.top_k, config.bootstrap, config.seed) for name, found in metrics.items()}
    rows = [{"name": name, **summary[name]} for name in ROWS if name in summary]
    last, part = (ALONE, plain) if received is None else (FEDERATED, received.part)
    again = users_as_group(histories, roles.measure, items, config.history, repeats=True)
    assert again is not None, "those with something new are among them"
    return {
        "merchant": place.settings.name, "version": adapter, "refused": refused, "k": config.top_k, "seed": config.seed,
        "users": {"train": len(roles.train), "choose": len(roles.choose), "measured": len(measured.items)},
        "rows": rows, "gain": None if received is None else _gain(metrics[FEDERATED], metrics[ALONE], config),
        "changed_roles": place.changed_roles(),
        "parts": list(_parts(measured, here, metrics, last, config)), "chosen": _chosen(entries),
        "repeats": _repeats(again, folds, last, entries[last], part, here, config),
    }  # fmt: skip


def _received(place: MerchantPlace, data: MerchantData, here: np.ndarray) -> tuple[str | None, Received | None, str | None]:
    """The current version, or the newest where none is; or why that one cannot be used."""
    current = place.versions.current
    name = current or place.versions.newest
    if name is None:
        return None, None, None
    try:
        adapter = Adapter(name, *place.versions.read(name))
        return name, place.received(data.catalogue, adapter, here, data.histories.queries), None
    except InputError as error:
        if current is not None:
            raise  # it should rank, and does not
        return None, None, f"version {name}: {error.found}"


def _repeats(
    again: Group, folds: Sequence[Fold], last: str, entry: Entry, part: TextPart, here: np.ndarray, config: RunConfig
) -> dict[str, Any] | None:
    """The last row of the table and the same with personal frequency, on whole last baskets and with nothing masked.

    Args:
        again: the measured users by that protocol.

    Returns:
        `rows` of a name and metrics with intervals, after those of global and personal frequency alone; `gain`, the paired
        difference of the last two rows in NDCG; what was `chosen`. None where none of the users bought anything again.
    """
    k, blend = config.top_k, entry.blend
    assert blend is not None
    users = EvaluationSet((again,), 0)
    choosing = EvaluationSet(tuple(fold.again for fold in folds if fold.again is not None), 0)
    decay = best_decay(choosing, here, k) if choosing.users >= FEWEST else SHARED.decay
    chosen = choose_frequency(folds, part, blend, k)

    def blended(frequency: PersonalFrequency) -> Iterator[tuple[Group, np.ndarray]]:
        for block in again.blocks():
            assert block.past is not None
            values = scores(block, part, entry.layer, blend)
            yield block, values + frequency.scores(block.past, values.shape)

    found = {
        GLOBAL: evaluate_repeats(global_frequency(users, here), k),
        PERSONAL: evaluate_repeats(personal_frequency(users, here, decay), k),
        last: evaluate_repeats(blended(NONE), k),
        f"{last} + {PERSONAL}": evaluate_repeats(blended(chosen), k),
    }
    if np.isnan(found[GLOBAL].repeat).all():
        return None
    rows = [{"name": name, **summarise_repeats(one, k, config.bootstrap, config.seed)} for name, one in found.items()]
    without, joined = (one.metrics for one in list(found.values())[-2:])
    return {"rows": rows, "gain": _gain(joined, without, config), "chosen": asdict(chosen)}


def _gain(one: PerUser, other: PerUser, config: RunConfig) -> dict[str, float]:
    difference = one.ndcg - other.ndcg
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
