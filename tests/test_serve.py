"""The service: its lists are the recommender's, and who may ask for what, from where, and how much at once."""

# ruff: noqa: F811

from __future__ import annotations

import asyncio
import itertools
import shutil
import stat
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from fedrec.data.feedback import FEEDBACK, LOG, FeedbackEvent
from fedrec.errors import InputError
from fedrec.export import export
from fedrec.export.source import Source
from fedrec.model.adapter import Arrays
from fedrec.model.versions import CURRENT
from fedrec.recommender import Filter, Person, Recommender, Wish
from fedrec.recommender.exploring import Place
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.recommending import Recommending
from fedrec.serve.app import check, create_app
from fedrec.serve.faults import STATUS, Fault, without_paths
from fedrec.serve.keys import Keys
from fedrec.serve.shown import Shown
from fedrec.serve.tenants import Tenant
from fedrec.serve.worker import Worker

from .stores import client_of, make_store, with_key
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_merchant_recommender import adapter  # noqa: F401

HISTORY = ["i1", "i5", "i9"]
USER = "customer-3-secret"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "shop", tiny_bert_folder)


@pytest.fixture(scope="module")
def keys(store: Path) -> dict[str, str]:
    """The three keys of a file that is made by opening it."""
    Keys.open(store.parent / "keys.toml", ["shop"])
    found = tomllib.loads((store.parent / "keys.toml").read_text())
    return {"metrics": found["metrics"], **found["keys"]["shop"]}


@pytest.fixture(scope="module")
def client(store: Path, keys: dict[str, str]) -> Iterator[TestClient]:
    """As the staff."""
    with client_of(store, store.parent / "keys.toml", keys["staff"]) as found:
        yield found


@pytest.fixture(scope="module")
def recommender(store: Path) -> Recommending:
    return Recommender.load(store)


# Answers


@pytest.mark.parametrize(
    "asked",
    [
        {"history": HISTORY, "k": 4},
        {"history": HISTORY, "times": ["2026-01-01", "2026-01-01", "2026-01-02"], "repeats": True},
        {"user_id": USER, "diversity": 0.5},
        {"user_id": "nobody"},
        {"query": "red lamp", "k": 3, "exclude": ["i1"]},
        {"history": ["gone"], "filter": {"brand": ["acme"], "price_max": 9}},
        {"history": HISTORY, "filter": {"only": []}},
    ],
)
def test_a_list_is_the_recommenders(client: TestClient, recommender: Recommending, asked: dict[str, Any]) -> None:
    found = client.post("/v1/recommend", json=asked)
    assert found.status_code == 200, found.text
    said = found.json()
    wanted = recommender.recommend(**{**asked, "filter": Filter(**asked.get("filter", {}))})
    assert [item["item_id"] for item in said["items"]] == [item for item, _ in wanted.items]
    assert [item["score"] for item in said["items"]] == pytest.approx([score for _, score in wanted.items], abs=1e-5)
    assert (said["source"], said["notes"]) == (wanted.source, list(wanted.notes))
    assert said["model"] == "untrained" and said["merchant"] == "shop" and said["request_id"] == found.headers["X-Request-ID"]


def test_the_other_questions_have_the_recommenders_answers(client: TestClient, recommender: Recommending) -> None:
    def ids(path: str, **asked: Any) -> list[str]:
        return [item["item_id"] for item in client.post(path, json=asked).json()["items"]]

    def of(answer: Any) -> list[str]:
        return [item for item, _ in answer.items]

    assert ids("/v1/search", query="red lamp", k=5) == of(recommender.search("red lamp", 5))
    some = ["i2", "i1", "i8", "gone"]
    assert ids("/v1/rank", history=HISTORY, candidates=some) == of(recommender.recommend(HISTORY, filter=Filter(only=some)))
    assert sorted(ids("/v1/rank", history=HISTORY, candidates=some, repeats=True)) == ["i1", "i2", "i8"]
    asked = {"history": HISTORY, "items": ["i2", "i8"], "words": True}
    found = client.post("/v1/explain", json=asked).json()
    wanted = recommender.explain(HISTORY, items=["i2", "i8"], words=True)
    for item, reasons in zip(found["items"], wanted.reasons, strict=True):
        assert item["reasons"]["words"] == reasons.for_staff()["words"]
        total = sum(share["share"] for share in item["reasons"]["shares"])
        assert total == pytest.approx(item["score"], abs=1e-4)


