"""A merchant's node whose worker is `tests.rogue_worker`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import clients.node
from fedrec.deploy.layout import MerchantFolder


class RogueExecutor(clients.node.Executor):
    """The executor with the other worker."""

    def _new_worker(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.rogue_worker", str(self.folder), self.address, str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


if __name__ == "__main__":
    clients.node.Executor = RogueExecutor  # type: ignore[misc]
    folder = MerchantFolder.open(Path(sys.argv[1]))
    sys.exit(clients.node.run_node(clients.node.Connection(folder.path, folder.state, folder.server, folder.ca, folder.key)))
