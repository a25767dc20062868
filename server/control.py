"""What `fedrec server run` and `status` ask of a running SuperLink, over its loopback door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

from fedrec import __version__
from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from server.superlink import LOOPBACK, control_token, executor_secret

__all__ = ["Node", "SuperLink"]

FINISHED = "finished"
BUNDLE = f"""\
[project]
name = "fedrec"
version = "{__version__}"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedrec"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"
"""
"""All that a run's bundle holds: both sides run the code that they have installed, never code that was sent."""


@dataclass(frozen=True)
class Node:
    """A registered merchant, as the SuperLink sees it."""

    merchant: str
    node: int
    online: bool
    last_seen: str


class SuperLink:
    """A running SuperLink."""

    def __init__(self, folder: ServerFolder) -> None:
        self.folder = folder
        self.address = f"{LOOPBACK}:{folder.settings.control_port}"
        self._token = control_token(folder)
        self._control = ControlHttpClient.from_server_address(self.address, True, None, [self])

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Show the token."""
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)

    def nodes(self) -> list[Node]:
        """Every registered merchant, by name.

        Raises:
            InputError: no SuperLink answers.
        """
        with self._reached():
            found = self._control.ListNodes(ListNodesRequest()).nodes_info
        here = sorted((one for one in found if not one.unregistered_at), key=lambda one: one.name)
        return [Node(one.name, one.node_id, one.status == "online", one.last_activated_at) for one in here]

    def start_run(self) -> int:
        """Open a run for a ServerApp in this process; runs that an earlier process left open end.

        Raises:
            InputError: no SuperLink answers.
        """
        bundle, _ = build_fab_from_files({"pyproject.toml": BUNDLE.encode(), "LICENSE": b"Apache-2.0"})
        with self._reached():
            for run_id, run in self._control.ListRuns(ListRunsRequest()).run_dict.items():
                if run.status.status != FINISHED:
                    self._control.StopRun(StopRunRequest(run_id=run_id))
            return self._control.StartRun(StartRunRequest(fab=Fab(content=bundle))).run_id

    def acquire(self, run_id: int) -> str:
        """The token with which the ServerApp of a run speaks.

        Raises:
            InputError: no SuperLink answers, or it hands out the task of another run.
        """
        auth = SuperExecAuthHttpInterceptor(
            master_secret=executor_secret(self.folder), protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
        )
        version = RuntimeVersionHttpInterceptor(component_name="fedrec")
        client = RuntimeHttpClient.from_server_address(self.address, True, None, [version, auth])
        try:
            with self._reached():
                answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        finally:
            client.close()
        if not answer.token or answer.task.run_id != run_id:
            raise InputError(f"the SuperLink did not hand out the task of run {run_id}", hint="restart the server")
        return answer.token

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError:
            raise InputError(
                f"no server answers at {self.address}",
                where=str(self.folder.path),
                expected="a server that is up",
                hint=f"start it with `fedrec server up {self.folder.path}`",
            ) from None
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise InputError(
                f"what answers at {self.address} does not know this folder's key",
                where=str(self.folder.path),
                hint="another server uses the port, or the key was rotated: restart the server",
            ) from None
