"""What answers for a merchant, with the code that is installed here.

Flower ships an app bundle with every run, and its own executor would install the bundle and
run it: the server would choose the code that reads a merchant's data. This process takes
the task through the same API but runs `clients.app` of this machine, whatever the bundle
says, and only for messages that `clients.app` has a handler for.

Flower's executor starts a process a message, which imports torch and loads the model each
time. This one stays, so that a message finds it warm; policy, ledger and data are read anew
for every message, since a user may have asked to be erased since the last one.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from clients.app import app
from clients.delivery import settle
from clients.merchant import forget_merchants
from clients.site import FOLDER_KEY
from fedrec.text import log_visibly
from fedrec.wire import DELIVER

__all__ = ["answer", "main"]

log = logging.getLogger("fedrec.merchant")


def answer(client: RuntimeHttpClient, retries: RetryInvoker, folder: Path) -> None:
    """Take the task's message, answer it, hand the reply over.

    Args:
        retries: how often `client` tries, until there is nothing more to send.
    """
    try:
        message, context, _run, _bundle = pull_task_input(client)
    except (RuntimeError, ObjectPullError, RunNotRunningException) as error:
        log.info("the request was withdrawn: %s", error or "its run has ended")
        return
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    forget_merchants()
    context.node_config = {FOLDER_KEY: str(folder)}
    try:
        heartbeat.start()
        try:
            reply = app(message, context)
        except Exception:
            # An exception's text can hold what must not leave; it stays in the log of this machine.
            log.exception("the request failed")
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed"), reply_to=message)
        push_message(client, reply, context)
    finally:
        retries.max_tries = 1  # where the node is gone a heartbeat would be tried, and waited for, for ever
        if heartbeat.is_running:
            heartbeat.stop()  # before the task ends: a heartbeat of a task that has ended interrupts the process
    push_task_output(client, context, SubStatus.COMPLETED, "")
    if message.metadata.message_type == DELIVER:
        settle(folder)  # not before the answer is gone: it depends on private data, and how long it takes does too


def main(folder: Path, address: str, parent: int) -> None:
    """Answer a task for each token that comes on standard input, and say `done` after each.

    Args:
        address: the node's runtime API on this machine.
        parent: the process whose end is this one's end too.
    """
    log_visibly()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    start_parent_process_monitor(parent)
    done = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not for the pipe
    settle(folder)  # what arrived before the node was stopped
    for line in sys.stdin:
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(line.strip()),
        ]
        retries = make_simple_http_retry_invoker()
        client = RuntimeHttpClient.from_server_address(address, True, None, interceptors, retry_invoker=retries)
        try:
            answer(client, retries, folder)
        except (KeyboardInterrupt, RunNotRunningException):
            # Flower interrupts a process whose task has ended; what was paid for has been kept for a repeated request.
            log.info("the request was withdrawn: its run has ended, or the node was started anew")
        finally:
            client.close()
        done.write("done\n")
        done.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
