"""What goes with what, from one user's part of the sum to what a run learns; under both trust models."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.merchant import Merchant
from clients.site import Site
from fedrec import wire
from fedrec.cli.console import out
from fedrec.cli.terminal import show_results
from fedrec.config import RunConfig
from fedrec.data import Histories, MerchantData
from fedrec.errors import InputError
from fedrec.merchant import ModelSettings
from fedrec.model.adapter import CENTRE
from fedrec.model.complements import (
    KINDS,
    LIFT,
    PAIRS,
    PAIRS_NOISE,
    Complements,
    kinds_of,
    kinds_of_catalogue,
    numbers_of,
    unpacked,
)
from fedrec.model.encoder import load_encoder
from fedrec.model.versions import Versions
from fedrec.privacy import Policy, Release, over_budget, plan_noise, votes
from fedrec.privacy.pairs import basket_pairs, packed
from fedrec.privacy.planning import solve
from fedrec.report.run_report import write_report
from fedrec.wire import ComplementTask
from server.evaluation import COUNTS, FLOOR
from server.results import write_results
from server.run_folder import RunFolder
from server.statistics import COMPLEMENTS_FILE, with_complements
from simulations.run import resume, simulate

from .conftest import make_catalogue
from .helpers import ledger_rounds, ledgers, make_federation, recorded, settings_of

ITEMS, KIND_COUNT, USERS = 9, 4, 5
KIND = np.arange(ITEMS) % KIND_COUNT
Rows = list[tuple[int, int, int]]
"""User, basket, item."""
rows_of = st.lists(st.tuples(st.integers(0, USERS), st.integers(0, 3), st.integers(0, ITEMS - 1)), max_size=40)


def summed(rows: Rows) -> np.ndarray:
    users, baskets, items = np.array(sorted(rows), dtype=np.int64).reshape(-1, 3).T
    return basket_pairs(users, baskets, items, KIND, KIND_COUNT)


def naive(rows: Rows) -> np.ndarray:
    """Pair by pair, as the docstring says it."""
    total = np.zeros((KIND_COUNT, KIND_COUNT))
    for user in {row[0] for row in rows}:
        part, baskets = np.zeros_like(total), {row[1] for row in rows if row[0] == user}
        for basket in baskets:
            items = {row[2] for row in rows if row[:2] == (user, basket)}
            for one in items:
                for other in items - {one}:
                    part[KIND[one], KIND[other]] += 1 / (len(items) * (len(items) - 1))
        total += part / (part.sum() or 1)
    return packed(total)


@given(rows_of, st.integers(0, USERS))
@settings(max_examples=80, deadline=None)
def test_one_user_moves_the_sum_by_one_and_its_norm_by_at_most_one(rows: Rows, user: int) -> None:
    without = [row for row in rows if row[0] != user]
    moved = summed(rows) - summed(without)
    own = {row for row in rows if row[0] == user}
    together = any(a[1] == b[1] and a[2] != b[2] for a in own for b in own)
    assert unpacked(moved).sum() == pytest.approx(1.0 if together else 0.0, abs=1e-9)
    assert np.linalg.norm(moved) <= 1 + 1e-9
    of_one_kind = {KIND[a[2]] for a in own for b in own if a[1] == b[1] and a[2] != b[2]}
    if len(of_one_kind) == 1:
        assert np.linalg.norm(moved) == pytest.approx(1.0)
    assert summed(rows) == pytest.approx(naive(rows)) == summed([*rows, *rows])


def test_packing_keeps_the_norm_and_can_be_undone() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    matrix += matrix.T
    assert np.linalg.norm(packed(matrix)) == pytest.approx(np.linalg.norm(matrix))
    assert unpacked(packed(matrix)) == pytest.approx(matrix)


def made(users: int, noise: float, seed: int = 0) -> Complements:
    """Of kinds 0 and 1 that are bought together, and 2 and 3 that are, all alike popular."""
    generator = np.random.default_rng(seed)
    of = np.arange(4)
    pairs = [sorted(generator.choice(of, 2, replace=False)) if generator.random() < 0.5 else [0, 1] for _ in range(users // 2)]
    pairs += [sorted(generator.choice(of, 2, replace=False)) if generator.random() < 0.5 else [2, 3] for _ in range(users // 2)]
    rows = np.array([(user, 0, item) for user, pair in enumerate(pairs) for item in pair]).T
    released = basket_pairs(*rows, np.arange(4), 4) + generator.normal(0, max(noise, 1e-12), numbers_of(4))
    return Complements.from_release(released, noise, np.eye(4, dtype=np.float32), np.ones(4))


def test_lift_is_over_chance_and_shrinks_with_the_noise() -> None:
    e = np.eye(4, dtype=np.float32)
    exact = made(4000, 0.0)
    scores = exact.scores(e[[0]], e)
    assert scores[1] > 1 > 0 > scores[2] == pytest.approx(scores[3], abs=0.15)
    assert scores[0] == pytest.approx(-1, abs=0.1), "no basket has two items of a kind"
    assert exact.scores(e[[0, 1]], e)[2] == pytest.approx((scores[2] + exact.scores(e[[1]], e)[2]) / 2)
    assert not exact.scores(e[:0], e).any()
    noisy = [np.abs(made(4000, noise).lift).mean() for noise in (0.0, 100.0, 3000.0)]
    assert noisy[0] > noisy[1] > noisy[2] and noisy[2] < 0.5 * noisy[0]
    assert np.abs(made(4000, 30.0).lift - exact.lift).max() < 0.4


@pytest.mark.parametrize("popularity", [(0.25,) * 4, (0.7, 0.1, 0.1, 0.1)], ids=["uniform", "skewed"])
def test_independent_baskets_have_lift_one(popularity: tuple[float, ...]) -> None:
    """With the popularity of a histogram, and without: of baskets of two and three, with many items of each kind."""
    rng, each = np.random.default_rng(0), 1000
    sizes = rng.integers(2, 4, 6000)
    users = np.repeat(np.arange(len(sizes)), sizes)
    baskets = rng.integers(0, 2, len(sizes)).repeat(sizes)
    items = rng.choice(4, len(users), p=popularity) * each + rng.integers(0, each, len(users))
    kind = np.arange(4 * each) // each
    sold = np.bincount(kind, votes(users, items, len(kind)))
    for known in (sold, None):
        found = Complements.from_release(basket_pairs(users, baskets, items, kind, 4), 0.0, np.eye(4, dtype=np.float32), known)
        assert np.abs(found.lift).max() < 0.15, known


def test_kinds_depend_on_public_texts_and_a_seed() -> None:
    e = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    first, again = kinds_of_catalogue(e, 3), kinds_of_catalogue(e, 3)
    assert np.array_equal(first, again) and first.shape == (7, 8) and first.dtype == np.float32
    assert np.linalg.norm(first, axis=1) == pytest.approx(1.0, abs=1e-5)
    naive_kinds = [int(np.argmin([np.linalg.norm(one - centre) for centre in first])) for one in e]
    assert kinds_of(e, first).tolist() == naive_kinds


# -- what leaves a merchant -------------------------------------------------------------------------------------------------


def shop_of(folder: Path, bert: Path, baskets: list[list[int]]) -> Merchant:
    """A deployed merchant of users who bought one basket each."""
    items = [np.unique(np.array(own, dtype=np.int64)) for own in baskets]
    offsets = np.cumsum([0, *map(len, items)]).astype(np.int64)
    histories = Histories(
        tuple(f"u{u}" for u in range(len(items))), offsets, np.concatenate(items), np.zeros(offsets[-1], dtype=np.int64)
    )
    model = ModelSettings(encoder=str(bert), device="cpu")
    site = Site(folder, folder / "ledger", folder / "replies", model, None, folder / "key", folder / "roster", folder / "model")
    return Merchant("shop", MerchantData(make_catalogue(ITEMS), histories), Policy(epsilon=3.0, delta=1e-5, population=5), site)


def request_of(bert: Path, noise: float = 2.0, run: str = "run", **changed: Any) -> tuple[ComplementTask, dict[str, np.ndarray]]:
    encoder = load_encoder(str(bert), 1, 2, 16, "cpu", 8)
    e = encoder.embed(make_catalogue(ITEMS)).numpy()
    values = {"unit": "user", "trunk": encoder.fingerprint, "encoder_layers": 1, "encoder_rank": 2, "max_tokens": 16}
    task = ComplementTask(run=run, noise_multiplier=noise, delta=1e-5, **{**values, **changed})  # type: ignore[arg-type]
    return task, {CENTRE: np.zeros(e.shape[1], np.float32), KINDS: kinds_of_catalogue(e, 0)}


def message_of(task: ComplementTask, arrays: dict[str, np.ndarray]) -> Message:
    """What is read of a request; a real message needs a run."""
    return cast(Message, SimpleNamespace(content=wire.encode_complement_task(task, arrays)))


def asked(shop: Merchant, task: ComplementTask, arrays: dict[str, np.ndarray]) -> wire.Reply:
    from clients.statistics import complements

    with patch.object(os, "urandom", lambda count: hashlib.shake_256(b"noise").digest(count)):
        return shop.statistic(complements(shop, task, arrays))


def test_one_user_moves_what_leaves_by_at_most_one(tmp_path: Path, tiny_bert_folder: Path) -> None:
    baskets = [[0, 1, 2], [3, 4], [5], [1, 6, 7, 8]]
    request = request_of(tiny_bert_folder)
    whole = asked(shop_of(tmp_path / "whole", tiny_bert_folder, baskets), *request).arrays[wire.COMPLEMENTS]
    for user, expected in ((0, 1.0), (2, 0.0), (3, 1.0)):
        without = [[] if one == user else own for one, own in enumerate(baskets)]
        reply = asked(shop_of(tmp_path / str(user), tiny_bert_folder, without), *request)
        moved = whole.astype(np.float64) - reply.arrays[wire.COMPLEMENTS]
        assert np.linalg.norm(moved) <= 1 + 1e-5
        assert unpacked(moved).sum() == pytest.approx(expected, abs=1e-5)


def test_it_is_one_line_of_the_ledger_and_ends_with_the_budget(tmp_path: Path, tiny_bert_folder: Path) -> None:
    shop = shop_of(tmp_path, tiny_bert_folder, [[0, 1], [2, 3]])
    first = asked(shop, *request_of(tiny_bert_folder, 2.0))
    again = asked(shop, *request_of(tiny_bert_folder, 2.0))
    assert first.statement == again.statement and np.array_equal(first.arrays[wire.COMPLEMENTS], again.arrays[wire.COMPLEMENTS])
    (line,) = shop.ledger.releases()
    assert (line.mechanism, line.round, line.noise_multiplier, line.sample_rate, line.steps, line.clip_norm) == (
        "complements", -1, 2.0, 1.0, 1, 1.0,
    )  # fmt: skip
    refused = asked(shop, *request_of(tiny_bert_folder, 1.0, run="more"))
    assert refused.statement.status == "declined" and refused.statement.reason.startswith("budget:") and not refused.arrays
    other = asked(shop, *request_of(tiny_bert_folder, 9.0, run="other", trunk="0" * 16))
    assert other.statement.reason == "the encoder here is not the server's"
    assert len(shop.ledger.releases()) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays | {KINDS: np.full_like(arrays[KINDS], np.nan)},
        lambda arrays: arrays | {KINDS: arrays[KINDS][:, :-1]},
        lambda arrays: arrays | {KINDS: np.zeros((513, arrays[KINDS].shape[1]), np.float32)},
        lambda arrays: arrays | {"more": arrays[CENTRE]},
        lambda arrays: {KINDS: arrays[KINDS]},
    ],
    ids=["nan", "width", "many", "more", "no centre"],
)
def test_a_request_that_is_not_one_is_refused(tiny_bert_folder: Path, spoil: Callable[[Any], Any]) -> None:
    task, arrays = request_of(tiny_bert_folder)
    assert wire.decode_complement_task(message_of(task, arrays))[0] == task
    with pytest.raises(wire.WireError):
        wire.decode_complement_task(message_of(task, spoil(arrays)))


def test_only_whole_users_are_protected_by_it(tiny_bert_folder: Path) -> None:
    with pytest.raises(wire.WireError, match="unit"):
        wire.decode_complement_task(message_of(*request_of(tiny_bert_folder, unit="event")))
    with pytest.raises(ValueError, match="complement_share needs unit"):
        RunConfig(complement_share=0.1, unit="event")
    with pytest.raises(ValueError, match="complement_share needs histogram_share over 0"):
        RunConfig(complement_share=0.1, histogram_share=0.0)
    with pytest.raises(ValueError, match="leave the rounds nothing"):
        RunConfig(complement_share=0.5, histogram_share=0.5)


def test_a_release_is_no_round_of_a_policy() -> None:
    policy, mechanisms = Policy(epsilon=50.0, delta=1e-5, population=5, max_rounds=2), ("complements", "histogram", "dp-sgd")
    lines = [Release("run", n, name, 9.0, 1.0, 1, 1.0, "user", 1e-5) for n, name in enumerate((*mechanisms, "dp-sgd"), -1)]  # type: ignore[arg-type]
    assert [over_budget(policy, lines[:n], line) for n, line in enumerate(lines)] == [None] * 4
    over = over_budget(policy, lines, Release("run", 3, "dp-sgd", 9.0, 1.0, 1, 1.0, "user", 1e-5))
    assert over == "policy: round 3 is over the policy's most rounds, 2"


def test_a_plan_counts_it() -> None:
    config = RunConfig(rounds=4, encoder_rounds=0, complement_share=0.1)
    plan = plan_noise(config)
    without = plan_noise(config.model_copy(update={"complement_share": 0.0}))
    assert without.complements is None and plan.complements == pytest.approx(plan.histogram or 0, rel=1e-4)
    assert plan.of("heads") > without.of("heads")
    solved = solve(users=500, epsilon=8.0, delta=1e-5, rounds=4, sample_rate=1.0, complement_share=0.1)
    assert solved.complement_noise_multiplier == plan.complements and solved.noise_multiplier == plan.of("heads")
    assert solved.epsilon_without_histogram < solved.epsilon_spent <= 8.0
    many = solve(users=500, epsilon=8.0, delta=1e-5, rounds=4, sample_rate=1.0, complement_share=0.1, merchants=7, dropouts=1)
    shared, sigma = many.secure_aggregation, many.complement_noise_multiplier
    assert shared is not None and shared.honest == 5 and sigma is not None
    assert shared.complement_noise_multiplier_alone == pytest.approx(sigma / 5**0.5)
    assert shared.complement_noise_multiplier_of_sum == pytest.approx(sigma * (7 / 5) ** 0.5)
    with pytest.raises(InputError, match="a smaller histogram_share or complement_share"):
        solve(users=500, epsilon=8.0, delta=1e-5, noise_multiplier=0.1, sample_rate=1.0, complement_share=0.3)
    rounds = solve(users=500, epsilon=8.0, delta=1e-5, noise_multiplier=3.0, sample_rate=1.0, complement_share=0.3)
    more = solve(users=500, epsilon=8.0, delta=1e-5, noise_multiplier=3.0, sample_rate=1.0)
    assert rounds.rounds < more.rounds


# -- runs -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["local", pytest.param("secure-aggregation", marks=pytest.mark.slow)])
def test_a_run_learns_it_and_sends_it_home(trust: str, tiny_bert_folder: Path, tmp_path: Path) -> None:
    federation = make_federation(tmp_path, merchants=4, users=30, policy={"trust": trust})
    config = settings_of(tiny_bert_folder, epsilon=8.0, rounds=1, encoder_rounds=0, trust=trust, complement_share=0.2)
    with recorded(deliveries=True) as crossed:
        folder = simulate(federation, config, tmp_path / "run")
    assert ledger_rounds(folder) == {f"m{i}": [-1, 0, 1] for i in range(4)}
    assert all(ledger.spent().value <= 8.0 for ledger in ledgers(folder).values())
    mechanisms = {release.mechanism for ledger in ledgers(folder).values() for release in ledger.releases()}
    assert mechanisms == {"complements", "histogram", "dp-sgd"}
    kind = "train.complements" if trust == "local" else "train.mask_complements"
    replies = [reply for request, reply in crossed if request.metadata.message_type == kind]
    name, dtype = (wire.COMPLEMENTS, np.float32) if trust == "local" else (wire.MASKED, np.uint32)
    for reply in replies:
        assert set(reply.content) <= {"arrays", "statement", "secure"} and set(reply.content["statement"]) == wire.STATEMENT_KEYS
        ((found, value),) = wire.from_record(reply.content["arrays"]).items()
        assert (found, value.dtype) == (name, dtype)
    said = json.loads((folder.path / COMPLEMENTS_FILE).read_text())
    assert said["took_part"] == [f"m{i}" for i in range(4)] and value.shape == (said["numbers"],) == (numbers_of(said["kinds"]),)
    learned = Complements.from_arrays(folder.load().public)  # type: ignore[union-attr]
    assert learned is not None and learned.lift.shape == (said["kinds"],) * 2 and np.isfinite(learned.lift).all()
    shop = Versions(folder.path / "models" / "m0")
    arrays, _ = shop.read(shop.names()[-1])
    assert np.array_equal(arrays[LIFT], learned.lift), "it comes home with the adapter"
    assert [line["round"] for line in folder.metrics()] == [0, 1], "it is no round"
    assert_it_is_reported(folder, write_results(folder, federation, simulation=True))


def assert_it_is_reported(folder: RunFolder, results: dict[str, Any]) -> None:
    """Who took part, who declined and why, what it cost one who declined all that came later, and an abandoned one."""
    release, lines = results["complements"], folder.metrics()
    text = " ".join(write_report(folder.path, folder.config, lines, results).read_text().split())
    words = f"What goes with what was learned of {release['kinds']} kinds, once, from 4 of 4 merchants that answered."
    assert words in text and "<td>what goes with what</td><td></td><td>4</td>" in text
    only_then = {**release["privacy"]["m0"], "epsilon": 123.456}
    abandoned = {
        **release, "took_part": [], "declined": {"m9": "budget: <b>"}, "privacy": {"m8": only_then},
        "abandoned": "2 of 4 merchants sent their masked sum, 3 are needed",
    }  # fmt: skip
    changed = {**results, "complements": abandoned}
    text = " ".join(write_report(folder.path, folder.config, lines, changed).read_text().split())
    assert "m9 declined: budget: &lt;b&gt;" in text and "<td>m8</td><td>123.456</td>" in text
    with out.capture() as printed:
        show_results(folder.config, changed, lines)
    said = " ".join(printed.get().split())
    assert "123.456" in said and "rounds abandoned" not in text
    for shown in (text, said):
        assert "was not learned, no sum was opened: 2 of 4 merchants sent their masked sum, 3 are needed." in shown


def test_without_popularity_chance_is_what_the_release_says(tiny_bert_folder: Path) -> None:
    """As where the histogram's secure sum was abandoned: its counts are all zero."""
    encoder, catalogue, rng = (
        load_encoder(str(tiny_bert_folder), 1, 2, 16, "cpu", 8),
        make_catalogue(ITEMS),
        np.random.default_rng(0),
    )
    centres = kinds_of_catalogue(encoder.embed(catalogue).numpy(), 0)
    shares = np.linspace(1, 3, len(centres)) / np.linspace(1, 3, len(centres)).sum()
    public = {
        CENTRE: np.zeros(centres.shape[1], np.float32), KINDS: centres, PAIRS_NOISE: np.zeros(1, np.float32),
        PAIRS: packed(1e4 * np.outer(shares, shares)).astype(np.float32),
        COUNTS: np.zeros(ITEMS, np.float32), FLOOR: np.ones(1, np.float32),
    }  # fmt: skip
    assert with_complements(public, catalogue, encoder)[LIFT] == pytest.approx(0.0, abs=1e-3)
    known = with_complements(public | {COUNTS: rng.uniform(1, 9, ITEMS).astype(np.float32)}, catalogue, encoder)
    assert np.abs(known[LIFT]).max() > 0.1 and not {PAIRS, PAIRS_NOISE} & known.keys()


@pytest.mark.slow
def test_a_run_that_was_killed_after_the_release_asks_for_it_once(tiny_bert_folder: Path, tmp_path: Path) -> None:
    federation = make_federation(tmp_path, merchants=3, users=30)
    config = settings_of(tiny_bert_folder, epsilon=8.0, rounds=1, encoder_rounds=0, complement_share=0.2)
    with patch("server.strategy.PrivateLora.collect_priors", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        simulate(federation, config, tmp_path / "run")
    with recorded() as crossed:
        folder = resume(tmp_path / "run")
    assert ledger_rounds(folder) == {f"m{i}": [-1, 0, 1] for i in range(3)}
    assert not any(request.metadata.message_type == "train.complements" for request, _ in crossed)
    assert LIFT in folder.load().public  # type: ignore[union-attr]
