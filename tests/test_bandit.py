"""A merchant's own bandit: what was shown is kept, learned from and judged in its folder, and a person can be taken out."""

# ruff: noqa: F811

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from starlette.testclient import TestClient

from fedrec.data.feedback import FEEDBACK, FeedbackEvent, FeedbackLog
from fedrec.errors import InputError
from fedrec.explore.beliefs import Prior
from fedrec.explore.feedback import Feedback
from fedrec.recommender import Recommender, answers, forgetting, impressions
from fedrec.recommender.bandit import BANDIT, Bandit
from fedrec.recommender.impressions import (
    BEFORE,
    HEADER,
    IMPRESSIONS,
    LOCK,
    Impression,
    ImpressionLog,
    erase_impressions,
    find_impressions,
    read_shown,
)  # fmt: skip
from fedrec.recommender.merchant_text import MerchantPlace

from .stores import client_of, make_store
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401

USER, OTHER = "customer-3-secret", "customer-4-secret"
LISTS, PLACES, SHARE = 40, 4, 0.2


def liked(item: str) -> bool:
    return int(item[1:]) % 2 == 0


def places(request: str, user: str = "", items: tuple[str, ...] = ("i0", "i1")) -> list[Impression]:
    return [
        Impression(request, user, "2026-02-01T10:00:00.000000Z", item, str(at), "untrained 0.1", "0.5", "0.1", "1.0")
        for at, item in enumerate(items, 1)
    ]


def reaction(number: int, request: str, item: str, event: str = "click", user: str = USER) -> FeedbackEvent:
    return FeedbackEvent(f"e{number}", user, item, "2026-02-01T11:00:00.000000Z", event, request_id=request)


# The log


