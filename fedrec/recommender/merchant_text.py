"""A merchant's folder as a ranker sees it: its data, and the text of an adapter over its catalogue."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedrec.config import HomeObjective, RunConfig, make_private
from fedrec.data import Catalogue, MerchantData, load_merchant
from fedrec.data.role_record import RECORD, HeldBack, changed_roles
from fedrec.data.roles import Roles, UserShares, own_secret, roles_of
from fedrec.errors import InputError
from fedrec.merchant import LEDGER, MERCHANT_FILE, OWN, MerchantFile, read_merchant_file
from fedrec.model.adapter import Arrays
from fedrec.model.embedded import embedding_key, read_embedded, write_embedded
from fedrec.model.encoder_files import absolute_encoder
from fedrec.model.towers import Scoring
from fedrec.model.versions import Versions
from fedrec.recommender.blend import TextPart
from fedrec.recommender.contest import Received, plain_part, trained_part

if TYPE_CHECKING:
    from fedrec.model.encoder import TextEncoder

__all__ = ["LOCK", "Adapter", "MerchantPlace"]

LOCK = "fit.lock"
"""In `own/`: there wherever a fit has ever begun."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of the merchant's `model/`.

    Attributes:
        name: its version.
        arrays: public base, trained part and the federation's popularity.
        settings: what its `fedrec.json` says.
    """

    name: str
    arrays: Arrays
    settings: dict[str, Any]

    @property
    def scoring(self) -> Scoring:
        """What the server chose on its consenting users."""
        return Scoring(**self.settings["scoring"])

    def counts(self, catalogue: Catalogue) -> tuple[np.ndarray, float]:
        """(items,) float32: the federation's popularity of these texts; and its floor, which stands for unknown ones."""
        known = dict(zip(self.arrays["prior.keys"].tolist(), self.arrays["prior.counts"].tolist(), strict=True))
        floor = float(self.arrays["prior.floor"][0])
        return np.array([known.get(key, floor) for key in catalogue.keys.tolist()], dtype=np.float32), floor


