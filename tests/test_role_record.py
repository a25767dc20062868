"""Who was held back is known from the first release on, so a raised share or a lost key is noticed, at the merchant alone."""

# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.merchant import Merchant, forget_merchants, open_merchant
from clients.preflight import checks
from fedrec.data.role_record import NOBODY, RECORD, HeldBack, changed_roles, record_roles
from fedrec.data.roles import SECRET_FILE, UserShares, roles_of
from fedrec.merchant import LEDGER, OWN
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.wire import HistogramTask

from .merchants import open_shop, public_and_trained, task, write_merchant
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop, with_settings
from .test_preflight import Shop, edit, shop  # noqa: F401

USERS = [f"user-{number}" for number in range(1500)]
SECRETS = [bytes([number]) * 32 for number in (1, 2)]
ROOT = Path(__file__).resolve().parents[1]

shares = st.builds(UserShares, choose=st.sampled_from([0.0, 0.1, 0.2, 0.4]), measure=st.sampled_from([0.0, 0.1, 0.2, 0.4]))
settings_ = st.tuples(shares, st.sampled_from(SECRETS))


def held(one: UserShares, secret: bytes) -> HeldBack:
    """As a merchant has it, which draws no key where nobody is held back."""
    return HeldBack.under(one, secret) if one.choose or one.measure else NOBODY


@given(st.lists(settings_, max_size=5), settings_)
@settings(max_examples=70, deadline=None)
def test_it_is_noticed_exactly_where_somebody_has_trained(
    tmp_path_factory: pytest.TempPathFactory, released: list[tuple[UserShares, bytes]], now: tuple[UserShares, bytes]
) -> None:
    path = tmp_path_factory.mktemp("record") / RECORD
    trained: set[int] = set()
    for one, secret in released:
        record_roles(path, held(one, secret))
        trained |= set(roles_of(USERS, one, secret).train.tolist())
    roles = roles_of(USERS, *now)
    said = changed_roles(path, held(*now))
    for these, who in ((roles.choose, "those who choose"), (roles.measure, "those who are measured")):
        assert (who in (said or "")) == bool(trained & set(these.tolist()))
    assert (said is not None) == bool(trained & {*roles.choose.tolist(), *roles.measure.tolist()})


def test_the_shares_are_nested() -> None:
    """So that a share that is lowered and put back is harmless."""
    wide, narrow = (roles_of(USERS, UserShares(choose=one, measure=one), SECRETS[0]) for one in (0.4, 0.1))
    assert set(narrow.choose) < set(wide.choose) and set(narrow.measure) < set(wide.measure)
    assert set(wide.train) < set(narrow.train)


