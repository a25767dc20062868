"""A shop and an encoder of a given shape, made here: what a step costs depends on shapes and not on what was learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from fedrec.data import Columns

__all__ = ["BASE", "MINILM", "TINY", "EncoderShape", "item_titles", "purchases", "write_encoder", "write_shop"]

WORDS = 2000


@dataclass(frozen=True)
class EncoderShape:
    """Layers, width and heads of a BERT."""

    layers: int
    hidden: int
    heads: int
    positions: int = 512


MINILM, BASE, TINY = EncoderShape(6, 384, 12), EncoderShape(12, 768, 12), EncoderShape(2, 32, 4)


def write_encoder(folder: Path, shape: EncoderShape) -> None:
    """A BERT of that shape with weights drawn from a fixed seed, and a tokenizer with a token for each word of a shop."""
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(_word, range(WORDS))]), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden, max_position_embeddings=shape.positions,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def item_titles(items: int, tokens: tuple[int, int], seed: int = 0) -> pd.DataFrame:
    """A table of items whose texts have `tokens` at least and at most, most of them near a third of the way."""
    rng = np.random.default_rng(seed)
    least, most = tokens
    lengths = least + np.round((most - least) * rng.beta(2, 5, items)).astype(int) - 2  # without the two at the ends
    words = rng.integers(0, WORDS, (items, most))
    titles = [" ".join(map(_word, row[:length])) for row, length in zip(words, lengths, strict=True)]
    return pd.DataFrame({Columns.ITEM: [f"i{item}" for item in range(items)], Columns.TITLE: titles})


def purchases(items: int, users: int, seed: int = 0) -> pd.DataFrame:
    """A table of events. They are spread over users as at the embedded data's second brand (half of them have 22 or fewer, a
    tenth over 100), and items are bought as often as a power law says."""
    rng = np.random.default_rng(seed)
    events = np.clip(rng.lognormal(np.log(22), 1.2, users).astype(int), 4, 400)
    owner = np.repeat(np.arange(users), events)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(events) - events, events)
    popularity = 1 / np.arange(1, items + 1)
    table = pd.DataFrame(
        {
            Columns.USER: [f"u{user}" for user in owner],
            Columns.ITEM: [f"i{item}" for item in rng.choice(items, len(owner), p=popularity / popularity.sum())],
            Columns.TIME: pd.Timestamp("2026-01-01") + pd.to_timedelta(place // 3, unit="D"),  # three to a basket
        }
    )
    return table.drop_duplicates(ignore_index=True)


def write_shop(folder: Path, items: int, users: int, tokens: tuple[int, int] = (7, 35)) -> None:
    """A merchant folder of them; by default its texts are as long as product descriptions of the embedded data."""
    folder.mkdir(parents=True)
    item_titles(items, tokens).to_parquet(folder / "items.parquet", index=False)
    purchases(items, users).to_parquet(folder / "events.parquet", index=False)


def _word(number: int) -> str:
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(3)) + "o"
