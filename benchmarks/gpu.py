"""All that is promised of a GPU, checked and measured by one command.

    python -m benchmarks.gpu runs/gpu
    python -m benchmarks.gpu runs/gpu --only steps privacy
    python -m benchmarks.gpu runs/gpu --device cpu --small

It needs CUDA and PyTorch 2.11 or newer, and neither data nor weights: the shop and the encoders are made here
(`benchmarks/shop.py`), in the shapes of the demo's second brand, of MiniLM and of BERT base. A piece that is done leaves its
figures in `FOLDER/<piece>.json`, so that what is measured can be spread over several calls; the one table at the end is of all
that is there. The last command tries the program itself on a processor; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_pieces import FULL, PIECES, SMALL, Machine, Size
from benchmarks.gpu_table import table
from benchmarks.measure import environment
from fedrec.cli.terminal import err, quiet_libraries
from fedrec.config import make_folder, write_atomically
from fedrec.errors import InputError
from fedrec.model.encoder import resolve_device

__all__ = ["main", "measure"]


def measure(folder: Path, names: list[str], size: Size, device: torch.device) -> bool:
    """Run pieces one after the other; the figures of each are on disk before the next begins.

    Returns:
        Whether all of them came to an end.
    """
    make_folder(folder)
    whole = True
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDREC_CACHE"] = str(Path(scratch) / "cache")
        machine = Machine(device, size, Path(scratch))
        for name in names:
            err.print(f"{name} ...")
            started = time.perf_counter()
            found: dict[str, Any]
            try:
                found = PIECES[name](machine)
            except Exception as error:  # the other pieces can still be measured
                traceback.print_exc()
                found, whole = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}, False
            found |= {"took": time.perf_counter() - started, "environment": environment(device)}
            write_atomically(folder / f"{name}.json", json.dumps(found, indent=2).encode())
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return whole


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit status is 2 where there is no such device, and 1 where a piece failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the figures of each piece go")
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="NAME", help=", ".join(PIECES))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the program")
    given = parser.parse_args(arguments)
    with contextlib.suppress(ModuleNotFoundError):  # without Flower all but whole rounds can be measured
        quiet_libraries()
    try:
        device = resolve_device(given.device)
    except InputError as error:
        hint = "" if given.device == "cpu" else "; `--device cpu --small` tries this program without a GPU"
        sys.stderr.write(f"error: {error}{hint}\n")
        return 2
    whole = measure(given.folder, given.only, SMALL if given.small else FULL, device)
    found = {name: path for name in PIECES if (path := given.folder / f"{name}.json").exists()}
    text = table({name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items()})
    write_atomically(given.folder / "gpu.md", text.encode())
    sys.stdout.write(text)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
