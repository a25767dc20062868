"""Per-user gradients of the encoder's LoRA.

A user expands to several texts: recent history, targets, and negatives drawn from the
public catalogue. Per-user gradients need three passes: the distinct texts are encoded without a
graph; each user's loss is differentiated with respect to its own copies of the embeddings;
and those derivatives are sent back through the top layers. A user's own texts go in batches of
similar length, where a grad sampler adds up the texts of each user. The negatives are the same
for all users, so their forward pass is shared and only the way back is taken user by user. The
result is exact, and memory is bounded by the number of texts in flight.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedrec.model.adapter import HEAD_A, HEAD_B, Arrays
from fedrec.model.cache import States
from fedrec.model.encoder import TextEncoder
from fedrec.model.towers import Scoring, centred
from fedrec.privacy import PerRecord
from fedrec.training.examples import Examples

__all__ = ["EncoderTrainer", "Pairs", "UserLinear", "layout"]

RECORDS_PER_CHUNK = 256


class UserLinear(nn.Linear):
    """A linear layer whose batch is texts while a record is a user of several texts."""

    user: Tensor
    """(texts,) which record each text in the batch belongs to."""
    users: int
    """How many records there are."""


@register_grad_sampler(UserLinear)
def _user_gradients(layer: UserLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    # Opacus allocates `max_batch_len` rows for the result; its guess is the number of texts.
    layer.max_batch_len = layer.users  # type: ignore[assignment]
    per_text = torch.einsum("nto,nti->noi", backprops.float(), activations[0].float())
    out = per_text.new_zeros(layer.users, *per_text.shape[1:])
    return {cast(nn.Parameter, layer.weight): out.index_add_(0, layer.user, per_text)}


@dataclass(frozen=True)
class Pairs:
    """A chunk's own texts, one row for each (record, text), and where each is used."""

    text: np.ndarray  # (pairs,) item positions
    record: np.ndarray  # (pairs,)
    history: np.ndarray  # (records, L) pairs
    weights: np.ndarray  # (records, P, L)
    target: np.ndarray  # (targets,) pairs


