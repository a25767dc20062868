"""The encoder with LoRA, its cache, the two towers and the adapter as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.model.adapter import Arrays, digest, norm, of_part
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior, role_table

if TYPE_CHECKING:
    from fedrec.model.encoder import TextEncoder, load_encoder

__all__ = [
    "Arrays",
    "Scoring",
    "TextEncoder",
    "centred",
    "digest",
    "init_base",
    "init_trained",
    "load_encoder",
    "log_prior",
    "norm",
    "of_part",
    "role_table",
]


def __getattr__(name: str) -> object:
    # Importing Transformers and PEFT takes seconds, and a ranking by history does not need them.
    if name in ("TextEncoder", "load_encoder"):
        from fedrec.model import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module 'fedrec.model' has no attribute {name!r}")
