"""A merchant of a secure sum that answers nonsense is left out, and ends neither the round nor the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message

from fedrec.deploy.certificates import new_node_key
from fedrec.secure import Refused, Roster, Terms, announce
from fedrec.wire import DELIVER
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import make_federation, settings_of, simulate_with

NAMES = ["m0", "m1", "m2", "m3"]
SECURE: dict[str, Any] = {
    "trust": "secure-aggregation",
    "rounds": 1,
    "encoder_rounds": 0,
    "noise_multiplier": 1.0,
    "histogram_noise_multiplier": 1.0,
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy: dict[str, object] = {"trust": "secure-aggregation", "epsilon": 1e6}
    return make_federation(tmp_path_factory.mktemp("rogue"), merchants=4, policy=policy)


def tampered(names: list[str], kind: str, change: Callable[[ConfigRecord], object]) -> Callable[..., Message]:
    """Changes what some merchants answer to a step."""

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        lists = reply.content.get("secure")
        statement = reply.content["statement"]
        if request.metadata.message_type == f"train.{kind}" and statement["merchant"] in names:
            assert isinstance(lists, ConfigRecord)
            change(lists)
        return reply

    return tamper


def set_to(**values: Any) -> Callable[[ConfigRecord], object]:
    return lambda lists: lists.update(values)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("announce", set_to(first=[]), "different lengths"),
        ("announce", set_to(members=5), "another roster than most"),
        ("share", set_to(names=["m1", "m1", "m1"]), "a merchant twice"),
        ("reveal", set_to(second=[]), "different lengths"),
    ],
)
def test_malformed_lists_are_one_merchants_fault(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path, kind: str, change: Callable[[ConfigRecord], object], reason: str
) -> None:
    config = settings_of(tiny_bert_folder, **SECURE)
    run = simulate_with(federation, config, tmp_path / "run", tampered(["m0"], kind, change))
    for line in run.metrics():
        assert reason in line["refused"]["m0"] and "abandoned" not in line
        # Who fails only after it has masked is in the sum.
        assert line["took_part"] == (NAMES if kind == "reveal" else NAMES[1:])


def test_a_roster_too_small_for_the_terms_ends_the_round_and_not_the_run(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    config = settings_of(tiny_bert_folder, **SECURE)
    run = simulate_with(federation, config, tmp_path / "run", tampered(NAMES, "announce", set_to(members=2)))
    assert [line["round"] for line in run.metrics()] == [0, 1]
    assert all("2 merchants cannot bear" in line["abandoned"] for line in run.metrics())


def test_secrets_that_a_killed_process_left_half_written_are_deleted(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    left: list[Path] = []

    def tamper(request: Message, context: Context, reply: Message) -> Message:
        if request.metadata.message_type == "train.announce" and not left:
            left.append(run.path / "replies" / "m0" / ".secure.json.1.tmp")
            left[0].parent.mkdir(parents=True, exist_ok=True)
            left[0].write_text("seeds")
        return reply

    simulate_with(federation, settings_of(tiny_bert_folder, **SECURE), run.path, tamper)
    assert left and not left[0].exists() and (left[0].parent / "secure.json").exists()


def test_everything_that_is_sent_can_be_recorded_and_no_share_stays(
    federation: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    config = settings_of(tiny_bert_folder, **SECURE)
    run = simulate(federation, config, tmp_path / "run", record_wire=True)
    lines = [json.loads(line) for line in (run.path / "privacy" / "wire" / "m0.jsonl").read_text().splitlines()]
    steps = ["announce", "share", "mask_histogram", "confirm", "reveal", "announce", "share", "mask", "confirm", "reveal"]
    assert [line["type"] for line in lines] == [*(f"train.{step}" for step in steps), DELIVER]
    secret = [value for line in lines for value in line["values"] if value["dtype"] == "bytes"]
    assert {value["name"] for value in secret} == {"first", "second", "third", "fourth"}
    assert not any("value" in value for value in secret)


def test_a_merchant_whose_key_is_not_in_its_roster_stays_out_by_itself() -> None:
    """The others would refuse a sum with its announcement in it: one old roster would end every round."""
    pairs = [new_node_key("m0") for _ in range(4)]
    roster = Roster({f"m{i}": " ".join(pair.public.decode().split()[:2]) for i, pair in enumerate(pairs)})
    terms = Terms("run", 1, "attempt", roster.digest, 4, 1, 1)
    own, other = (load_ssh_private_key(pair.private, None) for pair in pairs[:2])
    assert isinstance(own, EllipticCurvePrivateKey) and isinstance(other, EllipticCurvePrivateKey)
    assert announce(terms, "m0", roster, own).name == "m0"
    with pytest.raises(Refused, match="is not the one in its roster"):
        announce(terms, "m0", roster, other)
