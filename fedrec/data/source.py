"""Where a merchant's tables are: the `[data]` table of `merchant.toml`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["DataSource"]


class DataSource(BaseModel):
    """The `[data]` table; without one the tables lie beside `merchant.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    """Folder of the tables; a relative path starts at the merchant folder."""
