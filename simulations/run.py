"""A simulated run from a federation folder to a finished run folder."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clients.losses import SUFFIX
from clients.site import KEYS, ROSTER
from fedrec.config import RunConfig, make_folder, writable_cache, write_atomically
from fedrec.data import load_central, merchant_folders
from fedrec.deploy.certificates import new_node_key
from fedrec.errors import InputError
from fedrec.merchant import read_merchant_file
from fedrec.model import Scoring
from fedrec.model.encoder_files import absolute_encoder
from fedrec.privacy import head_file
from fedrec.secure import Roster
from server.evaluation import RATINGS
from server.evaluators import evaluator_of
from server.given_start import check_start, copy_start, open_start, read_start
from server.judging import check_judges
from server.progress import notify
from server.rating_evaluation import RatingEvaluator, with_expected
from server.results import row, write_results
from server.run_folder import DELIVERED, RunFolder
from server.start import first_state, load_encoder_for
from simulations.at_merchants import at_merchants
from simulations.checks import check_run, checked, not_advised
from simulations.engines import ENGINES, check_device
from simulations.reference import Pooled, plain_counts, plain_ratings, reference_rounds

__all__ = ["finish", "resume", "simulate"]

SITE, LEDGERS = "site.json", "privacy"


def simulate(
    federation: Path,
    config: RunConfig,
    out: Path,
    engine: str = "inline",
    *,
    workers: int = 1,
    ledgers: Path | None = None,
    record_wire: bool = False,
    start: Path | None = None,
) -> RunFolder:
    """Start a run and see it to its end.

    Args:
        workers: processes that answer for merchants side by side, under the engine `inline`.
        ledgers: folder of the merchants' ledgers, so that a second run starts from what the
            first one spent; by default they are the run's own.
        record_wire: write down the name, shape and hash of everything a merchant sends.
        start: a run, or another folder with an adapter, to start from. Where it is a simulated run on the same
            federation and no `ledgers` are given, its merchants go on with a copy of their ledgers.

    Raises:
        InputError: bad data or settings, every merchant would decline, or `out` is taken; there is no run folder then.
    """
    check_device(engine, config.device)
    writable_cache()  # a run without it would encode every catalogue once a process
    for _ in checked(federation, config):
        pass
    config = config.model_copy(update={"encoder": absolute_encoder(config.encoder)})
    encoder = load_encoder_for(config)
    given = open_start(start) if start else None
    if given is not None:
        check_start(given, config, encoder)
    if config.patience:
        check_judges(config, evaluator_of(config, load_central(federation), encoder))
    before = ledgers or (_ledgers_of(start, federation) if start else None)
    if start is not None and before is None:
        notify("data", what=f"no ledgers were taken over from {start}: this run's begin empty")
    for what in [*check_run(federation, config, before), *not_advised(federation, config, encoder.hidden)]:
        notify("data", what=what)
    folder = RunFolder.create(out, config)
    if given is not None:
        copy_start(given, out)
    if before is not None and ledgers is None:
        _copy_ledgers(before, out / LEDGERS)
    site: dict[str, Any] = {
        "federation": str(federation.resolve()),
        "run": str(out.resolve()),
        "engine": engine,
        "workers": workers,
        "seed": config.seed,
    }
    site |= {"ledgers": str(ledgers.resolve()) if ledgers else None, "record_wire": record_wire}
    model = {"encoder": config.encoder, "device": config.device, "texts_per_batch": config.texts_per_batch}
    folder.write_json(SITE, {**site, "model": model})
    if config.trust == "secure-aggregation":
        make_roster(federation, out / KEYS)
    return _go_on(folder)


def _ledgers_of(start: Path, federation: Path) -> Path | None:
    """Where the ledgers of a simulated run on this federation are, be `start` that or its `adapter/`; None if neither."""
    for run in (start.resolve(), start.resolve().parent):
        try:
            site = json.loads((run / SITE).read_text(encoding="utf-8"))
            if Path(site["federation"]) == federation.resolve():
                return Path(site.get("ledgers") or run / LEDGERS)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _copy_ledgers(source: Path, target: Path) -> None:
    """Ledgers and their heads, so that what follows is composed with what was released before."""
    for ledger in sorted(source.glob(f"*{SUFFIX}")):
        for one, other in ((ledger, target / ledger.name), (head_file(ledger), head_file(target / ledger.name))):
            if one.exists():
                make_folder(other.parent)
                write_atomically(other, one.read_bytes(), mode=0o600)


def make_roster(federation: Path, keys: Path) -> None:
    """Node keys of simulated merchants, and the roster with the public ones, as merchants of a deployment have them."""
    keys.mkdir(mode=0o700)
    roster = {}
    for folder in merchant_folders(federation):
        pair = new_node_key(folder.name)
        write_atomically(keys / f"{folder.name}.key", pair.private, mode=0o600)
        name = read_merchant_file(folder / "merchant.toml").name
        roster[name] = " ".join(pair.public.decode().split()[:2])
    Roster(roster).write(keys / ROSTER)


def resume(out: Path, engine: str | None = None, workers: int | None = None) -> RunFolder:
    """Go on with an interrupted run from its last checkpoint.

    Args:
        engine: as `simulate` has it; by default, like `workers`, what the run had.

    Raises:
        InputError: this is not the folder of a simulated run, its data have moved, its encoder has changed, or its engine
            has no workers.
    """
    folder = RunFolder.open(out)
    try:
        site = json.loads((out / SITE).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"there is no {SITE}", where=str(out), expected="the folder of a simulated run") from None
    if workers and (engine or site["engine"]) != "inline":
        raise InputError(f"found {workers}", where="--workers", expected="a run under the engine inline")
    check_device(engine or site["engine"], folder.config.device)
    load_encoder_for(folder.config, folder.load())
    changed = {"run": str(out.resolve()), "engine": engine or site["engine"], "workers": workers or site.get("workers", 1)}
    folder.write_json(SITE, {**site, **changed})
    return _go_on(folder)


def _go_on(folder: RunFolder) -> RunFolder:
    from clients.app import app as client_app
    from server.app import app as server_app

    site_path = (folder.path / SITE).resolve()
    os.environ["FEDREC_SITE"] = str(site_path)
    site = json.loads(site_path.read_text(encoding="utf-8"))
    state = folder.load()
    ended = (folder.path / "ended_early.json").exists()
    done = state is not None and (ended or state.ended(folder.config.rounds))
    # It was interrupted, at the latest as it was delivered.
    if not done or (not ended and folder.goes_home and not (folder.path / DELIVERED).exists()):
        merchants = len(merchant_folders(Path(site["federation"])))
        ENGINES[site["engine"]](server_app, client_app, merchants, site["workers"], folder.config.device)
    return folder


def finish(folder: RunFolder, with_reference: bool = True) -> dict[str, Any]:
    """The final table: baselines, what was trained, the reference that is not private, and what each merchant gets.

    Returns:
        What is written to `results.json`.
    """
    site = json.loads((folder.path / SITE).read_text(encoding="utf-8"))
    federation = Path(site["federation"])
    reference = _reference(folder, federation, folder.config) if with_reference else []
    results = write_results(folder, federation, simulation=True, more=reference)
    state = folder.load()
    if with_reference and state is not None and state.round and folder.goes_home == "next-item":
        encoder, scoring = load_encoder_for(folder.config), Scoring(**folder.metrics()[-1]["scoring"])
        results["merchants"] = at_merchants(federation, folder.config, encoder, state, scoring)
        folder.write_json("results.json", results)
    return results


def _reference(folder: RunFolder, federation: Path, config: RunConfig) -> list[dict[str, Any]]:
    central, encoder, merchants = load_central(federation), load_encoder_for(config), Pooled.read(federation)
    evaluator = evaluator_of(config, central, encoder)
    state, ran = first_state(config, central, encoder, read_start(folder.path)), folder.load()
    rounds = ran.round if ran is not None and ran.stopped else config.rounds
    keys = central.catalogue.keys

    counts = plain_counts(merchants, keys)
    public = {**state.public, "prior.keys": keys, "prior.counts": counts, "prior.floor": np.ones(1, dtype=np.float32)}
    if isinstance(evaluator, RatingEvaluator):
        both = plain_ratings(merchants, keys, config.rating_min, config.rating_max)
        public |= {"prior.counts": both[: len(keys)], RATINGS: both[len(keys) :]}
        public = with_expected(public, encoder, central, 0.0)
        rows = [row("user and item, not private", False, evaluator.of_user_and_item(public[RATINGS]))]
    else:
        rows = [row("popularity, not private", False, evaluator.popularity(counts))]
    cached = folder.path / "reference.json"
    if cached.exists():
        return [*rows, *json.loads(cached.read_text(encoding="utf-8"))]
    notify("reference_started", rounds=rounds)
    last, under = state.trained, evaluator.trains_under(public, state.trained)
    refit = partial(evaluator.trains_under, public)
    for number, trained in reference_rounds(config, merchants, encoder, public, state.trained, under, refit):
        last = trained
        notify("reference_round", round=number, rounds=rounds)
        if number == rounds:
            break
    last_row = row("same training, noise and clipping off", False, evaluator.line(public, last)["central"])
    folder.write_json("reference.json", [last_row])
    return [*rows, last_row]
