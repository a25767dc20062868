"""A merchant's node with Flower's real SuperNode: whose code answers, what the server gets to read, and how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedrec import wire
from fedrec.data import Columns
from fedrec.deploy.create import create, revoke
from fedrec.deploy.layout import MerchantFolder
from fedrec.wire import HistogramTask, Statement
from server.control import BUNDLE
from server.deployed import _Grid

from .conftest import make_catalogue, make_events
from .deployed import ROOT, free_ports, until
from .test_strategy_deployed import identity  # noqa: F401
from .test_superlink import Server, quiet_environment, status_of  # noqa: F401

pytestmark = pytest.mark.integration
USER = "customer-{}-secret"
PLAIN = [sys.executable, "-m", "clients.node"]
HASTY = [
    sys.executable,
    "-c",
    "import itertools, sys, types, clients.node as node\n"
    "node.time = types.SimpleNamespace(monotonic=itertools.count(0, 50).__next__)\n"
    "node.RETRY_EVERY = 0.2\n"
    "sys.exit(node.main(*sys.argv[1:]))",
]
"""The same on a clock that goes 50 seconds from one look to the next: a node that is turned away soon gives up."""
MARKER = "import pathlib; pathlib.Path({path!r}).touch()\nfrom flwr.{side} import {app}\napp = {app}()\n"


class Node:
    """A merchant's node in processes of its own."""

    def __init__(self, server: Server, name: str, program: list[str]) -> None:
        self.server, self.name, self.folder = server, name, server.deployment.merchant(name)
        self.log_file = self.folder.path.parent / f"{name}.log"
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [*program, *self.arguments], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=self.environment
            )

    @property
    def arguments(self) -> list[str]:
        """As `fedrec merchant up` has them."""
        folder, address = self.folder, self.server.folder.settings.address
        return [str(folder.path), str(folder.state), address, str(folder.ca), str(folder.key)]

    @property
    def environment(self) -> dict[str, str]:
        """Flower's files lie with the merchant's."""
        return {**os.environ, "FLWR_HOME": str(self.folder.state / "flwr"), "OMP_NUM_THREADS": "1"}

    @property
    def log(self) -> str:
        """All that it and its children wrote."""
        return self.log_file.read_text()

    @property
    def secret(self) -> Path:
        """The file that holds the secret of this start."""
        return self.folder.state / "executor.secret"

    def connected(self) -> Node:
        """The node, once the server sees it."""
        until(lambda: self.process.poll() is not None or self.server.nodes()[self.name].online, 60, "the node is online")
        assert self.process.poll() is None, self.log
        return self

    def family(self) -> list[psutil.Process]:
        """Every process with this merchant's folder on its command line."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = " ".join(process.info["cmdline"] or [])
            if f"{self.folder.path}/" in f"{command} ".replace(" ", "/") and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def child(self, module: str) -> psutil.Process:
        """The child that runs a module, once it is there."""
        until(lambda: any(module in process.cmdline() for process in self.family()), 20, module)
        return next(process for process in self.family() if module in process.cmdline())

    def end(self) -> None:
        """Leave nothing behind, however the test went."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(20)


@contextlib.contextmanager
def up(server: Server, name: str, program: list[str] = PLAIN) -> Iterator[Node]:
    """A node that is up for a while."""
    node = Node(server, name, program)
    try:
        yield node
    finally:
        node.end()


