"""The adapter comes home: what a merchant takes, what it answers, what it keeps, and that its users have no part in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from flwr.app import Array, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save_file

import clients.delivery
from clients.app import app
from clients.merchant import Merchant, forget_merchants
from fedrec import wire
from fedrec.cli import main
from fedrec.cli.terminal import round_progress
from fedrec.config import RunConfig
from fedrec.deploy.create import create
from fedrec.deploy.layout import ServerFolder
from fedrec.errors import InputError
from fedrec.model.adapter import TERMS, Arrays
from fedrec.model.versions import CURRENT, FORMAT, KEPT, Versions, content_digest
from fedrec.training.heads import MOST_RANK
from fedrec.wire import HERE, MOST_TEXTS, OUTCOMES, Delivery, Receipt
from server.delivery import Delivered, hand_over, parcel_of
from server.deployed import deliver_to, go_on
from server.pending import recall, remember
from server.progress import watching
from server.run_folder import RunFolder
from server.run_lock import alone
from simulations.engines import run_inline
from simulations.run import resume, simulate

from .deployed import free_ports
from .helpers import make_federation, settings_of
from .merchants import open_shop, public_and_trained, task, write_merchant

ROOT = Path(__file__).resolve().parents[1]
Change = Callable[[Arrays, Arrays], object]


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Merchant:
    made = open_shop(write_merchant(tmp_path / "shop", epsilon=50.0), tiny_bert_folder, tmp_path / "state")
    forget_merchants()
    for module in ("delivery", "merchant", "recorder"):
        monkeypatch.setattr(f"clients.{module}.site_of", lambda _: made.site)
    return made


@pytest.fixture(autouse=True)
def a_run() -> Iterator[None]:
    """Flower makes messages inside a run only."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        if name in ("_task_id", "_run_id", "_node_id"):
            setattr(TaskIdentity, name, value)


def delivery_of(shop: Merchant, public: Arrays, trained: Arrays, **changes: Any) -> Delivery:
    """What an honest server says of these arrays."""
    asked = task(shop)
    made = Delivery(
        format=FORMAT, run="run", round=3, trust="local", unit="user", encoder_fingerprint=asked.trunk,
        encoder_layers=asked.encoder_layers, encoder_rank=asked.encoder_rank, max_tokens=asked.max_tokens, history=50,
        temperature=3.0, decay=0.1, prior_weight=0.5, digest="",
    )  # fmt: skip
    made = replace(made, **changes)
    floor = float(public["prior.floor"].ravel()[0]) if "prior.floor" in public else 0.0
    return made if made.digest else replace(made, digest=content_digest({**public, **trained}, made.kept(floor)))


def content(shop: Merchant, public: Arrays, trained: Arrays, **changes: Any) -> RecordDict:
    """The message of a server that checks nothing itself."""
    said = ConfigRecord(asdict(delivery_of(shop, public, trained, **changes)))
    return RecordDict({"arrays": wire.to_record(trained), "public": wire.to_record(public), "task": said})


def delivered(records: RecordDict) -> Receipt:
    """What the merchant answers."""
    reply = app(Message(records, 2, wire.DELIVER), Context(1, 2, {}, RecordDict(), {}))
    assert not reply.has_error() and set(reply.content) == {"receipt"}
    return wire.decode_receipt(reply)


def spoilt(number: int, trained: Arrays) -> Arrays:
    """Another adapter of the same shape."""
    return {name: np.full_like(value, number / 100) for name, value in trained.items()}


def without(name: str) -> Change:
    return lambda public, trained: (public if name in public else trained).pop(name)


def instead(name: str, value: np.ndarray) -> Change:
    return lambda public, trained: (trained if name in trained else public).update({name: value})


