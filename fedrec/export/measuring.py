"""An export beside the original: what it costs in quality, and what it saves in time and bytes, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from fedrec.config import RunConfig, write_atomically
from fedrec.data import Catalogue
from fedrec.evaluation import EvaluationSet, Group, summarise
from fedrec.evaluation.protocol import joined, metrics_of, scored
from fedrec.export.source import Source
from fedrec.model.onnx_encoder import FULL, INT8, OnnxEncoder
from fedrec.model.ranking import top_k
from fedrec.model.towers import Scoring, centred, role_table

__all__ = ["Users", "measure_export", "write_figures"]

LATENCIES = 200
"""Texts, one after the other, that a latency is taken over."""
BATCH = 64
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Users:
    """Whom the forms of a model rank for.

    Attributes:
        counts: (items,) the popularity that is joined with the text; equal numbers for none.
        floor: its least count.
    """

    dataset: EvaluationSet
    counts: np.ndarray
    floor: float

    @classmethod
    def of_items(cls, catalogue: Catalogue, most: int = 1000) -> Users:
        """A user for every item, with this item alone as the history and no truth: all of it is public."""
        items = np.unique(np.linspace(0, len(catalogue) - 1, most).astype(np.int64))[:, None]
        masked = np.stack([np.arange(len(items)), items[:, 0]], axis=1)
        group = Group(
            "", np.arange(len(catalogue)), items, np.zeros(items.shape), np.ones(items.shape, dtype=bool), masked,
            np.zeros((0, 2), dtype=np.int64),
        )  # fmt: skip
        return cls(EvaluationSet((group,), 0), np.ones(len(catalogue)), 1.0)

    @property
    def have_truth(self) -> bool:
        """Whether they have bought something that a list could hold."""
        return any(len(group.relevant) for group in self.dataset.groups)


def measure_export(
    source: Source, out: Path, users: Users, config: RunConfig, tell: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """The original and every form of it in `out`.

    Args:
        users: whom each ranks for, by the text score and their popularity.
        tell: is told how many forms are measured, of how many.

    Returns:
        `rows` of `name`, `bytes` of the weights, `latency_ms` (median and p95 of one short text), `texts_per_second` over the
        catalogue, `overlap` (mean share of the original's top k that the form has too), and NDCG with its interval where
        users have a truth; `k`, `items`, `users` and `threads`.
    """
    forms = _forms(source, out)
    rows, first = [], None
    for done, (name, (encode, size)) in enumerate(forms.items()):
        tell(done, len(forms))
        began = time.perf_counter()
        pooled = encode(source.catalogue.texts)
        per_second = len(source.catalogue) / (time.perf_counter() - began)
        lists, found = _ranked(source, pooled, users, config)
        first = lists if first is None else first
        row = {
            "name": name, "bytes": size, "latency_ms": _latency(encode, source.catalogue.texts),
            "texts_per_second": per_second, "overlap": _overlap(first, lists),
        }  # fmt: skip
        rows.append(row | found)
    tell(len(forms), len(forms))
    people = sum(len(group.items) for group in users.dataset.groups)
    return {
        "rows": rows, "k": config.top_k, "items": len(source.catalogue), "users": people, "threads": torch.get_num_threads()
    }  # fmt: skip


def write_figures(found: dict[str, Any], out: Path) -> None:
    """Keep them beside the files; only what was measured on public users or on public items alone belongs there."""
    write_atomically(out / "measured.json", json.dumps(found, indent=2).encode())


def _forms(source: Source, out: Path) -> dict[str, tuple[Encode, int]]:
    """From names to what encodes, and the size of its weights in bytes."""
    encoder = source.encoder
    trained = sum(value.nbytes for value in (*encoder.frozen().values(), *encoder.trained().values()))
    kind = "bfloat16" if encoder.low_precision else "float32"
    forms: dict[str, tuple[Encode, int]] = {f"original, {kind}": (_original(source), encoder.base_size + trained)}
    if (weights := out / "model.safetensors").exists():
        forms["transformers, float32"] = (_transformers(out, source.settings["max_tokens"]), weights.stat().st_size)
    for name, file, int8 in (("onnx, float32", FULL, False), ("onnx, int8", INT8, True)):
        if (out / file).exists():
            forms[name] = (OnnxEncoder(out, int8).encode, (out / file).stat().st_size)
    return forms


def _original(source: Source) -> Encode:
    # Without the cache: it would be a race against a file.
    return lambda texts: source.encoder.encode(texts).cpu()


def _transformers(folder: Path, max_tokens: int) -> Encode:
    bert = BertModel.from_pretrained(str(folder), add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def encode(texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        out = torch.empty(len(texts), bert.config.hidden_size)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            given = [texts[row] for row in rows]
            batch = tokenizer(given, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
            with torch.no_grad():
                hidden = bert(**batch).last_hidden_state  # (texts, tokens, hidden)
            mask = batch["attention_mask"].unsqueeze(-1)
            out[rows] = (hidden * mask).sum(1) / mask.sum(1)
        return out

    return encode


def _ranked(source: Source, pooled: Tensor, users: Users, config: RunConfig) -> tuple[np.ndarray, dict[str, float]]:
    """(users, k) the items of every user's list, and their metrics where there is a truth."""
    scoring = Scoring(**source.settings["scoring"])
    e = centred(pooled, source.arrays)
    history, candidate = (role_table(e, source.arrays, source.arrays, role).numpy() for role in ("history", "candidate"))
    lists, metrics = [], []
    weights = (scoring.prior_weight,)
    found = scored(users.dataset, history, candidate, users.counts, users.floor, scoring.temperature, scoring.decay, weights)
    for block, _, scores in found:
        if users.have_truth:
            metrics.append(metrics_of(block, scores, config.top_k))
        scores[block.masked[:, 0], block.masked[:, 1]] = -np.inf
        best = top_k(scores, config.top_k)[0]
        lists.append(np.pad(best, ((0, 0), (0, config.top_k - best.shape[1])), constant_values=-1))
    summary = summarise(joined(metrics), config.top_k, config.bootstrap, config.seed) if metrics else {}
    return np.concatenate(lists), summary


def _overlap(wanted: np.ndarray, found: np.ndarray) -> float:
    """Mean share of each list (users, k) that the other holds too."""
    there = wanted >= 0
    hit = (wanted[:, :, None] == found[:, None, :]).any(axis=2) & there
    return float((hit.sum(axis=1) / np.maximum(there.sum(axis=1), 1)).mean())


def _latency(encode: Encode, texts: Sequence[str]) -> dict[str, float]:
    took = []
    for text in [texts[row % len(texts)] for row in range(LATENCIES)]:
        began = time.perf_counter()
        encode([text])
        took.append(1000 * (time.perf_counter() - began))
    return {"median": float(np.median(took)), "p95": float(np.quantile(took, 0.95))}
