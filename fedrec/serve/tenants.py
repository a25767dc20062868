"""The merchants of a process: which there are, what of each is loaded, and how that follows what is on disk."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedrec.data.feedback import FeedbackLog
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.serve.faults import Fault, without_paths
from fedrec.serve.metrics import Metrics
from fedrec.serve.models import Model, Stamp, load_model, stamp_of
from fedrec.serve.settings import ServeSettings
from fedrec.serve.shown import Shown

__all__ = ["RUN", "Tenant", "Tenants", "find_tenants"]

RUN = "run"
"""The name of a run among the keys and in the metrics: it has none of its own."""
AGAIN = 60.0
"""Seconds after which what could not be loaded is tried again, though nothing has changed."""
SOON = 2.0
"""The same, where somebody asks."""
logger = logging.getLogger(__name__)


class Tenant:
    """A merchant's folder, or a run's.

    Attributes:
        model: what answers; None while nothing is loaded.
        failure: why what is on disk is not what answers, for the merchant's staff; None where it is.
        log: where feedback goes; None for a run, which takes none.
        shown: how the places of its last lists that explored were given, for feedback to them.
        onnx: an export that reads words in place of the encoder, as long as it is of the model that is loaded.
    """

    def __init__(self, name: str, folder: Path, takes_feedback: bool) -> None:
        self.name, self.folder = name, folder
        self.onnx: Path | None = None
        self.log = FeedbackLog(folder) if takes_feedback else None
        self.shown = Shown()
        self.model: Model | None = None
        self.failure: str | None = None
        self.used = time.monotonic()
        self.swaps = 0
        self._seen: Stamp | None = None
        self._tried: tuple[Stamp, float] | None = None
        self._loading: asyncio.Task[Model | None] | None = None

    def touch(self) -> None:
        """It is in use: who was idle longest leaves memory."""
        self.used = time.monotonic()

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's; a merchant may be called `RUN` too."""
        return self.log is None

    def rest(self) -> None:
        """Leave memory, until somebody asks again."""
        self.model, self.shown = None, Shown()
        if self.log is not None:
            self.log = FeedbackLog(self.folder)

    def due(self, stamp: Stamp, refresh: float) -> bool:
        """Whether what is on disk is to be loaded. What was still another thing a look ago may yet be half written."""
        same, self._seen = stamp == self._seen, stamp
        if self._tried is not None and self._tried[0] == stamp and time.monotonic() - self._tried[1] < AGAIN:
            return False
        if self.model is None:
            return False
        if stamp.files != self.model.stamp.files or self.failure is not None:
            return same
        return time.time() - self.model.loaded > refresh and (stamp.database or stamp.late != self.model.stamp.late)

    @property
    def failed_just_now(self) -> bool:
        """Whether it could not be loaded a moment ago: who asks again at once is not worth another try."""
        return self.failure is not None and self._tried is not None and time.monotonic() - self._tried[1] < SOON

    def start_loading(
        self, one_at_a_time: asyncio.Semaphore, metrics: Metrics, make_room: Callable[[], None]
    ) -> asyncio.Task[Model | None]:
        """Load beside what answers, and put it in its place whole; what is being loaded already is not loaded twice.

        Args:
            make_room: is called with the new one in memory.

        Returns:
            What was loaded, None where that failed. It answers those who wait for it even if it has left memory by then.
        """
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load(one_at_a_time, metrics, make_room))
        return self._loading

    async def _load(self, one_at_a_time: asyncio.Semaphore, metrics: Metrics, make_room: Callable[[], None]) -> Model | None:
        async with one_at_a_time:
            self._tried = (await asyncio.to_thread(stamp_of, self.folder), time.monotonic())
            try:
                model = await asyncio.to_thread(load_model, self.folder, self.onnx)
            except Exception as error:  # whatever it is: the old one goes on
                told = str(error) if isinstance(error, InputError) else type(error).__name__
                self.failure = without_paths(told, [self.folder])
                metrics.swaps.labels(self.name, "failed").inc()
                metrics.failing.labels(self.name).set(1)
                logger.warning("%s: what is on disk cannot be loaded (%s)", self.name, type(error).__name__)
                return None
            if self.model is None:  # a swap is nobody's question
                self.touch()
            self.swaps += self.model is not None
            self.model, self.failure, self._tried = model, None, None
            make_room()
            await asyncio.to_thread(_give_back)
        metrics.swaps.labels(self.name, "done").inc()
        metrics.failing.labels(self.name).set(0)
        metrics.loaded.labels(self.name, model.version).set(model.loaded)
        metrics.data.labels(self.name).set(model.data_time)
        logger.info("%s: version %s is loaded", self.name, model.version)
        if model.export is False:
            logger.warning("%s: the export is not used, the encoder itself reads words", self.name)
        return model


