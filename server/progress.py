"""Telling whoever watches how far a run is, without the run knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["notify", "watching"]

Watcher = Callable[[str, dict[str, Any]], None]
_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call `watcher(event, fields)` for every event inside the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def notify(event: str, **fields: Any) -> None:
    """Tell the watchers."""
    for watcher in list(_watchers):
        watcher(event, fields)
