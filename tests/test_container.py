"""The container recipe, held against what it names: files, extras, the command and its options, what the health check asks."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import typer

from fedrec.cli.main import app
from fedrec.serve.guard import OPEN

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def steps() -> list[tuple[str, str]]:
    """Instructions in order, each with the rest of its line; continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined)]


def of(name: str) -> list[str]:
    return [rest for step, rest in steps() if step == name]


def test_what_is_copied_is_there_is_let_through_and_is_all_that_the_package_needs() -> None:
    copied = [word for rest in of("COPY") if not rest.startswith("--from") for word in rest.split()[:-1]]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_through and all((ROOT / name).exists() for name in copied)
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages == {name for name in copied if (ROOT / name).is_dir()}
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= set(copied)


def test_it_installs_extras_that_there_are_under_the_constraints() -> None:
    (install,) = of("RUN")
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", install)
    assert {"serve", "demo"} <= set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    assert "--constraint constraints.txt" in install and "--no-cache-dir" in install
    versions = {re.fullmatch(r"python:(3\.\d+)-slim.*", rest)[1] for rest in of("FROM")}  # type: ignore[index]
    assert len(versions) == 1, "a virtual environment is of one Python"
    assert any(one.endswith(f":: {next(iter(versions))}") for one in PROJECT["project"]["classifiers"])


def test_it_runs_as_nobody_in_particular_and_from_what_it_installed() -> None:
    (user,) = of("USER")
    assert all(int(number) > 0 for number in user.split(":"))
    assert [name for name, _ in steps()].index("USER") > max(place for place, (name, _) in enumerate(steps()) if name == "RUN")
    environment = dict(pair.partition("=")[::2] for pair in shlex.split(of("ENV")[0]))
    assert "/opt/fedrec/bin" in environment["PATH"]
    for folder in (environment["HOME"], environment["FEDREC_CACHE"]):
        assert Path(folder).parts[:2] == ("/", "tmp"), "the root is read-only"


def test_its_command_is_one_that_the_program_takes() -> None:
    program, name, *arguments = json.loads(of("ENTRYPOINT")[0])
    assert PROJECT["project"]["scripts"].keys() == {program}
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    asked = command.make_context(name, arguments).params
    assert (asked["host"], asked["key_file"]) == ("0.0.0.0", "/keys/keys.toml"), "other machines reach it, so with keys"
    assert of("EXPOSE") == [str(asked["port"])]


@pytest.mark.parametrize(("status", "ends"), [(200, 0), (503, 1)])
def test_the_health_check_asks_for_what_needs_no_key_and_fails_until_it_is_ready(status: int, ends: int) -> None:
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    program, *arguments = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    port = f":{of('EXPOSE')[0]}/"
    assert program == "python" and port in arguments[-1]
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        arguments[-1] = arguments[-1].replace(port, f":{server.server_port}/")
        done = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60)
        thread.join()
    assert done.returncode == ends and asked == ["/readyz"] and asked[0] in OPEN
