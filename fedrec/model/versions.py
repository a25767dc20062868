"""The adapters that a merchant was sent, as it keeps them in its own folder.

    model/<version>/fedrec.safetensors   the public base, the trained part, the federation's popularity
    model/<version>/fedrec.json          what it takes to rank with them, and a digest of all of it
    model/<version>/verdict.json         what the comparison on this merchant's own users found; it stays here
    model/current                        which version ranks; without it the untrained text does, with nothing of these
    model/current-response               which version predicts responses; without it none does
    model/current-basket                 which version's text completes baskets; without it that of what ranks does

A version is of one objective, and each objective has its own current version. Nothing here says where the encoder
lies: that is the merchant's own setting. What a delivery is answered must not depend on private data, and which version is the
current one does. So `keep` does not look at that: only `tidy` does, which runs when the answer is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fedrec.config import HomeObjective, flush_folder, make_private, write_atomically
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest, load_arrays, save_arrays

__all__ = ["CURRENT", "FORMAT", "KEPT", "RANKS", "UNTRAINED", "Versions", "content_digest", "misfit"]

FORMAT = 1
"""Of what `fedrec.json` says; another one is not understood."""
KEPT = 3
"""So many of the last arrivals of an objective are kept, and its current one besides."""
RANKS: HomeObjective = "next-item"
"""The objective of a version whose settings name none: it ranks."""
UNTRAINED = "untrained"
"""Stands for the untrained text where a version is asked for; no version's name, since those have a round in them."""
ARRAYS, SETTINGS, VERDICT, CURRENT = "fedrec.safetensors", "fedrec.json", "verdict.json", "current"
OWN = {"digest", "number", "arrived"}
"""What `fedrec.json` says besides what was sent."""


