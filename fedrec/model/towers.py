"""The two towers: item embeddings by role, user vectors, scores.

    e_j = normalise(mean-pooled encoder output of item j - centre)
    h_j = normalise(e_j + e_j A B_history),   c_j = normalise(e_j + e_j A B_candidate)
    u   = normalise(sum over the history of softmax(-decay * age) h)
    score(j) = tau * <u, c_j> + w * log prior(j)

Where the question is not which item but whether, the score has a bias and linear terms besides: see `linear_terms`.
`age` counts baskets, not events: order inside a basket means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, TERMS, Arrays
from fedrec.model.cache import States

if TYPE_CHECKING:  # scores need no encoder, and importing one takes seconds
    from fedrec.model.encoder import TextEncoder

__all__ = [
    "Scoring", "centred", "embedding_base", "init_base", "init_trained", "linear_terms", "log_prior", "recency_weights",
    "role_table", "user_vectors",
]  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """The numbers of the score; chosen on central users, sent with every round. `bias` is 0 where items are ranked.

    `after` has those of the next part where several objectives share the towers, each with a score of its own.
    """

    temperature: float
    decay: float
    prior_weight: float
    bias: float = 0.0
    after: Scoring | None = None

    @property
    def parts(self) -> tuple[Scoring, ...]:
        """The numbers of each part, one where there is one objective."""
        return (replace(self, after=None), *(self.after.parts if self.after else ()))

    @classmethod
    def of_parts(cls, parts: Sequence[Scoring]) -> Scoring:
        """Those of several objectives, in their order."""
        return replace(parts[0], after=cls.of_parts(parts[1:]) if len(parts) > 1 else None)

    def by_name(self) -> dict[str, Any]:
        """The numbers as files have them; a ranking has no bias."""
        found = {name: getattr(self, name) for name in ("temperature", "decay", "prior_weight")}
        return {**found, **({"bias": self.bias} if self.bias else {}), **({"after": self.after.by_name()} if self.after else {})}

    @classmethod
    def from_names(cls, values: Mapping[str, Any]) -> Scoring:
        """What `by_name` gave.

        Raises:
            TypeError: a number is missing or unknown.
        """
        after = values.get("after")
        return cls(**{**values, "after": cls.from_names(after) if after else None})


def init_base(encoder: TextEncoder, states: States, heads: bool, rank: int, how: str, seed: int) -> Arrays:
    """The public, frozen part: the centre and every `A`, from the central catalogue.

    Args:
        states: the trunk's output for the central catalogue.
        how: `principal` takes the top eigenvectors of the activations' second moments (of the
            centred embeddings for the heads); `random` orthonormal rows.

    Returns:
        `centre` (hidden,), `heads.A` (hidden, rank), and the encoder's A under PEFT's names.
    """
    # The encoder is shared by all runs of a process and may still hold another run's adapter.
    encoder.load({name: np.zeros_like(value) for name, value in encoder.trained().items()})
    generator = torch.Generator().manual_seed(seed)
    base = embedding_base(encoder.pooled(states), heads, rank, how, generator)
    moments = encoder.layer_inputs(states) if how == "principal" else {}
    for name, value in encoder.frozen().items():
        moment = moments.get(name, torch.empty(value.shape[1], value.shape[1]))
        base[name] = _directions(moment, value.shape[0], how, generator).contiguous().numpy()
    return base


def embedding_base(pooled: Tensor, heads: bool, rank: int, how: str, generator: torch.Generator) -> Arrays:
    """Of the base what belongs to the embeddings: `centre` and, with heads, `heads.A`.

    Args:
        pooled: (items, hidden) of the central catalogue.
        how: see `init_base`.
    """
    base: Arrays = {CENTRE: pooled.mean(0).cpu().numpy()}
    if heads:
        e = centred(pooled, base)
        base[HEAD_A] = _directions(e.T @ e, rank, how, generator).T.contiguous().numpy()
    return base


def init_trained(encoder: TextEncoder, heads: bool, rank: int, terms: bool = False) -> Arrays:
    """Every `B`, and the linear terms if there are any, zero: the adapter starts as the pretrained encoder."""
    trained = {name: np.zeros_like(value) for name, value in encoder.trained().items()}
    if heads:
        trained |= {name: np.zeros((rank, encoder.hidden), dtype=np.float32) for name in HEAD_B.values()}
    if terms:
        trained[TERMS] = np.zeros((2, encoder.hidden + 1), dtype=np.float32)
    return trained


def linear_terms(terms: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The parts of what is added to the score of a user and item j: `<a, m> + b + <d, e_j> + g z_j`.

    `m` is the mean of the history's `e` by its pooling weights, and `z` log popularity less its mean over the catalogue. Both
    towers are left as they are, so that the terms' gradients are these numbers alone.

    Args:
        terms: (2, hidden + 1), rows (a, b) and (d, g).
        prior: (items,) log popularity.

    Returns:
        a (hidden,), d (hidden,), `b + g z` (items,), and z (items,).
    """
    popularity = prior - prior.mean()
    return terms[0, :-1], terms[1, :-1], terms[0, -1] + terms[1, -1] * popularity, popularity


