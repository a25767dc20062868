"""`fedrec deploy init`, `rotate` and `revoke`: make a deployment's folders, and change keys in them.

Private keys have mode 0600 from their first byte, and a folder or a file is either whole
or not there.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from fedrec.config import load_config
from fedrec.data import merchant_folders
from fedrec.data.source import DataSource
from fedrec.data.tables import find_table
from fedrec.deploy.certificates import DAYS, issue_server, new_authority, new_node_key, read_authority
from fedrec.deploy.layout import (
    Address,
    Deployment,
    MerchantFolder,
    ServerFile,
    ServerFolder,
    is_merchant_name,
    parse_address,
)
from fedrec.deploy.roster import own_roster, roster_of
from fedrec.deploy.units import CENTRAL_README, DATA_README, merchant_toml, merchant_unit, serve_unit, server_toml, server_unit
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE, MerchantFile, ServerAddress, read_merchant_file
from fedrec.privacy import Policy

__all__ = ["CAUTIOUS", "Change", "check_names", "create", "revoke", "rotate_authority", "rotate_merchant", "rotate_server"]

CAUTIOUS = Policy(epsilon=8.0, delta=1e-5, population=1000)
"""The policy of a merchant that has not written one yet."""


@dataclass(frozen=True)
class Change:
    """What a rotation did and what people must do now.

    Attributes:
        replaced: the files that are new.
        hand_over: whose machine (`server` or a merchant's name) must get which of them.
        restart: whose processes must be restarted, in this order.
        notes: what else must be done by hand.
    """

    replaced: tuple[Path, ...]
    hand_over: dict[str, list[Path]]
    restart: tuple[str, ...]
    notes: tuple[str, ...] = ()


def create(
    out: Path, server: str, names: Sequence[str] | None = None, federation: Path | None = None, days: int = DAYS
) -> Deployment:
    """Make a deployment: an authority, a server folder, and a folder for each merchant.

    Args:
        out: folder to make; it must not exist or be empty.
        server: `HOST[:PORT]` that merchants will connect to.
        names: the merchants; with `federation`, some of those.
        federation: a federation folder, for the merchants' policies, the paths of their
            tables, and the central users.
        days: how long the server's certificate holds.

    Raises:
        InputError: a bad name or address, a federation that cannot be read, or `out` is
            not empty. Nothing is left behind.
    """
    out, address = out.resolve(), parse_address(server)
    with _disk(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError("is already there", where=str(out), hint="give a new folder, or remove it first")
    if out == Path.cwd():
        raise InputError("is the current folder, which cannot be replaced", where=str(out), hint="give a new folder's name")
    if federation is None:
        merchants = [_new_merchant(name, address) for name in check_names(names or [])]
    else:
        merchants = _members(federation, names, address)
    with _disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _build(building, Deployment(out), address, merchants, federation, days)
            building.rename(out)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return Deployment(out)


def check_names(names: Sequence[str]) -> list[str]:
    """The merchants' names, each good and none twice.

    Raises:
        InputError: naming the one that is not.
    """
    if not names:
        raise InputError("no merchant is named", where="--merchants", expected="names with commas between them")
    seen: dict[str, str] = {}
    for name in names:
        if not is_merchant_name(name):
            expected = "up to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"
            raise InputError(f"found {name!r}", where="--merchants", expected=expected)
        # Some file systems would put both into the same folder.
        if name.casefold() in seen:
            other = seen[name.casefold()]
            what = "is there twice" if other == name else f"differs from {other!r} only in case"
            raise InputError(f"{name!r} {what}", where="--merchants")
        seen[name.casefold()] = name
    return list(names)


def rotate_server(deployment: Deployment, host: str | None = None, days: int = DAYS) -> Change:
    """A new key and certificate for the server, under the same authority.

    Args:
        host: another host than the one in `server.toml`, which then changes too.

    Raises:
        InputError: a bad host, or the authority cannot be read.
    """
    server, authority = deployment.server, deployment.authority
    settings, notes = _moved(deployment, host)
    pair = issue_server(read_authority(authority.key, authority.certificate), settings.public.host, days)
    files = {server.key: pair.private, server.certificate: pair.public}
    if settings != server.settings:
        files[server.settings_file] = server_toml(settings).encode()
    _replace(files)
    return Change(tuple(files), {"server": list(files)}, ("server",), notes)


def rotate_merchant(deployment: Deployment, name: str) -> Change:
    """A new key pair for one merchant, in its folder, at the server, and in every merchant's roster that is here.

    Raises:
        InputError: the server knows no such merchant, its folder has been handed over, or another's
            registered key is no good.
    """
    server, merchant = deployment.server, deployment.merchant(name)
    if name not in server.registered():
        hint = f"to admit a merchant put its public key at {server.nodes}/<name>.pub"
        raise InputError(f"found {name!r}", where="--merchant", expected=_known(server), hint=hint)
    if not merchant.settings_file.is_file():
        raise InputError(
            f"{name}'s folder is not here any more",
            where=str(merchant.path),
            hint="let the merchant run `ssh-keygen -t ecdsa -b 384 -f node.key -N ''`, keep node.key in its tls/, "
            f"and send node.key.pub, which goes to {server.public_key(name)}",
        )
    keys, faults = server.read_keys()
    for other in faults.keys() - {name}:
        raise faults[other]
    pair = new_node_key(name)
    roster = roster_of(keys | {name: b" ".join(pair.public.split()[:2])}).text().encode()
    theirs = {folder.path.name: folder.roster for folder in deployment.merchants()}
    files = {merchant.key: pair.private, merchant.public_key: pair.public, **dict.fromkeys(theirs.values(), roster)}
    # The public key last: until it is there the old private key is the one that is registered.
    files[server.public_key(name)] = pair.public
    _replace(files)
    hand_over = {"server": [server.public_key(name)], name: [merchant.key, merchant.public_key, merchant.roster]}
    hand_over |= {other: [theirs.get(other, merchant.roster)] for other in keys if other != name}
    note = (
        "secure aggregation: every merchant needs the new roster.txt, without a restart; merchants compare its digest "
        "among each other (`fedrec merchant roster`) and do not take the server's word for it"
    )
    return Change(tuple(files), hand_over, (name,), (note,))


def rotate_authority(deployment: Deployment, host: str | None = None, days: int = DAYS) -> Change:
    """A new authority, a new server certificate, and the authority's certificate for everyone.

    Raises:
        InputError: a bad host.
    """
    server, authority = deployment.server, deployment.authority
    settings, notes = _moved(deployment, host)
    ca = new_authority(_public_name(deployment.path))
    pair = issue_server(ca, settings.public.host, days)
    own = {server.key: pair.private, server.certificate: pair.public, server.ca: ca.public}
    if settings != server.settings:
        own[server.settings_file] = server_toml(settings).encode()
    theirs = {folder.path.name: folder.ca for folder in deployment.merchants()}
    files = {authority.key: ca.private, authority.certificate: ca.public, **own, **dict.fromkeys(theirs.values(), ca.public)}
    _replace(files)
    everyone = server.registered()
    hand_over = {"server": list(own)} | {name: [theirs.get(name, authority.certificate)] for name in everyone}
    return Change(tuple(files), hand_over, ("server", *everyone), notes)


def revoke(path: Path, name: str) -> Path:
    """Take a merchant's public key out of `nodes/`; a running server notices by itself.

    Args:
        path: a deployment or a server folder.

    Returns:
        Where the key is kept now.

    Raises:
        InputError: there is no such merchant.
    """
    server = ServerFolder.open(path / "server" if (path / "server").is_dir() else path)
    if name not in server.registered():
        raise InputError(f"found {name!r}", where="NAME", expected=_known(server))
    kept = server.revoked / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.pub"
    with _disk(server.path):
        server.revoked.mkdir(exist_ok=True)
        server.public_key(name).rename(kept)
    return kept


def _new_merchant(name: str, address: Address) -> MerchantFile:
    data, server = DataSource(path=Path("data")), ServerAddress(address=str(address))
    return MerchantFile(name=name, privacy=CAUTIOUS, data=data, server=server)


def _members(federation: Path, names: Sequence[str] | None, address: Address) -> list[MerchantFile]:
    """The merchants of a federation folder, or some of them; their tables stay where they are."""
    found: dict[str, MerchantFile] = {}
    for folder in merchant_folders(federation):
        file = read_merchant_file(folder / MERCHANT_FILE)
        if file.name in found:
            raise InputError(f"the name {file.name!r} is there twice", where=str(folder / MERCHANT_FILE))
        server = ServerAddress(address=str(address))
        found[file.name] = file.model_copy(update={"data": _located(file.data, folder.resolve()), "server": server})
    chosen = check_names(list(found) if names is None else names)
    for name in chosen:
        if name not in found:
            raise InputError(f"found {name!r}", where="--merchants", expected=f"some of {', '.join(found)}")
    return [found[name] for name in chosen]


def _located(source: DataSource, folder: Path) -> DataSource:
    """The same tables, told from any folder."""
    if source.url is None:
        return source.model_copy(update={"path": folder / (source.path or "")})
    from sqlalchemy import make_url

    url, password_file = make_url(source.url), source.password_file
    if url.get_backend_name() == "sqlite":
        url = url.set(database=str(folder / (url.database or "")))
    changed = {"url": url.render_as_string(), "password_file": password_file and folder / password_file}
    return source.model_copy(update=changed)


def _build(
    at: Path, final: Deployment, address: Address, merchants: Sequence[MerchantFile], federation: Path | None, days: int
) -> None:
    """Fill the folder `at`, which will be renamed to `final`, and read back what was written."""
    ca = new_authority(_public_name(final.path))
    pair = issue_server(ca, address.host, days)
    authority, server = Deployment(at).authority, Deployment(at).server
    _folders(authority.path, server.path, server.tls, server.state, server.runs, server.nodes)
    _write(authority.key, ca.private)
    _write(authority.certificate, ca.public)
    _write(server.ca, ca.public)
    _write(server.key, pair.private)
    _write(server.certificate, pair.public)
    _write(server.unit, server_unit(final.server).encode())
    control = address.port + 1 if address.port < 65535 else address.port - 1
    settings = ServerFile(address=str(address), listen=address.listen, port=address.port, control_port=control)
    _write(server.settings_file, server_toml(settings).encode())
    run = {
        "start_merchants": len(merchants),
        # A merchant that is away, or has spent its budget, must not make the others' rounds worthless.
        "min_merchants": len(merchants) // 2 + 1,
        # Every policy allows it, and a second run too.
        "epsilon": min(file.privacy.epsilon for file in merchants) / 2,
        "delta": min(file.privacy.delta for file in merchants),
    }
    _write(server.run_settings, tomli_w.dumps(run).encode())
    _folders(server.central)
    if federation is None:
        _write(server.central / "README.txt", CENTRAL_README.encode())
    else:
        for name in ("items", "events"):
            shutil.copy(find_table(federation / "central", name), server.central)
    (at / "merchants").mkdir()
    for file in merchants:
        merchant, node = Deployment(at).merchant(file.name), new_node_key(file.name)
        _folders(merchant.path, merchant.tls, merchant.state, merchant.model, merchant.own, merchant.feedback)
        _write(merchant.ca, ca.public)
        _write(merchant.key, node.private)
        _write(merchant.public_key, node.public)
        _write(server.public_key(file.name), node.public)
        _write(merchant.settings_file, merchant_toml(file, guessed=federation is None).encode())
        _write(merchant.unit, merchant_unit(final.merchant(file.name), file.name).encode())
        _write(merchant.serve_unit, serve_unit(final.merchant(file.name), file.name).encode())
        if federation is None:
            _folders(merchant.path / "data")
            _write(merchant.path / "data" / "README.txt", DATA_README.encode())
    roster = roster_of(ServerFolder.open(server.path).public_keys()).text().encode()
    for file in merchants:
        _write(Deployment(at).merchant(file.name).roster, roster)
        own_roster(MerchantFolder.open(Deployment(at).merchant(file.name).path))
    load_config(server.run_settings)


def _moved(deployment: Deployment, host: str | None) -> tuple[ServerFile, tuple[str, ...]]:
    """The server's settings for another host, and what that means for the merchants."""
    settings = deployment.server.settings
    if host is None:
        return settings, ()
    old, new = settings.public, parse_address(host, settings.public.port, "--server-host")
    if new == old:
        return settings, ()
    if new.port != old.port:
        raise InputError(f"found port {new.port}", where="--server-host", expected="a host", hint="the port is in server.toml")
    # An interface that somebody chose by hand stays.
    listen = new.listen if settings.listen == old.listen else settings.listen
    note = f'every merchant sets address = "{new}" under [server] in {MERCHANT_FILE}'
    return settings.model_copy(update={"address": str(new), "listen": listen}), (note,)


def _known(server: ServerFolder) -> str:
    return "one of " + ", ".join(server.registered()) if server.registered() else "a registered merchant; there is none"


def _public_name(out: Path) -> str:
    """The deployment's name in its authority's certificate, whose common name holds 64 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.name)[:40]


def _folders(*paths: Path) -> None:
    """Make folders for their owner alone: they hold keys, a ledger, or people's data."""
    for path in paths:
        path.mkdir(mode=0o700)


def _write(path: Path, content: bytes) -> None:
    """Make a file and flush it to disk; a private key is its owner's from the first byte."""
    mode = 0o600 if path.suffix == ".key" else 0o666
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(files: Mapping[Path, bytes]) -> None:
    """Put every file into place under its own name; none before all are on disk."""
    prefix = f".{secrets.token_hex(4)}."
    staged = {path: path.with_name(prefix + path.name) for path in files}
    with _disk(next(iter(files))):
        try:
            for path, temporary in staged.items():
                _write(temporary, files[path])
            for path, temporary in staged.items():
                os.replace(temporary, path)
        finally:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the disk refuses is for a person to put right, and no failure of the program."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read or written ({error.strerror})", where=str(error.filename or path)) from None
