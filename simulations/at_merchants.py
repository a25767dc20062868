"""What each merchant of a simulation gets from the federation, beside what it has alone: figures that no server could know.

The users are the server's held-out ones, each ranked by the merchant whose customer it is, with that merchant's own layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedrec.config import RunConfig
from fedrec.data import CentralData, Histories, load_central, load_merchant, merchant_folders
from fedrec.data.folders import group_by_merchant
from fedrec.data.roles import Roles
from fedrec.evaluation import (
    EvaluationSet,
    Group,
    PerUser,
    bootstrap_interval,
    coverage,
    novelty,
    popular_share,
    summarise,
)
from fedrec.evaluation.protocol import joined
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.model import Arrays, Scoring, TextEncoder
from fedrec.recommender.contest import (
    ALONE,
    FEDERATED,
    LAYER,
    POPULARITY,
    ROWS,
    Received,
    folds_of,
    plain_part,
    popularity_here,
    run_contest,
    trained_part,
)  # fmt: skip
from fedrec.recommender.own_layer import bought_by
from server.evaluation import COUNTS, FLOOR
from server.progress import notify
from server.run_folder import ServerState

__all__ = ["at_merchants"]

SIZES = ("the smallest third of merchants", "the middle third", "the largest third")
FEWEST = 30
"""Measured users under which a merchant's mean is luck: it is not looked for the worst among those."""


@dataclass(frozen=True)
class _Ranked:
    """A row at one merchant.

    Attributes:
        metrics: of its users.
        lists: (users, k) central items, -1 where there are fewer.
        novelty, popular: (users,) of the lists, by what was bought at this merchant.
    """

    metrics: PerUser
    lists: np.ndarray
    novelty: np.ndarray
    popular: np.ndarray


_Found = dict[str, dict[str, _Ranked]]
"""Rows by name, by merchant."""


def at_merchants(
    federation: Path, config: RunConfig, encoder: TextEncoder, state: ServerState, scoring: Scoring
) -> dict[str, Any]:
    """The rows of `fedrec.recommender.contest` over all merchants' held-out users, and what federation pays, by merchant.

    Returns:
        `rows` of a name, metrics, what the lists hold (coverage of all that is sold, novelty in bits, share of the popular tenth)
        and the `worst` merchant's NDCG, None where each has too few users; `gain` (mean, low, high) of the federated row over
        what merchants have alone, and by name `over` the popularity list and the own layer; `sizes` and `merchants` with the two
        rows' NDCG and their gain. Empty where nobody knows whose customers the users are.
    """
    central = load_central(federation)
    groups = group_by_merchant(federation, central)
    users, _ = EvaluationSet.build(
        replace(central, groups=groups), config.history, config.calibration_share if config.calibrate else 0.0, config.seed
    )
    measured = {group.name: group for group in users.groups}
    folders = [folder for folder in merchant_folders(federation) if _name(folder) in measured]
    if not folders:
        return {}
    tables = _pooled(central, encoder, state.public), _pooled(central, encoder, {**state.public, **state.trained})
    found: _Found = {}
    sizes: dict[str, int] = {}
    for number, folder in enumerate(folders, 1):
        name = _name(folder)
        notify("at_merchant", merchant=name, number=number, merchants=len(folders))
        group, histories = measured[name], _histories(folder, name, central, measured[name].positions)
        sizes[name] = len(histories)
        asked = _asked((*histories.queries, *central.queries), encoder, state)
        found[name] = dict(_contest(group, histories, tables, asked, state, scoring, config))
    sold = len(np.unique(np.concatenate([measured[name].positions for name in found])))
    return _summary(found, sizes, sold, config)


def _contest(
    group: Group,
    histories: Histories,
    tables: tuple[Tensor, Tensor],
    asked: tuple[Tensor | None, Tensor | None],
    state: ServerState,
    scoring: Scoring,
    config: RunConfig,
) -> Iterator[tuple[str, _Ranked]]:
    positions = group.positions
    # After the merchant's items come what its users searched for, and then what the measured ones did.
    searched = len(positions) + len(histories.queries) + group.items - len(tables[0])
    items = np.where(group.items < len(tables[0]), np.searchsorted(positions, group.items), searched)
    plain, pooled = (table[positions] for table in tables)
    here = popularity_here(histories, len(positions))
    arrays, public = {**state.public, **state.trained}, state.public
    part = trained_part(pooled, arrays, here, public[COUNTS][positions], float(public[FLOOR][0]), asked[1])
    everyone = np.arange(len(histories))
    roles = Roles(everyone, everyone[:0], everyone[:0])
    entries = run_contest(
        histories,
        roles,
        replace(group, items=items, positions=np.arange(len(positions))),
        plain_part(plain, here, asked=asked[0]),
        Received(part, scoring),
        folds_of(histories, roles, len(positions), config.history, config.seed),
        k=config.top_k,
        seed=config.seed,
    )
    buyers = np.asarray(bought_by(histories, len(positions)).sum(axis=0)).ravel()
    for name, entry in entries.items():
        if entry.metrics is not None and entry.lists is not None:
            unusual, popular = novelty(entry.lists, buyers, len(histories)), popular_share(entry.lists, buyers)
            yield name, _Ranked(entry.metrics, np.append(positions, -1)[entry.lists], unusual, popular)


