"""The service's page in a real browser: with a key it asks, shows lists and reasons, and takes nothing for HTML."""

# ruff: noqa: F811

from __future__ import annotations

import shutil
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
from fedrec.model.adapter import Arrays
from fedrec.privacy import Ledger, Release, head_file
from fedrec.privacy.next_run import next_run
from fedrec.recommender import MerchantRecommender
from fedrec.recommender.drifting import drift_of, drift_sentence
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.app import create_app
from fedrec.serve.drift import alarms, spent
from fedrec.serve.settings import DriftSettings

from .stores import client_of, make_store, with_key
from .test_merchant_recommender import adapter, keep, spoilt  # noqa: F401
from .test_report_browser import CHROMIUM, Page, contrast, page  # noqa: F401

PRIVACY = '[privacy]\nepsilon = 8.0\ndelta = 1e-5\ntrust = "local"\npopulation = 2000\n'
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
    again = next_run(ledger.releases(), 1e-5, long["ledger"]["budget"])
    assert again is not None and long["ledger"]["next_run"] == again.sentence
    assert again.after > long["ledger"]["epsilon"] and again.epsilon == pytest.approx(again.after - long["ledger"]["epsilon"])
    for key, status in ((None, 401), (keys["shop"], 401), (keys["staff"], 200)):
        report = client.post("/v1/privacy", json={}, headers=with_key(key))
        assert report.status_code == status and str(store) not in report.text
    labels, ledgers = [line["label"] for line in report.json()["summary"]], report.json()["ledgers"]
    assert {"Protected", "Against", "How much", "Not covered"} <= set(labels)
    assert [run["name"] for run in ledgers[0]["runs"]] == ["4f78711d313c4a62"]
    assert 0.9 * long["ledger"]["epsilon"] < ledgers[0]["epsilon"] <= long["ledger"]["epsilon"], "by slower accountants too"
    with ledger.path.open("ab") as file:
        file.write(b"{}\n")
    assert client.post("/v1/drift", json={"weeks": 52}, headers=with_key(keys["staff"])).json()["ledger"]["epsilon"] is None
    assert client.post("/v1/privacy", json={}, headers=with_key(keys["staff"])).json()["summary"][0]["label"] == "Warning"
    ledger.path.unlink()


@pytest.mark.parametrize("place", ["", '[ledger]\nhead = "elsewhere"\n'])
def test_a_ledger_that_was_cut_or_is_gone_is_believed_by_nobody(tmp_path: Path, place: str) -> None:
    (tmp_path / "merchant.toml").write_text(f'name = "shop"\n{PRIVACY}{place}')
    path = tmp_path / "state" / "privacy" / "shop.ledger.jsonl"
    assert spent(tmp_path) is None
    ledger = Ledger(path, 1e-5, head_file(path, tmp_path / "elsewhere" if place else None))
    for number in range(2):
        ledger.append(Release("4f78711d313c4a62", number, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5))
    whole = spent(tmp_path)
    assert whole is not None and whole["epsilon"] == pytest.approx(ledger.spent().value) and whole["next_run"]
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    cut = spent(tmp_path)
    shutil.rmtree(path.parent)
    gone = spent(tmp_path)
    assert cut is not None and gone is not None and (cut["releases"], gone["releases"]) == (1, 0)
    assert [(one["epsilon"], one["next_run"]) for one in (cut, gone)] == [(None, None)] * 2


def test_a_budget_that_a_run_does_not_fit_is_said(tmp_path: Path) -> None:
    release = Release("4f78711d313c4a62", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5)
    fits, does_not = (next_run([release], 1e-5, budget) for budget in (8.0, 1.0))
    assert fits is not None and "fits your budget of 8." in fits.sentence and next_run([], 1e-5, 8.0) is None
    assert does_not is not None and "does not fit your budget of 1; 0.06 is left for a smaller one." in does_not.sentence


def test_versions_are_compared_by_the_staff_alone_and_only_those_that_are_here(client: TestClient, keys: dict[str, str]) -> None:
    asked = {"history": ["i1", "i5"], "k": 4, "explain": True}
    assert client.post("/v1/compare", json={**asked, "version": "untrained"}, headers=with_key(keys["shop"])).status_code == 401
    staff = with_key(keys["staff"])
    for wrong in ("gone", "../own"):
        refused = client.post("/v1/compare", json={**asked, "version": wrong}, headers=staff)
        assert (refused.status_code, refused.json()["error_type"]) == (422, "no_version")
    infos = {key: client.get("/info", headers=with_key(keys[key])).json()["merchants"][0]["versions"] for key in keys}
    assert infos == {"shop": None, "staff": ["untrained"]}
    now = client.post("/v1/recommend", json=asked, headers=staff).json()
    other = client.post("/v1/compare", json={**asked, "version": "untrained"}, headers=staff).json()
    assert [item["item_id"] for item in other["items"]] == [item["item_id"] for item in now["items"]]
    assert other["model"] == "untrained" and other["items"][0]["reasons"] == now["items"][0]["reasons"]


