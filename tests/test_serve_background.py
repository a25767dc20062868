"""What the service works on beside its answers: what is kept of it, for how long, and that nobody waits for it at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedrec.errors import InputError
from fedrec.serve import drift
from fedrec.serve.background import Background
from fedrec.serve.faults import Fault
from fedrec.serve.metrics import Metrics
from fedrec.serve.settings import DriftSettings
from fedrec.serve.tenants import Tenant

SECONDS = 10.0


def counted(*outcomes: object) -> Callable[[], object]:
    """Work that has one outcome after the other, and raises those that are errors."""
    left = list(outcomes)

    def work() -> object:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return work


@pytest.mark.parametrize("failure", [InputError("too few weeks"), TimeoutError("of the database")])
def test_an_answer_is_kept_and_a_failure_is_told_once(failure: Exception) -> None:
    async def scene() -> None:
        background: Background[object] = Background("measuring")
        work = counted(failure, 1, 2, 3)
        with pytest.raises(type(failure)):
            await background.of("a", work, SECONDS)
        assert [await background.of(key, work, SECONDS) for key in "aab"] == [1, 1, 2]
        background.drop()
        assert await background.of("b", work, SECONDS) == 3

    asyncio.run(scene())


def test_who_asks_again_is_told_why_what_took_long_failed() -> None:
    async def scene() -> None:
        background: Background[object] = Background("measuring")
        going = threading.Event()

        def work() -> object:
            going.wait(SECONDS)
            raise InputError("too few weeks")

        with pytest.raises(Fault, match="still measuring"):
            await background.of("a", work, 0.01)
        with pytest.raises(Fault, match="another one"):
            await background.of("b", work, SECONDS)
        going.set()
        with pytest.raises(InputError, match="too few"):
            await background.of("a", lambda: 1, SECONDS)

    asyncio.run(scene())


def test_an_answer_that_is_too_old_is_worked_on_anew() -> None:
    async def scene() -> None:
        background: Background[object] = Background("measuring", oldest=0.2)
        work = counted(1, 2)
        assert [await background.of("a", work, SECONDS) for _ in range(2)] == [1, 1]
        await asyncio.sleep(0.25)
        assert await background.of("a", work, SECONDS) == 2

    asyncio.run(scene())


def figures(mix: float) -> dict[str, Any]:
    return {"windows": [{"mix": mix, "unknown": 0.1}], "change": None, "p_value": None, "sentence": "said"}


def test_drift_is_measured_again_when_a_database_was_read_again_and_a_failure_clears_no_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a table in a database no file tells that it has changed: the snapshot stays, the time of loading does not."""
    work = counted(figures(0.4), InputError("/srv/shop/events: span less than 8 weeks"), figures(0.1))
    monkeypatch.setattr(drift, "_measure", lambda folder, weeks: work())

    async def scene() -> None:
        tenant, metrics, background = Tenant("shop", Path("/srv/shop"), True), Metrics(), Background[dict[str, Any]]("measuring")
        watch = drift.DriftWatch(DriftSettings(mix=0.3), [tenant], background, metrics)
        told = []
        for loaded in (1.0, 1.0, 2.0, 2.0):
            tenant.model = SimpleNamespace(snapshot="s", loaded=loaded)  # type: ignore[assignment]
            before = time.time()
            await watch._look(tenant)
            values = {key.rpartition(" ")[0]: float(key.rpartition(" ")[2]) for key in _lines(metrics)}
            alarm = values['fedrec_drift_alarm{figure="mix",merchant="shop"}']
            told.append((alarm, values['fedrec_drift_measured_timestamp_seconds{merchant="shop"}'] >= before))
        assert told == [(1.0, True), (1.0, True), (1.0, False), (0.0, True)]

    asyncio.run(scene())


def _lines(metrics: Metrics) -> list[str]:
    return [line for line in metrics.text().decode().splitlines() if line.startswith("fedrec_drift")]


ENDLESS = """
import asyncio, time
from fedrec.serve.background import Background
from fedrec.serve.processes import _until_stopped

class Server:
    def run(self, sockets):
        async def scene():
            try:
                await Background("measuring").of("a", lambda: time.sleep(600), 0.01)
            except Exception as error:
                print(error, flush=True)
        asyncio.run(scene())
        {end}

_until_stopped(Server(), [])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "status"), [("", 0), ("raise KeyboardInterrupt", 130)])
def test_a_process_that_is_stopped_waits_for_none_of_it(end: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDLESS.format(end=end)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, "") and "still measuring" in done.stdout