class EncoderTrainer:
    """The encoder of one merchant's catalogue, ready for private steps.

    The prediction of a target is a softmax of it against the negatives, which all records of
    a step share. They are drawn uniformly from the public catalogue and independently of any
    user, so one user's loss depends on no other user's data. Those that a user already has
    are masked.
    """

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
        self.encoder, self.states, self.base, self.scoring, self.history = encoder, states, base, scoring, history
        self.prior = torch.as_tensor(prior, device=encoder.device) * scoring.prior_weight
        self.heads = {
            role: torch.as_tensor(trained[name], device=encoder.device) for role, name in HEAD_B.items() if name in trained
        }
        self.layers = [module for name, module in encoder.top.named_modules() if "lora_B." in name]
        for layer in self.layers:
            layer.__class__ = UserLinear
            layer.train()  # Opacus records nothing of a layer in evaluation mode; linear layers do not differ
        self.negatives = np.zeros(0, dtype=np.int64)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [layer.weight for layer in self.layers]  # type: ignore[misc]

    def arrays(self) -> Arrays:
        """The trained LoRA matrices as they are now, by PEFT's names."""
        return self.encoder.trained()

    def chunks(self, lot: Examples) -> Iterator[Examples]:
        """The lot in pieces of a bounded number of users."""
        for start in range(0, len(lot), RECORDS_PER_CHUNK):
            yield lot.take(np.arange(start, min(start + RECORDS_PER_CHUNK, len(lot))))

    def gradients(self, lot: Examples) -> Iterator[PerRecord]:
        """The gradients of a lot's records, in chunks of a bounded number of them."""
        for chunk in self.chunks(lot):
            yield self._gradients(chunk)

    def _gradients(self, chunk: Examples) -> PerRecord:
        pairs = layout(chunk, self.history)
        if not len(pairs.text):
            return PerRecord([torch.zeros(len(chunk), *p.shape, device=p.device) for p in self.parameters()])
        distinct, where = np.unique(np.concatenate([pairs.text, self.negatives]), return_inverse=True)
        pooled = self.encoder.pooled(self.states, distinct)[torch.as_tensor(where)]
        own = pooled[: len(pairs.text)].requires_grad_(True)  # (pairs, hidden)
        shared = pooled[len(pairs.text) :].expand(len(chunk), -1, -1).requires_grad_(True)  # (records, N, hidden)
        upstream = torch.autograd.grad(self.losses(own, shared, pairs, chunk).sum(), (own, shared))
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
                found = torch.autograd.grad(out, parameters, back, retain_graph=True, is_grads_batched=True)
                for sums, gradient in zip(total, found, strict=True):
                    sums[users] += gradient
        return total

    def _own(self, upstream: Tensor, pairs: Pairs, total: list[Tensor]) -> None:
        """Add what each record's own texts add, from (pairs, hidden)."""
        watched = GradSampleModule(self.encoder.top, loss_reduction="sum", strict=False)
        try:
            for rows in self.encoder.batches(self.states.length[pairs.text]):
                for layer in self.layers:
                    layer.user = torch.as_tensor(pairs.record[rows], device=self.encoder.device)
                    layer.users = len(total[0])  # type: ignore[assignment]
                out = self.encoder.run_top(*self.encoder.gather(self.states, pairs.text[rows]))
                with warnings.catch_warnings():
                    # What enters the top layers is data, so it has no gradient; torch warns of that.
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    out.backward(upstream[torch.as_tensor(rows)])
                for parameter, sums in zip(self.parameters(), total, strict=True):
                    sums += parameter.grad_sample  # type: ignore[attr-defined]
                    parameter.grad_sample = None  # type: ignore[attr-defined]
        finally:
            watched.remove_hooks()

    def losses(self, own: Tensor, shared: Tensor, pairs: Pairs, chunk: Examples) -> Tensor:
        """Each record's loss from its own copies of the pooled vectors, shape (records,).

        Args:
            own: (pairs, hidden).
            shared: (records, N, hidden) negatives.
        """
        e = centred(own, self.base)
        history, candidate = self._role(e, "history"), self._role(e, "candidate")
        against = self._role(centred(shared, self.base), "candidate")
        weights = torch.as_tensor(pairs.weights, device=e.device)
        users = normalize(torch.bmm(weights, history[torch.as_tensor(pairs.history)]), dim=-1)  # (records, P, hidden)
        others = torch.bmm(users, against.mT)  # (records, P, N)
        others = self.scoring.temperature * others + self.prior[torch.as_tensor(self.negatives)]
        record, position, item = torch.as_tensor(chunk.target, device=e.device).T
        hits = (users[record, position] * candidate[torch.as_tensor(pairs.target)]).sum(-1)  # (targets,)
        hits = self.scoring.temperature * hits + self.prior[item]
        masked = torch.as_tensor(_masked(chunk, self.negatives, pairs.weights.shape[1]), device=e.device)
        logits = torch.cat([hits[:, None], others.masked_fill(masked, -1e9)[record, position]], dim=1)  # (targets, 1 + N)
        losses = (torch.logsumexp(logits, dim=1) - hits) * torch.as_tensor(chunk.target_weight, device=e.device)
        return torch.zeros(len(chunk), device=e.device).index_add(0, record, losses)

    def _role(self, e: Tensor, role: str) -> Tensor:
        if role not in self.heads:
            return e
        a = torch.as_tensor(self.base[HEAD_A], device=e.device)
        return normalize(e + (e @ a) @ self.heads[role], dim=-1)


def layout(chunk: Examples, history: int) -> Pairs:
    """Lay out each record's own texts, each once: the last events of any position, and its targets."""
    used = chunk.weights.max(1) > 0  # (records, L)
    from_end = used.sum(1, keepdims=True) - np.cumsum(used, axis=1)
    keep = used & (from_end < history)
    weights = np.where(keep[:, None], chunk.weights, 0)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    record, place = np.nonzero(keep)
    texts = np.concatenate([chunk.items[record, place], chunk.target[:, 2]])
    width = int(texts.max(initial=0)) + 1
    pairs, pair = np.unique(np.concatenate([record, chunk.target[:, 0]]) * width + texts, return_inverse=True)
    history_pair = np.zeros(keep.shape, dtype=np.int64)  # pair 0 with weight 0 stands for "no event"
    history_pair[record, place] = pair[: len(record)]
    return Pairs(pairs % width, pairs // width, history_pair, weights.astype(np.float32), pair[len(record) :])


def _masked(chunk: Examples, negatives: np.ndarray, positions: int) -> np.ndarray:
    """Which negatives a record has seen, or is to predict, at each position: (records, P, N) bool."""
    known = np.concatenate([chunk.seen, chunk.target])
    out = np.zeros((len(chunk), positions, len(negatives)), dtype=bool)
    order = np.argsort(negatives, kind="stable")
    start = np.searchsorted(negatives[order], known[:, 2])
    end = np.searchsorted(negatives[order], known[:, 2], side="right")
    hit = np.flatnonzero(end > start)
    for step in range(int((end - start).max(initial=0))):
        rows = hit[start[hit] + step < end[hit]]
        out[known[rows, 0], known[rows, 1], order[start[rows] + step]] = True
    return out
