"""Text that others wrote is text wherever it is shown, and short and clean where a message may hold it."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import escape

import clients.app
import clients.node
from clients.merchant import Merchant
from fedrec import wire
from fedrec.cli import main
from fedrec.cli.console import Console, progress_bars, stacked, styled, table
from fedrec.cli.server import show_status
from fedrec.cli.terminal import _Watcher, out, round_progress, show_results
from fedrec.errors import InputError
from fedrec.privacy import Ledger, Policy, Release
from fedrec.report.plots import curves
from fedrec.report.privacy_report import privacy_report, to_html
from fedrec.report.privacy_sources import find_sources
from fedrec.report.run_report import write_report
from fedrec.text import LONGEST, log_visibly, visible
from fedrec.wire import Announce, HistogramTask, Reply, Statement, Step, WireError
from fedrec.wire.records import validated
from server.progress import notify, watching
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.run import resume, simulate

from .helpers import central, ledger_rounds, make_federation, settings_of, simulate_with
from .merchants import TASK

ROOT = Path(__file__).resolve().parents[1]
MODULES = [path for folder in ("fedrec", "server", "clients", "simulations") for path in (ROOT / folder).rglob("*.py")]
NASTY = [
    "[/b]", "[bold]", "[link=x]", "[", "]", "\\[", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\n", "\t", "\x00", "\x7f",
    "\x85", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\u2029", "\udc80", "\ud83d", ":smile:", "$x$", "$", "\\", "_",
    "%s", "{x}", "<script>alert(1)</script>", "&amp;", "'", '"', "caf\u00e9", "\u05e9\u05dc", "\U0001f469\u200d\U0001f467",
    "\u732b",
]  # fmt: skip
FOREIGN = st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=()), max_size=12).map("".join)
"""Any text, halves of surrogate pairs too, with much of what a printer might obey."""
EXAMPLES = settings(max_examples=60, deadline=None)


def obeyed(text: str) -> set[str]:
    """What of a text a terminal might obey, but for the ends of lines."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {one for one in text if one not in "\n\u200c\u200d" and unicodedata.category(one) in kinds}


def spaceless(text: str) -> str:
    """Without what a table pads and breaks with."""
    return re.sub(r"\s", "", text)


def assert_shown(printed: str, *texts: str) -> None:
    assert not obeyed(printed), printed
    assert all(spaceless(visible(text)) in spaceless(printed) for text in texts), printed


