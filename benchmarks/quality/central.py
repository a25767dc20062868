"""Rows of central models: everybody's raw training events in one place, no privacy.

Users are ranked at the merchant whose customer they are, over that merchant's catalogue, so that every row has the same users.
Where merchants have catalogues of their own, ids that mean the same item are one item for the models, and a person who shops at
several merchants is a user at each, as under the federation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from benchmarks.quality.id_models import MODELS, SEQUENTIAL, Central, Fit, Ranker
from fedrec.config import RunConfig
from fedrec.data import CentralData, load_central
from fedrec.evaluation import EvaluationSet, Group, PerUser, summarise
from fedrec.evaluation.protocol import joined, metrics_of
from fedrec.recommender.blend import Fold, choose_blend, measure
from fedrec.recommender.contest import ALONE, contenders, plain_part
from fedrec.recommender.ease import Ease
from server.start import load_encoder_for
from simulations.reference import Pooled

__all__ = ["CEILING", "central_rows", "sequential_rows"]

CEILING = "text untrained + EASE: what pooling raw data gives"


@dataclass(frozen=True)
class _Place:
    """A federation as central models see it.

    Attributes:
        users: who is measured, by the catalogue that they are ranked over.
        choosing: calibration users, the same way.
    """

    config: RunConfig
    central: CentralData
    data: Central
    users: tuple[Group, ...]
    choosing: Mapping[str, Group]

    @classmethod
    def read(cls, federation: Path, config: RunConfig) -> _Place:
        central = load_central(federation)
        users, choosing = EvaluationSet.build(central, config.history, config.calibration_share, config.seed)
        histories = []
        for merchant in Pooled.read(federation):
            ids, known = merchant.data.catalogue.item_ids, central.catalogue.index
            # Where merchants use one id for different things, the central one names its merchant too.
            places = known.get_indexer([one if one in known else f"{merchant.name}:{one}" for one in ids])
            histories.append(merchant.data.histories.renumbered(places, len(known)))
        data = Central.of(tuple(histories), len(central.catalogue), users.groups, config.seed)
        return cls(config, central, data, users.groups, {group.name: group for group in choosing.groups})

    def row(self, name: str, metrics: PerUser) -> dict[str, Any]:
        config = self.config
        return {"name": name, **summarise(metrics, config.top_k, config.bootstrap, config.seed)}

    def metrics(self, ranker: Ranker, groups: Iterable[Group]) -> PerUser:
        return joined([metrics_of(group, ranker(group), self.config.top_k) for group in groups])

    def rows(self, models: Mapping[str, Fit]) -> list[dict[str, Any]]:
        return [self.row(name, self.metrics(fit(self.data, self.choose), self.users)) for name, fit in models.items()]

    def choose(self, rankers: list[Ranker]) -> Ranker:
        return max(rankers, key=lambda one: float(self.metrics(one, self.choosing.values()).ndcg.mean()))


def central_rows(federation: Path, config: RunConfig) -> dict[str, Any]:
    """Everything but the sequential model."""
    place = _Place.read(federation, config)
    return {"rows": [*place.rows(MODELS), place.row(CEILING, _with_text(place))]}


def sequential_rows(federation: Path, config: RunConfig) -> dict[str, Any]:
    """The sequential model alone."""
    return {"rows": _Place.read(federation, config).rows(SEQUENTIAL)}


@dataclass(frozen=True)
class _Part:
    """A central layer over the catalogue of one group."""

    layer: Ease
    positions: np.ndarray

    def scores(self, histories: csr_array) -> np.ndarray:
        found = histories.tocoo()
        shape = (histories.shape[0], self.layer.items)
        whole = csr_array((found.data, (found.row, self.positions[found.col])), shape=shape)
        return self.layer.scores(whole)[:, self.positions]


def _with_text(place: _Place) -> PerUser:
    """As `alone` joins text, popularity and a merchant's layer, with those of all events; chosen by catalogue."""
    config, counts = place.config, np.asarray(place.data.bought.sum(axis=0)).ravel().astype(np.float32)
    encoder = load_encoder_for(config)
    encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
    pooled = encoder.embed(place.central.catalogue)
    layers = {strength: Ease.fit(place.data.bought, strength) for strength in Ease.strengths}
    found = []
    for group in place.users:
        part = plain_part(pooled[group.positions], counts[group.positions])
        one = contenders(part, None, Ease.strengths)[ALONE]
        here: dict[float, Any] = {strength: _Part(layer, group.positions) for strength, layer in layers.items()}
        choosing = place.choosing.get(group.name)
        folds = [] if choosing is None else [Fold(_local(choosing), here)]
        blend = choose_blend(folds, one.part, one.default, config.top_k, seed=config.seed) if folds else one.default
        found.append(measure(_local(group), one.part, here[blend.strength], blend, config.top_k))
    return joined(found)


def _local(users: Group) -> Group:
    """The same users against their own catalogue alone."""
    here = np.arange(len(users.positions))
    return replace(users, items=np.searchsorted(users.positions, users.items), positions=here)
