"""The real SuperLink over real TLS: what each door lets through, who is registered, what is left on the disk and in the log."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import os
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesResponse, ListRunsRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, FLWR_IN_MEMORY_DB_NAME, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from sqlalchemy.exc import OperationalError

from fedrec.cli import main
from fedrec.cli.server import flower_environment
from fedrec.deploy.certificates import new_node_key
from fedrec.deploy.create import create, revoke
from fedrec.deploy.layout import Deployment, ServerFolder
from fedrec.errors import InputError
from server import superlink
from server.control import Node as KnownNode
from server.control import SuperLink
from server.deployed import _Grid
from server.superlink import Registrar, control_token, executor_secret

from .deployed import PROGRAM, ROOT, free_ports, until
from .test_strategy_deployed import identity, replied, statement_of, strategy_of  # noqa: F401

pytestmark = pytest.mark.integration
SOON = 10.0
"""Seconds within which a running server must have noticed a change in `nodes/`."""


class Server:
    """`fedrec server up` in a process of its own."""

    def __init__(self, deployment: Deployment, log: Path) -> None:
        self.deployment, self.folder, self.log_file = deployment, deployment.server, log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*PROGRAM, "server", "up", str(self.folder.path)], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
            )
        self.superlink = SuperLink(self.folder)
        try:
            until(self._answers, 60, "the server answers")
        except BaseException:
            self.process.kill()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            httpx.get(f"{self.local}/", timeout=1)
        except httpx.TransportError:
            return False
        return True

    @property
    def log(self) -> str:
        """All that it wrote."""
        return self.log_file.read_text()

    @property
    def local(self) -> str:
        """The address of the loopback door."""
        return f"http://127.0.0.1:{self.folder.settings.control_port}"

    @property
    def ca(self) -> ssl.SSLContext:
        """What a merchant trusts."""
        return ssl.create_default_context(cafile=str(self.folder.ca))

    def nodes(self) -> dict[str, KnownNode]:
        """The registered nodes by name."""
        return {node.merchant: node for node in self.superlink.nodes()}

    def key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """A merchant's private key."""
        key = load_ssh_private_key(self.deployment.merchant(name).key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def client(self, auth: Any) -> FleetHttpClient:
        """Flower's client of the public door, with whatever says who it is."""
        interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), *([auth] if auth else [])]
        ca = self.folder.ca.read_bytes()
        return FleetHttpClient.from_server_address(self.folder.settings.address, False, ca, interceptors)

    def merchant(self, name: str) -> FleetHttpClient:
        """The same as a SuperNode with a merchant's key."""
        return self.client(NodeAuthHttpInterceptor(self.key(name), self.key(name).public_key()))

    def connected(self) -> ssl.SSLSocket:
        """A TLS connection to the public door."""
        plain = socket.create_connection((self.folder.settings.listen, self.folder.settings.port), 10)
        return self.ca.wrap_socket(plain, server_hostname="localhost")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop; the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()


@pytest.fixture(scope="module", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process talks to the loopback as the program does."""
    before, mask = dict(os.environ), os.umask(0o022)
    flower_environment(tmp_path_factory.mktemp("flower"))
    os.umask(0o022)
    yield
    os.umask(mask)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, quiet_environment: None) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("superlink")
    running = Server(create(folder / "out", f"localhost:{free_ports()}", ["anna", "bert"]), folder / "log")
    yield running
    running.stop()


def status_of(call: Callable[[], Any]) -> int:
    """The HTTP status with which a call ends."""
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def activation(key: ec.EllipticCurvePrivateKey) -> ActivateNodeRequest:
    """A node's first request."""
    public = public_key_to_bytes(key.public_key())
    return ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)


@contextlib.contextmanager
def online(server: Server, name: str) -> Iterator[tuple[FleetHttpClient, int]]:
    """A merchant's node, connected; it signs off, since Flower lets a node in that is not there already and no other."""
    with server.merchant(name) as client:
        node = client.ActivateNode(activation(server.key(name))).node_id
        try:
            yield client, node
        finally:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node))


