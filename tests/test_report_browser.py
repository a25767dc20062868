"""The pages in a real browser: no network, no error, every width and colour scheme, and on paper."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedrec.config import RunConfig
from fedrec.privacy import Ledger, Release
from fedrec.report.privacy_report import write_privacy_report
from fedrec.report.reasons_report import write_reasons
from fedrec.report.run_report import write_report

connect = pytest.importorskip("websockets.sync.client", reason="websockets is not installed").connect

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
MERCHANTS = ("north", "a-merchant-with-a-rather-long-name", "south")
SECURE: dict[str, Any] = {
    "trust": "secure-aggregation", "noise_multiplier_alone": 0.8, "members": 12, "dropouts": 1, "colluders": 1,
}  # fmt: skip
TOO_FEW = "8 of 12 merchants sent their masked sum, 11 are needed"
A4 = (595, 842)
"""Points."""


class Page:
    """A tab over the DevTools protocol, and everything it said since it was opened."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number, self.events = socket, 0, []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def show(self, url: str, width: int, scheme: str = "light") -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while self.evaluate("document.readyState + location.href") != f"complete{url}":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)
        time.sleep(0.2)  # whatever the page would still ask for
        self.evaluate("1")

    def said(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a browser that was started for this module."""
    profile = tmp_path_factory.mktemp("chromium")
    environment = {**os.environ, "HOME": str(profile)}
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with open(profile / "stderr", "wb") as errors:
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and len(port_file.read_text().split()) == 2):
            assert browser.poll() is None and time.monotonic() < deadline, (profile / "stderr").read_text()
            time.sleep(0.05)
        port, path = port_file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as socket:
            socket.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            targets = json.loads(socket.recv(timeout=60))["result"]["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{tab}", proxy=None, max_size=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        try:
            browser.wait(20)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()


@pytest.fixture(scope="module", params=["privacy", "privacy of one", "privacy, secure", "run", "run, secure", "reasons"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's HTML file, made from few hand-made facts."""
    folder = tmp_path_factory.mktemp("report")
    secure = request.param.endswith("secure")
    if request.param == "reasons":
        write_reasons(folder / "reasons.html", reasons())
        return folder / "reasons.html"
    if request.param.startswith("run"):
        config = RunConfig(trust="secure-aggregation" if secure else "local")
        lines = [{**line, "abandoned": TOO_FEW} if secure and line["round"] == 4 else line for line in run_lines()]
        return write_report(folder, config, lines, run_results())
    names = MERCHANTS[1:2] if request.param == "privacy of one" else MERCHANTS
    write_ledgers(folder, names, secure)
    return write_privacy_report(folder)[1]


def write_ledgers(run: Path, names: tuple[str, ...], secure: bool) -> None:
    """Ledgers of a simulated run: one is broken, one has an audit to go with it."""
    for number, name in enumerate(names):
        (run / "federation" / "merchants" / name).mkdir(parents=True)
        policy = f'name = "{name}"\n[privacy]\nepsilon = 4.0\ndelta = 1e-5\npopulation = 12000\n'
        (run / "federation" / "merchants" / name / "merchant.toml").write_text(policy)
        ledger = Ledger(run / "privacy" / f"{name}.ledger.jsonl", 1e-5)
        ledger.append(Release("4f78711d313c4a62", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5))
        for round_number in range(1, 5 + number):
            release = Release("4f78711d313c4a62", round_number, "dp-sgd", 2.5, 0.2, 2, 0.5, "user", 1e-5)
            ledger.append(replace(release, **SECURE) if secure else release)
    if len(names) > 1:
        lines = ledger.path.read_bytes().splitlines(keepends=True)
        ledger.path.write_bytes(b"".join(lines[:2] + lines[3:]))
    audit = {"epsilon_lower": 0.7, "confidence": 0.95, "epsilon_claimed": 3.1, "method": "one run with canaries"}
    (run / "privacy" / "audit.json").write_text(json.dumps(audit))
    (run / "site.json").write_text(json.dumps({"federation": str(run / "federation"), "seed": 0}))


def metrics(value: float) -> dict[str, float]:
    out = {"users": 1700.0}
    for name in ("ndcg@10", "hr@10", "recall@10", "mrr"):
        out |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
    return out


def reasons() -> dict[str, Any]:
    """Two items, of which one has a word without a space and the words of its text."""
    text = "red enamel mug, " + "A" * 90
    values = {"history": 0.62, "query": 0.2, "popularity": 0.15, "own layer": 0.05, "base": -4.1}
    shares = [{"kind": kind, "name": kind, "text": text, "share": share, "through": {}} for kind, share in values.items()]
    words = [{"word": "red", "start": 0, "end": 3, "share": 0.3}, {"word": "enamel", "start": 4, "end": 10, "share": -0.2}]
    said = {"text": text, "score": 0.9, "gap": 0.1, "words": words}
    items = [
        {"item_id": "i1", "score": -3.08, "because": f"Because you bought {text}", "text": text, "shares": shares, "words": one}
        for one in (said, None)
    ]
    return {"items": items, "source": "model", "notes": ["one note"], "view": "staff"}


def run_lines() -> list[dict[str, Any]]:
    """`metrics.jsonl` of a run of six rounds."""
    spent = {"budget": 8.0, "delta": 1e-5, "accountant": "prv", "population": 12_000}
    return [
        {
            "round": number,
            "part": "heads" if number else "histogram",
            "seconds": 2.5,
            "took_part": list(MERCHANTS[1:]),
            "declined": {"north": "budget: epsilon 8.123 would be over the policy's 8"},
            "refused": {},
            "bytes_down": dict.fromkeys(MERCHANTS, 45_000),
            "bytes_up": dict.fromkeys(MERCHANTS, 23_000),
            "privacy": {name: {**spent, "epsilon": 1.0 + 0.5 * number} for name in MERCHANTS},
            "central": metrics(0.2 + 0.01 * number),
        }
        for number in range(7)
    ]


def run_results() -> dict[str, Any]:
    """`results.json` of the same run."""
    names = {"text zero-shot": True, "popularity, private histograms": True, "same training, noise and clipping off": False}
    rows = [{"name": name, "private": private, **metrics(0.2)} for name, private in names.items()]
    gain = {"mean": 0.06, "low": 0.05, "high": 0.07}
    return {"rows": rows, "rounds": 6, "simulation": True, "model_bytes": 90_000_000, "gain": gain}


@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_asks_the_network_for_nothing_and_reports_no_error(page: Page, report: Path, width: int) -> None:
    page.show(report.as_uri(), width)
    asked = [event["request"]["url"] for event in page.said("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert not page.said("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")
    assert page.evaluate("[...document.styleSheets].every(sheet => sheet.href === null)")


@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_never_scrolls_sideways(page: Page, report: Path, width: int) -> None:
    page.show(report.as_uri(), width)
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true) || 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('p, dd')).fontSize)")
    assert size >= 15


def test_light_and_dark_differ_and_both_can_be_read(page: Page, report: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        page.show(report.as_uri(), 1000, scheme)
        for selector in ("body", ".soft", ".note.warn", *(() if report.name == "reasons.html" else ("table",))):
            colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            found[scheme] = paper
            assert contrast(colour, paper) >= 4.5, (scheme, selector)
    assert found["light"] != found["dark"]


def test_it_prints_on_a4(page: Page, report: Path, tmp_path: Path) -> None:
    page.show(report.as_uri(), 1000)
    answer = page.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
    pdf = base64.b64decode(answer["data"])
    boxes = re.findall(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)\s*\]", pdf)
    assert pdf.startswith(b"%PDF") and boxes
    assert {(round(float(width)), round(float(height))) for width, height in boxes} == {A4}
    page.call("Emulation.setEmulatedMedia", media="print", features=[])
    page.call("Emulation.setDeviceMetricsOverride", width=673, height=1000, deviceScaleFactor=1, mobile=False)  # A4 less margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 673


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours (WCAG 2.2, section 1.4.3)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