@pytest.fixture(autouse=True)
def plain_records() -> Iterator[None]:
    """The command line and the processes change how this process logs."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


# -- what is visible ---------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(FOREIGN)
def test_visible_text_is_one_line_that_nothing_obeys_and_loses_nothing(text: str) -> None:
    shown = visible(text)
    assert not obeyed(shown) and len(shown.splitlines()) <= 1
    assert visible(shown) == shown
    if not obeyed(text) and "\n" not in text:
        assert shown == text
    kept = iter(shown)
    assert all(one in kept for one in text if one != "\n" and not obeyed(one)), "in their order"


def test_what_is_taken_out_can_be_read() -> None:
    assert visible("tea \x1b[31mred\x1b[0m\x07\n\u202eabc\x7f") == r"tea \x1b[31mred\x1b[0m\x07\n\u202eabc\x7f"
    titles = ["[NEW] lamp [2-pack]", "hose [/red] 20 m", ":smile: caf\u00e9", "a\u00a0b"]
    titles.append("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
    assert [visible(title) for title in titles] == titles


# -- consoles ----------------------------------------------------------------------------------------------------------------


def printed(console: Console, *objects: object, **more: Any) -> str:
    console.print(*objects, **more)
    return console.file.getvalue()  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[str], Any]] = {
    "a line": lambda text: text,
    "a path": Path,
    "part of a line": lambda text: styled(("error", "bold red"), " ", text),
    "with a style": lambda text: styled((text, "bold")),
    "a title": lambda text: table(text, ["a"], [["b"]]),
    "a column": lambda text: table("t", [text], [["b"]]),
    "a cell": lambda text: table("t", ["a", "b"], [["x", text]], lines=True),
    "lines of a cell": lambda text: table("t", ["a"], [[stacked(text, "below")]]),
}


@pytest.mark.parametrize("colours", [False, True], ids=["file", "terminal"])
@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_printed_is_shown_as_it_is(way: str, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1") if colours else monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "500")

    @EXAMPLES
    @given(FOREIGN)
    @example("[/b]").via("ended every run")
    def check(text: str) -> None:
        shown = printed(Console(io.StringIO()), WAYS[way](text))
        # Only the styles are ours: colours, on and off.
        assert_shown(re.sub(r"\x1b\[[0-9;]*m", "", shown), str(Path(text)) if way == "a path" else text)

    check()


@EXAMPLES
@given(FOREIGN)
def test_a_rounds_lines_show_names_and_reasons_as_they_are(text: str) -> None:
    console = Console(io.StringIO())
    progress = progress_bars()
    progress.live.console = console
    metrics = {"ndcg@10": 0.1, "ndcg@10_low": 0.0, "ndcg@10_high": 0.2}
    line = {
        "round": 1, "part": "heads", "central": metrics, "privacy": {}, "took_part": [], "bytes_up": {}, "bytes_down": {},
        "declined": {"m0": text}, "refused": {text: "late"}, "abandoned": text,
    }  # fmt: skip
    _Watcher(progress)("round_done", line)
    _Watcher(progress)("finished", {"reason": text})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert_shown(shown, f"m0 declined: {text}", f"{text} refused: late", f"opened: {text}", text)
    assert len(shown.splitlines()) == 5


@EXAMPLES
@given(FOREIGN)
def test_the_status_of_a_server_shows_what_merchants_wrote_as_it_is(text: str) -> None:
    run = {
        "path": text, "round": 1, "rounds": 2, "stopped": text, "took_part": [text], "abandoned": text,
        "declined": {"m0": text}, "refused": {text: text}, "central": {"mrr": 0.5},
    }  # fmt: skip
    nodes = [{"merchant": text, "online": True, "last_seen": text}]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        show_status({"up": True, "address": text, "merchants": nodes, "run": run})
        show_status({"up": False, "reason": text, "run": None})
    assert_shown(shown.getvalue(), f"DOWN: {text}", f"declined: {text}", f"took part: {text}", f"Merchants at {text}")


@EXAMPLES
@given(FOREIGN)
def test_an_error_is_one_line_and_shows_what_is_wrong_as_it_is(text: str) -> None:
    def fail(**_: object) -> None:
        raise InputError(text, where=f"a{text}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "app", fail)
        assert_shown(error_of(main.run), f"error a{text}: {text}")


BEFORE: list[list[str]] = [[], ["recommend"], ["recommend", "run"], ["simulate", "--engine"], ["privacy", "plan", "--users"]]


@pytest.mark.parametrize("argument", ["--x\x1b[2J[/b]\u202e", "[/b]\x07", "\udc80"])
@pytest.mark.parametrize("before", BEFORE, ids=" ".join)
def test_a_wrong_argument_is_one_line_and_shown_as_it_is(before: list[str], argument: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["fedrec", *before, argument])
    shown = error_of(main.run)
    assert shown.startswith("error ") and not obeyed(shown)


def error_of(run: Callable[[], None]) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as shown, pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2 and shown.getvalue().count("\n") == 1
    return shown.getvalue()


def calls(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_only_the_consoles_know_rich_and_nobody_prints_past_them() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path != ROOT / "fedrec" / "cli" / "console.py":
            froms = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
            assert not [name for name in froms + names if name.split(".")[0] == "rich"], path
            assert not calls(tree) & {"print", "sys.stderr.write", "out.status", "err.status"}, path


# -- widths and encodings ----------------------------------------------------------------------------------------------------


def test_nothing_is_wrapped_or_cut_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = " ".join(["word"] * 100)
    out.print(words)
    out.print(table(f"title {words}", ["a", "b"], [["x", f"cell {words}"]]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [words, f"title {words}"] and sum(f"cell {words}" in line for line in lines) == 1
    assert len(lines) == 2 + 5


def test_bars_are_left_out_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with round_progress():
        notify("round_started", round=1, rounds=2, part="heads", merchants=3)
        notify("preparing", what="texts", texts=3)
    shown = capsys.readouterr().err
    assert shown.splitlines() == [shown.strip("\n")] and shown.endswith("s  texts: 3\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk"])
def test_a_terminal_that_lacks_characters_gets_escapes(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = write_ledger(tmp_path / "shop.ledger.jsonl", run="caf\u00e9 \u732b \U0001f600 \udc80")
    for arguments in (["privacy", "report", odd], ["privacy", "report", tmp_path / "\u732b"], ["privacy", "--help"]):
        raw = {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, bytes_of in raw.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(bytes_of, encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["fedrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        sys.stdout.flush(), sys.stderr.flush()
        shown = b"".join(bytes_of.getvalue() for bytes_of in raw.values()).decode(encoding)
        assert stopped.value.code == (2 if arguments[-1] == tmp_path / "\u732b" else 0), shown
        if arguments[-1] == odd:
            assert "caf" in shown and r"\U0001f600 \udc80" in shown


# -- logs --------------------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(FOREIGN)
def test_a_log_record_is_one_line_and_a_traceback_is_under_it(text: str) -> None:
    log_visibly()
    log, handler = logging.Logger("some package"), logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("at %(message)s"))
    log.addHandler(handler)
    log.warning("refused %s from %s", text, "there")
    try:
        raise ValueError(text)
    except ValueError:
        log.exception(text.replace("%", ""))
    lines = handler.stream.getvalue().split("\n")
    assert not obeyed("".join(lines))
    assert lines[0] == f"at refused {visible(text)} from there"
    assert [line for line in lines if line and not line.startswith("  ")] == lines[:2]


PROCESSES = [
    "fedrec/cli/main.py", "clients/adopter.py", "clients/node.py", "clients/supernode.py", "clients/worker.py",
    "server/redelivery.py", "simulations/workers.py",
]  # fmt: skip


def test_every_process_logs_visibly() -> None:
    mains = [path for path in MODULES if "__main__" in path.read_text(encoding="utf-8") or path.name == "workers.py"]
    assert sorted(mains) == sorted(ROOT / path for path in PROCESSES)
    for path in mains:
        assert "log_visibly" in calls(ast.parse(path.read_text(encoding="utf-8"))), path


def test_a_node_that_cannot_start_logs_why_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "\x1b[2J\nfile").touch()
    assert clients.node.main("shop", str(tmp_path / "\x1b[2J\nfile" / "state"), "localhost:1", "ca", "key") == 2
    assert "cannot be written" in caplog.text and r"\x1b[2J\nfile" in caplog.text and not obeyed(caplog.text)


# -- pages and pictures ------------------------------------------------------------------------------------------------------


def write_ledger(path: Path, **changes: Any) -> Path:
    ledger = Ledger(path, 1e-5)
    ledger.append(replace(Release("run-a", 0, "histogram", 4.0, 1.0, 1, 1.0, "user", 1e-5), **changes))
    ledger.append(replace(Release("run-a", 1, "dp-sgd", 4.0, 1.0, 1, 1.0, "user", 1e-5), **changes))
    return path


def test_names_in_a_picture_are_text() -> None:
    from xml.etree import ElementTree

    names = ["$a_b$ \\", "_hidden", *(f"{number} {one}" for number, one in enumerate(NASTY))]
    names.append(100 * "long")
    svg = curves({name: ([0, 1], [0.0, 1.0]) for name in names}, x="round", y="epsilon", levels={"$level$": 1.0})
    assert "<script" not in svg and not obeyed(svg)
    drawn = {spaceless("".join(text.itertext())) for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")}
    assert {spaceless(visible(name)) for name in (*names, "$level$") if len(visible(name)) <= 24} <= drawn
    assert any(text.endswith("...") for text in drawn), "a long name is cut"


NAUGHTY = "".join(one for one in NASTY if one not in ("\x00",))


def test_a_ledger_of_an_earlier_version_with_any_run_id_can_be_reported(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    ledger = write_ledger(tmp_path / "a$b$[x].ledger.jsonl", run=NAUGHTY)
    page = to_html(privacy_report(find_sources([ledger])))
    assert "<script" not in page and not obeyed(page)
    for arguments in ([], ["--json"], ["--out", "report.txt"], ["--format", "html"]):
        monkeypatch.setattr(sys, "argv", ["fedrec", "privacy", "report", str(ledger), *arguments])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            main.run()
        shown = capsys.readouterr()
        assert stopped.value.code == 0 and not obeyed(shown.out), shown
        if arguments == ["--json"]:
            assert json.loads(shown.out)["merchants"][0]["rounds"][0]["run"] == NAUGHTY
        elif not arguments:
            assert visible(NAUGHTY) in shown.out
    assert visible(NAUGHTY) in (tmp_path / "report.txt").read_text(encoding="utf-8")


# -- the wire ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def somebody() -> Iterator[None]:
    """Flower lets nobody make a message who has no number."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, before[name])


