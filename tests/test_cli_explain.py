"""`fedrec explain`: its options, what each view holds, and a page that obeys nobody's text."""

# ruff: noqa: F811

from __future__ import annotations

import json
import re
import stat
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fedrec.cli.explain import View, explained
from fedrec.recommender import MerchantRecommender, Recommender
from fedrec.report.reasons_report import write_reasons

from .test_answers import HISTORY, recommender  # noqa: F401
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_cli_recommend import run  # noqa: F401
from .test_merchant_recommender import adapter, fitted_once, loaded  # noqa: F401

GIVEN = ("--history", "i3, i11,i5", "--times", "2026-01-02,2026-01-03,2026-01-04")


def test_every_option_reaches_the_answer(fedrec: Fedrec, run: Path, recommender: Recommender) -> None:
    said = json.loads(fedrec("explain", run, *GIVEN, "--k", 4, "--json").out)
    expected = recommender.explain(HISTORY, times=["2026-01-02", "2026-01-03", "2026-01-04"], k=4)
    assert [one["item_id"] for one in said["items"]] == [one.item_id for one in expected.reasons] and said["view"] == "staff"
    for one, reasons in zip(said["items"], expected.reasons, strict=True):
        assert one["because"] == reasons.sentence and one["score"] == pytest.approx(reasons.score, abs=1e-5)
        assert sum(share["share"] for share in one["shares"]) == pytest.approx(one["score"], abs=1e-5)
        assert all(sum(share["through"].values()) == pytest.approx(share["share"]) for share in one["shares"] if share["through"])
    given = json.loads(fedrec("explain", run, *GIVEN, "--items", "i1,i3", "--repeats", "--merchant", "half", "--json").out)
    assert {one["item_id"] for one in given["items"]} == {"i1", "i3"}
    asked = json.loads(fedrec("explain", run, "--user", "eve", "--k", 1, "--json").out)
    assert asked["source"] == "popularity" and "'eve'" in asked["notes"][0]
    assert_refused(fedrec("explain", run, "--history", "i3", "--times", "1,2"), "times")
    assert_refused(fedrec("explain", run, *GIVEN, "--html", "no/such/page.html"), "--html", "cannot be written")


def test_the_terminal_shows_bars_that_add_up(fedrec: Fedrec, run: Path, recommender: Recommender) -> None:
    answer = fedrec("explain", run, *GIVEN, "--k", 1)
    assert answer.status == 0, answer.err
    values = [float(one) for one in re.findall(r"^ +(-?\d+\.\d{4}) ", answer.out, re.MULTILINE)]
    (score,) = [float(one) for one in re.findall(r"^i\d+  (-?\d+\.\d{3}) ", answer.out, re.MULTILINE)]
    assert sum(values) == pytest.approx(score, abs=1e-3) and "█" in answer.out and "source: model" in answer.out
    shopper = fedrec("explain", run, *GIVEN, "--view", "shopper").out
    assert "■■■ strong" in shopper and not re.search(r"\d\.\d", shopper)


def test_a_merchants_known_user_is_explained_with_times_and_words(fedrec: Fedrec, fitted_once: Path) -> None:
    ranks: MerchantRecommender = loaded(fitted_once)
    user = ranks._data.histories.user_ids[0]
    found = json.loads(fedrec("explain", fitted_once, "--user", user, "--words", "--repeats", "--k", 5, "--json").out)
    assert len(found["items"]) == 5 and all(one["words"]["words"] for one in found["items"])
    assert any("ago" in one["because"] for one in found["items"] if one["because"])
    shown = json.dumps(found)
    assert not any(name in shown for name in ranks._data.histories.user_ids), "no customer is named, the one who asks neither"
    shopper = fedrec("explain", fitted_once, "--user", user, "--view", "shopper", "--json", "--html", "page.html")
    assert not _numbers(json.loads(shopper.out)), "a shopper sees no number"
    assert not re.search(r"\d\.\d", re.sub(r"<style>.*?</style>", "", Path("page.html").read_text(), flags=re.DOTALL))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [one for part in (value.values() if isinstance(value, dict) else value) for one in _numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_no_share_but_an_items_has_the_text_of_an_item(recommender: Recommender) -> None:
    answer = recommender.explain(HISTORY, k=1)
    texts = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True))
    (said,) = explained(answer, View.staff, texts | {"federation": "a trap", "": "another"})["items"]
    assert {share["text"] for share in said["shares"]} == {"", *(texts[item] for item in HISTORY)}


@pytest.mark.parametrize("view", ["staff", "shopper"])
def test_the_page_obeys_nobodys_text(view: str, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> \"'> {{ 7 * 7 }} \u202egnirts\x1b[2J"
    share = {"kind": "history", "name": evil, "text": evil, "how": "strong"}
    if view == "staff":
        share |= {"share": -1.25, "through": {"text 0.1": -1.25}}
        del share["how"]
    words = {
        "text": evil,
        "words": [{"start": 1, "end": 7, "word": "script", "share": 0.5}, {"start": 8, "end": 13, "share": -0.5}],
    }
    item = {"item_id": evil, "because": evil, "shares": [share], "words": words, "text": evil} | (
        {"score": 2.5} if view == "staff" else {}
    )
    path = tmp_path / "page.html"
    write_reasons(path, {"items": [item], "source": evil, "notes": [evil], "view": view})
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html and "\x1b" not in html and "\u202e" not in html and "49" not in html
    assert not re.search(r"(src|href)=\"(?!data:,)", html) and "http" not in html and "@import" not in html
    assert "alert(1)" in unescape(html) and 'class="m4"' in html
    assert ("-1.2500" in html) == (view == "staff")
    assert "most" not in html and ("as far as it is told" in html) == (view == "shopper"), "more may be untold"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_reasons(path, {"items": [], "source": "none", "notes": [], "view": view})
    assert "There is no item to explain" in path.read_text(encoding="utf-8")
