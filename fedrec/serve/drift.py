"""Drift of a merchant and what its ledger says, measured on demand beside the thread that ranks, one at a time."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fedrec.errors import InputError
from fedrec.merchant import LEDGER, MERCHANT_FILE, read_merchant_file
from fedrec.model.encoder import encoders_apart
from fedrec.privacy import Ledger, epsilon
from fedrec.recommender.drifting import drift_of, drift_sentence
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.faults import Fault, without_paths

__all__ = ["Measured"]

WINDOWS = 12


class _Key(NamedTuple):
    folder: Path
    snapshot: str
    weeks: int


class Measured:
    """The last measurement, and the thread that makes the next."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "drift")
        self._last: tuple[_Key, Future[dict[str, Any]]] | None = None

    async def of(self, folder: Path, snapshot: str, weeks: int, seconds: float) -> dict[str, Any]:
        """Fields of a `DriftAnswer`. What takes longer goes on, and is there when somebody asks again.

        Args:
            snapshot: of what is loaded: while it is the same nothing is measured twice.

        Raises:
            Fault: it takes longer than `seconds` (503), or another measurement goes on (429).
        """
        key = _Key(folder, snapshot, weeks)
        if self._last is not None and self._last[0] != key and not self._last[1].done():
            raise Fault(429, "busy", "another drift is being measured", retry_after=5)
        if self._last is None or self._last[0] != key or (self._last[1].done() and self._last[1].exception() is not None):
            self._last = key, self._thread.submit(_measure, folder, weeks)
        try:
            async with asyncio.timeout(seconds):
                found = await asyncio.shield(asyncio.wrap_future(self._last[1]))
        except TimeoutError:
            raise Fault(503, "measuring", "it is still being measured; ask again", retry_after=2) from None
        return {**found, "ledger": await asyncio.to_thread(_spent, folder)}

    def close(self) -> None:
        """Finish what has begun."""
        self._thread.shutdown()


def _measure(folder: Path, weeks: int) -> dict[str, Any]:
    place = MerchantPlace(folder)
    try:
        with encoders_apart():
            drift = drift_of(place, place.data(), weeks, WINDOWS)
    except InputError as error:
        return {"sentence": None, "failure": without_paths(str(error), [folder])}
    found = asdict(drift)
    for window in found["windows"]:
        window |= {"start": window["start"].date().isoformat(), "end": window["end"].date().isoformat()}
    return {"sentence": drift_sentence(drift), **{name: found[name] for name in ("by", "k", "windows", "held_back")}}


def _spent(folder: Path) -> dict[str, Any] | None:
    """What the ledger says, which is only read."""
    settings = read_merchant_file(folder / MERCHANT_FILE)
    policy, path = settings.privacy, folder / LEDGER / f"{settings.name}.ledger.jsonl"
    if not path.is_file():
        return None
    releases, whole = Ledger(path, policy.delta).intact()
    spent = epsilon([release.event for release in releases], policy.delta).value if whole else None
    return {"epsilon": spent, "delta": policy.delta, "budget": policy.epsilon, "releases": len(releases)}