def message(content: RecordDict) -> Message:
    return Message(content, 1, "train")


BAD_IDS = ["", "[/b]", "a b", "a/b", "run\n", "caf\u00e9", "x" * 65, "\x1b[2J"]
ANNOUNCED = Announce("run", 1, "a", 1, 0, "dp-sgd", 1.0, 1.0, 1.0, "user", 1e-5)


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.usefixtures("somebody")
def test_a_merchant_takes_no_run_or_attempt_that_is_no_name(bad: str) -> None:
    def with_task(content: RecordDict, **changes: Any) -> Message:
        return message(RecordDict({**content, "task": ConfigRecord({**dict(content["task"]), **changes})}))

    train = wire.encode_train(TASK, {}, "", None)
    histogram = wire.encode_histogram_task(HistogramTask("run", 1.0, 1e-5, "user"), np.zeros(1, np.uint64))
    step = wire.encode_step("run", 1, Step("a"))
    announce = wire.encode_announce(ANNOUNCED)
    decoders = wire.decode_train, wire.decode_histogram_task, wire.decode_step, wire.decode_announce
    for decode, content in zip(decoders, (train, histogram, step, announce), strict=True):
        decode(with_task(content))
        with pytest.raises(WireError, match="run"):
            decode(with_task(content, run=bad))
    with pytest.raises(WireError, match="attempt"):
        wire.decode_announce(with_task(announce, attempt=bad))
    for changes in ({"attempt": bad}, {"names": [bad]}, {"there": [bad]}):
        with pytest.raises(WireError, match=next(iter(changes))):
            wire.decode_lists(message(RecordDict({**step, "secure": ConfigRecord({**dict(step["secure"]), **changes})})))


