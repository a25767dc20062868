"""Trackers by name, and a tracker from `NAME:TARGET`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from fedrec.errors import InputError
from fedrec.tracking.tracker import Tracker

__all__ = ["TRACKERS", "Kind", "open_tracker"]


@dataclass(frozen=True)
class Kind:
    """A kind of tracker.

    Attributes:
        module, name: its class, which takes the target; imported when it is asked for.
        target: what the target is, for people.
    """

    module: str
    name: str
    target: str

    def make(self) -> Callable[[str], Tracker]:
        """The class.

        Raises:
            ImportError: its library is not installed.
        """
        found: Callable[[str], Tracker] = getattr(import_module(self.module), self.name)
        return found


TRACKERS = {
    "tensorboard": Kind("fedrec.tracking.tensorboard", "TensorBoard", "FOLDER"),
    "mlflow": Kind("fedrec.tracking.mlflow", "MLflow", "TRACKING_URI"),
    "wandb": Kind("fedrec.tracking.wandb", "WeightsAndBiases", "PROJECT"),
}
"""Every tracker; all but the first need an extra of their own name."""


def open_tracker(text: str) -> Tracker:
    """A tracker from its name and target, such as `tensorboard:logs`.

    Raises:
        InputError: there is no such tracker, it has no target, or its library is not installed or cannot be used.
    """
    name, _, target = text.partition(":")
    if name not in TRACKERS or not target:
        raise InputError(
            f"found {text!r}", where="--track", expected=" or ".join(f"{known}:{kind.target}" for known, kind in TRACKERS.items())
        )
    try:
        return TRACKERS[name].make()(target)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed", where=f"--track {text}", hint=f"pip install 'fedrec[{name}]'"
        ) from None
    except Exception as error:  # of a library that is another's
        raise InputError(f"cannot be used ({type(error).__name__}: {error})", where=f"--track {text}") from None
