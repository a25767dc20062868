"""Every figure of `docs/performance.md`: each part in a process of its own, one after the other.

    python -m benchmarks.speed runs/speed
    python -m benchmarks.speed runs/speed --parts steps payload

A part that is done leaves its figures (`steps.json`) and its table (`steps.md`) in the folder and is not
run again, so that an interrupted run goes on where it was; `--again` forgets them. `speed.md` and
`speed.json` hold all of them. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from fedrec.cli.terminal import err
from fedrec.config import write_atomically

__all__ = ["PARTS", "main"]

PARTS = {
    "steps": ("A private step", ["benchmarks.steps"]),
    "item_table": ("The item table", ["benchmarks.item_table"]),
    "evaluation": ("Central evaluation", ["benchmarks.evaluation", "--repeats", "5"]),
    "rounds": ("Rounds on the heads", ["benchmarks.rounds"]),
    "obvious_rounds": (
        "Rounds on the encoder",
        ["benchmarks.rounds", "--part", "encoder", "--engines", "inline", "flower", "obvious, Ray"],
    ),
    "payload": ("Bytes of a round", ["benchmarks.payload"]),
    "serving": ("Recommending", ["benchmarks.serving"]),
    "secure_sum": ("A secure sum", ["benchmarks.secure_sum"]),
    "deployment": ("A deployed round", ["benchmarks.deployment"]),
}
"""Title and command of each part, by the name of its files."""


def run(name: str, folder: Path) -> None:
    """Run a part, unless its figures are there.

    Raises:
        SystemExit: it failed; with its status and the end of what it wrote.
    """
    figures, text = folder / f"{name}.json", folder / f"{name}.md"
    if figures.exists() and text.exists():
        return
    err.print(f"{name} ...")
    command = [sys.executable, "-W", "ignore", "-m", *PARTS[name][1], "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr[-2000:])
        raise SystemExit(done.returncode)
    write_atomically(text, done.stdout.encode())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that are done once more")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        if arguments.again:
            (folder / f"{name}.md").unlink(missing_ok=True)
        run(name, folder)
    done = [name for name in PARTS if (folder / f"{name}.md").exists()]
    tables = [f"## {PARTS[name][0]}\n\n{(folder / f'{name}.md').read_text(encoding='utf-8')}" for name in done]
    write_atomically(folder / "speed.md", "\n".join(tables).encode())
    everything = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in done}
    write_atomically(folder / "speed.json", json.dumps(everything, indent=2).encode())
    sys.stdout.write((folder / "speed.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
