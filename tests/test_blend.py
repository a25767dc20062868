"""The joined score against its formula, and how its weights are chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from fedrec.data import CentralGroup, Histories
from fedrec.evaluation.protocol import Group, group_of
from fedrec.model import ranking
from fedrec.recommender import blend as module
from fedrec.recommender.blend import Blend, Fold, TextPart, choose_blend, held_items, measure, own_scores, scores
from fedrec.recommender.ease import Ease
from fedrec.recommender.own_layer import bought_by

Baskets = list[list[list[int]]]
DEFAULT = Blend(pooling={0.1: 3.0}, priors={"own": 0.5}, own=0.7, strength=30.0)
K = 5


def histories_of(users: Baskets) -> Histories:
    """By user, by basket, the items."""
    counts = [sum(map(len, baskets)) for baskets in users]
    events = [(item, number) for baskets in users for number, basket in enumerate(baskets) for item in sorted(basket)]
    items, numbers = np.array(events, dtype=np.int64).reshape(-1, 2).T
    return Histories(tuple(f"u{n}" for n in range(len(users))), np.cumsum([0, *counts]).astype(np.int64), items, numbers)


def users_of(users: Baskets, items: int, length: int = 50, repeats: bool = False) -> Group:
    group, _ = group_of(CentralGroup("own", pd.RangeIndex(items), histories_of(users)), np.arange(len(users)), length, repeats)
    assert group is not None
    return group


def text(items: int, seed: int = 0, width: int = 6) -> TextPart:
    """Texts that say nothing about who buys what, and a flat popularity with some noise."""
    rng = np.random.default_rng(seed)
    history, candidate = rng.normal(size=(2, items, width)).astype(np.float32)
    for table in (history, candidate):
        table /= np.linalg.norm(table, axis=1, keepdims=True)
    return TextPart(history, candidate, {"own": rng.normal(size=items).astype(np.float32)})


def pairs(users: int, items: int, seed: int) -> Baskets:
    """Items of a pair are bought by the same people, and whoever has one of a pair buys the other next."""
    rng = np.random.default_rng(seed)
    firsts = [rng.permutation(items // 2)[:3].tolist() for _ in range(users)]
    return [[[2 * a, 2 * a + 1, 2 * b, 2 * b + 1], [2 * c], [2 * c + 1]] for a, b, c in firsts]


def noise(users: int, items: int, seed: int) -> Baskets:
    rng = np.random.default_rng(seed)
    return [[[int(item)] for item in rng.permutation(items)[:4]] for _ in range(users)]


def folds_of(users: Baskets, items: int, parts: int = 2) -> list[Fold]:
    """Each part of the users, with layers that were fitted on the others."""
    out = []
    for part in range(parts):
        rest = [baskets for number, baskets in enumerate(users) if number % parts != part]
        bought = bought_by(histories_of(rest), items)
        layers = {strength: Ease.fit(bought, strength) for strength in (10.0, 30.0)}
        out.append(Fold(users_of(users[part::parts], items), layers))
    return out


def ndcg(folds: list[Fold], part: TextPart, blend: Blend) -> float:
    return float(np.concatenate([measure(fold.users, part, fold.layers[blend.strength], blend, K).ndcg for fold in folds]).mean())


# The score.


def written_out(users: Group, part: TextPart, layer: Ease, blend: Blend) -> np.ndarray:
    """The formula at the head of the module, a user and an item at a time."""
    out = np.zeros((len(users.items), len(users.positions)))
    for user in range(len(out)):
        own = layer.scores(held_items(users))[user].astype(np.float64)
        for item in range(out.shape[1]):
            total = blend.own * own[item] / own.std() if own.std() > 0 else 0.0
            for decay, weight in blend.pooling.items():
                events = [(part.history[i], np.exp(-decay * age)) for i, age, there in
                          zip(users.items[user], users.ages[user], users.valid[user], strict=True) if there]  # fmt: skip
                pooled = sum(share * vector for vector, share in events)
                total += weight * float(pooled @ part.candidate[item] / np.linalg.norm(pooled))
            out[user, item] = total + sum(weight * part.priors[name][item] for name, weight in blend.priors.items())
    return out


def test_scores_are_the_formula() -> None:
    users = users_of([[[0, 1], [2], [3]], [[4], [5]], [[5, 0], [1, 2], [4], [3, 6]], [[7], [0]]], 9, length=3)
    part = text(9)
    part = replace(part, priors={**part.priors, "federation": np.linspace(-2, 0, 9, dtype=np.float32)})
    layer = Ease.fit(bought_by(histories_of([[[0, 1, 2]], [[2, 3]], [[4, 5, 6]], [[0, 5]]]), 9), 10.0)  # nobody bought 7
    blend = Blend({0.0: 1.5, 0.7: -0.5}, {"own": 0.4, "federation": 1.2}, own=0.8, strength=10.0)
    found = scores(users, part, layer, blend)
    assert found.dtype == np.float32 and found.shape == (4, 9)
    np.testing.assert_allclose(found, written_out(users, part, layer, blend), atol=1e-5)
    assert not own_scores(layer, held_items(users))[3].any(), "of this user the layer knows nothing"
    without = scores(users, part, layer, replace(blend, own=0.0))
    np.testing.assert_array_equal(scores(users, part, None, blend), without)
    np.testing.assert_allclose(without, written_out(users, part, layer, replace(blend, own=0.0)), atol=1e-5)


def test_a_layer_that_tells_no_item_from_another_does_not_drown_the_texts() -> None:
    users = users_of([[[0, 1, 2], [3]]], 4)

    class Level(Ease):
        def scores(self, histories: csr_array) -> np.ndarray:
            return np.array([[0.1, 0.1, 0.1, np.nextafter(np.float32(0.1), np.float32(1))]], dtype=np.float32)

    level = Level(4, np.arange(4), np.zeros((4, 4), dtype=np.float32))
    assert not own_scores(level, held_items(users)).any()


def test_held_items_are_the_whole_history_and_not_what_was_bought_next() -> None:
    users = users_of([[[0, 1], [2], [3]], [[1], [0, 1, 2]]], 5, length=1)
    assert held_items(users).toarray().tolist() == [[1, 1, 1, 0, 0], [0, 1, 0, 0, 0]]


@pytest.mark.parametrize("repeats", [False, True])
def test_figures_do_not_depend_on_blocks(repeats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    baskets, part = noise(20, 12, 0), text(12)
    users, layer = users_of(baskets, 12, repeats=repeats), Ease.fit(bought_by(histories_of(baskets), 12), 10.0)
    whole = measure(users, part, layer, DEFAULT, K)
    monkeypatch.setattr(ranking, "ROWS", 3)
    monkeypatch.setattr(ranking, "FLOATS", 1)
    assert len(list(users.blocks())) == 7
    parts = measure(users, part, layer, DEFAULT, K)
    np.testing.assert_array_equal(parts.ndcg, whole.ndcg)
    np.testing.assert_array_equal(parts.mrr, whole.mrr)


# The choice.


def test_where_co_purchases_decide_the_own_layer_is_weighed_in() -> None:
    folds, part = folds_of(pairs(160, 40, 0), 40), text(40)
    start = replace(DEFAULT, own=0.0)
    found = choose_blend(folds, part, start, K)
    assert found.own > 0 and found.users == 160 and found.strength in (10.0, 30.0)
    alone = choose_blend(folds, part, start, K, own=False)
    later = folds_of(pairs(160, 40, 1), 40)  # other users of the same shop
    assert ndcg(later, part, found) > 0.8 > 0.4 > ndcg(later, part, alone)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_own_layer_is_noise_nothing_is_lost_on_those_who_choose(seed: int) -> None:
    folds, part = folds_of(noise(60, 30, seed), 30), text(30, seed)
    found = choose_blend(folds, part, DEFAULT, K)
    assert ndcg(folds, part, found) >= ndcg(folds, part, replace(DEFAULT, strength=found.strength)) - 1e-12


def test_what_makes_purchases_likely_does_not_replace_defaults_that_rank_better() -> None:
    # A third buy what the text puts first. The others buy what it puts low, yet above ten more: turned round, which is what
    # the likelihood asks for, the text finds nobody's item.
    cosine = np.array([1.0, -0.8, *[-1.0] * 10, *[0.8] * 12, 0.0])
    candidate = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float32)
    part = TextPart(np.tile(np.array([1, 0], dtype=np.float32), (25, 1)), candidate, {})
    folds = [Fold(users_of([[[24], [0 if number % 3 == 0 else 1]] for number in range(300)], 25), {})]
    default = Blend({0.1: 1.0}, {}, own=0.0, strength=30.0)
    assert sum(module._fitted(folds, part, default, False, 0).pooling.values()) < 0
    assert choose_blend(folds, part, default, K, own=False) == replace(default, users=300)


@pytest.mark.parametrize("own", [True, False])
def test_a_choice_can_be_made_again(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 10)
    folds, part = folds_of(pairs(60, 30, 3), 30), text(30)
    first, again = (choose_blend(folds, part, DEFAULT, K, own=own, seed=5) for _ in range(2))
    assert first == again
    assert own or first.own == 0.0


def test_without_an_own_layer_none_is_needed() -> None:
    folds = [Fold(users_of(noise(40, 20, 1), 20), {})]
    found = choose_blend(folds, text(20), DEFAULT, K, own=False)
    assert found.own == 0.0 and found.users == 40 and found.strength == DEFAULT.strength


def test_too_few_users_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    baskets = pairs(module.FEWEST - 1, 20, 0)
    assert choose_blend(folds_of(baskets, 20), text(20), DEFAULT, K) == DEFAULT
    assert choose_blend(folds_of(baskets, 20), text(20), DEFAULT, K, own=False) == replace(DEFAULT, own=0.0)
    assert choose_blend([], text(20), DEFAULT, K) == DEFAULT
    enough = choose_blend(folds_of(pairs(module.FEWEST, 20, 0), 20), text(20), DEFAULT, K)
    assert enough.users == module.FEWEST and enough != DEFAULT


def test_only_popularities_that_are_there_are_weighed() -> None:
    folds, part = folds_of(noise(40, 20, 1), 20), text(20)
    default = replace(DEFAULT, priors={"own": 0.5, "federation": 1.0})
    assert set(choose_blend(folds, part, default, K).priors) == {"own"}
    assert choose_blend(folds, replace(part, priors={}), default, K).priors == {}


@pytest.mark.parametrize("most", [800, 12])
def test_popularity_that_says_everything_is_weighed_up_and_one_that_says_nothing_is_not(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", most)  # a sample of items does not change what is estimated
    monkeypatch.setattr(ranking, "FLOATS", 1)
    rng, items = np.random.default_rng(0), 40
    share = np.exp(-np.arange(items) / 4)
    share /= share.sum()
    users = [[[int(item)] for item in rng.choice(items, 2, replace=False, p=share)] for _ in range(600)]
    part = replace(
        text(items), priors={"own": np.log(share).astype(np.float32), "other": rng.normal(size=items).astype(np.float32)}
    )
    found = module._fitted(
        [Fold(users_of(users, items), {})], part, replace(DEFAULT, priors={"own": 0.0, "other": 0.0}), False, 0
    )
    assert found.priors["own"] == pytest.approx(1.0, abs=0.12), "purchases were drawn by it"
    assert abs(found.priors["other"]) < 0.15


def choices_of(
    users: Group, part: TextPart, layer: Ease | None = None, decays: tuple[float, ...] = (0.0, 0.1, 1.0)
) -> module._Choices:
    return module._choices(users, part, layer, decays, list(part.priors), np.random.default_rng(0))


@pytest.mark.parametrize("repeats", [False, True])
def test_the_gradient_is_that_of_the_loss(repeats: bool) -> None:
    baskets = [*pairs(20, 20, 0), [[0], [1, 2]], [[3], [3, 4]]]  # a truth of two, one of them bought again
    users, part = users_of(baskets, 20, repeats=repeats), text(20)
    found = choices_of(users, part, Ease.fit(bought_by(histories_of(baskets), 20), 10.0))
    exact = replace(found, features=found.features.astype(np.float64))
    weights, mean, step = np.array([0.5, -1.0, 2.0, 0.3, 0.8]), np.zeros(5), 1e-5
    value, slope = module._loss(weights, [exact, exact], mean)
    assert np.isfinite(value)
    for axis in np.eye(5):
        above, below = (module._loss(weights + sign * step * axis, [exact, exact], mean)[0] for sign in (1, -1))
        assert slope @ axis == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-3)


def test_the_loss_is_the_log_likelihood_of_what_was_bought_next() -> None:
    users, part = users_of([[[0], [1]], [[2, 3], [0, 4]]], 6), text(6)
    found = choices_of(users, part, decays=(0.1,))
    weights, mean = np.array([3.0, 0.5]), np.array([1.0, 0.0])
    score = scores(users, part, None, Blend({0.1: 3.0}, {"own": 0.5}, 0.0, 1.0)).astype(np.float64)
    expected = module.RIDGE / 2 * (2.0**2 + 0.5**2)
    for user, (held, wanted) in enumerate((([0], [1]), ([2, 3], [0, 4]))):
        score[user, held] = -np.inf
        chance = np.exp(score[user]) / np.exp(score[user]).sum()
        expected -= np.log(chance[wanted]).mean()
    assert module._loss(weights, [found], mean)[0] == pytest.approx(expected, rel=1e-5)


def test_each_user_is_offered_a_sample_of_items_and_all_that_it_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 8)
    baskets = [*noise(25, 60, 0), [[0], [1, 2, 3]]]
    users, part = users_of(baskets, 60), text(60)
    layer = Ease.fit(bought_by(histories_of(baskets), 60), 10.0)
    found = choices_of(users, part, layer)
    np.testing.assert_allclose(found.wanted.sum(axis=1), 1.0, rtol=1e-6)
    offers = [found.items[user][~found.barred[user]].tolist() for user in range(26)]
    for user, offer in enumerate(offers):
        truth = users.relevant[users.relevant[:, 0] == user, 1].tolist()
        held = users.masked[users.masked[:, 0] == user, 1].tolist()
        assert len(offer) == len({*offer}) and {*truth} <= {*offer} and not {*held} & {*offer}
        assert 8 - len(held) <= len(offer) <= 8 + len(truth)
        assert sorted(found.items[user][found.wanted[user] > 0].tolist()) == truth
    assert len({tuple(offer) for offer in offers}) == 26, "a sample of its own"
    whole = [*(part.cosines(users, decay) for decay in (0.0, 0.1, 1.0)), np.tile(part.priors["own"], (26, 1))]
    whole.append(own_scores(layer, held_items(users)))
    np.testing.assert_allclose(found.features, [np.take_along_axis(table, found.items, 1) for table in whole], atol=1e-6)


def test_a_small_catalogue_is_offered_whole() -> None:
    found = choices_of(users_of([[[0, 1], [2]], [[3], [0]]], 4), text(4))
    assert found.items.tolist() == [[2, 3, 0], [0, 1, 2]] and found.barred.tolist() == [[False, False, True], [False] * 3]


def test_where_people_buy_again_what_they_have_is_up_for_choice() -> None:
    users = users_of([[[0], [1], [0, 2]], [[1], [1]]], 4, repeats=True)
    found = choices_of(users, text(4))
    assert not found.barred.any() and found.wanted.tolist() == [[0.5, 0, 0.5, 0], [0, 1, 0, 0]]


def test_memory_of_a_choice_goes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 10)
    monkeypatch.setattr(ranking, "ROWS", 5)
    monkeypatch.setattr(ranking, "FLOATS", 1)
    rows: list[int] = []

    class Watched(Ease):
        def scores(self, histories: csr_array) -> np.ndarray:
            found = super().scores(histories)
            rows.append(len(found))
            return found

    baskets = pairs(80, 40, 0)
    layers = {strength: Watched.fit(bought_by(histories_of(baskets), 40), strength) for strength in (10.0, 30.0)}
    found = choose_blend([Fold(users_of(baskets, 40), layers)], text(40), DEFAULT, K)
    assert found.own > 0 and max(rows) == 5
