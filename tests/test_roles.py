"""Who trains, who chooses and who is measured: the same whenever it is asked, by a secret; only the first are in a round."""

from __future__ import annotations

import os
import pickle
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import clients.merchant
import clients.statistics
from clients.merchant import Merchant, forget_merchants, open_merchant
from fedrec.data import MerchantData, load_merchant
from fedrec.data.roles import SECRET_FILE, UserShares, own_secret, roles_of
from fedrec.errors import InputError
from fedrec.merchant import OWN, read_merchant_file
from fedrec.model.adapter import Arrays
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.training import build_records
from fedrec.wire import HistogramTask

from .conftest import make_catalogue, make_histories
from .helpers import subset
from .merchants import open_shop, public_and_trained, task, write_merchant

SECRET = bytes(range(32))
USERS = [f"user {number}" for number in range(4000)]


def names(users: list[str], chosen: np.ndarray) -> set[str]:
    return {users[number] for number in chosen}


def test_a_role_does_not_depend_on_the_other_users() -> None:
    shares = UserShares(choose=0.2, measure=0.3)
    everyone = roles_of(USERS, shares, SECRET)
    parts = [everyone.train, everyone.choose, everyone.measure]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(USERS))), "each has one"
    assert all((np.diff(part) > 0).all() for part in parts)
    some = ["new", *reversed(USERS[100:300]), "newer"]
    again = roles_of(some, shares, SECRET)
    for part, whole in zip([again.train, again.choose, again.measure], parts, strict=True):
        assert names(some, part) - {"new", "newer"} == names(USERS, whole) & set(some)


def test_the_shares_are_about_right_and_moving_one_moves_few() -> None:
    found = roles_of(USERS, UserShares(), SECRET)
    assert [len(part) / len(USERS) for part in (found.train, found.choose, found.measure)] == pytest.approx(
        [0.8, 0.1, 0.1], abs=0.02
    )
    assert set(found.choose) <= set(roles_of(USERS, UserShares(choose=0.2), SECRET).choose)
    off = roles_of(USERS, UserShares(choose=0, measure=0), SECRET)
    assert len(off.train) == len(USERS) and not len(off.choose) and not len(off.measure)
    assert not len(roles_of(USERS, UserShares(measure=0), SECRET).measure)
    assert [len(part) for part in vars(roles_of([], UserShares(), SECRET)).values()] == [0, 0, 0]


def test_another_secret_gives_other_roles() -> None:
    shares = UserShares(choose=0, measure=0.4)
    first, second = (set(roles_of(USERS, shares, secret).measure.tolist()) for secret in (SECRET, SECRET[::-1]))
    assert len(first & second) / len(first) == pytest.approx(0.4, abs=0.05), "no more in common than by chance"


def test_a_secret_is_drawn_once_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shop" / OWN
    first = own_secret(folder)
    assert len(first) == 32 and own_secret(folder) == first != own_secret(tmp_path / "other")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / SECRET_FILE).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [SECRET_FILE]


def test_two_at_once_get_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, link = threading.Barrier(2), os.link

    def together(source: Path, target: Path) -> None:
        both.wait(10)  # neither has seen the other's
        link(source, target)

    monkeypatch.setattr(os, "link", together)
    with ThreadPoolExecutor(2) as pool:
        for round in range(5):
            folder = tmp_path / str(round)
            found = list(pool.map(own_secret, [folder, folder]))
            assert found[0] == found[1] == (folder / SECRET_FILE).read_bytes()
            assert [path.name for path in folder.iterdir()] == [SECRET_FILE]


@pytest.mark.parametrize("content", [b"", SECRET[:-1], SECRET + b"\n"])
def test_a_cut_secret_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_bytes(content)
    with pytest.raises(InputError, match=f"holds {len(content)} bytes"):
        own_secret(tmp_path)
    assert (tmp_path / SECRET_FILE).read_bytes() == content, "it is not replaced either"


def test_a_secret_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / OWN).write_text("a file is in the way")
    with pytest.raises(InputError, match="cannot be read or written"):
        own_secret(tmp_path / OWN)


def test_some_users_alone_are_as_they_were_among_all() -> None:
    histories = make_histories(20, make_catalogue(15))
    for users in ([], [3], [19, 0, 7], list(range(20))):
        taken, oracle = histories.take(np.array(users, dtype=np.int64)), subset(histories, users)
        assert taken.user_ids == oracle.user_ids and len(taken) == len(users)
        for name in ("offsets", "items", "baskets"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(oracle, name))
            assert getattr(taken, name).dtype == np.int64
        for number, user in enumerate(users):
            for one, other in zip(taken.of(number), histories.of(user), strict=True):
                np.testing.assert_array_equal(one, other)


# Who is in a round


def opened(folder: Path, bert: Path, state: Path, seed: int | None) -> Merchant:
    """The merchant as a message finds it."""
    forget_merchants()
    return open_merchant(open_shop(folder, bert, state, seed).site)


