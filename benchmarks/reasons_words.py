"""Which words are named: as `fedrec.recommender.reasons.words` has it, by its two ends, by integrated gradients, at random.

Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, equations 2 and 3) of f(text) = <direction, c(text)> over the word
embeddings of the text's tokens, from zeros to what they are, by the midpoint rule; a word's share is the sum over the tokens that
lie in it. f goes the whole way: encoder with its LoRA, pooling, centring, normalisation, head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import timed
from benchmarks.reasons_cases import FEWEST, MOST, Case, Subject, seen
from fedrec.model.adapter import Arrays
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import centred, role_table
from fedrec.recommender import Recommender
from fedrec.recommender.reasons.words import Reader, split_words, without, words_of

__all__ = ["WORD_WAYS", "Gradients", "Spans", "word_deletion"]

WORD_WAYS = ("shown", "left out", "alone", "gradients", "random")
STEPS = 32

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Gradients:
    """Integrated gradients.

    Attributes:
        encoder: with its LoRA loaded.
        head: pooled vectors (texts, hidden) to those of candidates as they are scored, with a graph.
    """

    encoder: TextEncoder
    head: Callable[[Tensor], Tensor]

    def shares(self, text: str, spans: Spans, direction: np.ndarray) -> tuple[np.ndarray, float]:
        """(words,) shares, and what they leave of f(text) - f(zeros): the completeness error."""
        encoder = self.encoder
        encoded = encoder.tokenizer(  # type: ignore[operator]
            text, truncation=True, max_length=encoder.max_tokens, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        real = ~torch.tensor(encoded["special_tokens_mask"], dtype=torch.bool)
        tokens = encoder.bert.embeddings.word_embeddings(torch.tensor(encoded["input_ids"])).detach().float()  # (tokens, hidden)
        moved, towards = tokens * real[:, None], torch.from_numpy(direction).float()
        steps = (torch.arange(STEPS) + 0.5) / STEPS
        path = (tokens - moved * (1 - steps)[:, None, None]).requires_grad_()  # (steps, tokens, hidden)
        (slope,) = torch.autograd.grad(self._values(path, towards).sum(), path)
        of_token = (slope.mean(0) * moved).sum(1).numpy()  # (tokens,)
        with torch.no_grad():
            low, high = self._values(torch.stack([tokens - moved, tokens]), towards).tolist()
        shares = np.zeros(len(spans))
        for share, (start, end) in zip(of_token.tolist(), encoded["offset_mapping"], strict=True):
            for word, (first, last) in enumerate(spans):
                if first <= start and end <= last and end > start:
                    shares[word] += share
        return shares, float(high - low - of_token.sum())

    def _values(self, tokens: Tensor, direction: Tensor) -> Tensor:
        """(texts,) f of texts given by the embeddings of their tokens (texts, tokens, hidden)."""
        hidden = self.encoder.bert.embeddings(inputs_embeds=tokens)
        for layer in self.encoder.bert.encoder.layer:
            hidden = layer(hidden, None)
        return self.head(hidden.mean(1)) @ direction


def gradients_of(subject: Subject) -> Gradients:
    """Integrated gradients through what ranks; the adapter is loaded."""
    one = subject.recommender
    one._reader().vectors(["so that the adapter is loaded"])
    if isinstance(one, Recommender):
        return Gradients(one.encoder, partial(_head, one.arrays, one.scoring.temperature))
    arrays = {"centre": one._centre.numpy()} if one.adapter is None else one.adapter.arrays
    return Gradients(one.place.encoder(one.adapter), partial(_head, arrays, 1.0))


def _head(arrays: Arrays, temperature: float, pooled: Tensor) -> Tensor:
    return role_table(centred(pooled, arrays), arrays, arrays, "candidate") * temperature


@dataclass
class Namers:
    """Each way to name words, what it takes, and what its shares leave."""

    reader: Reader
    gradients: Gradients
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WORD_WAYS, 0.0))
    gaps: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(2))

    def value(self, texts: Sequence[str], direction: np.ndarray) -> np.ndarray:
        """(texts,) f of them."""
        return self.reader.vectors(texts)[:, : len(direction)].astype(np.float64) @ direction

    def shares(self, text: str, spans: Spans, direction: np.ndarray) -> dict[str, np.ndarray]:
        """(words,) by way; only their order counts."""
        found: dict[str, Any] = {}
        ways: dict[str, Callable[[], Any]] = {
            "shown": lambda: words_of([text], direction[None], self.reader)[0],
            "left out": lambda: -self.value([without(text, [span]) for span in spans], direction),
            "alone": lambda: self.value([text[start:end] for start, end in spans], direction),
            "gradients": lambda: self.gradients.shares(text, spans, direction),
            "random": lambda: self.random.random(len(spans)),
        }
        for name, way in ways.items():
            self.seconds[name] += timed(partial(_keep, found, name, way))
        self.gaps.append(found["shown"].gap)
        self.errors.append(found["gradients"][1])
        return {**found, "shown": np.array(found["shown"].shares), "gradients": found["gradients"][0]}


def _keep(found: dict[str, Any], name: str, way: Callable[[], Any]) -> None:
    found[name] = way()


def word_deletion(subject: Subject, cases: Sequence[Case]) -> dict[str, Any]:
    """What the best item of each user loses without the words that each way names first, and with nothing else.

    Returns:
        `lost` (texts, ways, MOST, 2, 3) of score, rank and probability, `pairs`, and means of what the shares leave and take.
    """
    namers, rows = Namers(subject.recommender._reader(), gradients_of(subject)), []
    for case in cases:
        item = case.items[0]
        text = subject.ranker.catalogue.texts[item]
        text = text[: namers.reader.until(text)]
        spans = split_words(text)
        if len(spans) < FEWEST:
            continue
        shares, asked = namers.shares(text, spans, case.direction), [text]
        for way in WORD_WAYS:
            order = np.argsort(-shares[way], kind="stable").tolist()
            for k in range(1, MOST + 1):
                asked += [without(text, [spans[word] for word in some]) for some in (order[:k], order[k:])]
        values, after = namers.value(asked, case.direction), []
        for lost in values[0] - values[1:]:
            scores = case.scores.copy()
            scores[item] -= lost
            after.append(seen(scores, item))
        rows.append(np.array(seen(case.scores, item)) - np.array(after).reshape(len(WORD_WAYS), MOST, 2, 3))
    found = np.stack(rows)
    found[..., 1] *= -1
    return {
        "lost": found, "pairs": len(rows), "gap": float(np.abs(namers.gaps).mean()),
        "completeness": float(np.abs(namers.errors).mean()),
        "seconds": {way: took / len(rows) for way, took in namers.seconds.items()},
    }  # fmt: skip
