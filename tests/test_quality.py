"""The quality benchmark: its data sets, what is run and what is not, and its rows against other ways to the same figure."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.quality import __main__ as program
from benchmarks.quality.datasets import DataSet
from benchmarks.quality.movielens import INSIDE, OTHERS, movielens_tables
from benchmarks.quality.pieces import Piece, plan
from fedrec.config import RunConfig
from fedrec.data import load_merchant, merchant_folders
from fedrec.errors import InputError

ROOT = Path(__file__).parents[1]
FILES = {
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Comedy\n2\t'Til \"There\tWas\t\n3\tunknown\t\tunknown\n",
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + "".join(f"{user}\t{1 + user % 3}\t{1 + user % 5}\t{881250949 + user}\n" for user in range(1, 71)),
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    + "".join(
        f"{user}\t24\tM\t{'student' if user <= 50 else 'lawyer' if user <= 60 else 'none'}\t85711\n" for user in range(1, 71)
    ),
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with three films and 70 users."""
    with zipfile.ZipFile(tmp_path / "recbole-0-py3-none-any.whl", "w") as file:
        for part, content in FILES.items():
            file.writestr(f"{INSIDE}/ml-100k.{part}", content)
    return tmp_path / "recbole-0-py3-none-any.whl"


def test_movielens_is_read_out_of_the_wheel(wheel: Path) -> None:
    items, events = movielens_tables(wheel)
    texts = items.set_index("item_id")
    assert texts.loc["m1", ["title", "category"]].tolist() == ["Toy Story (1995)", "Animation, Comedy"]
    assert texts.loc["m3", ["title", "category"]].tolist() == ["unknown", "unknown"]
    assert texts.loc["m2", "title"] == "'Til \"There (Was)", "quotes are text"
    assert len(events) == 70, "ratings of any value"
    first = events[events["user_id"] == "u1"].iloc[0]
    assert (first["item_id"], first["merchant"], str(first["timestamp"])) == ("m2", "student", "1997-12-04 15:55:50")
    assert events["merchant"].value_counts().to_dict() == {"student": 50, OTHERS: 20}, "'none' is an occupation"
    folder = wheel.parent / "unpacked"
    folder.mkdir()
    for part, content in FILES.items():
        (folder / f"ml-100k.{part}").write_text(content)
    pd.testing.assert_frame_equal(movielens_tables(folder)[1], events)


def test_movielens_becomes_a_federation(wheel: Path, tmp_path: Path) -> None:
    federation = DataSet.parse(f"movielens={wheel}").federation(tmp_path / "federations", "secure-aggregation")
    found = {folder.name: load_merchant(folder) for folder in merchant_folders(federation)}
    assert set(found) == {"student", OTHERS} and len(found["student"].catalogue) == 3
    assert sorted(path.name for path in federation.parent.iterdir()) == ["movielens-secure-aggregation"], "nothing is left over"


@pytest.mark.parametrize("content", [None, b"no archive", {"item": FILES["item"]}, {**FILES, "user": "user_id:token\n1\n"}])
def test_what_is_not_movielens_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.whl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as file:
            for part, text in content.items():
                file.writestr(f"{INSIDE}/ml-100k.{part}", text)
    with pytest.raises(InputError, match="ml-100k"):
        movielens_tables(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["office"], "office=FOLDER"),
        (["movielens"], "movielens=WHEEL"),
        (["Of-fice=x"], "NAME=PLACE"),
        (["demo=x"], "embedded"),
        (["office=/nowhere"], "is not there"),
        (["office={tmp}"], "there is no items"),
        (["demo", "demo"], "there twice"),
        (["demo", "--seeds", "-1"], "0 or more"),
        (["demo", "--epsilons", "9"], "at most 8"),
        (["demo", "--epsilons", "0"], "more than 0"),
        (["demo", "--only", "office-*"], "fits no piece"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        program.main([str(tmp_path / "out"), *(one.format(tmp=tmp_path) for one in arguments)])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_wrong_argument_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", str(tmp_path / "out"), "office"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 2 and ran.stderr.startswith("error: DATASET") and ran.stderr.count("\n") == 1


def test_heads_of_the_first_seed_come_first_and_the_encoder_last(tmp_path: Path) -> None:
    sets = [DataSet("a", tmp_path), DataSet("b", tmp_path)]
    pieces = list(plan(tmp_path, sets, (0, 1), (8.0, 2.0), ("local", "secure-aggregation")))
    names = [piece.name for piece in pieces]
    assert len(set(names)) == len(names) == 2 * (2 * 9 + 4)
    order = [("encoder" in piece.kind, piece.config.seed, piece.data) for piece in pieces]
    assert order == sorted(order)
    assert {piece.config.seed for piece in pieces if "encoder" in piece.kind} == {0}
    only = [piece.name for piece in pieces if piece.matches(["a-local-*-0", "b-central-1"])]
    assert only == ["a-local-8-0", "a-local-2-0", "b-central-1"]


def test_a_piece_that_is_there_is_not_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    piece = Piece("a", "central", RunConfig(seed=3), lambda: calls.append(1) or {"rows": []})
    piece.run(tmp_path)
    piece.run(tmp_path)
    kept = json.loads((tmp_path / "a-central-3.json").read_text())
    assert len(calls) == 1 and kept["rows"] == [] and RunConfig(**kept["settings"]) == piece.config
    assert capsys.readouterr().err.startswith("a-central-3 ... ")


def test_a_piece_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Piece("a", "central", RunConfig(), lambda: {"rows": [1 / 0]}).run(tmp_path)
    assert not list(tmp_path.iterdir())
