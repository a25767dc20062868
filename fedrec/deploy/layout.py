"""Where everything of a deployment lies: the one place that knows the names of its files.

`authority/` stays with whoever ran `fedrec deploy init`, `server/` goes to the server's
machine, and each of `merchants/<name>/` to that merchant and nobody else.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fedrec.config import HomeObjective, read_toml
from fedrec.data.feedback import FEEDBACK
from fedrec.deploy.certificates import check_private, read_public_key
from fedrec.errors import InputError
from fedrec.merchant import LEDGER, MERCHANT_FILE, OWN, MerchantFile, read_merchant_file
from fedrec.privacy import head_folder

__all__ = [
    "DEFAULT_PORT",
    "Address",
    "AuthorityFolder",
    "Deployment",
    "MerchantFolder",
    "ServerFile",
    "ServerFolder",
    "check_private",
    "is_merchant_name",
    "parse_address",
]

DEFAULT_PORT = 8443

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?!\d+\Z){_LABEL}", re.ASCII)
_NAME: TypeAdapter[str] = TypeAdapter(Annotated[str, MerchantFile.model_fields["name"]])


@dataclass(frozen=True)
class Address:
    """A host and a port that merchants can connect to.

    Attributes:
        host: a DNS name in lower case, or an IP address; an IPv6 address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def listen(self) -> str:
        """The interface to listen on: all of them, unless the host is this machine's loopback."""
        if self.host == "localhost":
            return "127.0.0.1"
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return "0.0.0.0"
        if ip.is_loopback:
            return self.host
        return "::" if ip.version == 6 else "0.0.0.0"


def parse_address(text: str, default_port: int = DEFAULT_PORT, where: str = "--server") -> Address:
    """Read `HOST[:PORT]`, an IPv6 host in brackets.

    Raises:
        InputError: it is not an address that another machine could connect to.
    """
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", text, re.ASCII)
    found = bracketed or plain
    if found is None:
        raise InputError(f"found {text!r}", where=where, expected="HOST or HOST:PORT, an IPv6 host in brackets")
    port = int(found[2]) if found[2] else default_port
    if not 1 <= port <= 65535:
        raise InputError(f"found port {port}", where=where, expected="a port from 1 to 65535")
    try:
        ip = ipaddress.ip_address(found[1])
    except ValueError:
        if bracketed or not _HOST_NAME.fullmatch(found[1]):
            raise InputError(f"found host {found[1]!r}", where=where, expected="a DNS name or an IP address") from None
        return Address(found[1].lower(), port)
    if (ip.version == 6) != bool(bracketed) or getattr(ip, "ipv4_mapped", None) or ip.is_unspecified or ip.is_multicast:
        raise InputError(f"found host {found[1]!r}", where=where, expected="the address that merchants connect to")
    return Address(str(ip), port)


def is_merchant_name(name: str) -> bool:
    """Whether `merchant.toml` would accept `name`."""
    try:
        _NAME.validate_python(name)
    except ValidationError:
        return False
    return True


