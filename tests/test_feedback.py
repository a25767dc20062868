"""Feedback: what was acknowledged is there once, whatever dies when; and it is the merchant's events from then on."""

# ruff: noqa: F811

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.data import load_merchant
from fedrec.data.feedback import FEEDBACK, LOG, FeedbackEvent, FeedbackLog, read_feedback
from fedrec.errors import InputError
from fedrec.recommender.fitting import fit_merchant, up_to_date
from fedrec.recommender.forgetting import erase, find_traces
from fedrec.recommender.merchant_text import MerchantPlace

from .merchants import write_merchant
from .stores import client_of, make_store
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401

WHEN = "2026-02-01T10:00:00.000000Z"


def event(number: int, **changes: str) -> FeedbackEvent:
    return replace(FeedbackEvent(f"e{number}", f"user-{number % 3}", f"i{number % 5}", WHEN), **changes)


def ids_in(folder: Path) -> list[str]:
    lines = (folder / FEEDBACK / LOG).read_text().splitlines()
    return [line.partition(",")[0] for line in lines[1:]]


# The log


def test_an_event_counts_once_whoever_sends_it_and_is_its_owners_alone(tmp_path: Path) -> None:
    one, other = FeedbackLog(tmp_path), FeedbackLog(tmp_path)
    assert one.append([event(0), event(1), event(0)]) == (2, 1)
    assert other.append([event(1), event(2)]) == (1, 1), "another process's events are known"
    assert one.append([event(2), event(3, item_id='a "b", c')]) == (1, 1)
    assert FeedbackLog(tmp_path).append([event(n) for n in range(4)]) == (0, 4), "and after a start"
    assert ids_in(tmp_path) == ["e0", "e1", "e2", "e3"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / FEEDBACK, *(tmp_path / FEEDBACK).iterdir()]}
    assert modes == {FEEDBACK: 0o700, LOG: 0o600, "lock": 0o600}
    with pytest.raises(InputError, match="control character"):
        one.append([event(9, user_id="a\nb")])
    assert ids_in(tmp_path) == ["e0", "e1", "e2", "e3"]
    path = tmp_path / FEEDBACK / LOG
    with path.open("ab") as file:
        file.write(b"e8,u," + b"x" * 300 + b"\0" * 9)
    assert one.append([event(2)]) == (0, 1) and path.read_bytes().endswith(b"\n"), "a long torn line is gone"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *(line.replace("user-", "somebody-else-") for line in lines[2:])]))
    assert one.append([event(0), event(1)]) == (1, 1), "in a file that somebody put in its place, what it holds is known"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 200), st.booleans()), max_size=6))
def test_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path: Path, story: list[tuple[list[int], int, bool]]) -> None:
    """Batches, after each of which a writer may die: of what it was writing then, any first bytes are there."""
    folder = tmp_path / "story"
    shutil.rmtree(folder, ignore_errors=True)
    log, acknowledged = FeedbackLog(folder), set[str]()
    for numbers, kept, dies in story:
        path = folder / FEEDBACK / LOG
        before = path.read_bytes().rstrip(b"\0").rfind(b"\n") + 1 if path.exists() else 0  # the whole lines
        log.append([event(number) for number in numbers])
        if dies:
            written = path.stat().st_size - before
            os.truncate(path, before + min(kept, written))
            if kept % 3 == 0:  # a power cut may leave zeros
                with path.open("ab") as file:
                    file.write(b"\0" * 7)
            log = FeedbackLog(folder)
        else:
            acknowledged |= {f"e{number}" for number in numbers}
        read = read_feedback(folder)
        assert read is not None
        found = ids_in(folder) if not dies else None
        assert found is None or (len(found) == len(set(found)) and acknowledged <= set(found))
    log.append([event(99)])
    found = ids_in(folder)
    assert len(found) == len(set(found)) and acknowledged | {"e99"} <= set(found)