def said(**changes: Any) -> Statement:
    """What a server makes of a reply with such a statement."""
    statement = {**asdict(Statement("m0", "declined")), **changes}
    return wire.decode_reply(message(RecordDict({"arrays": wire.to_record({}), "statement": ConfigRecord(statement)}))).statement


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "\x1b[2J"}, {"reason": "a\nb"}, {"reason": "\u202e"}, {"reason": "x" * (LONGEST + 1)}, {"merchant": "[/b]"},
        {"merchant": "m0\n"}, {"merchant": ""}, {"merchant": "m" * 65}, {"run": "[/b] x"}, {"run": "r" * 65},
        {"accountant": "\x07"}, {"mechanism": "\n"}, {"unit": "\x9b"},
    ],
)  # fmt: skip
@pytest.mark.usefixtures("somebody")
def test_a_server_takes_no_statement_that_is_not_short_and_clean(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=next(iter(changes))):
        said(**changes)


@pytest.mark.usefixtures("somebody")
def test_an_honest_reason_is_taken_as_it_is() -> None:
    for reason in ('policy: "user" [/b] at C:\\caf\u00e9 \u732b', "failed: InputError", "x" * LONGEST, ""):
        assert said(reason=reason).reason == reason


@EXAMPLES
@given(FOREIGN | FOREIGN.map(lambda text: 100 * text))
def test_a_merchants_own_reason_is_one_that_the_server_takes(text: str) -> None:
    shop = object.__new__(Merchant)
    shop.name, shop.policy = "shop", Policy(epsilon=1.0, delta=1e-5, population=10)
    reason = shop.declined(text).statement.reason
    assert validated(Statement, asdict(shop.declined(text).statement)).reason == reason
    assert reason == visible(text) or (len(reason) == LONGEST and visible(text).startswith(reason[:-3]))


# -- whole runs --------------------------------------------------------------------------------------------------------------

RICH, RAW = "[/b] of [bold]all[/bold] :smile:", "\x1b[2Jgone\nround 9 all is well" + 1000 * "!"


def declining(message: Message, context: Context, reply: Message) -> Message:
    """From round 1 on one merchant's reason is markup, another's is what no reason may be, and a third names an array oddly."""
    number, who = int(message.content["task"].get("round", 0)), int(context.node_config["partition-id"])
    if number == 0 or who > 2 or message.metadata.message_type == wire.DELIVER:
        return reply
    if who < 2:
        statement = {**dict(reply.content["statement"]), "status": "declined", "reason": (RICH, RAW)[who]}
        reply.content["statement"] = ConfigRecord(statement)
        reply.content["arrays"] = wire.to_record({})
    else:
        decoded = wire.decode_reply(reply)
        reply.content = wire.encode_reply(Reply({f"{RAW}[/i]": next(iter(decoded.arrays.values()))}, decoded.statement))
    return reply


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("crowd"), merchants=4, users=20)


