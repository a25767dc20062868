"""Ratings: what counts as one, what users' own say of the next, what is expected of items, and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, ndcg_score, root_mean_squared_error
from typer.testing import CliRunner

from fedrec.cli.main import app
from fedrec.config import load_config
from fedrec.data import load_central, load_merchant
from fedrec.data.rated import SHRINK, from_units, in_units
from fedrec.data.split import split_source
from fedrec.errors import InputError
from fedrec.evaluation import Rated, fit_ratings, gain_in_ratings, summarise_ratings
from fedrec.objectives import OBJECTIVES, Asked, Known
from fedrec.objectives.expected import expected_ratings
from fedrec.objectives.rating import rating_records
from fedrec.privacy import rated_votes

from .test_objectives import ITEMS, histories_of
from .test_shown import BOUGHT, write


def rated_of(folder: Path) -> list[tuple[str, int, int, float]]:
    """(user, item, baskets before, rating), in the order of users and time."""
    histories = load_merchant(folder).histories
    rated, names = histories.rated, np.repeat(histories.user_ids, np.diff(histories.rated.offsets))
    return [(str(a), int(b), int(c), float(d)) for a, b, c, d in zip(names, rated.items, rated.before, rated.answer, strict=True)]


def test_a_rating_is_history_and_the_latest_of_an_item_counts(tmp_path: Path) -> None:
    rows = [*BOUGHT, ("a", "i2", 4, "rating", "2"), ("a", "i2", 6, "Rating", "4.5"), ("b", "i0", 1, "rating", 9)]
    folder = write(tmp_path, rows)
    assert rated_of(folder) == [("a", 2, 3, 4.5), ("b", 0, 0, 9.0)]
    assert len(load_merchant(folder).histories.items) == 6


@pytest.mark.parametrize("value", ["NaN", "inf", "-inf", "good", "", "4,5", None])
def test_what_is_no_number_is_no_rating(tmp_path: Path, value: str | None) -> None:
    folder = write(tmp_path, [*BOUGHT, ("a", "i2", 4, "rating", value), ("a", "i3", 5, "rating", "3")])
    data = load_merchant(folder)
    assert rated_of(folder) == [("a", 3, 3, 3.0)]
    assert len(data.histories.items) == 5  # that the item was rated stays history
    assert [(one.table, one.reason, one.rows) for one in data.left_out] == [("ratings", "value is no finite number", 1)]
    with pytest.raises(InputError, match=r"events\.csv, column value"):
        load_merchant(folder, strict=True)


def test_without_ratings_nothing_is_known(tmp_path: Path) -> None:
    assert load_merchant(write(tmp_path / "one", BOUGHT)).histories.rated is None
    assert load_merchant(write(tmp_path / "two", [*BOUGHT, ("a", "i2", 4, "rating", None)])).histories.rated is None


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(-10, 10), st.floats(0.01, 100))
def test_ratings_are_clamped_to_their_range_and_come_back(values: list[float], lowest: float, width: float) -> None:
    units = in_units(np.array(values), lowest, lowest + width)
    assert (np.abs(units) <= 1 + 1e-12).all()
    np.testing.assert_allclose(from_units(units, lowest, lowest + width), np.clip(values, lowest, lowest + width), atol=1e-9)


def test_split_and_check_carry_ratings(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        rows += [
            (f"u{user}", f"i{item}", day, "rating", 7 if user == 0 else rng.integers(0, 7)) for day, item in enumerate("0123")
        ]
    write(tmp_path / "source", [*rows, ("u1", "i0", 0, "purchase", None), ("v", "i1", 1, "purchase", None)])
    events = pd.read_csv(tmp_path / "source" / "events.csv", dtype=str).assign(merchant="shop")
    events.to_csv(tmp_path / "source" / "events.csv", index=False)
    split_source(tmp_path / "source", tmp_path / "fed", 0.3, {"epsilon": 8.0, "delta": 1e-5})
    merchant = load_merchant(tmp_path / "fed" / "merchants" / "shop").histories
    central = load_central(tmp_path / "fed").groups[0].histories
    assert len(merchant.rated) + len(central.rated) == 160
    both = np.concatenate([merchant.rated.answer, central.rated.answer])
    found = json.loads(CliRunner().invoke(app, ["data", "check", str(tmp_path / "fed"), "--json"]).stdout)["ratings"]
    assert sum(one["ratings"] for one in found.values()) == 160
    assert max(one["highest"] for one in found.values()) == both.max() == 7
    assert sum(one["outside"] * one["ratings"] for one in found.values()) == pytest.approx(((both < 1) | (both > 5)).sum())
    assert sum(one["users_without"] for one in found.values()) == sum(one["users_constant"] for one in found.values()) == 1
    said = CliRunner().invoke(app, ["data", "check", str(tmp_path / "fed")]).stdout
    assert "160 ratings" not in said and "ratings from 0 to 7" in said


@pytest.mark.parametrize("texts", [False, True])
def test_own_ratings_are_those_before_the_block_and_shrunk(texts: bool) -> None:
    """Against a plain loop over each user's ratings."""
    histories, rng = histories_of(4, users=25), np.random.default_rng(1)
    known = Known(rng.uniform(-1, 1, ITEMS), rng.uniform(-0.9, 0.9, (ITEMS, 3)) if texts else np.zeros((ITEMS, 0)))
    asked = Asked(50, 3, 0.0, "user", 100, False, 0.0, 5.0)
    records, plain = OBJECTIVES["rating"].records(histories, asked, known).padded(), rating_records(histories, asked).padded()
    assert np.abs(plain.answer).max() == 1  # ratings of 6 are clamped
    moved = 0
    for (user, position, item), label, before in zip(records.target, records.answer, plain.answer, strict=True):
        rated = histories.take(np.array([user])).rated
        block = plain.target[(plain.target[:, 0] == user) & (plain.target[:, 1] == position)][:, 2]
        begins = rated.before[np.isin(rated.items, block)].min()
        early = rated.before < begins
        assert not np.isin(rated.items[early], block).any() and item in block
        off = np.clip(rated.answer[early] / 2.5 - 1, -1, 1) - known.prior[rated.items[early]]
        own = off.sum() / (early.sum() + SHRINK)
        if texts:  # as if there were a rating of 0 with a weight of `SHRINK` for each feature
            with_one = np.insert(known.texts[[*rated.items[early], item]], 0, 1, axis=1)
            own = Ridge(alpha=SHRINK, fit_intercept=False).fit(with_one[:-1], off).predict(with_one[-1:])[0] if len(off) else 0.0
        assert label == pytest.approx(before - own, abs=1e-6)
        moved += bool(early.any())
    assert moved > 20


