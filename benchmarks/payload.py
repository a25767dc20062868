"""Bytes of a round and merchant, against sending the model.

    python -m benchmarks.payload

Two short simulations of two of the demo's brand shops, one for each `update_code`: a round on the
heads and a round on the encoder. The bytes are those of the real messages, from `metrics.jsonl`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import options, report
from fedrec.data.demo import build_demo
from fedrec.model import load_encoder
from server.run_folder import RunFolder

__all__ = ["main", "measure", "table"]

SETTINGS = {"rounds": 3, "encoder_rounds": 1, "noise_multiplier": 5.0, "bootstrap": 100, "calibrate": "false"}


def measure() -> dict[str, Any]:
    """Bytes of the last round on each part, the most of any merchant, and of the model."""
    found: dict[str, Any] = {"model": load_encoder("minilm-l6", 1, 8, 48, "cpu", 128).base_size, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        federation = Path(name) / "federation"
        build_demo(federation, {"epsilon": 1000.0, "delta": 1e-5})
        for extra in sorted((federation / "merchants").iterdir())[2:]:
            shutil.rmtree(extra)
        for code in ("float32", "int8"):
            run = Path(name) / code
            flags = [f"--set={key}={value}" for key, value in {**SETTINGS, "update_code": code}.items()]
            command = [sys.executable, "-m", "fedrec.cli.main", "simulate", str(federation), *flags, "--no-reference"]
            subprocess.run([*command, "--out", str(run)], check=True, capture_output=True, env=os.environ)
            for line in RunFolder(run).metrics()[2:]:
                sizes = {way: max(line[way].values()) for way in ("bytes_up", "bytes_down")}
                found["rows"].append({"code": code, "part": line["part"], **sizes})
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    model = found["model"]
    rows = [
        f"The model has {model:,} bytes.", "",
        "| round on | update_code | bytes up | times smaller | bytes down | times smaller |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        up, down = row["bytes_up"], row["bytes_down"]
        rows.append(f"| {row['part']} | {row['code']} | {up:,} | {model / up:,.0f} | {down:,} | {model / down:,.0f} |")
    return "\n".join(rows)


def main() -> None:
    """The command."""
    arguments = options(__doc__).parse_args()
    found = measure()
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
