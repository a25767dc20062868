"""Rows of trained adapters, each ranked at the merchants: with privacy, without, and by the consenting users alone.

With one step a round and everybody in it, the mean of the merchants' gradients is that of a central trainer with all raw data:
*no noise* is the federation without noise and the central heads in one. *Clipped* is the private step without its noise; *not
clipped* is `simulations.reference`. Popularity is exact in both. *Public users only* is the same plain training on the
calibration users of the server, whose popularity is all that is known of it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.aggregation import apply_update, weighted_mean
from fedrec.config import RunConfig
from fedrec.data import CentralData, MerchantData, load_central, merchant_folders
from fedrec.evaluation.protocol import is_calibration
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.model import Arrays, Scoring, TextEncoder, log_prior
from fedrec.privacy import Policy, SeededNoise
from fedrec.training import RoundTask, build_records, train_round
from server.evaluation import COUNTS, FLOOR, KEYS, CentralEvaluator
from server.run_folder import ServerState
from server.start import first_state, load_encoder_for
from simulations.at_merchants import at_merchants
from simulations.reference import Pooled, plain_counts, reference_rounds
from simulations.run import simulate

__all__ = ["CLIPPED", "PLAIN", "federated", "for_all", "plain", "trained_plainly"]

CLIPPED, UNCLIPPED, PUBLIC = "no-noise-clipped", "no-noise", "public-users"
PLAIN = (UNCLIPPED, CLIPPED, PUBLIC)
NOTHING = 1e-12
"""A noise multiplier that changes nothing."""


def for_all(config: RunConfig, federation: Path) -> RunConfig:
    """The settings, `encoder_sample_rate` raised until the smallest merchant, by what it declares, is not too small for a run."""
    least = min(read_merchant_file(folder / MERCHANT_FILE).privacy.population for folder in merchant_folders(federation))
    rate = math.ceil(1000 * config.min_lot / least) / 1000
    return config.model_copy(update={"encoder_sample_rate": min(1.0, max(config.encoder_sample_rate, rate))})


def federated(federation: Path, config: RunConfig, run: Path) -> dict[str, Any]:
    """A simulated private run in the folder `run`, which is removed afterwards, and what each merchant gets of it."""
    shutil.rmtree(run, ignore_errors=True)
    config = for_all(config, federation)
    folder = simulate(federation, config, run)
    state, lines = folder.load(), folder.metrics()
    assert state is not None
    scoring = Scoring(**lines[-1]["scoring"])
    spent = max(entry["epsilon"] for line in lines for entry in line["privacy"].values())
    found = at_merchants(federation, config, load_encoder_for(config, state), state, scoring)
    shutil.rmtree(run)
    return {**found, "epsilon": spent, "settings": config.model_dump(exclude_none=True)}


def plain(federation: Path, config: RunConfig, kind: str) -> dict[str, Any]:
    """The same training without noise, `kind` being one of `PLAIN`, and what each merchant gets of it."""
    config = for_all(config, federation)
    evaluator, done = trained_plainly(federation, config, kind)
    # What public users were trained on is no guide to how far the result is to be trusted: their scoring is the start's.
    of = first_state(config, evaluator.central, evaluator.encoder).trained if kind == PUBLIC else done.trained
    found = at_merchants(federation, config, evaluator.encoder, done, evaluator.scoring(done.public, of))
    return {**found, "epsilon": None, "settings": config.model_dump(exclude_none=True)}


def trained_plainly(federation: Path, config: RunConfig, kind: str) -> tuple[CentralEvaluator, ServerState]:
    """What `plain` ranks with: what was trained, whole, under the scoring that merchants train under first."""
    central, encoder = load_central(federation), load_encoder_for(config)
    evaluator, state = CentralEvaluator(central, config, encoder), first_state(config, central, encoder)
    merchants = list(_public_users(central, config)) if kind == PUBLIC else Pooled.read(federation)
    keys = central.catalogue.keys
    public = {**state.public, KEYS: keys, COUNTS: plain_counts(merchants, keys), FLOOR: np.ones(1, dtype=np.float32)}
    under = evaluator.trains_under(public, state.trained)
    rounds = _clipped_rounds if kind == CLIPPED else reference_rounds
    refit = partial(evaluator.trains_under, public)
    *_, (_, trained) = rounds(config, merchants, encoder, public, state.trained, under, refit)
    return evaluator, replace(state, public=public, trained=trained, scoring=under)


def _public_users(central: CentralData, config: RunConfig) -> Iterator[Pooled]:
    """The calibration users, those of each catalogue as if they were a merchant of their own."""
    for group in central.groups:
        names, positions = group.histories.user_ids, np.asarray(group.positions)
        chosen = [place for place, name in enumerate(names) if is_calibration(name, config.calibration_share, config.seed)]
        if chosen:
            histories = group.histories.take(np.array(chosen))
            places = np.full(len(central.catalogue), -1)
            places[positions] = np.arange(len(positions))
            data = MerchantData(central.catalogue.subset(positions), histories.renumbered(places, len(positions)))
            yield Pooled(group.name, data, Policy(epsilon=config.epsilon, delta=config.delta, population=len(chosen)))


def _clipped_rounds(
    config: RunConfig,
    merchants: list[Pooled],
    encoder: TextEncoder,
    public: Arrays,
    trained: Arrays,
    scoring: Scoring,
    refit: Callable[[Arrays, Scoring], Scoring],
) -> Iterator[tuple[int, Arrays]]:
    """`reference_rounds` with each user's gradient clipped: the private step and next to no noise."""
    state: Arrays = {}
    counts, floor = dict(zip(public[KEYS].tolist(), public[COUNTS].tolist(), strict=True)), float(public[FLOOR][0])
    priors = [
        log_prior(np.array([counts.get(key, floor) for key in one.data.catalogue.keys.tolist()]), floor) for one in merchants
    ]
    records = [
        {
            part: build_records(
                one.data.histories, history=config.history, positions=config.positions, decay=scoring.decay, merge=part == "heads"
            )
            for part in {config.part(number) for number in range(1, config.rounds + 1)}
        }
        for one in merchants
    ]
    for number in range(1, config.rounds + 1):
        task = _task(config, number, scoring)
        updates = [
            train_round(
                task, one.data.catalogue, kept[task.part], encoder=encoder, base=public, trained=trained, prior=prior,
                population=one.policy.population, noise=SeededNoise(config.seed, one.name, "clipped", number),
                queries=one.data.histories.queries,
            )
            for one, prior, kept in zip(merchants, priors, records, strict=True)
        ]  # fmt: skip
        rate = config.server_learning_rate if task.part == "heads" else config.encoder_learning_rate
        update = weighted_mean(updates, [float(one.policy.population) for one in merchants])
        moved, state = apply_update(config.server_optimizer, trained, update, state, rate, 0.0)
        trained = {**trained, **moved}
        scoring = refit(trained, scoring)
        yield number, trained


def _task(config: RunConfig, number: int, scoring: Scoring) -> RoundTask:
    part = config.part(number)
    own: dict[str, Any] = {
        "run": "clipped", "round": number, "part": part, "trunk": "", "noise_multiplier": NOTHING,
        "sample_rate": config.sample_rate_of(part), **scoring.by_name(),
    }  # fmt: skip
    given = {one.name: getattr(config, one.name) for one in fields(RoundTask) if one.name in RunConfig.model_fields}
    return RoundTask(**given | own)