def write_tables(folder: MerchantFolder) -> None:
    """A small merchant whose user ids can be told from anything else."""
    catalogue = make_catalogue(12)
    events = make_events(8, catalogue, 3)
    events[Columns.USER] = [USER.format(name) for name in events[Columns.USER]]
    items = pd.DataFrame({Columns.ITEM: catalogue.item_ids, Columns.TITLE: catalogue.texts})
    items.to_csv(folder.tables / "items.csv", index=False)
    events.to_csv(folder.tables / "events.csv", index=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, quiet_environment: None) -> Iterator[Server]:  # noqa: F811
    folder = tmp_path_factory.mktemp("node")
    made = create(folder / "out", f"localhost:{free_ports()}", ["anna", "bert", "cleo", "dora", "nobody"])
    for merchant in made.merchants():
        write_tables(merchant)
    made.server.public_key("nobody").unlink()
    running = Server(made, folder / "log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def anna(server: Server) -> Iterator[Node]:
    """A node that stays up for the tests that only ask it something."""
    with up(server, "anna") as node:
        yield node.connected()


@contextlib.contextmanager
def server_app(server: Server, bundle: bytes | None = None) -> Iterator[_Grid]:
    """The grid of a new run's ServerApp, as `server.deployed` opens it; `bundle` in place of the usual one."""
    run = server.superlink.start_run()
    token = server.superlink.acquire(run)
    if bundle is not None:
        run = server.superlink._control.StartRun(StartRunRequest(fab=Fab(content=bundle))).run_id
        token = server.superlink.acquire(run)
    grid = _Grid(server.superlink.address, insecure=True, token=token)
    task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, run, task.context.node_id
    grid.set_run(run_from_proto(task.run))
    try:
        yield grid
    finally:
        grid.close()


def ask(server: Server, node: Node, *messages: tuple[str, RecordDict], bundle: bytes | None = None) -> list[Message]:
    """Send messages to a node in a new run; its replies in the same order."""
    with server_app(server, bundle) as grid:
        number = server.nodes()[node.name].node
        sent = [Message(content, number, kind, ttl=60.0) for kind, content in messages]
        replies = {reply.metadata.reply_to_message_id: reply for reply in grid.send_and_receive(sent, timeout=60.0)}
        return [replies[message.metadata.message_id] for message in sent]


def statement_of(reply: Message) -> Statement:
    """What our own app says; anything else fails."""
    assert reply.has_content(), reply
    decoded = wire.decode_reply(reply)
    assert decoded.arrays == {}
    return decoded.statement


def malformed() -> RecordDict:
    """A request that lacks most of what a task has."""
    return RecordDict({"task": ConfigRecord({"run": "x"}), "arrays": wire.to_record({"a": np.zeros(1, np.float32)})})


@pytest.fixture
def rogue(tmp_path: Path) -> tuple[bytes, Path]:
    """A bundle that leaves a marker wherever it is imported, and where the marker would be."""
    marker = tmp_path / "executed"
    client = MARKER.format(path=str(marker), side="clientapp", app="ClientApp").encode()
    served = MARKER.format(path=str(marker), side="serverapp", app="ServerApp").encode()
    bundle, _ = build_fab_from_files(
        {
            "pyproject.toml": BUNDLE.encode(), "LICENSE": b"Apache-2.0",
            "clients/__init__.py": client, "clients/app.py": client, "clients/merchant.py": client,
            "fedrec/__init__.py": client, "server/__init__.py": served, "server/app.py": served, "sitecustomize.py": client,
        }
    )  # fmt: skip
    # It would do so if anything imported it.
    zipfile.ZipFile(io.BytesIO(bundle)).extractall(tmp_path / "opened")
    subprocess.run([sys.executable, "-c", "import clients.app"], cwd=tmp_path / "opened", check=True)
    marker.unlink()
    return bundle, marker


# Whose code answers


@pytest.mark.usefixtures("identity")
def test_the_code_that_a_server_ships_is_never_executed(server: Server, anna: Node, rogue: tuple[bytes, Path]) -> None:
    bundle, marker = rogue
    keys, low = np.arange(3, dtype=np.uint64), HistogramTask("run", 0.01, 1e-5, "user")
    empty, incomplete, histogram = ask(
        server,
        anna,
        ("train", RecordDict({})),
        ("train", malformed()),
        ("train.histogram", wire.encode_histogram_task(low, keys)),
        bundle=bundle,
    )
    assert statement_of(empty) == Statement("anna", "declined", "failed: KeyError")
    assert statement_of(incomplete) == Statement("anna", "declined", "failed: WireError")
    refused = statement_of(histogram)
    assert (refused.merchant, refused.status) == ("anna", "declined") and refused.reason.startswith("policy: noise_multiplier")
    assert not marker.exists()
    kept = [path for path in anna.folder.path.rglob("*") if path.is_file() and marker.name.encode() in path.read_bytes()]
    assert kept == [], "nor is it unpacked beside the data"
    assert not (anna.folder.state / "privacy" / "anna.ledger.jsonl").exists()


@pytest.mark.usefixtures("identity")
def test_a_message_that_our_app_does_not_know_gets_an_error_without_text(server: Server, anna: Node) -> None:
    kinds = ["query", "evaluate", "train.__class__"]
    *replies, after = ask(server, anna, *((kind, malformed()) for kind in kinds), ("train", RecordDict({})))
    for kind, reply in zip(kinds, replies, strict=True):
        assert reply.has_error() and not reply.has_content(), kind
        assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed"), kind
    assert "No query function" in anna.log, "the reason is in the merchant's own log"
    assert statement_of(after).status == "declined", "and the next message finds the worker well"


@contextlib.contextmanager
def changed(path: Path, content: str) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_text()
    path.write_text(content)
    try:
        yield
    finally:
        path.write_text(before)


def told(server: Server, reply: Message) -> bytes:
    """Whatever of a reply the server has, in memory, on disk and in its log."""
    state = b"".join(path.read_bytes() for path in server.folder.state.glob("superlink.db*"))
    content = b"" if not reply.has_content() else repr(reply.content).encode()
    return message_to_proto(reply).SerializeToString() + content + state + server.log.encode()


@pytest.mark.usefixtures("identity")
def test_what_an_exception_says_stays_on_the_merchants_machine(server: Server, anna: Node) -> None:
    events = "user_id,item_id,timestamp\nu,i1,customer-6-secret\n"
    with changed(anna.folder.tables / "events.csv", events):
        (data,) = ask(server, anna, ("train", RecordDict({})))
    assert statement_of(data).reason == "failed: InputError"
    settings = anna.folder.settings_file
    with changed(settings, settings.read_text() + '\n["customer-7-secret"]\n'):
        (toml,) = ask(server, anna, ("train", RecordDict({})))
    assert toml.has_error() and toml.error.reason == "failed"
    ledger = anna.folder.ledger / "anna.ledger.jsonl"
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_text('{"release": {}, "customer-8-secret": 1}\n')
    try:
        task = wire.encode_histogram_task(HistogramTask("run", 50.0, 1e-5, "user"), np.arange(3, dtype=np.uint64))
        (chain,) = ask(server, anna, ("train.histogram", task))
    finally:
        ledger.unlink()
    assert statement_of(chain) == Statement("anna", "declined", "failed: LedgerError")
    for reply in (data, toml, chain):
        assert not re.search(rb"customer-|Traceback|events\.csv|merchant\.toml", told(server, reply))
    assert "'customer-6-secret' is not a timestamp" in anna.log and "ledger line" in anna.log


@pytest.mark.usefixtures("identity")
def test_a_merchant_whose_data_are_broken_declines_under_its_own_name(server: Server, anna: Node) -> None:
    with changed(anna.folder.tables / "events.csv", "nothing\n"):
        (reply,) = ask(server, anna, ("train", RecordDict({})))
    assert statement_of(reply).merchant == "anna"


@pytest.mark.slow
@pytest.mark.usefixtures("identity")
def test_a_worker_that_dies_is_replaced(server: Server, anna: Node) -> None:
    worker = anna.child("clients.worker")
    worker.kill()
    (reply,) = ask(server, anna, ("train", RecordDict({})))
    assert statement_of(reply).merchant == "anna"
    assert anna.child("clients.worker").pid != worker.pid and "starting another" in anna.log


# Who may ask for messages


def test_messages_are_handed_to_who_knows_the_secret_of_this_start(anna: Node) -> None:
    supernode = anna.child("clients.supernode")
    port = supernode.cmdline()[supernode.cmdline().index("--port") + 1]
    listening = [tuple(one.laddr) for one in supernode.net_connections() if one.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", int(port))]

    def acquire(secret: bytes | None) -> int:
        interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor(component_name="fedrec")]
        if secret is not None:
            protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
            interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=protected))
        with RuntimeHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, interceptors) as client:
            return status_of(lambda: client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])))

    secret = anna.secret.read_bytes()
    assert [acquire(None), acquire(os.urandom(32)), acquire(hashlib.sha256(secret).digest())] == [401, 401, 401]
    assert acquire(secret) == 200


