"""A merchant's node: Flower's SuperNode, and beside it the worker that answers.

The SuperNode connects to the server, authenticates, and hands each message to whoever
asks for it on this machine with the secret of this start. Only `clients.worker` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fedrec.errors import InputError
from fedrec.text import log_visibly

__all__ = ["Connection", "Executor", "main", "run_node"]

log = logging.getLogger("fedrec.merchant")

LOOPBACK = "127.0.0.1"
ASK_EVERY = 0.25
"""Seconds between two questions for a message; they stay on this machine."""
PATIENCE = 90.0
"""Seconds for which a node that is turned away tries again. A server takes a node that lost power
for connected until its heartbeats have been missing for a minute, and turns it away until then."""
RETRY_EVERY = 5.0
GRACE = 10.0
"""Seconds that the children have to end by themselves."""


@dataclass(frozen=True)
class Connection:
    """What a node needs to know; all of it is this merchant's own.

    Attributes:
        folder: the merchant folder, which the worker reads.
        state: where the node may write.
        server: host and port of the server.
        ca: the authority's certificate.
        key: the node's private key.
    """

    folder: Path
    state: Path
    server: str
    ca: Path
    key: Path


def run_node(connection: Connection) -> int:
    """Run until told to stop, or until the SuperNode gives up.

    Returns:
        0 when this process was told to stop, else a failure: the server would not have the node.

    Raises:
        InputError: another process runs this merchant's node, or the state folder cannot be written.
    """
    with _alone(connection.state), _secret_file(connection.state) as (secret, secret_file):
        port = _free_port()
        command = [
            sys.executable, "-m", "clients.supernode", str(os.getpid()),
            "--superlink", connection.server,
            "--root-certificates", str(connection.ca),
            "--auth-supernode-private-key", str(connection.key),
            "--isolation", "process",
            "--superexec-auth-secret-file", str(secret_file),
            "--host", LOOPBACK,
            "--port", str(port),
        ]  # fmt: skip
        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        executor = Executor(connection.folder, f"{LOOPBACK}:{port}", secret)
        give_up: float | None = None
        try:
            while True:
                started = time.monotonic()
                # A session of its own: an interruption at the terminal reaches it through this process.
                supernode = subprocess.Popen(command, start_new_session=True)
                try:
                    while supernode.poll() is None and not stopping.is_set():
                        stopping.wait(0.2)
                finally:
                    _end(supernode)
                if stopping.is_set():
                    return 0
                now = time.monotonic()
                if give_up is None or now - started > PATIENCE:
                    give_up = now + PATIENCE
                if now > give_up:
                    return supernode.returncode or 1
                log.warning("the server turned the node away or let it go; trying again for %.0f s", give_up - now)
                stopping.wait(RETRY_EVERY)
        finally:
            stopping.set()
            executor.stop()


class Executor:
    """Takes the node's messages one after the other and has a worker answer them."""

    def __init__(self, folder: Path, address: str, secret: bytes) -> None:
        self.folder, self.address = folder, address
        auth = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
        )
        self._client = RuntimeHttpClient.from_server_address(
            address, True, None, [RuntimeVersionHttpInterceptor(component_name="fedrec"), auth]
        )
        self._stopping = threading.Event()
        self._worker = self._new_worker()
        self._thread = threading.Thread(target=self._run, name="executor")
        self._thread.start()

    def stop(self) -> None:
        """End the worker, whatever it is doing: what it was paid for, a repeated request gets."""
        self._stopping.set()
        _end(self._worker)
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._stopping.wait(ASK_EVERY):
            if self._worker.poll() is not None:
                log.error("the worker ended with status %s; starting another", self._worker.returncode)
                self._worker = self._new_worker()
            if token := self._token():
                self._hand_over(token)
        _end(self._worker)

    def _new_worker(self) -> subprocess.Popen[str]:
        quiet = ["-W", "ignore::FutureWarning", "-W", "ignore::DeprecationWarning"]
        command = [sys.executable, *quiet, "-m", "clients.worker", str(self.folder), self.address, str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def _token(self) -> str:
        """The token of the next message's task, or nothing. Tasks of other kinds are never taken."""
        try:
            return self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])).token
        except httpx.HTTPError:
            return ""  # the SuperNode is not up yet, or going down

    def _hand_over(self, token: str) -> None:
        """Returns when the worker has answered or has ended; then the server learns only that it has."""
        to_worker, from_worker = cast(IO[str], self._worker.stdin), cast(IO[str], self._worker.stdout)
        with contextlib.suppress(OSError):
            to_worker.write(token + "\n")
            to_worker.flush()
        if not from_worker.readline():
            self._worker.wait()


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "node.lock").open("w")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(state)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("this merchant's node is up already", where=str(state)) from None
        yield


@contextlib.contextmanager
def _secret_file(state: Path) -> Iterator[tuple[bytes, Path]]:
    """The secret of this start: who takes messages from the SuperNode must have read it."""
    secret, path = secrets.token_bytes(32), state / "executor.secret"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    try:
        yield secret, path
    finally:
        path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(folder: str, state: str, server: str, ca: str, key: str) -> int:
    """The process's exit status: 0 told to stop, 1 turned away, 2 cannot start."""
    log_visibly()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        status = run_node(Connection(Path(folder), Path(state), server, Path(ca), Path(key)))
    except (InputError, OSError) as error:
        log.error("error: %s", error)
        return 2
    if status:
        log.error(
            "the node ended by itself, Flower's reason is above. The usual one is a key that the server does not know "
            "or has revoked: ask its operator whether nodes/ holds this merchant's public key"
        )
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