def test_a_basket_is_completed_for_the_shop_without_a_number(
    client: TestClient, keys: dict[str, str], recommender: Recommending
) -> None:
    asked = {"items": ["i1", "i5", "gone"], "k": 4, "filter": {"price_max": 20}, "explain": True}
    wanted = recommender.basket(["i1", "i5", "gone"], 4, filter=Filter(price_max=20), explain=True)
    staff, shop = (client.post("/v1/basket", json=asked, headers=with_key(keys[key])).json() for key in ("staff", "shop"))
    for said in (staff, shop):
        assert [item["item_id"] for item in said["items"]] == [item for item, _ in wanted.items]
        assert said["notes"] == list(wanted.notes) and said["source"] == wanted.source
    assert [item["score"] for item in staff["items"]] == pytest.approx([score for _, score in wanted.items], abs=1e-5)
    assert [item["reasons"] for item in shop["items"]] == [{**why.for_shopper(), "words": None} for why in wanted.reasons]
    assert not list(numbers_in(shop["items"]))


def test_what_explores_says_how_each_place_was_given(client: TestClient, keys: dict[str, str], recommender: Recommending) -> None:
    def ask(explore: float, key: str, k: int = 5) -> list[dict[str, Any]]:
        asked = {"history": HISTORY, "k": k, "explore": explore}
        found: list[dict[str, Any]] = client.post("/v1/recommend", json=asked, headers=with_key(key)).json()["items"]
        return found

    plain, nearly = ask(0, keys["staff"]), ask(1e-12, keys["staff"])
    assert [item["item_id"] for item in nearly] == [item["item_id"] for item in plain]
    assert {(item["propensity"], item["value"]) for item in plain} == {(None, None)}
    assert [item["propensity"] for item in nearly] == pytest.approx([1] * 5)
    of_first: dict[str, Any] = {}  # what each item has as the first place of a list

    def exactly(item: str) -> Any:
        """The recommender's own, whatever else it has to draw before."""
        while item not in of_first:
            drawn = next(seeds)
            assert drawn < 10_000
            answer = recommender.recommend(HISTORY, k=1, explore=0.9, seed=drawn)
            of_first[answer.items[0][0]] = answer.places[0]
        return of_first[item]

    seeds = itertools.count()
    for _ in range(10):
        (staff,), (shop,) = ask(0.9, keys["staff"], 1), ask(0.9, keys["shop"], 1)
        assert (staff["propensity"], staff["value"]) == pytest.approx(tuple(exactly(staff["item_id"])[:2]), abs=1e-5)
        assert not list(numbers_in(shop)), "made-up histories of two items would tell the shop their scores"


