"""The noise that the server's optimizer is told of is the noise that is in the update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import server.secure
import server.strategy
from fedrec.aggregation import apply_update
from fedrec.model.adapter import Arrays, flat
from simulations.run import simulate

from .helpers import make_federation, set_policy, settings_of


@pytest.mark.parametrize(
    ("trust", "settings"),
    [
        ("local", {}),
        ("local", {"weighting": "equal"}),
        ("local", {"aggregation": "trimmed-mean", "min_merchants": 3}),
        ("secure-aggregation", {"dropouts": 1, "colluders": 1}),
    ],
)
def test_it_is_the_spread_of_an_update_that_is_all_noise(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str, settings: dict[str, Any]
) -> None:
    applied: list[tuple[float, Arrays]] = []

    def watched(name: str, current: Arrays, update: Arrays, state: Arrays, rate: float, noise: float) -> tuple[Arrays, Arrays]:
        applied.append((noise, update))
        return apply_update(name, current, update, state, rate, noise)

    for module in (server.strategy, server.secure):
        monkeypatch.setattr(module, "apply_update", watched)
    federation = make_federation(tmp_path / "federation", merchants=5, users=30, policy={"trust": trust})
    if trust == "local":
        set_policy(federation, "m0", population=90)
    # So much noise that the gradients are none of it.
    noise = {"noise_multiplier": 900.0, "histogram_noise_multiplier": 50.0}
    config = settings_of(
        tiny_bert_folder, rank=32, rounds=2, encoder_rounds=0, encoder_layers=0, calibrate=False, trust=trust, **noise, **settings
    )
    simulate(federation, config, tmp_path / "run")
    assert len(applied) == 2
    for told, update in applied:
        assert told == pytest.approx(flat(update).std(), rel=0.12)
