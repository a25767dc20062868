"""Functions of tensors of fixed shapes, launched on a GPU all at once.

To launch a kernel takes a processor longer than most of a step's kernels run. What is launched for the same shapes again and
again is recorded once, as a CUDA graph, and replayed. Elsewhere a function is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, cast
from weakref import ReferenceType, WeakSet, ref

import torch
from torch import Tensor

__all__ = ["Graphs"]

MOST = 32
"""How many graphs are kept, those used last; each holds copies of its inputs, and where it is `kept` what its function needs."""
WARM_UPS = 2
"""How often a function is called before it is recorded: libraries set themselves up in the first calls."""


class Graphs:
    """Recorded functions, by name and by the shapes and devices of what they are given.

    Args:
        kept: whether what a call returns is read after a function has been recorded or replayed that it was not `held` for;
            else they share their memory.
    """

    _all: ClassVar[WeakSet[Graphs]] = WeakSet()

    def __init__(self, kept: bool) -> None:
        self._kept = kept
        self._pool: Any = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._graphs: dict[Hashable, _Graph] = {}
        self._all.add(self)

    @classmethod
    def forget_all(cls) -> None:
        """Nothing is kept of what anybody has recorded; it is recorded anew."""
        for one in cls._all:
            one._graphs.clear()
            one._streams.clear()
            one._pool = None

    def __call__(self, name: Hashable, function: Callable[..., Any], inputs: Sequence[Tensor], held: Any = ()) -> Any:
        """`function(*inputs)`, or with `held` last. On a GPU what comes back is overwritten by the next call for the same shapes.

        Args:
            inputs: tensors of any content, which are copied to where the recorded function reads them; one that is the very
                object of the last call is not copied again, so nobody may have written to it.
            held: whatever else the function reads, where it is: it may write to its inputs, and to nothing of this.
        """
        last = (held,) if held else ()
        if inputs[0].device.type != "cuda":
            return function(*inputs, *last)
        key = (name, id(held) if held else 0, *((one.shape, one.dtype, one.device) for one in inputs))
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= MOST:
                self._graphs.pop(next(iter(self._graphs)))
            if self._pool is None and not self._kept:
                self._pool = torch.cuda.graph_pool_handle()
            graph = _Graph(function, inputs, last, self._pool, self._stream(inputs[0].device))
        self._graphs[key] = graph
        return graph(inputs)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        """One for all: the allocator uses memory again only on the stream that it was asked for on."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


class _Graph:
    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Tensor], last: tuple[Any, ...], pool: Any, stream: torch.cuda.Stream
    ) -> None:
        self.device = inputs[0].device
        self.inputs = [one.clone() for one in inputs]
        self.seen: list[ReferenceType[Tensor] | None] = [None] * len(self.inputs)  # weakly: what was large is not kept twice
        self.held = last  # or another object might come to be known by the same number
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            main = torch.cuda.current_stream()
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    function(*self.inputs, *last)
            main.wait_stream(stream)
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs, *last)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        for place, (own, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            seen = self.seen[place]
            if seen is None or seen() is not given:
                own.copy_(given)
                self.seen[place] = ref(given)
        with torch.cuda.device(self.device):
            cast(Any, self.graph).replay()
        return self.outputs
