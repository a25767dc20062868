"""Fifty rounds while merchants lose power at random: the ledgers, the processes and the memory afterwards."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedrec.deploy.processes import running

from .deployed import Deployed, lines_of, until
from .helpers import make_federation

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.soak]

ROUNDS = 50
KILL_EVERY = 7
"""A merchant is killed when so many rounds have passed since the last one was."""
GROWTH = 1.25
"""Most that the memory of a process that lived through may grow from the first third of the run to the last."""


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path) -> Iterator[Deployed]:
    federation = make_federation(tmp_path, merchants=4, users=60)
    deployed = Deployed(tmp_path / "deployed", federation, tiny_bert_folder, tmp_path / "cache")
    for name in deployed.names:
        deployed.policy(name, epsilon=1e6)
    deployed.up()
    try:
        yield deployed
    finally:
        deployed.down()


def memory(shop: Deployed) -> dict[tuple[int, float], int]:
    """Resident bytes of every process, by its number and birth."""
    found = {}
    for process in shop.family():
        try:
            found[process.pid, process.create_time()] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


def test_fifty_rounds_with_merchants_killed_at_random(shop: Deployed) -> None:
    chance = random.Random(0)
    process, run = shop.start(rounds=ROUNDS, noise_multiplier=200.0, histogram_noise_multiplier=200.0, round_timeout=20.0)
    samples: list[dict[tuple[int, float], int]] = []
    kills, killed_at = 0, 0
    while process.poll() is None:
        done = len(lines_of(run))
        samples.append(memory(shop))
        # The first merchant and the server live through all of it: their memory is looked at below.
        if done >= killed_at + KILL_EVERY and done < ROUNDS - KILL_EVERY:
            name = chance.choice(shop.names[1:])
            if running(shop.merchant(name).pid) is not None:
                shop.kill(name)
                kills, killed_at = kills + 1, done
        shop.up()
        until(lambda done=done: len(lines_of(run)) > done or process.poll() is not None, 180, f"round {done}")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    lines = run.metrics()
    assert [line["round"] for line in lines] == list(range(ROUNDS + 1)) and kills >= 5
    for name in shop.names:
        paid = shop.releases(name, run)
        answered = [line["round"] for line in lines if name in line["took_part"]]
        assert len(paid) == len(set(paid)), f"{name} paid twice"
        # Whoever was killed between paying and answering has paid; nobody answered without.
        assert set(answered) <= set(paid)
        missed = {line["round"] for line in lines if name in line["refused"]}
        assert set(paid) - set(answered) <= missed
    assert shop.releases(shop.names[0], run) == list(range(ROUNDS + 1))
    survivors = set(samples[2]) & set(samples[-1])
    assert survivors
    third = len(samples) // 3
    for one in survivors:
        series = [sample[one] for sample in samples if one in sample]
        early, late = np.median(series[2:third]), np.median(series[-third:])
        assert late <= GROWTH * early, f"{psutil.Process(one[0]).cmdline()} grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB"
    alive = [one for merchant in shop.deployment.merchants() if (one := running(merchant.pid)) is not None]
    expected = {child.pid for one in alive for child in [one, *one.children(recursive=True)]}
    server = running(shop.server.pid)
    assert server is not None
    strays = {one.pid for one in shop.family()} - expected - {server.pid}
    assert not strays, [psutil.Process(pid).cmdline() for pid in strays]
    in_all = ", ".join(f"{sum(sample.values()) / 1e6:.0f}" for sample in samples[:: max(1, len(samples) // 5)])
    sys.stderr.write(f"\n{kills} kills; {in_all} MB in all\n")
