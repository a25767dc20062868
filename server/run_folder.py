"""The run folder: configuration, metrics, checkpoints, adapter.

A checkpoint is one file that is renamed into place, so an interruption leaves the one
before. `metrics.jsonl` is cut back to the checkpoint on resume: a round counts when its
checkpoint is there.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedrec.config import HomeObjective, RunConfig, load_config, save_config, write_atomically
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays
from fedrec.model.towers import Scoring

__all__ = ["DELIVERED", "Best", "RunFolder", "ServerState"]

DELIVERED = "delivered.json"

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Best:
    """The adapter that the judging users find most likely so far.

    Attributes:
        round: after which round it was; 0 is the start.
        loss: their mean loss under it.
        since: rounds since then that moved the adapter.
    """

    round: int
    loss: float
    since: int
    trained: Arrays

    def followed_by(self, number: int, loss: float, trained: Arrays) -> Best:
        """The best after one more round."""
        return Best(number, loss, 0, trained) if loss < self.loss else replace(self, since=self.since + 1)


@dataclass(frozen=True)
class ServerState:
    """What a server must remember to go on.

    Attributes:
        run: the run's id, the one that ledgers hold.
        round: the last finished round.
        trained: the adapter.
        public: base arrays and prior, as merchants get them.
        optimizer: the server optimizer's arrays.
        scoring: what merchants train under; the evaluation chooses its own weight of the prior.
        encoder_fingerprint: of the encoder below the adapter; empty in a run from before it was kept.
        best: what the judging users find most likely so far, where they say when to stop.
        stopped: whether they have.
    """

    run: str
    round: int
    trained: Arrays
    public: Arrays
    optimizer: Arrays
    scoring: Scoring
    encoder_fingerprint: str = ""
    best: Best | None = None
    stopped: bool = False

    def ended(self, rounds: int) -> bool:
        """Whether no round of so many is left to be run."""
        return self.stopped or self.round >= rounds

    def after(self, trained: Arrays, optimizer: Arrays) -> ServerState:
        """The state one round later."""
        return replace(self, round=self.round + 1, trained=trained, optimizer=optimizer)


class RunFolder:
    """`runs/<id>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunFolder:
        """Make a new run folder.

        Raises:
            InputError: there is something already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError("is already there", where=str(path), hint="give another --out, or --resume to go on with it")
        path.mkdir(parents=True, exist_ok=True)
        save_config(config, path / "config.toml")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open one that is there.

        Raises:
            InputError: this is not a run folder.
        """
        if not (path / "config.toml").is_file():
            raise InputError("there is no config.toml", where=str(path), expected="a run folder")
        return cls(path)

    @property
    def config(self) -> RunConfig:
        """The resolved settings."""
        return load_config(self.path / "config.toml")

    @property
    def goes_home(self) -> HomeObjective | None:
        """The objective under which merchants use what it trains; None where they have no use for it."""
        parts = self.config.objective.split("+")
        return next((name for name in get_args(HomeObjective) if name in parts), None)

    @staticmethod
    def new_run_id() -> str:
        """An id that no other run has."""
        return uuid.uuid4().hex[:16]

    def save(self, state: ServerState) -> None:
        """Write a checkpoint; the last few are kept."""
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        arrays = {
            f"{group}|{name}": value
            for group in ("trained", "public", "optimizer")
            for name, value in getattr(state, group).items()
        }
        meta = {"run": state.run, "round": str(state.round), "scoring": json.dumps(state.scoring.by_name())}
        meta["encoder_fingerprint"] = state.encoder_fingerprint
        if state.best is not None:
            arrays |= {f"best|{name}": value for name, value in state.best.trained.items()}
            numbers = {"round": state.best.round, "loss": state.best.loss, "since": state.best.since}
            meta |= {"best": json.dumps(numbers), "stopped": json.dumps(state.stopped)}
        path = folder / f"round-{state.round:05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file(arrays, temporary, metadata=meta)
        temporary.replace(path)
        for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load(self) -> ServerState | None:
        """The last checkpoint, None before the first.

        Raises:
            InputError: it is damaged.
            OSError: it cannot be read.
        """
        found = self._checkpoints()
        if not found:
            return None
        groups: dict[str, Arrays] = {"trained": {}, "public": {}, "optimizer": {}, "best": {}}
        try:
            with safe_open(found[-1], framework="numpy") as file:
                meta = file.metadata()
                for key in file.keys():  # noqa: SIM118
                    group, _, name = key.partition("|")
                    groups[group][name] = file.get_tensor(key)
            scoring, fingerprint = Scoring.from_names(json.loads(meta["scoring"])), meta.get("encoder_fingerprint", "")
            trained = groups.pop("best")
            best = Best(**json.loads(meta["best"]), trained=trained) if "best" in meta else None
            return ServerState(
                meta["run"], int(meta["round"]), scoring=scoring, encoder_fingerprint=fingerprint, **groups,
                best=best, stopped=json.loads(meta.get("stopped", "false")),
            )  # fmt: skip
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"is damaged ({type(error).__name__}: {error})",
                where=str(found[-1]),
                expected="a checkpoint",
                hint="get it back from a backup, or delete it: --resume goes on from the one before",
            ) from None

    def last_round(self) -> int | None:
        """The round of the last checkpoint, None before the first."""
        found = self._checkpoints()
        return int(found[-1].stem.removeprefix("round-")) if found else None

    def saved_at(self) -> float:
        """When the last checkpoint was written, in seconds since 1970.

        Raises:
            IndexError: there is none.
        """
        return self._checkpoints()[-1].stat().st_mtime

    def delivered(self, number: int) -> dict[str, dict[str, str]] | None:
        """By merchant what it answered, and when, as the adapter of a round went home; None where that never did."""
        try:
            known = json.loads((self.path / DELIVERED).read_text(encoding="utf-8"))
            return known["merchants"] if known["round"] == number else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append a round's line; a line of the same or a later round is replaced."""
        lines = [known for known in self.metrics() if known["round"] < line["round"]]
        text = "".join(json.dumps(known) + "\n" for known in [*lines, line])
        write_atomically(self.path / "metrics.jsonl", text.encode())

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*.safetensors"))

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file of the folder."""
        write_atomically(self.path / name, json.dumps(value, indent=2).encode())