class Signed:
    """Flower's `NodeAuthHttpInterceptor`, whose parts can be chosen one by one."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        shown: ec.EllipticCurvePrivateKey | None = None,
        age: float = 0.0,
        claimed: float | None = None,
    ) -> None:
        self.key, self.shown, self.age, self.claimed = key, shown or key, age, age if claimed is None else claimed

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign a timestamp of `age` seconds with `key`, and show that of `claimed` with the public key of `shown`."""
        now = datetime.datetime.now(datetime.UTC)
        signed, shown = ((now - datetime.timedelta(seconds=age)).isoformat() for age in (self.age, self.claimed))
        public, signature = public_key_to_bytes(self.shown.public_key()), sign_message(self.key, signed.encode())
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = base64.b64encode(public).decode()
        context.request.headers[TIMESTAMP_HEADER] = shown
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = base64.b64encode(signature).decode()
        return call_next(context)


# The public door: paths


TARGETS = [
    *(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/control/")),
    *(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/runtime/")),
    *("/", "/docs", "/openapi.json", "/redoc", "/health", "/v1/fleet", "/v1/", "/v1/control", "/v1/fleet/"),
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/./../control/list-nodes",
    "/v1/fleet/x/../../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol%2flist-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/..;/control/list-nodes",
    "/v1/fleet/..\\control\\list-nodes",
    "/v1/fleet/\t../control/list-nodes",
    "/v1/fleet/%0a/../control/list-nodes",
    "/v1/fleet/%00../../control/list-nodes",
    "//v1/control/list-nodes",
    "/v1//control/list-nodes",
    "/v1%2fcontrol%2flist-nodes",
    "/v1/fleet/%2f..%2fcontrol/list-nodes",
    "/V1/CONTROL/list-nodes",
    "/v1/control/list-nodes/",
    "/v1/control/list-nodes?/v1/fleet/",
    "/v1/control/list-nodes#/v1/fleet/",
    "/v1/control/list-nodes;/v1/fleet/",
    "http://localhost/v1/control/list-nodes",
    "https://localhost/v1/fleet/../control/list-nodes",
    "/v1/fleet/http://localhost/v1/control/list-nodes",
    "localhost/v1/control/list-nodes",
    "*",
]  # fmt: skip


def asked(server: Server, target: str, body: bytes = b"", method: str = "POST", **headers: str) -> tuple[int, bytes]:
    """Send a request line as it is, with the token that the loopback door asks for; status and answer."""
    shown = {
        "Host": "localhost", "Content-Type": PROTOBUF_MEDIA_TYPE, "Content-Length": str(len(body)), "Connection": "close",
        "Authorization": f"Bearer {control_token(server.folder)}", **headers,
    }  # fmt: skip
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in shown.items())]
    with server.connected() as door:
        door.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        answer = b""
        while chunk := door.recv(1 << 16):
            answer += chunk
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


def test_no_path_leads_from_outside_to_control_or_runtime(server: Server) -> None:
    """Not even with the token and a signature: those are for the loopback door."""
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    signed = create_superexec_auth_metadata(
        auth_secret=derive_auth_secret(executor_secret(server.folder)), method="/flwr.proto.Runtime/AcquireTask", request=request
    )
    run = server.superlink.start_run()
    for target in TARGETS:
        status, answer = asked(server, target, request.SerializeToString() if "acquire" in target else b"", **signed)
        assert status in (400, 404, 405), (target, status)
        assert b"anna" not in answer and b"openapi" not in answer and b"paths" not in answer, target
        assert len(answer) < 200, target
    # The same requests are good ones at the other door.
    assert server.superlink.acquire(run)
    assert set(server.nodes()) >= {"anna", "bert"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "CONNECT", "TRACE"])
def test_no_method_leads_from_outside_to_anything(server: Server, method: str) -> None:
    for target in (
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/list-nodes",
        "/v1/fleet/pull-messages",
        "localhost:443",
    ):
        status, answer = asked(server, target, method=method)
        assert status >= 400 and len(answer) < 200, target


