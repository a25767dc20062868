"""Federated rounds the obvious way: Flower's FedAvg under Ray, each client a step of `benchmarks/obvious.py`.

    python -m benchmarks.obvious_app FEDERATION CONFIG RUN

A client does what Flower's examples do in a round: load the model, set the parameters, take a step
with Opacus's optimizer, send the parameters back. The round ends with the average: no central
evaluation, no ledger, no checkpoint, all of which our rounds include. `RUN/metrics.jsonl` gets a line
a round, and one for round 0, where ours has the histogram.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from opacus.optimizers import DPOptimizer

from benchmarks.obvious import Obvious
from fedrec.cli.terminal import quiet_libraries
from fedrec.config import RunConfig, load_config
from fedrec.data import load_central, load_merchant, merchant_folders
from fedrec.model import Arrays, Scoring, init_base, init_trained
from fedrec.model.encoder import resolve_device
from fedrec.training import build_examples
from fedrec.training.sampled import SampledLoss
from server.start import load_encoder_for

__all__ = ["main"]

FEDERATION, CONFIG, RUN = "OBVIOUS_FEDERATION", "OBVIOUS_CONFIG", "OBVIOUS_RUN"
client_app, server_app = ClientApp(), ServerApp()


def _config() -> RunConfig:
    return load_config(Path(os.environ[CONFIG]))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One private step on this merchant's users."""
    config = _config()
    data = load_merchant(merchant_folders(Path(os.environ[FEDERATION]))[int(context.node_config["partition-id"])])
    arrays = {name: value.numpy() for name, value in message.content["arrays"].items()}  # type: ignore[union-attr]
    examples = build_examples(data.histories, history=config.history, positions=config.positions, decay=config.decay)
    rng = np.random.default_rng()
    lot = examples.take(np.flatnonzero(rng.random(len(examples)) < config.encoder_sample_rate))
    negatives = rng.integers(0, len(data.catalogue), config.negatives)
    device = resolve_device(config.device)
    way = Obvious(
        config.encoder, config.encoder_layers, arrays, data.catalogue.texts, config.encoder_rank, config.max_tokens, device
    )
    prior = np.zeros(len(data.catalogue), dtype=np.float32)
    scoring = Scoring(config.temperature, config.decay, config.prior_weight)
    loss = SampledLoss(prior, arrays, {}, scoring, device)
    trained = {name: parameter for name, parameter in way.module.named_parameters() if parameter.requires_grad}
    optimizer = DPOptimizer(
        torch.optim.SGD(list(trained.values()), lr=config.learning_rate), noise_multiplier=config.noise_multiplier or 1.0,
        max_grad_norm=config.clip_norm, expected_batch_size=max(1, round(config.encoder_sample_rate * len(examples))),
        loss_reduction="sum",
    )  # fmt: skip
    for parameter, sample in zip(trained.values(), way.gradients(lot, negatives, config.encoder_history, loss), strict=True):
        parameter.grad_sample = sample  # type: ignore[attr-defined]
    optimizer.step()
    names = [name for name in arrays if "lora_B" in name]
    update = {name: parameter.detach().cpu().numpy() for name, parameter in zip(names, trained.values(), strict=True)}
    content = RecordDict({"arrays": _record({**arrays, **update}), "metrics": MetricRecord({"num-examples": len(lot)})})
    return Message(content, reply_to=message)


@server_app.main()
def main_server(grid: Grid, context: Context) -> None:
    """FedAvg over all merchants, a line of `metrics.jsonl` a round."""
    config, run = _config(), Path(os.environ[RUN])
    encoder = load_encoder_for(config)
    base = init_base(encoder, encoder.states(load_central(Path(os.environ[FEDERATION])).catalogue), False, 1, "principal", 0)
    count = len(merchant_folders(Path(os.environ[FEDERATION])))

    def line(number: int, _: ArrayRecord) -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"round": number, "seconds": 0.0}) + "\n")

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    strategy.start(
        grid, _record({**base, **init_trained(encoder, False, 1)}), config.rounds, train_config=ConfigRecord(), evaluate_fn=line
    )


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: torch.tensor(value) for name, value in arrays.items()})


def main() -> None:
    """The command."""
    quiet_libraries()
    federation, config, run = (Path(argument).resolve() for argument in sys.argv[1:])
    run.mkdir()
    os.environ |= {FEDERATION: str(federation), CONFIG: str(config), RUN: str(run)}
    from benchmarks import obvious_app
    from simulations.engines import run_flower

    device = _config().device
    run_flower(obvious_app.server_app, obvious_app.client_app, len(merchant_folders(federation)), device=device)


if __name__ == "__main__":
    main()
