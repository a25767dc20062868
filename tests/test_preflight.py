"""`fedrec merchant up --check`: what is in order is said, and the first thing that is not stops the node, in one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from clients import preflight
from clients.preflight import LITTLE_SPACE, checks
from fedrec.cli import main
from fedrec.data import Columns
from fedrec.data.roles import SECRET_FILE, UserShares, roles_of
from fedrec.deploy.create import create
from fedrec.deploy.layout import Deployment, MerchantFolder
from fedrec.errors import InputError
from fedrec.merchant import OWN
from fedrec.model.versions import CURRENT, FORMAT, Versions
from fedrec.privacy import Ledger, Release

from .conftest import make_catalogue, make_events
from .deployed import edit
from .helpers import USER
from .test_cli_errors import Answer, Fedrec, assert_refused

USERS, ITEMS = 12, 20
EVERYTHING = ["policy", "key", "disk", "data", "ledger", "model", "server"]
HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


class Shop(NamedTuple):
    """A merchant whose folder is in order, and the socket at which its server would listen."""

    deployment: Deployment
    listening: socket.socket

    @property
    def path(self) -> Path:
        return self.deployment.merchant("shop").path

    @property
    def folder(self) -> MerchantFolder:
        return MerchantFolder.open(self.path)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder.ledger / "shop.ledger.jsonl", 1e-5)


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path) -> Iterator[Shop]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = create(tmp_path / "out", f"localhost:{listening.getsockname()[1]}", ["shop"])
        merchant = made.merchant("shop")
        catalogue = make_catalogue(ITEMS)
        events = make_events(USERS, catalogue, 4)
        events[Columns.USER] = [USER.format(name) for name in events[Columns.USER]]
        items = pd.DataFrame({Columns.ITEM: catalogue.item_ids, Columns.TITLE: catalogue.texts})
        items.to_csv(merchant.tables / "items.csv", index=False)
        events.to_csv(merchant.tables / "events.csv", index=False)
        model = {"encoder": str(tiny_bert_folder), "device": "cpu", "texts_per_batch": 9}
        edit(merchant.settings_file, privacy={"epsilon": 3.0, "population": 1234}, model=model)
        yield Shop(made, listening)


@contextlib.contextmanager
def serving(shop: Shop, answer: Callable[[socket.socket], Any]) -> Iterator[None]:
    """A server that treats each connection as `answer` does."""

    def serve() -> None:
        while True:
            try:
                connection = shop.listening.accept()[0]
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        shop.listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def tls(deployment: Deployment) -> Callable[[socket.socket], Any]:
    """An answer with a deployment's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(deployment.server.certificate, deployment.server.key)
    return lambda connection: context.wrap_socket(connection, server_side=True).close()


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


def test_a_relative_encoder_is_the_merchant_folders(
    shop: Shop, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bert_folder, shop.path / "bert")
    edit(shop.folder.settings_file, model={"encoder": "bert", "device": "cpu"})
    monkeypatch.chdir(tmp_path)
    assert dict(checks(shop.folder))["model"].startswith(f"{shop.path / 'bert'} on cpu")
    shutil.rmtree(shop.path / "bert")
    with pytest.raises(InputError, match=f"encoder: '{shop.path / 'bert'}' is no folder"):
        list(checks(shop.folder))


def refusal(shop: Shop) -> tuple[list[str], str]:
    """What was in order before the first thing that was not, and what is said of that."""
    looked = []
    with pytest.raises(InputError) as refused:
        for what, _ in checks(shop.folder):
            looked.append(what)
    assert "\n" not in str(refused.value)
    return looked, str(refused.value)


def release(number: int) -> Release:
    return Release("run", number, "dp-sgd", 4.0, 1.0, 1, 0.1, "user", 1e-5)


# What is in order


