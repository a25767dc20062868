"""Whatever a server asks for, and in whatever order, the policy's budget holds."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.merchant import Merchant
from fedrec import wire
from fedrec.model.adapter import Arrays
from fedrec.privacy import rated_votes
from fedrec.wire import HistogramTask, Statement

from .merchants import open_shop, public_and_trained, task, write_merchant

EPSILON, DELTA = 1.0, 1e-5
OPENED: dict[tuple[Path, Path], tuple[Merchant, Arrays, Arrays]] = {}
HONEST = st.fixed_dictionaries(
    {
        "run": st.sampled_from(["a", "b", "a b/../c"]),
        "round": st.sampled_from([1, 1, 2, 3, 7]),
        "part": st.sampled_from(["heads", "heads", "encoder", "histogram"]),
        "noise_multiplier": st.sampled_from([4.0, 6.0, 6.0, 20.0]),
        "sample_rate": st.sampled_from([1.0, 1.0, 1.0, 0.5]),
        "local_steps": st.sampled_from([1, 1, 2]),
    }
)
HOSTILE = st.sampled_from(
    [
        *[{}] * 12,
        *({"noise_multiplier": value} for value in (-1.0, 0.0, 1e-9, 0.2, 0.5, float("inf"), float("nan"))),
        *({"sample_rate": value} for value in (0.0, 2.0)),
        *({"local_steps": value} for value in (0, 1000)),
        *({"clip_norm": value} for value in (0.0, 1e9, float("nan"))),
        *({"round": value} for value in (-1, 0, 100_000)),
        {"delta": 0.5},
        {"unit": "event"},
        {"unit": "event", "objective": "response"},
    ]
)
REQUESTS = st.lists(st.builds(lambda honest, change: {**honest, **change}, HONEST, HOSTILE), min_size=1, max_size=6)


def independent_epsilon(released: list[Statement]) -> float:
    """Composition by another library, from what the replies themselves say was done."""
    return _composed(tuple(sorted((one.noise_multiplier, one.sample_rate, one.steps) for one in released)))


@cache
def _composed(events: tuple[tuple[float, float, int], ...]) -> float:
    account = pld.PLDAccountant(value_discretization_interval=1e-3)
    for noise_multiplier, sample_rate, steps in events:
        gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
        account.compose(gaussian if sample_rate == 1 else dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), steps)
    return float(account.get_epsilon(DELTA))


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_merchant(tmp_path_factory.mktemp("shop"), epsilon=EPSILON, delta=DELTA, max_rounds=50)


def reopened(folder: Path, bert: Path, state: Path) -> tuple[Merchant, Arrays, Arrays]:
    """The merchant with a fresh ledger; its data and the public part are read once."""
    if (folder, bert) not in OPENED:
        shop = open_shop(folder, bert, state, seed=None)
        OPENED[folder, bert] = (shop, *public_and_trained(shop))
    known, public, trained = OPENED[folder, bert]
    site = replace(known.site, ledger=state / "ledger", replies=state / "replies")
    return Merchant(known.name, known.data, known.policy, site), public, trained


def ask(sequence: list[dict], folder: Path, bert: Path) -> tuple[dict, list]:
    """The distinct releases of a sequence of requests, and the merchant's replies."""
    with tempfile.TemporaryDirectory() as state:
        shop, public, trained = reopened(folder, bert, Path(state))
        released: dict[tuple, Statement] = {}
        replies = []
        for request in sequence:
            request = dict(request)
            try:
                if request["part"] == "histogram":
                    asked = HistogramTask(
                        request["run"], request["noise_multiplier"], request.get("delta", DELTA), request.get("unit", "user")
                    )
                    reply = shop.histogram(asked, public["prior.keys"])
                else:
                    reply = shop.train(task(shop, **request), trained, public)
            except (ValueError, TypeError):
                continue  # the ClientApp turns these into a decline without data
            replies.append(reply)
            if reply.statement.status == "ok":
                kept = released.setdefault(tuple(value.tobytes() for value in reply.arrays.values()), reply.statement)
                assert kept == reply.statement
            else:
                assert not reply.arrays
        assert shop.ledger.spent().value <= EPSILON
        assert len(shop.ledger.releases()) >= len(released)
        return released, replies


def check(sequence: list[dict], folder: Path, bert: Path) -> int:
    """Check one sequence; returns how many releases it got."""
    released, replies = ask(sequence, folder, bert)
    if released:
        # Both accountants round up; on this coarse grid the other one by up to 0.02.
        assert independent_epsilon(list(released.values())) <= EPSILON + 0.02
    for reply in replies:
        assert reply.statement.status == "declined" or reply.statement.noise_multiplier >= 0.3
    return len(released)