def test_the_secret_is_for_its_owner_alone_and_on_no_command_line(anna: Node) -> None:
    assert stat.S_IMODE(anna.secret.stat().st_mode) == 0o600
    secret = anna.secret.read_bytes()
    assert len(secret) == 32
    for process in anna.family():
        shown = " ".join(process.cmdline()).encode() + repr(process.environ()).encode()
        assert secret not in shown and secret.hex().encode() not in shown
    assert secret not in anna.log_file.read_bytes() and secret.hex() not in anna.log


# How it ends


def test_one_node_a_merchant_and_an_end_that_leaves_nothing(server: Server) -> None:
    with up(server, "bert") as node:
        node.connected()
        secret = node.secret.read_bytes()
        second = subprocess.run(
            [*PLAIN, *node.arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, env=node.environment
        )
        assert second.returncode == 2 and "this merchant's node is up already" in second.stderr
        assert "Traceback" not in second.stderr
        assert node.secret.read_bytes() == secret, "the second has touched nothing"
        assert len(node.family()) == 3
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(30) == 0
        assert node.family() == []
        assert not node.secret.exists()
        until(lambda: not server.nodes()["bert"].online, 10, "it has signed off")
        assert "Traceback" not in node.log


@pytest.mark.slow
def test_a_node_that_is_killed_leaves_no_child(server: Server) -> None:
    with up(server, "cleo") as node:
        node.connected()
        node.child("clients.worker")
        node.process.kill()
        node.process.wait(10)
        until(lambda: node.family() == [], 30, "its children have ended")


@pytest.mark.slow
def test_a_key_that_the_server_does_not_know_ends_the_node_with_a_clear_line(server: Server) -> None:
    with up(server, "nobody", HASTY) as node:
        assert node.process.wait(60) == 1
        assert "ask its operator whether nodes/ holds this merchant's public key" in node.log.splitlines()[-1]
        assert node.family() == [] and not node.secret.exists()
    assert "nobody" not in server.nodes()


@pytest.mark.slow
def test_a_key_that_is_revoked_ends_the_node(server: Server) -> None:
    with up(server, "dora", HASTY) as node:
        node.connected()
        began = time.monotonic()
        revoke(server.folder.path, "dora")
        assert node.process.wait(60) == 1
        assert time.monotonic() - began < 30
        assert "has revoked" in node.log.splitlines()[-1]
        assert node.family() == [] and not node.secret.exists()


def test_a_state_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = server.deployment.merchant("bert")
    arguments = [str(folder.path), str(tmp_path / "file" / "state"), "localhost:1", str(folder.ca), str(folder.key)]
    done = subprocess.run([*PLAIN, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
