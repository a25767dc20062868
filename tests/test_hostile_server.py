"""Whatever a server asks for, and in whatever order, the policy's budget holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import rdp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.wire import HistogramTask, Statement

from .merchants import open_shop, public_and_trained, task, write_merchant

EPSILON, DELTA = 1.0, 1e-5
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "run": st.sampled_from(["a", "b", "a b/../c"]),
            "round": st.sampled_from([-1, 0, 1, 2, 3, 7, 100_000]),
            "part": st.sampled_from(["heads", "encoder", "histogram"]),
            "noise_multiplier": st.sampled_from([-1.0, 0.0, 1e-9, 0.2, 1.0, 5.0, 20.0, float("inf"), float("nan")]),
            "sample_rate": st.sampled_from([0.0, 0.1, 1.0, 2.0]),
            "local_steps": st.sampled_from([0, 1, 2]),
            "clip_norm": st.sampled_from([0.0, 0.5, 1e9, float("nan")]),
            "delta": st.sampled_from([1e-6, 1e-5, 0.5]),
            "unit": st.sampled_from(["user", "event"]),
        }
    ),
    min_size=1,
    max_size=5,
)


def independent_epsilon(released: list[Statement]) -> float:
    """Composition by another library, from what the replies themselves say was done."""
    account = rdp.RdpAccountant()
    for one in released:
        gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
        account.compose(dp_accounting.PoissonSampledDpEvent(one.sample_rate, gaussian), one.steps)
    return float(account.get_epsilon(DELTA))


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_merchant(tmp_path_factory.mktemp("shop"), epsilon=EPSILON, delta=DELTA, max_rounds=50)


def ask(sequence: list[dict], folder: Path, bert: Path) -> tuple[dict, list]:
    """The distinct releases of a sequence of requests, and the merchant's replies."""
    with tempfile.TemporaryDirectory() as state:
        shop = open_shop(folder, bert, Path(state))
        public, trained = public_and_trained(shop)
        released: dict[tuple, Statement] = {}
        replies = []
        for request in sequence:
            request = dict(request)
            try:
                if request["part"] == "histogram":
                    asked = HistogramTask(request["run"], request["noise_multiplier"], request["delta"], request["unit"])
                    reply = shop.histogram(asked, public["prior.keys"])
                else:
                    reply = shop.train(task(**request), trained, public)
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


def check(sequence: list[dict], folder: Path, bert: Path) -> None:
    released, replies = ask(sequence, folder, bert)
    if released:
        # RDP is the looser accountant: where the budget holds by PRV, RDP may be a little over it.
        assert independent_epsilon(list(released.values())) <= EPSILON * 1.35
    for reply in replies:
        assert reply.statement.status == "declined" or reply.statement.noise_multiplier >= 0.3


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(REQUESTS)
def test_no_sequence_of_requests_exceeds_the_budget(shop_folder: Path, tiny_bert_folder: Path, sequence: list[dict]) -> None:
    check(sequence, shop_folder, tiny_bert_folder)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(REQUESTS)
def test_no_sequence_of_a_thousand_exceeds_the_budget(shop_folder: Path, tiny_bert_folder: Path, sequence: list[dict]) -> None:
    check(sequence, shop_folder, tiny_bert_folder)


def test_an_honest_server_gets_rounds_until_the_budget_ends(shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    statuses = [shop.train(task(round=number, noise_multiplier=8.0), trained, public).statement for number in range(1, 12)]
    answered = [one.status for one in statuses].index("declined")
    assert 1 <= answered < 11
    assert statuses[answered].reason.startswith("budget: ")
    assert all(one.status == "declined" for one in statuses[answered:])


def test_a_stronger_request_is_honoured(shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    shop = open_shop(shop_folder, tiny_bert_folder, tmp_path)
    public, trained = public_and_trained(shop)
    reply = shop.train(task(noise_multiplier=200.0, clip_norm=0.01, delta=1e-9), trained, public)
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
    reply = shop.train(task(**weaker), trained, public)
    assert reply.statement.status == "declined"
    assert reply.statement.reason.startswith("policy: ") and word in reply.statement.reason
    assert not shop.ledger.path.exists() or not shop.ledger.releases()


def test_most_rounds_of_a_run_and_the_budget_of_a_period_are_kept(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = write_merchant(tmp_path / "shop", epsilon=5.0, period_epsilon=0.3, period_days=30, max_rounds=2)
    shop = open_shop(folder, tiny_bert_folder, tmp_path / "one")
    public, trained = public_and_trained(shop)
    reasons = [shop.train(task(round=n, noise_multiplier=100.0), trained, public).statement.reason for n in (1, 2, 3)]
    assert reasons[:2] == ["", ""] and "most rounds" in reasons[2]
    other = open_shop(folder, tiny_bert_folder, tmp_path / "two")
    assert "in 30 days" in other.train(task(noise_multiplier=3.0), trained, public).statement.reason


def test_noise_without_a_seed_differs_and_leaves_no_seed_behind(
    shop_folder: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    updates = {}
    for name, seed in (("deployed", None), ("simulated", 123456789)):
        for attempt in ("a", "b"):
            shop = open_shop(shop_folder, tiny_bert_folder, tmp_path / name / attempt, seed)
            public, trained = public_and_trained(shop)
            reply = shop.train(task(), trained, public)
            assert reply.statement.simulated is (seed is not None)
            updates[name, attempt] = b"".join(value.tobytes() for value in reply.arrays.values())
    assert updates["deployed", "a"] != updates["deployed", "b"]
    assert updates["simulated", "a"] == updates["simulated", "b"]
    for file in (tmp_path / "deployed").rglob("*"):
        assert not file.is_file() or (b"seed" not in file.read_bytes() and b"123456789" not in file.read_bytes())