def test_every_finding_is_told_in_its_order(shop: Shop, tiny_bert_folder: Path) -> None:
    edit(shop.folder.settings_file, privacy={"period_epsilon": 1.5, "period_days": 30}, users={"choose": 0.3})
    (shop.path / OWN / SECRET_FILE).write_bytes(bytes(32))
    shop.ledger.append(release(1))
    spent = shop.ledger.spent().value
    with serving(shop, tls(shop.deployment)):
        found = dict(checks(shop.folder))
    assert list(found) == EVERYTHING
    assert found["policy"].startswith("epsilon 3 at delta 1e-05 for the life of the data, 1.5 in 30 days; unit user;")
    assert "1,234 users declared" in found["policy"]
    assert found["key"] == "node.key, mode 0600"
    assert found["disk"].endswith("GB free for state/")
    events = pd.read_csv(shop.folder.tables / "events.csv")
    ids = sorted(events[Columns.USER].unique())
    training = [ids[number] for number in roles_of(ids, UserShares(choose=0.3), bytes(32)).train]
    events = events[events[Columns.USER].isin(training)]
    assert 0 < len(training) < USERS
    assert found["data"] == f"{len(training)} users who train, {len(events)} events, {ITEMS} items; none of it is sent"
    told = f"1 releases, chain intact, epsilon {spent:.3f} of 3 spent; "
    head = shop.folder.head / "shop.head.json"
    assert found["ledger"] == f"{told}it has no head yet: it is kept from now on in {head}"
    shop.listening.close()
    assert dict(checks(shop.folder))["ledger"] == f"{told}its head agrees"
    assert found["model"] == f"{tiny_bert_folder} on cpu, 9 texts a batch; item texts cached; no adapter has been delivered yet"
    assert found["server"] == f"{shop.folder.settings.server.address}, certificate verified"  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_is_wrong_with_the_delivered_adapters_is_only_noted(shop: Shop) -> None:
    versions = Versions(shop.folder.model)
    said = {"format": FORMAT, "run": "run", "round": 1, "encoder_layers": 1, "encoder_rank": 2, "max_tokens": 16}
    name, _ = versions.keep({"centre": np.zeros(32, np.float32)}, {**said, "encoder_fingerprint": "0" * 24})
    versions.use(name)
    noted = dict(checks(shop.folder))["model"]
    assert f"adapters: 1 delivered, {name} ranks, and cannot: it was trained with another encoder" in noted
    (versions.folder / CURRENT).write_text("gone")
    assert "which one ranks cannot be told" in dict(checks(shop.folder))["model"]
    shutil.rmtree(versions.folder)
    versions.folder.touch()
    assert "deliveries will fail" in dict(checks(shop.folder))["model"]


def test_looking_releases_nothing_and_leaves_no_probe(shop: Shop) -> None:
    shop.ledger.append(release(1))
    before = shop.ledger.path.read_bytes()
    shop.listening.close()
    assert len(list(checks(shop.folder))) == len(list(checks(shop.folder))) == len(EVERYTHING)
    assert shop.ledger.path.read_bytes() == before
    assert [path.name for path in shop.folder.state.iterdir() if path != shop.folder.head] == ["privacy"]


def test_a_key_that_not_even_its_owner_may_write_is_fine(shop: Shop) -> None:
    shop.folder.key.chmod(0o400)
    shop.listening.close()
    assert "key" in dict(checks(shop.folder))


def test_a_state_folder_is_made(shop: Shop) -> None:
    shutil.rmtree(shop.folder.state)
    shop.listening.close()
    assert list(dict(checks(shop.folder))) == EVERYTHING


# The server


def test_a_server_that_is_down_is_only_noted(shop: Shop) -> None:
    shop.listening.close()
    assert dict(checks(shop.folder))["server"].endswith("does not answer yet (Connection refused); the node goes on trying")


def test_a_server_that_says_nothing_is_only_noted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CONNECT_TIMEOUT", 0.2)
    with serving(shop, lambda connection: connection.recv(1 << 16) and threading.Event().wait(0.6)):
        assert "does not answer yet" in dict(checks(shop.folder))["server"]


def test_a_host_that_does_not_exist_is_only_noted(shop: Shop) -> None:
    edit(shop.folder.settings_file, server={"address": "nowhere.invalid:8443"})
    assert "nowhere.invalid:8443 does not answer yet" in dict(checks(shop.folder))["server"]


def test_a_server_of_another_authority_is_refused(shop: Shop, tmp_path: Path) -> None:
    impostor = create(tmp_path / "impostor", shop.deployment.server.settings.address, ["shop"])
    with serving(shop, tls(impostor)):
        looked, said = refusal(shop)
    assert looked == EVERYTHING[:-1]
    assert "is not to be trusted" in said and "do not connect before you have it" in said
    assert "signed" in said and "ca.crt" in said


def test_a_server_with_a_certificate_for_another_host_is_refused(shop: Shop) -> None:
    edit(shop.folder.settings_file, server={"address": f"127.0.0.2:{shop.listening.getsockname()[1]}"})
    shop.listening.close()
    with socket.create_server(("127.0.0.2", int(shop.folder.settings.server.address.split(":")[1]))) as listening:  # type: ignore[union-attr]
        elsewhere = Shop(shop.deployment, listening)
        with serving(elsewhere, tls(shop.deployment)):
            assert "is not to be trusted" in refusal(elsewhere)[1]


