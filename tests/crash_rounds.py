"""A merchant that answers rounds until it is killed; run by `test_crash.py` as a process.

Imports are slow and killing is not, so one warm process forks a fresh merchant for each
life. A line on standard output is what a server would have received.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fedrec.privacy import Ledger, head_file

from .merchants import open_shop, public_and_trained, task


def life(folder: Path, bert: Path, state: Path, first: int, out: int) -> None:
    """One process: ask for rounds from `first` on until killed, or until the budget ends."""
    torch.set_num_threads(1)
    shop = open_shop(folder, bert, state, seed=None)
    public, trained = public_and_trained(shop)
    number = first
    while True:
        reply = shop.train(task(shop, round=number, noise_multiplier=60.0), trained, public)
        digest = hashlib.sha256(b"".join(value.tobytes() for value in reply.arrays.values())).hexdigest()
        line = {"round": number, "status": reply.statement.status, "reason": reply.statement.reason, "digest": digest}
        os.write(out, json.dumps(line).encode() + b"\n")
        if reply.statement.status == "declined" and reply.statement.reason != "the round is over":
            return
        number += 1


def main() -> None:
    folder, bert, state, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    rng, first, answered = random.Random(seed), 1, {}
    lives = []
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            life(folder, bert, state, first, write)
            os._exit(0)
        os.close(write)
        time.sleep(rng.uniform(0.0, 1.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read) as pipe:
            lines = [json.loads(line) for line in pipe if line.endswith("\n")]
        for line in lines:
            if line["status"] == "ok":
                answered.setdefault(line["round"], []).append(line["digest"])
        # The server's last answer may have been lost, so it sometimes asks for that round again.
        if answered:
            first = max(answered) + (0 if rng.random() < 0.3 else 1)
        path = state / "ledger" / "shop.ledger.jsonl"
        ledger = Ledger(path, 1e-5, head_file(path))
        lives.append({"recorded": len(ledger.releases()), "epsilon": ledger.spent().value, "declined": lines[-1:]})
    sys.stdout.write(json.dumps({"answered": answered, "lives": lives}) + "\n")


if __name__ == "__main__":
    main()
