"""A person is taken out of a merchant's folder: their rows alone, and the own layer as if they had never been there."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from fedrec.cli import main
from fedrec.data.erasing import erase_user, rows_of_user
from fedrec.errors import InputError
from fedrec.recommender import forgetting
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.forgetting import erase, find_traces, renew_layer
from fedrec.recommender.merchant_text import LOCK, MerchantPlace

from .conftest import make_catalogue, make_events

NAME = "jane-doe-4711"
LAYER = Path("own/layer.safetensors")
Forget = Callable[..., tuple[int, str, str]]


def merchant(folder: Path, bert: Path, users: int = 60) -> Path:
    """A merchant of whom one user has a name that can be told from anything else."""
    folder.mkdir(parents=True)
    catalogue = make_catalogue(20)
    pd.DataFrame({"item_id": catalogue.item_ids, "title": catalogue.texts}).to_csv(folder / "items.csv", index=False)
    events = make_events(users, catalogue, 4)
    events["user_id"] = events["user_id"].where(events["user_id"] != events["user_id"].iloc[0], NAME)
    events.to_csv(folder / "events.csv", index=False)
    settings = {
        "name": "shop", "privacy": {"epsilon": 1.0, "delta": 1e-5, "population": users},
        "model": {"encoder": str(bert), "device": "cpu"},
    }  # fmt: skip
    (folder / "merchant.toml").write_text(tomli_w.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def fitted(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = merchant(tmp_path_factory.mktemp("forget") / "shop", tiny_bert_folder)
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@pytest.fixture
def shop(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "shop"))


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Forget:
    """The command line in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", "merchant", "forget", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def without(folder: Path) -> Path:
    """The same merchant, to whom the person never came."""
    clean = Path(shutil.copytree(folder, folder.with_name("clean")))
    (clean / LAYER).unlink(missing_ok=True)
    events = pd.read_csv(clean / "events.csv", dtype=str, keep_default_na=False)
    events[events["user_id"] != NAME].to_csv(clean / "events.csv", index=False)
    place = MerchantPlace(clean)
    fit_merchant(place, place.data())
    return clean


# Tables


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_of_a_csv_file_every_other_byte_stays(tmp_path: Path, mark: bytes, delimiter: str, end: str) -> None:
    rows = [
        "user_id,item_id,timestamp,note", "a,007,2026-01-01,plain", f'"{NAME}",7,2026-01-01,"two{end}lines, ""quoted"""', "",
        f'b,8,2026-01-02,"the text {NAME} in a note"', f"{NAME}-2,8,2026-01-02,", f"{NAME},8,not a time,", "a,9,2026-01-03, é ",
    ]  # fmt: skip
    theirs = {2, 6}
    lines = [row.replace(",", delimiter) for row in rows]
    path = tmp_path / "events.csv"
    path.write_bytes(mark + end.join(lines).encode())
    path.chmod(0o640)
    assert rows_of_user(path, NAME) == 2 and erase_user(path, NAME) == 2
    assert path.read_bytes() == mark + end.join(line for i, line in enumerate(lines) if i not in theirs).encode()
    assert path.stat().st_mode & 0o777 == 0o640 and [file.name for file in tmp_path.iterdir()] == ["events.csv"]
    assert erase_user(path, NAME) == 0


def test_of_the_last_row_and_of_a_file_with_old_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(f"item_id,user_id\r1,a\r2,{NAME}".encode())
    assert erase_user(path, NAME) == 1 and path.read_bytes() == b"item_id,user_id\r1,a\r"