@pytest.mark.parametrize("size", [1e38, np.inf, np.nan])
def test_what_a_server_says_of_items_makes_no_merchant_fail(size: float) -> None:
    """A failure that only some data bring about would tell of them."""
    histories, known = histories_of(4, users=25), Known(np.full(ITEMS, size), np.full((ITEMS, 3), -size))
    found = OBJECTIVES["rating"].records(histories, Asked(50, 3, 0.0, "user", 100, False), known).padded()
    assert np.isfinite(found.answer).all() and np.abs(found.answer).max() < 20


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_one_user_moves_the_released_sums_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items, ratings = rng.integers(0, 6, 30), rng.integers(0, 9, 30), rng.uniform(-1, 1, 30)
    everybody = rated_votes(users, items, ratings, 9)
    for user in range(6):
        others = users != user
        moved = np.linalg.norm(everybody - rated_votes(users[others], items[others], ratings[others], 9))
        assert moved == pytest.approx(1.0 if (~others).any() else 0.0, abs=1e-9)
    none = rated_votes(users[:0], items[:0], ratings[:0], 9)
    assert none.shape == (18,) and not none.any()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_is_expected_is_nearer_than_ratios_and_than_the_mean(noise: float) -> None:
    """Items that differ by their text and on their own, rated by few and by many."""
    rng, items = np.random.default_rng(0), 400
    texts = rng.normal(0, 0.2, (items, 4))
    truth = 0.2 + texts @ np.array([0.6, -0.4, 0, 0]) + rng.normal(0, 0.15, items)
    counts = rng.lognormal(0.5, 1.2, items)
    sums = counts * (truth + rng.normal(0, 0.15, items) / np.sqrt(counts))
    released = counts + rng.normal(0, 1, items) * noise, sums + rng.normal(0, 1, items) * noise
    found = expected_ratings(*released, noise, texts)

    def error(one: np.ndarray) -> float:
        return float(np.square(one - truth).mean())

    ratio = released[1] / np.maximum(released[0], max(noise, 0.05))
    assert error(found) < 0.8 * min(error(ratio), error(np.full(items, truth.mean())))
    assert error(found) < error(expected_ratings(*released, noise, np.zeros((items, 1))))


