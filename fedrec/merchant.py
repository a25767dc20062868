"""`merchant.toml`: all that a merchant decides for itself, on its own machine.

Its name, its privacy policy, where its data are, which server it answers, and what its
hardware can bear. Nothing in it comes from a message.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedrec.config import read_toml
from fedrec.data.roles import UserShares
from fedrec.data.source import DataSource
from fedrec.errors import InputError
from fedrec.privacy import Policy
from fedrec.text import MerchantName

__all__ = [
    "LEDGER", "MERCHANT_FILE", "OWN", "LedgerSettings", "MerchantFile", "ModelSettings", "RecommenderSettings", "ServerAddress",
    "read_merchant_file",
]  # fmt: skip

MERCHANT_FILE = "merchant.toml"
OWN = "own"
"""Folder, in a merchant's, of what never leaves it."""
LEDGER = Path("state", "privacy")
"""Folder, in a deployed merchant's, of its ledger."""


class ModelSettings(BaseModel):
    """The `[model]` table: the encoder as this machine holds and runs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = "minilm-l6"
    """`minilm-l6` (packaged), a folder (a relative one is the merchant folder's), or `hf:NAME` for a model of the Hugging
    Face hub; weights and tokenizer must be the server's."""
    device: str = "auto"
    """`auto`, `cpu`, or a torch device."""
    texts_per_batch: int = Field(128, ge=1)
    """Most texts that go through the encoder at once; what a private step keeps has fixed bounds."""


class RecommenderSettings(BaseModel):
    """The `[recommender]` table: what ranks here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    own_layer: bool = True
    """Whether what the merchant learned of its own customers without noise ranks too. Off, only the text and the federation's
    popularity do, so that what a customer is shown tells as little of others as the adapter does."""
    language: str = "english"
    """Of the catalogue's texts, for `fedrec search`: a stemmer of Snowball's, or `none`."""

    @field_validator("language")
    @classmethod
    def _has_a_stemmer(cls, language: str) -> str:
        from Stemmer import algorithms  # only who sets a language needs it

        if language not in (known := ("none", *algorithms())):
            raise ValueError(f"found {language!r}; expected one of {', '.join(known)}")
        return language


class ServerAddress(BaseModel):
    """The `[server]` table: whom this merchant's node connects to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):\d{1,5}$")
    """Host and port."""


class LedgerSettings(BaseModel):
    """The `[ledger]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Path | None = None
    """Folder of the ledger's head, best on another disk; a relative path starts at the merchant folder. Beside the ledger's
    folder when absent."""


class MerchantFile(BaseModel):
    """`merchant.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: MerchantName
    """The merchant's public name."""
    privacy: Policy
    data: DataSource = DataSource()
    model: ModelSettings = ModelSettings()
    ledger: LedgerSettings = LedgerSettings()
    users: UserShares | None = None
    """Absent, a deployed merchant holds back what `UserShares` says, and a simulated one nobody: there the server has users of
    its own."""
    recommender: RecommenderSettings = RecommenderSettings()
    server: ServerAddress | None = None


def read_merchant_file(path: Path) -> MerchantFile:
    """Read and check `merchant.toml`.

    Raises:
        InputError: naming the file and the key.
    """
    try:
        return MerchantFile.model_validate(read_toml(path, hint="it holds the merchant's name and its [privacy] policy"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}", where=str(path)) from None