def content_digest(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> str:
    """A hash of all that a version is made of: its arrays, and what its settings say but for when they came."""
    sent = {name: value for name, value in settings.items() if name not in OWN}
    state = hashlib.blake2b(digest(arrays).encode(), digest_size=16)
    state.update(json.dumps(sent, sort_keys=True).encode())
    return state.hexdigest()


def misfit(settings: Mapping[str, Any], encoder: str, device: str, texts_per_batch: int) -> str | None:
    """Why a version with these settings cannot be used with the encoder of this name, or None; the encoder is loaded."""
    from fedrec.model.encoder import load_encoder  # takes seconds, and most of this needs none

    layers, rank, tokens = (settings[name] for name in ("encoder_layers", "encoder_rank", "max_tokens"))
    try:
        held = load_encoder(encoder, layers, rank, tokens, device, texts_per_batch)
    except InputError as error:
        return str(error)
    return (
        None if held.fingerprint == settings["encoder_fingerprint"] else "it was trained with another encoder than the one here"
    )


class Versions:
    """The versions of one objective in `model/` of a merchant's folder, by default of those that rank."""

    def __init__(self, folder: Path, objective: HomeObjective = RANKS) -> None:
        self.folder, self.objective = folder, objective

    @classmethod
    def of_each_objective(cls, folder: Path) -> list[Versions]:
        """All that is here, those that rank first."""
        return [cls(folder, name) for name in get_args(HomeObjective)]

    @property
    def current_file(self) -> Path:
        """Where it is written down which version is the current one."""
        return self.folder / (CURRENT if self.objective == RANKS else f"{CURRENT}-{self.objective}")

    def names(self) -> list[str]:
        """The versions that are here, in the order of their arrival; those whose settings cannot be read come first, and count
        among those that rank.
        """
        return [name for name in self._all() if self._said(name).get("objective", RANKS) == self.objective]

    @property
    def newest(self) -> str | None:
        """The version that arrived last, None where none has."""
        names = self.names()
        return names[-1] if names else None

    @property
    def current(self) -> str | None:
        """The version that is in use; where it ranks, None stands for the untrained text.

        Raises:
            InputError: it is not here any more.
        """
        try:
            name = self.current_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot be read ({error})", where=str(self.current_file), hint="choose one: `fedrec merchant model use`"
            ) from None
        self._check(name, where=str(self.current_file))
        return name

    def settings(self, name: str) -> dict[str, Any]:
        """What a version's `fedrec.json` says: what was sent, its digest, and when it arrived.

        Raises:
            InputError: there is no such version, or the file cannot be read.
        """
        self._check(name)
        path = self.folder / name / SETTINGS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not isinstance(found["number"], int):
                raise ValueError("it is not what was written")
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(name, f"its settings cannot be read ({error})") from None
        return found

    def read(self, name: str) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and settings of a version, held against their digest.

        Raises:
            InputError: there is no such version, it is damaged, or a later version of this program wrote it.
        """
        settings = self.settings(name)
        if settings.get("format") != FORMAT:
            raise InputError(
                f"has format {settings.get('format')!r}", where=str(self.folder / name), expected=f"format {FORMAT}",
                hint="install the version of fedrec that the server has",
            )  # fmt: skip
        try:
            arrays = load_arrays(self.folder / name / ARRAYS)
        except InputError as error:
            raise self._damaged(name, error.found) from None
        if content_digest(arrays, settings) != settings.get("digest"):
            raise self._damaged(name, "it is not what was sent, by its digest")
        return arrays, settings

    def keep(self, arrays: Arrays, settings: dict[str, Any]) -> tuple[str, bool]:
        """Keep what has arrived, on disk when this returns; it becomes no current version by that.

        What is among the last arrivals already, and whole, is left as it is. An older one, or a damaged one, is written
        again in its place, file by file, with the same bytes: it is never gone in between.

        Args:
            settings: `format`, `run`, `round` and whatever else was sent.

        Returns:
            The version's name, and whether it was here.
        """
        sent = content_digest(arrays, settings)
        names = self.names()
        same = next((name for name in names if self._recorded(name) == sent), None)
        if same in names[-KEPT:] and self._whole(same):
            return same, True
        number = 1 + max([self._number(name) for name in self._all()], default=0)
        written = {**settings, "digest": sent, "number": number, "arrived": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        make_private(self.folder)
        self._sweep()
        if same is None:
            name = self._free(f"{settings['run']}-{settings['round']:05d}-{sent[:8]}")
            temporary = self.folder / f".{name}.{os.getpid()}.tmp"
            temporary.mkdir(mode=0o700)
            _write(temporary, arrays, written)
            temporary.rename(self.folder / name)
            flush_folder(self.folder)
            return name, False
        _write(self.folder / same, arrays, written)
        (self.folder / same / VERDICT).unlink(missing_ok=True)
        return same, False

    def tidy(self) -> None:
        """Delete all but the last arrivals and the current version."""
        try:
            current = self.current
        except InputError:
            current = None
        for name in self.names()[:-KEPT]:
            if name != current:
                gone = self.folder / f".{name}.{os.getpid()}.tmp"  # at once, and not file by file
                with contextlib.suppress(FileNotFoundError):  # another process tidies too
                    (self.folder / name).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def arrived(self) -> str | None:
        """The newest version, if nothing was found about it yet: older ones have been overtaken."""
        name = self.newest
        return name if name is not None and self.verdict(name) is None else None

    def use(self, name: str | None) -> None:
        """Have a version be the current one from now on; None for none, which is to say the untrained text where it ranks.

        Raises:
            InputError: there is no such version, or it is damaged.
        """
        if name is not None:
            self.read(name)
            write_atomically(self.current_file, f"{name}\n".encode(), mode=0o600)
        elif self.current_file.exists():
            self.current_file.unlink()
            flush_folder(self.folder)

    def judged(self, name: str, verdict: Mapping[str, Any]) -> None:
        """Keep what the comparison of a version found. It comes from private data and stays on this machine.

        Raises:
            InputError: there is no such version.
        """
        self._check(name)
        write_atomically(self.folder / name / VERDICT, json.dumps(verdict, indent=2).encode(), mode=0o600)

    def empty_verdicts(self) -> None:
        """Keep of every comparison that there was one, and nothing of what it found: that came from users."""
        for name in self.names():
            if self.verdict(name):
                self.judged(name, {})

    def verdict(self, name: str) -> dict[str, Any] | None:
        """What the comparison of a version found, None where there was none yet or its file cannot be read."""
        try:
            found = json.loads((self.folder / name / VERDICT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _all(self) -> list[str]:
        """The versions of all objectives, as `names` orders them."""
        if not self.folder.is_dir():
            return []
        there = (path for path in self.folder.iterdir() if not path.name.startswith("."))
        found = [path.name for path in there if (path / SETTINGS).is_file() or (path / ARRAYS).is_file()]
        return sorted(found, key=lambda name: (self._number(name), name))

    def _check(self, name: str, where: str | None = None) -> None:
        names = self.names()
        if name not in names:
            raise InputError(
                f"there is no version {name!r}", where=where or str(self.folder),
                expected=f"one of {', '.join(names)}" if names else "an adapter, and none has arrived yet",
                hint="`fedrec merchant model list` shows those that are here",
            )  # fmt: skip

    def _damaged(self, name: str, found: str) -> InputError:
        return InputError(
            f"the version is damaged: {found}", where=str(self.folder / name), expected="what was delivered",
            hint="choose another with `fedrec merchant model use`, or ask the operator for `fedrec server deliver --all`",
        )  # fmt: skip

    def _number(self, name: str) -> int:
        number = self._said(name).get("number")
        return number if isinstance(number, int) else 0

    def _recorded(self, name: str) -> str | None:
        return self._said(name).get("digest")

    def _said(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _whole(self, name: str) -> bool:
        try:
            self.read(name)
        except InputError:
            return False
        return True

    def _free(self, name: str) -> str:
        """A name that no version has: eight digits of a digest are no proof against somebody who looks for two alike."""
        others = iter(range(2, 1_000_000))
        free = name
        while (self.folder / free).exists():
            free = f"{name}-{next(others)}"
        return free

    def _sweep(self) -> None:
        """Remove what a process left that was killed as it wrote; one process at a time keeps deliveries here."""
        for path in self.folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, arrays: Arrays, settings: dict[str, Any]) -> None:
    save_arrays(arrays, folder / ARRAYS, mode=0o600)
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2).encode(), mode=0o600)
