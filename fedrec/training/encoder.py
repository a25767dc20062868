"""Per-user gradients of the encoder's LoRA.

A user expands to several texts: recent history, targets, and negatives drawn from the
public catalogue. Per-user gradients need three passes: the distinct texts are encoded without a
graph; each user's loss is differentiated with respect to its own copies of the embeddings;
and those derivatives are sent back through the top layers. A user's own texts go in batches of
one length, where a grad sampler keeps each text's part. The negatives are the same
for all users, so their forward pass is shared and only the way back is taken user by user. The
result is exact, and memory is bounded by the number of texts in flight.

Who else is in a lot must not change how a user's gradient is rounded, which in bf16 matters: on some processors by a
five-hundredth of it. So a processor computes in float32, a text is padded to a length of its own, no batch is of a
few tokens only (those of more were found to be rounded alike), what is between the two passes is computed in
float64, and parts are added up in the user's own order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from torch import Tensor, nn

from fedrec.model.adapter import Arrays
from fedrec.model.cache import States
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import Scoring
from fedrec.privacy import PerRecord
from fedrec.training.examples import Examples
from fedrec.training.records import Records
from fedrec.training.sampled import Pairs, SampledSoftmax, layout

__all__ = ["EncoderTrainer", "TextLinear"]

RECORDS_PER_CHUNK, FLOATS_SHARED, FLOATS_PER_RECORD = 256, 4_000_000, 24_000_000
"""Most records that are computed at once, most numbers of their copies of the negatives, and most of anything else that
a server can make large: public sizes, so that no lot needs more memory than another."""


class TextLinear(nn.Linear):
    """A linear layer whose gradient is wanted for each text of a batch, in float32."""


@register_grad_sampler(TextLinear)
def _text_gradients(layer: TextLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    per_text = torch.einsum("nto,nti->noi", backprops.float(), activations[0].float())
    return {cast(nn.Parameter, layer.weight): per_text}


class EncoderTrainer:
    """The encoder of one merchant's catalogue, ready for private steps; `negatives` are set for each step."""

    def __init__(
        self,
        encoder: TextEncoder,
        states: States,
        prior: np.ndarray,
        base: Arrays,
        trained: Arrays,
        scoring: Scoring,
        *,
        history: int,
    ) -> None:
        encoder.load({**base, **trained})
        self.encoder, self.states, self.history = encoder, states, history
        self.softmax = SampledSoftmax(prior, base, trained, scoring, encoder.device)
        self.layers = [module for name, module in encoder.top.named_modules() if "lora_B." in name]
        for layer in self.layers:
            layer.__class__ = TextLinear
            layer.train()  # Opacus records nothing of a layer in evaluation mode; linear layers do not differ
        self.negatives = np.zeros(0, dtype=np.int64)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [layer.weight for layer in self.layers]  # type: ignore[misc]

    def arrays(self) -> Arrays:
        """The trained LoRA matrices as they are now, by PEFT's names."""
        return self.encoder.trained()

    def chunks(self, lot: Examples | Records) -> Iterator[Examples]:
        """The lot in pieces of a bounded number of users."""
        hidden, negatives = self.encoder.hidden, len(self.negatives)
        padded = lot.length * (hidden + 8 * lot.positions)  # embeddings that are pooled, and weights with what they are made of
        scored = 8 * lot.positions * (negatives + len(self.states))  # products, and masks by item
        trained = sum(parameter.numel() for parameter in self.parameters())
        most = min(
            RECORDS_PER_CHUNK, FLOATS_SHARED // max(1, negatives * hidden), FLOATS_PER_RECORD // max(padded, scored, trained)
        )
        for start in range(0, len(lot), max(1, most)):
            yield lot.take(np.arange(start, min(start + max(1, most), len(lot)))).padded()

    def gradients(self, lot: Examples | Records) -> Iterator[PerRecord]:
        """The gradients of a lot's records, in chunks of a bounded number of them."""
        for chunk in self.chunks(lot):
            with self.encoder.in_float32():
                found = self._gradients(chunk)
            yield found

    def _gradients(self, chunk: Examples) -> PerRecord:
        pairs = layout(chunk, self.history)
        if not len(pairs.text):
            return PerRecord([torch.zeros(len(chunk), *p.shape, device=p.device) for p in self.parameters()])
        distinct, where = np.unique(np.concatenate([pairs.text, self.negatives]), return_inverse=True)
        pooled = self.encoder.pooled(self.states, distinct)[torch.as_tensor(where)]
        own = pooled[: len(pairs.text)].requires_grad_(True)  # (pairs, hidden)
        shared = pooled[len(pairs.text) :].expand(len(chunk), -1, -1).requires_grad_(True)  # (records, N, hidden)
        upstream = torch.autograd.grad(self.softmax.losses(own, shared, pairs, chunk, self.negatives).sum(), (own, shared))
        total = self._shared(upstream[1])
        self._own(upstream[0], pairs, total)
        return PerRecord(total)

    def _shared(self, upstream: Tensor) -> list[Tensor]:
        """What the negatives add, from (records, N, hidden): one tensor (records, *shape) a parameter."""
        parameters = self.parameters()
        total = [torch.zeros(len(upstream), *p.shape, device=p.device) for p in parameters]
        for rows in self.encoder.batches(self.states.length[self.negatives]):
            out = self.encoder.run_top(*self.encoder.gather(self.states, self.negatives[rows]))
            step = max(1, self.encoder.texts_per_batch // len(rows))
            for start in range(0, len(upstream), step):
                users = slice(start, start + step)
                back = upstream[users, torch.as_tensor(rows)]
                count = len(back)
                if count == 1:  # as in `run_top`
                    back = back.repeat(2, 1, 1)
                found = torch.autograd.grad(out, parameters, back, retain_graph=True, is_grads_batched=True)
                for sums, gradient in zip(total, found, strict=True):
                    sums[users] += gradient[:count]
        return total

    def _own(self, upstream: Tensor, pairs: Pairs, total: list[Tensor]) -> None:
        """Add what each record's own texts add, from (pairs, hidden)."""
        watched = GradSampleModule(self.encoder.top, loss_reduction="sum", strict=False)
        try:
            for rows in self.encoder.batches(self.states.length[pairs.text]):
                record = torch.as_tensor(pairs.record[rows], device=self.encoder.device)
                out = self.encoder.run_top(*self.encoder.gather(self.states, pairs.text[rows]))
                with warnings.catch_warnings():
                    # What enters the top layers is data, so it has no gradient; torch warns of that.
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    out.backward(upstream[torch.as_tensor(rows)])
                for parameter, sums in zip(self.parameters(), total, strict=True):
                    sums.index_add_(0, record, parameter.grad_sample[: len(record)])  # type: ignore[attr-defined]
                    parameter.grad_sample = None  # type: ignore[attr-defined]
        finally:
            watched.remove_hooks()
