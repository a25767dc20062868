"""The application: routers, the guard before them, one form of errors, and what is loaded before the first request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fedrec import __version__
from fedrec.errors import InputError
from fedrec.serve.faults import Fault
from fedrec.serve.guard import Guard, answer_of
from fedrec.serve.keys import Keys
from fedrec.serve.routes import ROUTERS
from fedrec.serve.service import Service
from fedrec.serve.settings import LOOPBACK, ServeSettings
from fedrec.serve.tenants import find_tenants

__all__ = ["check", "create_app", "names_of"]

WHERE = 100
"""Characters of a field's name that are told: one that is not known is as long as its sender likes."""
logger = logging.getLogger(__name__)


def create_app(
    path: Path,
    host: str = LOOPBACK[0],
    key_file: Path | None = None,
    settings: ServeSettings | None = None,
    give_up: Callable[[InputError], None] | None = None,
    onnx: Path | None = None,
    opened: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application that serves `path`.

    Args:
        path: a run folder, a merchant's folder, or a folder of merchants' folders.
        host: the address that is listened on.
        key_file: made where it is not there; needed for any address but a loopback one, and for several merchants.
        give_up: is told why nothing can be served; by default that is raised.
        onnx: an export of the model, which reads words while it is that of the model that is loaded.
        opened: is called once what is served is loaded.

    Raises:
        InputError: there is nothing to serve, a key file is needed, or it cannot be used.
    """
    names, several = check(path, host, key_file)
    settings = settings or ServeSettings()
    keys = None if key_file is None else Keys.open(key_file, names)
    held: list[Service] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tenants, _ = find_tenants(path)
        for tenant in tenants.values():
            tenant.onnx = onnx
        service = Service(tenants, several, settings, keys)
        held.append(service)
        watching: list[asyncio.Task[None]] = []
        try:
            await service.open()
            opened()
            watching = [asyncio.create_task(watcher) for watcher in service.watchers()]
        except InputError as error:
            if give_up is None:
                raise
            give_up(error)
        yield
        for task in watching:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.close()

    app = FastAPI(
        title="fedrec", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Lists, searches and reasons from a merchant's own recommender, and feedback to it.",
    )  # fmt: skip
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Fault, _fault)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Guard, service=lambda: held[-1], host=host)
    return app


def names_of(path: Path) -> tuple[list[str], bool]:
    """The merchants' names, and whether there may be several.

    Raises:
        InputError: there is nothing to serve.
    """
    tenants, several = find_tenants(path)
    return list(tenants), several


def check(path: Path, host: str, key_file: Path | None) -> tuple[list[str], bool]:
    """`names_of`, and whether it may be served so.

    Raises:
        InputError: there is nothing to serve, or a key file is needed.
    """
    names, several = names_of(path)
    if key_file is None and (several or host not in LOOPBACK):
        why = "several merchants share the service" if several else f"other machines reach {host}"
        raise InputError(why, where="--key-file", expected="a file for keys; it is made where it is not there")
    return names, several


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return answer_of(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first of what pydantic found. What was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer_of(Fault(400, "not_json", "the body is not JSON", "body"))
    where = ".".join(str(part)[:WHERE] for part in first["loc"][1:])[:WHERE] or "body"
    return answer_of(Fault(422, first["type"], first["msg"].removeprefix("Value error, "), where))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {400: ("not_json", "the body cannot be read"), 404: ("not_found", "there is no such page")}
    kind, text = told.get(error.status_code, ("refused", "this is not how it is asked"))
    found = answer_of(Fault(error.status_code, kind, text))
    found.headers.update(error.headers or {})
    return found