def test_no_websocket_leads_inside(server: Server) -> None:
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="
    )
    for target in ("/v1/fleet/pull-messages", "/v1/control/list-nodes"):
        with server.connected() as door:
            door.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n\r\n".encode())
            assert b" 101 " not in door.recv(1 << 16).split(b"\r\n")[0]


def test_what_is_turned_away_leaves_a_line(server: Server) -> None:
    asked(server, "/v1/control/stop-run-please")
    until(lambda: "refused /v1/control/stop-run-please from 127.0.0.1: status 404" in server.log, SOON)


def test_a_path_cannot_write_lines_of_its_own_into_the_log(server: Server) -> None:
    asked(server, "/v1/%0a2026-01-01%2000:00:00,000%20registered%20merchant%20mallory%20(node%201)%1b%5b2J")
    until(lambda: "mallory" in server.log, SOON)
    assert r"\n2026-01-01" in server.log and "\x1b[2J" not in server.log
    assert not any(
        line.endswith("registered merchant mallory (node 1)") and "refused" not in line for line in server.log.splitlines()
    )


def test_only_the_two_doors_are_open(server: Server) -> None:
    """Flower's servers of older protocols, which ask nobody who is there, are not among them."""
    settings = server.folder.settings
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    listening = {tuple(one.laddr) for process in family for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    assert listening == {(settings.listen, settings.port), ("127.0.0.1", settings.control_port)}


# The public door: who is there


FLEET = [path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")]


@pytest.mark.parametrize("path", FLEET)
def test_every_call_of_nodes_asks_who_is_there(server: Server, path: str) -> None:
    request = PROTOBUF_REQUEST_TYPES["POST", path]()
    if "node" in request.DESCRIPTOR.fields_by_name:
        request.node.CopyFrom(Node(node_id=server.nodes()["anna"].node))  # type: ignore[attr-defined]
    elif "node_id" in request.DESCRIPTOR.fields_by_name:
        request.node_id = server.nodes()["anna"].node  # type: ignore[attr-defined]
    body = request.SerializeToString()
    assert asked(server, path, body)[0] == 401
    # A host that makes another path of the whole address must not let it through, nor a path that only matches by chance.
    for host in ("x/", "x/y?", "x#", "user@x", "x/v1/control/list-nodes?", "", "[::1", "x\\", "x:y"):
        assert asked(server, path, body, Host=host)[0] in (400, 401), host
    for variant in (f"{path}%0a", f"{path}/", f"{path}%3f", f"{path}%23", f"/{path}", path.replace("fleet", "fleet/.")):
        assert asked(server, variant, body)[0] >= 300, variant


def test_an_outsider_cannot_register_its_key(server: Server) -> None:
    before, key = set(server.nodes()), ec.generate_private_key(ec.SECP384R1())
    request = RegisterNodeFleetRequest(public_key=public_key_to_bytes(key.public_key()))
    with server.client(Signed(key)) as outsider:
        assert status_of(lambda: outsider.RegisterNode(request)) == 412
        assert status_of(lambda: outsider.ActivateNode(activation(key))) == 412
    assert set(server.nodes()) == before
    until(lambda: "refused /v1/fleet/register-node from 127.0.0.1: status 412" in server.log, SOON)


def test_a_registered_merchant_can_neither_register_another_key_nor_unregister(server: Server) -> None:
    before, other = server.nodes(), ec.generate_private_key(ec.SECP384R1())
    with server.merchant("anna") as anna:
        smuggled = RegisterNodeFleetRequest(public_key=public_key_to_bytes(other.public_key()))
        assert status_of(lambda: anna.RegisterNode(smuggled)) == 401
        for name in ("anna", "bert"):
            unregister = UnregisterNodeFleetRequest(node_id=before[name].node)
            assert status_of(lambda: anna.UnregisterNode(unregister)) == (412 if name == "anna" else 401)
    assert set(server.nodes()) == set(before)


def test_a_registered_key_is_let_in_and_seen(server: Server) -> None:
    with online(server, "anna") as (anna, node):
        assert node == server.nodes()["anna"].node and server.nodes()["anna"].online
        beat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        assert anna.SendNodeHeartbeat(beat).success
    assert not server.nodes()["anna"].online


@pytest.mark.parametrize(
    "age",
    [TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE + 1.0, 86400.0, -SYSTEM_TIME_TOLERANCE - 2.0],
    ids=["stale", "old", "early"],
)
def test_a_signature_holds_for_minutes_only(server: Server, age: float) -> None:
    key = server.key("anna")
    with server.client(Signed(key, age=age)) as replayed, server.client(Signed(key, age=age, claimed=0.0)) as redated:
        assert status_of(lambda: replayed.ActivateNode(activation(key))) == 401
        assert status_of(lambda: redated.ActivateNode(activation(key))) == 401
    with server.client(Signed(key, age=TIMESTAMP_TOLERANCE / 2)) as fresh:
        node = fresh.ActivateNode(activation(key)).node_id
        fresh.DeactivateNode(DeactivateNodeRequest(node_id=node))


def test_a_public_key_without_its_private_key_is_nothing(server: Server) -> None:
    anna, mallory = server.key("anna"), ec.generate_private_key(ec.SECP384R1())
    with server.client(Signed(mallory, shown=anna)) as shown:
        assert status_of(lambda: shown.ActivateNode(activation(anna))) == 401
    with server.client(Signed(mallory)) as named:
        assert status_of(lambda: named.ActivateNode(activation(anna))) == 401


def test_a_merchant_cannot_speak_for_another(server: Server) -> None:
    with online(server, "bert") as (_, bert), server.merchant("anna") as anna:
        node = Node(node_id=bert)
        calls: list[Callable[[], Any]] = [
            lambda: anna.PullMessages(PullMessagesRequest(node=node)),
            lambda: anna.PushMessages(PushMessagesRequest(node=node)),
            lambda: anna.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)),
            lambda: anna.DeactivateNode(DeactivateNodeRequest(node_id=bert)),
            lambda: anna.ActivateNode(activation(server.key("bert"))),
        ]
        assert [status_of(call) for call in calls] == [401] * len(calls)
        assert server.nodes()["bert"].online


