"""`fedrec server run` by a server that asks for more than merchants allow: $ROGUE says what."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from fedrec.cli.main import run
from fedrec.training import RoundTask
from server.strategy import PrivateLora

if __name__ == "__main__":
    honest, changes = PrivateLora.task, json.loads(os.environ["ROGUE"])

    def task(self: Any, number: int) -> RoundTask:
        """The task, with what is asked for too much."""
        return replace(honest(self, number), **changes)

    PrivateLora.task = task  # type: ignore[method-assign]
    run()
