"""What a request needs: settings, keys, the merchants, the thread that ranks, and what it counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from starlette.requests import Request

from fedrec.errors import InputError
from fedrec.recommender import Answer, Person, Wish
from fedrec.recommender.exploring import Place
from fedrec.recommender.impressions import Impression, ImpressionLog
from fedrec.serve.background import Background
from fedrec.serve.drift import DriftWatch
from fedrec.serve.faults import Fault, fault_of
from fedrec.serve.keys import Caller, Keys
from fedrec.serve.metrics import Metrics
from fedrec.serve.models import Model
from fedrec.serve.schemas import Item, ListAnswer
from fedrec.serve.settings import ServeSettings
from fedrec.serve.tenants import Tenant, Tenants
from fedrec.serve.worker import Worker

__all__ = ["Call", "Service", "call_of"]

Found = TypeVar("Found")
logger = logging.getLogger(__name__)


@dataclass
class Call:
    """One request.

    Attributes:
        service: what it is asked of.
        caller: who asks.
        id: names it in the answer, and in the feedback to it.
        begun: when, by `time.perf_counter`.
        read: the same of when its body was there, from which on the time limit counts.
    """

    service: Service
    caller: Caller
    id: str = field(default_factory=lambda: uuid4().hex)
    begun: float = field(default_factory=time.perf_counter)
    read: float = field(default_factory=time.perf_counter)

    @property
    def took_ms(self) -> float:
        """Milliseconds so far."""
        return round(1e3 * (time.perf_counter() - self.begun), 3)

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return max(self.service.settings.time_limit - (time.perf_counter() - self.read), 0.001)

    def tenant(self, merchant: str | None) -> Tenant:
        """The merchant whose list this is; a run has one whatever part of its catalogue is asked for.

        Raises:
            Fault: none is named where there are several (422), or there is none of that name for this key (404).
        """
        tenants, own = self.service.tenants, self.caller.merchant
        if not tenants.several:
            (tenant,) = tenants.all.values()
            if not tenant.is_run and merchant not in (None, tenant.name):
                raise _no_merchant()
            return tenant
        if merchant is None:
            raise Fault(422, "missing", "the service has several merchants; name one", "merchant")
        if merchant not in tenants.all or own not in (None, merchant):
            raise _no_merchant()
        return tenants.all[merchant]

    def may_ask(self, person: Person, what: str) -> None:
        """Whether `what` may be asked for: of a known user it would name what that one bought, which is for the staff.

        Raises:
            Fault: 401.
        """
        if self._of_another(person):
            raise Fault(401, "staff_key", f"{what} for a known user's own events need the staff's key", "user_id")

    def _of_another(self, person: Person) -> bool:
        """Whether a shop's key asks by events that it did not give itself."""
        return not self.caller.staff and person.history is None and person.user_id is not None

    async def lists(self, tenant: Tenant, merchant: str | None, person: Person, wish: Wish) -> tuple[Model, Answer]:
        """A list for a person, ranked with those of others who wait. With words it is ranked alone: each text goes through the
        encoder by itself, and the first of several would wait for the last.

        Raises:
            Fault: what is asked means nothing, or there is no answer now.
        """
        model = await self.service.tenants.model(tenant, self.left)
        return model, await self.lists_of(model, merchant if tenant.is_run else None, person, wish)

    async def lists_of(self, model: Model, part: str | None, person: Person, wish: Wish) -> Answer:
        """`lists` of a model that is loaded.

        Raises:
            Fault: as there.
        """
        self.check_words(model, wish.query)
        group = None if wish.query is not None else (id(model), part)
        answer: Answer = await self._do(lambda asked: model.lists(asked, part), (person, wish), group)
        return answer

    async def ask(self, question: Callable[[], Found]) -> Found:
        """Any other question, alone."""
        answer: Found = await self._do(lambda asked: [question()], None, None)
        return answer

    async def _do(self, batch: Callable[[list[Any]], Any], asked: Any, group: object) -> Any:
        try:
            return await self.service.worker.do(batch, asked, self.left, group)
        except InputError as error:
            raise fault_of(error) from None

    def check_words(self, model: Model, query: str | None) -> None:
        """Whether words can be read.

        Raises:
            Fault: 503.
        """
        if query is not None and not model.words:
            raise Fault(503, "no_encoder", "words cannot be read here: the encoder is not there", "query")

    async def remember(self, tenant: Tenant, person: Person, model: Model, explore: float, answer: Answer) -> None:
        """Keep what a list that explored shows in the merchant's folder. A list is answered also where that cannot be written."""
        most = self.service.settings.impression_bytes
        if tenant.is_run or not most or not answer.places:
            return
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        policy = f"{model.version} {explore:g}"
        rows = [
            Impression(self.id, person.user_id or "", now, item, str(at), policy, *(repr(value) for value in place))
            for at, ((item, _), place) in enumerate(zip(answer.items, answer.places, strict=True), 1)
        ]
        log = ImpressionLog(tenant.folder, most)
        try:
            await asyncio.get_running_loop().run_in_executor(self.service.impressions, log.append, rows)
        except (InputError, OSError) as error:
            logger.warning("%s: what a list showed is not kept (%s)", tenant.name, type(error).__name__)

    def listed(self, tenant: Tenant, person: Person, model: Model, answer: Answer) -> ListAnswer:
        """An answer to a person's question as this caller may have it."""
        staff, reasons = self.caller.staff, {one.item_id: one for one in answer.reasons}
        made = "fallback" if answer.source in ("popularity", "none") else "search" if answer.source == "search" else "model"
        self.service.metrics.answers.labels(tenant.name, answer.source if made == "fallback" else made).inc()
        if made == "fallback":
            self.service.metrics.fallbacks.labels(tenant.name).inc()
        if not tenant.is_run:
            tenant.shown.keep(self.id, [name for name, _ in answer.items], answer.places)
        places: Sequence[Place | None] = answer.places or [None] * len(answer.items)
        items = [
            Item.model_validate({
                "item_id": name, "text": model.texts[name], "source": answer.source, "score": float(score) if staff else None,
                "reasons": None if name not in reasons else _reasons(reasons[name], staff),
                **(place._asdict() if staff and place else {}),
            })
            for (name, score), place in zip(answer.items, places, strict=True)
        ]  # fmt: skip
        return ListAnswer(
            request_id=self.id, merchant=tenant.name, model=model.version, snapshot=model.snapshot, took_ms=self.took_ms,
            source=answer.source, notes=[] if self._of_another(person) else list(answer.notes),
            distance=answer.distance if staff else None, items=items,
        )  # fmt: skip