class ServerFile(BaseModel):
    """`server.toml`: how the server is reached and where its own data are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    """Public host and port, what merchants connect to."""
    listen: str
    """IP address of the interface to listen on."""
    port: int = Field(ge=1, le=65535)
    """Port to listen on; another than the public one behind a port forwarding."""
    control_port: int = Field(ge=1, le=65535)
    """Port on the loopback interface through which runs are started and stopped."""

    @model_validator(mode="after")
    def _consistent(self) -> ServerFile:
        if self.control_port == self.port:
            raise ValueError("control_port is the same as port")
        return self

    @property
    def public(self) -> Address:
        """`address` in its parts."""
        return parse_address(self.address, where="address")


@dataclass(frozen=True)
class AuthorityFolder:
    """`authority/`: who signs the server's certificates."""

    path: Path

    @property
    def key(self) -> Path:
        """The authority's private key."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self.path / "ca.crt"


@dataclass(frozen=True)
class ServerFolder:
    """`server/`: all that the server's machine needs."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> ServerFolder:
        """The folder at `path`, checked.

        Raises:
            InputError: it is not a server folder, or its `server.toml` is wrong.
        """
        folder = cls(path.resolve())
        if not (folder.settings_file.is_file() and folder.nodes.is_dir()):
            raise InputError("is no server folder", where=str(path), expected="one as `fedrec deploy init` makes it")
        _ = folder.settings
        return folder

    @property
    def settings_file(self) -> Path:
        """`server.toml`."""
        return self.path / "server.toml"

    @cached_property
    def settings(self) -> ServerFile:
        """What `server.toml` says, as of the first time it is asked for.

        Raises:
            InputError: naming the file and the key.
        """
        return _read_server_file(self.settings_file)

    @property
    def run_settings(self) -> Path:
        """The settings of a run, as `fedrec.config.load_config` reads them."""
        return self.path / "run.toml"

    @property
    def tls(self) -> Path:
        """Folder of the server's key and certificates; for its owner alone."""
        return self.path / "tls"

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.tls / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.tls / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.tls / "server.key"

    @property
    def nodes(self) -> Path:
        """Folder of the registered merchants' public keys, `<name>.pub`."""
        return self.path / "nodes"

    @property
    def revoked(self) -> Path:
        """Folder of the public keys that are registered no more."""
        return self.path / "revoked"

    @property
    def central(self) -> Path:
        """Folder of the central users' tables."""
        return self.path / "central"

    @property
    def state(self) -> Path:
        """Folder of what a server writes while it runs."""
        return self.path / "state"

    @property
    def database(self) -> Path:
        """The SuperLink's database."""
        return self.state / "superlink.db"

    @property
    def pending(self) -> Path:
        """File that says which adapter goes home to whoever lacks it: a run that ranks, and its round."""
        return self.pending_of("next-item")

    def pending_of(self, objective: HomeObjective) -> Path:
        """The same for runs with another objective: merchants may use an adapter of each."""
        return self.state / ("pending.json" if objective == "next-item" else f"pending-{objective}.json")

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.state / "server.log"

    @property
    def pid(self) -> Path:
        """File that holds the process id of a running server."""
        return self.state / "server.pid"

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.path / "runs"

    @property
    def unit(self) -> Path:
        """The systemd unit."""
        return self.path / "fedrec-server.service"

    def public_key(self, name: str) -> Path:
        """Where the public key of merchant `name` is registered."""
        return self.nodes / f"{name}.pub"

    def registered(self) -> list[str]:
        """The names in `nodes/`, whether or not their keys are any good.

        Raises:
            InputError: the folder cannot be listed.
        """
        try:
            names = [entry.name for entry in os.scandir(self.nodes)]
        except OSError as error:
            raise InputError(f"cannot be listed ({error.strerror})", where=str(self.nodes)) from None
        # Hidden files are half-written ones: they get their name when they are whole.
        return sorted(name.removesuffix(".pub") for name in names if name.endswith(".pub") and not name.startswith("."))

    def public_keys(self) -> dict[str, bytes]:
        """The registered merchants' keys, as OpenSSH lines (`type base64`, no comment).

        Raises:
            InputError: naming the file that is no public key on a NIST curve, that has no
                merchant's name, or that holds another merchant's key.
        """
        keys, faults = self.read_keys()
        for fault in faults.values():
            raise fault
        return keys

    def read_keys(self) -> tuple[dict[str, bytes], dict[str, InputError]]:
        """The keys that are good, and what is wrong with the others, by name.

        Raises:
            InputError: the folder cannot be listed.
        """
        keys: dict[str, bytes] = {}
        faults: dict[str, InputError] = {}
        for name in self.registered():
            path = self.public_key(name)
            try:
                if not is_merchant_name(name):
                    raise InputError(f"{name!r} is no merchant's name", where=str(path), expected="<name>.pub")
                line = read_public_key(path)
                if twin := next((other for other, known in keys.items() if known == line), None):
                    raise InputError(f"is the key of {twin} too", where=str(path), hint="every merchant needs a key of its own")
                keys[name] = line
            except InputError as fault:
                faults[name] = fault
        return keys, faults


