"""Where this node's merchant is: folders, model and, in a simulation only, a seed.

A deployed node serves one merchant folder, the one that its operator named. In a
simulation every node reads one file, named by `FEDREC_SITE`, and takes the merchant of its
partition. Nothing in either comes from a message.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedrec.data import merchant_folders
from fedrec.deploy.layout import MerchantFolder
from fedrec.merchant import ModelSettings, read_merchant_file
from fedrec.model.encoder_files import absolute_encoder

__all__ = ["ADAPTERS", "FOLDER_KEY", "KEYS", "ROSTER", "SITE_VARIABLE", "Site", "deployed_site", "site_of"]

SITE_VARIABLE = "FEDREC_SITE"
KEYS, ROSTER = "keys", "roster.txt"
"""Folder of a simulated run with the merchants' node keys, and the file with their public ones."""
ADAPTERS = "models"
"""Folder of a simulated run with each merchant's adapters, as its own folder would have them in `model/`."""
FOLDER_KEY = "folder"
"""Key of a deployed node's merchant folder in its context."""


@dataclass(frozen=True)
class Site:
    """A merchant's place on this machine.

    Attributes:
        merchant: the merchant folder.
        ledger: the folder of the ledger.
        replies: the folder of stored replies.
        model: the encoder as this machine holds it.
        seed: seed of a simulation; None draws from the operating system.
        node_key: the private key that other merchants know this one by, for secure aggregation.
        roster: this merchant's list of all of them.
        adapters: the folder of the adapters that came home.
        wire_log: where to record what is sent, None for nowhere.
        ledger_head: the folder of the ledger's head, None for the one beside the ledger's.
    """

    merchant: Path
    ledger: Path
    replies: Path
    model: ModelSettings
    seed: int | None
    node_key: Path
    roster: Path
    adapters: Path
    wire_log: Path | None = None
    ledger_head: Path | None = None


def site_of(context: Context) -> Site:
    """The site of a node.

    Raises:
        InputError: the merchant's own `merchant.toml` cannot be read.
        KeyError: a simulated node, and `FEDREC_SITE` is not set.
    """
    if FOLDER_KEY in context.node_config:
        return deployed_site(MerchantFolder(Path(str(context.node_config[FOLDER_KEY]))))
    settings = json.loads(Path(os.environ[SITE_VARIABLE]).read_text(encoding="utf-8"))
    run = Path(settings["run"])
    federation = Path(settings["federation"])
    changed = (federation / "merchants").stat().st_mtime_ns
    merchant = _merchants(federation, changed)[int(context.node_config["partition-id"])]
    return Site(
        merchant=merchant,
        ledger=Path(settings.get("ledgers") or run / "privacy"),
        replies=run / "replies",
        model=ModelSettings(**settings["model"]),
        seed=settings["seed"],
        node_key=run / KEYS / f"{merchant.name}.key",
        roster=run / KEYS / ROSTER,
        adapters=run / ADAPTERS / merchant.name,
        wire_log=run / "privacy" / "wire" / f"{merchant.name}.jsonl" if settings.get("record_wire") else None,
    )


@lru_cache(maxsize=1)
def _merchants(federation: Path, changed: int) -> list[Path]:
    """Listed once: a thousand merchants who each list a thousand folders take longer than to train."""
    return merchant_folders(federation)


def deployed_site(folder: MerchantFolder) -> Site:
    """The site of a deployed merchant: no seed, ever; a relative encoder folder is the merchant folder's.

    Raises:
        InputError: `merchant.toml` cannot be read.
    """
    settings = read_merchant_file(folder.settings_file)
    model = settings.model.model_copy(update={"encoder": absolute_encoder(settings.model.encoder, folder.path)})
    paths = folder.key, folder.roster, folder.model, folder.wire_log, folder.head
    return Site(folder.path, folder.ledger, folder.replies, model, None, *paths)
