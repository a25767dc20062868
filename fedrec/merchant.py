"""`merchant.toml`: all that a merchant decides for itself, on its own machine.

Its name, its privacy policy, where its data are, which server it answers, and what its
hardware can bear. Nothing in it comes from a message.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec.data.source import DataSource
from fedrec.errors import InputError
from fedrec.privacy import Policy

__all__ = ["MERCHANT_FILE", "MerchantFile", "ModelSettings", "ServerAddress", "read_merchant_file"]

MERCHANT_FILE = "merchant.toml"


class ModelSettings(BaseModel):
    """The `[model]` table: the encoder as this machine holds and runs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = "minilm-l6"
    """`minilm-l6` (packaged), a folder (a relative one is the merchant folder's), or `hf:NAME` for a model of the Hugging
    Face hub; weights and tokenizer must be the server's."""
    device: str = "auto"
    """`auto`, `cpu`, or a torch device."""
    texts_per_batch: int = Field(128, ge=1)
    """Most texts in flight in the encoder: what bounds memory."""


class ServerAddress(BaseModel):
    """The `[server]` table: whom this merchant's node connects to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):\d{1,5}$")
    """Host and port."""


class MerchantFile(BaseModel):
    """`merchant.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The merchant's public name."""
    privacy: Policy
    data: DataSource = DataSource()
    model: ModelSettings = ModelSettings()
    server: ServerAddress | None = None


def read_merchant_file(path: Path) -> MerchantFile:
    """Read and check `merchant.toml`.

    Raises:
        InputError: naming the file and the key.
    """
    try:
        return MerchantFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="the merchant's name and [privacy] policy") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not valid TOML ({error})", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}", where=str(path)) from None
