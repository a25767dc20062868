"""Before every request: whether it may be asked from there, whose key it has, how large it is, how long its body takes.

A page in somebody's browser can send requests to this machine's own addresses, and make a name of its own point there. So on
a loopback address the `Host` has to be one of that address, and an `Origin`, wherever the service listens, its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import PurePath

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrec.serve.faults import Fault
from fedrec.serve.keys import Caller
from fedrec.serve.service import Call, Service
from fedrec.serve.settings import LOOPBACK

__all__ = ["Guard", "answer_of"]

OPEN = ("/", "/livez", "/readyz", "/openapi.json")
"""What needs no key: it says nothing of a merchant. So it counts towards no limit, and nobody's body is waited for there."""
METRICS = "/metrics"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
logger = logging.getLogger(__name__)


def answer_of(fault: Fault) -> Response:
    """What a fault is answered with."""
    return Response(fault.answer.model_dump_json(), fault.status, fault.headers, "application/json")


class Guard:
    """ASGI middleware, the outermost.

    Args:
        service: gives the service of the application once it is open.
        host: the address that is listened on.
    """

    def __init__(self, app: ASGIApp, service: Callable[[], Service], host: str) -> None:
        self._app, self._service, self._host = app, service, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service = self._service()
        call = Call(service, Caller("shop"))
        scope["fedrec.call"] = call
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = call.id
            await send(message)

        counted = scope["path"] not in OPEN
        service.in_progress += counted
        try:
            body = await self._admitted(scope, receive, call)
            call.read = time.perf_counter()
            if body is not None:
                await self._app(scope, _replayed(body, receive), sent)
        except Fault as fault:
            await answer_of(fault)(scope, receive, sent)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s: %s in %s, line %s", call.id, type(error).__name__, PurePath(last.filename).name, last.lineno)
            if status:
                raise  # half of an answer is out: the connection is all that can still say so
            await answer_of(Fault(500, "internal", "the service failed; its log names the request"))(scope, receive, sent)
        finally:
            service.in_progress -= counted
            route = getattr(scope.get("route"), "path", "other")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(call.took_ms / 1e3)

    async def _admitted(self, scope: Scope, receive: Receive, call: Call) -> bytes | None:
        """The body of a request that may be asked; None where whoever sent it has gone."""
        service, headers = call.service, Headers(scope=scope)
        self._check_names(headers, service)
        is_open = scope["path"] in OPEN
        if not is_open:
            call.caller = _caller(headers, service, scope["path"])
            if service.in_progress > service.settings.requests:
                raise Fault(429, "busy", "too many requests are in progress", retry_after=1)
        most = service.settings.body_bytes
        given = headers.get("content-length", "")
        if given.isascii() and given.isdigit() and int(given[:20]) > most:
            raise _too_large(most)
        if is_open or scope["method"] != "POST":
            return b""
        try:
            async with asyncio.timeout(service.settings.body_seconds):
                return await _read(receive, most)
        except TimeoutError:
            raise Fault(400, "body_timeout", "the body did not arrive in time") from None

    def _check_names(self, headers: Headers, service: Service) -> None:
        host, name = headers.get("host", ""), _name(headers.get("host", ""))
        here = (*LOOPBACK, *service.settings.hosts) if self._host in LOOPBACK else service.settings.hosts
        if here and name not in here:
            raise Fault(400, "host", "the service is not known under this name", "Host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Fault(400, "origin", "a page from elsewhere may not ask", "Origin")


def _caller(headers: Headers, service: Service, path: str) -> Caller:
    if service.keys is None:
        if path == METRICS:
            raise Fault(401, "no_key", "the figures need a key: start the service with --key-file")
        return Caller("staff")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    caller = service.keys.caller(key.strip()) if scheme.lower() == "bearer" else None
    if caller is None or (caller.role == "metrics") != (path == METRICS):
        raise Fault(401, "no_key", "no key, or one that does not open this", "Authorization")
    return caller


def _name(host: str) -> str:
    """Without the port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


async def _read(receive: Receive, most: int) -> bytes | None:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large(most: int) -> Fault:
    return Fault(413, "too_large", f"the body has more than {most:,} bytes")
