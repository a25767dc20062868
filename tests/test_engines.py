"""Flower's simulation runtime on Ray gives what the inline engine gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec.config import save_config
from server.run_folder import RunFolder
from simulations.run import simulate

from .helpers import central, ledger_rounds, make_federation, settings_of


@pytest.mark.slow
@pytest.mark.integration
def test_both_engines_give_the_same_metrics(tiny_bert_folder: Path, tmp_path: Path, private_cache: Path) -> None:
    pytest.importorskip("ray")
    federation, config = make_federation(tmp_path), settings_of(tiny_bert_folder)
    save_config(config, tmp_path / "settings.toml")
    inline = simulate(federation, config, tmp_path / "inline")
    command = [
        str(Path(sys.executable).with_name("fedrec")), "simulate", str(federation), "--config", str(tmp_path / "settings.toml"),
        "--out", str(tmp_path / "ray"), "--engine", "flower", "--no-reference",
    ]  # fmt: skip
    environment = {**os.environ, "FEDREC_CACHE": str(private_cache)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    flower = RunFolder.open(tmp_path / "ray")
    assert len(central(flower)) == 4
    for here, there in zip(central(inline), central(flower), strict=True):
        assert there == pytest.approx(here, abs=1e-4)
    assert ledger_rounds(flower) == ledger_rounds(inline) == {name: [0, 1, 2, 3] for name in ("m0", "m1", "m2")}
