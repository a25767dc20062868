"""What is exported: an adapter, and the encoder with its LoRA folded in."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import BertModel

from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE
from fedrec.model.adapter import CENTRE, HEAD_A, HEAD_B, Arrays
from fedrec.model.encoder import TextEncoder
from fedrec.model.saved import catalogue_of, encoder_of, read_adapter
from fedrec.recommender.merchant_text import MerchantPlace

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A model to be exported.

    Attributes:
        encoder: loaded with the model's LoRA; it is shared by its process and not changed.
        arrays: public base and trained part.
        settings: what `fedrec.json` says.
        catalogue: the texts that it ranks here; they are measured on and not exported.
    """

    encoder: TextEncoder
    arrays: Arrays
    settings: dict[str, Any]
    catalogue: Catalogue

    @classmethod
    def open(cls, path: Path) -> Source:
        """A run's last adapter, or the delivered one that ranks at a merchant.

        Raises:
            InputError: there is none, it does not rank, or its encoder is not here.
        """
        if not (path / MERCHANT_FILE).is_file():
            arrays, settings, table = read_adapter(path / "adapter" if (path / "adapter").is_dir() else path)
            if "next-item" not in (objective := settings.get("objective", "next-item")):
                hint = "fedrec basket says what goes with a basket" if objective == "basket" else "fedrec predict asks it"
                raise InputError(
                    f"the run was trained with objective = {objective!r}, and what is exported ranks", where=str(path),
                    expected="a run with objective = 'next-item'", hint=hint,
                )  # fmt: skip
            return cls._loaded(encoder_of(settings, "auto"), arrays, settings, catalogue_of(table))
        place = MerchantPlace(path)
        adapter = place.adapter(place.versions.current)
        if adapter is None:
            raise InputError(
                "no delivered model ranks here, only the untrained text", where=str(path / "model"),
                hint="choose one that was delivered: `fedrec merchant model`",
            )  # fmt: skip
        return cls._loaded(place.encoder(adapter), adapter.arrays, adapter.settings, place.data().catalogue)

    @classmethod
    def _loaded(cls, encoder: TextEncoder, arrays: Arrays, settings: dict[str, Any], catalogue: Catalogue) -> Source:
        encoder.load(arrays)
        return cls(encoder, arrays, settings, catalogue)

    @cached_property
    def merged(self) -> BertModel:
        """The encoder on the processor in float32, with `W + B A` in place of `W` and LoRA."""
        if self.encoder.peft is None:
            return copy.deepcopy(self.encoder.bert).cpu().float().eval()
        # Of a copy: merging takes the LoRA out of the model that it is asked of.
        merged = copy.deepcopy(self.encoder.peft).cpu().float().merge_and_unload()
        return cast(BertModel, merged).eval()

    @property
    def heads(self) -> Arrays:
        """Centre and heads, by the names of `fedrec.safetensors`; heads that were not trained are not there."""
        names = (CENTRE, HEAD_A, *HEAD_B.values())
        return {name: self.arrays[name] for name in names if name in self.arrays}
