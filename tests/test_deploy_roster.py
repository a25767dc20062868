"""The roster in a deployment: who gets it, what changes it, how merchants compare it, what a wrong one stops."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.preflight import checks
from fedrec.cli import main
from fedrec.deploy.certificates import key_fingerprint, new_node_key
from fedrec.deploy.create import create, revoke, rotate_merchant
from fedrec.deploy.layout import Deployment, MerchantFolder
from fedrec.deploy.roster import own_roster, roster_of
from fedrec.errors import InputError
from fedrec.secure import Roster

from .deployed import edit
from .test_cli_errors import Answer, Fedrec, assert_refused

NAMES = ["a", "b", "c"]


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return create(tmp_path / "out", "fed.example.org", NAMES)


@pytest.fixture
def fedrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fedrec]:
    """The command line in this process, whose environment and umask are put back."""
    monkeypatch.chdir(tmp_path)
    before, mask = dict(os.environ), os.umask(0o022)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return Answer(int(stopped.value.code or 0), *capsys.readouterr())

    yield call
    os.umask(mask)
    os.environ.clear()
    os.environ.update(before)


def rosters(deployment: Deployment) -> list[Roster]:
    return [own_roster(merchant) for merchant in deployment.merchants()]


def test_every_merchant_has_the_roster_of_all(deployment: Deployment) -> None:
    held = rosters(deployment)
    assert len(held) == 3 and len({one.digest for one in held}) == 1
    registered = deployment.server.public_keys()
    assert held[0].keys == {name: registered[name].decode() for name in NAMES}
    assert all(stat.S_IMODE(merchant.key.stat().st_mode) == 0o600 for merchant in deployment.merchants())


def test_a_rotation_changes_one_key_in_every_roster_and_says_who_needs_it(deployment: Deployment) -> None:
    before = rosters(deployment)[0]
    shutil.rmtree(deployment.merchant("c").path)
    change = rotate_merchant(deployment, "a")
    after = rosters(deployment)
    assert len(after) == 2 and after[0] == after[1]
    assert after[0].digest != before.digest
    assert {name for name in NAMES if after[0].keys[name] != before.keys[name]} == {"a"}
    a, b = deployment.merchant("a"), deployment.merchant("b")
    assert {a.roster, b.roster} <= set(change.replaced)
    # c's folder is not here any more: it gets a copy of what the others have.
    assert (change.hand_over["b"], change.hand_over["c"]) == ([b.roster], [a.roster])
    assert a.roster in change.hand_over["a"] and change.restart == ("a",)
    assert "every merchant needs the new roster.txt" in change.notes[0] and "server's word" in change.notes[0]


def test_a_rotation_repairs_the_key_that_it_replaces_and_no_other(deployment: Deployment) -> None:
    deployment.server.public_key("a").write_text("broken")
    rotate_merchant(deployment, "a")
    assert set(rosters(deployment)[0].keys) == set(NAMES)
    deployment.server.public_key("b").write_text("broken")
    kept = deployment.merchant("a").key.read_bytes()
    with pytest.raises(InputError, match=r"b\.pub"):
        rotate_merchant(deployment, "a")
    assert deployment.merchant("a").key.read_bytes() == kept


def test_a_revoked_merchant_stays_in_the_rosters_until_a_rotation_or_its_line_is_taken_out(
    deployment: Deployment, fedrec: Fedrec
) -> None:
    said = fedrec("deploy", "revoke", deployment.path, "c").out
    assert "c counts as a drop-out until every merchant has taken its line out of roster.txt" in said
    assert set(rosters(deployment)[0].keys) == set(NAMES)
    by_hand = deployment.merchant("b").roster
    lines = by_hand.read_text().splitlines(keepends=True)
    by_hand.write_text("".join(line for line in lines if not line.startswith("c ")))
    taken_out = own_roster(deployment.merchant("b"))
    assert set(taken_out.keys) == {"a", "b"}
    rotated = rotate_merchant(deployment, "a")
    assert "c" not in rotated.hand_over
    assert set(own_roster(deployment.merchant("b")).keys) == {"a", "b"}


def test_the_command_shows_digest_and_fingerprints(deployment: Deployment, fedrec: Fedrec) -> None:
    shown = [json.loads(fedrec("merchant", "roster", merchant.path, "--json").out) for merchant in deployment.merchants()]
    assert [one["merchant"] for one in shown] == NAMES
    assert len({one["digest"] for one in shown}) == 1 and shown[0]["digest"] == rosters(deployment)[0].digest
    registered = deployment.server.public_keys()
    assert shown[0]["members"] == [{"name": name, "key": key_fingerprint(registered[name])} for name in NAMES]
    printed = fedrec("merchant", "roster", deployment.merchant("a").path)
    assert printed.status == 0 and f"digest {shown[0]['digest']}" in printed.out
    assert all(one["key"] in printed.out for one in shown[0]["members"])


def other_key(merchant: MerchantFolder) -> None:
    keys = dict(Roster.read(merchant.roster).keys)
    keys["a"] = " ".join(new_node_key("a").public.decode().split()[:2])
    Roster(keys).write(merchant.roster)


BAD: dict[str, tuple[Callable[[MerchantFolder], object], list[str]]] = {
    "missing": (lambda one: one.roster.unlink(), ["roster.txt", "cannot be read (No such file or directory)"]),
    "no text": (lambda one: one.roster.write_bytes(b"\xff\xfe"), ["roster.txt", "cannot be read"]),
    "no key": (lambda one: one.roster.write_text("a ecdsa-sha2-nistp384 AAAA\n"), ["roster.txt, line 1", "public key"]),
    "empty": (lambda one: one.roster.write_text(""), ["roster.txt", "a is not in it"]),
    "a name that is none": (
        lambda one: one.roster.write_text(one.roster.read_text().replace("\nb ", "\n\x1b[31mb ")),
        ["roster.txt", "is no merchant's name"],
    ),
    "another key under the own name": (other_key, ["roster.txt", "not the public half of node.key", "same new roster"]),
    "a key that others can read": (lambda one: one.key.chmod(0o644), ["node.key", "mode 0644"]),
    "a key that is none": (lambda one: one.key.write_text("x"), ["node.key", "no elliptic-curve private key"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_roster_is_one_error(case: str, deployment: Deployment, fedrec: Fedrec) -> None:
    merchant = deployment.merchant("a")
    breaking, named = BAD[case]
    breaking(merchant)
    assert_refused(fedrec("merchant", "roster", merchant.path), *named)


@pytest.mark.parametrize("case", BAD)
def test_a_node_does_not_start_with_a_wrong_roster(case: str, deployment: Deployment, fedrec: Fedrec) -> None:
    merchant = deployment.merchant("a")
    edit(merchant.settings_file, privacy={"trust": "secure-aggregation"})
    breaking, named = BAD[case]
    breaking(merchant)
    done = fedrec("merchant", "up", merchant.path, "--json")
    assert_refused(done, *named)


def test_only_a_policy_that_accepts_secure_aggregation_needs_a_roster(deployment: Deployment) -> None:
    merchant = deployment.merchant("a")

    def looked_at() -> dict[str, str]:
        """What is found before the data, of which this merchant has none yet."""
        found = {}
        with pytest.raises(InputError, match=r"items\.parquet"):
            for what, finding in checks(MerchantFolder.open(merchant.path)):
                found[what] = finding
        return found

    assert list(looked_at()) == ["policy", "key", "disk"]
    edit(merchant.settings_file, privacy={"trust": "secure-aggregation"})
    found = looked_at()
    assert list(found) == ["policy", "key", "roster", "disk"]
    assert found["roster"] == f"3 merchants, this one's key among them, digest {own_roster(merchant).digest}"
    merchant.roster.unlink()
    edit(merchant.settings_file, privacy={"trust": "local"})
    assert "roster" not in looked_at()


def test_a_key_made_by_the_merchant_is_found_in_the_roster(deployment: Deployment, tmp_path: Path) -> None:
    """Revoked and admitted again with a key that only the merchant has; the comment on its line is not part of it."""
    revoke(deployment.path, "a")
    merchant, pair = deployment.merchant("a"), new_node_key("a")
    merchant.key.write_bytes(pair.private)
    deployment.server.public_key("a").write_bytes(pair.public)
    roster_of(deployment.server.public_keys()).write(merchant.roster)
    text = merchant.roster.read_text().replace("\nb ", " a@shop\nb ")
    merchant.roster.write_text(text)
    assert own_roster(merchant).digest == roster_of(deployment.server.public_keys()).digest
