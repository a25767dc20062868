"""Secure aggregation as it will be run: real processes over TLS, of which some are killed between two steps.

Like `test_deployment.py` a file for one process: `pytest -m deployment -n 2 --dist loadfile`.
"""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec.deploy.processes import running
from fedrec.privacy import Ledger, Release
from server.run_folder import RunFolder

from .deployed import Deployed, interrupted, lines_of, until
from .helpers import make_federation

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.deployment]

POLICY: dict[str, object] = {"trust": "secure-aggregation", "epsilon": 1e6, "min_noise_multiplier": 0.3}
SECURE: dict[str, Any] = {
    "trust": "secure-aggregation",
    "dropouts": 1,
    "colluders": 1,
    "noise_multiplier": 1.0,
    "histogram_noise_multiplier": 1.0,
    "round_timeout": 40.0,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Iterator[Deployed]:
    """A deployment of four merchants that accept secure aggregation."""
    folder = tmp_path_factory.mktemp("secure")
    federation = make_federation(folder, merchants=4, users=40, policy=POLICY)
    deployed = Deployed(folder / "deployed", federation, tiny_bert_folder, folder / "cache")
    try:
        yield deployed
    finally:
        deployed.down()


@pytest.fixture(autouse=True)
def everybody_is_there(shop: Deployed) -> None:
    shop.up()


def releases(shop: Deployed, name: str, run: RunFolder) -> list[Release]:
    """What a merchant has paid for in a run."""
    state = run.load()
    assert state is not None
    ledger = Ledger(shop.merchant(name).ledger / f"{name}.ledger.jsonl", 1e-5)
    return [one for one in ledger.releases() if one.run == state.run]


def remembered(shop: Deployed, name: str) -> Path:
    """What a merchant has on disk of its last secure sum."""
    return shop.merchant(name).replies / name / "secure.json"


def all_have(step: str, shop: Deployed, run: RunFolder) -> tuple[int, list[str]]:
    """The moment at which the last merchant keeps its answer to `step`, and nobody can have been asked for the next.

    Returns:
        The round, and the merchants in the order of their answers: those of the first two have left.
    """
    until(lambda: lines_of(run), 240, "round 0")
    state = run.load()
    assert state is not None
    known: tuple[int, str] = (0, "")
    order: list[str] = []
    deadline = time.monotonic() + 180
    while True:
        for name in shop.names:
            if not remembered(shop, name).exists():
                continue
            one = json.loads(remembered(shop, name).read_text())
            asked = one["offer"]["round"], one["offer"]["attempt"]
            if one["offer"]["run"] != state.run or asked[0] == 0 or asked < known:
                continue
            if asked != known:
                known, order = asked, []
            if list(one["answers"])[-1] == step and name not in order:
                order.append(name)
        if len(order) == len(shop.names):
            # A node looks for what its worker has answered twice a second, and the server for what nodes have sent.
            until(lambda: all(shop.has_sent(name, f"train.{step}") for name in order[:2]), what=f"{step} sent")
            return known[0], order
        assert time.monotonic() < deadline, f"not all have answered {step}"
        time.sleep(0.01)


def line_of(run: RunFolder, number: int) -> dict[str, Any]:
    """The line of a round, once it is done."""
    until(lambda: any(line["round"] == number for line in lines_of(run)), 180, f"round {number}")
    return next(line for line in run.metrics() if line["round"] == number)


def takes_part_again(names: list[str], run: RunFolder) -> None:
    """Wait for a round with these merchants in it."""
    last = lines_of(run)[-1]["round"]
    until(lambda: any(line["took_part"] == names for line in lines_of(run) if line["round"] > last), 180, "all take part")


def assert_paid_for_what_was_sent(shop: Deployed, name: str, run: RunFolder) -> None:
    """A merchant's ledger has the rounds in which it sent a masked sum, opened or not; a last one may have been cut short."""
    lines = run.metrics()
    sent = [line["round"] for line in lines if name in line["took_part"]]
    assert [one.round for one in releases(shop, name, run) if one.round <= lines[-1]["round"]] == sent


def test_every_round_opens_and_the_ledgers_say_how(shop: Deployed) -> None:
    run, _ = shop.run(rounds=1, **SECURE)
    lines = run.metrics()
    assert [line["took_part"] for line in lines] == [shop.names] * 2
    assert not any(line["declined"] or line["refused"] or "abandoned" in line for line in lines)
    for name in shop.names:
        paid = releases(shop, name, run)
        assert [one.round for one in paid] == [0, 1]
        for one in paid:
            assert (one.trust, one.members, one.dropouts, one.colluders) == ("secure-aggregation", 4, 1, 1)
            assert 0 < one.noise_multiplier_alone < one.noise_multiplier == 1.0
            assert not one.simulated
        path = remembered(shop, name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        known = json.loads(path.read_text())
        assert known["state"] is None and known["offer"]["round"] == 1


def test_who_is_killed_drops_out_and_a_restarted_one_goes_on(shop: Deployed) -> None:
    process, run = shop.start(rounds=50, **SECURE)

    # Its worker alone, between masking and confirming: another one goes on with the sum from what is on disk.
    number, order = all_have("mask", shop, run)
    node = running(shop.merchant(order[0]).pid)
    assert node is not None
    for child in node.children():
        if "clients.worker" in child.cmdline():
            child.kill()
    line = line_of(run, number)
    assert (line["took_part"], line["refused"]) == (shop.names, {}) and "abandoned" not in line

    # All its processes, between sharing and masking: the sum opens without it.
    number, order = all_have("share", shop, run)
    lost = order[0]
    shop.kill(lost)
    line = line_of(run, number)
    rest = [name for name in shop.names if name != lost]
    assert line["took_part"] == rest and lost in line["refused"] and "abandoned" not in line
    assert number not in [one.round for one in releases(shop, lost, run)]
    shop.up()
    takes_part_again(shop.names, run)

    # All its processes, between masking and confirming: the sum opens with it.
    number, order = all_have("mask", shop, run)
    lost = order[0]
    shop.kill(lost)
    line = line_of(run, number)
    assert line["took_part"] == shop.names and lost in line["refused"] and "abandoned" not in line
    interrupted(process)
    for name in shop.names:
        assert_paid_for_what_was_sent(shop, name, run)


def test_without_two_of_four_nothing_is_opened(shop: Deployed) -> None:
    process, run = shop.start(rounds=50, **SECURE)
    number, order = all_have("share", shop, run)
    before = run.load()
    lost, rest = sorted(order[:2]), sorted(order[2:])
    for name in lost:
        shop.kill(name)
    line = line_of(run, number)
    assert line["abandoned"] == "2 of 4 merchants sent their masked sum, 3 are needed"
    assert set(line["refused"]) == set(lost)
    assert before is not None and before.round == number - 1
    # The checkpoint comes after the round's line.
    until(lambda: (state := run.load()) is not None and state.round >= number, 60, "the checkpoint")
    after = run.load()
    assert after is not None
    for name, value in before.trained.items():
        np.testing.assert_array_equal(value, after.trained[name])
    assert all(number in [one.round for one in releases(shop, name, run)] for name in rest)
    assert all(number not in [one.round for one in releases(shop, name, run)] for name in lost)
    # Their masks were asked for by nobody, so that what they sent stays closed.
    assert all(list(json.loads(remembered(shop, name).read_text())["answers"])[-1] == "mask" for name in rest)
    shop.up()
    takes_part_again(shop.names, run)
    interrupted(process)
    for name in shop.names:
        assert_paid_for_what_was_sent(shop, name, run)