@pytest.fixture(scope="module")
def whole(crowd: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run with such merchants, and what was shown of it."""
    config = settings_of(tiny_bert_folder, min_merchants=1, rounds=2, encoder_rounds=0)
    load_encoder_for(config)  # which Transformers shows a bar for
    with contextlib.redirect_stderr(io.StringIO()) as shown, round_progress():
        run = simulate_with(crowd, config, tmp_path_factory.mktemp("run") / "run", declining)
    return run, shown.getvalue()


def test_a_run_ends_whatever_merchants_give_as_a_reason(whole: tuple[RunFolder, str]) -> None:
    run, shown = whole
    lines, state = run.metrics(), run.load()
    assert [line["round"] for line in lines] == [0, 1, 2] and state is not None and state.round == 2
    for line in lines[1:]:
        assert line["took_part"] == ["m3"] and line["declined"] == {"m0": RICH}
        assert set(line["refused"]) == {"m1", "m2"}
        assert all(len(reason) <= LONGEST and not obeyed(reason) for reason in line["refused"].values())
    assert_shown(shown, f"m0 declined: {RICH}")
    assert all(re.match(r" *\d+ s  ", line) for line in shown.splitlines()), "none of a line's text is a line of its own"


def test_the_page_of_a_run_shows_what_merchants_wrote_as_text(whole: tuple[RunFolder, str], tmp_path: Path) -> None:
    run, _ = whole
    lines = run.metrics()
    lines[-1]["privacy"][NAUGHTY] = lines[-1]["privacy"]["m3"]  # as a folder of an earlier version may have it
    lines[-1]["declined"] = lines[-1]["refused"] = {NAUGHTY: NAUGHTY}
    row = {"name": NAUGHTY, "private": True, "users": 5, **lines[-1]["central"]}
    results = {"rows": [row], "rounds": 2, "simulation": True, "model_bytes": 1, "gain": None, "abandoned": {}}
    page = write_report(tmp_path, run.config, lines, results).read_text(encoding="utf-8")
    assert "<script" not in page and not obeyed(page) and str(escape(visible(NAUGHTY))) in page
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        show_results(run.config, results, lines)
    assert_shown(shown.getvalue(), NAUGHTY)


def test_a_run_that_was_interrupted_after_such_a_reason_goes_on(
    whole: tuple[RunFolder, str], crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "round_done" and fields["round"] == 1:
            raise KeyboardInterrupt

    with watching(stop), pytest.raises(KeyboardInterrupt):
        simulate_with(crowd, whole[0].config, tmp_path / "run", declining)
    stopped = RunFolder.open(tmp_path / "run")
    state = stopped.load()
    assert state is not None and state.round == stopped.metrics()[-1]["round"] == 1, "what was shown is on disk"

    honest = clients.app.app
    monkeypatch.setattr(clients.app, "app", lambda message, context: declining(message, context, honest(message, context)))
    with contextlib.redirect_stderr(io.StringIO()) as shown, round_progress():
        run = resume(tmp_path / "run")
    assert central(run) == central(whole[0]) and ledger_rounds(run) == ledger_rounds(whole[0])
    assert_shown(shown.getvalue(), RICH)


def test_what_cannot_be_shown_stops_no_run_and_is_said_once(
    crowd: Path, tiny_bert_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def broken(event: str, fields: dict[str, Any]) -> None:
        seen.append(event)
        raise OSError("no space left on device")

    config = settings_of(tiny_bert_folder, rounds=1, encoder_rounds=0)
    with watching(broken), caplog.at_level(logging.ERROR, "fedrec.server"):
        run = simulate(crowd, config, tmp_path / "run")
    assert seen.count("round_done") == 2 and seen[-1] == "finished"
    told = [record.getMessage() for record in caplog.records if "cannot be shown" in record.getMessage()]
    assert told == [f"{seen[0]} of the run cannot be shown; the run goes on"]
    state = run.load()
    assert state is not None and state.round == 1 and [line["round"] for line in run.metrics()] == [0, 1]