class Tenants:
    """All merchants of a process. Of several, only those that are asked for are loaded.

    Args:
        changed: is called when one was loaded or has left memory: what was made beside it may know a person who was forgotten.
    """

    def __init__(
        self, tenants: dict[str, Tenant], several: bool, settings: ServeSettings, metrics: Metrics,
        changed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.all, self.several = tenants, several
        self._settings, self._metrics, self._changed = settings, metrics, changed
        self._one_at_a_time = asyncio.Semaphore(1)

    async def open(self) -> None:
        """Load the one that there is; of several, each is loaded when it is asked for.

        Raises:
            InputError: it cannot be loaded.
        """
        if self.several:
            return
        (tenant,) = self.all.values()
        await self._start_loading(tenant)
        if tenant.model is None:
            raise InputError(tenant.failure or "it cannot be loaded", hint="`fedrec recommend` says more")

    async def model(self, tenant: Tenant, seconds: float) -> Model:
        """What answers for a merchant, loaded if need be.

        Raises:
            Fault: 503, it is not loaded within `seconds`, or cannot be.
        """
        tenant.touch()
        model = tenant.model
        if model is None and not tenant.failed_just_now:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    model = await asyncio.shield(self._start_loading(tenant))
        if model is None:
            found = "loading" if tenant.failure is None else "unavailable"
            raise Fault(503, found, "the merchant's model is not loaded yet; try again", retry_after=5)
        return model

    async def watch(self) -> None:
        """Look again and again whether a folder has changed, and who is idle; it ends by being cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll)
            for tenant in self.all.values():
                try:
                    await self._look(tenant)
                except Exception as error:  # one folder's fault must not end the watch over the others
                    logger.error("%s: its folder cannot be looked at (%s)", tenant.name, type(error).__name__)

    async def _look(self, tenant: Tenant) -> None:
        if self.several and time.monotonic() - tenant.used > self._settings.idle:
            if tenant.model is not None:
                self._changed()
            tenant.rest()
        if tenant.model is None:
            return
        stamp = await asyncio.to_thread(stamp_of, tenant.folder)
        if tenant.due(stamp, self._settings.refresh):
            await self._start_loading(tenant)

    def _start_loading(self, tenant: Tenant) -> asyncio.Task[Model | None]:
        return tenant.start_loading(self._one_at_a_time, self._metrics, self._make_room)

    def _make_room(self) -> None:
        loaded = sorted((one for one in self.all.values() if one.model is not None), key=lambda one: one.used)
        for tenant in loaded[: max(len(loaded) - self._settings.loaded, 0)]:
            tenant.rest()
        self._changed()


def _give_back() -> None:
    """Free what was loaded before: it has cycles in it, and the C library keeps what is freed."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another one than glibc has no such function
        ctypes.CDLL(None).malloc_trim(0)


def find_tenants(path: Path) -> tuple[dict[str, Tenant], bool]:
    """Whom a path is: a run, a merchant, or several merchants in a folder of their folders; and whether it is that.

    Raises:
        InputError: it is none of these, or two merchants have one name.
    """
    if (path / MERCHANT_FILE).is_file():
        name = read_merchant_file(path / MERCHANT_FILE).name
        return {name: Tenant(name, path, True)}, False
    if (path / "adapter").is_dir() or (path / "fedrec.json").is_file():
        return {RUN: Tenant(RUN, path, False)}, False
    found: dict[str, Tenant] = {}
    for folder in sorted(path.iterdir()) if path.is_dir() else ():
        if not (folder / MERCHANT_FILE).is_file():
            continue
        name = read_merchant_file(folder / MERCHANT_FILE).name
        if name in found:
            raise InputError(f"the merchant {name!r} is there twice", where=str(folder), expected="names that differ")
        found[name] = Tenant(name, folder, True)
    if not found:
        raise InputError(
            "is nothing that can be served", where=str(path),
            expected="a run folder, a merchant's folder, or a folder of merchants' folders",
        )  # fmt: skip
    return found, True
