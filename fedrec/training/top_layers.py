"""The top layers forward, and their way back for each text of each user.

What a layer keeps of its forward pass depends on the text alone, and the way back is linear in what comes from the
loss. So each distinct text is passed forward once, and the way back is taken for many (user, text) at once over rows of
what was kept. The layers are BERT's: attention and two linear maps, each followed by a sum and a layer norm (Vaswani et
al. 2017, sec. 3; Devlin et al. 2019, sec. 3); what follows is the chain rule through them. Nothing is kept by autograd,
which would keep it for each (user, text).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedrec.model.graphs import Graphs

__all__ = ["Kept", "TopLayers"]


class _Normed(NamedTuple):
    """What entered a layer norm, (texts, tokens, hidden), with its mean and reciprocal deviation, (texts, tokens, 1)."""

    entered: Tensor
    mean: Tensor
    scale: Tensor


class _Layer(NamedTuple):
    """What a layer keeps of its forward pass.

    Attributes:
        query_low, value_low: (texts, tokens, rank) what enters the two `B`.
        query, key, value: (texts, heads, tokens, width).
        attention: (texts, heads, tokens, tokens) softmax.
        slope: (texts, tokens, inner) derivative of the activation.
        middle, last: the two layer norms.
    """

    query_low: Tensor
    value_low: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attention: Tensor
    slope: Tensor
    middle: _Normed
    last: _Normed


class Kept(NamedTuple):
    """What the way back of some texts of one padded length needs.

    Attributes:
        share: (texts, tokens, 1) what each token is of the mean; 0 for padding.
        layers: lowest first.
    """

    share: Tensor
    layers: tuple[_Layer, ...]

    def rows(self, rows: Tensor) -> Kept:
        """Of the given texts."""
        return cast(Kept, _map(lambda one: one[0].index_select(0, rows), [self]))

    @staticmethod
    def joined(parts: Sequence[Kept]) -> Kept:
        """Of all texts of several."""
        return parts[0] if len(parts) == 1 else cast(Kept, _map(torch.cat, parts))


class TopLayers:
    """BERT layers with LoRA on query and value, of scale 1, with matrix products in `dtype` and all else in float32.

    Args:
        layers: `BertLayer` modules that PEFT has put LoRA into.
    """

    def __init__(self, layers: nn.ModuleList, dtype: torch.dtype) -> None:
        self.layers = [_Weights(layer, dtype) for layer in layers]
        self._ahead, self._back = Graphs(kept=True), Graphs(kept=False)

    def numbers(self, tokens: int) -> int:
        """About how many numbers the way back of a text of so many tokens needs."""
        hidden, inner, heads = self.layers[0].inner[0].shape[1], self.layers[0].inner[0].shape[0], self.layers[0].heads
        return len(self.layers) * tokens * (8 * hidden + inner + heads * tokens)

    @torch.no_grad()
    def update(self) -> None:
        """Take up the LoRA as it is now."""
        for layer in self.layers:
            layer.update()

    @torch.no_grad()
    def forward(self, hidden: Tensor, mask: Tensor, batch: int) -> tuple[Tensor, Kept]:
        """The mean over real tokens, (texts, hidden) float32, and what the way back needs; both until the next call.

        Args:
            hidden: (texts, tokens, hidden) float32.
            mask: (texts, tokens) bool, which are real.
            batch: how many texts are taken at once.
        """
        return cast(tuple[Tensor, Kept], self._ahead(batch, partial(self._forward, batch=batch), (hidden, mask)))

    @torch.no_grad()
    def backward(self, kept: Kept, at: Tensor, index: Tensor, texts: int) -> Tensor:
        """Each piece's gradients of every `B`, query before value, lowest layer first: (pieces, numbers) float32.

        Args:
            at: (rows, hidden) float32, derivatives by the means.
            index: (2, pieces * texts), of the pieces' texts, one piece after the other, which row of `kept` and which of `at`.
            texts: how many texts are a piece.
        """
        return cast(Tensor, self._back(texts, partial(self._backward, texts=texts), (at, index), kept))

    def _forward(self, hidden: Tensor, mask: Tensor, batch: int) -> tuple[Tensor, Kept]:
        means, kept = zip(*map(self._one_batch, hidden.split(batch), mask.split(batch)), strict=True)
        return torch.cat(means), Kept.joined(kept)

    def _one_batch(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Kept]:
        kept = []
        for layer in self.layers:
            hidden, of_layer = layer.forward(hidden, mask)
            kept.append(of_layer)
        share = (mask / mask.sum(1, keepdim=True))[:, :, None]
        return (hidden * share).sum(1), Kept(share, tuple(kept))

    def _backward(self, at: Tensor, index: Tensor, kept: Kept, texts: int) -> Tensor:
        found: list[Tensor] = []
        kept = kept.rows(index[0])
        at = at.index_select(0, index[1])[:, None] * kept.share  # (pieces * texts, tokens, hidden)
        for number in reversed(range(len(self.layers))):
            of_layer, layer = kept.layers[number], self.layers[number]
            at, at_query, at_value = layer.backward(of_layer, at, lowest=number == 0)
            lows = (of_layer.query_low, of_layer.value_low)
            found[:0] = [_outer(left, low, texts) for left, low in zip((at_query, at_value), lows, strict=True)]
        return torch.cat([part.flatten(1) for part in found], dim=1)


class _Weights:
    """A layer's weights and its two passes."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        inside, after = layer.attention.self, layer.attention.output
        self.dtype, self.heads, self.scale = dtype, inside.num_attention_heads, inside.attention_head_size**-0.5
        self.query, self.value = (_cast(lora.base_layer, dtype) for lora in (inside.query, inside.value))
        self.parameters = [
            [part["default"].weight for part in (lora.lora_A, lora.lora_B)] for lora in (inside.query, inside.value)
        ]
        self.loras = [[weight.detach().to(dtype) for weight in pair] for pair in self.parameters]
        self.key, self.mixed = _cast(inside.key, dtype), _cast(after.dense, dtype)
        self.inner, self.outer = _cast(layer.intermediate.dense, dtype), _cast(layer.output.dense, dtype)
        self.activation = layer.intermediate.intermediate_act_fn
        self.middle, self.last = after.LayerNorm, layer.output.LayerNorm

    def update(self) -> None:
        for own, now in zip(self.loras, self.parameters, strict=True):
            for value, weight in zip(own, now, strict=True):
                value.copy_(weight)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, _Layer]:
        entered = hidden.to(self.dtype)
        (query_a, query_b), (value_a, value_b) = self.loras
        query_low, value_low = linear(entered, query_a), linear(entered, value_a)
        query = self._split(linear(entered, *self.query) + linear(query_low, query_b))
        key = self._split(linear(entered, *self.key))
        value = self._split(linear(entered, *self.value) + linear(value_low, value_b))
        scores = (query @ key.mT).float().mul_(self.scale)  # (texts, heads, tokens, tokens)
        attention = torch.softmax(scores.masked_fill_(~mask[:, None, None], -torch.inf), dim=-1).to(self.dtype)
        context = self._join(attention @ value)
        hidden, middle = _normed(linear(context, *self.mixed).float() + hidden, self.middle)
        with torch.enable_grad():
            before = linear(hidden.to(self.dtype), *self.inner).requires_grad_(True)
            active = self.activation(before)
        (slope,) = torch.autograd.grad(active, before, torch.ones_like(active))
        hidden, last = _normed(linear(active.detach(), *self.outer).float() + hidden, self.last)
        return hidden, _Layer(query_low, value_low, query, key, value, attention, slope, middle, last)

    def backward(self, kept: _Layer, at: Tensor, lowest: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by what entered the layer (not for the lowest), by its queries and by its values, (..., tokens, hidden)."""
        at = _before_norm(at, kept.last, self.last)
        inner = (at.to(self.dtype) @ self.outer[0]).mul_(kept.slope)
        at = _before_norm(at + inner @ self.inner[0], kept.middle, self.middle)
        at_context = self._split(at.to(self.dtype) @ self.mixed[0])
        at_value = self._join(kept.attention.mT @ at_context)
        at_attention = (at_context @ kept.value.mT).float().mul_(kept.attention)
        at_scores = at_attention - kept.attention * at_attention.sum(-1, keepdim=True)
        at_scores = at_scores.mul_(self.scale).to(self.dtype)
        at_query = self._join(at_scores @ kept.key)
        if lowest:
            return at, at_query, at_value
        at = at + self._join(at_scores.mT @ kept.query) @ self.key[0]
        for left, (weight, _), (a, b) in zip((at_query, at_value), (self.query, self.value), self.loras, strict=True):
            at = at + left @ weight + (left @ b) @ a
        return at, at_query, at_value

    def _split(self, hidden: Tensor) -> Tensor:
        """(texts, tokens, hidden) to (texts, heads, tokens, width)."""
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()

    def _join(self, split: Tensor) -> Tensor:
        return split.transpose(1, 2).flatten(2)


def _outer(left: Tensor, low: Tensor, texts: int) -> Tensor:
    """Sums over a piece's texts and tokens of left (x) low: (pieces, hidden, rank)."""
    left, low = (part.unflatten(0, (-1, texts)).flatten(1, 2).float() for part in (left, low))
    return torch.bmm(left.mT, low)


def _cast(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return module.weight.detach().to(dtype), module.bias.detach().to(dtype)


def _normed(entered: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, _Normed]:
    out, mean, scale = torch.native_layer_norm(entered, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return out, _Normed(entered, mean, scale)


def _before_norm(at: Tensor, kept: _Normed, norm: nn.LayerNorm) -> Tensor:
    wanted = [True, False, False]
    found: Tensor = torch.ops.aten.native_layer_norm_backward(
        at, kept.entered, norm.normalized_shape, kept.mean, kept.scale, norm.weight, norm.bias, wanted
    )[0]
    return found


def _map(function: Callable[[list[Tensor]], Tensor], parts: Sequence[Any]) -> Any:
    """`function` of the tensors that stand in one place of nested tuples of one form."""
    first = parts[0]
    if isinstance(first, Tensor):
        return function(list(parts))
    inner = [_map(function, list(same)) for same in zip(*parts, strict=True)]
    return type(first)(*inner) if hasattr(first, "_fields") else tuple(inner)
