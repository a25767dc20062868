"""Shares of words by integrated gradients, to compare `fedrec.recommender.reasons.words` with.

Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, equations 2 and 3) of f(text) = <direction, c(text)> over the word
embeddings of the text's tokens, from zeros to what they are, by the midpoint rule; a word's share is the sum over the tokens that
lie in it. f goes the whole way: encoder with its LoRA, pooling, centring, normalisation, head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedrec.model.encoder import TextEncoder

__all__ = ["Gradients"]

STEPS = 32


@dataclass(frozen=True)
class Gradients:
    """Integrated gradients.

    Attributes:
        encoder: with its LoRA loaded.
        head: pooled vectors (texts, hidden) to those of candidates as they are scored, with a graph.
    """

    encoder: TextEncoder
    head: Callable[[Tensor], Tensor]

    def shares(self, text: str, spans: tuple[tuple[int, int], ...], direction: np.ndarray) -> tuple[np.ndarray, float]:
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