def first_number(value: float) -> Change:
    def change(_: Arrays, trained: Arrays) -> None:
        trained["heads.history.B"][0, 0] = value

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "nan": (first_number(float("nan")), "refused: not finite"),
    "infinity": (first_number(float("inf")), "refused: not finite"),
    "a count that is nan": (instead("prior.counts", np.full(20, np.nan, np.float32)), "refused: not finite"),
    "another width": (instead("centre", np.zeros(33, np.float32)), "refused: names or shapes"),
    "another rank": (instead("heads.candidate.B", np.zeros((3, 32), np.float32)), "refused: names or shapes"),
    "float64": (instead("centre", np.zeros(32)), "refused: names or shapes"),
    "one more": (lambda public, trained: trained.update(more=np.zeros(1, np.float32)), "refused: names or shapes"),
    "one more in public": (instead("more", np.zeros(1, np.float32)), "refused: names or shapes"),
    "one fewer": (without("heads.history.B"), "refused: names or shapes"),
    "no popularity": (without("prior.keys"), "refused: names or shapes"),
    "a huge rank": (instead("heads.A", np.zeros((32, MOST_RANK + 1), np.float32)), "refused: size"),
    "too many texts": (instead("prior.keys", np.zeros(MOST_TEXTS + 1, np.uint64)), "refused: size"),
    "no floor to stand on": (instead("prior.floor", np.zeros(1, np.float32)), "refused: settings"),
}
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "another digest": ({"digest": "0" * 32}, "refused: digest"),
    "another encoder": ({"encoder_fingerprint": "0" * 24}, "refused: encoder"),
    "more layers than there are": ({"encoder_layers": 9}, "refused: encoder"),
    "another rank of the encoder": ({"encoder_rank": 3}, "refused: names or shapes"),
    "a later format": ({"format": FORMAT + 1}, "refused: format"),
    "a run that is a path": ({"run": "../run"}, "refused: settings"),
    "a hidden run": ({"run": ".run"}, "refused: settings"),
    "no temperature": ({"temperature": 0.0}, "refused: settings"),
    "infinite decay": ({"decay": float("inf")}, "refused: settings"),
    "a weight that is nan": ({"prior_weight": float("nan")}, "refused: settings"),
    "no history": ({"history": 0}, "refused: settings"),
    "round 0": ({"round": 0}, "refused: settings"),
}


