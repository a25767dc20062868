"""`fedrec merchant ledger --accept-loss`: what counts afterwards is the most that anything left proves, or the whole budget."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file, save_file

from clients.app import app
from clients.losses import ACCEPTED, accept, open_ledger, refusal
from clients.merchant import forget_merchants, open_merchant
from clients.site import deployed_site
from fedrec import wire
from fedrec.deploy.layout import MerchantFolder
from fedrec.errors import InputError
from fedrec.model.adapter import digest
from fedrec.privacy import Ledger, LedgerError, epsilon
from fedrec.privacy.ledger import used
from fedrec.privacy.ledger_head import Head
from fedrec.report.privacy_sources import find_sources
from fedrec.wire import Statement

from .merchants import open_shop, public_and_trained, task, write_merchant
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_ledger import kills

ROUNDS = 3
REQUESTS: dict[int, RecordDict] = {}
"""What a server would send, by round."""


class Shop:
    """A deployed merchant's folder, asked as a server would ask it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def folder(self) -> MerchantFolder:
        return MerchantFolder(self.path)

    @property
    def ledger(self) -> Ledger:
        return open_ledger(deployed_site(self.folder), "shop", self.folder.settings.privacy.delta)

    @property
    def reply(self) -> Path:
        (path,) = (self.folder.replies / "shop").glob("*.safetensors")
        return path

    def refused(self) -> LedgerError | None:
        return refusal(self.ledger, deployed_site(self.folder), "shop")

    def accept(self) -> Path | None:
        return accept(self.ledger, deployed_site(self.folder), "shop")

    def ask(self, round_number: int) -> Statement:
        """The statement with which the node answers a request for a round."""
        forget_merchants()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        context = Context(1, 2, {"folder": str(self.path)}, RecordDict(), {})
        return wire.decode_reply(app(Message(REQUESTS[round_number], 2, "train"), context)).statement


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A folder of a merchant that has answered three rounds."""
    folder = write_merchant(tmp_path_factory.mktemp("losses") / "shop", epsilon=3.0)
    with (folder / "merchant.toml").open("a") as file:
        file.write(tomli_w.dumps({"model": {"encoder": str(tiny_bert_folder), "device": "cpu", "texts_per_batch": 64}}))
    asked = open_shop(folder, tiny_bert_folder, folder / "elsewhere", seed=None)
    public, trained = public_and_trained(asked)
    for number in range(1, ROUNDS + 3):
        one = task(asked, round=number, noise_multiplier=[0, 60.0, 30.0, 60.0, 40.0, 40.0][number])
        REQUESTS[number] = wire.encode_train(one, trained, digest(public), public)
    for number in range(1, ROUNDS + 1):
        assert Shop(folder).ask(number).status == "ok"
    return folder


@pytest.fixture
def shop(written: Path, tmp_path: Path) -> Shop:
    shutil.copytree(written, tmp_path / "shop")
    return Shop(tmp_path / "shop")


def remove(shop: Shop) -> None:
    shop.ledger.path.unlink()


def cut(shop: Shop) -> None:
    shop.ledger.path.write_bytes(b"".join(shop.ledger.path.read_bytes().splitlines(keepends=True)[:1]))


def change(shop: Shop) -> None:
    shop.ledger.path.write_bytes(shop.ledger.path.read_bytes().replace(b'"noise_multiplier": 30.0', b'"noise_multiplier": 90.0'))


def zero(shop: Shop) -> None:
    shop.ledger.path.write_bytes(bytes(len(shop.ledger.path.read_bytes())))


def zero_file(shop: Shop) -> None:
    shop.ledger.path.write_bytes(b"\0")


def folder_instead(shop: Shop) -> None:
    shop.ledger.path.unlink()
    shop.ledger.path.mkdir()


def leave(shop: Shop, what: str) -> None:
    """Remove all that could prove what was spent, but for `what`."""
    for name, path in (("head", shop.ledger.head_path), ("reply", shop.reply), ("messages", shop.folder.wire_log)):
        if name != what:
            assert path is not None
            path.unlink()


def test_a_stored_answer_without_a_figure_still_knows_what_the_ledger_had(shop: Shop) -> None:
    """The first step of a secure sum states nothing, and its copy of the head says all."""
    head = json.loads(shop.ledger.head().to_json())
    cut(shop)
    shop.ledger.head_path.unlink()  # type: ignore[union-attr]
    first = shop.ledger.intact()[0][0]
    ledger = Ledger(shop.ledger.path, shop.ledger.delta, shop.ledger.head_path)
    Head(1, json.loads(ledger.path.read_text())["chain"], [vars(replace(first.kind, steps=1))]).write(shop.ledger.head_path)  # type: ignore[arg-type]
    shop.reply.unlink()
    assert shop.refused() is None
    answers = {"announce": {"statement": asdict(Statement("shop", "ok", run="run", round=4))}}
    kept = {"answers": answers, "head": json.dumps(head)}
    (shop.folder.replies / "shop" / "secure.json").write_text(json.dumps(kept))
    refused = shop.refused()
    assert refused is not None and "knows of more" in str(refused)


def test_another_name_is_refused_by_the_head_alone(shop: Shop) -> None:
    remove(shop)
    settings = shop.path / "merchant.toml"
    settings.write_text(settings.read_text().replace('name = "shop"', 'name = "other"'))
    with pytest.raises(InputError, match=r"shop\.head\.json"):
        open_merchant(deployed_site(shop.folder))


DAMAGES = [remove, cut, change, zero, folder_instead]


@pytest.mark.parametrize("left", ["head", "reply", "messages"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_one_record_proves_counts_and_the_merchant_goes_on(shop: Shop, damage: Callable[[Shop], None], left: str) -> None:
    before = shop.ledger.releases()
    damage(shop)
    leave(shop, left)
    if (damage, left) == (remove, "messages"):
        zero_file(shop)  # of the record of messages alone nobody takes notice: it is not read at every request
    assert shop.refused()
    assert shop.ask(ROUNDS + 1) == Statement("shop", "declined", "failed: LedgerError")
    damaged = shop.ledger.path.read_bytes() if shop.ledger.path.is_file() else None
    aside = shop.accept()
    assert aside is None or damaged is None or aside.read_bytes() == damaged
    assert shop.refused() is None and shop.ledger.standing() == "its head agrees"
    lines = shop.ledger.releases()
    assert used(lines) == used(before)
    assert {line.run for line in lines} == {ACCEPTED} and all("a person accepted the loss" in line.accepted for line in lines)
    assert lines[-1].epsilon_after == before[-1].epsilon_after
    asked = shop.ask(ROUNDS + 1)
    assert asked.status == "ok"
    events = [line.event for line in before] + [shop.ledger.releases()[-1].event]
    assert asked.epsilon_spent == epsilon(events, 1e-5).value


@pytest.mark.parametrize("damage", [change, zero, folder_instead])
def test_where_nothing_proves_it_the_whole_budget_counts_for_ever(shop: Shop, damage: Callable[[Shop], None]) -> None:
    damage(shop)
    leave(shop, "nothing")
    assert shop.refused()
    shop.accept()
    (line,) = shop.ledger.releases()
    assert "what counts is the whole budget" in line.accepted
    assert shop.ask(ROUNDS + 1).reason.endswith("would be over the policy's 3")
    text = (shop.path / "merchant.toml").read_text()
    (shop.path / "merchant.toml").write_text(text.replace("epsilon = 3.0", "epsilon = 1000.0"))
    assert shop.ask(ROUNDS + 1).reason.endswith("would be over the policy's 1000")
    shop.ledger.path.unlink()
    shop.accept()
    assert shop.ledger.spent().value > 1e5, "a second loss does not give back what the first one took"


def test_a_reply_of_before_they_held_heads_proves_a_sum_and_no_parts(shop: Shop) -> None:
    arrays, path = load_file(shop.reply), shop.reply
    statement = Statement("shop", "ok", run="run", round=3, epsilon_spent=shop.ledger.spent().value, delta=1e-5)
    save_file(arrays, path, {"run": "run", "statement": json.dumps(asdict(statement))})
    leave(shop, "reply")
    lines = shop.ledger.path.read_bytes()
    remove(shop)
    assert "lines are missing: the stored reply of run run, round 3 says" in str(shop.refused())
    shop.accept()
    assert "the whole budget" in shop.ledger.releases()[0].accepted
    shop.ledger.path.write_bytes(lines)
    shop.ledger.head_path.unlink()  # type: ignore[union-attr]
    shop.accept()
    assert sum(used(shop.ledger.releases()).values()) == ROUNDS, "with the lines that make up that sum it does prove them"


def test_a_secure_sum_proves_what_it_says(shop: Shop) -> None:
    before, head = used(shop.ledger.releases()), shop.ledger.head().to_json()
    statement = asdict(Statement("shop", "ok", run="run", round=3, epsilon_spent=shop.ledger.spent().value, delta=1e-5))
    leave(shop, "nothing")
    remove(shop)
    known = {"offer": {}, "state": None, "answers": {"mask": {"statement": statement}}, "head": head}
    (shop.folder.replies / "shop" / "secure.json").write_text(json.dumps(known))
    assert "the stored reply of run run, round 3 says" in str(shop.refused())
    shop.accept()
    assert used(shop.ledger.releases()) == before


def test_the_most_of_several_records_counts(shop: Shop) -> None:
    """An old copy of ledger and head does not undo what the last reply says."""
    lines = shop.ledger.path.read_bytes().splitlines(keepends=True)
    before = used(shop.ledger.releases())
    cut(shop)
    shop.ledger.head_path.unlink()  # type: ignore[union-attr]
    old = Ledger(shop.ledger.path, 1e-5).head()
    old.write(shop.ledger.head_path)  # type: ignore[arg-type]
    assert len(shop.ledger.releases()) == 1 < len(lines), "by themselves they agree"
    assert "the stored reply of run run, round 3 says that epsilon" in str(shop.refused())
    shop.accept()
    assert used(shop.ledger.releases()) == before


def test_nothing_is_accepted_where_nothing_is_lost(shop: Shop) -> None:
    before = shop.ledger.path.read_bytes()
    with pytest.raises(InputError, match="nothing is lost"):
        shop.accept()
    assert shop.ledger.path.read_bytes() == before


@pytest.mark.parametrize("damage", [cut, remove, zero])
def test_an_acceptance_that_is_killed_anywhere_can_be_given_again(shop: Shop, damage: Callable[[Shop], None]) -> None:
    before = used(shop.ledger.releases())
    leave(shop, "head")
    kept = shop.path.with_name("kept")
    damage(shop)
    shutil.copytree(shop.path, kept)

    def again() -> None:
        shutil.rmtree(shop.path)
        shutil.copytree(kept, shop.path)

    shop.accept()
    times = Counter[bool]()
    for _ in kills(shop.accept, again):
        refused = shop.refused() is not None
        if refused:
            shop.accept()
        assert used(shop.ledger.releases()) == before
        times[refused] += 1
    assert times[True] and times[False]


# The head in a folder of its own


def test_the_head_can_be_set_apart(shop: Shop, tmp_path: Path) -> None:
    with (shop.path / "merchant.toml").open("a") as file:
        file.write('\n[ledger]\nhead = "../apart"\n')
    shop = Shop(shop.path)
    assert "is missing" in str(shop.refused()) and "under [ledger] where it is" in str(shop.refused())
    (shop.folder.state / "privacy-head").rename(tmp_path / "apart")
    assert shop.refused() is None and shop.ask(ROUNDS + 1).status == "ok"
    shutil.rmtree(shop.folder.ledger)
    assert "there is no ledger: its head" in str(shop.refused())


# The command


def test_the_command_shows_what_is_there(shop: Shop, fedrec: Fedrec) -> None:  # noqa: F811
    answer = fedrec("merchant", "ledger", shop.path)
    spent = shop.ledger.spent().value
    assert (answer.status, answer.err) == (0, "")
    assert dict(line.split(maxsplit=1) for line in answer.out.splitlines()) == {
        "merchant": "shop", "ledger": str(shop.ledger.path), "head": str(shop.ledger.head_path), "lines": "3", "budget": "3.0",
        "delta": "1e-05", "state": "its head agrees", "epsilon": f"{spent}",
    }  # fmt: skip
    assert json.loads(fedrec("merchant", "ledger", shop.path, "--json").out)["epsilon"] == spent


def test_the_command_names_a_loss_and_accepts_it(shop: Shop, fedrec: Fedrec) -> None:  # noqa: F811
    cut(shop)
    answer = fedrec("merchant", "ledger", shop.path)
    assert answer.status == 2 and "line 2: lines 2 to 3 are missing: its head" in answer.err
    assert "accept loss counts the most that what is left proves" in answer.out and "its head, of 3 lines" in answer.out
    told = json.loads(fedrec("merchant", "ledger", shop.path, "--json").out)
    assert told["lines"] == 1 and len(told["left"]) == 4 and "epsilon" not in told
    answer = fedrec("merchant", "ledger", shop.path, "--accept-loss", "--json")
    told = json.loads(answer.out)
    assert answer.status == 0 and len(told["accepted"]) == 1 and Path(told["set_aside"]).is_file()
    answer = fedrec("merchant", "ledger", shop.path, "--accept-loss")
    assert answer.status == 2 and "nothing is lost" in answer.err
    assert fedrec("merchant", "ledger", shop.path.parent).status == 2


def test_the_report_says_what_was_accepted_and_what_is_missing(shop: Shop, fedrec: Fedrec) -> None:  # noqa: F811
    cut(shop)
    answer = fedrec("privacy", "report", shop.path)
    assert answer.status == 1 and "broken at line 2 (lines 2 to 3 are missing" in " ".join(answer.out.split())
    shop.ledger.path.unlink()
    (source,) = find_sources([shop.path])
    assert not source.chain.intact and source.chain.reason.startswith("there is no ledger: its head")
    shop.accept()
    leave(shop, "nothing")
    zero(shop)
    shop.accept()
    answer = fedrec("privacy", "report", shop.path, "--json")
    told = json.loads(answer.out)
    assert answer.status == 0 and told["merchants"][0]["epsilon"] > 1e5
    assert "the ledger of shop was begun anew" in told["summary"][0]["text"]