def test_the_log_is_bounded_and_its_owners_alone_and_survives_a_killed_writer(tmp_path: Path) -> None:
    log, current, before = ImpressionLog(tmp_path, 4000), tmp_path / FEEDBACK / IMPRESSIONS, tmp_path / FEEDBACK / BEFORE
    for number in range(60):
        log.append(places(f"r{number}"))
        if number == 50:
            with current.open("ab") as file:
                file.write(b"r50,half a li")
        assert current.stat().st_size + (before.stat().st_size if before.exists() else 0) <= 4000 + 20
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (current, before))
    kept = read_shown(tmp_path).frame["request_id"].tolist()
    assert 20 < len(kept) // 2 < 60 and kept == [f"r{n}" for n in range(60 - len(kept) // 2, 60) for _ in range(2)]
    nothing = ImpressionLog(tmp_path / "other", 0)
    nothing.append(places("r"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="control character"):
        log.append(places("r", "a\nb"))
    current.write_text("something else\n")
    with pytest.raises(InputError, match="line 1: it is not what was written"):
        read_shown(tmp_path)


def test_a_place_is_rewarded_by_what_its_own_list_led_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no list that explored"):
        read_shown(tmp_path)
    log = ImpressionLog(tmp_path, 10**6)
    for name in ("r0", "r1", "r2"):
        log.append(places(name))
    FeedbackLog(tmp_path).append(
        [
            reaction(0, "r0", "i1"),
            reaction(1, "r1", "i0", "purchase"),
            reaction(2, "r1", "i0"),
            reaction(3, "r2", "i0", "impression"),
            reaction(4, "r2", "elsewhere"),
            reaction(5, "", "i1"),
        ]
    )
    frame = read_shown(tmp_path).frame
    assert frame["reward"].tolist() == [0, 1, 1, 0, 0, 0]
    assert frame["propensity"].tolist() == [0.5] * 6


def test_a_person_leaves_with_the_lists_that_their_feedback_names(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path, 10**6)
    for name, user in (("r0", USER), ("r1", ""), ("r2", ""), ("r3", OTHER)):
        log.append(places(name, user))
    FeedbackLog(tmp_path).append([reaction(0, "r1", "i0"), reaction(1, "r2", "i0", user=OTHER)])
    found = find_impressions(tmp_path, USER)
    assert found == {tmp_path / FEEDBACK / IMPRESSIONS: 4}
    assert erase_impressions(tmp_path, USER) == found
    assert read_shown(tmp_path).frame["request_id"].unique().tolist() == ["r2", "r3"]
    assert stat.S_IMODE((tmp_path / FEEDBACK / IMPRESSIONS).stat().st_mode) == 0o600
    assert not find_impressions(tmp_path, USER)
    log.append(places("r4"))  # the file that is there now
    assert read_shown(tmp_path).frame["request_id"].nunique() == 3


def test_a_person_is_taken_out_of_both_files_under_one_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, written = tmp_path / FEEDBACK, list[str]()
    log = ImpressionLog(tmp_path, 10**6)
    for name in (BEFORE, IMPRESSIONS):
        log.append([*places("mine", USER), *places("other", OTHER)])
        if name == BEFORE:
            os.replace(folder / IMPRESSIONS, folder / BEFORE)
    real = impressions.write_atomically

    def held(path: Path, data: bytes, mode: int) -> None:
        with (folder / LOCK).open("wb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        written.append(path.name)
        real(path, data, mode=mode)

    monkeypatch.setattr(impressions, "write_atomically", held)
    assert erase_impressions(tmp_path, USER) == {folder / BEFORE: 2, folder / IMPRESSIONS: 2}
    assert written == [BEFORE, IMPRESSIONS]
    assert erase_impressions(tmp_path, USER) == {} and len(written) == 2, "what has nothing of them is not touched"
    (folder / LOCK).unlink()  # a backup may lack what is empty
    assert len(read_shown(tmp_path).frame) == 4
    assert erase_impressions(tmp_path / "nothing", USER) == {} and not (tmp_path / "nothing").exists()


# What is learned


def test_what_was_learned_is_read_as_written_and_reaches_new_items_by_their_kind(tmp_path: Path) -> None:
    """Two kinds of items; those of the first are clicked, those of the second are not."""
    rng = np.random.default_rng(0)
    kind = np.arange(30) % 2
    vectors = (np.stack([kind == 0, kind == 1], axis=1) + rng.normal(0, 0.05, (30, 2))).astype(np.float32)
    item = rng.integers(0, 20, 3000)
    clicked = (rng.random(3000) < np.where(kind[item] == 0, 0.3, 0.02)).astype(float)
    prior = Prior(vectors[:20], np.full(20, 5.0))
    feedback = Feedback(item, np.zeros(3000, dtype=np.int64), np.zeros(3000), clicked)
    names = [f"i{number}" for number in range(30)]
    Bandit.of(names[:20], prior, feedback, None, {"places": 3000}).write(tmp_path)
    assert stat.S_IMODE((tmp_path / BANDIT).stat().st_mode) == 0o600
    found = Bandit.read(tmp_path)
    assert found is not None and found.facts == {"places": 3000} and found.version is None
    same = found.over(names[:20], vectors[:20])
    for name in ("effect", "sd", "told"):
        np.testing.assert_array_equal(getattr(same, name), getattr(found.learned, name))
    moved = found.over(names[::-1], vectors[::-1])  # ten are new, and all have other places
    np.testing.assert_array_equal(moved.effect[10:], found.learned.effect[::-1])
    new = moved.effect[:10][::-1]  # i20 to i29
    assert new[::2].min() > new[1::2].max() + 0.1
    assert (moved.told[:10] == 0).all() and (moved.sd[:10] == found.learned.sd.max()).all()
    damaged = bytearray((tmp_path / BANDIT).read_bytes())
    damaged[-3] ^= 1
    (tmp_path / BANDIT).write_bytes(damaged)
    with pytest.raises(InputError, match="fedrec explore learn"):
        Bandit.read(tmp_path)


# In a merchant's folder


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant whose service has shown lists that explored, to two customers and to somebody; all click on one item."""
    folder = make_store(tmp_path_factory.mktemp("bandit") / "shop", tiny_bert_folder)
    drawn = count(100)
    with pytest.MonkeyPatch.context() as patch, client_of(folder) as client:
        patch.setattr(answers, "generator_for", lambda *_: np.random.default_rng(next(drawn)))  # the service takes no seed
        show(client, LISTS)
        for asked in ({"explore": 0.0}, {"query": "lamp"}):
            assert client.post("/v1/recommend", json={"user_id": USER, **asked}).status_code == 200
    return folder


def show(client: TestClient, lists: int) -> None:
    events: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = [{"user_id": USER}, {"user_id": OTHER}, {"history": ["i1", "i5"]}]
    for number in range(lists):
        person = people[number % 3]
        said = client.post("/v1/recommend", json={**person, "k": PLACES, "explore": SHARE}).json()
        clicked = [item["item_id"] for item in said["items"] if liked(item["item_id"])]
        name = person.get("user_id", "passer-by")
        events += [
            {
                "event_id": f"{said['request_id']}-{one}",
                "user_id": name,
                "item_id": one,
                "event": "click",
                "request_id": said["request_id"],
            }
            for one in clicked
        ]
    assert client.post("/v1/feedback", json={"events": events}).json()["stored"] == len(events) > 5


@pytest.fixture
def shop(used: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(used, tmp_path / "shop")
    yield tmp_path / "shop"


def test_the_service_keeps_what_lists_that_explore_show(used: Path) -> None:
    frame = read_shown(used).frame
    assert frame["request_id"].nunique() == LISTS and len(frame) == PLACES * LISTS, "and of the others nothing"
    assert set(frame["user_id"]) == {USER, OTHER, ""} and frame["policy"].unique().tolist() == [f"untrained {SHARE}"]
    assert frame["propensity"].between(0, 1, inclusive="right").all() and set(frame["target"]) == {"0.0", "1.0"}
    assert (frame["propensity"][frame["target"] == "1.0"] >= 1 - SHARE * (2 - SHARE)).all()
    assert frame["reward"].astype(bool).tolist() == frame["item_id"].map(liked).tolist()
    assert stat.S_IMODE((used / FEEDBACK / IMPRESSIONS).stat().st_mode) == 0o600


def test_lists_that_explore_go_by_what_was_learned_in_the_folder(shop: Path, fedrec: Fedrec) -> None:
    def ask() -> list[str]:
        answer = Recommender.load(shop).recommend(["i1", "i5"], k=24, explore=1e-9, seed=0)
        return [item for item, _ in answer.items]

    before = ask()
    said = json.loads(fedrec("explore", "learn", shop, "--json").out)
    assert said["lists"] == LISTS and said["places"] == PLACES * LISTS and said["rewarded"] > 5 and said["version"] is None
    after, first = ask(), (shop / "own" / BANDIT).read_bytes()
    ranks = [np.mean([place for place, item in enumerate(items) if liked(item)]) for items in (before, after)]
    assert ranks[1] < ranks[0] - 0.5
    assert [item for item, _ in Recommender.load(shop).recommend(["i1", "i5"], k=24).items] == before, "and no others"
    with client_of(shop, impression_bytes=0) as client:  # the service too
        answer = client.post("/v1/recommend", json={"history": ["i1", "i5"], "k": 24, "explore": 1e-9}).json()
        assert [item["item_id"] for item in answer["items"]] == after
    (shop / "own" / BANDIT).unlink()
    assert f"learned from {LISTS} lists" in fedrec("merchant", "fit", shop).out  # whatever else has not changed
    assert (shop / "own" / BANDIT).read_bytes() == first

    kept = Bandit.read(shop / "own")
    assert kept is not None
    Bandit(kept.item_ids, kept.learned, kept.direction, kept.level, "another", kept.facts).write(shop / "own")
    assert ask() == before, "beside another adapter it does not count"
    settings = {**tomllib.loads((shop / "merchant.toml").read_text()), "recommender": {"own_layer": False}}
    (shop / "merchant.toml").write_text(tomli_w.dumps(settings))
    assert_refused(fedrec("explore", "learn", shop), "recommender.own_layer: is off")


def test_the_folders_log_says_what_exploring_costs(shop: Path, fedrec: Fedrec) -> None:
    shown = fedrec("explore", "evaluate", shop, "--json")
    assert any("a list without `explore` does not" in note for note in json.loads(shown.out)["notes"])
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert found["requests"] == LISTS and [one["name"] for one in found["estimates"]] == ["IPS", "SNIPS"]
    assert "the same lists without chance" in fedrec("explore", "evaluate", shop).out
    assert_refused(fedrec("explore", "evaluate", shop.parent), "there is no merchant.toml")
    assert fedrec("explore", "learn", shop).status == 0
    recommender = Recommender.load(shop)
    plain, none_by_chance = (recommender.recommend(["i1", "i5"], k=24, explore=share, seed=0) for share in (0.0, 1e-9))
    assert [item for item, _ in plain.items] != [item for item, _ in none_by_chance.items]
    assert {place.target for place in none_by_chance.places} == {1.0}, "it is compared with what was learned"


def test_only_lists_of_the_version_that_ranks_are_learned_from(shop: Path, fedrec: Fedrec) -> None:
    path = shop / FEEDBACK / IMPRESSIONS
    header, *rows = path.read_text().splitlines(keepends=True)
    theirs = rows[: 10 * PLACES]
    for row in theirs:
        assert row.split(",")[HEADER.index("policy")] == f"untrained {SHARE}"
    path.write_text("".join([header, *rows[10 * PLACES :]]))
    assert fedrec("explore", "learn", shop).status == 0
    alone = Bandit.read(shop / "own")
    path.write_text("".join([header, *(row.replace("untrained ", "another ") for row in theirs), *rows[10 * PLACES :]]))
    said = json.loads(fedrec("explore", "learn", shop, "--json").out)
    assert (said["lists"], said["lists_of_other_versions"], said["places"]) == (LISTS - 10, 10, PLACES * (LISTS - 10))
    both = Bandit.read(shop / "own")
    assert alone is not None and both is not None
    np.testing.assert_array_equal(both.learned.effect, alone.learned.effect)
    assert "left out: 10 lists" in fedrec("explore", "learn", shop).out
    path.write_text(path.read_text().replace("untrained ", "another "))
    assert_refused(fedrec("explore", "learn", shop), "no list that explored under version untrained", f"{LISTS} of others")
    fitted = fedrec("merchant", "fit", shop)
    assert fitted.status == 0 and not (shop / "own" / BANDIT).exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_was_learned_and_cannot_be_read_does_not_stop_ranking(shop: Path, fedrec: Fedrec, damage: bytes) -> None:
    def ask(share: float) -> tuple[list[str], str]:
        answer = Recommender.load(shop).recommend(["i1", "i5"], k=24, explore=share, seed=0)
        return [item for item, _ in answer.items], " ".join(answer.notes)

    before = ask(1e-9)
    assert fedrec("explore", "learn", shop).status == 0
    learned, content = ask(1e-9), (shop / "own" / BANDIT).read_bytes()
    (shop / "own" / BANDIT).write_bytes(damage)
    items, notes = ask(1e-9)
    assert items == before[0] != learned[0] and "fedrec explore learn" in notes and "cannot be read" in notes
    assert "cannot be read" not in learned[1] + ask(0.0)[1]
    assert fedrec("explore", "learn", shop).status == 0
    assert (shop / "own" / BANDIT).read_bytes() == content


def test_who_is_forgotten_is_out_of_the_log_and_of_what_was_learned(shop: Path, fedrec: Fedrec) -> None:
    assert fedrec("explore", "learn", shop).status == 0
    said = json.loads(fedrec("merchant", "forget", shop, USER, "--yes", "--json").out)
    assert said["bandit"] == "fitted" and said["removed"][str(shop / FEEDBACK / IMPRESSIONS)] == PLACES * len(range(0, LISTS, 3))
    assert all(USER.encode() not in path.read_bytes() for path in (shop / FEEDBACK).iterdir())
    left = (shop / "own" / BANDIT).read_bytes()
    assert fedrec("explore", "learn", shop).status == 0
    assert (shop / "own" / BANDIT).read_bytes() == left, "as if they had never been there"
    for name in (OTHER, "passer-by"):
        said = json.loads(fedrec("merchant", "forget", shop, name, "--yes", "--json").out)
    frame = read_shown(shop).frame  # lists that nobody reacted to are nobody's
    assert set(frame["user_id"]) <= {""} and not frame["reward"].any()
    (shop / FEEDBACK / IMPRESSIONS).unlink()
    assert fedrec("merchant", "forget", shop, "nobody", "--yes").status == 0
    assert not (shop / "own" / BANDIT).exists()


def test_what_the_service_writes_while_a_person_is_forgotten_is_found(
    shop: Path, fedrec: Fedrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, place, folder = ImpressionLog(shop, 10**6), MerchantPlace(shop), shop / FEEDBACK
    traces = forgetting.find_traces(place, USER)
    assert folder / BEFORE not in traces.files
    os.replace(folder / IMPRESSIONS, folder / BEFORE)  # while it is asked whether to remove them
    log.append(places("late", USER))
    removed = forgetting.erase(traces, USER)
    assert removed[folder / IMPRESSIONS] == 2 and removed[folder / BEFORE] == traces.files[folder / IMPRESSIONS]
    forgetting.check_gone(traces, USER)
    real = forgetting.renew_bandit

    def meanwhile(place: MerchantPlace) -> forgetting.Layer:
        log.append(places("later", USER))
        return real(place)

    monkeypatch.setattr(forgetting, "renew_bandit", meanwhile)
    said = fedrec("merchant", "forget", shop, USER, "--yes")
    assert said.status == 2 and "2 rows of this person came meanwhile" in said.err and IMPRESSIONS in said.err
    monkeypatch.undo()
    assert fedrec("merchant", "forget", shop, USER, "--yes").status == 0
    assert all(USER.encode() not in path.read_bytes() for path in folder.iterdir())
