"""A merchant's folder of a deployment: where its files lie, and what `merchant.toml` says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedrec.data.feedback import FEEDBACK
from fedrec.errors import InputError
from fedrec.merchant import LEDGER, MERCHANT_FILE, OWN, MerchantFile, read_merchant_file
from fedrec.privacy import head_folder

__all__ = ["MerchantFolder"]


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