@dataclass(frozen=True)
class MerchantFolder:
    """`merchants/<name>/`: all that this merchant's machine needs, and nothing of another's."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> MerchantFolder:
        """The folder at `path`, checked.

        Raises:
            InputError: it is not a merchant's folder, or its `merchant.toml` is wrong.
        """
        folder = cls(path.resolve())
        if not (folder.settings_file.is_file() and folder.tls.is_dir()):
            raise InputError("is no merchant's folder", where=str(path), expected="one as `fedrec deploy init` makes it")
        _ = folder.server
        return folder

    @property
    def server(self) -> str:
        """Host and port that the node connects to.

        Raises:
            InputError: `merchant.toml` names no server.
        """
        if self.settings.server is None:
            raise InputError("[server] is missing", where=str(self.settings_file), expected='address = "HOST:PORT"')
        return self.settings.server.address

    @property
    def settings_file(self) -> Path:
        """`merchant.toml`."""
        return self.path / MERCHANT_FILE

    @cached_property
    def settings(self) -> MerchantFile:
        """What `merchant.toml` says, as of the first time it is asked for.

        Raises:
            InputError: naming the file and the key.
        """
        return read_merchant_file(self.settings_file)

    @property
    def tables(self) -> Path:
        """Folder of the merchant's items and events."""
        return self.path / (self.settings.data.path or "")

    @property
    def tls(self) -> Path:
        """Folder of the merchant's key and the authority's certificate; for its owner alone."""
        return self.path / "tls"

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.tls / "ca.crt"

    @property
    def key(self) -> Path:
        """The merchant's private key."""
        return self.tls / "node.key"

    @property
    def public_key(self) -> Path:
        """The merchant's public key, for the server's `nodes/`."""
        return self.tls / "node.pub"

    @property
    def roster(self) -> Path:
        """The merchant's list of all merchants and their public keys, for secure aggregation."""
        return self.path / "roster.txt"

    @property
    def state(self) -> Path:
        """Folder of what a merchant's node writes while it runs."""
        return self.path / "state"

    @property
    def model(self) -> Path:
        """Folder of the adapters that the server delivered."""
        return self.path / "model"

    @property
    def own(self) -> Path:
        """Folder of what never leaves the merchant; for its owner alone."""
        return self.path / OWN

    @property
    def feedback(self) -> Path:
        """Folder of what customers did since, as the service and `fedrec data import` take it; for its owner alone."""
        return self.path / FEEDBACK

    @property
    def serve_keys(self) -> Path:
        """The service's keys."""
        return self.state / "serve-keys.toml"

    @property
    def fit_log(self) -> Path:
        """What the last fit that a delivery started wrote."""
        return self.state / "fit.log"

    @property
    def ledger(self) -> Path:
        """Folder of the privacy ledger. It belongs to the data and outlives runs and servers."""
        return self.path / LEDGER

    @property
    def head(self) -> Path:
        """Folder of the ledger's head."""
        return self.path / (self.settings.ledger.head or head_folder(self.ledger))

    @property
    def replies(self) -> Path:
        """Folder of the replies that a repeated request gets again."""
        return self.state / "replies"

    @property
    def cache(self) -> Path:
        """Folder of the encoder's cached outputs."""
        return self.state / "cache"

    @property
    def log(self) -> Path:
        """The node's log."""
        return self.state / "merchant.log"

    @property
    def wire_log(self) -> Path:
        """One line for every message that went out: names, shapes and hashes of what it held."""
        return self.ledger / "wire" / f"{self.settings.name}.jsonl"

    @property
    def pid(self) -> Path:
        """File that holds the process id of a running node."""
        return self.state / "merchant.pid"

    @property
    def unit(self) -> Path:
        """The systemd unit of the node."""
        return self.path / "fedrec-merchant.service"

    @property
    def serve_unit(self) -> Path:
        """The systemd unit of the service."""
        return self.path / "fedrec-serve.service"


@dataclass(frozen=True)
class Deployment:
    """The folder that `fedrec deploy init` makes."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Deployment:
        """The folder at `path`, checked.

        Raises:
            InputError: it is not a deployment.
        """
        if not (path / "authority").is_dir():
            raise InputError("is no deployment", where=str(path), expected="a folder as `fedrec deploy init` makes it")
        ServerFolder.open(path / "server")
        return cls(path.resolve())

    @property
    def authority(self) -> AuthorityFolder:
        """What signs the server's certificates."""
        return AuthorityFolder(self.path / "authority")

    @property
    def server(self) -> ServerFolder:
        """The server's folder."""
        return ServerFolder(self.path / "server")

    def merchant(self, name: str) -> MerchantFolder:
        """The folder of merchant `name`, whether it is there or handed over."""
        return MerchantFolder(self.path / "merchants" / name)

    def merchants(self) -> list[MerchantFolder]:
        """The merchants' folders that are still here, by name."""
        return [MerchantFolder(file.parent) for file in sorted((self.path / "merchants").glob(f"*/{MERCHANT_FILE}"))]


def _read_server_file(path: Path) -> ServerFile:
    try:
        settings = ServerFile.model_validate(read_toml(path))
        parse_address(settings.address, where=f"{path}: address")
        ipaddress.ip_address(settings.listen)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}" if key else first["msg"], where=str(path)) from None
    except ValueError:
        raise InputError(f"listen: found {settings.listen!r}", where=str(path), expected="an IP address") from None
    return settings