def attack(sequences: int, folder: Path, bert: Path) -> None:
    """Check that many random sequences; most of them have to release something, or nothing is tested."""
    released = []

    @settings(max_examples=sequences, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(REQUESTS)
    def check_one(sequence: list[dict]) -> None:
        released.append(check(sequence, folder, bert))

    check_one()
    assert sum(count > 0 for count in released) > sequences / 2
    assert max(released) > 1 or sequences < 100, "fifteen sequences may happen to get one release each"


def test_no_sequence_of_requests_exceeds_the_budget(shop_folder: Path, tiny_bert_folder: Path) -> None:
    attack(15, shop_folder, tiny_bert_folder)


@pytest.mark.slow
def test_none_of_a_thousand_sequences_exceeds_the_budget(shop_folder: Path, tiny_bert_folder: Path) -> None:
    attack(1000, shop_folder, tiny_bert_folder)


def test_an_honest_server_gets_rounds_until_the_budget_ends(shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    statuses = [shop.train(task(shop, round=number, noise_multiplier=8.0), trained, public).statement for number in range(1, 12)]
    answered = [one.status for one in statuses].index("declined")
    assert 1 <= answered < 11
    assert statuses[answered].reason.startswith("budget: ")
    assert all(one.status == "declined" for one in statuses[answered:])


def test_a_stronger_request_is_honoured(shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    reply = shop.train(task(shop, noise_multiplier=200.0, clip_norm=0.01, delta=1e-9), trained, public)
    assert reply.statement.status == "ok"
    assert reply.statement.noise_multiplier == 200.0


@pytest.mark.parametrize(
    ("weaker", "word"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"unit": "event"}, "unit"),
        ({"clip_norm": 1e6}, "clip_norm"),
        ({"delta": 0.1}, "delta"),
    ],
)
def test_a_weaker_request_is_refused_with_its_reason(
    shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path, weaker: dict, word: str
) -> None:
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    reply = shop.train(task(shop, **weaker), trained, public)
    assert reply.statement.status == "declined"
    assert reply.statement.reason.startswith("policy: ") and word in reply.statement.reason
    assert not shop.ledger.path.exists() or not shop.ledger.releases()


def test_no_record_of_impressions_is_an_event(shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """The task is refused as it is read, whatever the policy's unit, for one event moves a whole record of impressions."""
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    sent = wire.encode_train(task(shop, objective="response"), trained, "", public)
    sent["task"]["unit"] = "event"
    with pytest.raises(wire.WireError, match="unit: expected 'user'"):
        wire.decode_train(cast(Message, SimpleNamespace(content=sent)))
    with pytest.raises(ValueError, match="unit: expected 'user'"):
        task(shop, objective="response", unit="event")


def test_no_rated_histogram_is_of_events() -> None:
    """Without the latest of two events the earlier rating of the item counts: one event moves a sum by more than 1."""
    later, earlier = (rated_votes(np.zeros(1, int), np.zeros(1, int), np.array([said]), 2) for said in (-1.0, 1.0))
    assert np.linalg.norm(later - earlier) > 1
    keys = np.arange(3, dtype=np.uint64)
    sent = wire.encode_histogram_task(HistogramTask("run", 6.0, DELTA, "user", ratings=True), keys)
    assert wire.decode_histogram_task(cast(Message, SimpleNamespace(content=sent)))
    sent["task"]["unit"] = "event"
    with pytest.raises(wire.WireError, match="unit: expected 'user'"):
        wire.decode_histogram_task(cast(Message, SimpleNamespace(content=sent)))


def test_most_rounds_of_a_run_and_the_budget_of_a_period_are_kept(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = write_merchant(tmp_path / "shop", epsilon=5.0, period_epsilon=0.3, period_days=30, max_rounds=2)
    shop = open_shop(folder, tiny_bert_folder, tmp_path / "one")
    public, trained = public_and_trained(shop)
    reasons = [shop.train(task(shop, round=n, noise_multiplier=100.0), trained, public).statement.reason for n in (1, 2, 3)]
    assert reasons[:2] == ["", ""] and "most rounds" in reasons[2]
    other = open_shop(folder, tiny_bert_folder, tmp_path / "two")
    assert "in 30 days" in other.train(task(other, noise_multiplier=3.0), trained, public).statement.reason


def test_noise_without_a_seed_differs_and_leaves_no_seed_behind(
    shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    updates = {}
    for name, seed in (("deployed", None), ("simulated", 123456789)):
        for attempt in ("a", "b"):
            shop = open_shop(shop_folder, tiny_bert_folder, tmp_path / name / attempt, seed)
            public, trained = public_and_trained(shop)
            reply = shop.train(task(shop), trained, public)
            assert reply.statement.simulated is (seed is not None)
            updates[name, attempt] = b"".join(value.tobytes() for value in reply.arrays.values())
    assert updates["deployed", "a"] != updates["deployed", "b"]
    assert updates["simulated", "a"] == updates["simulated", "b"]
    for file in (tmp_path / "deployed").rglob("*"):
        assert not file.is_file() or (b"seed" not in file.read_bytes() and b"123456789" not in file.read_bytes())