@pytest.mark.parametrize("text", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_a_server_without_tls_is_refused(shop: Shop, text: bytes) -> None:
    with serving(shop, lambda connection: connection.recv(1 << 16) and connection.send(text)):
        looked, said = refusal(shop)
    assert looked == EVERYTHING[:-1] and "does not speak TLS" in said


@pytest.mark.parametrize("ca", [None, "", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_a_missing_or_broken_authority_is_refused(shop: Shop, ca: str | None) -> None:
    shop.folder.ca.unlink() if ca is None else shop.folder.ca.write_text(ca)
    looked, said = refusal(shop)
    assert looked == EVERYTHING[:-1] and "is no certificate" in said and "ca.crt" in said


# What is on this machine


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"epsilon": -1.0}, "privacy.epsilon"),
        ({"delta": 1.0}, "privacy.delta"),
        ({"population": 0}, "privacy.population"),
        ({"unit": "shop"}, "privacy.unit"),
        ({"noise": 0.1}, "privacy.noise"),
    ],
)
def test_a_bad_policy_is_named(shop: Shop, policy: dict[str, Any], named: str) -> None:
    edit(shop.path / "merchant.toml", privacy=policy)
    with pytest.raises(InputError, match=named):
        list(checks(shop.folder))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o700])
def test_a_key_that_others_may_read_is_refused(shop: Shop, mode: int) -> None:
    shop.folder.key.chmod(mode)
    looked, said = refusal(shop)
    assert looked == ["policy"]
    assert f"has mode {mode:04o}" in said and "chmod 600" in said


def test_a_delta_that_protects_nobody_is_refused(shop: Shop) -> None:
    edit(shop.folder.settings_file, privacy={"delta": 1e-4, "population": 1_500})
    looked, said = refusal(shop)
    assert looked == [] and "merchant.toml: delta 0.0001 times 1,500 declared users is 0.15, over 0.1" in said


def test_a_missing_key_is_refused(shop: Shop) -> None:
    shop.folder.key.unlink()
    looked, said = refusal(shop)
    assert looked == ["policy"] and "node.key" in said and "no such file" in said


def test_a_state_folder_that_cannot_be_written_is_refused(shop: Shop) -> None:
    shop.folder.state.rmdir()
    shop.folder.state.write_text("in the way")
    looked, said = refusal(shop)
    assert looked == ["policy", "key"] and "cannot be written" in said and str(shop.folder.state) in said


def test_too_little_space_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, int(LITTLE_SPACE) - 1))  # type: ignore[attr-defined]
    looked, said = refusal(shop)
    assert looked == ["policy", "key"] and "500 MB are free" in said and "at least 500 MB" in said


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda tables: (tables / "events.csv").unlink(), "there is no events.parquet or events.csv"),
        (lambda tables: (tables / "items.csv").write_text("item_id,title\n"), "the catalogue is empty"),
        (lambda tables: (tables / "events.csv").write_text("user_id,item_id,timestamp\nu,i1,soon\n"), "is not a timestamp"),
        (lambda tables: (tables / "events.csv").write_text("user_id,item_id,timestamp\nu,x,2026-01-01\n"), "is not in"),
    ],
    ids=["missing", "empty", "time", "item"],
)
def test_broken_data_are_refused(shop: Shop, breaking: Callable[[Path], Any], said: str) -> None:
    breaking(shop.folder.tables)
    looked, found = refusal(shop)
    assert looked == ["policy", "key", "disk"] and said in found


@pytest.mark.parametrize("change", ["edited", "removed", "moved", "garbage"])
def test_a_ledger_whose_chain_is_broken_is_refused(shop: Shop, change: str) -> None:
    for number in (1, 2, 3):
        shop.ledger.append(release(number))
    first, second, third = shop.ledger.path.read_text().splitlines(keepends=True)
    changed = {
        "edited": [first, second.replace('"noise_multiplier": 4.0', '"noise_multiplier": 40.0'), third],
        "removed": [first, third],
        "moved": [second, first, third],
        "garbage": [first, "x\n", third],
    }
    shop.ledger.path.write_text("".join(changed[change]))
    looked, said = refusal(shop)
    assert looked == ["policy", "key", "disk", "data"]
    assert f"line {1 if change == 'moved' else 2}" in said
    assert "is not a ledger line" in said if change == "garbage" else "chain is broken" in said


