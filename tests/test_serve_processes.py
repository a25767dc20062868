"""`fedrec serve` as a process: it is stopped, killed, started twice over, and asked whatever a fuzzer thinks of."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedrec.data.feedback import FEEDBACK, LOG
from fedrec.model.versions import Versions

from .stores import make_store, response_model, with_key

pytestmark = [pytest.mark.slow, pytest.mark.integration]
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Served:
    """A process that serves."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def served(path: Path, log: Path, *options: object) -> Iterator[Served]:
    """`fedrec serve PATH`, ready."""
    command = [sys.executable, "-m", "fedrec.cli.main", "serve", str(path), "--port", "0", *map(str, options)]
    wide = {**os.environ, "COLUMNS": "200"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env=wide)
    try:
        assert process.stdout is not None
        url = next(iter(re.findall(r"http://[^\s:]+:\d+", process.stdout.readline())), "")
        found = Served(process, url, log)
        end = time.monotonic() + 180
        while url and process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    return make_store(tmp_path_factory.mktemp("secret-place") / "shop", tiny_bert_folder)


def events(numbers: list[int]) -> dict[str, Any]:
    return {"events": [{"event_id": f"e{n}", "user_id": f"u{n % 7}", "item_id": f"i{n % 5}"} for n in numbers]}


def test_a_kill_at_any_moment_loses_nothing_acknowledged_and_doubles_nothing(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(store, folder)
    acknowledged: set[int] = set()
    rng = random.Random(0)
    for start in range(2):
        with served(folder, tmp_path / "log") as service:

            def send(first: int, url: str = service.url, start: int = start) -> None:
                with httpx.Client(base_url=url, timeout=10) as client, suppress(httpx.TransportError):
                    for batch in range(100_000):
                        # Each batch again with the one before it, as a client does that has lost its connection.
                        start_at = 1_000_000 * start + 100_000 * first
                        numbers = [start_at + 10 * one + n for one in (batch - 1, batch) if one >= 0 for n in range(10)]
                        if client.post("/v1/feedback", json=events(numbers)).status_code == 200:
                            acknowledged.update(numbers)

            with ThreadPoolExecutor(3) as pool:
                sending = [pool.submit(send, first) for first in range(3)]
                end = time.monotonic() + 60
                while len(acknowledged) < 200 * (start + 1) and time.monotonic() < end:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.05))
                service.process.send_signal(signal.SIGKILL)
                for one in sending:
                    one.result()
    with served(folder, tmp_path / "log") as service:
        assert httpx.post(f"{service.url}/v1/feedback", json=events([9_999_999])).json()["stored"] == 1
        repeated = httpx.post(f"{service.url}/v1/feedback", json=events(sorted(acknowledged)[:400])).json()
        assert (repeated["stored"], repeated["repeated"]) == (0, 400)
    found = [line.partition(",")[0] for line in (folder / FEEDBACK / LOG).read_text().splitlines()[1:]]
    assert len(acknowledged) >= 400 and len(found) == len(set(found))
    assert {f"e{number}" for number in acknowledged} <= set(found)


def test_what_has_begun_is_finished_and_the_log_holds_no_key_and_no_path(store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    with served(store, tmp_path / "log", "--key-file", keys) as service:
        given = tomllib.loads(keys.read_text())
        headers = {**with_key(given["keys"]["shop"]["staff"]), "Content-Type": "application/json"}
        arriving, stopped = threading.Event(), threading.Event()

        def body() -> Iterator[bytes]:
            """Half of it, and the rest when the service has been told to stop and listens no longer."""
            yield b'{"history": ["i1", "i2"],'
            arriving.set()
            assert stopped.wait(20)
            yield b' "query": "red lamp"}'

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(httpx.post, f"{service.url}/v1/recommend", content=body(), headers=headers, timeout=20)
            assert arriving.wait(10)
            time.sleep(0.3)  # the head has been read by then
            service.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 20
            with suppress(httpx.TransportError):
                while time.monotonic() < end:
                    httpx.get(f"{service.url}/livez")
            stopped.set()
            found = asking.result()
        assert time.monotonic() < end, "it listens no longer"
        assert found.status_code == 200 and len(found.json()["items"]) == 10
        assert service.process.wait(30) == 0
    told = (tmp_path / "log").read_text()
    assert "secret-place" not in told and "Traceback" not in told
    assert not [key for key in (given["metrics"], *given["keys"]["shop"].values()) if key in told]


def test_figures_of_several_processes_add_up(store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    with served(store, tmp_path / "log", "--workers", 2, "--key-file", keys) as service:
        given = tomllib.loads(keys.read_text())
        for _ in range(30):  # each on a connection of its own, so that both processes have some
            found = httpx.post(f"{service.url}/v1/recommend", json={}, headers=with_key(given["keys"]["shop"]["shop"]))
            assert found.status_code == 200
        text = httpx.get(f"{service.url}/metrics", headers=with_key(given["metrics"])).text
        assert 'fedrec_requests_total{route="/v1/recommend",status="200"} 30.0' in text
        assert service.stop() == 0


def test_a_process_that_cannot_begin_again_leaves_the_others_alone(store: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "shop", tmp_path / "log"
    shutil.copytree(store, folder)

    def workers(service: Served) -> set[int]:
        """Those that listen, of the process's children."""
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        return {int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}

    def wait_for(told: str, times: int) -> None:
        end = time.monotonic() + 200  # a supervisor that waits for a dead one's answer gives it a minute
        while log.read_text().count(told) < times:
            assert time.monotonic() < end and service.process.poll() is None, log.read_text()
            time.sleep(0.1)

    with served(folder, log, "--workers", 2) as service:
        wait_for("Application startup complete", 2)
        (folder / "items.csv").write_text("item_id,title\ni1,a\ni1,b\n")
        os.kill(min(workers(service)), signal.SIGKILL)
        wait_for("a process cannot begin", 1)
        for _ in range(5):
            assert httpx.post(f"{service.url}/v1/recommend", json={}).status_code == 200
        shutil.copy(store / "items.csv", folder / "items.csv")
        wait_for("Application startup complete", 3)
        assert service.stop() == 0


def test_what_cannot_be_served_is_said_in_a_line(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(store, folder)
    (folder / "items.csv").write_text("item_id,title\ni1,a\ni1,b\n")
    for options in ([], ["--workers", "2"]):
        with served(folder, tmp_path / "log", *options) as service:
            assert service.process.wait(180) == 2
        told = (tmp_path / "log").read_text()
        assert "item_id 'i1' is there twice" in told and "Traceback" not in told, told


def test_no_fuzzed_request_fails_the_service(store: Path, tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(store, folder)
    predicts = Versions(folder / "model", "response")
    predicts.use(predicts.keep(*response_model(folder, tiny_bert_folder))[0])
    with served(folder, tmp_path / "log") as service:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json", "--max-examples", "12",
            "--seed", "1", "--no-color", "--phases", "examples,fuzzing", "--exclude-path", "/metrics",
            "--checks", "not_a_server_error,status_code_conformance,response_schema_conformance,content_type_conformance",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    assert "ERROR" not in (tmp_path / "log").read_text()
