"""`fedrec recommend`: what a person and a file of people get, and what is refused before a model is loaded."""

# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.cli import recommend as command
from fedrec.recommender import Filter, Recommender, Wish

from .test_answers import HISTORY, ids, popular, recommender  # noqa: F401
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401


@pytest.fixture(scope="module")
def run(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as far as `recommend` reads it; its encoder is the tests' own, which no name stands for."""
    folder = tmp_path_factory.mktemp("run")
    held = {"encoder_fingerprint": recommender.encoder.fingerprint, "encoder": "gone", "encoder_files": ""}
    Recommender(recommender.encoder, recommender.arrays, recommender.settings | held, recommender.table).save(folder / "adapter")
    return folder


def asked(answer: str) -> list[str]:
    return [one["item_id"] for one in json.loads(answer)["items"]]


def test_a_list_and_its_reasons_are_printed(fedrec: Fedrec, run: Path, recommender: Recommender) -> None:
    answer = fedrec("recommend", run, "--history", "i3, i11,gone\x1b,i5", "--k", 4)
    assert answer.status == 0, answer.err
    assert "not in the catalogue, so ignored: 'gone\\x1b'" in answer.out and "source: model; mean distance" in answer.out
    shown = json.loads(fedrec("recommend", run, "--history", ",".join(HISTORY), "--json").out)
    expected = recommender.recommend(HISTORY)
    assert [one["item_id"] for one in shown["items"]] == ids(expected) and shown["source"] == "model"
    assert shown["distance"] == pytest.approx(expected.distance) and shown["notes"] == []
    assert shown["items"][0]["text"] == recommender.catalogue.texts[int(ids(expected)[0][1:])]
    nobody = fedrec("recommend", run, "--user", "eve")
    assert nobody.status == 0 and "user 'eve' is not known here" in nobody.out and "source: popularity" in nobody.out
    nothing = fedrec("recommend", run, "--brand", "none such")
    assert nothing.status == 0 and "the filters leave none of the 30 items" in nothing.out and "source: none" in nothing.out


def test_every_option_reaches_the_answer(fedrec: Fedrec, run: Path, recommender: Recommender, tmp_path: Path) -> None:
    (tmp_path / "stock.txt").write_text("".join(f"i{i}\n" for i in range(20)))
    pd.DataFrame({"item_id": ["i0"]}).to_parquet(tmp_path / "not.parquet")
    wanted = Filter(["lamps", "mugs"], ["acme"], 2, 8, [f"i{i}" for i in range(20)], ["i0"])
    options = ["--category", "lamps", "--category", "mugs", "--brand", "acme", "--price-min", 2, "--price-max", 8]
    options += ["--stock", "stock.txt", "--exclude", "not.parquet", "--json", "--history", "i3,i4,i5"]
    answer = fedrec("recommend", run, *options)
    assert asked(answer.out) == ids(recommender.recommend(["i3", "i4", "i5"], filter=wanted)) and len(asked(answer.out)) == 3
    repeated = asked(fedrec("recommend", run, *options, "--repeats").out)
    assert repeated == ids(recommender.recommend(["i3", "i4", "i5"], filter=wanted, repeats=True)) and "i4" in repeated
    assert "i6" not in asked(fedrec("recommend", run, *options[:-5], "--exclude", "i6,i0", "--json").out)
    many = ",".join(f"i{i}" for i in range(2, 300))  # too long for the name of a file
    assert asked(fedrec("recommend", run, "--exclude", many, "--json").out) == popular(recommender, range(2))
    plain = ["recommend", run, "--history", "i3,i11,i5", "--k", 8, "--json"]
    assert asked(fedrec(*plain, "--diversity", 0.5).out) == ids(recommender.recommend(HISTORY, k=8, diversity=0.5))
    timed = json.loads(fedrec(*plain, "--times", "2026-01-02,2026-01-01,2026-01-02").out)
    expected = recommender.recommend(HISTORY, times=[2, 1, 2], k=8)
    assert [one["score"] for one in timed["items"]] == pytest.approx([score for _, score in expected.items], abs=1e-5)
    assert json.loads(fedrec(*plain, "--times", "2,1,2").out) == timed
    assert set(asked(fedrec(*plain, "--merchant", "half").out)) <= {f"i{i}" for i in range(15)}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_of_users_is_answered(
    suffix: str,
    fedrec: Fedrec,
    run: Path,
    recommender: Recommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "CHUNK", 2)
    events = pd.DataFrame(
        [
            ("2", "i3", "2026-01-02"),
            ("1", "i8", "2026-01-01"),
            ("2", "i11", "2026-01-01"),
            ("none", None, None),
            ("2", "i5", "2026-01-02"),
        ],
        columns=["user_id", "item_id", "timestamp"],
    )
    events.to_csv(tmp_path / "users.csv", index=False)
    answer = fedrec("recommend", run, "--users", "users.csv", "--out", f"lists.{suffix}", "--k", 3, "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["sources"] == {"model": 2, "popularity": 1}
    text = {"user_id": str, "item_id": str}
    lists = pd.read_csv(tmp_path / "lists.csv", dtype=text) if suffix == "csv" else pd.read_parquet(tmp_path / "lists.parquet")
    assert lists.columns.tolist() == ["user_id", "rank", "item_id", "score", "source"]
    assert lists["user_id"].tolist() == ["2"] * 3 + ["1"] * 3 + ["none"] * 3 and lists["rank"].tolist() == [1, 2, 3] * 3
    alone = [recommender.recommend(HISTORY, times=[2, 1, 2], k=3), recommender.recommend(["i8"], k=3), recommender.recommend(k=3)]
    assert lists["item_id"].tolist() == [item for one in alone for item in ids(one)]
    np.testing.assert_allclose(lists["score"], [score for one in alone for _, score in one.items], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"lists.{suffix}", "users.csv"]


def test_names_alone_are_looked_up(fedrec: Fedrec, run: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id\nann\nbob\nann\n")
    answer = fedrec("recommend", run, "--users", "users.csv", "--out", "lists.csv")
    assert answer.status == 0 and "lists for 2 users: 2 from popularity" in answer.out and "'ann' is not known here" in answer.out


def test_an_interrupted_file_of_users_leaves_nothing(
    fedrec: Fedrec,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users.csv").write_text("user_id\nann\nbob\n")
    (tmp_path / "lists.csv").write_text("yesterday's")
    monkeypatch.setattr(command, "CHUNK", 1)
    answered = Recommender.recommend_many

    def second(self: Recommender, people: list[object], wish: Wish, merchant: str | None = None) -> object:
        if people[0].user_id == "bob":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return answered(self, people, wish, merchant)  # type: ignore[arg-type]

    monkeypatch.setattr(Recommender, "recommend_many", second)
    assert fedrec("recommend", run, "--users", "users.csv", "--out", "lists.csv").status == 130
    assert (tmp_path / "lists.csv").read_text() == "yesterday's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "users.csv"]


BAD = {
    "no file to write": (["--users", "users.csv"], ["--users and --out"]),
    "no file to read": (["--out", "lists.csv"], ["--users and --out"]),
    "a format nobody knows": (["--users", "users.csv", "--out", "lists.xlsx"], ["lists.xlsx", ".csv or .parquet"]),
    "a folder that is not there": (["--users", "users.csv", "--out", "none/lists.csv"], ["none/lists.csv", "folder"]),
    "over its own input": (["--users", "users.csv", "--out", "users.csv"], ["another name"]),
    "two questions at once": (["--users", "users.csv", "--out", "lists.csv", "--user", "ann"], ["--users", "leave one"]),
    "users that are not there": (["--users", "none.csv", "--out", "lists.csv"], ["none.csv", "no such file"]),
    "a time that is none": (["--users", "users.csv", "--out", "lists.csv"], ["users.csv, column timestamp, line 3", "'soon'"]),
    "a stock that is not there": (["--stock", "none.txt"], ["none.txt", "cannot be read"]),
    "times alone": (["--times", "1,2"], ["times", "no history"]),
    "a diversity over one": (["--diversity", "1.5"], ["--diversity"]),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_use_is_refused(case: str, fedrec: Fedrec, run: Path, tmp_path: Path) -> None:
    arguments, named = BAD[case]
    (tmp_path / "users.csv").write_text("user_id,item_id,timestamp\nann,i1,2026-01-01\nann,i2,soon\n")
    assert_refused(fedrec("recommend", run, *arguments), *named)
    assert [path.name for path in tmp_path.iterdir()] == ["users.csv"]
