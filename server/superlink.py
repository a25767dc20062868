"""Flower's SuperLink behind two doors.

The SuperLink serves three APIs on one port, and only the one for nodes asks who is there:
whoever reaches the control API may register nodes and start code. So the public door, with
TLS, lets through the calls of nodes and nothing else. The control and runtime APIs are
behind a door on the loopback interface, the first with a token, the second with Flower's
own signed requests. Token and signing secret are derived from the server's private key, so
there is no other secret to keep.

Which nodes may come is what lies in `nodes/`: a key that appears there is registered, one
that disappears is unregistered, while the SuperLink runs. Whoever comes back without the
adapter that went home last gets it (`server.pending`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrec.deploy.layout import ServerFolder, check_private
from fedrec.errors import InputError
from server.pending import Redelivery

__all__ = ["LOOPBACK", "Registrar", "control_token", "executor_secret", "local_door", "public_door", "serve"]

log = logging.getLogger("fedrec.server")

LOOPBACK = "127.0.0.1"
FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
GRACE = 3
"""Seconds that open calls have to end when the server is told to stop."""
LOOK_EVERY = 1.0
"""Seconds between two looks at `nodes/`, and at who is connected without the adapter."""


def control_token(folder: ServerFolder) -> str:
    """What a caller of the control API must show; whoever can read the server's key can make it."""
    return _derived(folder, b"fedrec control api").hex()


def executor_secret(folder: ServerFolder) -> bytes:
    """What a process that runs the ServerApp signs its first request with."""
    return _derived(folder, b"fedrec server app executor")


def _derived(folder: ServerFolder, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=purpose).derive(folder.key.read_bytes())