def test_a_ledger_that_another_process_holds_is_refused(shop: Shop) -> None:
    lock = shop.ledger.path.with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        looked, said = refusal(shop)
    finally:
        holder.communicate(timeout=10)
    assert looked == ["policy", "key", "disk", "data"] and "another process holds the ledger" in said
    shop.listening.close()
    assert list(dict(checks(shop.folder))) == EVERYTHING


@pytest.mark.parametrize("encoder", ["no-such/encoder", "/nowhere/encoder"])
def test_an_unknown_encoder_is_refused(shop: Shop, encoder: str) -> None:
    edit(shop.path / "merchant.toml", model={"encoder": encoder})
    looked, said = refusal(shop)
    assert looked == EVERYTHING[:5] and encoder in said


def test_an_encoder_on_a_device_that_is_not_there_is_refused(shop: Shop) -> None:
    edit(shop.path / "merchant.toml", model={"device": "abacus"})
    looked, said = refusal(shop)
    assert looked == EVERYTHING[:5] and "abacus" in said


# The command


def test_the_command_says_what_it_found_and_connects_to_nothing_more(fedrec: Fedrec, shop: Shop) -> None:
    with serving(shop, tls(shop.deployment)):
        answer = fedrec("merchant", "up", shop.path, "--check")
    assert (answer.status, answer.err) == (0, "")
    assert [line.split()[0] for line in answer.out.splitlines()] == EVERYTHING


def test_the_command_prints_json(fedrec: Fedrec, shop: Shop) -> None:
    with serving(shop, tls(shop.deployment)):
        answer = fedrec("merchant", "up", shop.path, "--check", "--json")
        assert list(json.loads(answer.out).values())[1:] == [finding for _, finding in checks(shop.folder)]
    assert answer.status == 0 and list(json.loads(answer.out)) == ["merchant", *EVERYTHING]
    assert json.loads(answer.out)["merchant"] == "shop"
    assert "customer" not in answer.out


def broken_policy(shop: Shop) -> str:
    edit(shop.path / "merchant.toml", privacy={"epsilon": 0.0})
    return "privacy.epsilon"


def open_key(shop: Shop) -> str:
    shop.folder.key.chmod(0o644)
    return "has mode 0644"


def broken_ledger(shop: Shop) -> str:
    shop.ledger.append(release(1))
    shop.ledger.path.write_text(shop.ledger.path.read_text().replace('"steps": 1', '"steps": 2'))
    return "chain is broken"


def no_encoder(shop: Shop) -> str:
    edit(shop.path / "merchant.toml", model={"encoder": "no-such/encoder"})
    return "no-such/encoder"


def no_tables(shop: Shop) -> str:
    (shop.folder.tables / "events.csv").unlink()
    return "there is no events.parquet or events.csv"


def no_address(shop: Shop) -> str:
    text = (shop.path / "merchant.toml").read_text()
    (shop.path / "merchant.toml").write_text(text.replace("[server]", "[elsewhere]"))
    return "elsewhere"


@pytest.mark.parametrize("breaking", [broken_policy, open_key, broken_ledger, no_encoder, no_tables, no_address])
def test_the_command_ends_with_status_2_and_one_line(fedrec: Fedrec, shop: Shop, breaking: Callable[[Shop], str]) -> None:
    said = breaking(shop)
    shop.listening.close()
    answer = fedrec("merchant", "up", shop.path, "--check", "--json")
    assert_refused(answer, said)


def test_the_command_refuses_a_server_that_it_does_not_trust(fedrec: Fedrec, shop: Shop, tmp_path: Path) -> None:
    impostor = create(tmp_path / "impostor", shop.deployment.server.settings.address, ["shop"])
    with serving(shop, tls(impostor)):
        assert_refused(fedrec("merchant", "up", shop.path, "--check", "--json"), "is not to be trusted")


def test_a_folder_that_is_not_a_merchants_is_refused(fedrec: Fedrec, shop: Shop) -> None:
    assert_refused(fedrec("merchant", "up", shop.deployment.server.path, "--check"), "is no merchant's folder")


def test_a_node_does_not_start_where_something_is_not_in_order(
    fedrec: Fedrec, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --check the node takes this process's place, after the last look and not before."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    shop.folder.key.chmod(0o644)
    answer = fedrec("merchant", "up", shop.path)
    assert (answer.status, started) == (2, []) and "has mode 0644" in answer.err
    shop.folder.key.chmod(0o600)
    shop.listening.close()
    assert fedrec("merchant", "up", shop.path).status == 0
    assert [command[1:3] for command in started] == [["-m", "clients.node"]]
