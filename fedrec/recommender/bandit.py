"""What a merchant learned by trying: the posterior of `fedrec.explore.feedback`, in one file that only its owner may read.

It is learned from all lists that explored and the feedback to them, beside the adapter that ranks; beside another one it does not
count, since a score means something else there. It is never an input to anything that is sent or trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedrec.config import make_private, write_atomically
from fedrec.errors import InputError
from fedrec.explore.beliefs import Prior
from fedrec.explore.feedback import Feedback, Learned, learn
from fedrec.model.adapter import digest

__all__ = ["BANDIT", "Bandit", "bandit_beside"]

BANDIT, FORMAT = "bandit.safetensors", 1
IDS = "item_ids"
UNREADABLE = "what lists that explored taught cannot be read, so it does not count; `fedrec explore learn` learns it again"


@dataclass(frozen=True)
class Bandit:
    """A posterior over a catalogue as it was.

    Attributes:
        item_ids: of the items that could be shown.
        learned: of them, in this order.
        direction, level: what the effect of an item that is new since is believed to be: `level + vector . direction`,
            (width,) and a number.
        version: the adapter that it was learned beside; None for the untrained text.
        facts: how much it was learned from, for people.
    """

    item_ids: tuple[str, ...]
    learned: Learned
    direction: np.ndarray
    level: float
    version: str | None
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, item_ids: Sequence[str], prior: Prior, feedback: Feedback, version: str | None, facts: Mapping[str, Any]) -> Self:
        """Learned from feedback over these items (items,), of which `prior` was known."""
        learned = learn(prior, feedback)
        unknown, constant, *_ = learned.kind
        direction = prior.axes @ learned.kind[2:]
        level = float(unknown + constant - prior.centre @ direction)
        return cls(tuple(item_ids), learned, direction, level, version, facts)

    def over(self, item_ids: Sequence[str], vectors: np.ndarray) -> Learned:
        """The same over other items (items,) and their vectors (items, width): a new one is worth what its kind is."""
        known = {name: place for place, name in enumerate(self.item_ids)}
        place = np.array([known.get(name, -1) for name in item_ids], dtype=np.int64)
        old, effect = place >= 0, self.level + vectors.astype(np.float64) @ self.direction
        sd, told = np.full(len(place), self.learned.sd.max(initial=0.0)), np.zeros(len(place))
        for new, learned in ((effect, self.learned.effect), (sd, self.learned.sd), (told, self.learned.told)):
            new[old] = learned[place[old]]
        return Learned(self.learned.slope, effect, sd, told, self.learned.kind)

    def write(self, folder: Path) -> None:
        """Into `folder`, whole or not at all."""
        make_private(folder)
        learned = self.learned
        arrays = {
            "effect": learned.effect, "sd": learned.sd, "told": learned.told, "kind": learned.kind, "direction": self.direction,
            IDS: np.frombuffer(json.dumps(self.item_ids).encode(), dtype=np.uint8),
        }  # fmt: skip
        said = {
            "format": FORMAT, "version": self.version, "slope": learned.slope, "level": self.level, "facts": dict(self.facts),
            "digest": digest(arrays),
        }  # fmt: skip
        write_atomically(folder / BANDIT, save(arrays, {"fedrec": json.dumps(said)}), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What was written, None where nothing was.

        Raises:
            InputError: it is damaged, or of another version of this program.
        """
        path = folder / BANDIT
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                said = json.loads(file.metadata()["fedrec"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if said["format"] != FORMAT or said["digest"] != digest(arrays):
                raise ValueError("it is not what this program writes")
            learned = Learned(said["slope"], *(arrays[name] for name in ("effect", "sd", "told", "kind")))
            ids = tuple(json.loads(arrays[IDS].tobytes()))
            return cls(ids, learned, arrays["direction"], said["level"], said["version"], said["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"what was learned cannot be read ({error})", where=str(path), hint="learn it again: `fedrec explore learn`"
            ) from None


def bandit_beside(folder: Path, version: str | None) -> tuple[Bandit | None, str | None]:
    """What was learned beside this version, None where nothing was; and for people why it does not count, if it cannot be read.

    That is no reason not to rank: it can be learned again.
    """
    try:
        found = Bandit.read(folder)
    except InputError:
        return None, UNREADABLE
    return (found if found is not None and found.version == version else None), None
