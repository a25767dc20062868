"""Drift of a merchant and what its ledger says; and whether that is over the thresholds of an operator, for the metrics."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedrec.errors import InputError
from fedrec.merchant import LEDGER, MERCHANT_FILE, read_merchant_file
from fedrec.model.encoder import encoders_apart
from fedrec.privacy import Ledger, LedgerError, epsilon, head_file
from fedrec.privacy.next_run import next_run
from fedrec.recommender.drifting import SURE, drift_of, drift_sentence
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.background import Background
from fedrec.serve.faults import Fault, without_paths
from fedrec.serve.metrics import Metrics
from fedrec.serve.settings import DriftSettings
from fedrec.serve.tenants import Tenant

__all__ = ["DriftWatch", "alarms", "measured", "spent"]

WINDOWS = 12
LONGEST = 3_600.0
"""Seconds that a measurement which nobody waits for may take."""
BUSY = 10.0
"""Seconds until the next try, where somebody else's is being measured."""
logger = logging.getLogger(__name__)


async def measured(drift: Background[dict[str, Any]], tenant: Tenant, weeks: int, seconds: float) -> dict[str, Any]:
    """Fields of a `DriftAnswer` but for the ledger; while the same is loaded nothing is measured twice, but for what failed.

    Raises:
        Fault: see `Background.of`.
    """
    key = (tenant.folder, tenant.model.loaded if tenant.model else 0.0, weeks)
    try:
        return await drift.of(key, lambda: _measure(tenant.folder, weeks), seconds)
    except InputError as error:
        return {"sentence": None, "failure": without_paths(str(error), [tenant.folder])}


def _measure(folder: Path, weeks: int) -> dict[str, Any]:
    place = MerchantPlace(folder)
    with encoders_apart():
        drift = drift_of(place, place.data(), weeks, WINDOWS)
    found = asdict(drift)
    for window in found["windows"]:
        window |= {"start": window["start"].date().isoformat(), "end": window["end"].date().isoformat()}
    shown = ("by", "k", "windows", "change", "p_value", "held_back")
    return {"sentence": drift_sentence(drift), **{name: found[name] for name in shown}}


def spent(folder: Path) -> dict[str, Any] | None:
    """What the ledger says, which is only read; None where nothing was ever released. It is held against its head: of one
    that was cut, or is gone, no epsilon is told."""
    settings = read_merchant_file(folder / MERCHANT_FILE)
    policy, path, head = settings.privacy, folder / LEDGER / f"{settings.name}.ledger.jsonl", settings.ledger.head
    ledger = Ledger(path, policy.delta, head_file(path, None if head is None else folder / head))
    said = {"epsilon": None, "delta": policy.delta, "budget": policy.epsilon, "next_run": None}
    try:
        releases = ledger.releases()
    except LedgerError:
        return {**said, "releases": len(ledger.intact()[0])}
    again = next_run(releases, policy.delta, policy.epsilon)
    if again is None:
        return None
    spent = epsilon([release.event for release in releases], policy.delta).value
    return {**said, "epsilon": spent, "releases": len(releases), "next_run": again.sentence}


def alarms(found: dict[str, Any], settings: DriftSettings) -> dict[str, tuple[float, bool]]:
    """By name of what has a threshold: its figure (NaN where there is none), and whether that is over it.

    Args:
        found: as `measured` has it where that did not fail.
    """
    last = found["windows"][-1]
    sure = found["change"] is not None and found["p_value"] is not None and found["p_value"] < SURE
    figures = {"lost": -found["change"] if sure else None, "mix": last["mix"], "unknown": last["unknown"]}
    limits = {name: limit for name in figures if (limit := getattr(settings, name)) is not None}
    return {
        name: (math.nan, False) if (figure := figures[name]) is None else (figure, figure >= limit)
        for name, limit in limits.items()
    }


class DriftWatch:
    """Measures every merchant again and again, as the settings say, and tells the metrics alone. Nothing else follows from it."""

    def __init__(
        self, settings: DriftSettings, tenants: Iterable[Tenant], drift: Background[dict[str, Any]], metrics: Metrics
    ) -> None:
        self._settings, self._drift, self._metrics = settings, drift, metrics
        self._tenants = [tenant for tenant in tenants if not tenant.is_run]

    async def run(self) -> None:
        """It ends by being cancelled."""
        while True:
            for tenant in self._tenants:
                try:
                    await self._look(tenant)
                except Exception as error:  # one merchant's fault must not end the watch over the others
                    logger.error("%s: its drift cannot be measured (%s)", tenant.name, type(error).__name__)
            await asyncio.sleep(3_600 * self._settings.every)

    async def _look(self, tenant: Tenant) -> None:
        while True:
            try:
                found = await measured(self._drift, tenant, self._settings.weeks, LONGEST)
                break
            except Fault as fault:
                if fault.status != 429:
                    raise
                await asyncio.sleep(BUSY)
        if found.get("failure") is not None:  # what was said of the last measurement stands, with its time
            logger.warning("%s: its drift cannot be measured; /v1/drift says why", tenant.name)
            return
        for name, (figure, over) in alarms(found, self._settings).items():
            self._metrics.drift_alarm.labels(tenant.name, name).set(over)
            if self._settings.figures:
                self._metrics.drift.labels(tenant.name, name).set(figure)
        self._metrics.drift_measured.labels(tenant.name).set_to_current_time()