def centred(pooled: Tensor, base: Arrays) -> Tensor:
    """`e`: pooled vectors minus the centre, unit length, (items, hidden)."""
    return normalize(pooled - torch.as_tensor(base[CENTRE], device=pooled.device), dim=-1)


def role_table(e: Tensor, base: Arrays, trained: Arrays, role: str) -> Tensor:
    """`h` or `c`: the embeddings as `role` (history, candidate) sees them, (items, hidden)."""
    if HEAD_B[role] not in trained:
        return e
    a, b = (torch.as_tensor(value, device=e.device) for value in (base[HEAD_A], trained[HEAD_B[role]]))
    return normalize(e + (e @ a) @ b, dim=-1)


def recency_weights(ages: np.ndarray, valid: np.ndarray, decay: float) -> np.ndarray:
    """softmax(-decay * age) over the last axis, zero where not `valid`; rows without any are zero."""
    weights = np.exp(-decay * np.where(valid, ages - np.where(valid, ages, np.inf).min(-1, keepdims=True, initial=1e9), 0))
    weights = np.where(valid, weights, 0.0)
    return (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)).astype(np.float32)


def user_vectors(table: np.ndarray, items: np.ndarray, ages: np.ndarray, valid: np.ndarray, decay: float) -> np.ndarray:
    """`u` of each user, (users, hidden), unit length; zero for a user without events.

    Args:
        table: (items, hidden) embeddings as history.
        items: (users, L) rows of `table`, any where not `valid`.
        ages: (users, L) baskets ago, 0 for the latest.
        valid: (users, L) whether there is an event.
    """
    weights = recency_weights(ages, valid, decay).astype(table.dtype)  # (users, L)
    # Sums rows of the table where they are: (users, L, hidden) is never made.
    pooled = embedding_bag(
        torch.from_numpy(items), torch.from_numpy(table), per_sample_weights=torch.from_numpy(weights), mode="sum"
    ).numpy()
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def log_prior(counts: np.ndarray, floor: float) -> np.ndarray:
    """log of the popularity from (noisy) counts, each at least `floor`, over their sum; (items,) float32."""
    counts = np.maximum(counts.astype(np.float64), floor)
    return np.log(counts / counts.sum()).astype(np.float32)


def _directions(moment: Tensor, rank: int, how: str, generator: torch.Generator) -> Tensor:
    """`rank` orthonormal rows: top eigenvectors of `moment`, signs fixed, or random ones."""
    width = moment.shape[0]
    if how == "random":
        return torch.linalg.qr(torch.randn(width, rank, generator=generator))[0].T
    vectors = torch.linalg.eigh(moment.cpu().double())[1].flip(-1)[:, :rank].T
    signs = torch.sign(vectors.gather(1, vectors.abs().argmax(1, keepdim=True)))
    return (vectors * signs).float()
