"""The ServerApp: from the run folder to `strategy.start` to the report."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedrec import wire
from fedrec.data import load_central
from fedrec.model.saved import save_adapter, settings_of_run, table_of_run
from fedrec.privacy import plan_noise
from server.delivery import MOST_SECONDS, Delivered, hand_over, parcel_of
from server.evaluators import evaluator_of
from server.given_start import public_roles, read_start, start_of
from server.judging import StoppedEarly, after_round, at_the_end
from server.progress import notify
from server.rating_evaluation import noise_by_item, with_expected
from server.run_folder import RunFolder, ServerState
from server.secure import STRATEGIES
from server.start import first_state, load_encoder_for, round_line
from server.statistics import ask_for_pairs, with_complements
from server.strategy import NobodyLeft, connected

__all__ = ["app", "send_home", "train"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the federated run that the site file names, and send its adapter home."""
    site = json.loads(Path(os.environ["FEDREC_SITE"]).read_text(encoding="utf-8"))
    folder = RunFolder.open(Path(site["run"]))
    ended = train(grid, folder, Path(site["federation"]))
    send_home(grid, folder)
    notify("finished", reason=ended)


def train(grid: Grid, folder: RunFolder, federation: Path) -> str:
    """Train from the last checkpoint, or from the beginning, until the run ends.

    Args:
        federation: folder of the central users' data.

    Returns:
        Why it ended. All of it is on disk then.

    Raises:
        TooFewMerchants: the run stopped at its last checkpoint.
    """
    config = folder.config
    central = load_central(federation)
    state = folder.load()
    encoder = load_encoder_for(config, state)
    evaluator = evaluator_of(config, central, encoder)
    state = state or first_state(config, central, encoder, read_start(folder.path))
    start = start_of(folder.path, state.trained)
    strategy = STRATEGIES[config.trust](config, plan_noise(config), state, encoder.fingerprint)

    if "prior.counts" not in state.public:
        folder.save(state)  # the run's id, before anything is paid for under it
        if pairs := ask_for_pairs(grid, folder, strategy, central.catalogue, encoder):
            strategy.state = state = replace(state, public={**state.public, **pairs})
            folder.save(state)  # merchants keep their last reply alone, and the next request replaces this one
        prior, record = strategy.collect_priors(grid, central.catalogue.keys, config.round_timeout)
        public = with_complements({**state.public, **prior}, central.catalogue, encoder)
        local, sigma = config.trust == "local", strategy.plan.histogram or 0.0
        noise = noise_by_item(sigma, record.took_part, central) if local else strategy.prior_noise
        public = with_expected(public, encoder, central, noise)
        under = evaluator.trains_under(public, state.trained)
        state, found = after_round(config, evaluator, start, replace(state, public=public, scoring=under), moved=True)
        strategy.state = state
        baselines = evaluator.baselines(public, state.trained, under)
        found |= {**evaluator.line(public, state.trained), "trains_under": under.by_name(), "baselines": baselines}
        line = round_line(0, None, record, found)
        folder.add_metrics(line)
        folder.save(state)
        notify("round_done", **line)
    before = state.trained

    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord | None:
        nonlocal before
        if server_round == 0:
            return None  # written above, or by the run that this one goes on with
        moved = any(not np.array_equal(value, before[name]) for name, value in strategy.state.trained.items())
        before = strategy.state.trained
        now, found = after_round(config, evaluator, start, strategy.state, moved)
        under = evaluator.trains_under(now.public, now.trained, now.scoring)
        strategy.state = now = replace(now, scoring=under)
        found |= {**evaluator.line(now.public, now.trained), "trains_under": under.by_name()}
        line = round_line(now.round, config.part(now.round), strategy.record, found)
        keep(now, line)
        notify("round_done", **line)  # after all of it is on disk: what was shown counts
        if now.stopped:
            raise StoppedEarly
        return MetricRecord({name: float(value) for name, value in line["central"].items()})

    def keep(now: ServerState, line: dict[str, Any]) -> None:
        folder.add_metrics(line)
        arrays = {name: value for name, value in {**now.public, **now.trained}.items() if not name.startswith("prior.")}
        settings = settings_of_run(config, encoder, now.public, line["scoring"], line.get("response_scoring"))
        settings |= public_roles(config)
        save_adapter(folder.path / "adapter", encoder, arrays, settings, table_of_run(central, now.public))
        folder.save(now)

    try:
        if not state.ended(config.rounds):
            left = config.rounds - state.round
            strategy.start(grid, wire.to_record(state.trained), left, config.round_timeout, evaluate_fn=evaluate)
        return "all rounds are done"
    except StoppedEarly:
        return f"the judging users saw no gain in {config.patience} rounds"
    except NobodyLeft as reason:
        if strategy.state.round:  # as after the last round: the judges chose from all that there were
            now, share = at_the_end(evaluator, start, strategy.state)
            keep(now, {**folder.metrics()[-1], "kept": share, **evaluator.line(now.public, now.trained)})
        folder.write_json("ended_early.json", {"round": strategy.state.round, "reason": str(reason), **asdict(strategy.record)})
        return f"too many merchants have declined ({reason})"


def send_home(grid: Grid, folder: RunFolder) -> None:
    """Send a run's last adapter to whoever is connected, where a round was trained and merchants can use it."""
    if folder.last_round() and folder.goes_home:
        parcel, timeout = parcel_of(folder), min(folder.config.round_timeout, MOST_SECONDS)
        Delivered(folder, parcel).add(hand_over(grid, parcel, connected(grid), timeout))
