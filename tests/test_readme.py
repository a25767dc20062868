"""Every command that the README shows, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import write_source

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_are_there_and_the_makefile_has_them() -> None:
    assert blocks("bash")[0].split("\n")[:2] == ["make demo", "make test"]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
@pytest.mark.integration
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    write_source(tmp_path / "my-data", merchants=3, users=150)
    program = Path(sys.executable).with_name("fedrec")
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    commands = [line for block in blocks("bash")[1:] for line in block.splitlines() if line]
    assert len(commands) >= 6
    try:
        for command in commands:
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    finally:  # nothing to do but where a command before it failed
        subprocess.run([program, "deploy", "down", "my-deployment"], cwd=tmp_path, env=environment, capture_output=True)
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "mine" / "report.html").stat().st_size > 10_000