class Service:
    """All that the requests of a process share. It is made, and used, in one event loop."""

    def __init__(self, tenants: dict[str, Tenant], several: bool, settings: ServeSettings, keys: Keys | None) -> None:
        self.settings, self.keys, self.metrics = settings, keys, Metrics()
        self.versions: Background[Model] = Background("loading", settings.idle)
        self.tenants = Tenants(tenants, several, settings, self.metrics, self.versions.drop)
        self.worker = Worker(settings.queue, settings.batch)
        self.writer = ThreadPoolExecutor(1, "feedback")
        self.impressions = ThreadPoolExecutor(1, "impressions")
        self.drift: Background[dict[str, Any]] = Background("measuring", oldest=settings.refresh)
        self.reports: Background[dict[str, Any]] = Background("computing")
        self.in_progress, self.writing = 0, 0
        self.ready = False

    async def open(self) -> None:
        """Load, and ask the thread that ranks everything once.

        Raises:
            InputError: what is to be served cannot be loaded.
        """
        await self.tenants.open()
        for tenant in self.tenants.all.values():
            if (model := tenant.model) is not None and model.ranks and model.words:
                ask = lambda asked, model=model: [model.recommender.search("a", k=1)]  # noqa: E731
                await self.worker.do(ask, None, 120.0)
        self.ready = True

    def watchers(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on beside requests until it is cancelled."""
        found = [self.tenants.watch()]
        if self.settings.drift is not None:
            found.append(DriftWatch(self.settings.drift, self.tenants.all.values(), self.drift, self.metrics).run())
        return found

    async def close(self) -> None:
        """Finish what has begun, but for what nobody waits for: drift, reports, versions."""
        self.ready = False
        await asyncio.to_thread(self.worker.close)
        self.writer.shutdown()
        self.impressions.shutdown()


def call_of(request: Request) -> Call:
    """The request's call, as the guard made it."""
    call: Call = request.scope["fedrec.call"]
    return call


def _reasons(reasons: Any, staff: bool) -> dict[str, Any]:
    found: dict[str, Any] = reasons.for_staff() if staff else reasons.for_shopper()
    return found


def _no_merchant() -> Fault:
    return Fault(404, "not_found", "there is no such merchant for this key", "merchant")
