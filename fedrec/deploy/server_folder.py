"""The server's folder: where its files lie, and what `server.toml` says."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.config import HomeObjective, read_toml
from fedrec.deploy.addresses import Address, is_merchant_name, parse_address
from fedrec.deploy.certificates import read_public_key
from fedrec.errors import InputError

__all__ = ["ServerFile", "ServerFolder"]


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