def test_a_response_model_is_kept_beside_those_that_rank(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    with_terms = {**trained, TERMS: np.zeros((2, 33), np.float32)}
    said = {"objective": "response", "bias": -1.5, "negative_share": 0.02}
    assert delivered(content(shop, public, with_terms, **said)).outcome == "kept"
    assert delivered(content(shop, public, trained)).outcome == "kept"
    for outcome, arrays, changes in (
        ("known", with_terms, said),
        ("refused: names or shapes", trained, said),
        ("refused: names or shapes", with_terms, {}),
        ("refused: settings", with_terms, {**said, "negative_share": 0.0}),
        ("refused: settings", with_terms, {**said, "objective": "another"}),
        ("refused: settings", with_terms, {**said, "bias": float("inf")}),
    ):
        assert delivered(content(shop, public, arrays, **changes)).outcome == outcome, changes
    ranking, response, _ = Versions.of_each_objective(shop.site.adapters)
    [rank], [respond] = ranking.names(), response.names()
    kept = response.read(respond)[1]
    assert (kept["objective"], kept["negative_share"], kept["scoring"]["bias"]) == ("response", 0.02, -1.5)
    assert not {"objective", "negative_share"} & set(ranking.read(rank)[1]), "as those from before there were others"


@pytest.mark.parametrize(("change", "outcome"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_arrays_are_refused_and_what_is_current_stays(shop: Merchant, change: Change, outcome: str) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    assert delivered(content(shop, public, trained)).outcome == "kept"
    versions.use(versions.newest)
    before = versions.names(), versions.current
    change(public, trained)
    receipt = delivered(content(shop, public, trained, round=4))
    assert (receipt.outcome, receipt.run) == (outcome, "run")
    assert (versions.names(), versions.current) == before


@pytest.mark.parametrize(("changes", "outcome"), SAID.values(), ids=SAID.keys())
def test_what_is_said_of_them_must_be_right_too(shop: Merchant, changes: dict[str, Any], outcome: str) -> None:
    public, trained = public_and_trained(shop)
    assert delivered(content(shop, public, trained, **changes)).outcome == outcome
    assert not shop.site.adapters.exists()


def test_a_digest_covers_the_scoring(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    honest = delivery_of(shop, public, trained)
    assert delivered(content(shop, public, trained, digest=honest.digest, prior_weight=90.0)).outcome == "refused: digest"


def test_cut_bytes_and_missing_records(shop: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    public, trained = public_and_trained(shop)
    cut = content(shop, public, trained)
    whole = cut["arrays"]["heads.history.B"]
    cut["arrays"]["heads.history.B"] = Array(whole.dtype, whole.shape, whole.stype, whole.data[: len(whole.data) // 2])
    assert delivered(cut).outcome == "refused: bytes"
    for missing, outcome in (("arrays", "refused: settings"), ("public", "refused: settings"), ("task", "refused: settings")):
        records = content(shop, public, trained)
        del records[missing]
        assert delivered(records).outcome == outcome
    more = content(shop, public, trained)
    more["statement"] = ConfigRecord({"reason": "x"})
    assert delivered(more).outcome == "refused: settings"
    monkeypatch.setattr(wire, "MOST_BYTES", 1000)
    assert delivered(content(shop, public, trained)).outcome == "refused: size"
    assert not shop.site.adapters.exists()


def test_what_cannot_be_written_is_a_failure_without_words(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    shop.site.adapters.parent.mkdir(parents=True, exist_ok=True)
    shop.site.adapters.write_text("a file is in the way")
    receipt = delivered(content(shop, public, trained))
    assert receipt == Receipt("shop", "failed", "run", 3, delivery_of(shop, public, trained).digest)


def test_the_same_bytes_twice_are_one_version(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    receipts = [delivered(content(shop, public, trained)) for _ in range(3)]
    assert [one.outcome for one in receipts] == ["kept", "known", "known"]
    [name] = Versions(shop.site.adapters).names()
    assert name == f"run-00003-{receipts[0].digest[:8]}"


def test_what_is_kept_is_what_was_sent_for_its_owner_alone(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    assert delivered(content(shop, public, trained)).outcome == "kept"
    versions = Versions(shop.site.adapters)
    [name] = versions.names()
    versions.judged(name, {"best": name})
    versions.use(name)
    arrays, settings = versions.read(name)
    assert arrays.keys() == public.keys() | trained.keys()
    for key, value in {**public, **trained}.items():
        np.testing.assert_array_equal(arrays[key], value)
    assert settings["scoring"] == {"temperature": 3.0, "decay": 0.1, "prior_weight": 0.5}
    assert not [value for value in settings.values() if str(value).startswith("/")], "no path"
    assert not {"encoder", "encoder_files"} & settings.keys()
    for path in [shop.site.adapters, *shop.site.adapters.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not [path for path in shop.site.adapters.rglob("*") if path.name.startswith(".")]


def test_three_are_kept_and_the_current_one(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    names = []
    for number in range(1, 7):
        assert delivered(content(shop, public, spoilt(number, trained), round=number)).outcome == "kept"
        names.append(versions.newest)
        if number == 2:
            versions.use(names[1])
        versions.tidy()
    assert versions.names() == [names[1], *names[-KEPT:]] and versions.current == names[1]
    versions.use(None)
    versions.tidy()
    assert versions.names() == names[-KEPT:] and versions.current is None


def test_which_version_is_current_does_not_show_in_a_receipt(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    answers = []
    for chosen in (None, 0, 3):
        for name in versions.names():
            versions.judged(name, {})
        for number in range(1, 6):
            delivered(content(shop, public, spoilt(number, trained), round=number))
            if number - 1 == chosen:
                versions.use(versions.newest)
            versions.tidy()
        # The first one again: it is overtaken, whether or not it is still here because it ranks.
        answers.append([delivered(content(shop, public, spoilt(number, trained), round=number)) for number in (1, 5, 1)])
        versions.tidy()
    assert answers[0] == answers[1] == answers[2]
    assert [one.outcome for one in answers[0]] == ["kept", "known", "known"]


def test_the_receipt_does_not_change_with_the_users(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    folder = shop.site.merchant
    receipts, kept = [], []
    for change in (lambda table: table, lambda table: table.iloc[:3], lambda table: table.iloc[:0], None):
        path = folder / "events.parquet"
        if change is None:
            path.write_bytes(b"not even a table")
        else:
            change(pd.read_parquet(path)).to_parquet(path)
        forget_merchants()
        receipts.append(delivered(content(shop, public, trained)))
        kept += Versions(shop.site.adapters).names()
        for version in shop.site.adapters.iterdir():
            for file in version.iterdir():
                file.unlink()
            version.rmdir()
    assert len(set(receipts)) == 1 and receipts[0].outcome == "kept" and len(set(kept)) == 1
    assert not (shop.site.ledger / "shop.ledger.jsonl").exists() and not shop.site.replies.exists(), "nothing is spent"


def test_two_adapters_whose_names_would_be_alike(shop: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.model.versions.Versions._free", _as_if_alike(Versions._free))
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    assert delivered(content(shop, public, spoilt(1, trained))).outcome == "kept"
    first = versions.newest
    assert first is not None
    versions.use(first)
    assert delivered(content(shop, public, spoilt(2, trained))).outcome == "kept"
    assert versions.names() == ["run-00003-alike", "run-00003-alike-2"]
    np.testing.assert_array_equal(versions.read(first)[0]["heads.history.B"], spoilt(1, trained)["heads.history.B"])


def _as_if_alike(free: Callable[[Versions, str], str]) -> Callable[[Versions, str], str]:
    return lambda versions, name: free(versions, f"{name.rpartition('-')[0]}-alike")


def test_a_process_that_was_killed_as_it_wrote_leaves_no_version(shop: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedrec.model.versions.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            delivered(content(shop, public, trained))
    [left] = shop.site.adapters.iterdir()
    assert left.name.startswith(".") and versions.names() == [] and versions.arrived() is None
    assert delivered(content(shop, public, trained)).outcome == "kept"
    assert [path.name for path in shop.site.adapters.iterdir()] == versions.names()


@pytest.mark.parametrize("file", ["fedrec.safetensors", "fedrec.json"])
def test_a_damaged_version_is_refused_and_repaired_by_the_next_delivery(shop: Merchant, file: str) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    for number in (1, 2):
        delivered(content(shop, public, spoilt(number, trained), round=number))
    good, bad = versions.names()
    path = shop.site.adapters / bad / file
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    for ask in (versions.read, versions.use):
        with pytest.raises(InputError, match="fedrec merchant model use"):
            ask(bad)
    versions.use(good)
    assert versions.read(good)[1]["round"] == 1
    receipt = delivered(content(shop, public, spoilt(2, trained), round=2))
    assert receipt.outcome == "kept"
    assert [versions.read(name)[1]["round"] for name in versions.names() if name != bad or file != "fedrec.json"] == [1, 2]


def test_versions_that_are_not_there(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "model")
    assert (versions.names(), versions.newest, versions.current, versions.arrived()) == ([], None, None, None)
    versions.tidy()
    versions.use(None)
    for name in ("..", "", "x"):
        with pytest.raises(InputError, match="there is no version"):
            versions.use(name)
    versions.folder.mkdir()
    (versions.folder / CURRENT).write_text("gone\n")
    with pytest.raises(InputError, match="'gone'"):
        _ = versions.current


def test_what_arrived_is_the_newest_until_it_is_judged(shop: Merchant) -> None:
    public, trained = public_and_trained(shop)
    versions = Versions(shop.site.adapters)
    for number in (1, 2):
        delivered(content(shop, public, spoilt(number, trained), round=number))
    first, second = versions.names()
    assert versions.arrived() == second
    versions.judged(second, {"ndcg": 0.1})
    assert versions.arrived() is None and versions.verdict(second) == {"ndcg": 0.1} and versions.verdict(first) is None


# -- what follows a delivery ------------------------------------------------------------------------------------------------


def test_what_cannot_be_started_is_harmless(tmp_path: Path, shop: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    public, trained = public_and_trained(shop)
    folder = shop.site.merchant
    delivered(content(shop, public, trained))
    shop.site.adapters.rename(folder / "model")
    began: list[Path] = []
    monkeypatch.setattr(clients.delivery, "adopt", began.append)
    clients.delivery.settle(folder)
    assert began == [folder]

    def fails(_: Path) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(clients.delivery, "adopt", fails)
    clients.delivery.settle(folder)
    Versions(folder / "model").judged(*Versions(folder / "model").names(), {})
    monkeypatch.setattr(clients.delivery, "adopt", began.append)
    clients.delivery.settle(folder)
    assert began == [folder], "what was judged is not compared again"


@pytest.mark.parametrize(("alive", "status"), [(True, 2), (False, -signal.SIGTERM)])
def test_the_fit_ends_with_the_process_that_began_it(tmp_path: Path, alive: bool, status: int) -> None:
    parent = os.getpid() if alive else 1
    done = subprocess.run(
        [sys.executable, "-m", "clients.adopter", str(tmp_path / "no-such-merchant"), str(parent)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert f"the fit ended with status {status}" in done.stderr


# -- the commands -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: status, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fedrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return call


def test_the_commands_for_a_merchant(shop: Merchant, fedrec: Callable[..., tuple[int, str, str]]) -> None:
    folder = shop.site.merchant
    status, printed, _ = fedrec("merchant", "model", "list", folder)
    assert status == 0 and "no adapter has arrived yet" in printed
    status, _, told = fedrec("merchant", "model", "show", folder)
    assert status == 2 and "no adapter has arrived yet" in told
    public, trained = public_and_trained(shop)
    for number in (1, 2):
        delivered(content(shop, public, spoilt(number, trained), round=number))
    shop.site.adapters.rename(folder / "model")
    versions = Versions(folder / "model")
    first, second = versions.names()
    versions.judged(first, {"best": "own layer"})
    (folder / "model" / second / "fedrec.json").write_text("{")
    status, printed, _ = fedrec("merchant", "model", "list", folder, "--json")
    found = json.loads(printed)
    assert status == 0 and found["current"] is None
    assert {one["version"]: "damaged" in one for one in found["versions"]} == {first: False, second: True}
    assert fedrec("merchant", "model", "use", folder, first)[0] == 0 and versions.current == first
    status, printed, _ = fedrec("merchant", "model", "show", folder, "--json")
    shown = json.loads(printed)
    assert (status, shown["version"], shown["round"], shown["current"]) == (0, first, 1, True)
    assert (
        shown["verdict"] == {"best": "own layer"} and shown["encoder"] == "it was trained with another encoder than the one here"
    )
    with (folder / "merchant.toml").open("a") as file:
        file.write(f'\n[model]\nencoder = "{shop.site.model.encoder}"\ndevice = "cpu"\n')
    assert json.loads(fedrec("merchant", "model", "show", folder, "--json")[1])["encoder"] == "the one here"
    for bad in (second, "no-such-version"):
        status, _, told = fedrec("merchant", "model", "use", folder, bad)
        assert status == 2 and "Traceback" not in told and versions.current == first
    status, printed, _ = fedrec("merchant", "model", "list", folder)
    assert status == 0 and first in printed and "damaged" not in printed.split(second)[0].split(first)[0]
    (folder / "model" / CURRENT).write_text("gone")
    assert fedrec("merchant", "model", "list", folder)[0] == 2
    assert fedrec("merchant", "model", "use", folder, "untrained")[0] == 0 and versions.current is None
    assert fedrec("merchant", "model", "list", folder.parent)[0] == 2


def test_a_simulated_run_is_not_delivered_by_hand(
    run: RunFolder, tmp_path: Path, tiny_bert_folder: Path, fedrec: Callable[..., tuple[int, str, str]]
) -> None:
    server = create(tmp_path / "deployed", "localhost:20000", ["m0"]).server
    status, _, told = fedrec("server", "deliver", server.path, run.path)
    assert status == 2 and "is not a deployed run" in told
    status, _, told = fedrec("server", "deliver", server.path)
    assert status == 2 and "there is no run yet" in told
    began = RunFolder.create(server.runs / "one", run.config)
    began.write_json("site.json", {"deployed": True})
    status, _, told = fedrec("server", "deliver", server.path, "one")
    assert status == 2 and "no round is done" in told
    shutil.copytree(run.path / "checkpoints", began.path / "checkpoints")
    status, _, told = fedrec("server", "deliver", server.path, "one")
    assert status == 2 and "no server answers" in told


@pytest.mark.slow
@pytest.mark.integration
def test_a_delivery_that_the_server_begins_says_why_it_cannot_and_ends_with_the_server(run: RunFolder, tmp_path: Path) -> None:
    port = free_ports()
    server = create(tmp_path / "deployed", f"localhost:{port}", ["m0"]).server
    command = [sys.executable, "-m", "server.redelivery", str(server.path), str(run.path)]
    done = subprocess.run([*command, str(os.getpid()), "m0"], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 2 and "no server answers" in done.stderr and "Traceback" not in done.stderr
    start = "import os, subprocess, sys; subprocess.run([*sys.argv[1:], str(os.getpid()), 'm0'])"
    with socket.create_server(("127.0.0.1", server.settings.control_port)) as silent:
        silent.settimeout(60)
        parent = subprocess.Popen([sys.executable, "-S", "-c", start, *command], cwd=ROOT)
        try:
            connection, _ = silent.accept()  # and no answer
            [child] = psutil.Process(parent.pid).children()
        finally:
            parent.kill()
            parent.wait()
        with connection:
            child.wait(10)
        sent = f"redelivery.main(*{command[3:]}, {os.getpid()}, ['m0'])"
        brief = f"from server import redelivery; redelivery.MOST_SECONDS = 2; {sent}"
        done = subprocess.run([sys.executable, "-c", brief], capture_output=True, timeout=100, cwd=ROOT)
        assert done.returncode == -signal.SIGALRM, "it has an end, whatever it waits for"


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return create(tmp_path / "deployed", "localhost:20000", ["m0"]).server


@pytest.fixture
def ended(run: RunFolder, server: ServerFolder) -> RunFolder:
    """The run, as a deployed one that has ended."""
    shutil.copytree(run.path, server.runs / "one")
    copy = RunFolder.open(server.runs / "one")
    copy.write_json("site.json", {"deployed": True})
    return copy


def pending_of(server: ServerFolder) -> tuple[str, int] | None:
    found = recall(server)
    return (found[0].path.name, found[1]) if found else None


@pytest.mark.parametrize("went_home", [False, True])
def test_the_adapter_of_a_run_that_has_ended_is_pending_when_it_is_resumed(
    ended: RunFolder, server: ServerFolder, went_home: bool
) -> None:
    if not went_home:
        (ended.path / "delivered.json").unlink()
    remember(server, RunFolder.create(server.runs / "earlier", RunConfig()), 8)
    os.utime(server.pending, (ended.saved_at() - 1,) * 2)
    go_on(server, ended)
    assert pending_of(server) == ("one", 3)
    server.pending.write_text("{")
    go_on(server, ended)
    assert pending_of(server) == ("one", 3), "what is damaged is replaced"


def test_an_adapter_that_was_sent_later_stays_pending_when_an_ended_run_is_resumed(
    ended: RunFolder, server: ServerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(server, RunFolder.create(server.runs / "later", RunConfig()), 8)
    os.utime(server.pending, (ended.saved_at() + 1,) * 2)
    (ended.path / "delivered.json").unlink()
    told = f"fedrec server deliver {server.path} {ended.path}"
    with round_progress():
        go_on(server, ended)
    assert pending_of(server) == ("later", 8)
    assert told.replace(" ", "") in "".join(capsys.readouterr().err.split())
    remember(server, ended, 3)
    with round_progress():
        go_on(server, ended)
    assert pending_of(server) == ("one", 3) and "fedrec server deliver" not in capsys.readouterr().err
    with alone(server), pytest.raises(InputError, match="another run is going on"):
        go_on(server, ended)


def test_nothing_half_trained_is_pending_and_what_is_trained_is_before_it_goes_home(
    federation: Path, config: RunConfig, server: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def after(number: int) -> Callable[[str, dict[str, Any]], None]:
        return lambda event, fields: interrupted() if event == "round_done" and fields["round"] == number else None

    with watching(after(0)), pytest.raises(KeyboardInterrupt):
        simulate(federation, config.model_copy(update={"encoder_rounds": 0, "rounds": 2}), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    run.write_json("site.json", {**json.loads((run.path / "site.json").read_text()), "deployed": True})
    shutil.copytree(federation / "central", server.central, dirs_exist_ok=True)
    monkeypatch.setattr("server.deployed._serve", lambda _, serve: run_inline(serve, app, 3))
    monkeypatch.setattr("server.app.hand_over", interrupted)
    remember(server, RunFolder.create(server.runs / "earlier", RunConfig()), 8)
    with watching(after(1)), pytest.raises(KeyboardInterrupt):
        go_on(server, run)
    assert (run.last_round(), pending_of(server)) == (1, ("earlier", 8))
    with pytest.raises(KeyboardInterrupt):
        go_on(server, run)
    assert (run.last_round(), pending_of(server)) == (2, ("run", 2))


@pytest.mark.parametrize("content", [b"", b"\0" * 50, None], ids=["empty", "zeros", "something else"])
def test_a_damaged_checkpoint_is_an_error_that_says_which(ended: RunFolder, server: ServerFolder, content: bytes | None) -> None:
    last = ended.path / "checkpoints" / "round-00003.safetensors"
    if content is None:
        save_file({"centre": np.zeros(1)}, last)  # a file of something else
    else:
        last.write_bytes(content)
    for resumed in (lambda: go_on(server, ended), lambda: deliver_to(server, ended, ["m0"], 1.0)):
        with pytest.raises(InputError, match=r"round-00003\.safetensors: is damaged .* delete it"):
            resumed()
    last.unlink()
    state = ended.load()
    assert state is not None and state.round == 2


# -- the server's side ------------------------------------------------------------------------------------------------------


class Home:
    """A grid whose merchants answer what they are told to."""

    def __init__(self, answers: dict[int, Callable[[Message], Message | None]]) -> None:
        self.answers = answers

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        for one in messages:
            one.metadata.__dict__["_message_id"] = one.object_id
        replies = (self.answers[one.metadata.dst_node_id](one) for one in messages)
        return [reply for reply in replies if reply is not None]


def receipt(name: str, outcome: str = "kept", **changes: Any) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        said = {key: message.content["task"][key] for key in ("run", "round", "digest")}
        return Message(
            RecordDict({"receipt": ConfigRecord({"merchant": name, "outcome": outcome, **said, **changes})}), reply_to=message
        )

    return answer


def leaking(message: Message) -> Message:
    reply = receipt("dora")(message)
    reply.content["receipt"]["ndcg"] = 0.25
    return reply


def test_only_a_receipt_about_this_adapter_counts(run: RunFolder, tmp_path: Path) -> None:
    parcel = parcel_of(run)
    names = {2: "anna", 3: "bert", 4: "cleo", 5: "dora", 6: "emil", 7: "fred", 8: "gina"}
    home = Home(
        {
            2: receipt("anna"),
            3: receipt("anna"),
            4: receipt("cleo", digest="0" * 32),
            5: leaking,
            6: lambda message: Message(Error(ErrorCode.NODE_UNAVAILABLE, "customer-1"), reply_to=message),
            7: lambda _: None,
            8: receipt("gina", "refused: encoder"),
        }
    )
    outcomes = hand_over(home, parcel, names, 1.0)  # type: ignore[arg-type]
    assert outcomes == {
        "anna": "kept",
        "bert": "no receipt: it says that it is anna, whose key it does not have",
        "cleo": "no receipt: it is about something else",
        "dora": "no receipt: Receipt: there is no field 'ndcg'",
        "emil": "went offline before it answered",
        "fred": "did not answer in time",
        "gina": "refused: encoder",
    }
    copy = RunFolder(tmp_path)
    delivered_to = Delivered(copy, parcel)
    delivered_to.add(outcomes)
    delivered_to.add({"anna": "did not answer in time", "fred": "known"})
    again = Delivered(copy, parcel)
    assert again.have() == {"anna", "fred"} and again.merchants["gina"]["outcome"] == "refused: encoder"
    other = replace(parcel, delivery=replace(parcel.delivery, digest="0" * 32))
    assert Delivered(copy, other).merchants == {}, "of another adapter nothing is known"


def test_a_receipt_that_is_not_on_the_list_cannot_be_sent() -> None:
    for bad in (Receipt("shop", "refused: 12 users"), Receipt("shop", "kept", digest="x")):  # type: ignore[arg-type]
        with pytest.raises(wire.WireError):
            wire.encode_receipt(bad)
    assert set(HERE) < set(OUTCOMES)


# -- a simulation -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def config(tiny_bert_folder: Path) -> RunConfig:
    return settings_of(tiny_bert_folder)


@pytest.fixture(scope="module")
def run(federation: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulate(federation, config, tmp_path_factory.mktemp("runs") / "run")


def test_a_simulation_ends_with_the_adapter_at_every_merchant(run: RunFolder) -> None:
    state = run.load()
    assert state is not None
    found = json.loads((run.path / "delivered.json").read_text())
    assert {name: one["outcome"] for name, one in found["merchants"].items()} == dict.fromkeys(("m0", "m1", "m2"), "kept")
    for name in ("m0", "m1", "m2"):
        versions = Versions(run.path / "models" / name)
        [version] = versions.names()
        arrays, settings = versions.read(version)
        assert (settings["run"], settings["round"], settings["digest"]) == (state.run, 3, found["digest"])
        assert settings["scoring"] == run.metrics()[-1]["scoring"]
        for key, value in {**state.public, **state.trained}.items():
            np.testing.assert_array_equal(arrays[key], value)


def test_a_run_that_was_interrupted_as_it_delivered_delivers_when_it_is_resumed(
    federation: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("server.app.hand_over", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(federation, config.model_copy(update={"rounds": 1, "encoder_rounds": 0}), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    before = folder.metrics()
    assert not (folder.path / "models").exists()
    resume(folder.path)
    assert len(list((folder.path / "models").iterdir())) == 3 and folder.metrics() == before