def test_what_is_not_on_disk_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FeedbackLog(tmp_path)
    log.append([event(0)])
    flushed: list[str] = []
    real = os.fsync

    def full(file: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        if len(flushed) == 1:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        log.append([event(1)])
    assert ids_in(tmp_path) == ["e0"]
    assert log.append([event(1)]) == (1, 0)
    assert flushed == [str(tmp_path / FEEDBACK / LOG)] * 2 + [str(tmp_path / FEEDBACK)], "the log, and the name in its folder"


def test_a_log_that_somebody_changed_is_refused_by_its_line(tmp_path: Path) -> None:
    FeedbackLog(tmp_path).append([event(0)])
    with (tmp_path / FEEDBACK / LOG).open("a") as file:
        file.write("e1,u\n")
    with pytest.raises(InputError, match="line 3"):
        read_feedback(tmp_path)


def test_a_repetition_is_acknowledged_when_what_a_killed_writer_left_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = FeedbackLog(tmp_path)
    ours.append([event(0)])
    if (pid := os.fork()) == 0:
        monkeypatch.setattr(os, "fsync", lambda _: os._exit(9))  # killed after it wrote
        ours.append([event(1)])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9 and ids_in(tmp_path) == ["e0", "e1"]
    flushed: list[str] = []
    real = os.fsync

    def counted(file: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{file}").readlink().name)
        real(file)

    monkeypatch.setattr(os, "fsync", counted)
    assert ours.append([event(1)]) == (0, 1) and flushed == [LOG, FEEDBACK]
    assert ours.append([event(1)]) == (0, 1) and len(flushed) == 2, "what is known to be on disk costs nothing"
    assert FeedbackLog(tmp_path).append([event(1)]) == (0, 1) and flushed[2:] == [LOG, FEEDBACK]


def test_a_log_from_before_searches_is_read_and_gets_their_column_with_the_next_event(tmp_path: Path) -> None:
    FeedbackLog(tmp_path).append([event(0), event(1)])
    path = tmp_path / FEEDBACK / LOG
    lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join([*lines, "e7,tor"]))
    old, log = read_feedback(tmp_path), FeedbackLog(tmp_path)
    assert old is not None and len(old.frame) == 2 and "query" not in old.columns
    search = event(2, item_id="", event="search", query='a "red" mug, big')
    assert log.append([event(0), search]) == (1, 1) and log.append([search]) == (0, 1)
    new = read_feedback(tmp_path)
    assert new is not None and ids_in(tmp_path) == ["e0", "e1", "e2"] and new.frame["query"].tolist()[-1] == search.query
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="at most 500"):
        log.append([replace(search, event_id="e9", query="x" * 501)])


def test_what_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.append([event(0)])
    with pytest.raises(InputError, match="at most 256"):
        log.append([event(1, user_id="x" * 257)])
    assert log.append([event(2, user_id="x" * 256)]) == (1, 0) and ids_in(tmp_path) == ["e0", "e2"]
    with (tmp_path / FEEDBACK / LOG).open("a") as file:
        file.write("e3," + "x" * 140_000 + "\n")
    with pytest.raises(InputError, match="not what was written"):
        read_feedback(tmp_path)


# As events


@pytest.mark.parametrize("table", ["parquet", "csv"])
def test_feedback_is_events_from_then_on(tmp_path: Path, table: str) -> None:
    folder = write_merchant(tmp_path / "shop")
    if table == "csv":
        pd.read_parquet(folder / "events.parquet").to_csv(folder / "events.csv", index=False)
        (folder / "events.parquet").unlink()
    before = load_merchant(folder)
    FeedbackLog(folder).append(
        [
            event(0, user_id="u0", item_id="i7"),
            event(1, user_id="new", item_id="i8"),
            event(2, user_id="new", item_id="i8", timestamp="2026-02-02T10:00:00.000000Z", event="view"),
            event(3, user_id="new", item_id="gone"),
        ]
    )
    with (folder / FEEDBACK / LOG).open("a") as file:
        file.write("e4,u0,i9,2026-")  # somebody is writing
    after = load_merchant(folder)
    assert set(after.histories.user_ids) == {*before.histories.user_ids, "new"}
    for name, history in (("u0", after.histories), ("new", after.histories)):
        items, baskets = history.of(history.user_ids.index(name))
        assert after.catalogue.item_ids[items[-1]] == {"u0": "i7", "new": "i8"}[name] and baskets[-1] == len(set(baskets)) - 1
    assert {one.reason for one in after.left_out} >= {"the item is not in the catalogue"}
    assert any("line 5 of feedback/events.csv" in one.first for one in after.left_out)
    assert after.kinds["view"] == 1


