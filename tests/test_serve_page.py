"""The service's page in a real browser: with a key it asks, shows lists and reasons, and takes nothing for HTML."""

# ruff: noqa: F811

from __future__ import annotations

import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import uvicorn
from starlette.testclient import TestClient

from fedrec.data import Columns
from fedrec.privacy import Ledger, Release
from fedrec.recommender.drifting import drift_of, drift_sentence
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.app import create_app

from .stores import client_of, make_store, with_key
from .test_report_browser import CHROMIUM, Page, contrast, page  # noqa: F401

HTML = '<img src=x onerror="window.harm=1"><b>lamp</b>'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    folder = make_store(tmp_path_factory.mktemp("store") / "shop", tiny_bert_folder)
    items = pd.read_csv(folder / "items.csv")
    items["title"] = [f"{HTML} {title}" for title in items["title"]]
    items.to_csv(folder / "items.csv", index=False)
    events = pd.read_csv(folder / "events.csv", parse_dates=[Columns.TIME])
    first = events[Columns.TIME].min()
    events[Columns.TIME] = first + 7 * (events[Columns.TIME] - first)  # a basket a week
    events.to_csv(folder / "events.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[TestClient]:
    with client_of(store, store.parent / "keys.toml", time_limit=60) as found:
        yield found


@pytest.fixture(scope="module")
def keys(client: TestClient, store: Path) -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((store.parent / "keys.toml").read_text())["keys"]["shop"]
    return found


def test_the_page_is_open_and_empty_and_its_script_may_ask_nobody_else(client: TestClient) -> None:
    found = client.get("/")
    assert found.status_code == 200 and "shop" not in found.text.partition("<script>")[0].partition("</style>")[2]
    policy = found.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src 'self'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "src=" not in found.text and "innerHTML" not in found.text and "Storage" not in found.text


def test_drift_and_budget_are_the_staffs_and_those_of_the_folder(client: TestClient, keys: dict[str, str], store: Path) -> None:
    for key, status in ((None, 401), (keys["shop"], 401), (keys["staff"], 200)):
        found = client.post("/v1/drift", json={"weeks": 1}, headers=with_key(key))
        assert found.status_code == status, found.text
    place, said = MerchantPlace(store), found.json()
    wanted = drift_of(place, place.data(), 1, 12)
    assert said["sentence"] == drift_sentence(wanted) and said["ledger"] is None
    assert [window["mix"] for window in said["windows"]] == [window.mix for window in wanted.windows]
    ledger = Ledger(store / "state" / "privacy" / "shop.ledger.jsonl", 1e-5)
    ledger.append(Release("4f78711d313c4a62", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5))
    long = client.post("/v1/drift", json={"weeks": 52}, headers=with_key(keys["staff"])).json()
    assert (long["sentence"], long["windows"]) == (None, [])
    assert "104 weeks" in long["failure"] and str(store) not in long["failure"]
    assert long["ledger"]["releases"] == 1 and long["ledger"]["epsilon"] > 0
    with ledger.path.open("ab") as file:
        file.write(b"{}\n")
    assert client.post("/v1/drift", json={"weeks": 52}, headers=with_key(keys["staff"])).json()["ledger"]["epsilon"] is None
    ledger.path.unlink()


# In a browser


@pytest.fixture(scope="module")
def url(store: Path, keys: dict[str, str]) -> Iterator[str]:
    """A service in a thread, on a real socket."""
    bound = socket.create_server(("127.0.0.1", 0))
    app = create_app(store, key_file=store.parent / "keys.toml")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


def until(page: Page, what: str) -> Any:
    end = time.monotonic() + 30
    while not (found := page.evaluate(what)):
        assert time.monotonic() < end, (what, page.evaluate("document.getElementById('said').textContent"))
        time.sleep(0.05)
    return found


def enter(page: Page, url: str, key: str, width: int = 1000, scheme: str = "light") -> None:
    page.show(url, width, scheme)
    until(page, "!document.getElementById('door').hidden")
    page.evaluate(f"document.getElementById('key').value = '{key}'; document.querySelector('#door button').click(); 1")


browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@browser
@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1000, "light")])
def test_it_asks_with_the_key_and_shows_a_list_with_reasons_as_text(
    page: Page, url: str, keys: dict[str, str], width: int, scheme: str
) -> None:
    enter(page, url, "not-a-key-that-opens-anything", width, scheme)
    until(page, "!document.getElementById('said').hidden && document.getElementById('room').hidden")
    enter(page, url, keys["staff"], width, scheme)
    until(page, "!document.getElementById('room').hidden")
    set_ = "document.getElementById('{}').value = '{}';".format
    page.evaluate(
        set_("history", "i1\\ni5, i9") + set_("k", "4") + "document.querySelector('#ask > :last-child button').click(); 1"
    )
    assert until(page, "document.querySelectorAll('#answers li').length") == 4
    assert HTML in page.evaluate("document.querySelector('#answers .text').textContent")
    assert page.evaluate("document.querySelectorAll('.bars .track i').length") > 0
    assert HTML in page.evaluate("document.querySelector('.bars span').textContent"), "an item of the history, by its text"
    page.evaluate("document.querySelector('#answers summary').click(); 1")
    until(page, "document.querySelector('#answers .text mark') !== null")
    assert HTML in page.evaluate("document.querySelector('#answers .text').textContent"), "also with words that are marked"
    page.evaluate(
        set_("diversity", "0.9") + "beside.checked = true; document.querySelector('#ask > :last-child button').click(); 1"
    )
    until(page, "document.querySelectorAll('#answers section').length == 2")
    page.evaluate(set_("find", "red lamp") + "document.getElementById('search').click(); 1")
    until(page, "document.querySelectorAll('#found li').length")
    page.evaluate("document.querySelector('#found button').click(); 1")
    assert page.evaluate("document.getElementById('history').value.split('\\n').length") == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for selector in ("body", ".soft", "summary", "button"):
        assert contrast(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color"), paper) >= 4.5, selector
    page.evaluate("document.getElementById('tab-lists').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'})); 1")
    page.evaluate(set_("weeks", "1") + "document.querySelector('#measure button').click(); 1")
    until(page, "document.querySelectorAll('#measured tbody tr').length > 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    harm = "[window.harm, document.querySelectorAll('main img, main b').length, localStorage.length, document.cookie]"
    assert page.evaluate(harm) == [None, 0, 0, ""]
    assert page.evaluate("[...document.querySelectorAll('input, textarea')].every(one => one.labels.length)")
    asked = [event["request"]["url"] for event in page.said("Network.requestWillBeSent")]
    assert all(one.startswith((url, "data:")) and keys["staff"] not in one for one in asked)
    assert not page.said("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")