def test_feedback_gets_from_memory_how_its_place_was_given(store: Path, keys: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(store, folder)
    with client_of(folder, store.parent / "keys.toml") as client:

        def ask(key: str, **more: Any) -> dict[str, Any]:
            asked = {"history": HISTORY, "k": 3, **more}
            found: dict[str, Any] = client.post("/v1/recommend", json=asked, headers=with_key(keys[key])).json()
            return found

        staff, shop, plain = ask("staff", explore=0.5), ask("shop", explore=0.5), ask("shop")
        second, other = staff["items"][1], next(f"i{n}" for n in range(24) if f"i{n}" not in str(staff["items"]))
        mine = shop["items"][2]["item_id"]
        told = [
            {"request_id": staff["request_id"], "item_id": second["item_id"]},
            {"request_id": staff["request_id"], "item_id": second["item_id"], "position": 2, "propensity": 0.5},
            {"request_id": staff["request_id"], "item_id": second["item_id"], "position": 1},
            {"request_id": staff["request_id"], "item_id": other},
            {"request_id": plain["request_id"], "item_id": plain["items"][0]["item_id"]},
            {"request_id": "0" * 32, "item_id": mine},
            {"item_id": mine},
            {"request_id": shop["request_id"], "item_id": mine},
        ]
        events = [{"event_id": f"e{number}", "user_id": "u", **one} for number, one in enumerate(told)]
        said = client.post("/v1/feedback", json={"events": events}, headers=with_key(keys["shop"]))
        assert said.json()["stored"] == len(events) and "propensity" not in said.text
    *rows, last = [line.split(",")[-3:-1] for line in (folder / FEEDBACK / LOG).read_text().splitlines()[1:]]
    assert rows == [["2", str(second["propensity"])], ["2", "0.5"], ["1", ""], *[["", ""]] * 4]
    assert last[0] == "3" and 0 < float(last[1]) <= 1, "what the shop's key did not see is in the merchant's log"


def test_what_was_shown_is_remembered_for_a_while() -> None:
    shown, event = Shown(most=2), FeedbackEvent("e", "u", "i1", "2026-02-01T10:00:00.000000Z")
    for number in range(3):
        shown.keep(str(number), ["i0", "i1"], [Place(0.5, 0, 1), Place(0.25, 0, 1)])
        shown.keep("plain", ["i0", "i1"], [])
    found = [shown.filled(replace(event, request_id=name)) for name in ("0", "1", "2", "plain")]
    assert [(one.position, one.propensity) for one in found] == [("", ""), ("2", "0.25"), ("2", "0.25"), ("", "")]
    tenant = Tenant("shop", Path("shop"), True)
    tenant.shown.keep("1", ["i1"], [Place(0.5, 0, 1)])
    tenant.rest()
    assert tenant.shown.filled(replace(event, request_id="1")).position == ""


@pytest.mark.slow  # the adapter is a run's
def test_an_export_reads_words_until_another_model_ranks(
    fedrec: Fedrec, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]], tmp_path: Path
) -> None:
    folder, out = make_store(tmp_path / "shop", tiny_bert_folder), tmp_path / "out"
    assert_refused(fedrec("serve", folder, "--onnx", out), str(out), "fedrec export")
    assert_refused(fedrec("serve", tmp_path, "--onnx", out, "--key-file", tmp_path / "keys.toml"), "--onnx", "a single folder")
    versions = MerchantPlace(folder).versions
    versions.use(versions.keep(*adapter)[0])
    export(Source.open(folder), out, "onnx")
    wanted = Recommender.load(folder).search("red lamp", 24)
    with client_of(folder, onnx=out) as client:

        def about() -> dict[str, Any]:
            found: dict[str, Any] = client.get("/info").json()["merchants"][0]
            return found

        assert about()["export"] == "used"
        found = client.post("/v1/search", json={"query": "red lamp", "k": 24}).json()["items"]
        assert {item["item_id"]: item["score"] for item in found} == pytest.approx(dict(wanted.items), abs=0.05)
        (folder / "model" / CURRENT).unlink()
        wait_for(lambda: about()["export"] == "not used")
        assert about()["up_to_date"] and client.post("/v1/search", json={"query": "red lamp"}).status_code == 200
    assert_refused(fedrec("serve", folder, "--onnx", out), "another model", "fedrec export")


def test_questions_that_are_answered_together_are_answered_as_alone(recommender: Recommending) -> None:
    asked = [
        (Person(HISTORY), Wish(5)),
        (Person(HISTORY, times=[1, 2]), Wish(5)),
        (Person(user_id=USER), Wish(4, repeats=True, filter=Filter(price_max=12))),
        (Person(), Wish(3)),
        (Person(["i2"]), Wish(3, query="red lamp", explain=True)),
        (Person(["i2"]), Wish(3, filter=Filter(category=["x"]))),
        (Person(["i7", "i8"]), Wish(6, diversity=0.4, explain=True)),
    ]
    found = recommender.recommend_each(asked)
    assert [type(one) is InputError for one in found] == [False, True, False, False, False, True, False]
    for (person, wish), one in zip(asked, found, strict=True):
        if isinstance(one, InputError):
            with pytest.raises(InputError, match=one.found):
                recommender.recommend_many([person], wish)
            continue
        (alone,) = recommender.recommend_many([person], wish)
        assert [item for item, _ in one.items] == [item for item, _ in alone.items]
        assert np.allclose([score for _, score in one.items], [score for _, score in alone.items], atol=1e-5)
        assert (one.source, one.notes, len(one.reasons)) == (alone.source, alone.notes, len(alone.reasons))


