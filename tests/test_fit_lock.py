"""Two fits of one folder at once: the second waits, and goes by what is there when its turn comes."""

# ruff: noqa: F811

from __future__ import annotations

import contextlib
import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fedrec.errors import InputError
from fedrec.recommender.merchant_text import LOCK, MerchantPlace

from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop

WAITING = "another fit of this folder is going on; waiting for it to end"


@pytest.fixture
def shop(tmp_path: Path, tiny_bert_folder: Path) -> Path:
    return make_shop(tmp_path / "shop", tiny_bert_folder, users=60)


def another_fit(shop: Path, ends: Callable[[], object]) -> threading.Timer:
    """Another fit is going on, which ends in half a second with `ends`."""

    def end() -> None:
        try:
            ends()
        finally:
            held.close()

    held = contextlib.ExitStack()
    held.enter_context(MerchantPlace(shop).fitting(lambda: pytest.fail("nobody else is there")))
    timer = threading.Timer(0.5, end)
    timer.start()
    return timer


def test_the_second_waits_and_reads_its_data_afterwards(shop: Path, fedrec: Fedrec) -> None:
    def fewer() -> None:
        events = pd.read_csv(shop / "events.csv")
        events[events["user_id"] != "customer-7-secret"].to_csv(shop / "events.csv", index=False)

    other = another_fit(shop, fewer)
    done = fedrec("merchant", "fit", shop, "--json")
    other.join()
    assert done.status == 0 and WAITING in done.err and json.loads(done.out)["users"] == 59
    assert stat.S_IMODE((shop / "own" / LOCK).stat().st_mode) == 0o600
    assert WAITING not in fedrec("merchant", "fit", shop).err


def test_a_person_is_not_forgotten_while_a_fit_that_may_know_them_goes_on(shop: Path, fedrec: Fedrec) -> None:
    assert fedrec("merchant", "fit", shop).status == 0
    before = (shop / "events.csv").read_bytes()
    untouched = []
    other = another_fit(shop, lambda: untouched.append((shop / "events.csv").read_bytes()))
    done = fedrec("merchant", "forget", shop, "customer-7-secret", "--yes", "--json")
    other.join()
    assert done.status == 0 and WAITING in done.err and json.loads(done.out)["own_layer"] == "fitted"
    assert untouched == [before] and b"customer-7-secret" not in (shop / "events.csv").read_bytes()


def test_a_folder_that_cannot_be_locked_is_refused(shop: Path) -> None:
    (shop / "own" / LOCK).mkdir()
    with pytest.raises(InputError, match="cannot be locked"), MerchantPlace(shop).fitting(lambda: None):
        pass
