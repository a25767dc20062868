"""`fedrec deploy init`, `rotate` and `revoke`: who gets which file, and what the keys are good for."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication
from hypothesis import given
from hypothesis import strategies as st

from fedrec.cli import main
from fedrec.config import load_config
from fedrec.data import DataSource
from fedrec.data.split import split_source
from fedrec.deploy import create as made_by
from fedrec.deploy.certificates import check_private, key_fingerprint, server_identity
from fedrec.deploy.create import CAUTIOUS, check_names, create, revoke, rotate_authority, rotate_merchant, rotate_server
from fedrec.deploy.layout import Deployment, MerchantFolder, ServerFolder, is_merchant_name, parse_address
from fedrec.errors import InputError
from fedrec.merchant import ServerAddress

from .conftest import write_source
from .test_cli_errors import Answer, assert_refused

HOST = "fed.example.org"
TREE = {
    ".": 0o700,
    "authority": 0o700,
    "authority/ca.key": 0o600,
    "authority/ca.crt": 0o644,
    "server": 0o700,
    "server/server.toml": 0o644,
    "server/run.toml": 0o644,
    "server/fedrec-server.service": 0o644,
    "server/tls": 0o700,
    "server/tls/ca.crt": 0o644,
    "server/tls/server.crt": 0o644,
    "server/tls/server.key": 0o600,
    "server/nodes": 0o700,
    "server/nodes/a.pub": 0o644,
    "server/central": 0o700,
    "server/central/README.txt": 0o644,
    "server/state": 0o700,
    "server/runs": 0o700,
    "merchants": 0o755,
    "merchants/a": 0o700,
    "merchants/a/merchant.toml": 0o644,
    "merchants/a/roster.txt": 0o644,
    "merchants/a/fedrec-merchant.service": 0o644,
    "merchants/a/fedrec-serve.service": 0o644,
    "merchants/a/feedback": 0o700,
    "merchants/a/tls": 0o700,
    "merchants/a/tls/ca.crt": 0o644,
    "merchants/a/tls/node.key": 0o600,
    "merchants/a/tls/node.pub": 0o644,
    "merchants/a/data": 0o700,
    "merchants/a/data/README.txt": 0o644,
    "merchants/a/model": 0o700,
    "merchants/a/own": 0o700,
    "merchants/a/state": 0o700,
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merchants m0, m1 and m2, one of them with a stricter policy and its tables elsewhere."""
    folder = tmp_path_factory.mktemp("deploy")
    split_source(write_source(folder / "source"), folder / "federation", 0.2, {"epsilon": 4.0, "delta": 1e-5})
    strict = folder / "federation" / "merchants" / "m1"
    text = (strict / "merchant.toml").read_text().replace("epsilon = 4.0", "epsilon = 2.5\nperiod_epsilon = 1.0")
    (strict / "merchant.toml").write_text(text + '\n[data]\npath = "tables"\n\n[model]\ndevice = "cpu"\n')
    (strict / "tables").mkdir()
    for table in strict.glob("*.parquet"):
        table.rename(strict / "tables" / table.name)
    return folder / "federation"


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return create(tmp_path / "out", HOST, ["a", "b"])


