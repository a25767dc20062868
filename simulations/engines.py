"""Two ways to run the same ServerApp and ClientApp on one machine.

`flower` is Flower's simulation runtime on Ray. `inline` calls the ClientApp in this
process, merchant after merchant (one loaded model, one trunk cache, no start-up) or in
worker processes. The messages are the same, so a run is the same but for the order of
floating-point sums, which differs with the number of threads that a process has.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import count

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrec.errors import InputError
from server.progress import notify
from simulations.workers import Job, Workers

__all__ = ["ENGINES", "InlineGrid", "check_device", "client_resources", "run_flower", "run_inline"]

Engine = Callable[[ServerApp, ClientApp, int, int, str], None]
"""Takes the apps, the number of merchants, the number of worker processes and the setting `device`."""
Answer = Callable[[Iterable[Job]], Iterator[tuple[int, Message]]]
"""Requests, each with its node's context, to the number of each and its reply, in any order."""
SERVER_NODE = 1
GPU_SHARE = 0.25
"""Share of a GPU that Ray gives each merchant: a step on a small encoder leaves most of one idle."""


class InlineGrid(Grid):
    """A grid whose nodes are on this machine."""

    def __init__(self, answer: Answer, nodes: int) -> None:
        self._answer = answer
        self._run = Run.create_empty(run_id=1)
        # The same ids in every run: replies are averaged in the order of node ids.
        self._contexts = {
            SERVER_NODE + 1 + i: Context(
                run_id=1,
                node_id=SERVER_NODE + 1 + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        self._ids = map(str, count())

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid`."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages answered at once; the replies wait to be pulled."""
        jobs = [(message, self._contexts[message.metadata.dst_node_id]) for message in messages]
        ids = [next(self._ids) for _ in jobs]
        for done, (place, reply) in enumerate(self._answer(jobs), 1):
            self._replies[ids[place]] = reply
            notify("merchant_done", done=done)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`; a reply is forgotten here when the caller takes it."""
        return (self._replies.pop(name) for name in message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid`; nothing can be late here, so `timeout` has no effect."""
        return self.pull_messages(self.push_messages(messages))


def run_inline(server_app: ServerApp, client_app: ClientApp, nodes: int, workers: int = 1, device: str = "auto") -> None:
    """Run in this process, and with more than one worker the merchants in processes of their own."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER_NODE, 1
    context = Context(run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={})

    def here(jobs: Iterable[Job]) -> Iterator[tuple[int, Message]]:
        for place, (message, node) in enumerate(jobs):
            yield place, client_app(message, node)

    if workers == 1:
        server_app(InlineGrid(here, nodes), context)
        return
    with Workers(workers) as processes:
        server_app(InlineGrid(processes.answer, nodes), context)


def check_device(engine: str, device: str) -> None:
    """Whether an engine can give merchants the device that is asked for.

    Raises:
        InputError: Ray chooses each merchant's GPU, and one with a number is none that it knows.
    """
    if engine == "flower" and device.startswith("cuda:"):
        raise InputError(
            f"found {device!r}", where="device", expected="auto, cuda or cpu: Ray gives each merchant a GPU",
            hint="CUDA_VISIBLE_DEVICES says which GPUs there are",
        )  # fmt: skip


def client_resources(device: str) -> dict[str, float]:
    """What Ray keeps for each merchant: a core, and where it computes on a GPU a share of one."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {"num_cpus": 1, "num_gpus": GPU_SHARE if on_gpu else 0.0}


def run_flower(server_app: ServerApp, client_app: ClientApp, nodes: int, workers: int = 1, device: str = "auto") -> None:
    """Run under Flower's simulation runtime, one core a merchant; Ray starts a worker for each core itself."""
    import ray
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Before the ServerApp has a thread: Ray starts by forking, and a fork while another thread
    # is inside a matrix product can leave that product spinning for ever.
    python_path = os.pathsep.join(sys.path)
    ray.init(
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": python_path}},
    )
    resources = client_resources(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run_simulation(server_app, client_app, num_supernodes=nodes, backend_config={"client_resources": resources})  # type: ignore[dict-item]


ENGINES: dict[str, Engine] = {"inline": run_inline, "flower": run_flower}
