"""A trained adapter on disk: all that ranking needs.

`fedrec.safetensors` holds the heads, the public base and the encoder's LoRA; `fedrec.json` the scoring and the
encoder's fingerprint. In a run's `adapter/` the LoRA lies beside them in PEFT's format, and so do the public catalogue
as Parquet and its embeddings, so that only a text that is new has to be encoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedrec.config import RunConfig, write_atomically
from fedrec.data import Catalogue, CentralData, Columns
from fedrec.data.tables import write_table
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, load_arrays, save_arrays
from fedrec.model.embedded import embedding_key, read_embedded, write_embedded
from fedrec.model.encoder_files import files_digest, held_encoder

if TYPE_CHECKING:  # importing an encoder takes seconds
    from fedrec.model.encoder import TextEncoder

__all__ = [
    "ARRAYS",
    "COUNT",
    "EXPECTED",
    "SETTINGS",
    "TEXT",
    "catalogue_of",
    "check_held",
    "encoder_of",
    "read_adapter",
    "read_arrays",
    "save_adapter",
    "settings_of_run",
    "table_of_run",
]

COUNT, EXPECTED, TEXT = "popularity", "expected_rating", "text"
ARRAYS, SETTINGS, TABLE = "fedrec.safetensors", "fedrec.json", "catalogue.parquet"


def settings_of_run(
    config: RunConfig, encoder: TextEncoder, public: Arrays, scoring: dict[str, float], response: dict[str, float] | None = None
) -> dict[str, Any]:
    """What `fedrec.json` says.

    Args:
        response: the scoring of responses, where the run ranks too.
    """
    return {
        "encoder": config.encoder,
        "encoder_layers": config.encoder_layers,
        "encoder_rank": config.encoder_rank,
        "max_tokens": config.max_tokens,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_files": encoder.files,
        "history": config.history,
        "objective": config.objective,
        "negative_share": config.negative_share,
        "rating_min": config.rating_min,
        "rating_max": config.rating_max,
        "scoring": scoring,
        **({"response_scoring": response} if response else {}),
        "floor": float(public["prior.floor"][0]),
    }


def table_of_run(central: CentralData, public: Arrays) -> pd.DataFrame:
    """The public catalogue: ids, texts, brand, category and price where they are known, popularity, the expected rating (-1 to 1)
    where there are ratings, and which merchant sells what where they have catalogues of their own."""
    frame = pd.DataFrame({Columns.ITEM: central.catalogue.item_ids, TEXT: central.catalogue.texts, COUNT: public["prior.counts"]})
    if "prior.ratings" in public:
        frame[EXPECTED] = public["prior.ratings"]
    frame = frame.assign(**central.details.columns())
    for group in central.groups:
        if len(central.groups) > 1:
            frame[f"{Columns.MERCHANT}:{group.name}"] = np.isin(np.arange(len(frame)), group.positions)
    return frame


def catalogue_of(table: pd.DataFrame) -> Catalogue:
    """The items of such a table."""
    return Catalogue(tuple(table[Columns.ITEM]), tuple(table[TEXT]))


def save_adapter(folder: Path, encoder: TextEncoder, arrays: Arrays, settings: dict[str, Any], table: pd.DataFrame) -> None:
    """Write what `read_adapter` reads, and the catalogue's embeddings unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = catalogue_of(table)
    encoder.load(arrays)
    key = embedding_key(settings.get("encoder_fingerprint") or encoder.fingerprint, arrays, catalogue)
    if read_embedded(folder, key, len(catalogue)) is None:
        write_embedded(folder, key, encoder.embed(catalogue).cpu().numpy())
    encoder.save_peft(folder)
    save_arrays(arrays, folder / ARRAYS)
    write_table(table, folder / TABLE)
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2).encode())


def read_adapter(folder: Path) -> tuple[Arrays, dict[str, Any], pd.DataFrame]:
    """Arrays, settings and catalogue of a run's `adapter/`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    arrays, settings = read_arrays(folder)
    try:
        return arrays, settings, pd.read_parquet(folder / TABLE)
    except OSError:
        raise _no_adapter(folder) from None
    except ValueError as error:
        raise _unreadable(folder, error) from None


def read_arrays(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and settings alone.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except OSError:
        raise _no_adapter(folder) from None
    except ValueError as error:
        raise _unreadable(folder, error) from None
    if not isinstance(settings, dict):
        raise _unreadable(folder, ValueError(f"{SETTINGS} is no table of settings"))
    return load_arrays(folder / ARRAYS), settings


def _no_adapter(folder: Path) -> InputError:
    return InputError("there is no trained adapter", where=str(folder), expected="a run folder with adapter/")


def _unreadable(folder: Path, error: ValueError) -> InputError:
    return InputError(f"the adapter cannot be read ({error})", where=str(folder), hint="copy the run again")


def encoder_of(settings: dict[str, Any], device: str) -> TextEncoder:
    """The encoder that the settings name.

    Raises:
        InputError: it cannot be loaded, or is not the one that the run was made with.
    """
    from fedrec.model.encoder import load_encoder

    name, layers, rank, tokens = (settings[key] for key in ("encoder", "encoder_layers", "encoder_rank", "max_tokens"))
    encoder = load_encoder(name, layers, rank, tokens, device)
    encoder.check_fingerprint(settings.get("encoder_fingerprint", ""))
    return encoder


def check_held(settings: dict[str, Any], device: str) -> None:
    """Whether the encoder has changed since the run: by its files' bytes, and where they differ by loading it.

    One that is not here at all is missed when a text has to be read.

    Raises:
        InputError: see `encoder_of`.
    """
    if not settings.get("encoder_fingerprint"):
        return  # a run from before it was kept
    here = held_encoder(settings["encoder"])
    if here is not None and files_digest(here) != settings["encoder_files"]:
        encoder_of(settings, device)
