"""Where this node's merchant is: folders, model and, in a simulation only, a seed.

In a simulation every node reads one file, named by `FEDREC_SITE`, and takes the merchant
of its partition. Nothing in it comes from a message.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fedrec.data import merchant_folders
from fedrec.model.encoder import TextEncoder, load_encoder

__all__ = ["SITE_VARIABLE", "Site", "site_of"]

SITE_VARIABLE = "FEDREC_SITE"


@dataclass(frozen=True)
class Site:
    """A merchant's place on this machine.

    Attributes:
        merchant: the merchant folder.
        ledger: the folder of the ledger.
        replies: the folder of stored replies.
        model: arguments of `load_encoder`.
        seed: seed of a simulation; None draws from the operating system.
        wire_log: where to record what is sent, None for nowhere.
    """

    merchant: Path
    ledger: Path
    replies: Path
    model: tuple[tuple[str, str | int], ...]
    seed: int | None
    wire_log: Path | None = None

    def load_encoder(self) -> TextEncoder:
        """The encoder; one a process."""
        return load_encoder(**dict(self.model))  # type: ignore[arg-type]


def site_of(context: Context) -> Site:
    """The site of a node.

    Raises:
        KeyError: `FEDREC_SITE` is not set.
    """
    settings = json.loads(Path(os.environ[SITE_VARIABLE]).read_text(encoding="utf-8"))
    run = Path(settings["run"])
    merchant = merchant_folders(Path(settings["federation"]))[int(context.node_config["partition-id"])]
    return Site(
        merchant=merchant,
        ledger=Path(settings.get("ledgers") or run / "privacy"),
        replies=run / "replies",
        model=tuple(sorted(settings["model"].items())),
        seed=settings["seed"],
        wire_log=run / "privacy" / "wire" / f"{merchant.name}.jsonl" if settings.get("record_wire") else None,
    )
