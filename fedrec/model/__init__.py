"""The encoder with LoRA, its cache, the two towers and the adapter as a value."""

from fedrec.model.adapter import Arrays, digest, norm, of_part
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior, role_table

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