def public_door(app: ASGIApp) -> ASGIApp:
    """Only what a merchant's node may call; whatever is turned away is logged."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "http":

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start" and message["status"] >= 400:
                    host, _ = scope["client"] or ("unknown", 0)
                    log.warning("refused %s from %s: status %s", scope["path"], host, message["status"])
                await send(message)

            # Flower takes the path for its own checks from the Host header where that has one.
            odd = any(name == b"host" and b"/" in value for name, value in scope["headers"])
            inside = app if scope["path"].startswith(FLEET) else PlainTextResponse("not found", 404)
            await (PlainTextResponse("bad request", 400) if odd else inside)(scope, receive, watched)

    return door


def local_door(app: ASGIApp, token: str) -> ASGIApp:
    """The control API for those who hold the token, the runtime API (which checks for itself), nothing else."""
    expected = f"Bearer {token}".encode()

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        shown = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"].startswith(RUNTIME) or (scope["path"].startswith(CONTROL) and hmac.compare_digest(shown, expected)):
            await app(scope, receive, send)
        else:
            await PlainTextResponse("not allowed", 403)(scope, receive, send)

    return door


class Registrar:
    """Keeps the SuperLink's registered keys equal to the files in `nodes/`."""

    def __init__(self, folder: ServerFolder, state: LinkState) -> None:
        self.folder, self.state = folder, state
        self._said: set[str] = set()

    def look(self) -> None:
        """Register what is new, unregister what is gone; a file that is no key stands in nobody's way but its own."""
        try:
            keys, faults = self.folder.read_keys()
        except InputError as error:  # Flower never takes a key again that was unregistered, so nobody is
            self._say(f"the registered merchants stay as they are: {error}")
            return
        for fault in faults.values():
            self._say(f"not admitted: {fault}")
        wanted = {name: public_key_to_bytes(load_ssh_public_key(line)) for name, line in keys.items()}  # type: ignore[arg-type]
        known = {}
        for node in self.state.get_node_info(owner_aids=[NOOP_FLWR_AID]):
            if node.unregistered_at:
                continue
            if node.name in faults or wanted.get(node.name) == bytes(node.public_key):
                known[node.name] = node
                continue
            self.state.delete_node(NOOP_FLWR_AID, node.node_id)
            log.info("unregistered merchant %s (node %s)", node.name, node.node_id)
        for name in wanted.keys() - known.keys():
            try:
                number = self.state.create_node(
                    NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, wanted[name], HEARTBEAT_DEFAULT_INTERVAL, name=name
                )
                log.info("registered merchant %s (node %s)", name, number)
            except ValueError:
                self._say(f"merchant {name} cannot be registered: its key was revoked before, it needs a new one")

    def _say(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            log.error("%s", problem)

    async def watch(self) -> None:
        """Look again and again."""
        await _watch(self.look, "looking at the registered merchants")

    def connected(self) -> set[str]:
        """The names of the merchants that are there."""
        return {node.name for node in self.state.get_node_info(owner_aids=[NOOP_FLWR_AID], statuses=[NodeStatus.ONLINE])}


async def _watch(look: Callable[[], None], what: str) -> None:
    said = set()
    while True:
        try:
            await asyncio.to_thread(look)
        except Exception as error:  # a locked database, say: the next look may do better
            problem = f"{what} failed ({type(error).__name__}: {error})"
            if problem not in said:
                said.add(problem)
                log.error("%s", problem)
        await asyncio.sleep(LOOK_EVERY)


def serve(folder: ServerFolder) -> None:
    """Run the SuperLink until it is told to stop.

    Raises:
        InputError: a key or certificate is missing or readable by others, or a port is taken.
    """
    settings = folder.settings
    for path in (folder.certificate, folder.ca):
        if not path.is_file():
            raise InputError("no such file", where=str(path), hint="make it with `fedrec deploy rotate`")
    check_private(folder.key)
    at_public, at_local = _bound(settings.listen, settings.port), _bound(LOOPBACK, settings.control_port)
    folder.state.mkdir(parents=True, exist_ok=True)
    config = SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:{settings.control_port}",
        health_server_address=None,
        host=settings.listen,
        port=settings.port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=executor_secret(folder),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(folder.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    _log_to_stderr()
    registrar = Registrar(folder, app.state.linkstate_factory.state())
    registrar.look()
    public = uvicorn.Config(
        public_door(app),
        ssl_certfile=folder.certificate,
        ssl_keyfile=folder.key,
        ssl_context_factory=_logged,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE,
    )
    local = uvicorn.Config(
        local_door(app, control_token(folder)),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE,
    )
    asyncio.run(_run({_Server(public): at_public, _Server(local): at_local}, registrar, Redelivery(folder, registrar.connected)))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """One handler stops both doors, so neither server sets its own."""
        yield


def _log_to_stderr() -> None:
    # After `create_app`, which sets logging up for its database's migrations and nothing else.
    own, handler = logging.getLogger("fedrec"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.INFO)
    log.disabled = False
    logging.getLogger("flwr").propagate = False  # it writes by itself


class _LoggedHandshake(ssl.SSLObject):
    def do_handshake(self) -> None:
        """A client that does not speak TLS, or does not trust the certificate, leaves a line."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            log.warning("refused a connection: no TLS handshake (%s)", error.reason)
            raise


def _logged(_config: uvicorn.Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.sslobject_class = _LoggedHandshake
    return context


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise InputError(
            f"port {port} on {host} cannot be used ({error.strerror})",
            where="server.toml",
            hint="is the server already up? `fedrec server status` says",
        ) from None
    return door


async def _run(doors: dict[_Server, socket.socket], registrar: Registrar, redelivery: Redelivery) -> None:
    def stop() -> None:
        for door in doors:
            door.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    deliveries = _watch(redelivery.look, "looking for merchants that lack the adapter")
    watching = [asyncio.create_task(registrar.watch()), asyncio.create_task(deliveries)]
    try:
        await asyncio.gather(*(door.serve(sockets=[at]) for door, at in doors.items()))
    finally:
        for task in watching:
            task.cancel()
        redelivery.stop()