# Who may ask


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers_in(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_the_shops_key_gets_no_number_of_a_reason_and_no_reasons_of_a_known_user(
    client: TestClient, keys: dict[str, str], recommender: Recommending
) -> None:
    shop = with_key(keys["shop"])
    for path in ("/v1/recommend", "/v1/explain"):
        asked = {"history": HISTORY, "k": 3, **({"explain": True} if "recommend" in path else {})}
        found = client.post(path, json=asked, headers=shop).json()
        assert not list(numbers_in(found["items"])), "no score, no share"
        wanted = [reasons.for_shopper() for reasons in recommender.explain(HISTORY, k=3).reasons]
        assert [item["reasons"] for item in found["items"]] == wanted
        refused = client.post(path, json={"user_id": USER, **({"explain": True} if "recommend" in path else {})}, headers=shop)
        assert (refused.status_code, refused.json()["error_type"]) == (401, "staff_key")
        popular = client.post("/v1/recommend", json={}, headers=shop).json()
        assert popular["source"] == "popularity" and not list(numbers_in(popular["items"]))
    assert client.get("/info", headers=shop).json()["merchants"][0]["failure"] is None


def test_the_shops_key_is_told_nothing_of_a_known_user_but_a_list(client: TestClient, keys: dict[str, str]) -> None:
    def ask(key: str, path: str, **asked: Any) -> Any:
        return client.post(path, json=asked, headers=with_key(keys[key]))

    everything = [f"i{number}" for number in range(24)]
    found = ask("staff", "/v1/rank", user_id=USER, candidates=everything).json()
    assert len(found["items"]) < 24 and "history is not repeated" in found["notes"][0], "what it lacks is what was bought"
    refused = ask("shop", "/v1/rank", user_id=USER, candidates=everything)
    assert (refused.status_code, refused.json()["error_type"]) == (401, "staff_key")
    assert ask("shop", "/v1/rank", user_id=USER, history=HISTORY, candidates=everything).json()["notes"]
    for user in (USER, "nobody"):
        for path, asked in (("/v1/recommend", {"k": 200}), ("/v1/recommend", {"k": 200, "query": "red lamp"})):
            found = ask("shop", path, user_id=user, **asked).json()
            assert found["items"] and not found["notes"] and found["distance"] is None
            assert user not in str(found) and not list(numbers_in(found["items"]))


def test_by_diversity_the_shops_key_learns_no_more_than_a_step_of_a_grid(client: TestClient, keys: dict[str, str]) -> None:
    def ask(key: str, diversity: float) -> list[str]:
        asked = {"history": HISTORY, "k": 3, "filter": {"only": three}, "diversity": diversity}
        found = client.post("/v1/recommend", json=asked, headers=with_key(keys[key])).json()
        return [item["item_id"] for item in found["items"]]

    def flips(key: str) -> float:
        """The diversity at which the second item is another one, as bisection finds it."""
        low, high = 0.0, 1.0
        for _ in range(25):
            middle = (low + high) / 2
            low, high = (middle, high) if ask(key, middle)[1] == plain[1] else (low, middle)
        return low

    seen = 0
    for first in range(10, 22):
        three = [f"i{first}", f"i{first + 1}", f"i{first + 2}"]
        plain = ask("staff", 0)
        exact, told = flips("staff"), flips("shop")
        if 0.01 < exact < 0.94:
            seen += 1
            assert told % 0.1 == pytest.approx(0.05, abs=1e-6) and abs(told - exact) <= 0.1 + 1e-6
        if seen == 3:
            return
    pytest.fail("nothing flips here")


@pytest.mark.parametrize(
    ("path", "opens"),
    [
        ("/metrics", {"metrics"}),
        ("/info", {"shop", "staff"}),
        ("/livez", {"metrics", "shop", "staff", "wrong", "blank"}),
        ("/readyz", {"metrics", "shop", "staff", "wrong", "blank"}),
    ],
)
def test_what_each_key_opens(client: TestClient, keys: dict[str, str], path: str, opens: set[str]) -> None:
    for kind, key in {**keys, "wrong": "staff-no-such-key", "blank": ""}.items():
        found = client.get(path, headers=with_key(key))
        assert found.status_code == (200 if kind in opens else 401), kind
        assert not key or key not in found.text


def test_a_key_file_is_for_its_owner_alone_and_needed_where_others_can_come(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first = Keys.open(path, ["shop"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and first == Keys.open(path, ["shop"])
    assert {caller.role for _, caller in first.known} == {"metrics", "shop", "staff"}
    more = Keys.open(path, ["shop", "other"])
    assert set(first.known) < set(more.known), "a merchant that is new gets keys, and the others keep theirs"
    path.chmod(0o640)
    with pytest.raises(InputError, match="0640"):
        Keys.open(path, ["shop"])
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(InputError, match="other machines"):
            check(store, host, None)
    with pytest.raises(InputError, match="nothing that can be served"):
        create_app(tmp_path)


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"Host": "evil.example"}, "host"),
        ({"Host": "127.0.0.1.evil.example:8000"}, "host"),
        ({"Host": "localhost:8000"}, None),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, None),
        ({"Origin": "http://evil.example"}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Origin": "http://127.0.0.1:9"}, "origin"),
        ({"Origin": "http://127.0.0.1:8000"}, None),
    ],
)
def test_a_page_from_elsewhere_cannot_ask(client: TestClient, headers: dict[str, str], kind: str | None) -> None:
    found = client.get("/info", headers=headers)
    assert found.status_code == (200 if kind is None else 400)
    assert kind is None or found.json()["error_type"] == kind
    assert found.headers["X-Content-Type-Options"] == "nosniff" and "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    ("path", "body", "status", "where"),
    [
        ("/v1/recommend", "{", 400, "body"),
        ("/v1/recommend", "[" * 100_000, 400, None),
        ("/v1/recommend", '{"k": 1' + "0" * 5000 + "}", 400, None),
        ("/v1/recommend", '"text"', 422, "body"),
        ("/v1/recommend", '{"k": 0}', 422, "k"),
        ("/v1/recommend", '{"diversity": NaN}', 422, "diversity"),
        ("/v1/recommend", '{"k": 201}', 422, "k"),
        ("/v1/recommend", '{"explore": 1.5}', 422, "explore"),
        ("/v1/recommend", '{"explore": 0.5, "query": "mug"}', 422, "explore"),
        ("/v1/recommend", '{"seed": 1}', 422, "seed"),
        ("/v1/recommend", '{"filter": {"colour": "red"}}', 422, "filter.colour"),
        ("/v1/recommend", '{"history": ["\\ud800"]}', 422, "history.0"),
        ("/v1/recommend", '{"times": [1]}', 422, "times"),
        ("/v1/recommend", '{"history": ["i1"], "times": ["soon"]}', 422, "times[0]"),
        ("/v1/recommend", '{"filter": {"category": ["x"]}}', 422, "the filter on category"),
        ("/v1/recommend", '{"merchant": "other"}', 404, "merchant"),
        ("/v1/search", '{"query": " "}', 422, "query"),
        ("/v1/search", "{}", 422, "query"),
        ("/v1/rank", '{"candidates": []}', 422, "candidates"),
        ("/v1/basket", '{"items": []}', 422, "items"),
        ("/v1/basket", '{"items": [' + ", ".join(f'"i{number}"' for number in range(101)) + "]}", 422, "items"),
        ("/v1/basket", '{"items": ["i1"], "user_id": "4711"}', 422, "user_id"),
        ("/v1/explain", '{"items": "i1"}', 422, "items"),
        ("/v1/feedback", '{"events": [{"event_id": "a,b", "user_id": "u", "item_id": "i1"}]}', 422, "events.0.event_id"),
        ("/v1/feedback", '{"events": [{"event_id": "a", "user_id": "u\\n", "item_id": "i1"}]}', 422, "events.0.user_id"),
        ("/v1/nothing", "{}", 404, None),
        ("/v1/recommend", '{"query": "' + "x" * 1_100_000 + '"}', 413, None),
    ],
)
def test_what_means_nothing_is_refused_in_one_form(
    store: Path, client: TestClient, path: str, body: str, status: int, where: str | None
) -> None:
    found = client.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    said = found.json()
    assert list(said) == ["error", "error_type", "where"] and said["where"] == where
    assert str(store) not in found.text and "Traceback" not in found.text and len(found.text) < 500