@pytest.fixture
def fedrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fedrec", "deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return Answer(int(stopped.value.code or 0), *capsys.readouterr())

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shake_hands(certificate: Path, key: Path, ca: Path, host: str) -> None:
    """A TLS connection over the loopback; raises what the client finds wrong."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    def answer(listening: socket.socket) -> None:
        try:
            with listening.accept()[0] as raw, server.wrap_socket(raw, server_side=True) as wrapped:
                wrapped.sendall(b"hello")
        except OSError:
            pass  # the client hung up, and says why

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as raw,
                client.wrap_socket(raw, server_hostname=host) as wrapped,
            ):
                assert wrapped.recv(5) == b"hello"
        finally:
            thread.join(10)


def trusted(server: ServerFolder, ca: Path, host: str = HOST) -> bool:
    try:
        shake_hands(server.certificate, server.key, ca, host)
    except ssl.SSLCertVerificationError:
        return False
    return True


def flower_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """As `flower-supernode --auth-supernode-private-key` reads it."""
    pair = _try_setup_client_authentication(
        argparse.Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
    )
    assert pair is not None and uses_nist_ec_curve(pair[1])
    return pair[0]


def public_line(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


# What init makes


def test_the_tree_and_its_modes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        create(tmp_path / "out", HOST, ["a"])
    finally:
        os.umask(before)
    found = {
        path.relative_to(tmp_path / "out").as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    }
    assert found == TREE
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_private_key_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, tuple[int, int]] = {}
    real = os.open

    def spy(path: object, flags: int, mode: int = 0o777, **more: int) -> int:
        descriptor = real(path, flags, mode, **more)  # type: ignore[arg-type]
        if str(path).endswith(".key"):
            opened[Path(str(path)).name.rpartition(".")[0].rpartition(".")[2]] = (
                flags & os.O_EXCL,
                stat.S_IMODE(os.fstat(descriptor).st_mode),
            )
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    before = os.umask(0)
    try:
        out = create(tmp_path / "out", HOST, ["a"])
        expected = dict.fromkeys(["ca", "server", "node"], (os.O_EXCL, 0o600))
        assert opened == expected
        opened.clear()
        rotate_authority(out)
        rotate_merchant(out, "a")
        assert opened == expected
    finally:
        os.umask(before)
    for key in out.path.rglob("*.key"):
        check_private(key)


def test_a_merchants_secrets_are_in_its_own_folder_only(tmp_path: Path, federation: Path) -> None:
    out = create(tmp_path / "out", HOST, None, federation)
    everything = contents(out.path)
    for merchant in out.merchants():
        own, name = f"merchants/{merchant.path.name}/", merchant.path.name
        # All such keys begin alike, and may end in the same padding.
        lines = merchant.key.read_text().split("\n")[2:-3]
        assert len(lines) > 2
        number = flower_key(merchant.key).private_numbers().private_value.to_bytes(48, "big")
        secrets = [number, *(line.encode() for line in lines), str(federation / "merchants" / name).encode()]
        for path, content in everything.items():
            assert path.startswith(own) or not any(secret in content for secret in secrets), path
            if path.startswith(own):
                others = [f"merchants/{other.path.name}" for other in out.merchants() if other != merchant]
                assert not any(other.encode() in content for other in others), path
    private = [path for path, content in everything.items() if b"PRIVATE KEY" in content]
    assert sorted(private) == [
        "authority/ca.key",
        *(f"merchants/m{i}/tls/node.key" for i in range(3)),
        "server/tls/server.key",
    ]


def test_merchants_without_a_federation_get_a_cautious_policy(deployment: Deployment) -> None:
    merchant = MerchantFolder.open(deployment.path / "merchants" / "a")
    assert merchant.settings.name == "a"
    assert merchant.settings.privacy == CAUTIOUS
    assert merchant.settings.server == ServerAddress(address=f"{HOST}:8443")
    assert merchant.tables == merchant.path / "data"
    text = merchant.settings_file.read_text()
    assert "# SET THIS" in text
    # Every key is explained on the line before it.
    lines = text.splitlines()
    assert all(lines[i - 1].startswith("# ") for i, line in enumerate(lines) if re.match(r"\w+ = ", line))


def test_a_federation_gives_policies_and_tables(tmp_path: Path, federation: Path) -> None:
    out = create(tmp_path / "out", "10.1.2.3:9000", ["m1", "m0"], federation)
    assert [merchant.path.name for merchant in out.merchants()] == ["m0", "m1"]
    strict = out.merchant("m1")
    assert (strict.settings.privacy.epsilon, strict.settings.privacy.period_epsilon) == (2.5, 1.0)
    assert strict.settings.model.device == "cpu"
    assert strict.tables == (federation / "merchants" / "m1" / "tables").resolve()
    assert out.merchant("m0").tables == (federation / "merchants" / "m0").resolve()
    assert "SET THIS" not in strict.settings_file.read_text()
    assert not (strict.path / "data").exists()
    assert contents(out.server.central) == contents(federation / "central")
    run = load_config(out.server.run_settings)
    assert (run.start_merchants, run.min_merchants, run.epsilon, run.delta) == (2, 2, 1.25, 1e-5)


def test_a_database_is_found_from_the_new_folder(tmp_path: Path, federation: Path) -> None:
    copy = shutil.copytree(federation, tmp_path / "copy")
    file = copy / "merchants" / "m0" / "merchant.toml"
    table = '\n[data]\nurl = "sqlite:///shop.db"\nitems = "select 1"\nevents = "select 2"\npassword_file = "word"\n'
    file.write_text(file.read_text() + table)
    out = create(tmp_path / "out", HOST, ["m0"], copy)
    assert out.merchant("m0").settings.data == DataSource(
        url=f"sqlite:///{file.parent}/shop.db", items="select 1", events="select 2", password_file=file.parent / "word"
    )


@pytest.mark.parametrize(
    ("server", "address", "listen", "control"),
    [
        ("localhost", "localhost:8443", "127.0.0.1", 8444),
        ("127.0.0.1:9000", "127.0.0.1:9000", "127.0.0.1", 9001),
        ("Fed.Example.org", "fed.example.org:8443", "0.0.0.0", 8444),
        ("[2001:DB8:0::1]:65535", "[2001:db8::1]:65535", "::", 65534),
        ("[::1]", "[::1]:8443", "::1", 8444),
    ],
)
def test_the_server_listens_where_it_is_reached(tmp_path: Path, server: str, address: str, listen: str, control: int) -> None:
    out = create(tmp_path / "out", server, ["a"])
    settings = ServerFolder.open(out.server.path).settings
    assert (settings.address, settings.listen, settings.control_port) == (address, listen, control)
    assert settings.port == settings.public.port
    assert settings.public.host in server_identity(out.server.certificate).names
    assert trusted(out.server, out.merchant("a").ca, settings.public.host)


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "deep" / "out").mkdir(parents=True)
    create(tmp_path / "deep" / "out", HOST, ["a"])
    create(tmp_path / "new" / "out", HOST, ["a"])
    Deployment.open(tmp_path / "new" / "out")


# What the certificates and keys are good for


def test_the_server_is_trusted_by_its_own_merchants_under_its_own_names(deployment: Deployment, tmp_path: Path) -> None:
    ca, other = deployment.merchant("a").ca, create(tmp_path / "other", HOST, ["a"])
    assert all(trusted(deployment.server, ca, host) for host in (HOST, "localhost", "127.0.0.1", "::1"))
    assert not trusted(deployment.server, other.merchant("a").ca)
    assert not trusted(deployment.server, ca, "elsewhere.example.org")
    assert not trusted(deployment.server, ca, "10.0.0.1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_server_cannot_sign_for_others(deployment: Deployment) -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-in", deployment.server.certificate, "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    assert "CA:FALSE" in shown and "TLS Web Server Authentication" in shown
    shown = subprocess.run(
        ["openssl", "x509", "-in", deployment.server.ca, "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    assert "CA:TRUE, pathlen:0" in shown and "Certificate Sign, CRL Sign" in shown and "fedrec out authority" in shown


def test_the_certificate_holds_as_long_as_asked(tmp_path: Path) -> None:
    identity = server_identity(create(tmp_path / "out", HOST, ["a"], days=10).server.certificate)
    assert abs(identity.not_after - datetime.now(UTC) - timedelta(days=10)) < timedelta(minutes=5)
    assert identity.names == (HOST, "localhost", "127.0.0.1", "::1")
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", identity.fingerprint)


def test_a_merchants_key_is_one_that_flower_takes(deployment: Deployment) -> None:
    registered = deployment.server.public_keys()
    assert list(registered) == ["a", "b"]
    for merchant in deployment.merchants():
        name, key = merchant.path.name, flower_key(merchant.key)
        assert isinstance(key.curve, ec.SECP384R1)
        assert registered[name] == public_line(key)
        assert merchant.public_key.read_bytes() == deployment.server.public_key(name).read_bytes()
        assert merchant.public_key.read_text().endswith(f" {name}\n")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_merchant_may_make_its_own_key(deployment: Deployment, tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-f", key, "-N", ""], check=True)
    shutil.copy(tmp_path / "node.key.pub", deployment.server.public_key("c"))
    check_private(key)
    line = deployment.server.public_keys()["c"]
    assert line == public_line(flower_key(key))
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True).stdout
    assert key_fingerprint(line) == shown.split()[1]


# Rotation


def test_a_new_server_certificate(deployment: Deployment) -> None:
    server, ca = deployment.server, deployment.merchant("a").ca
    before = contents(deployment.path)
    change = rotate_server(deployment, days=20)
    after = contents(deployment.path)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"server/tls/server.key", "server/tls/server.crt"} and set(after) == set(before)
    assert {path.relative_to(deployment.path).as_posix() for path in change.replaced} == changed
    assert change.restart == ("server",) and not change.notes
    assert trusted(server, ca)
    server.key.unlink()
    server.key.write_bytes(before["server/tls/server.key"])
    with pytest.raises(ssl.SSLError, match=r"(?i)mismatch"):
        shake_hands(server.certificate, server.key, ca, HOST)


def test_another_host(deployment: Deployment) -> None:
    change = rotate_server(deployment, "localhost")
    settings = ServerFolder.open(deployment.server.path).settings
    assert (settings.address, settings.listen, settings.port) == ("localhost:8443", "127.0.0.1", 8443)
    assert deployment.server.settings_file in change.replaced and "localhost:8443" in change.notes[0]
    assert not trusted(deployment.server, deployment.server.ca)
    assert trusted(deployment.server, deployment.server.ca, "localhost")
    assert rotate_server(Deployment.open(deployment.path), "localhost").notes == ()


def test_an_interface_chosen_by_hand_stays(deployment: Deployment) -> None:
    file = deployment.server.settings_file
    file.write_text(file.read_text().replace("0.0.0.0", "10.0.0.7").replace("control_port = 8444", "control_port = 9"))
    rotate_server(deployment, "localhost")
    settings = ServerFolder.open(deployment.server.path).settings
    assert (settings.listen, settings.control_port) == ("10.0.0.7", 9)


def test_a_new_key_for_a_merchant(deployment: Deployment) -> None:
    before = contents(deployment.path)
    old = flower_key(deployment.merchant("a").key)
    change = rotate_merchant(deployment, "a")
    after = contents(deployment.path)
    changed = {path for path in before if before[path] != after[path]}
    rosters = {"merchants/a/roster.txt", "merchants/b/roster.txt"}
    assert changed == {"merchants/a/tls/node.key", "merchants/a/tls/node.pub", "server/nodes/a.pub"} | rosters
    assert set(after) == set(before)
    new = flower_key(deployment.merchant("a").key)
    keys = deployment.server.public_keys()
    assert public_line(new) == keys["a"] != public_line(old) and public_line(old) not in keys.values()
    assert change.restart == ("a",) and set(change.hand_over) == {"server", "a", "b"}


def test_a_new_authority(deployment: Deployment) -> None:
    server = deployment.server
    old = {path: path.read_bytes() for path in (server.ca, server.certificate, server.key, deployment.authority.key)}
    shutil.rmtree(deployment.merchant("b").path)
    change = rotate_authority(deployment)
    assert all(path.read_bytes() != content for path, content in old.items())
    ca = deployment.authority.certificate.read_bytes()
    assert server.ca.read_bytes() == deployment.merchant("a").ca.read_bytes() == ca
    assert trusted(server, deployment.merchant("a").ca)
    stale = deployment.path / "stale.crt"
    stale.write_bytes(old[server.ca])
    assert not trusted(server, stale)
    server.certificate.write_bytes(old[server.certificate])
    server.key.write_bytes(old[server.key])
    assert not trusted(server, deployment.merchant("a").ca)
    assert change.restart == ("server", "a", "b")
    assert change.hand_over["b"] == [deployment.authority.certificate]


@pytest.mark.parametrize("failing", ["_write", "os.replace"])
def test_a_rotation_that_cannot_be_written_leaves_the_old_keys(
    failing: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, calls = contents(deployment.path), made_by._write, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(path, content)

    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    if failing == "_write":
        monkeypatch.setattr(made_by, "_write", full)
    else:
        monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(InputError, match="cannot be read or written"):
        rotate_authority(deployment)
    assert contents(deployment.path) == before


# Revocation


@pytest.mark.parametrize("part", [".", "server"])
def test_a_revoked_key_is_kept_and_counts_no_more(part: str, deployment: Deployment) -> None:
    line = deployment.server.public_key("a").read_bytes()
    kept = revoke(deployment.path / part, "a")
    assert re.fullmatch(r"a-\d{8}T\d{12}Z\.pub", kept.name) and kept.parent == deployment.server.revoked
    assert kept.read_bytes() == line
    assert list(deployment.server.public_keys()) == ["b"]
    with pytest.raises(InputError, match="'a'; expected one of b"):
        revoke(deployment.path / part, "a")
    kept.rename(deployment.server.public_key("a"))
    revoke(deployment.path, "a")
    revoke(deployment.path, "b")
    with pytest.raises(InputError, match="there is none"):
        revoke(deployment.path, "b")


@pytest.mark.parametrize("name", ["../server", "", ".", "nodes/a", "A"])
def test_only_a_registered_name_can_be_revoked(name: str, deployment: Deployment) -> None:
    before = contents(deployment.path)
    with pytest.raises(InputError, match="expected one of a, b"):
        revoke(deployment.path, name)
    assert contents(deployment.path) == before


def test_a_key_that_cannot_be_read_can_be_revoked(deployment: Deployment) -> None:
    deployment.server.public_key("a").write_text("nonsense")
    revoke(deployment.path, "a")
    assert list(deployment.server.public_keys()) == ["b"]


# What is refused, on the command line

BAD_INITS = {
    "a folder that is not empty": (["full", "--merchants", "a"], ["full", "already there"]),
    "a file": (["full/precious", "--merchants", "a"], ["precious", "already there"]),
    "a folder below a file": (["full/precious/out", "--merchants", "a"], ["precious", "cannot be read or written"]),
    "the current folder": ([".", "--merchants", "a"], ["current folder"]),
    "no merchant": (["out"], ["--merchants", "no merchant is named"]),
    "an empty name": (["out", "--merchants", "a,,b"], ["--merchants", "found ''"]),
    "a name that leads elsewhere": (["out", "--merchants", "../a"], ["'../a'", "letters, digits"]),
    "a long name": (["out", "--merchants", "x" * 65], ["up to 64"]),
    "a name twice": (["out", "--merchants", "a,b,a"], ["'a' is there twice"]),
    "a name twice but for its case": (["out", "--merchants", "shop,Shop"], ["'Shop' differs from 'shop' only in case"]),
    "an unknown merchant": (["out", "--merchants", "m0,m9", "--from", "FEDERATION"], ["'m9'", "some of m0, m1, m2"]),
    "no federation": (["out", "--from", "full"], ["full", "merchants/", "a federation folder"]),
    "a federation without central users": (["out", "--from", "HALF"], ["central", "events"]),
    "a certificate for no day": (["out", "--merchants", "a", "--days", "0"], ["--days"]),
    "a certificate that outlives its authority": (["out", "--merchants", "a", "--days", "4000"], ["--days", "4000", "1 to 3651"]),
    "a path that would break a unit file": (["o\nut", "--merchants", "a"], ["OUT", "printable"]),
    "a host with a space": (["out", "--merchants", "a", "--server", "a b"], ["--server", "'a b'", "DNS name"]),
    "a bare IPv6 host": (["out", "--merchants", "a", "--server", "::1"], ["--server", "in brackets"]),
    "every interface as a host": (["out", "--merchants", "a", "--server", "0.0.0.0"], ["0.0.0.0", "merchants connect to"]),
    "a port out of range": (["out", "--merchants", "a", "--server", "localhost:70000"], ["--server", "70000", "1 to 65535"]),
}


@pytest.mark.parametrize("case", BAD_INITS)
def test_a_bad_init_leaves_nothing(case: str, fedrec: Callable[..., Answer], federation: Path, tmp_path: Path) -> None:
    arguments, named = BAD_INITS[case]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("keep")
    (tmp_path / "sub").mkdir()
    if "HALF" in arguments:
        half = shutil.copytree(federation, tmp_path / "sub" / "half")
        (half / "central" / "events.parquet").unlink()
    if arguments[0] == ".":
        os.chdir(tmp_path / "sub")
    places = {"FEDERATION": federation, "HALF": tmp_path / "sub" / "half"}
    server = [] if "--server" in arguments else ["--server", "localhost"]
    assert_refused(fedrec("init", *(places.get(part, part) for part in arguments), *server), *named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "sub"]
    assert contents(tmp_path / "full") == {"precious": b"keep"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_init_that_fails_in_the_middle_leaves_nothing(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise failure

    monkeypatch.setattr(made_by, "merchant_unit", fail)
    with pytest.raises(InputError if isinstance(failure, OSError) else type(failure)):
        create(tmp_path / "out", HOST, ["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_federation_with_a_name_twice_is_refused(federation: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(federation, tmp_path / "copy")
    shutil.copytree(copy / "merchants" / "m0", copy / "merchants" / "other")
    with pytest.raises(InputError, match="'m0' is there twice"):
        create(tmp_path / "out", HOST, None, copy)


BAD_CHANGES = {
    "two at once": (["rotate", "out", "--server", "--authority"], ["one of --server, --merchant, --authority"]),
    "days for a key": (["rotate", "out", "--merchant", "a", "--days", "3"], ["--merchant", "--days"]),
    "a host for a key": (["rotate", "out", "--merchant", "a", "--server-host", "b"], ["--merchant", "--server-host"]),
    "an unknown merchant": (["rotate", "out", "--merchant", "z"], ["'z'", "one of a, b", "nodes/<name>.pub"]),
    "a merchant that has its folder": (["rotate", "out", "--merchant", "b"], ["merchants/b", "ssh-keygen", "nodes/b.pub"]),
    "another port": (["rotate", "out", "--server-host", "b:1"], ["--server-host", "port 1", "server.toml"]),
    "a bad host": (["rotate", "out", "--server-host", "b_"], ["--server-host", "'b_'"]),
    "more days than the authority has": (["rotate", "out", "--days", "4000"], ["--days", "--authority"]),
    "no deployment": (["rotate", "none"], ["none", "fedrec deploy init"]),
    "a server folder": (["rotate", "out/server"], ["server", "fedrec deploy init"]),
    "an unknown name to revoke": (["revoke", "out", "z"], ["'z'", "one of a, b"]),
    "no server to revoke from": (["revoke", "out/merchants/a", "a"], ["merchants/a", "no server folder"]),
}


@pytest.mark.parametrize("case", BAD_CHANGES)
def test_a_bad_change_changes_nothing(case: str, fedrec: Callable[..., Answer], deployment: Deployment) -> None:
    arguments, named = BAD_CHANGES[case]
    shutil.rmtree(deployment.merchant("b").path)
    before = contents(deployment.path)
    assert_refused(fedrec(*arguments), *named)
    assert contents(deployment.path) == before


@pytest.mark.parametrize("fault", ["open to others", "missing", "nonsense", "another", "no authority"])
def test_an_authority_that_is_not_what_it_was_signs_nothing(fault: str, deployment: Deployment, tmp_path: Path) -> None:
    authority = deployment.authority
    said = {
        "open to others": ("mode 0644", lambda: authority.key.chmod(0o644)),
        "missing": ("no such file", authority.key.unlink),
        "nonsense": ("private key", lambda: authority.key.write_text("nonsense")),
        "another": ("not the key of", lambda: authority.key.write_bytes(other.authority.key.read_bytes())),
        "no authority": ("self-signed", lambda: shutil.copy(deployment.server.certificate, authority.certificate)),
    }
    other = create(tmp_path / "other", HOST, ["a"])
    message, spoil = said[fault]
    spoil()
    before = contents(deployment.path)
    with pytest.raises(InputError, match=message):
        rotate_server(deployment)
    assert contents(deployment.path) == before


# What is refused, in a folder that is used

BAD_SETTINGS = {
    "an unknown key": ("\nspeed = 1\n", "speed: extra inputs"),
    "no TOML": ("\n= =\n", "not valid TOML"),
    "a port that is none": (("port = 8443", "port = 0"), "port: input should be greater"),
    "one port for two": (("control_port = 8444", "control_port = 8443"), "control_port is the same as port"),
    "an interface that is none": (("0.0.0.0", "everywhere"), "listen: found 'everywhere'"),
    "an address that is none": ((HOST, "a b"), "address: found host 'a b'"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_server_file_is_refused(case: str, deployment: Deployment) -> None:
    change, message = BAD_SETTINGS[case]
    file = deployment.server.settings_file
    text = file.read_text()
    file.write_text(text + change if isinstance(change, str) else text.replace(*change))
    with pytest.raises(InputError, match=message) as refused:
        ServerFolder.open(deployment.server.path)
    assert str(file) in str(refused.value)


def test_a_server_file_may_begin_with_a_byte_order_mark(deployment: Deployment) -> None:
    file, port = deployment.server.settings_file, deployment.server.settings.port
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert ServerFolder.open(deployment.server.path).settings.port == port


@pytest.mark.parametrize("kind", ["server", "merchants/a", "missing", "."])
def test_a_folder_is_what_it_is(kind: str, deployment: Deployment) -> None:
    path = deployment.path / kind
    for opened, own in ((ServerFolder, "server"), (MerchantFolder, "merchants/a"), (Deployment, ".")):
        if kind == own:
            assert opened.open(path) == opened(path.resolve())
        else:
            with pytest.raises(InputError, match="fedrec deploy init"):
                opened.open(path)


def test_a_merchant_needs_a_server(deployment: Deployment) -> None:
    file = deployment.merchant("a").settings_file
    file.write_text(file.read_text().partition("[server]")[0])
    with pytest.raises(InputError, match=r"\[server\] is missing"):
        MerchantFolder.open(file.parent)


def other_key() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


BAD_KEYS: dict[str, tuple[Callable[[Deployment], bytes], str, str]] = {
    "nonsense": (lambda _: b"nonsense", "c.pub", "no elliptic-curve public key"),
    "nothing": (lambda _: b"", "c.pub", "no elliptic-curve public key"),
    "a private key": (lambda out: out.merchant("a").key.read_bytes(), "c.pub", "no elliptic-curve public key"),
    "another kind of key": (lambda _: other_key(), "c.pub", "no elliptic-curve public key"),
    "another's key": (lambda out: out.merchant("a").public_key.read_bytes(), "c.pub", "is the key of a too"),
    "a key without a name": (lambda out: out.merchant("a").public_key.read_bytes(), "c d.pub", "'c d' is no merchant's name"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_bad_public_key_is_named(case: str, deployment: Deployment) -> None:
    content, name, message = BAD_KEYS[case]
    path = deployment.server.nodes / name
    path.write_bytes(content(deployment))
    with pytest.raises(InputError, match=message) as refused:
        deployment.server.public_keys()
    assert str(path) in str(refused.value) and "PRIVATE" not in str(refused.value)


def test_a_key_that_is_being_written_is_not_there_yet(deployment: Deployment) -> None:
    (deployment.server.nodes / ".1234.c.pub").write_text("ecdsa-sha2-ni")
    assert list(deployment.server.public_keys()) == ["a", "b"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o700, 0o200, 0o604])
def test_a_private_key_that_others_can_read_is_refused(mode: int, deployment: Deployment) -> None:
    key = deployment.merchant("a").key
    key.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600"):
        check_private(key)
    for good in (0o600, 0o400):
        key.chmod(good)
        check_private(key)


# systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["out", "an \"odd\" 100%f $HOME \\n 'place'"])
def test_the_units_are_ones_that_systemd_takes(name: str, tmp_path: Path) -> None:
    out = create(tmp_path / name, HOST, ["a"])
    shop = out.merchant("a")
    keys = f' --key-file "{shop.path}/state/serve-keys.toml"'
    for unit, folder, start, writable in (
        (out.server.unit, out.server.path, 'up "{}"', ("state", "runs")),
        (shop.unit, shop.path, 'up "{}"', ("state", "model", "own")),
        (shop.serve_unit, shop.path, 'serve "{}"' + keys, ("state", "model", "own", "feedback")),
    ):
        # A copy, because systemd-analyze wants a plain path.
        plain = Path(shutil.copy(unit, tmp_path))
        done = subprocess.run(["systemd-analyze", "verify", plain], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and plain.name not in done.stderr, done.stderr
        if name == "out":
            text = unit.read_text()
            assert start.format(folder) + "\n" in text and "%" not in text
            assert "ReadWritePaths=" + " ".join(f'"{folder}/{name}"' for name in writable) + "\n" in text


# On the command line


def test_the_commands_answer_in_json(fedrec: Callable[..., Answer], federation: Path, tmp_path: Path) -> None:
    made = fedrec("init", "out", "--from", federation, "--server", HOST, "--json")
    assert made.status == 0, made
    facts = json.loads(made.out)
    assert facts["path"] == str(tmp_path / "out") and facts["address"] == f"{HOST}:8443"
    assert [merchant["name"] for merchant in facts["merchants"]] == ["m0", "m1", "m2"]
    assert facts["server"]["certificate"]["names"][0] == HOST
    rotated = json.loads(fedrec("rotate", "out", "--json").out)
    assert rotated["restart"] == ["server"] and rotated["certificate"] != facts["server"]["certificate"]
    assert json.loads(fedrec("rotate", "out", "--authority", "--json").out)["restart"] == ["server", "m0", "m1", "m2"]
    assert json.loads(fedrec("rotate", "out", "--merchant", "m1", "--json").out)["restart"] == ["m1"]
    revoked = json.loads(fedrec("revoke", "out", "m2", "--json").out)
    assert revoked["merchant"] == "m2" and Path(revoked["moved_to"]).is_file()


def test_the_commands_say_what_goes_where(fedrec: Callable[..., Answer], tmp_path: Path) -> None:
    made = fedrec("init", "out", "--merchants", "a, b", "--server", "localhost")
    assert made.status == 0 and "population" in made.out and "nobody else" in made.out
    rotated = fedrec("rotate", "out", "--authority", "--server-host", HOST)
    assert "a must get merchants/a/tls/ca.crt" in rotated.out and "restart: server, a, b" in rotated.out
    assert f'address = "{HOST}:8443"' in rotated.out
    assert "no more" in fedrec("revoke", "out/server", "b").out
    assert not any("PRIVATE" in text for text in (made.out, rotated.out))


# Names and hosts

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
IPS = st.ip_addresses().filter(lambda ip: not (ip.is_unspecified or ip.is_multicast or getattr(ip, "ipv4_mapped", None)))


@given(st.one_of(st.text(), st.from_regex(NAME, fullmatch=True), st.from_regex(NAME)))
def test_a_name_is_good_if_merchant_toml_takes_it(name: str) -> None:
    good = re.fullmatch(NAME, name) is not None
    assert is_merchant_name(name) == good
    if good:
        assert check_names([name]) == [name]
    else:
        with pytest.raises(InputError):
            check_names([name])


@given(st.lists(LABELS, min_size=1, max_size=5), st.integers(1, 65535))
def test_a_dns_name_is_read_as_it_is_written(labels: list[str], port: int) -> None:
    host = ".".join(labels)
    assert str(parse_address(f"{host}:{port}")) == f"{host}:{port}"
    assert parse_address(host.upper(), port) == parse_address(f"{host}:{port}")


@given(IPS, st.integers(1, 65535))
def test_an_ip_address_is_read_as_it_is_written(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    written = f"[{ip.exploded}]" if ip.version == 6 else str(ip)
    address = parse_address(f"{written}:{port}")
    assert (ipaddress.ip_address(address.host), address.port) == (ip, port)
    assert parse_address(str(address)) == address
    ServerAddress(address=str(address))


@given(st.one_of(st.text(max_size=20), st.text("ab1.:[]-_%/ \n", max_size=20)))
def test_an_address_is_read_whole_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except InputError:
        return
    assert parse_address(str(address)) == address
    ServerAddress(address=str(address))
    assert text.lower().startswith(address.host[:1]) or text.startswith("[")


BAD_HOSTS = [
    *("", "a_b", "-a", "a-", "a..b", "a.", ".a", "a b", "a/b", "é", "x" * 64, "a\n", "user@a", "https://a"),
    *("a:", "a:0", "a:65536", "a:1:2", "1.2.3", "999.1.1.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "[::1", "[1.2.3.4]", "[::]", "[::ffff:1.2.3.4]", "[fe80::1%eth0]"),
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_what_merchants_could_not_connect_to_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="--server: found"):
        parse_address(host)


def test_every_key_of_the_settings_is_explained(deployment: Deployment) -> None:
    lines = deployment.server.settings_file.read_text().splitlines()
    assert all(lines[i - 1].startswith("# ") for i, line in enumerate(lines) if " = " in line and not line.startswith("#"))


def test_the_two_halves_of_a_pair_match_as_ssh_sees_them(deployment: Deployment) -> None:
    merchant = deployment.merchant("b")
    private = load_ssh_private_key(merchant.key.read_bytes(), None)
    assert private.public_key() == load_ssh_public_key(merchant.public_key.read_bytes())
