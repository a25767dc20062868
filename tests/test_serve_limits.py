"""What one who asks may cost the others: connections without a key, fields without end, merchants that take turns in memory."""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Scope

from fedrec.serve import tenants as module
from fedrec.serve.app import create_app
from fedrec.serve.faults import Fault
from fedrec.serve.feedback_schemas import EventIn, FeedbackRequest
from fedrec.serve.metrics import Metrics
from fedrec.serve.models import Stamp
from fedrec.serve.schemas import ExplainRequest, RankRequest, RecommendRequest
from fedrec.serve.settings import ServeSettings
from fedrec.serve.tenants import Tenant, Tenants

from .stores import client_of, with_key

Ask = Callable[..., Awaitable[int]]
POLICY = '[privacy]\nepsilon = 8.0\ndelta = 1e-5\ntrust = "secure-aggregation"\npopulation = 2000\n'


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Of two merchants, of whom nothing can be loaded."""
    for name in ("north", "south"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "merchant.toml").write_text(f'name = "{name}"\n' + POLICY)
    return tmp_path / "all"


def staff_key(folders: Path) -> str:
    key: str = tomllib.loads((folders.parent / "keys.toml").read_text())["keys"]["north"]["staff"]
    return key


def asked(folders: Path, scene: Callable[[Ask], Awaitable[None]], **settings: Any) -> None:
    """Play a scene before an application; what is asked there has a body that arrives late, or never."""

    async def play() -> None:
        app = create_app(folders, key_file=folders.parent / "keys.toml", settings=ServeSettings(**settings))

        async def ask(path: str, method: str = "GET", body: bytes | None = None, after: float = 0) -> int:
            scope: Scope = {
                "type": "http", "method": method, "path": path, "query_string": b"", "asgi": {"version": "3.0"},
                "http_version": "1.1", "headers": [
                    (b"host", b"127.0.0.1"), (b"content-length", b"9"), (b"content-type", b"application/json"),
                    (b"authorization", b"" if body is None else f"Bearer {staff_key(folders)}".encode()),
                ],
            }  # fmt: skip
            said: list[int] = []

            async def receive() -> Message:
                await asyncio.sleep(60 if body is None else after)
                return {"type": "http.request", "body": body or b"", "more_body": False}

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


def test_the_time_limit_counts_from_when_the_body_is_there(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[float] = []

    async def model(tenants: Tenants, tenant: Tenant, seconds: float) -> Any:
        left.append(seconds)
        raise Fault(503, "loading", "not now")

    monkeypatch.setattr(Tenants, "model", model)

    async def scene(ask: Ask) -> None:
        assert await ask("/v1/recommend", "POST", b'{"merchant": "north"}', 0.3) == 503

    asked(folders, scene, time_limit=0.25)
    assert len(left) == 1 and left[0] > 0.1


MANY = {f"field-{number}": 1 for number in range(20_000)}


@pytest.mark.parametrize(
    ("model", "given", "most"),
    [
        (RecommendRequest, MANY, 1),
        (RecommendRequest, {"filter": MANY}, 1),
        (RecommendRequest, {"exclude": [1] * 20_000, "filter": {"only": [1] * 20_000}}, 2),
        (RecommendRequest, {"history": [1] * 1_000, "times": [None] * 1_000}, 4),
        (RankRequest, {"candidates": [1] * 1_000}, 1),
        (ExplainRequest, {"items": [1] * 50}, 1),
        (FeedbackRequest, {"events": [MANY] * 1_000}, 1),
    ],
)
def test_of_thousands_of_faults_few_are_looked_for(model: type[BaseModel], given: dict[str, Any], most: int) -> None:
    with pytest.raises(ValidationError) as found:
        model.model_validate(given)
    assert found.value.error_count() <= most


@pytest.mark.parametrize("words", ["\x1c", " \x1e\x1f ", "\u2028"])
def test_a_search_of_separators_alone_is_refused(words: str) -> None:
    with pytest.raises(ValidationError, match="query"):
        EventIn(event_id="e1", user_id="u", event="search", query=words)


def test_words_are_explained_for_few_items() -> None:
    for given in ({"items": ["i"] * 6}, {"k": 6}):
        assert ExplainRequest.model_validate(given).most == 6
        with pytest.raises(ValidationError, match="5 items at most"):
            ExplainRequest.model_validate({**given, "words": True})
    assert [ExplainRequest(words=words).most for words in (True, False)] == [5, 10]
    assert ExplainRequest(words=True, items=["i"] * 5).most == 5


def test_a_refusal_is_short_and_an_address_is_exact(folders: Path) -> None:
    with client_of(folders, folders.parent / "keys.toml") as client:
        client.headers.update(with_key(staff_key(folders)))
        found = client.post("/v1/recommend", json={"x" * 900_000: 1})
        assert (found.status_code, found.json()["where"]) == (422, "x" * 100)
        slash = client.post("/v1/recommend/", json={}, follow_redirects=False)
        assert slash.status_code == 404 and slash.json()["error_type"] == "not_found"


# Merchants that take turns


@pytest.fixture
def slow_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes a tenth of a second to load."""

    def load(folder: Path, onnx: Path | None) -> Any:
        time.sleep(0.1)
        return SimpleNamespace(name=folder.name, export=None, words=False, version="v", loaded=0.0, data_time=0.0)

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module, "stamp_of", lambda folder: Stamp(()))
    monkeypatch.setattr(module, "_give_back", lambda: None)