def with_shares(folder: Path, **shares: float) -> None:
    """Give a merchant a `[users]` table."""
    found = read_merchant_file(folder / "merchant.toml")
    settings = {"name": found.name, "privacy": found.privacy.model_dump(exclude_none=True), "users": shares}
    (folder / "merchant.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


def train_ids(folder: Path) -> tuple[set[str], MerchantData]:
    """Who trains by the recommender's account of it, and all there is."""
    place, data = MerchantPlace(folder), load_merchant(folder)
    return names(list(data.histories.user_ids), place.roles(data).train), data


@pytest.mark.parametrize(("seed", "shares", "some"), [
    (None, None, True), (None, {"choose": 0.3, "measure": 0.3}, True), (None, {"choose": 0, "measure": 0}, False),
    (0, None, False), (0, {"choose": 0.2, "measure": 0.2}, True), (0, {"choose": 0, "measure": 0}, False),
])  # fmt: skip
def test_a_merchant_is_opened_with_those_who_train(
    seed: int | None, shares: dict[str, float] | None, some: bool, tmp_path: Path, tiny_bert_folder: Path
) -> None:
    folder = write_merchant(tmp_path / "shop", users=60)
    if shares is not None:
        with_shares(folder, **shares)
    shop = opened(folder, tiny_bert_folder, tmp_path / "state", seed)
    assert (folder / OWN).exists() == some, "nobody draws a secret where nobody is held back"
    expected, data = train_ids(folder)
    held = set(shop.data.histories.user_ids)
    assert held == (expected if some else set(data.histories.user_ids))
    assert (len(held) < 60) == some
    assert shop.data.catalogue.digest == data.catalogue.digest, "the catalogue is public and whole"


def test_a_round_and_a_histogram_see_exactly_those_who_train(
    tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_merchant(tmp_path / "shop", users=60, epsilon=50.0)
    with_shares(folder, choose=0.2, measure=0.2)
    shop = opened(folder, tiny_bert_folder, tmp_path / "state", seed=None)
    expected, data = train_ids(folder)
    numbers = [number for number, name in enumerate(data.histories.user_ids) if name in expected]
    oracle = subset(data.histories, numbers)

    voted: list[np.ndarray] = []
    original = clients.statistics.votes

    def watched(users: np.ndarray, bought: np.ndarray, *rest: object) -> np.ndarray:
        voted.append(np.stack([users, bought]))
        return original(users, bought, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(clients.statistics, "votes", watched)
    reply = shop.histogram(HistogramTask("run", 20.0, 1e-5, "user"), data.catalogue.keys)
    assert reply.statement.status == "ok"
    owner = np.repeat(np.arange(len(oracle)), np.diff(oracle.offsets))
    assert sorted(map(tuple, voted[0].T.tolist())) == sorted(zip(owner.tolist(), oracle.items.tolist(), strict=True))

    seen: list[object] = []
    original_train = clients.merchant.train_round

    def watched_train(task: object, catalogue: object, records: object, **named: object) -> Arrays:
        seen.append(records)
        return original_train(task, catalogue, records, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(clients.merchant, "train_round", watched_train)
    public, trained = public_and_trained(shop)
    asked = task(shop)
    assert shop.train(asked, trained, public).statement.status == "ok"
    alone = build_records(oracle, history=asked.history, positions=asked.positions, decay=asked.decay, unit="user", merge=True)
    assert pickle.dumps(seen[0]) == pickle.dumps(alone)
    everyone = build_records(
        data.histories, history=asked.history, positions=asked.positions, decay=asked.decay, unit="user", merge=True
    )
    assert pickle.dumps(everyone) != pickle.dumps(alone)


def test_the_roles_outlast_the_process_and_new_users_change_nobodys(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = write_merchant(tmp_path / "shop", users=40)
    first = set(opened(folder, tiny_bert_folder, tmp_path / "state", None).data.histories.user_ids)
    secret = (folder / OWN / SECRET_FILE).read_bytes()
    write_merchant(folder, users=80)  # the first forty again, and others
    second = set(opened(folder, tiny_bert_folder, tmp_path / "state", None).data.histories.user_ids)
    old = {f"u{number}" for number in range(40)}
    assert second & old == first and second - old and (folder / OWN / SECRET_FILE).read_bytes() == secret


def test_a_merchant_without_a_readable_secret_has_no_part_in_a_round(tmp_path: Path, tiny_bert_folder: Path) -> None:
    folder = write_merchant(tmp_path / "shop")
    (folder / OWN).mkdir()
    (folder / OWN / SECRET_FILE).write_bytes(b"cut")
    site = replace(open_shop(folder, tiny_bert_folder, tmp_path / "state").site, seed=None)
    forget_merchants()
    with pytest.raises(InputError, match="holds 3 bytes"):
        open_merchant(site)
