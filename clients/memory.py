"""A round that does not fit the memory of its device: one line in this machine's log, which says what helps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from fedrec.merchant import ModelSettings
from fedrec.model.graphs import Graphs
from fedrec.training.encoder import forget_top_layers

__all__ = ["advice", "is_out_of_memory", "paid", "release"]

PAID = "the ledger has the round as paid for, and it is not computed again"


SAID = "out of memory", "can't allocate memory", "_status_alloc_failed"
"""What PyTorch says, in lower case, where it has no class for it: its allocator for processors, the driver, the libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's allocator, or a library on it, had nothing left, or NumPy or Python."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in SAID)


def release() -> None:
    """Give back what a device keeps between rounds, so that the next one has room; to be called when the error is gone."""
    forget_top_layers()
    Graphs.forget_all()
    gc.collect()
    # A device that cannot even do this fails the next round by itself.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


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
    """One line: what was lacking, what it has cost and what helps."""
    first = str(error).partition("\n")[0] or type(error).__name__
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    helps = "fewer workers" if model.device == "cpu" else 'device = "cpu" or fewer workers'
    large = f"with a large encoder also a lower texts_per_batch, which is {model.texts_per_batch}"
    return f"out of memory on device {model.device!r} ({first}){notes}; use {helps}, {large}"
