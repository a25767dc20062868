"""The final table of a run, from what its folder holds and the central users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrec.data import load_central
from server.evaluators import Evaluator, evaluator_of
from server.given_start import read_start, start_of
from server.run_folder import RunFolder
from server.start import load_encoder_for
from server.statistics import release_of_pairs

__all__ = ["row", "write_results"]


def write_results(folder: RunFolder, federation: Path, simulation: bool, more: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Write `results.json`: baselines, what was trained, and `more` rows; the paired gain beside them.

    Returns:
        What was written: rows of a name, whether it is private, and metrics; the trust model; the rounds whose
        secure sum was not opened, with the reason; what the judging users decided; the start if it was given one; and how the
        release of what goes with what went, if there was one.
    """
    config, lines = folder.config, folder.metrics()
    encoder_of_run = load_encoder_for(config)
    evaluator = evaluator_of(config, load_central(federation), encoder_of_run)
    given = read_start(folder.path)
    begun = {"untrained start": "given start"} if given else {}
    rows = [row(begun.get(name, name), True, metrics) for name, metrics in lines[0]["baselines"].items()]
    rows.append(row("given start, calibrated" if given else "untrained start, calibrated", True, lines[0]["central"]))
    heads = [line for line in lines if line["part"] == "heads"]
    encoder = [line for line in lines if line["part"] == "encoder"]
    if heads and encoder:
        rows.append(row("federated, private, heads only", True, heads[-1]["central"]))
    if len(lines) > 1:
        what = "heads + encoder LoRA" if heads and encoder else "heads" if heads else "encoder LoRA"
        rows.append(row(f"federated, private, {what}", True, lines[-1]["central"]))
    results = {
        "rows": [*rows, *more],
        "rounds": lines[-1]["round"],
        "kept": lines[-1].get("kept", 1.0),
        **({"judged": lines[-1]["judged"]} if "judged" in lines[-1] else {}),
        **({"start": given.origin()} if given else {}),
        **({"complements": release} if (release := release_of_pairs(folder)) else {}),
        "simulation": simulation,
        "trust": config.trust,
        "abandoned": {str(line["round"]): line["abandoned"] for line in lines if "abandoned" in line},
        "model_bytes": encoder_of_run.base_size,
        "objective": config.objective,
        "metrics": list(evaluator.shown),
        "gain": _gain(folder, evaluator),
    }
    folder.write_json("results.json", results)
    return results


def row(name: str, private: bool, metrics: dict[str, float]) -> dict[str, Any]:
    """A row of the table."""
    return {"name": name, "private": private, **metrics}


def _gain(folder: RunFolder, evaluator: Evaluator) -> dict[str, Any] | None:
    """What the trained adapter gains over its start, user by user."""
    state = folder.load()
    if state is None or state.round == 0:
        return None
    return evaluator.gain(state.public, start_of(folder.path, state.trained), state.trained)
