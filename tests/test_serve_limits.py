"""What one who asks may cost the others: connections without a key, fields without end, merchants that take turns in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Scope

from fedrec.serve import tenants as module
from fedrec.serve.app import create_app
from fedrec.serve.faults import Fault
from fedrec.serve.metrics import Metrics
from fedrec.serve.models import Stamp
from fedrec.serve.settings import ServeSettings
from fedrec.serve.tenants import Tenant, Tenants

Ask = Callable[..., Awaitable[int]]
POLICY = '[privacy]\nepsilon = 8.0\ndelta = 1e-5\ntrust = "secure-aggregation"\npopulation = 2000\n'


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Of two merchants, of whom nothing can be loaded."""
    for name in ("north", "south"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "merchant.toml").write_text(f'name = "{name}"\n' + POLICY)
    return tmp_path / "all"


def asked(folders: Path, scene: Callable[[Ask], Awaitable[None]], **settings: Any) -> None:
    """Play a scene before an application; what is asked there has a body that never arrives."""

    async def play() -> None:
        app = create_app(folders, key_file=folders.parent / "keys.toml", settings=ServeSettings(**settings))

        async def ask(path: str, method: str = "GET") -> int:
            scope: Scope = {
                "type": "http", "method": method, "path": path, "query_string": b"", "asgi": {"version": "3.0"},
                "http_version": "1.1", "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"9")],
            }  # fmt: skip
            said: list[int] = []

            async def receive() -> Message:
                await asyncio.sleep(60)
                raise AssertionError("nothing comes")

            async def send(message: Message) -> None:
                said.extend([message["status"]] if "status" in message else [])

            await app(scope, receive, send)
            return said[0]

        async with app.router.lifespan_context(app):
            await scene(ask)

    asyncio.run(play())


def test_who_has_no_key_is_waited_for_nowhere(folders: Path) -> None:
    async def scene(ask: Ask) -> None:
        async with asyncio.timeout(2):
            paths = ("/livez", "/readyz", "/openapi.json")
            found = await asyncio.gather(*(ask(path) for path in paths * 5))
            assert found == [200] * 15, "and they count towards no limit"
            assert [await ask("/livez", "POST"), await ask("/v1/recommend", "POST"), await ask("/info")] == [405, 401, 401]

    asked(folders, scene, requests=1)


# Merchants that take turns


@pytest.fixture
def slow_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes a tenth of a second to load."""

    def load(folder: Path, onnx: Path | None) -> Any:
        time.sleep(0.1)
        return SimpleNamespace(name=folder.name, export=None, words=False, version="v", loaded=0.0, data_time=0.0)

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module, "stamp_of", lambda folder: Stamp(()))


def merchants(names: str, **settings: Any) -> Tenants:
    return Tenants({name: Tenant(name, Path(name), True) for name in names}, True, ServeSettings(**settings), Metrics())


@pytest.mark.usefixtures("slow_loads")
def test_who_waits_for_a_merchant_is_answered_though_another_takes_its_place() -> None:
    async def scene() -> None:
        tenants = merchants("abc", loaded=1)
        models: list[Any] = await asyncio.gather(*(tenants.model(one, 5) for one in tenants.all.values() for _ in range(2)))
        assert [model.name for model in models] == list("aabbcc")
        assert [one.model is not None for one in tenants.all.values()] == [False, False, True]

    asyncio.run(scene())


@pytest.mark.usefixtures("slow_loads")
def test_no_more_merchants_are_in_memory_than_are_allowed_though_nobody_waits_for_them() -> None:
    async def scene() -> None:
        tenants = merchants("abcde", loaded=2)
        found = await asyncio.gather(*(tenants.model(one, 0.01) for one in tenants.all.values()), return_exceptions=True)
        assert {one.status for one in found if isinstance(one, Fault)} == {503}
        most = 0
        for _ in range(80):
            most = max(most, sum(one.model is not None for one in tenants.all.values()))
            await asyncio.sleep(0.01)
        assert most == 2

    asyncio.run(scene())