@pytest.mark.parametrize("mean", [0.6, -0.6])
@pytest.mark.parametrize("spread", [0.15, 0.0])
def test_what_is_expected_has_the_mean_of_the_ratings(mean: float, spread: float) -> None:
    """Most items are rated less than the noise is large; with no spread the ratings are constant."""
    rng, items = np.random.default_rng(0), 2000
    truth = mean + rng.normal(0, spread, items)
    counts = rng.lognormal(0, 1, items)
    released = counts + rng.normal(0, 3, items), counts * truth + rng.normal(0, 3, items)
    found = expected_ratings(*released, 3.0, np.zeros((items, 1)))
    assert found.mean() == pytest.approx(released[1].sum() / released[0].sum(), abs=0.05)
    assert np.abs(found - truth).mean() < spread + 0.1


def test_nothing_released_is_the_middle_of_the_range() -> None:
    none = np.zeros(5)
    np.testing.assert_allclose(expected_ratings(none, none, 0.0, np.zeros((5, 2))), 0, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    """Ties among predictions and among ratings, users with one rating or only the lowest."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 12, 150)
    user = np.append(user[user != 3], [3, 12, 12])
    value, predicted = rng.integers(1, 6, len(user)).astype(float), np.round(rng.uniform(1, 5, len(user)), 1)
    value[-2:] = 1
    found = summarise_ratings(Rated(user, value, predicted, 1.0), 5)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(value, predicted))
    assert found["mae"] == pytest.approx(mean_absolute_error(value, predicted))
    rows = [user == one for one in range(12) if (user == one).sum() > 1]
    own = [ndcg_score([value[one] - 1], [predicted[one]], k=5) for one in rows]
    assert found["ndcg@5"] == pytest.approx(np.mean(own))
    assert all(found[f"{name}_low"] < found[name] < found[f"{name}_high"] for name in ("rmse", "mae", "ndcg@5"))


def test_intervals_count_users_and_the_gain_is_paired() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 10)
    value = rng.uniform(1, 5, 2000)
    bias = np.repeat(rng.normal(0, 1, 200), 10)
    draws = []
    for _ in range(300):
        own = rng.integers(0, 200, 200)
        errors = np.square(bias.reshape(200, 10)[own])
        draws.append(np.sqrt(errors.mean()))
    found = summarise_ratings(Rated(user, value, value + bias, 1.0), 10)
    assert (found["rmse_high"] - found["rmse_low"]) / (2 * 1.96 * np.std(draws)) == pytest.approx(1, abs=0.2)
    gain = gain_in_ratings("rmse", Rated(user, value, value + bias, 1.0), Rated(user, value, value + 1.001 * bias, 1.0), 10)
    assert 0 < gain["low"] < gain["mean"] < gain["high"]


def test_constant_ratings_and_perfect_predictions_have_documented_values() -> None:
    found = summarise_ratings(Rated(np.zeros(4, int), np.full(4, 1.0), np.full(4, 1.0), 1.0), 10)
    assert found["rmse"] == found["rmse_low"] == found["mae"] == 0
    assert not any(name.startswith("ndcg") for name in found)
    assert summarise_ratings(Rated(np.zeros(4, int), np.full(4, 3.0), np.arange(4.0), 1.0), 10)["ndcg@10"] == 1


def test_least_squares_within_bounds() -> None:
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(0, 1, 500), np.ones(500)])
    value = 2 * features[0] + 0.5
    np.testing.assert_allclose(fit_ratings(features, value, [(0, 10), (-1, 1)]), [2, 0.5], atol=1e-6)
    assert fit_ratings(features, value, [(0, 1), (-1, 1)])[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(fit_ratings(features, value + 1, [(0, 10), (-1, 1)], np.ones(500)), [2, 0.5], atol=1e-6)


@pytest.mark.parametrize("values", [{"unit": "event"}, {"heads": False}, {"rating_min": 5.0}, {"rating_max": float("nan")}])
def test_what_a_rating_run_needs(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        load_config(overrides={"objective": "rating", **values})