def test_a_header_that_looks_like_the_person_stays(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(b"\nuser_id,item_id\nuser_id,1\na,2\n")
    assert erase_user(path, "user_id") == 1 and path.read_bytes() == b"\nuser_id,item_id\na,2\n"


def test_of_json_lines_every_other_byte_stays(tmp_path: Path) -> None:
    path, row = tmp_path / "shown.jsonl", '{"user_id": "%s", "item_id": "a"}'
    stays = ['{"item_id":  "b"}', "", row % "other", '{"user_id": 12}', '{"user_id": 7.0}']
    path.write_text("\n".join([row % NAME, *stays, row % NAME]) + "\n")
    assert rows_of_user(path, NAME) == 2 and erase_user(path, NAME) == 2
    assert path.read_text() == "\n".join(stays) + "\n"
    assert erase_user(path, "12") == 1 and erase_user(path, "7") == 1 and erase_user(path, NAME) == 0
    path.write_text(f"{row % NAME}\n{{")
    with pytest.raises(InputError, match="line 2: is no JSON object"):
        erase_user(path, NAME)
    assert NAME in path.read_text()


def test_of_a_log_of_what_was_shown_the_rows_go(shop: Path, forget: Forget) -> None:
    (shop / "feedback").mkdir(exist_ok=True)
    log = shop / "feedback" / "shown.jsonl"
    log.write_text(f'{{"user_id": "{NAME}", "item_id": "a"}}\n{{"user_id": "b", "item_id": "a"}}\n')
    assert forget(shop, NAME, "--yes")[0] == 0
    assert log.read_text() == '{"user_id": "b", "item_id": "a"}\n'


def test_of_a_parquet_file_types_metadata_and_categories_stay(tmp_path: Path) -> None:
    when = pd.to_datetime(["2026-01-01", "2026-01-02", None, "2026-01-04"], utc=True)
    frame = pd.DataFrame({
        "user_id": pd.Categorical([NAME, "b", NAME, "c"]), "item_id": pd.array([1, 2, None, 4], dtype="Int16"), "timestamp": when,
        "level": pd.Categorical(["high", "low", "only hers", "low"], ["low", "mid", "high", "only hers"], ordered=True),
        "day": [date(2026, 1, 1)] * 4, "price": [Decimal("1.50"), None, Decimal("2.00"), Decimal("3.25")],
        "tags": [["x"], [], None, ["y", "z"]],
    }, index=pd.Index([3, 5, 7, 9], name="row"))  # fmt: skip
    path = tmp_path / "events.parquet"
    table = pa.Table.from_pandas(frame)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"shop": b"mine"}), path, compression="gzip")
    path.chmod(0o600)
    before = pq.read_table(path)
    assert erase_user(path, NAME) == 2
    after = pq.read_table(path)
    assert after.schema.equals(before.schema, check_metadata=True) and path.stat().st_mode & 0o777 == 0o600
    assert after.to_pylist() == [before.to_pylist()[1], before.to_pylist()[3]]
    found = pd.read_parquet(path)
    assert list(found["level"].cat.categories) == ["low", "mid"] and found["level"].cat.ordered
    assert list(found.index) == [5, 9] and NAME.encode() not in path.read_bytes()
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "GZIP"