@dataclass(frozen=True)
class MerchantPlace:
    """A merchant's folder, deployed or not."""

    path: Path

    @cached_property
    def settings(self) -> MerchantFile:
        """What `merchant.toml` says.

        Raises:
            InputError: it cannot be read.
        """
        return read_merchant_file(self.path / MERCHANT_FILE)

    @property
    def own(self) -> Path:
        """Folder of what never leaves."""
        return self.path / OWN

    @property
    def versions(self) -> Versions:
        """The adapters that came home and rank."""
        return Versions(self.path / "model")

    def versions_of(self, objective: HomeObjective) -> Versions:
        """Those that came home with another objective."""
        return Versions(self.path / "model", objective)

    def data(self) -> MerchantData:
        """Its tables as they are now.

        Raises:
            InputError: they cannot be read.
        """
        return load_merchant(self.path, self.settings.data)

    @contextmanager
    def fitting(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the folder against every other fit, from reading the data to the last file: else what one read may be what
        another has just forgotten. The lock ends with the process.

        Args:
            waiting: is called where another fit is going on, before its end is waited for.

        Raises:
            InputError: `own/` cannot be written, or its file system has no locks.
        """
        path = self.own / LOCK
        with ExitStack() as held:
            try:
                make_private(self.own)
                file = held.enter_context(os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise InputError(f"cannot be locked ({error.strerror})", where=str(path)) from None
            yield

    def roles(self, data: MerchantData) -> Roles:
        """Who trains, chooses and is measured, as the merchant's node has it too."""
        return roles_of(data.histories.user_ids, self.settings.users or UserShares(), own_secret(self.own))

    def changed_roles(self) -> str | None:
        """Why some of those who choose or are measured may have trained in an earlier release, None where none has."""
        held = HeldBack.under(self.settings.users or UserShares(), own_secret(self.own))
        return changed_roles(self.path / LEDGER / RECORD, held)

    def adapter(self, name: str | None) -> Adapter | None:
        """A version, None for the untrained start.

        Raises:
            InputError: there is none of that name, or it is damaged.
        """
        return None if name is None else Adapter(name, *self.versions.read(name))

    def encoder(self, adapter: Adapter | None) -> TextEncoder:
        """This machine's encoder in the shape that an adapter needs.

        Raises:
            InputError: it cannot be loaded, or is another one than the adapter was trained with.
        """
        if adapter is None:
            return self._encoder(layers=0)
        encoder = self._encoder(*(adapter.settings[key] for key in ("encoder_layers", "encoder_rank", "max_tokens")))
        if encoder.fingerprint != adapter.settings["encoder_fingerprint"]:
            raise InputError(
                f"version {adapter.name} was trained with another encoder than the one here",
                where=str(self.path / MERCHANT_FILE),
                expected=f"an encoder of fingerprint {adapter.settings['encoder_fingerprint']}",
                hint="give the server's encoder in [model], or `fedrec merchant model use FOLDER untrained`",
            )
        return encoder

    def encoders_in_use(self) -> set[str]:
        """Fingerprints of the encoders whose caches are needed again: of the untrained text, of a node's start, and of the
        versions that are kept. A run in progress may have another one, and has it open.
        """
        found = set()
        for layers in (0, RunConfig().encoder_layers):
            with suppress(InputError):  # the encoder here has no such shape, and so no cache of it
                found.add(self._encoder(layers).fingerprint)
        for versions in Versions.of_each_objective(self.versions.folder):
            for name in versions.names():
                with suppress(InputError):  # a damaged version can do without
                    found.add(str(versions.settings(name).get("encoder_fingerprint")))
        return found

    def _encoder(
        self, layers: int, rank: int = RunConfig().encoder_rank, max_tokens: int = RunConfig().max_tokens
    ) -> TextEncoder:
        from fedrec.model.encoder import load_encoder  # takes seconds, and most of this needs none

        model = self.settings.model
        name = absolute_encoder(model.encoder, self.path)
        return load_encoder(name, layers, rank, max_tokens, model.device, model.texts_per_batch)

    def pooled(self, catalogue: Catalogue, adapter: Adapter | None, *, keep: bool = True) -> Tensor:
        """(items, hidden) the catalogue through the encoder with the adapter's LoRA.

        Args:
            keep: whether it is the merchant's own, whose vectors are kept, by digests, beside the adapter.
        """
        encoder = self.encoder(adapter)
        arrays = {} if adapter is None else adapter.arrays
        key = embedding_key(encoder.fingerprint, arrays, catalogue)
        folder = self.own if adapter is None else self.path / "model" / adapter.name
        if keep and (kept := read_embedded(folder, key, len(catalogue))) is not None:
            return torch.from_numpy(kept)
        encoder.load({name: value for name, value in arrays.items() if "lora_" in name})
        found = encoder.embed(catalogue)
        if keep and folder.is_dir():
            write_embedded(folder, key, found.cpu().numpy(), mode=0o600)
        return found

    def asked(self, queries: Sequence[str], adapter: Adapter | None) -> Tensor | None:
        """(queries, hidden) what users searched for, as `pooled` has the catalogue; kept nowhere. None for nothing."""
        if not queries:
            return None
        encoder = self.encoder(adapter)
        encoder.load({name: value for name, value in (adapter.arrays if adapter else {}).items() if "lora_" in name})
        return encoder.encode(queries)

    def plain(self, catalogue: Catalogue, here: np.ndarray, queries: Sequence[str] = ()) -> TextPart:
        """The untrained text; `here` (items,) are the merchant's own counts, `queries` what its histories may hold."""
        return plain_part(self.pooled(catalogue, None), here, asked=self.asked(queries, None))

    def received(self, catalogue: Catalogue, adapter: Adapter, here: np.ndarray, queries: Sequence[str] = ()) -> Received:
        """The federated text and popularity; arguments as in `plain`.

        Raises:
            InputError: see `encoder`; or its numbers are finite and what they make of a text here is not.
        """
        counts, floor = adapter.counts(catalogue)
        part = trained_part(self.pooled(catalogue, adapter), adapter.arrays, here, counts, floor, self.asked(queries, adapter))
        if not all(np.isfinite(found).all() for found in (part.history, part.candidate, *part.priors.values())):
            # A rank among scores that are no numbers would be the best there is.
            raise InputError(
                f"version {adapter.name} makes no finite numbers of the texts here", where=str(self.path / "model"),
                hint="`fedrec merchant model use` another one",
            )  # fmt: skip
        return Received(part, adapter.scoring)