def test_a_body_without_a_length_is_cut_off_too(client: TestClient) -> None:
    parts = (b"x" * 50_000 for _ in range(30))
    assert client.post("/v1/recommend", content=parts).status_code == 413


def test_the_document_declares_every_status_and_model(client: TestClient) -> None:
    document = client.get("/openapi.json", headers={"Authorization": ""}).json()
    for path, routes in document["paths"].items():
        (route,) = routes.values()
        (schema,) = (said["schema"] for said in route["responses"]["200"].get("content", {"": {"schema": {}}}).values())
        assert path == "/metrics" or set(schema) == {"$ref"}, "an answer is a model of its own"
        if path.startswith("/v1/"):
            assert set(route["responses"]) == {"200", *map(str, STATUS)}
            model = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert document["components"]["schemas"][model]["examples"]
        for status, said in route["responses"].items():
            if int(status) >= 400:
                assert said["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")


def test_figures_are_counted_and_name_nobody(client: TestClient, keys: dict[str, str]) -> None:
    def figures() -> dict[str, float]:
        text = client.get("/metrics", headers=with_key(keys["metrics"])).text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}

    before = figures()
    client.post("/v1/recommend", json={"user_id": USER})
    client.post("/v1/recommend", json={})
    after = figures()
    rows = 'fedrec_requests_total{route="/v1/recommend",status="200"}', 'fedrec_fallbacks_total{merchant="shop"}'
    assert [after[row] - before.get(row, 0) for row in rows] == [2, 1]
    assert after['fedrec_model_loaded_timestamp_seconds{merchant="shop",model="untrained"}'] > 1.7e9
    assert not [row for row in after if "customer" in row]