def merchants(names: str, **settings: Any) -> Tenants:
    return Tenants({name: Tenant(name, Path(name), True) for name in names}, True, ServeSettings(**settings), Metrics())


@pytest.mark.usefixtures("slow_loads")
def test_who_waits_for_a_merchant_is_answered_though_another_takes_its_place() -> None:
    async def scene() -> None:
        tenants = merchants("ab", loaded=1)
        here, other = tenants.all.values()
        await tenants.model(here, 5)
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(tenants.model(other, 5)) for _ in range(2)]
        await asyncio.sleep(0.02)
        await tenants.model(here, 5)  # asked for later than the one that is being loaded
        assert [model.name for model in await asyncio.gather(*waiting)] == ["b", "b"]
        assert (here.model, other.model) == (None, waiting[0].result())

    asyncio.run(scene())


@pytest.mark.usefixtures("slow_loads")
def test_who_only_sends_feedback_leaves_memory_when_idle() -> None:
    async def scene() -> None:
        tenants = merchants("ab", idle=0.1, poll=0.02)
        here, other = tenants.all.values()
        logs = here.log, other.log
        watching = asyncio.create_task(tenants.watch())
        for _ in range(10):
            other.touch()
            await asyncio.sleep(0.02)
        watching.cancel()
        assert here.log is not logs[0] and other.log is logs[1]

    asyncio.run(scene())


@pytest.mark.usefixtures("slow_loads")
def test_a_model_that_a_swap_brought_was_asked_for_by_nobody() -> None:
    async def scene() -> None:
        tenants = merchants("a")
        (tenant,) = tenants.all.values()
        await tenants.model(tenant, 5)
        used = tenant.used
        await tenants._start_loading(tenant)
        assert (tenant.used, tenant.swaps) == (used, 1)

    asyncio.run(scene())


@pytest.mark.usefixtures("slow_loads")
def test_what_was_made_beside_a_model_is_dropped_with_it() -> None:
    async def scene() -> None:
        told: list[bool] = []
        settings = ServeSettings(idle=0.2, poll=0.02)
        tenants = Tenants({"a": Tenant("a", Path("a"), True)}, True, settings, Metrics(), lambda: told.append(True))
        (tenant,) = tenants.all.values()
        await tenants.model(tenant, 5)
        await tenants._start_loading(tenant)
        assert len(told) == 2, "when another takes its place"
        watching = asyncio.create_task(tenants.watch())
        await asyncio.sleep(0.5)
        watching.cancel()
        assert len(told) == 3 and tenant.model is None, "and once when it leaves memory"

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
