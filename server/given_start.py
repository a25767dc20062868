"""Where a run starts that does not start untrained: the adapter of another run, or of a public adaptation.

It is checked and copied into the run folder's `start/` before the run begins, so that nothing of where it came from is needed
afterwards. What was released for it is in the merchants' ledgers, which are for life; to take it up again costs nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import RunConfig, write_atomically
from fedrec.errors import InputError
from fedrec.model import Arrays, TextEncoder, init_trained
from fedrec.model.adapter import CENTRE, HEAD_A, TERMS, digest, save_arrays
from fedrec.model.complements import KINDS, LIFT
from fedrec.model.saved import ARRAYS, SETTINGS, read_arrays
from fedrec.objectives import OBJECTIVES

__all__ = ["GivenStart", "check_start", "copy_start", "open_start", "public_roles", "read_start", "start_of"]

FOLDER, ORIGIN = "start", "start.json"


@dataclass(frozen=True)
class GivenStart:
    """An adapter that a run starts from.

    Attributes:
        where: the folder that it was read from.
        digest: of all its arrays.
        settings: what its `fedrec.json` says.
    """

    where: Path
    arrays: Arrays
    settings: dict[str, Any]
    digest: str

    def origin(self) -> dict[str, str]:
        """What a run says of it."""
        objective = str(self.settings.get("objective", "next-item"))
        return {"from": str(self.where.resolve()), "digest": self.digest, "objective": objective}


def open_start(path: Path) -> GivenStart:
    """The adapter of a run folder, or of a folder that holds one.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    arrays, settings = read_arrays(path / "adapter" if (path / "adapter").is_dir() else path)
    return GivenStart(path, arrays, settings, digest(arrays))


def check_start(given: GivenStart, config: RunConfig, encoder: TextEncoder) -> tuple[Arrays, Arrays]:
    """The public base of a start, and its trained part, with linear terms of zero where they are new.

    What goes with what is not taken up: a run that wants it asks for it.

    Raises:
        InputError: it is for another encoder, public users had other roles for it, or an array is missing, unknown, of another
            shape or type, or not finite.
    """
    where, hint = str(given.where), "give a run with the same encoder, encoder_layers, encoder_rank, max_tokens, heads and rank"
    if given.settings.get("encoder_fingerprint") != encoder.fingerprint:
        raise InputError(
            "the adapter is of another encoder than this run's", where=where, expected=encoder.fingerprint, hint=hint
        )
    for name, now in public_roles(config).items():
        if given.settings.get(name, now) != now:
            raise InputError(
                f"{name} is {now:g}: public users who chose or judged for the start would be measured now, or the reverse",
                where=where, expected=f"{name} = {given.settings[name]!r:.40}, as the start had it",
            )  # fmt: skip
    terms = OBJECTIVES[config.objective].terms
    zero = init_trained(encoder, config.heads, config.rank, terms)
    unused = {KINDS, LIFT} if terms else {KINDS, LIFT, TERMS}
    found = {name: value for name, value in given.arrays.items() if name not in unused}
    if terms:
        found.setdefault(TERMS, zero[TERMS])
    base = {CENTRE: (encoder.hidden,), **{name: value.shape for name, value in encoder.frozen().items()}}
    if config.heads:
        base[HEAD_A] = (encoder.hidden, config.rank)
    expected = {**base, **{name: value.shape for name, value in zero.items()}}
    for name in sorted(expected.keys() | found.keys()):
        value = found.get(name)
        if value is None or name not in expected:
            what = "is missing" if value is None else "is not one that this run has"
            raise InputError(f"array {name} {what}", where=where, hint=hint)
        if value.shape != expected[name] or value.dtype != np.float32:
            raise InputError(
                f"array {name} is {value.dtype} of {value.shape}", where=where, expected=f"float32 of {expected[name]}", hint=hint
            )
        if not np.isfinite(value).all():
            raise InputError(f"array {name} is not finite", where=where, hint="copy the run again")
    return {name: found[name] for name in base}, {name: found[name] for name in zero}


def public_roles(config: RunConfig) -> dict[str, float]:
    """The settings that say which public users choose and which are measured, as an adapter's `fedrec.json` has them."""
    return {"seed": config.seed, "calibration_share": config.calibration_share if config.calibrate else 0.0}


def copy_start(given: GivenStart, run: Path) -> None:
    """Keep a start in a run folder."""
    save_arrays(given.arrays, run / FOLDER / ARRAYS)
    for name, value in ((SETTINGS, given.settings), (ORIGIN, given.origin())):
        write_atomically(run / FOLDER / name, json.dumps(value, indent=2).encode())


def read_start(run: Path) -> GivenStart | None:
    """What `copy_start` kept in a run folder; None where a run starts untrained.

    Raises:
        InputError: it cannot be read, or is not what was copied.
    """
    folder = run / FOLDER
    if not folder.is_dir():
        return None
    arrays, settings = read_arrays(folder)
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        kept = GivenStart(Path(origin["from"]), arrays, settings, str(origin["digest"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(folder / ORIGIN), hint="copy the run again") from None
    if digest(arrays) != kept.digest:
        raise InputError("the start is not the one that the run began with", where=str(folder), hint="copy the run again")
    return kept


def start_of(run: Path, trained: Arrays) -> Arrays:
    """The trained part that a run began with: zeros, or what it was given."""
    given = read_start(run)
    known = given.arrays if given else {}
    return {name: known.get(name, np.zeros_like(value)) for name, value in trained.items()}