# The thread that ranks


def test_a_worker_groups_limits_and_survives() -> None:
    seen: list[list[Any]] = []
    hold = threading.Event()

    def batch(asked: list[Any]) -> list[Any]:
        seen.append(asked)
        hold.wait(5)
        return [InputError("bad") if one == 3 else one * 2 for one in asked]

    async def scene() -> list[Any]:
        worker = Worker(most=4, together=3)
        first = asyncio.create_task(worker.do(batch, 0, 5, "a"))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(worker.do(batch, one, 5, "b" if one == 2 else "a")) for one in (1, 2, 3)]
        late = asyncio.create_task(worker.do(batch, 9, 0.05, "a"))
        await asyncio.sleep(0)
        with pytest.raises(Fault) as full:
            await worker.do(batch, 4, 5, "a")
        assert full.value.status == 429 and full.value.headers["Retry-After"] == "1"
        with pytest.raises(Fault) as slow:
            await late
        assert slow.value.status == 503
        assert worker.waiting == 3, "it has left the queue too"
        hold.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        with pytest.raises(ZeroDivisionError):
            await worker.do(lambda asked: [1 // 0], None, 5)
        assert await worker.do(lambda asked: ["on"], None, 5) == "on"
        worker.close()
        with pytest.raises(Fault):
            await worker.do(batch, 1, 5)
        return found

    found = asyncio.run(scene())
    assert found[:3] == [0, 2, 4] and isinstance(found[3], InputError)
    assert seen == [[0], [1, 3], [2]], "those of one kind together, the one that nobody waits for any more not at all"


# Change, and several merchants


def wait_for(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_change_is_swapped_in_whole_under_load_and_a_fault_leaves_the_old(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(store, folder)
    with client_of(folder) as client:

        def about() -> dict[str, Any]:
            found: dict[str, Any] = client.get("/info").json()["merchants"][0]
            return found

        first, stop = about(), threading.Event()
        answers: list[tuple[int, str, tuple[str, ...]]] = []

        def ask() -> None:
            while not stop.is_set():
                found = client.post("/v1/recommend", json={"history": HISTORY, "k": 30, "repeats": True})
                said = found.json()
                items = tuple(item["item_id"] for item in said.get("items", []))
                answers.append((found.status_code, said.get("snapshot", ""), items))

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            try:
                items = pd.read_csv(folder / "items.csv")
                more = pd.DataFrame({"item_id": ["new"], "title": ["red lamp new"], "price": [1], "brand": ["Acme"]})
                pd.concat([items, more]).to_csv(folder / "items.csv", index=False)
                wait_for(lambda: about()["swaps"] == 1)
                second = about()
                (folder / "items.csv").write_text("item_id,title\ni1,a\ni1,b\n")
                wait_for(lambda: not about()["up_to_date"])
                time.sleep(0.1)
            finally:
                stop.set()
            for one in asking:
                one.result()
        third = about()
        assert {status for status, _, _ in answers} == {200}, "no request was dropped"
        lists = {(snapshot, len(items)) for _, snapshot, items in answers}
        assert lists == {(first["snapshot"], 24), (second["snapshot"], 25)}, "each answer is of one state"
        assert (third["snapshot"], third["swaps"], third["items"]) == (second["snapshot"], 1, 25)
        assert "i1" in third["failure"] and str(tmp_path) not in third["failure"] + caplog.text
        shutil.copy(store / "items.csv", folder / "items.csv")
        wait_for(lambda: about()["up_to_date"])
        assert about()["items"] == 24


@pytest.mark.slow
def test_several_merchants_share_a_process_and_nothing_else(store: Path, tmp_path: Path) -> None:
    for name in ("north", "south"):
        shutil.copytree(store, tmp_path / "all" / name)
        text = (tmp_path / "all" / name / "merchant.toml").read_text().replace('name = "shop"', f'name = "{name}"')
        (tmp_path / "all" / name / "merchant.toml").write_text(text)
    with pytest.raises(InputError, match="several merchants"):
        create_app(tmp_path / "all")
    path = tmp_path / "keys.toml"
    with client_of(tmp_path / "all", path, loaded=1) as client:
        given = tomllib.loads(path.read_text())["keys"]

        def ask(whose: str, merchant: str | None, route: str = "/v1/recommend", **more: Any) -> Any:
            asked = {**({} if merchant is None else {"merchant": merchant}), **more}
            return client.post(route, json=asked, headers=with_key(given[whose]["staff"]))

        def loaded() -> dict[str, bool]:
            found = [client.get("/info", headers=with_key(given[name]["shop"])).json()["merchants"] for name in given]
            assert [len(one) for one in found] == [1, 1], "of others it says nothing"
            return {one[0]["merchant"]: one[0]["loaded"] for one in found}

        assert loaded() == {"north": False, "south": False}
        assert ask("north", "north").json()["merchant"] == "north" and loaded() == {"north": True, "south": False}
        assert ask("south", "south").status_code == 200 and loaded() == {"north": False, "south": True}
        other, none = ask("north", "south"), ask("north", "nobody")
        assert other.status_code == none.status_code == 404 and other.json() == none.json()
        assert ask("north", None).json()["error_type"] == "missing"
        event = {"event_id": "e1", "user_id": "u", "item_id": "i1"}
        assert ask("north", "south", "/v1/feedback", events=[event]).status_code == 404
        assert ask("north", "north", "/v1/feedback", events=[event]).json()["stored"] == 1
        assert [(tmp_path / "all" / name / "feedback").exists() for name in ("north", "south")] == [True, False]


@pytest.mark.slow
def test_a_merchant_that_is_called_run_is_no_run(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "shop")
    path = tmp_path / "shop" / "merchant.toml"
    path.write_text(path.read_text().replace('name = "shop"', 'name = "run"'))
    with client_of(tmp_path / "shop") as client:
        for merchant, status in (("run", 200), ("other", 404)):
            for route, more in (("recommend", {}), ("search", {"query": "red lamp"}), ("explain", {"history": HISTORY})):
                assert client.post(f"/v1/{route}", json={"merchant": merchant, "k": 3, **more}).status_code == status


def test_paths_are_taken_out_of_what_is_told() -> None:
    told = without_paths("/srv/my shop/own/layer: bad ('/etc/x/z.csv'), half a/b", [Path("/srv/my shop")])
    assert told == "own/layer: bad ('z.csv'), half a/b"
