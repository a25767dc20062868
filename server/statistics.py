"""The statistics that a run asks merchants for before its rounds, and what is made of their sums.

What merchants do with a request is in `clients.statistics`; how the sum is got depends on the trust model (the strategy's
`collect`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedrec import wire
from fedrec.data import Catalogue
from fedrec.model import TextEncoder
from fedrec.model.adapter import CENTRE, Arrays
from fedrec.model.complements import KINDS, PAIRS, PAIRS_NOISE, Complements, kinds_of, kinds_of_catalogue, numbers_of
from fedrec.model.towers import centred
from server.evaluation import COUNTS, FLOOR
from server.run_folder import RunFolder
from server.strategy import PrivateLora, StatisticRequest

__all__ = ["COMPLEMENTS_FILE", "ask_for_pairs", "release_of_pairs", "with_complements"]

COMPLEMENTS_FILE = "complements.json"
"""In a run's folder: who took part in the release, who did not and why, what it cost, and how many kinds there are."""


def ask_for_pairs(grid: Grid, folder: RunFolder, strategy: PrivateLora, catalogue: Catalogue, encoder: TextEncoder) -> Arrays:
    """Ask every merchant once which kinds of item share a basket: the kinds, the sum, and how noisy it is.

    Nothing where the run sends none, has it already, or nobody took part.

    Args:
        catalogue: the public one, whose texts make the kinds.
    """
    state, config, sigma = strategy.state, strategy.config, strategy.plan.complements
    if sigma is None or KINDS in state.public:
        return {}
    arrays = {CENTRE: state.public[CENTRE], KINDS: kinds_of_catalogue(_untrained(catalogue, encoder, state.public), config.seed)}
    task = wire.ComplementTask(
        state.run, sigma, config.delta, "user", strategy.trunk, config.encoder_layers, config.encoder_rank, config.max_tokens
    )
    asked = StatisticRequest(
        "complements", task.round, sigma, wire.encode_complement_task(task, arrays), wire.content_of_complements(task, arrays),
        wire.COMPLEMENTS, numbers_of(len(arrays[KINDS])),
    )  # fmt: skip
    total, noise = strategy.collect(grid, asked, config.round_timeout)
    record = strategy.record
    said: dict[str, Any] = {name: value for name, value in asdict(record).items() if name != "started"}
    folder.write_json(COMPLEMENTS_FILE, {"kinds": len(arrays[KINDS]), "numbers": asked.size, "noise_of_sum": noise, **said})
    if not record.took_part or record.abandoned:
        return {}
    return {KINDS: arrays[KINDS], PAIRS: total.astype(np.float32), PAIRS_NOISE: np.array([noise], dtype=np.float32)}


def release_of_pairs(folder: RunFolder) -> dict[str, Any] | None:
    """What `ask_for_pairs` wrote of the release; None where it asked for none."""
    path = folder.path / COMPLEMENTS_FILE
    known: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return known


def with_complements(public: Arrays, catalogue: Catalogue, encoder: TextEncoder) -> Arrays:
    """The public arrays with what the release says in its place, now that popularity is known."""
    if PAIRS not in public:
        return public
    kind = kinds_of(_untrained(catalogue, encoder, public), public[KINDS])
    # Counts of zero alone are those of a histogram that nobody answered, or whose secure sum was abandoned.
    known = public[COUNTS].any()
    sold = np.bincount(kind, np.maximum(public[COUNTS], public[FLOOR]), len(public[KINDS])) if known else None
    learned = Complements.from_release(public[PAIRS].astype(np.float64), float(public[PAIRS_NOISE][0]), public[KINDS], sold)
    return {name: value for name, value in public.items() if name not in (PAIRS, PAIRS_NOISE)} | learned.arrays()


def _untrained(catalogue: Catalogue, encoder: TextEncoder, public: Arrays) -> np.ndarray:
    encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
    return centred(encoder.embed(catalogue), public).cpu().numpy()