def _pooled(central: CentralData, encoder: TextEncoder, arrays: Arrays) -> Tensor:
    encoder.load({**{name: np.zeros_like(value) for name, value in encoder.trained().items()}, **arrays})
    return encoder.embed(central.catalogue)


def _asked(queries: tuple[str, ...], encoder: TextEncoder, state: ServerState) -> tuple[Tensor | None, Tensor | None]:
    """(queries, hidden) of the untrained and of the trained encoder; None for nothing."""
    if not queries:
        return None, None
    found = []
    for arrays in (state.public, {**state.public, **state.trained}):
        encoder.load({**{name: np.zeros_like(value) for name, value in encoder.trained().items()}, **arrays})
        found.append(encoder.encode(queries))
    return found[0], found[1]


def _name(folder: Path) -> str:
    return read_merchant_file(folder / MERCHANT_FILE).name


def _histories(folder: Path, name: str, central: CentralData, positions: np.ndarray) -> Histories:
    """The merchant's users, their items by place in `positions` of the central catalogue."""
    data = load_merchant(folder, read_merchant_file(folder / MERCHANT_FILE).data)
    ids = list(data.catalogue.item_ids)
    found = central.catalogue.index.get_indexer(ids)
    # Where merchants use one id for different things, the central one names its merchant too.
    found = np.where(found < 0, central.catalogue.index.get_indexer([f"{name}:{one}" for one in ids]), found)
    place = np.searchsorted(positions, found)
    known = np.append(positions, -1)[place] == found
    return data.histories.renumbered(np.where(known, place, -1), len(positions))


def _summary(found: _Found, sizes: dict[str, int], sold: int, config: RunConfig) -> dict[str, Any]:
    rows = [
        {"name": row, **_row({name: entries[row] for name, entries in found.items()}, sold, config)}
        for row in ROWS if all(row in entries for entries in found.values())
    ]  # fmt: skip
    ordered = sorted(found, key=lambda name: (sizes[name], name))
    thirds = [part.tolist() for part in np.array_split(np.array(ordered, dtype=object), len(SIZES))]
    return {
        "rows": rows,
        "gain": _gain(found, list(found), config),
        "over": {row: _difference(found, list(found), row, config) for row in (POPULARITY, LAYER)},
        "sizes": [{"name": what, **_gain(found, names, config)} for what, names in zip(SIZES, thirds, strict=True) if names],
        "merchants": [{"name": name, "training_users": sizes[name], **_gain(found, [name], config)} for name in ordered],
    }


def _row(parts: dict[str, _Ranked], sold: int, config: RunConfig) -> dict[str, Any]:
    """A row over all merchants, of whom some sell `sold` items."""
    k, every = config.top_k, list(parts.values())
    shown = np.concatenate([part.lists.ravel() for part in every])
    means: list[dict[str, Any]] = [
        {"name": name, "users": len(part.metrics.ndcg), f"ndcg@{k}": float(part.metrics.ndcg.mean())}
        for name, part in parts.items() if len(part.metrics.ndcg) >= FEWEST
    ]  # fmt: skip
    return {
        **summarise(joined([part.metrics for part in every]), k, config.bootstrap, config.seed),
        f"coverage@{k}": coverage(shown, sold),
        f"novelty@{k}": float(np.concatenate([part.novelty for part in every]).mean()),
        f"popular@{k}": float(np.concatenate([part.popular for part in every]).mean()),
        "worst": min(means, key=lambda one: one[f"ndcg@{k}"], default=None),
    }


def _gain(found: _Found, names: list[str], config: RunConfig) -> dict[str, Any]:
    """Mean NDCG of both rows over these merchants' users, and their paired difference with its interval."""
    alone, federated = (_ndcg(found, names, row) for row in (ALONE, FEDERATED))
    difference = _difference(found, names, ALONE, config)
    return {"users": len(alone), "alone": float(alone.mean()), "federated": float(federated.mean()), **difference}


def _difference(found: _Found, names: list[str], row: str, config: RunConfig) -> dict[str, float]:
    difference = _ndcg(found, names, FEDERATED) - _ndcg(found, names, row)
    low, high = bootstrap_interval(difference, config.bootstrap, config.seed)
    return {"mean": float(difference.mean()), "low": low, "high": high}


def _ndcg(found: _Found, names: list[str], row: str) -> np.ndarray:
    return np.concatenate([found[name][row].metrics.ndcg for name in names])