def test_of_a_parquet_file_that_is_all_theirs_the_schema_stays(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": pd.Categorical([NAME, NAME]), "item_id": [1, 2]}).to_parquet(path, index=False)
    before = pq.read_schema(path)
    assert erase_user(path, NAME) == 2 and pq.read_schema(path).equals(before) and pq.read_table(path).num_rows == 0
    assert NAME.encode() not in path.read_bytes()


def test_an_id_that_is_a_number_in_the_file_is_found_as_the_text_that_others_read(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": [12.0, None, 7.0], "item_id": [1, 2, 3]}).to_parquet(path)
    assert erase_user(path, "12") == 1 and pd.read_parquet(path)["user_id"].tolist()[1] == 7.0


def test_a_file_that_somebody_writes_meanwhile_stays_as_they_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flush = tmp_path / "events.csv", os.fsync
    path.write_text(f"user_id,item_id\n{NAME},1\n")

    def meanwhile(number: int) -> None:
        flush(number)
        path.write_text("user_id,item_id\nb,1\nc,2\n")

    monkeypatch.setattr("os.fsync", meanwhile)
    with pytest.raises(InputError, match="changed meanwhile"):
        erase_user(path, NAME)
    assert path.read_text() == "user_id,item_id\nb,1\nc,2\n" and len(list(tmp_path.iterdir())) == 1


def test_interrupted_before_the_end_the_old_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, text = tmp_path / "events.csv", f"user_id,item_id\n{NAME},1\nb,2\n"
    path.write_text(text)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        erase_user(path, NAME)
    assert path.read_text() == text and [file.name for file in tmp_path.iterdir()] == ["events.csv"]


def test_a_link_still_leads_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text(f"user_id,item_id\n{NAME},1\nb,2\n")
    (tmp_path / "events.csv").symlink_to("real.csv")
    assert erase_user(tmp_path / "events.csv", NAME) == 1
    assert (tmp_path / "events.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "user_id,item_id\nb,2\n"


# The merchant's folder


def test_the_layer_is_what_it_would_be_if_the_person_had_never_been_there(shop: Path, forget: Forget) -> None:
    (shop / "feedback" / "2026").mkdir(parents=True)
    shown = shop / "feedback" / "2026" / "shown.csv"
    shown.write_text(f"request_id,user_id\nr1,{NAME}\nr2,b\n")
    (shop / "feedback" / "totals.csv").write_text("day,clicks\n2026-01-01,7\n")
    clean, before = without(shop), (shop / LAYER).read_bytes()
    status, out, err = forget(shop, NAME, "--yes", "--json")
    found = json.loads(out)
    assert status == 0 and found["found"] and found["own_layer"] == "fitted" and found["in_database"] is None
    assert set(found["removed"]) == {str(shop / "events.csv"), str(shown)} and "ledger" in found["stays"][0]
    assert before != (shop / LAYER).read_bytes() == (clean / LAYER).read_bytes()
    assert (shop / "events.csv").read_bytes() == (clean / "events.csv").read_bytes()
    assert shown.read_text() == "request_id,user_id\nr2,b\n"
    assert NAME not in out + err
    assert not [path for path in shop.rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()]
    status, out, _ = forget(shop, NAME, "--yes")
    assert status == 0 and "nothing was found" in out and "made from what is there now" in out


def test_an_unknown_person_changes_nothing(shop: Path, forget: Forget) -> None:
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    status, out, _ = forget(shop, "nobody", "--yes", "--json")
    assert status == 0 and json.loads(out)["found"] is False and json.loads(out)["removed"] == {}
    after = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert before == {path: content for path, content in after.items() if path.name != LOCK}


def test_where_there_is_no_layer_none_is_waited_for_and_nothing_made(shop: Path, forget: Forget) -> None:
    shutil.rmtree(shop / "own")
    before = set(shop.rglob("*"))
    assert json.loads(forget(shop, "nobody", "--yes", "--json")[1])["own_layer"] == "none"
    status, out, _ = forget(shop, NAME, "--yes", "--json")
    assert status == 0 and json.loads(out)["own_layer"] == "none" and NAME not in (shop / "events.csv").read_text()
    assert set(shop.rglob("*")) == before


@pytest.mark.parametrize("fault", ["lock", "folder"])
def test_a_layer_that_is_out_of_reach_keeps_no_row(
    shop: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """As where somebody else, such as root, made the lock or the folder."""
    clean, reached = without(shop), os.open if fault == "lock" else Path.iterdir

    def denied(path: object, *args: int) -> object:
        if Path(str(path)) in (shop / "own", shop / "own" / LOCK):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return reached(path, *args)  # type: ignore[operator]

    monkeypatch.setattr("os.open" if fault == "lock" else "pathlib.Path.iterdir", denied)
    for words, erased in (((NAME, "--yes", "--json"), 1), ((NAME, "--yes"), 0)):
        status, out, err = forget(shop, *words)
        assert status == 2 and "Permission denied" in err and NAME not in out + err and (shop / LAYER).exists()
        assert (shop / "events.csv").read_bytes() == (clean / "events.csv").read_bytes()
        if erased:
            said = json.loads(out)
            assert said["removed"].keys() == {str(shop / "events.csv")} and said["own_layer"] == "not renewed"
            assert "Permission denied" in said["why"]
        else:
            assert "nothing was found" in out and "NOT RENEWED" in out
    monkeypatch.undo()
    assert renew_layer(MerchantPlace(shop), erased=False).state == "fitted"
    assert (shop / LAYER).read_bytes() == (clean / LAYER).read_bytes()


def test_interrupted_between_two_files_and_before_the_layer_it_is_finished_by_the_next(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "feedback").mkdir()
    shutil.copy(shop / "events.csv", shop / "feedback" / "clicks.csv")
    clean, place, original = without(shop), MerchantPlace(shop), (shop / LAYER).read_bytes()
    real = forgetting.erase_user

    def killed(path: Path, user_id: str) -> int:
        if path.parent.name == "feedback":
            raise KeyboardInterrupt
        return real(path, user_id)

    monkeypatch.setattr(forgetting, "erase_user", killed)
    with pytest.raises(KeyboardInterrupt):
        erase(find_traces(place, NAME), NAME)
    monkeypatch.undo()
    traces = find_traces(place, NAME)
    assert [path.name for path in traces.files] == ["clicks.csv"] and (shop / LAYER).read_bytes() == original
    erase(traces, NAME)  # and then it is killed before the fit
    traces = find_traces(place, NAME)
    assert not traces.found
    assert renew_layer(place, erased=False).state == "fitted" and (shop / LAYER).read_bytes() == (clean / LAYER).read_bytes()


def test_where_nobody_is_left_the_layer_is_removed(shop: Path, forget: Forget) -> None:
    lines = (shop / "events.csv").read_text().splitlines(keepends=True)
    (shop / "events.csv").write_text(lines[0] + "".join(line for line in lines if NAME in line))
    status, out, _ = forget(shop, NAME, "--yes", "--json")
    found = json.loads(out)
    assert status == 0 and found["own_layer"] == "removed" and not (shop / LAYER).exists()
    assert (shop / "events.csv").read_text() == lines[0]


@pytest.mark.parametrize("left", ["nothing", "views", "views beside no target"])
@pytest.mark.parametrize("database", [False, True])
def test_killed_before_that_the_next_removes_it(shop: Path, forget: Forget, left: str, database: bool) -> None:
    events = pd.read_csv(shop / "events.csv", dtype=str).assign(event="view")
    if left == "nothing":
        events = events[:0]
    events.to_csv(shop / "events.csv", index=False)
    data: dict[str, object] = {"target_events": ["purchase"], "history_events": ["purchase", "view"]} if " " in left else {}
    if database:
        with closing(sqlite3.connect(shop / "shop.db")) as connection:
            for name in ("items", "events"):
                pd.read_csv(shop / f"{name}.csv", dtype=str).to_sql(name, connection, index=False)
        data |= {"url": "sqlite:///shop.db", "items": "SELECT * FROM items", "events": "SELECT * FROM events"}
    with (shop / "merchant.toml").open("a") as toml:
        toml.write(f"\n{tomli_w.dumps({'data': data})}")
    status, out, err = forget(shop, "nobody", "--yes")
    assert status == 0 and "own layer: removed" in out and not (shop / LAYER).exists(), err


def test_a_table_that_cannot_be_read_costs_no_layer_where_nothing_was_removed(shop: Path, forget: Forget) -> None:
    (shop / "items.csv").write_text("item_id\n1\n")
    status, _, err = forget(shop, "nobody", "--yes")
    assert status == 2 and "title" in err and (shop / LAYER).exists()


def test_without_a_terminal_it_does_not_begin(shop: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (shop / "events.csv").read_bytes()
    status, _, err = forget(shop, NAME)
    assert status == 2 and "--yes" in err and NAME not in err and (shop / "events.csv").read_bytes() == before


@pytest.mark.parametrize(("answer", "status"), [("n", 130), ("y", 0)])
def test_it_asks(shop: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch, answer: str, status: int) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda text, **_: answer == "y")
    (shop / LAYER).unlink()
    assert forget(shop, NAME)[0] == status
    assert (NAME in (shop / "events.csv").read_text()) == (answer == "n")


@pytest.mark.parametrize("user", ["", " ", "NULL"])
def test_what_is_no_id_is_refused(shop: Path, forget: Forget, user: str) -> None:
    assert forget(shop, user, "--yes")[0] == 2


def test_a_database_is_not_written_to_and_it_says_what_is_still_there(shop: Path, forget: Forget) -> None:
    with closing(sqlite3.connect(shop / "shop.db")) as connection:
        for name in ("items", "events"):
            with (shop / f"{name}.csv").open(newline="") as file:
                header, *rows = csv.reader(file)
            connection.execute(f"CREATE TABLE {name} ({', '.join(header)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(header))})", rows)
            (shop / f"{name}.csv").unlink()
        connection.commit()
    data = {"url": "sqlite:///shop.db", "items": "SELECT * FROM items", "events": "SELECT * FROM events"}
    with (shop / "merchant.toml").open("a") as toml:
        toml.write(f"\n{tomli_w.dumps({'data': data})}")
    before = (shop / "shop.db").read_bytes()
    status, out, _ = forget(shop, NAME, "--yes", "--json")
    found = json.loads(out)
    assert status == 0 and found["found"] and found["in_database"] > 0 and found["removed"] == {}
    assert (shop / "shop.db").read_bytes() == before
    assert "NOT REMOVED" in forget(shop, NAME, "--yes")[1]
    with closing(sqlite3.connect(shop / "shop.db")) as connection:
        connection.execute("DELETE FROM events WHERE user_id = ?", (NAME,))
        connection.commit()
    found = json.loads(forget(shop, NAME, "--yes", "--json")[1])
    assert found["in_database"] == 0 and found["own_layer"] == "fitted"
