"""Where everything of a deployment lies; `server_folder` and `merchant_folder` alone know the names of their files.

`authority/` stays with whoever ran `fedrec deploy init`, `server/` goes to the server's
machine, and each of `merchants/<name>/` to that merchant and nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedrec.deploy.addresses import DEFAULT_PORT, Address, is_merchant_name, parse_address
from fedrec.deploy.certificates import check_private
from fedrec.deploy.merchant_folder import MerchantFolder
from fedrec.deploy.server_folder import ServerFile, ServerFolder
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE

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
