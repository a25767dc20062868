"""From a public catalogue to an adapter on disk that a run may start from.

The folder has an `adapter/` as a run has, `adaptation.json` with settings and the loss of every step, and, until it is done, a
checkpoint and the trunk's output for texts that are in no catalogue.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedrec.adaptation.contrast import Contrast, Schedule
from fedrec.adaptation.items import PublicItems
from fedrec.adaptation.pairs import KINDS, Pairs
from fedrec.config import RunConfig, write_atomically
from fedrec.data import Columns
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest, load_arrays, save_arrays
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.saved import COUNT, TEXT, save_adapter, settings_of_run
from fedrec.model.towers import Scoring, embedding_base, init_base, init_trained

__all__ = ["adapt"]

RECORD, CHECKPOINT, VIEWS, DONE = "adaptation.json", "checkpoint.safetensors", "views", "done"
EVERY = 10
"""Steps between checkpoints."""


def adapt(
    source: Path,
    out: Path,
    config: RunConfig,
    schedule: Schedule,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Train the LoRA on the catalogue of `source`, and write `out`. With one seed, one number of threads and one machine the
    result is the same, interrupted or not.

    Args:
        config: the encoder, its LoRA and heads as the run will have them.
        resume: go on with what was interrupted in `out`.
        progress: told of steps done, and of how many.

    Returns:
        What `adaptation.json` holds.

    Raises:
        InputError: a number out of its range, no items, an encoder that cannot be loaded or has no LoRA; `out` is there already,
            or holds nothing to go on with, or something else than these settings make of these items.
    """
    _check(config, schedule)
    items = PublicItems.read(source)
    encoder = load_encoder(
        config.encoder, config.encoder_layers, config.encoder_rank, config.max_tokens, config.device, config.texts_per_batch
    )
    if config.heads and config.rank > encoder.hidden:
        raise InputError(f"found {config.rank}", where="rank", expected=f"at most {encoder.hidden}, the encoder's width")
    pairs = Pairs.make(items, schedule.kinds, schedule.seed)
    if not schedule.steps(pairs):
        raise InputError(
            f"there are too few pairs of the kind {' or '.join(schedule.kinds)}", where=str(source),
            expected=f"{(schedule.batch + 1) // 2} or more of one kind", hint="a smaller --batch, or other --pairs",
        )  # fmt: skip
    record = _open(out, _settings(config, schedule, items, encoder), resume)
    if "digest" in record:
        return record  # it was done already
    states = encoder.states(items.catalogue)
    base = init_base(encoder, states, config.heads, config.rank, config.lora_init, schedule.seed)
    encoder.load(base)
    training = Contrast(encoder, pairs, pairs.states(encoder, out / VIEWS), base, schedule)
    record |= {"pairs": {kind: sides.shape[1] for kind, sides in zip(schedule.kinds, pairs.sides, strict=True)}}
    record |= {"texts": len(items.catalogue), "steps": training.total}
    _train(training, record, out, progress)
    moved = embedding_base(
        encoder.pooled(states), config.heads, config.rank, config.lora_init, torch.Generator().manual_seed(schedule.seed)
    )
    arrays = {**base, **init_trained(encoder, config.heads, config.rank), **encoder.trained(), **moved}
    _write(out / "adapter", encoder, items, arrays, config)
    record["digest"] = digest(arrays)
    _save_record(out, record)
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / VIEWS, ignore_errors=True)
    return record


def _settings(config: RunConfig, schedule: Schedule, items: PublicItems, encoder: TextEncoder) -> dict[str, Any]:
    """What the result is a function of, as JSON has it."""
    of_run = {name: getattr(config, name) for name in ("encoder_layers", "encoder_rank", "lora_init", "heads", "rank")}
    read = {"items": items.catalogue.digest, "encoder_fingerprint": encoder.fingerprint}
    return {**asdict(schedule), "kinds": list(schedule.kinds), **read, **of_run}


def _check(config: RunConfig, schedule: Schedule) -> None:
    if unknown := [kind for kind in schedule.kinds if kind not in KINDS]:
        raise InputError(f"found {unknown[0]!r}", where="--pairs", expected=f"one of {', '.join(KINDS)}")
    if not schedule.kinds or len(set(schedule.kinds)) < len(schedule.kinds):
        raise InputError("a kind is there twice, or none is", where="--pairs", expected=f"some of {', '.join(KINDS)}")
    for value, least, option in ((schedule.epochs, 1, "--epochs"), (schedule.batch, 2, "--batch")):
        if value < least:
            raise InputError(f"found {value}", where=option, expected=f"{least} or more")
    for number, option in ((schedule.temperature, "--temperature"), (schedule.learning_rate, "--learning-rate")):
        if not 0 < number <= 1:
            raise InputError(f"found {number:g}", where=option, expected="more than 0, at most 1")
    if not config.encoder_layers:
        raise InputError("found 0", where="encoder_layers", expected="1 or more: what is adapted is the encoder's LoRA")


def _open(out: Path, made_of: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The record so far, of which another training than this one cannot be."""
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError("is already there", where=str(out), hint="give another OUT, or --resume to go on with it")
        out.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"settings": made_of, "losses": [], "seconds": 0.0}
        _save_record(out, record)
        return record
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        before = record["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("there is nothing to go on with", where=str(out), expected="an interrupted adaptation") from None
    if other := sorted(name for name in made_of if before.get(name) != made_of[name]):
        raise InputError(
            f"another {', '.join(other)} than it was begun with", where=str(out), hint="give the same source and settings again"
        )
    return dict(record)


def _train(training: Contrast, record: dict[str, Any], out: Path, progress: Callable[[int, int], None]) -> None:
    if (out / CHECKPOINT).is_file():
        state = load_arrays(out / CHECKPOINT)
        training.restore(int(state.pop(DONE)[0]), state)
    record["losses"] = record["losses"][: training.done]
    started, before = time.monotonic(), record["seconds"]
    progress(training.done, training.total)
    for kind, loss in training.run():
        record["losses"].append({"pairs": kind, "loss": round(loss, 6)})
        record["seconds"] = round(before + time.monotonic() - started, 3)
        progress(training.done, training.total)
        if training.done % EVERY == 0:
            _checkpoint(training, record, out)


def _checkpoint(training: Contrast, record: dict[str, Any], out: Path) -> None:
    # The record first: it may be ahead of the checkpoint, which says how much of it counts.
    _save_record(out, record)
    save_arrays({**training.state(), DONE: np.array([training.done])}, out / CHECKPOINT)


def _save_record(out: Path, record: dict[str, Any]) -> None:
    write_atomically(out / RECORD, json.dumps(record, indent=2).encode())


def _write(folder: Path, encoder: TextEncoder, items: PublicItems, arrays: Arrays, config: RunConfig) -> None:
    """An adapter's folder as a run's; nothing is known of popularity."""
    scoring = Scoring(config.temperature, config.decay, config.prior_weight)
    floor = {"prior.floor": np.ones(1, dtype=np.float32)}
    unknown = np.zeros(len(items.catalogue))
    table = pd.DataFrame({Columns.ITEM: items.catalogue.item_ids, TEXT: items.catalogue.texts, COUNT: unknown})
    table = table.assign(**items.details.columns())
    save_adapter(folder, encoder, arrays, settings_of_run(config, encoder, floor, scoring.by_name()), table)