# The public door: TLS


def test_plain_http_gets_nothing_and_leaves_a_line(server: Server) -> None:
    before = server.log.count("no TLS handshake (HTTP_REQUEST)")
    with socket.create_connection((server.folder.settings.listen, server.folder.settings.port), 10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not plain.recv(1 << 16).startswith(b"HTTP")
    until(lambda: server.log.count("no TLS handshake (HTTP_REQUEST)") == before + 1, SOON)


def test_a_client_that_does_not_trust_the_authority_leaves_a_line(server: Server) -> None:
    before = server.log.count("refused a connection: no TLS handshake")
    settings = server.folder.settings
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection((settings.listen, settings.port), 10) as plain,
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost"),
    ):
        pass
    until(lambda: server.log.count("refused a connection: no TLS handshake") == before + 1, SOON)
    assert "UNKNOWN_CA" in server.log


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(server: Server, version: ssl.TLSVersion) -> None:
    context = server.ca
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    settings = server.folder.settings
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection((settings.listen, settings.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


# The loopback door


def local(server: Server, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    """A request at the loopback door."""
    return httpx.post(f"{server.local}{path}", content=body, headers={"content-type": PROTOBUF_MEDIA_TYPE, **headers})


def test_control_asks_for_the_token(server: Server) -> None:
    token, path = control_token(server.folder), "/v1/control/list-nodes"
    wrong = [
        f"Bearer {'0' * len(token)}",
        f"Bearer {token[:-1]}",
        f"Bearer {token}0",
        f"bearer {token}",
        token,
        f"Basic {token}",
        "Bearer",
    ]
    assert local(server, path).status_code == 403
    assert [local(server, path, authorization=shown).status_code for shown in wrong] == [403] * len(wrong)
    answer = local(server, path, authorization=f"Bearer {token}")
    assert answer.status_code == 200
    assert {"anna", "bert"} <= {node.name for node in ListNodesResponse.FromString(answer.content).nodes_info}


def test_a_token_of_another_deployment_is_refused(server: Server, tmp_path: Path) -> None:
    other = create(tmp_path / "other", "localhost:8443", ["anna"]).server
    assert control_token(other) != control_token(server.folder)
    assert local(server, "/v1/control/list-nodes", authorization=f"Bearer {control_token(other)}").status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/health", "/v1/control", "//v1/control/list-nodes"),
        *("/v1/fleet/pull-messages", "/v1/fleet/register-node", "/v1/fleet/../control/list-nodes"),
        *("/v1/runtime/../control/list-nodes", "/v1/runtime/%2e%2e/control/list-nodes", "/v1/runtime/..%2fcontrol/list-nodes"),
    ],
)
def test_nothing_else_is_at_the_loopback_door(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.folder.settings.control_port), 10) as door:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\nContent-Length: 0\r\n\r\n"
        door.sendall(head.encode())
        assert door.recv(1 << 16).split()[1] in (b"403", b"404")