def test_a_fit_sees_feedback_and_who_is_forgotten_is_out_of_it(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = make_store(tmp_path / "shop", tiny_bert_folder, users=40)
    place = MerchantPlace(folder)
    assert up_to_date(place, place.data())
    log = FeedbackLog(folder)
    log.append([event(0, user_id="gone-soon"), event(1, user_id="stays")])
    assert not up_to_date(place, place.data())
    fit_merchant(place, place.data())
    assert up_to_date(place, place.data())
    with (folder / FEEDBACK / LOG).open("a") as file:
        file.write("e7,gone-soon,i")  # a writer died
    traces = find_traces(place, "gone-soon")
    assert traces.files == {folder / FEEDBACK / LOG: 1}
    erase(traces, "gone-soon")
    assert b"gone-soon" not in (folder / FEEDBACK / LOG).read_bytes()
    assert log.append([event(1, user_id="stays"), event(2)]) == (1, 1), "whoever had it open goes on in the new file"
    assert ids_in(folder) == ["e1", "e2"]
    with client_of(folder) as client:
        answer = client.post("/v1/recommend", json={"user_id": "stays", "repeats": True}).json()
        assert "untrained text" in answer["source"], "a user who is known by feedback alone"
        asked = {"events": [{"event_id": "e2", "user_id": "u", "item_id": "i1"}, {
            "event_id": "e3", "user_id": "u", "item_id": "i1", "timestamp": "2026-02-01T11:00:00+01:00",
            "request_id": answer["request_id"], "position": 1, "propensity": 0.25, "event": "Click",
        }]}  # fmt: skip
        said = client.post("/v1/feedback", json=asked).json()
        assert (said["stored"], said["repeated"]) == (1, 1)
        for wrong in ({"item_id": "i1"}, {"event": "purchase"}, {"query": None}, {"query": "a\x07"}, {"query": "x" * 501}):
            search = {"event_id": "e4", "user_id": "u", "event": "search", "query": " red \n mug ", **wrong}
            assert client.post("/v1/feedback", json={"events": [search]}).status_code == 422, wrong
        search = {"event_id": "e4", "user_id": "stays", "event": "search", "query": " red \n mug "}
        assert client.post("/v1/feedback", json={"events": [search]}).json()["stored"] == 1
    click, _ = (folder / FEEDBACK / LOG).read_text().splitlines()[-2:]
    assert click == f"e3,u,i1,{WHEN},click,,,,,{answer['request_id']},1,0.25,"
    histories = load_merchant(folder).histories
    assert histories.queries == ("red mug",) and len(histories.of(histories.user_ids.index("stays"))[0]) == 2


def test_a_file_is_imported_once(fedrec: Fedrec, tmp_path: Path) -> None:
    folder = write_merchant(tmp_path / "shop")
    times = ["2026-02-01", "2026-02-01", "2026-02-01T12:00:00+02:00"]
    rows = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["i1", "i1", "i2"], "timestamp": times})
    rows.to_csv(tmp_path / "new.csv", index=False)
    told = [json.loads(fedrec("data", "import", tmp_path / "new.csv", "--to", folder, "--json").out) for _ in range(2)]
    assert [(one["stored"], one["repeated"]) for one in told] == [(3, 0), (0, 3)]
    rows.assign(timestamp=pd.to_datetime(rows["timestamp"], utc=True, format="ISO8601")).to_parquet(tmp_path / "new.parquet")
    again = fedrec("data", "import", tmp_path / "new.parquet", "--to", folder)
    assert again.status == 0 and "0 events are new; 3 were there" in again.out
    assert {"a", "b"} <= set(load_merchant(folder).histories.user_ids)
    faults = (("timestamp", "soon"), ("user_id", ""), ("user_id", "x" * 140_000), ("item_id", "i\x07"))
    for column, value in faults:
        wrong = rows.astype(object)
        wrong.loc[1, column] = value
        wrong.to_csv(tmp_path / "wrong.csv", index=False)
        assert_refused(fedrec("data", "import", tmp_path / "wrong.csv", "--to", folder), column, "line 3")
    assert_refused(fedrec("data", "import", tmp_path / "new.csv", "--to", tmp_path), "merchant.toml")
    first = ("user_id", "item_id", "timestamp", "event", "a", "i1", "2026-02-01T00:00:00.000000Z", "purchase", "0")
    called = f"import-{blake2b(chr(0).join(first).encode(), digest_size=16).hexdigest()}"
    assert len(ids_in(folder)) == 3 and ids_in(folder)[0] == called, "under another name all of it would come a second time"
    searches = pd.concat(
        [rows, pd.DataFrame({"user_id": ["a"], "timestamp": times[:1], "event": "search", "query": " red  mug"})]
    )
    searches.to_csv(tmp_path / "searches.csv", index=False)
    told = [json.loads(fedrec("data", "import", tmp_path / "searches.csv", "--to", folder, "--json").out) for _ in range(2)]
    assert [(one["stored"], one["repeated"]) for one in told] == [(1, 3), (0, 4)], "what was there before is what it was"
    assert load_merchant(folder).histories.queries == ("red mug",)
    searches.assign(query="").to_csv(tmp_path / "wrong.csv", index=False)
    assert_refused(fedrec("data", "import", tmp_path / "wrong.csv", "--to", folder), "item_id", "line 5")