@pytest.mark.slow
def test_another_version_answers_as_it_would_alone_and_leaves_the_one_that_ranks(
    tmp_path: Path, tiny_bert_folder: Path, adapter: tuple[Arrays, dict[str, Any]]
) -> None:
    folder = make_store(tmp_path / "shop", tiny_bert_folder, users=40)
    name = keep(folder, spoilt(adapter[0]), adapter[1])
    asked = {"history": ["i1", "i5"], "k": 6}
    alone = MerchantRecommender.load(folder, version=name).recommend(["i1", "i5"], k=6)
    with client_of(folder, time_limit=60) as client:
        lists = [client.post("/v1/recommend", json=asked).json()]
        found = client.post("/v1/compare", json={**asked, "version": name}).json()
        lists.append(client.post("/v1/recommend", json=asked).json())
    assert [one["item_id"] for one in found["items"]] == [item for item, _ in alone.items]
    assert [one["score"] for one in found["items"]] == pytest.approx([score for _, score in alone.items], rel=1e-5)
    assert found["model"] == name and found["source"].startswith(f"federated text {name}")
    assert lists[0]["items"] == lists[1]["items"] and lists[1]["model"] == "untrained"
    assert lists[0]["items"] != found["items"]


def test_a_threshold_of_drift_raises_a_metric_where_settings_say_so_and_nothing_else(store: Path, keys: dict[str, str]) -> None:
    key = with_key(tomllib.loads((store.parent / "keys.toml").read_text())["metrics"])
    drift = {"weeks": 2, "mix": 0.01, "unknown": 1.0, "figures": True}
    with client_of(store, store.parent / "keys.toml", time_limit=60, drift=drift) as client:
        end = time.monotonic() + 60
        while "fedrec_drift_measured_timestamp_seconds{" not in (told := client.get("/metrics", headers=key).text):
            assert time.monotonic() < end
            time.sleep(0.05)
        measured = client.post("/v1/drift", json={"weeks": 2}, headers=with_key(keys["staff"])).json()["windows"][-1]
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if line.startswith("fedrec_drift"))
    alarm = 'fedrec_drift_alarm{{figure="{}",merchant="shop"}}'.format
    assert [lines[alarm(name)] for name in ("lost", "mix", "unknown")] == ["0.0", "1.0", "0.0"]
    assert float(lines['fedrec_drift{figure="mix",merchant="shop"}']) == pytest.approx(measured["mix"])


def test_without_the_setting_drift_is_in_no_metric(client: TestClient, store: Path) -> None:
    key = with_key(tomllib.loads((store.parent / "keys.toml").read_text())["metrics"])
    assert "fedrec_drift" not in "".join(
        line for line in client.get("/metrics", headers=key).text.splitlines() if not line.startswith("#")
    )


@pytest.mark.parametrize(
    ("change", "p_value", "over"),
    [(-0.2, 0.01, True), (-0.2, 0.2, False), (-0.05, 0.01, False), (0.2, 0.01, False), (None, None, False)],
)
def test_a_loss_is_an_alarm_where_it_is_large_and_no_chance(change: float | None, p_value: float | None, over: bool) -> None:
    found = {"windows": [{"mix": None, "unknown": 0.3}], "change": change, "p_value": p_value}
    raised = alarms(found, DriftSettings(unknown=0.3))
    assert raised.keys() == {"lost", "unknown"} and raised["lost"][1] == over and raised["unknown"] == (0.3, True)


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
    page.evaluate(set_("version", "untrained") + "document.querySelector('#ask > :last-child button').click(); 1")
    until(page, "document.querySelectorAll('#answers section').length == 3")
    assert page.evaluate("[...document.querySelectorAll('#answers h2')].map((one) => one.textContent)[1]") == "By untrained"
    page.evaluate("document.querySelector('#answers section:nth-child(2) summary').click(); 1")
    assert not page.evaluate("/was|new|not there/.test(document.querySelector('#answers section:nth-child(2)').textContent)")
    assert page.evaluate("document.querySelector('#answers section:nth-child(2) mark') === null"), "words are the other one's"
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
    page.evaluate("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'})); 1")
    assert page.evaluate("document.activeElement.id") == "tab-privacy"
    page.evaluate("document.querySelector('#report button').click(); 1")
    said = until(page, "document.getElementById('reported').textContent")
    assert "nothing was released yet" in said and "Not covered" in said
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    harm = "[window.harm, document.querySelectorAll('main img, main b').length, localStorage.length, document.cookie]"
    assert page.evaluate(harm) == [None, 0, 0, ""]
    assert page.evaluate("[...document.querySelectorAll('input, textarea')].every(one => one.labels.length)")
    asked = [event["request"]["url"] for event in page.said("Network.requestWillBeSent")]
    assert all(one.startswith((url, "data:")) and keys["staff"] not in one for one in asked)
    assert not page.said("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")