def test_a_task_is_handed_out_for_a_signature_only(server: Server) -> None:
    run, path = server.superlink.start_run(), "/v1/runtime/acquire-task"
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    body = request.SerializeToString()

    def signature(secret: bytes, method: str = "/flwr.proto.Runtime/AcquireTask", of: Any = request) -> dict[str, str]:
        return create_superexec_auth_metadata(auth_secret=derive_auth_secret(secret), method=method, request=of)

    refused = [
        {},
        {"authorization": f"Bearer {control_token(server.folder)}"},
        signature(os.urandom(32)),
        signature(bytes.fromhex(control_token(server.folder))),
        signature(executor_secret(server.folder), method="/flwr.proto.Runtime/PullTaskInput"),
        signature(executor_secret(server.folder), of=AcquireTaskRequest()),
    ]
    assert [local(server, path, body, **headers).status_code for headers in refused] == [401] * len(refused)
    good = signature(executor_secret(server.folder))
    assert local(server, path, body, **good).status_code == 200
    assert local(server, path, body, **good).status_code == 401, "a signature is good for one request"
    server.superlink.start_run()
    assert run


def test_a_run_is_taken_once(server: Server) -> None:
    run = server.superlink.start_run()
    assert server.superlink.acquire(run)
    with pytest.raises(InputError, match=f"run {run}"):
        server.superlink.acquire(run)


def test_a_new_run_ends_the_one_that_an_earlier_process_left_open(server: Server) -> None:
    """Taken or not: the task of a run that has ended is not handed out in the place of the new one's."""
    left = server.superlink.start_run()
    taken = server.superlink.start_run()
    token = server.superlink.acquire(taken)
    new = server.superlink.start_run()
    assert server.superlink.acquire(new)
    runs = server.superlink._control.ListRuns(ListRunsRequest()).run_dict
    assert [runs[one].status.status for one in (left, taken, new)] == ["finished", "finished", "starting"]
    old: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
        RuntimeTokenHttpInterceptor(token),
    ]
    with RuntimeHttpClient.from_server_address(server.superlink.address, True, None, old) as client:
        assert status_of(lambda: client.PullTaskInput(PullTaskInputRequest())) == 401


# Who is registered


def put(server: Server, name: str, line: bytes) -> Path:
    """A public key comes as an operator would bring it."""
    path = server.folder.public_key(name)
    path.write_bytes(line)
    return path


