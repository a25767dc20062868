"""Telling whoever watches how far a run is, without the run knowing who watches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["notify", "watching"]

Watcher = Callable[[str, dict[str, Any]], None]
_watchers: list[Watcher] = []
_failed: list[Watcher] = []

log = logging.getLogger("fedrec.server")


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call `watcher(event, fields)` for every event inside the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
        if watcher in _failed:
            _failed.remove(watcher)


def notify(event: str, **fields: Any) -> None:
    """Tell the watchers. What one of them cannot show is logged once, and stops no run."""
    for watcher in list(_watchers):
        try:
            watcher(event, fields)
        except Exception:
            if watcher not in _failed:
                _failed.append(watcher)
                log.exception("%s of the run cannot be shown; the run goes on", event)
