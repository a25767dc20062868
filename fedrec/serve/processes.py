"""One process that serves, or several that share a socket."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedrec.errors import InputError
from fedrec.serve.settings import ServeSettings
from fedrec.text import log_visibly

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["app_of_environment", "listen", "serve"]

WORKER = "FEDREC_SERVE"
"""Environment variable from which a worker process has what to serve."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
WHY = "why.txt"
"""In the folder of the metrics: why a worker could not begin."""
READY = "ready"
"""In the same: a worker has been ready."""
PAUSE = 5.0
"""Seconds before another process takes the place of one that cannot begin while others serve."""
logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        InputError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot listen ({told})", where=f"{host}, port {port}", hint="--port takes another one") from None


def serve(
    bound: socket.socket, path: Path, host: str, key_file: Path | None, settings: ServeSettings, workers: int, onnx: Path | None
) -> None:
    """Serve until SIGTERM or Ctrl-C; what has begun is finished.

    Raises:
        InputError: it cannot be loaded.
    """
    if workers > 1:
        _serve_by_many(bound, path, host, key_file, settings, workers, onnx)
        return
    import uvicorn

    from fedrec.serve.app import create_app

    why: list[InputError] = []

    def give_up(error: InputError) -> None:
        why.append(error)
        server.should_exit = True

    _prepare()
    server = uvicorn.Server(_config(create_app(path, host, key_file, settings, give_up, onnx), settings))
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn has its own, and raises it again when it is done
    _until_stopped(server, [bound])
    if why:
        raise why[0]


def _until_stopped(server: Any, sockets: list[socket.socket]) -> None:
    """Run it. What is still measured or computed then, and nobody waits for, ends with the process."""
    from fedrec.serve.background import unfinished

    status = 0
    try:
        server.run(sockets=sockets)
    except KeyboardInterrupt:
        if not unfinished():
            raise
        status = 128 + signal.SIGINT
    if unfinished():
        sys.stdout.flush()
        os._exit(status)


def app_of_environment() -> FastAPI:
    """The application of a worker process."""
    from fedrec.serve.app import create_app

    _prepare()
    given, figures = json.loads(os.environ[WORKER]), Path(os.environ[METRICS_FOLDER])
    key_file, onnx = (None if given[name] is None else Path(given[name]) for name in ("key_file", "onnx"))

    def give_up(error: InputError) -> None:
        if (figures / READY).exists():
            _make_way()
        (figures / WHY).write_text(str(error), encoding="utf-8")
        os.kill(os.getppid(), signal.SIGTERM)

    settings = ServeSettings.model_validate(given["settings"])
    try:
        return create_app(Path(given["path"]), given["host"], key_file, settings, give_up, onnx, (figures / READY).touch)
    except InputError as error:
        give_up(error)
        sys.exit(1)


def _make_way() -> NoReturn:
    """End this process for another to try, and leave those alone that serve what was there before.

    It has answered nothing and holds nothing yet, so it may end at once, also by a signal while it waits.
    """
    logger.error("a process cannot begin: what is on disk cannot be loaded; again in %g seconds", PAUSE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(PAUSE)
    os._exit(1)


def _prepare() -> None:
    """Log; and have what has been imported looked at by no collection of garbage again, which would stop a request for long."""
    _log()
    gc.collect()
    gc.freeze()


def _serve_by_many(
    bound: socket.socket, path: Path, host: str, key_file: Path | None, settings: ServeSettings, workers: int, onnx: Path | None
) -> None:
    from uvicorn.supervisors import Multiprocess

    with tempfile.TemporaryDirectory(prefix="fedrec-serve-") as folder:
        os.environ[METRICS_FOLDER] = folder
        os.environ[WORKER] = json.dumps({
            "path": str(path), "host": host, "key_file": None if key_file is None else str(key_file),
            "settings": settings.model_dump(mode="json"), "onnx": None if onnx is None else str(onnx),
        })  # fmt: skip
        _log()
        config = _config(f"{__name__}:app_of_environment", settings, workers)
        import uvicorn

        Multiprocess(config, target=partial(_until_stopped, uvicorn.Server(config)), sockets=[bound]).run()
        if (why := Path(folder, WHY)).exists():
            raise InputError(why.read_text(encoding="utf-8"))


def _config(app: Any, settings: ServeSettings, workers: int = 1) -> Any:
    import uvicorn

    return uvicorn.Config(
        app, factory=isinstance(app, str), workers=workers, lifespan="on", ws="none", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=15,
        timeout_worker_healthcheck=60,  # a worker that loads on a busy machine is slow, and not dead
        timeout_graceful_shutdown=ceil(settings.time_limit + settings.body_seconds) + 1,
    )  # fmt: skip


class _WithoutStacks(logging.Filter):
    """A stack names folders, and may hold what a customer sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def _log() -> None:
    """To stderr, a line each."""
    log_visibly()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_WithoutStacks())
    for name in ("fedrec", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
