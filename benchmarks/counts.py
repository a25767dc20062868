"""What a step asks of a device, counted and not timed: so it can be counted on a processor, where the operators are the same.

* *launches*: operators that compute or copy, views and allocations left out; each is at least one kernel on a GPU. What is
  recorded as a CUDA graph is counted one by one.
* *operations* of matrix products, by precision, and *moved*: bytes that the launches read and write, each argument and
  result once. Time on a device is at least the larger of what its rates make of the two.
* *crossings*: places where a number or an array goes from Python or NumPy to a tensor or back: on a GPU a copy each, and
  on the way back a wait for all that the device has to do.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fedrec.model.graphs import Graphs

__all__ = ["Counts", "counted"]

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
TO_DEVICE = {"as_tensor", "tensor"}
FROM_DEVICE = {"numpy", "tolist"}
"""Besides those that ask for one number, which the operator `_local_scalar_dense` gives."""


@dataclass
class Counts:
    """See the module.

    Attributes:
        launches: by the operator's name.
        operations: by the precision of the product.
        moved: bytes.
        crossings: by the name of what made them.
    """

    launches: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    crossings: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """As numbers, and the operators that are launched most often."""
        return {
            "launches": self.launches.total(),
            "crossings": self.crossings.total(),
            "moved": self.moved,
            "operations": dict(self.operations),
            "most": dict(self.launches.most_common(12)),
            "crossed": dict(self.crossings),
        }


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count what is done inside, forwards and backwards."""
    found = Counts()
    from_numpy = torch.from_numpy

    def seen(values: np.ndarray) -> torch.Tensor:  # it asks no mode
        found.crossings["from_numpy"] += 1
        return from_numpy(values)

    patched = patch.object(Graphs, "__call__", _one_by_one), patch.object(torch, "from_numpy", seen)
    with patched[0], patched[1], _Operators(found), _Crossings(found):
        yield found


def _one_by_one(_: Graphs, name: object, function: Callable[..., Any], inputs: Sequence[torch.Tensor], held: Any = ()) -> Any:
    return function(*inputs, *((held,) if held else ()))


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counts) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in ALLOCATIONS:
            return out
        if name == "_local_scalar_dense":
            self.found.crossings[name] += 1
            return out
        self.found.launches[name] += 1
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
        if {one.device.type for one in tensors} == {"cpu", "cuda"}:
            self.found.crossings[name] += 1
        self.found.moved += sum(one.numel() * one.element_size() for one in tensors)
        if func.overloadpacket in flop_registry:
            precision = str(tensors[0].dtype).removeprefix("torch.")
            self.found.operations[precision] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


class _Crossings(TorchFunctionMode):
    def __init__(self, found: Counts) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in FROM_DEVICE or (name in TO_DEVICE and not isinstance(args[0], torch.Tensor)):
            self.found.crossings[name] += 1
        return func(*args, **(kwargs or {}))
