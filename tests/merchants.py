"""A real merchant on disk, small enough to be asked thousands of times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tomli_w

from clients.merchant import Merchant
from clients.site import Site
from fedrec.data import Columns, load_merchant
from fedrec.merchant import ModelSettings, read_merchant_file
from fedrec.model.adapter import Arrays
from fedrec.model.towers import init_base, init_trained
from fedrec.training import RoundTask

from .conftest import make_catalogue, make_events

RANK = 2


def write_merchant(folder: Path, users: int = 30, items: int = 20, **policy: object) -> Path:
    """A merchant folder with a policy."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    catalogue = make_catalogue(items)
    pd.DataFrame({Columns.ITEM: catalogue.item_ids, Columns.TITLE: catalogue.texts}).to_parquet(folder / "items.parquet")
    make_events(users, catalogue, 4).to_parquet(folder / "events.parquet")
    settings = {"name": "shop", "privacy": {"epsilon": 1.0, "delta": 1e-5, "population": users, **policy}}
    (folder / "merchant.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    return folder


def open_shop(folder: Path, bert: Path, state: Path, seed: int | None = 0) -> Merchant:
    """The merchant with its ledger and replies under `state`."""
    model = ModelSettings(encoder=str(bert), device="cpu", texts_per_batch=64)
    key, roster, adapters = (state / name for name in ("node.key", "roster.txt", "model"))
    site = Site(folder, state / "ledger", state / "replies", model, seed, key, roster, adapters)
    settings = read_merchant_file(folder / "merchant.toml")
    return Merchant(settings.name, load_merchant(folder), settings.privacy, site)


def public_and_trained(shop: Merchant) -> tuple[Arrays, Arrays]:
    """What a server would send: the public part with a flat prior, and an untrained adapter."""
    encoder = shop.encoder(TASK)
    states = encoder.states(shop.data.catalogue)
    base = init_base(encoder, states, True, RANK, "principal", 0)
    keys = shop.data.catalogue.keys
    prior = {"prior.keys": keys, "prior.counts": np.ones(len(keys), np.float32), "prior.floor": np.ones(1, np.float32)}
    return {**base, **prior}, init_trained(encoder, True, RANK)


TASK = RoundTask(
    run="run",
    round=1,
    part="heads",
    trunk="",
    encoder_layers=1,
    encoder_rank=2,
    max_tokens=16,
    local_steps=1,
    sample_rate=1.0,
    clip_norm=0.5,
    noise_multiplier=20.0,
    delta=1e-5,
    unit="user",
    learning_rate=1.0,
    history=5,
    positions=2,
    negatives=4,
    encoder_history=3,
    temperature=3.0,
    decay=0.1,
    prior_weight=1.0,
    update_code="float32",
)


def task(shop: Merchant, **changes: object) -> RoundTask:
    """The usual task for a merchant with this shop's encoder, with changes."""
    return replace(TASK, trunk=shop.encoder(TASK).fingerprint, **changes)  # type: ignore[arg-type]