def test_a_key_in_the_folder_is_registered_and_one_that_goes_is_not(server: Server) -> None:
    pair, before = new_node_key("cleo"), server.nodes()
    path = put(server, "cleo", pair.public)
    until(lambda: "cleo" in server.nodes(), SOON, "registered")
    key = load_ssh_private_key(pair.private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with server.client(NodeAuthHttpInterceptor(key, key.public_key())) as cleo:
        node = Node(node_id=cleo.ActivateNode(activation(key)).node_id)
        assert node.node_id == server.nodes()["cleo"].node
        path.unlink()
        until(lambda: "cleo" not in server.nodes(), SOON, "unregistered")
        assert status_of(lambda: cleo.PullMessages(PullMessagesRequest(node=node))) == 401
        assert status_of(lambda: cleo.ActivateNode(activation(key))) == 412
    # Those who were there before are the same nodes.
    assert {name: one.node for name, one in server.nodes().items()} == {name: one.node for name, one in before.items()}
    put(server, "cleo", pair.public)
    said = "merchant cleo cannot be registered: its key was revoked before, it needs a new one"
    until(lambda: said in server.log, SOON, "the revoked key is noticed")
    time.sleep(2.5)  # two more looks
    assert server.log.count(said) == 1 and "cleo" not in server.nodes()
    put(server, "cleo", new_node_key("cleo").public)
    until(lambda: "cleo" in server.nodes(), SOON, "a new key is taken")
    assert revoke(server.folder.path, "cleo").is_file()
    until(lambda: "cleo" not in server.nodes(), SOON, "revoked")


def test_a_changed_key_is_another_node(server: Server) -> None:
    put(server, "dora", new_node_key("dora").public)
    until(lambda: "dora" in server.nodes(), SOON)
    first = server.nodes()["dora"].node
    put(server, "dora", new_node_key("dora").public)
    until(lambda: server.nodes().get("dora", KnownNode("dora", first, False, "")).node != first, SOON)
    server.folder.public_key("dora").unlink()
    until(lambda: "dora" not in server.nodes(), SOON)


def test_a_file_that_is_no_key_changes_nothing_and_is_named_once(server: Server) -> None:
    before = {name: one.node for name, one in server.nodes().items()}
    bad = {
        "x-garbage": b"garbage\n",
        "x-private": server.deployment.merchant("anna").key.read_bytes(),
        "x-twin": server.folder.public_key("anna").read_bytes(),
        "-x-name": new_node_key("x").public,
    }
    said = []
    for name, content in bad.items():
        path = put(server, name, content)
        said.append(f"not admitted: {path}" if name != "-x-name" else "'-x-name' is no merchant's name")
        until(lambda: said[-1] in server.log, SOON, name)
        assert {name: one.node for name, one in server.nodes().items()} == before
        path.unlink()
    path = put(server, "x-garbage", b"garbage\n")
    time.sleep(2.2)  # two more looks
    path.unlink()
    assert [server.log.count(one) for one in said] == [1] * len(said)
    put(server, "x-good", new_node_key("x-good").public)
    until(lambda: "x-good" in server.nodes(), SOON, "the registrar goes on")
    server.folder.public_key("x-good").unlink()
    until(lambda: server.nodes().keys() == before.keys(), SOON)
    key = server.deployment.merchant("anna").key.read_text().splitlines()[2]
    assert key not in server.log


def test_a_revocation_holds_though_another_file_is_garbage(server: Server) -> None:
    put(server, "emma", new_node_key("emma").public)
    until(lambda: "emma" in server.nodes(), SOON)
    bad = put(server, "zoe", b"garbage")
    try:
        revoke(server.folder.path, "emma")
        until(lambda: "emma" not in server.nodes(), 4)
    finally:
        bad.unlink()
        until(lambda: "emma" not in server.nodes(), SOON)


@pytest.fixture
def registrar(tmp_path: Path) -> Registrar:
    """The registrar over Flower's state in memory, after its first look."""
    _, factory = get_objectstore_linkstate_factories(FLWR_IN_MEMORY_DB_NAME, get_federation_manager(is_simulation=False))
    made = Registrar(create(tmp_path / "out", "localhost:8443", ["anna", "bert"]).server, factory.state())
    made.look()
    return made


def registered(registrar: Registrar) -> set[str]:
    """The names that are registered."""
    return {node.name for node in registrar.state.get_node_info(owner_aids=[NOOP_FLWR_AID]) if not node.unregistered_at}


def test_who_was_revoked_while_the_server_was_down_is_unregistered_at_the_first_look(registrar: Registrar) -> None:
    registrar.folder.public_key("anna").unlink()
    Registrar(registrar.folder, registrar.state).look()
    assert registered(registrar) == {"bert"}


def test_a_folder_that_is_away_for_a_moment_costs_nobody_its_key(registrar: Registrar) -> None:
    away = registrar.folder.nodes.rename(registrar.folder.path / "away")
    registrar.look()
    away.rename(registrar.folder.nodes)
    registrar.look()
    assert registered(registrar) == {"anna", "bert"}


def test_who_is_connected_goes_by_the_name_of_its_key(registrar: Registrar) -> None:
    assert registrar.connected() == set()
    [bert] = [node for node in registrar.state.get_node_info(owner_aids=[NOOP_FLWR_AID]) if node.name == "bert"]
    registrar.state.activate_node(bert.node_id, HEARTBEAT_DEFAULT_INTERVAL)
    assert registrar.connected() == {"bert"}
    registrar.folder.public_key("bert").unlink()
    registrar.look()
    assert registrar.connected() == set(), "a key that was revoked gets nothing"


def test_a_look_that_fails_is_not_the_last(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "LOOK_EVERY", 0.01)

    class Busy:
        """The state, whose database is locked the first time."""

        def __init__(self, state: Any) -> None:
            self.state, self.asked = state, 0

        def __getattr__(self, name: str) -> Any:
            if name == "get_node_info":
                self.asked += 1
                if self.asked == 1:
                    raise OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))
            return getattr(self.state, name)

    async def watched() -> None:
        with contextlib.suppress(TimeoutError, OperationalError):
            await asyncio.wait_for(registrar.watch(), 1.0)

    honest, registrar.state = registrar.state, Busy(registrar.state)  # type: ignore[assignment]
    registrar.folder.public_key("bert").unlink()
    asyncio.run(watched())
    registrar.state = honest
    assert registered(registrar) == {"anna"}