def test_what_is_kept_is_the_owners_and_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "privacy" / RECORD
    record_roles(path, held(UserShares(), SECRETS[0]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and SECRETS[0].hex() not in path.read_text()
    before = path.stat().st_mtime_ns, path.read_bytes()
    record_roles(path, held(UserShares(choose=0.3, measure=0.1), SECRETS[0]))
    assert before == (path.stat().st_mtime_ns, path.read_bytes()), "a wider share adds nothing"


@pytest.mark.parametrize("content", [b"", b"{}x", b"[1]", b'[{"key": "a"}]'])
def test_a_damaged_record_may_have_held_anything(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes(content)
    now = held(UserShares(), SECRETS[0])
    assert "those who choose and those who are measured may have trained" in str(changed_roles(tmp_path / RECORD, now))
    record_roles(tmp_path / RECORD, now)
    assert changed_roles(tmp_path / RECORD, now) is not None, "and still may have, when it is written again"
    assert changed_roles(tmp_path / RECORD, NOBODY) is None


# Written where something is released


def opened(folder: Path, bert: Path, state: Path, seed: int | None = None) -> Merchant:
    forget_merchants()
    return open_merchant(open_shop(folder, bert, state, seed).site)


def test_a_release_has_it_known_and_a_refusal_does_not(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = write_merchant(tmp_path / "shop", users=60, epsilon=50.0)
    merchant = opened(folder, tiny_bert_folder, tmp_path / "state")
    path = merchant.site.ledger / RECORD
    public, trained = public_and_trained(merchant)
    weak = replace(task(merchant), noise_multiplier=0.01)
    assert merchant.train(weak, trained, public).statement.status == "declined" and not path.exists()
    reply = merchant.train(task(merchant), trained, public)
    assert reply.statement.status == "ok" and json.loads(path.read_bytes()) == [asdict(merchant.held_back)]
    assert merchant.held_back == HeldBack.under(UserShares(), (folder / OWN / SECRET_FILE).read_bytes())
    said = json.dumps(asdict(reply.statement))
    assert not any(word in said for word in (merchant.held_back.key, "measure", "choose"))
    path.unlink()
    assert merchant.histogram(HistogramTask("other", 20.0, 1e-5, "user"), merchant.data.catalogue.keys).statement.status == "ok"
    assert path.exists()


def test_it_is_on_disk_before_the_ledger_is_charged(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = write_merchant(tmp_path / "shop", users=60, epsilon=50.0)
    merchant = opened(folder, tiny_bert_folder, tmp_path / "state")
    (merchant.site.ledger / RECORD).mkdir(parents=True)  # so that it cannot be written
    with pytest.raises(OSError, match=RECORD):
        merchant.histogram(HistogramTask("run", 20.0, 1e-5, "user"), merchant.data.catalogue.keys)
    assert not merchant.ledger.releases(), "what cannot be recorded is not paid for"


def test_a_simulation_keeps_no_record(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = write_merchant(tmp_path / "shop", users=60, epsilon=50.0)
    merchant = opened(folder, tiny_bert_folder, tmp_path / "state", seed=0)
    assert merchant.histogram(HistogramTask("run", 20.0, 1e-5, "user"), merchant.data.catalogue.keys).statement.status == "ok"
    assert not (merchant.site.ledger / RECORD).exists()


def test_nothing_is_paid_for_past_the_record() -> None:
    """Also not in a secure sum: there is one place where a merchant's ledger is charged."""
    found = [path.name for path in (ROOT / "clients").glob("*.py") if "ledger.append(" in path.read_text(encoding="utf-8")]
    assert found == ["merchant.py"] and (ROOT / "clients/merchant.py").read_text(encoding="utf-8").count("ledger.append(") == 1


# Said at the merchant


@pytest.fixture
def trained(tmp_path: Path, tiny_bert_folder: Path) -> Path:
    """A merchant's folder after a release."""
    folder = make_shop(tmp_path / "shop", tiny_bert_folder)
    with_users(folder, tiny_bert_folder, choose=0.1, measure=0.1)
    merchant = opened(folder, tiny_bert_folder, tmp_path / "state")
    record_roles(folder / LEDGER / RECORD, merchant.held_back)
    return folder


def with_users(folder: Path, bert: Path, **users: float) -> None:
    with_settings(folder, model={"encoder": str(bert), "device": "cpu"}, users=users)


def test_evaluate_and_fit_say_that_a_share_was_raised(
    fedrec: Fedrec, trained: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    said = "measure in [users] is 0.2 and was 0.1 in training (put that back): those who are measured may have trained"
    assert json.loads(fedrec("merchant", "evaluate", trained, "--json").out)["changed_roles"] is None
    assert "may have trained" not in fedrec("merchant", "fit", trained).out
    with_users(trained, tiny_bert_folder, choose=0.1, measure=0.2)
    answer = fedrec("merchant", "evaluate", trained, "--html", tmp_path / "page.html")
    assert answer.status == 0 and said in answer.out and said in unescape((tmp_path / "page.html").read_text())
    assert said in fedrec("merchant", "fit", trained).out
    place = MerchantPlace(trained)
    assert said in fit_merchant(place, place.data()).to_json()["changed_roles"], "and so does the verdict"
    with_users(trained, tiny_bert_folder, choose=0.1, measure=0.1)
    assert "may have trained" not in fedrec("merchant", "evaluate", trained).out, "it was put back"
    with_users(trained, tiny_bert_folder, choose=0.05, measure=0.1)
    assert "may have trained" not in fedrec("merchant", "fit", trained).out, "fewer are harmless"
    with_users(trained, tiny_bert_folder, choose=0.3, measure=0.1)
    with (trained / "merchant.toml").open("a") as toml:
        toml.write("\n[recommender]\nown_layer = false\n")
    assert "choose in [users] is 0.3 and was 0.1" in fedrec("merchant", "fit", trained).out


@pytest.mark.parametrize("own_layer", [True, False])
def test_a_fit_that_has_nothing_to_do_says_it_too(fedrec: Fedrec, trained: Path, tiny_bert_folder: Path, own_layer: bool) -> None:
    with_settings(
        trained, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.1, "measure": 0.1},
        recommender={"own_layer": own_layer},
    )  # fmt: skip
    assert fedrec("merchant", "fit", trained).status == 0
    assert json.loads(fedrec("merchant", "fit", trained, "--json").out)["changed_roles"] is None
    (trained / LEDGER / RECORD).write_text("x")
    shown, said = fedrec("merchant", "fit", trained), json.loads(fedrec("merchant", "fit", trained, "--json").out)
    assert shown.status == 0 and "--force" in shown.out and "may have trained" in shown.out
    assert said["changed"] is False and said["changed_roles"] in shown.out


def test_a_lost_key_is_noticed_however_much_was_lost_with_it(fedrec: Fedrec, trained: Path) -> None:
    said = "users trained under another own/users.key (put that one back from a backup): those who choose and those"
    key = (trained / OWN / SECRET_FILE).read_bytes()
    shutil.rmtree(trained / OWN)
    answer = fedrec("merchant", "evaluate", trained)
    assert answer.status == 0 and said in answer.out
    other = (trained / OWN / SECRET_FILE).read_bytes()
    (trained / OWN / SECRET_FILE).write_bytes(key)
    assert "may have trained" not in fedrec("merchant", "evaluate", trained).out
    record_roles(trained / LEDGER / RECORD, HeldBack.under(UserShares(), other))
    assert "users trained under several own/users.key: those" in fedrec("merchant", "evaluate", trained).out


def test_it_is_noted_before_a_node_connects(shop: Shop) -> None:
    shop.listening.close()
    edit(shop.folder.settings_file, users={"choose": 0.3})
    (shop.path / OWN / SECRET_FILE).write_bytes(SECRETS[0])
    record_roles(shop.folder.ledger / RECORD, HeldBack.under(UserShares(choose=0.3), SECRETS[0]))
    assert "may have trained" not in dict(checks(shop.folder))["data"]
    edit(shop.folder.settings_file, users={"choose": 0.4})
    forget_merchants()
    noted = dict(checks(shop.folder))["data"]
    assert "none of it is sent; choose in [users] is 0.4 and was 0.3 in training (put that back): those who choose may" in noted
