"""The ServerApp of a deployed run, in this process.

`fedrec server run` is itself the process that executes `server.app`: it opens a run at the
SuperLink, takes the run's task, and speaks to the merchants through Flower's grid. What it
shows is what it does, and stopping it stops the run at the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedrec import wire
from fedrec.config import RunConfig
from fedrec.data import load_central
from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from fedrec.model.encoder_files import absolute_encoder
from server.control import SuperLink
from server.delivery import MOST_SECONDS, Delivered, hand_over, parcel_of
from server.evaluators import evaluator_of
from server.given_start import check_start, copy_start, open_start
from server.judging import check_judges
from server.pending import remember, remember_unless_later
from server.progress import notify
from server.run_folder import RunFolder
from server.run_lock import alone
from server.start import load_encoder_for
from server.strategy import WAIT_STEP, TooFewMerchants, connected

__all__ = ["SITE", "deliver", "deliver_to", "go_on", "start"]

SITE = "site.json"
LOOK_EVERY = 0.5
"""Seconds between two looks for replies; they stay on this machine."""


def start(folder: ServerFolder, config: RunConfig, out: Path, begin: Path | None = None) -> RunFolder:
    """Start a run and see it to its end.

    Args:
        begin: a run, or another folder with an adapter, to start from.

    Raises:
        InputError: bad central data or settings, `out` is taken, the adapter is not for this run, or no server is up.
    """
    central = load_central(folder.path)
    config = config.model_copy(update={"encoder": absolute_encoder(config.encoder)})
    encoder = load_encoder_for(config)
    given = open_start(begin) if begin else None
    if given is not None:
        check_start(given, config, encoder)
    if config.patience:
        check_judges(config, evaluator_of(config, central, encoder))
    SuperLink(folder).nodes()
    run = RunFolder.create(out, config)
    if given is not None:
        copy_start(given, out)
    site = {"federation": str(folder.path), "run": str(out.resolve()), "deployed": True}
    run.write_json(SITE, site)
    return go_on(folder, run)


def go_on(folder: ServerFolder, run: RunFolder) -> RunFolder:
    """Go on with a run from its last checkpoint, or from its beginning.

    Raises:
        InputError: the run is not a deployed one, its encoder has changed, another process is at it, or no server is up.
        TooFewMerchants: the run stopped at its last checkpoint.
    """
    if not _is_deployed(run):
        raise InputError(
            "is not a deployed run", where=str(run.path), hint="a simulated run resumes with `fedrec simulate --resume`"
        )
    state = run.load()
    ended = (run.path / "ended_early.json").exists()
    if ended or (state is not None and state.ended(run.config.rounds)):
        if state is not None and state.round > 0 and run.goes_home:
            # It may have been ended before its adapter went home to all.
            with alone(folder):
                if not remember_unless_later(folder, run, state.round):
                    notify("another_pending", folder=str(folder.path), run=str(run.path))
        return run
    load_encoder_for(run.config, state)
    stopped = run.path / "stopped.json"
    with alone(folder):
        stopped.unlink(missing_ok=True)
        from server.app import send_home, train

        def serve(grid: Grid, _: Context) -> None:
            ended = train(grid, run, folder.path)
            if run.goes_home and (number := run.last_round()):
                remember(folder, run, number)  # before it goes home: that may be interrupted
            send_home(grid, run)
            notify("finished", reason=ended)

        try:
            _serve(SuperLink(folder), serve)
        except TooFewMerchants as reason:
            run.write_json(stopped.name, {"reason": str(reason)})
            raise
    return run


def deliver(folder: ServerFolder, run: RunFolder, everybody: bool = False, wait: float = 0.0) -> dict[str, dict[str, str | bool]]:
    """Send a run's adapter to the connected merchants who do not have it yet.

    It may be stopped at any time and begun again: what a merchant has is in the run folder, and one that gets it twice
    says so. From now on it is also the adapter that the server sends by itself to whoever comes back without it.

    Args:
        everybody: send it to those who have it too, once.
        wait: seconds to go on waiting for registered merchants who are away or did not answer.

    Returns:
        For every registered merchant, and every other who got it, `outcome`, `when`, whether it is `connected`, and
        whether it `has` it.

    Raises:
        InputError: the run is not a deployed one or has trained nothing, another process is at one, or no server is up.
    """
    if not _is_deployed(run):
        raise InputError("is not a deployed run", where=str(run.path), hint="a simulated run delivers at its end")
    parcel = parcel_of(run)
    with alone(folder):
        delivered = Delivered(run, parcel)
        superlink = SuperLink(folder)
        registered = {node.merchant for node in superlink.nodes()}
        remember(folder, run, parcel.delivery.round)
        answered: set[str] = set()  # whoever did, even that it cannot use it, is not asked again

        def missing() -> set[str]:
            return registered - answered - (set() if everybody else delivered.have())

        def serve(grid: Grid, _: Context) -> None:
            deadline = time.monotonic() + wait
            while True:
                asked = {node: name for node, name in connected(grid).items() if name in missing()}
                outcomes = hand_over(grid, parcel, asked, MOST_SECONDS)
                delivered.add(outcomes)
                answered.update(name for name, outcome in outcomes.items() if outcome in wire.OUTCOMES)
                left = deadline - time.monotonic()
                if not missing() or left <= 0:
                    return
                there = len(registered) - len(missing())
                notify("waiting", there=there, needed=len(registered), seconds=round(left))
                time.sleep(WAIT_STEP)

        if missing():
            _serve(superlink, serve)
        online = {node.merchant for node in superlink.nodes() if node.online}
    have = delivered.have()
    return {
        name: {
            **delivered.merchants.get(name, {"outcome": "was away", "when": ""}),
            "connected": name in online,
            "has": name in have,
        }
        for name in sorted(registered | delivered.merchants.keys())
    }


def deliver_to(folder: ServerFolder, run: RunFolder, names: Collection[str], timeout: float) -> None:
    """Send a run's adapter once to those of these merchants who are connected; the caller holds the lock of runs.

    Args:
        timeout: seconds that receipts are waited for.

    Raises:
        InputError: the run has trained nothing, or no server is up.
    """
    parcel = parcel_of(run)
    delivered = Delivered(run, parcel)

    def serve(grid: Grid, _: Context) -> None:
        asked = {node: name for node, name in connected(grid).items() if name in names}
        delivered.add(hand_over(grid, parcel, asked, timeout))

    _serve(SuperLink(folder), serve)


def _is_deployed(run: RunFolder) -> bool:
    site = run.path / SITE
    return site.is_file() and bool(json.loads(site.read_text(encoding="utf-8")).get("deployed"))


class _Grid(HttpGrid):
    """Flower's grid, telling who watches of each reply, and looking for them more often.

    Flower checks the envelope of a reply against the sender's key, but the metadata of the
    message inside is the sender's own writing. Replies are pulled one request at a time, and
    are from whom that request went to.
    """

    _recipients: dict[str, int]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        sent = list(messages)
        ids = list(super().push_messages(sent))
        self._recipients = dict(zip(ids, (message.metadata.dst_node_id for message in sent), strict=False))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        replies = []
        for asked in list(message_ids):
            for reply in super().pull_messages([asked]):
                reply.metadata.__dict__.update(_reply_to_message_id=asked, _src_node_id=self._recipients[asked])
                replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid`."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                replies.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
                notify("merchant_done", done=len(replies))
            if waiting:
                time.sleep(LOOK_EVERY)
        return replies


def _serve(superlink: SuperLink, app: Callable[[Grid, Context], None]) -> None:
    """Open a run and have `app` speak to the merchants in it, from this process."""
    run_id = superlink.start_run()
    grid = _Grid(superlink.address, insecure=True, token=superlink.acquire(run_id))
    client = grid._runtime_client
    task = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, run_id, task.context.node_id
    grid.set_run(run_from_proto(task.run))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    outcome: dict[str, Any] = {"sub_status": SubStatus.FAILED, "details": "the ServerApp stopped"}
    try:
        app(grid, context_from_proto(task.context))
        outcome = {"sub_status": SubStatus.COMPLETED, "details": ""}
    finally:
        # Before the task ends: a heartbeat of a task that has ended interrupts the process.
        heartbeat.stop()
        grid._retry_invoker.max_tries = 1  # the SuperLink may be what is gone
        with contextlib.suppress(httpx.HTTPError):
            client.PushTaskOutput(PushTaskOutputRequest(**outcome))
        grid.close()