# What a merchant's answer may pretend


@pytest.mark.usefixtures("identity")
def test_an_answer_with_a_forged_origin_takes_nobodys_place(server: Server) -> None:
    """Flower checks the envelope against the sender's key; what the server then opens is the sender's own writing."""
    run = server.superlink.start_run()
    grid = _Grid(server.superlink.address, insecure=True, token=server.superlink.acquire(run))
    task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, run, task.context.node_id
    grid.set_run(run_from_proto(task.run))
    strategy = strategy_of(min_merchants=2, wait_timeout=20.0)
    with online(server, "anna") as anna, online(server, "bert") as bert:
        ids = list(grid.push_messages(list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))))
        answered(*anna, run, forged=False)
        answered(*bert, run, forged=True)
        replies = list(grid.pull_messages(ids))
    grid.close()
    assert len(replies) == 2
    strategy.aggregate_train(1, replies)
    assert strategy.record.took_part == ["anna"] and list(strategy.record.refused) == ["bert"]
    assert strategy.record.bytes_down["anna"] > 0, "what counts is the answer to what was sent to anna"


def answered(client: FleetHttpClient, node: int, run: int, forged: bool) -> None:
    """Take the node's message and answer it as anna, as a SuperNode does, or with a node inside that does not exist."""
    pulled = client.PullMessages(PullMessagesRequest(node=Node(node_id=node))).messages_list[0]
    metadata = message_from_proto(pulled).metadata
    request = make_message(metadata=metadata, content=RecordDict({"task": ConfigRecord({"round": 1})}))
    inside = replied(request, statement_of(request, "anna"), value=0.02 if forged else 0.01)
    envelope = message_to_proto(remove_content_from_message(inside))
    if forged:
        inside.metadata.__dict__.update(_src_node_id=1, _reply_to_message_id="0" * 64)
        inside = make_message(metadata=inside.metadata, content=inside.content)
    envelope.metadata.message_id = inside.object_id
    trees = [get_object_tree(inside)]
    answer = client.PushMessages(
        PushMessagesRequest(node=Node(node_id=node), messages_list=[envelope], message_object_trees=trees)
    )
    push = make_push_object_fn_protobuf(client.PushObject, Node(node_id=node), run, answer.session_id)
    push_objects(get_all_nested_objects(inside), push, object_ids_to_push=set(answer.objects_to_push))


