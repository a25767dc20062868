"""A round that does not fit the memory of its device: one line in this machine's log, which says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedrec.merchant import ModelSettings

__all__ = ["advice", "is_out_of_memory", "paid"]

PAID = "the ledger has the round as paid for, and it is not computed again"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's allocator, NumPy's or PyTorch's for processors, which has no class for it, had nothing left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def paid() -> Iterator[None]:
    """What is done inside has been paid for, which a lack of memory is to say."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note(PAID)
        raise


def advice(error: Exception, model: ModelSettings) -> str:
    """One line: what was lacking, what it has cost and what to lower."""
    first = str(error).partition("\n")[0] or type(error).__name__
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    lower = f"lower texts_per_batch, which is {model.texts_per_batch}, or choose another device"
    return f"out of memory on device {model.device!r} ({first}){notes}; {lower}"