# What is left on the disk, and how it ends


def test_neither_token_nor_secret_is_in_a_file_or_in_the_log(server: Server) -> None:
    run = server.superlink.start_run()
    server.superlink.acquire(run)
    asked(server, "/v1/control/list-nodes")
    raw = [
        bytes.fromhex(control_token(server.folder)),
        executor_secret(server.folder),
        derive_auth_secret(executor_secret(server.folder)),
    ]
    secrets = [form for one in raw for form in (one, one.hex().encode(), base64.b64encode(one).rstrip(b"="))]
    files = [path for path in server.folder.path.rglob("*") if path.is_file()] + [server.log_file]
    assert server.folder.database in files
    for path in files:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    key = server.folder.key.read_text().splitlines()[1].encode()
    assert [path for path in files if key in path.read_bytes()] == [server.folder.key]


def test_what_a_server_writes_is_its_owners_alone(server: Server) -> None:
    state = server.folder.state
    found = {path.relative_to(state).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in [state, *state.rglob("*")]}
    assert found.keys() >= {".", "superlink.db"}
    assert all(mode == (0o700 if (state / name).is_dir() else 0o600) for name, mode in found.items()), found


def up(folder: ServerFolder) -> subprocess.CompletedProcess[str]:
    """`fedrec server up` that is expected to end by itself."""
    wide = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [*PROGRAM, "server", "up", str(folder.path)], capture_output=True, text=True, timeout=60, env=wide, cwd=ROOT
    )


def test_a_second_server_on_the_same_ports_ends_with_one_line(server: Server) -> None:
    done = up(server.folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"port {server.folder.settings.port} on 127.0.0.1 cannot be used" in line and "fedrec server status" in line
    assert "anna" in server.nodes(), "and does the first no harm"


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda folder: folder.key.chmod(0o644), "has mode 0644"),
        (lambda folder: folder.key.chmod(0o640), "has mode 0640"),
        (lambda folder: folder.key.unlink(), "no such file"),
        (lambda folder: folder.certificate.unlink(), "server.crt"),
        (lambda folder: folder.ca.unlink(), "no such file"),
    ],
    ids=["0644", "0640", "no key", "no certificate", "no authority"],
)
def test_a_server_without_its_keys_does_not_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    breaking: Callable[[ServerFolder], Any],
    said: str,
) -> None:
    folder = create(tmp_path / "out", f"localhost:{free_ports()}", ["anna"]).server
    breaking(folder)
    monkeypatch.setattr(sys, "argv", ["fedrec", "server", "up", str(folder.path)])
    with pytest.raises(SystemExit) as ended:
        main.run()
    os.umask(0o022)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and line.startswith("error ") and said in line
    assert not folder.database.exists()


@pytest.mark.slow
def test_a_server_ends_when_it_is_told_to_whoever_is_connected(tmp_path: Path) -> None:
    server = Server(create(tmp_path / "out", f"localhost:{free_ports()}", ["anna"]), tmp_path / "log")
    try:
        with server.connected() as half, server.connected() as idle, server.merchant("anna") as anna:
            half.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
            idle.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            assert idle.recv(1 << 16)
            anna.ActivateNode(activation(server.key("anna")))
            assert server.stop() == 0, "within 15 seconds"
    finally:
        server.process.kill()
    assert "Traceback" not in server.log
