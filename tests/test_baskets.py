"""What goes with a basket: what is counted, what is learned of it, what is held back, what is told, and bundles."""

# ruff: noqa: F811

from __future__ import annotations

import doctest
import json
import shutil
import stat
import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fedrec.data import Columns, Histories
from fedrec.errors import InputError
from fedrec.model.ranking import products
from fedrec.recommender import Filter, MerchantRecommender, Recommender
from fedrec.recommender.baskets import BasketParts, Baskets, bundles, fit_baskets, substitutes
from fedrec.recommender.baskets.baskets import Hidden, cases_of
from fedrec.recommender.baskets.bundles import find_bundles
from fedrec.recommender.baskets.choosing import choose_basket_weights
from fedrec.recommender.baskets.lifts import NEIGHBOURS, Lifts
from fedrec.recommender.baskets.model import NEW, BasketWeights
from fedrec.recommender.blend import TextPart
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.forgetting import erase, find_traces, renew_layer
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import FILE, OwnModel
from fedrec.recommender.past import Past
from fedrec.recommender.reasons.shares import FEWEST_CUSTOMERS, OWN

from .conftest import make_catalogue
from .test_answers import recommender as run  # noqa: F401
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_merchant_recommender import make_shop

ITEMS = 24


def drawn(rows: int, items: int, seed: int, owners: int = 12) -> Baskets:
    """Baskets of chance in which an even item and the next one come together."""
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, items)) < 0.12
    dense[:, 1::2] |= dense[:, ::2][:, : items // 2] & (rng.random((rows, items // 2)) < 0.6)
    dense[~dense.any(axis=1), 0] = True
    return Baskets(csr_array(dense.astype(np.float32)), np.sort(rng.integers(owners, size=rows)))


def text_of(items: int, seed: int = 0) -> TextPart:
    vectors = np.random.default_rng(seed).normal(size=(items, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return TextPart(vectors, vectors, {})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant whose customers buy an even item and the next one at once, and the last item never; fitted."""
    folder = make_shop(tmp_path_factory.mktemp("baskets") / "shop", tiny_bert_folder, users=2)
    ids, baskets = make_catalogue(ITEMS).item_ids, drawn(500, ITEMS - 1, 1, owners=150)
    rows = [
        (f"c{owner}", ids[item], f"2026-01-01T{number // 60:02}:{number % 60:02}")
        for number, owner in enumerate(baskets.owner.tolist())
        for item in baskets.bought.indices[baskets.bought.indptr[number] : baskets.bought.indptr[number + 1]].tolist()
    ]
    pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME]).to_csv(folder / "events.csv", index=False)
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@pytest.fixture(scope="module")
def here(shop: Path) -> MerchantRecommender:
    found = Recommender.load(shop)
    assert isinstance(found, MerchantRecommender)
    return found


# What is counted


def test_baskets_are_what_was_bought_at_one_time() -> None:
    catalogue = make_catalogue(4)
    rows = [("a", 0, 1), ("a", 1, 1), ("a", 2, 2), ("a", 3, 2), ("b", 0, 1), ("b", 1, 1), ("b", 1, 3), ("b", 3, 3)]
    events = pd.DataFrame(
        [(user, catalogue.item_ids[item], pd.Timestamp(2026, 1, day)) for user, item, day in rows],
        columns=[Columns.USER, Columns.ITEM, Columns.TIME],
    )
    bought = pd.Series([item != 3 for _, item, _ in rows])  # the last item was only looked at
    found = Baskets.of(Histories.from_table(events, catalogue, bought), 4)
    assert found.bought.toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
    assert found.owner.tolist() == [0, 0, 1, 1] and len(found.joint()) == 2
    assert found.counts().tolist() == [2, 3, 1, 0]
    assert found.together(np.full(4, 1), np.arange(4)).tolist() == [2, 3, 0, 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counts_are_those_of_a_loop(seed: int) -> None:
    baskets, held, items = drawn(30, 6, seed), np.array([4, 0]), np.array([1, 5, 0])
    dense = baskets.bought.toarray() > 0
    for row, one in enumerate(held):
        assert (baskets.together(np.full(6, one), np.arange(6)) == (dense[:, [one]] & dense).sum(axis=0)).all()
        wanted = [len(set(baskets.owner[dense[:, one] & dense[:, other]])) for other in items]
        assert baskets.customers(held, items)[row].tolist() == wanted


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), hidden=st.sampled_from(["one", "half"]), some=st.booleans())
def test_a_part_of_a_basket_is_hidden(seed: int, hidden: Hidden, some: bool) -> None:
    baskets, rng = drawn(30, 8, seed), np.random.default_rng(seed)
    among = rng.random(8) < 0.5 if some else np.ones(8, dtype=bool)
    cases, rows = cases_of(baskets, hidden, rng, among)
    dense, seen, wanted = baskets.bought.toarray(), np.zeros((len(rows), 8)), np.zeros((len(rows), 8))
    seen[cases.masked[:, 0], cases.masked[:, 1]] = 1
    wanted[cases.relevant[:, 0], cases.relevant[:, 1]] = 1
    assert (seen + wanted == dense[rows]).all() and not wanted[:, ~among].any()
    length = dense[rows].sum(axis=1)
    most = np.ones(len(rows)) if hidden == "one" else length // 2
    assert (wanted.sum(axis=1) == np.minimum(most, (dense[rows] * among).sum(axis=1))).all()
    left_out = np.setdiff1d(np.arange(len(dense)), rows)
    assert not ((dense[left_out].sum(axis=1) > 1) & ((dense[left_out] * among).sum(axis=1) > 0)).any()
    assert all(set(cases.items[row][cases.valid[row]]) == set(np.flatnonzero(seen[row])) for row in range(len(rows)))


# What is learned


def test_lifts_order_as_the_smoothed_probability_does() -> None:
    baskets, strength = drawn(200, 10, 3), 30.0
    counts, total = baskets.counts(), len(baskets)
    share, layer = counts / total, Lifts.fit(baskets.bought, strength)
    together = baskets.together(*np.indices((10, 10)).reshape(2, -1)).reshape(10, 10).astype(float)
    np.fill_diagonal(together, 0)
    chance = (together + strength * share) / (counts[:, None] + strength)  # P(j | i), by hand
    found = layer.scores(csr_array(np.eye(10, dtype=np.float32))) + np.log(share)
    difference = np.log(chance) - found
    off = ~np.eye(10, dtype=bool)
    assert all(np.ptp(difference[row][off[row]]) < 1e-5 for row in range(10)), "a term of the basket's item alone"
    assert not layer.lifts.diagonal().any() and (layer.lifts.data > 0).all()
    again = Lifts.from_arrays(layer.arrays())
    assert (again.between(np.array([3, 1]), np.array([2, 7])) == layer.lifts.toarray()[np.ix_([3, 1], [2, 7])]).all()


def test_only_the_largest_lifts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    baskets = drawn(200, 10, 3)
    whole = Lifts.fit(baskets.bought, 10.0).lifts.toarray()
    monkeypatch.setattr("fedrec.recommender.baskets.lifts.NEIGHBOURS", 3)
    few = Lifts.fit(baskets.bought, 10.0).lifts.toarray()
    assert NEIGHBOURS > 10 and ((few > 0).sum(axis=1) <= 3).all()
    assert all(few[row][few[row] > 0].min() >= np.sort(whole[row])[-3] for row in range(10))


def test_what_is_planted_is_found_and_the_weights_are_chosen_on_it() -> None:
    known, choosing, text = drawn(400, 16, 1), drawn(150, 16, 2), text_of(16)
    weights = choose_basket_weights(known, choosing, text, 3)
    assert weights.baskets > 30 and min(weights.values) >= 0 and weights.strength in (10.0, 100.0, 1000.0)
    model = fit_baskets(known, known, choosing, text, 3)
    assert model is not None and model.weights == weights
    parts = BasketParts.of(text, model.layer, model.lifts, known.counts())
    first = csr_array(np.eye(16, dtype=np.float32)[::2])
    scores = parts.scores(weights, first)
    scores[np.arange(8), np.arange(0, 16, 2)] = -np.inf
    assert (scores.argmax(axis=1) == np.arange(1, 16, 2)).mean() >= 0.8
    few = choosing.take(np.arange(20))
    assert choose_basket_weights(known, few, text, 3) == BasketWeights(strength=100.0), "too few: the shared defaults"
    alone = Baskets(csr_array(np.eye(16, dtype=np.float32)), np.arange(16))
    assert fit_baskets(alone, alone, alone, text, 3) is None, "nothing goes with anything"


def test_a_new_item_is_known_by_its_nearest() -> None:
    """Its text, what its neighbours are bought with, the mean popularity, and nothing of the layer."""
    baskets, text = drawn(300, 12, 4), text_of(12)
    dense = baskets.bought.toarray()
    dense[:, 5] = 0
    old = Baskets(csr_array(dense), baskets.owner)
    model = fit_baskets(old, old, old, text, 3)
    assert model is not None
    parts, weights = BasketParts.of(text, model.layer, model.lifts, old.counts()), BasketWeights()
    held = csr_array(np.eye(12, dtype=np.float32)[[0]])
    cosines = text.candidate[[0]] @ text.candidate.T
    like = np.maximum(text.candidate[5] @ text.candidate.T, 1e-3) ** 4
    like[np.argsort(like)[:1]] = 0  # ten of the other eleven
    like[5] = 0
    like /= like.sum()
    lifts = model.lifts.lifts.toarray()[0]
    wanted = (
        weights.text * (cosines[0, 5] + NEW * like @ lifts)
        + weights.nearest * cosines[0, 5]
        + weights.popularity * np.delete(parts.prior, 5).mean()
    )
    found = parts.scores(weights, held)[0, 5]
    layer = weights.layer * model.layer.scores(held)[0, 5]
    assert layer == 0 and found == pytest.approx(wanted, abs=2e-3)


# What is held back


def test_a_substitute_is_near_and_hardly_bought_together() -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[1] = vectors[2] = vectors[3] = [0.8, 0.6, 0, 0, 0, 0]
    vectors[4] = [0.95, np.sqrt(1 - 0.95**2), 0, 0, 0, 0]
    dense = np.zeros((400, 6), dtype=np.float32)
    dense[:100, 0] = 1  # item 0, as often as 1 and 2, both of which are near
    dense[100:200, 1] = dense[60:160, 2] = 1  # 1 never with it, 2 in forty of its baskets
    dense[[0, 100], 3] = 1  # 3 is too rare to tell
    dense[200:300, 5] = 1  # 5 never with it, and nothing like it
    baskets = Baskets(csr_array(dense), np.arange(400))
    assert np.flatnonzero(substitutes(vectors, np.array([0]), baskets)).tolist() == [1]
    assert np.flatnonzero(substitutes(vectors, np.array([0, 5]), baskets)).tolist() == [1]
    # Nothing is known of what is bought together: only what is all but the same, 4, and the basket's own.
    assert np.flatnonzero(substitutes(vectors, np.array([0]), None)).tolist() == [0, 4]


def test_a_large_basket_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is that of a block and a row, and what comes of it the same."""
    items, rng = 3000, np.random.default_rng(0)
    vectors = (rng.normal(size=(40, 8))[rng.integers(40, size=items)] + rng.normal(size=(items, 8)) / 3).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dense = rng.random((300, items)) < np.where(np.arange(items) < 300, 0.15, 0.002)
    baskets, held = Baskets(csr_array(dense.astype(np.float32)), np.arange(300)), np.arange(0, items, 3)
    text, layer = TextPart(vectors, vectors, {}), Lifts(csr_array((items, items), dtype=np.float32))
    parts = BasketParts.of(text, layer, layer, baskets.counts())
    basket = csr_array((np.ones(len(held), dtype=np.float32), held, [0, len(held)]), shape=(1, items))
    cosines, counts = vectors[held] @ vectors.T, baskets.counts()
    rarely = (dense[:, held].astype(float).T @ dense) + 1 < 0.5 * (np.outer(counts[held], counts) / 300 + 1)
    tables: list[int] = []

    def counted(queries: np.ndarray, table: np.ndarray) -> np.ndarray:
        tables.append(len(queries))
        return products(queries, table)

    monkeypatch.setattr("fedrec.model.ranking.FLOATS", 2**16)
    for function in (substitutes, BasketParts._cosines):
        monkeypatch.setitem(function.__globals__, "products", counted)
    baskets.together(held[:1], held[:1])
    tracemalloc.start()
    found, nearest = substitutes(vectors, held, baskets), parts._cosines(basket)[1]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wanted = ((cosines >= 0.6) & rarely).any(axis=0)
    assert (found == wanted).all() and 10 < wanted.sum() < 1000
    assert nearest[0] == pytest.approx(cosines.max(axis=0), abs=1e-5)
    assert most < len(held) * items / 2 and max(tables) == 2**16 // items and sum(tables) == 2 * len(held) + 1


# Answers of a merchant and of a run


def test_a_merchants_answer_is_its_baskets_and_the_shares_add_up(here: MerchantRecommender) -> None:
    answer = here.basket(["i4", "i10", "gone", "i4"], k=ITEMS, explain=True)
    ids = [item for item, _ in answer.items]
    assert answer.source == "untrained text + own baskets" and set(ids[:4]) >= {"i5", "i11"}
    assert not {"i4", "i10"} & set(ids) and answer.notes[0].endswith("'gone'")
    for (_, score), why in zip(answer.items, answer.reasons, strict=True):
        assert sum(share.value for share in why.shares) == pytest.approx(score, abs=1e-5)
    assert f"i{ITEMS - 1}" in ids, "in no basket yet, and offered all the same"
    assert here.basket(["i10", "i4"], k=ITEMS).items == here.basket(["i4", "i10"], k=ITEMS).items


def test_filters_words_and_faults(here: MerchantRecommender) -> None:
    def ids(items: list[str], **more: object) -> list[str]:
        return [item for item, _ in here.basket(items, **more).items]  # type: ignore[arg-type]

    plain = ids(["i4"], k=5)
    assert ids(["i4"], k=5, exclude=plain[:1])[:4] == plain[1:5]
    assert ids(["i4"], filter=Filter(only=["i4", "i9", "i2"])) in (["i9", "i2"], ["i2", "i9"])
    words = here.basket(["i4"], k=5, query=here.catalogue.texts[7])
    assert words.items[0][0] == "i7" and words.source == "untrained text + own baskets + search"
    unknown = here.basket(["gone"])
    assert unknown.source == "popularity" and len(unknown.items) == 10
    for bad in ([], "i4"):
        with pytest.raises(InputError, match="items"):
            here.basket(bad)


def test_a_pair_is_told_to_shoppers_from_ten_customers_on(here: MerchantRecommender) -> None:
    baskets, size = here._baskets, len(here.catalogue)
    behind = baskets.customers(np.arange(size), np.arange(size))
    many, few = np.argwhere(behind >= FEWEST_CUSTOMERS), np.argwhere((behind > 0) & (behind < FEWEST_CUSTOMERS))
    told = hidden = 0
    for pairs in (many[many[:, 0] != many[:, 1]][::5], few[::5]):
        for first, second in pairs.tolist():
            answer = here.basket([f"i{first}"], filter=Filter(only=[f"i{second}"]), explain=True)
            if not answer.reasons:
                continue
            (why,) = answer.reasons
            shares = {share.kind: share for share in why.shares}
            together = [
                share
                for share in why.shares
                if share.sentence and share.sentence.startswith("Often bought together here: this and “")
            ]
            if behind[first, second] >= FEWEST_CUSTOMERS:
                told += len(together)
                assert shares["own layer"].value == 0
            else:
                hidden += 1
                assert not together and all(OWN not in share.through for share in why.shares)
                assert "Often" not in json.dumps(why.for_shopper(), ensure_ascii=False)
    assert told > 5 and hidden > 5
    texts = [share.sentence for share in here.basket(["i4"], k=20, explain=True).reasons[-1].shares if share.kind == "history"]
    assert all(text and text.startswith(("Goes with “", "Often bought together")) for text in texts)


def test_a_run_holds_back_what_is_all_but_the_same(run: Recommender) -> None:
    answer = run.basket(["i3", "i11"], k=30, explain=True)
    vectors, held = run._vectors, [3, 11]
    twins = {f"i{item}" for item in np.flatnonzero((vectors[held] @ vectors.T >= 0.9).any(axis=0))}
    assert answer.source == "model" and {item for item, _ in answer.items} == set(run.catalogue.item_ids) - twins
    assert {why.sentence.split(" “")[0] for why in answer.reasons if why.sentence} <= {"Goes with", "Popular"}
    assert {item for item, _ in run.basket(["i3"], k=30, merchant="half").items} <= {f"i{number}" for number in range(15)}


# What is kept


def test_baskets_are_kept_with_the_layer_and_go_with_it(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    place = MerchantPlace(folder)
    assert stat.S_IMODE((place.own / FILE).stat().st_mode) == 0o600
    model = OwnModel.read(place.own)
    assert model is not None and model.baskets is not None
    OwnModel(model.layer, model.item_ids, model.blend, model.version, model.frequency, model.facts).write(place.own)
    older = Recommender.load(folder)
    assert isinstance(older, MerchantRecommender)
    assert older.basket(["i4"]).source == "untrained text + own layer", "a file of an earlier version has no baskets"
    held = np.arange(ITEMS - 1)
    shares = older._basket_ranker(held, None).shares(Past(held, np.zeros(len(held), dtype=np.int64)), held)
    assert shares.customers is not None and shares.own.any()
    assert (shares.customers.pairs == older._baskets.customers(held, held)).all(), "of one basket, not of one customer"
    erase(find_traces(place, "c7"), "c7")
    assert renew_layer(place, True).state == "fitted"
    (without := pd.read_csv(folder / "events.csv")).to_csv(tmp_path / "events.csv", index=False)
    assert "c7" not in set(without[Columns.USER])
    again = OwnModel.read(place.own)
    assert again is not None and again.baskets is not None
    held = Baskets.of(place.data().histories, ITEMS)
    assert (again.baskets.lifts.lifts != Lifts.fit(held.bought, again.baskets.weights.shrinkage).lifts).nnz == 0
    (folder / "merchant.toml").write_text((folder / "merchant.toml").read_text() + "\n[recommender]\nown_layer = false\n")
    off = Recommender.load(folder)
    assert isinstance(off, MerchantRecommender)
    assert off.basket(["i4"]).source == "untrained text" and off._own_baskets is None


def test_weights_count_beside_the_text_that_they_were_chosen_with(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop, tmp_path / "shop")
    place, chosen = MerchantPlace(tmp_path / "shop"), BasketWeights(text=9.0, strength=10.0, shrinkage=100.0, baskets=50)
    model = OwnModel.read(place.own)
    assert model is not None and model.baskets is not None and model.version is None
    for version, weights in ((None, chosen), ("another", BasketWeights(strength=10.0, shrinkage=100.0))):
        replace(model, version=version, baskets=replace(model.baskets, weights=chosen)).write(place.own)
        found = MerchantRecommender(place)._own_baskets
        assert found is not None and found.weights == weights


# Bundles


def test_bundles_are_those_of_a_loop() -> None:
    baskets, catalogue = drawn(400, 10, 6, owners=60), make_catalogue(10)
    dense, support, lift = baskets.bought.toarray() > 0, 0.05, 1.5
    n = {items: int(dense[:, items].all(axis=1).sum()) for size in range(1, 6) for items in combinations(range(10), size)}
    wanted = {
        items for items, count in n.items()
        if len(items) > 1 and count >= support * 400 and len(set(baskets.owner[dense[:, items].all(axis=1)])) >= FEWEST_CUSTOMERS
        and all(count * 400 >= lift * n[tuple(x for x in items if x != one)] * n[one,] for one in items)
    }  # fmt: skip
    wanted = {items for items in wanted if not any(set(items) < set(other) for other in wanted)}
    found = find_bundles(baskets, catalogue, support, lift, 100)
    assert {tuple(int(item[1:]) for item in one.item_ids) for one in found} == wanted and len(wanted) > 3
    for one in found:
        items = tuple(int(item[1:]) for item in one.item_ids)
        assert one.baskets == n[items] and one.support == n[items] / 400 and one.lift >= lift
        assert one.customers == len(set(baskets.owner[dense[:, items].all(axis=1)]))
    lonely = Baskets(baskets.bought, np.zeros(400, dtype=np.int64))
    assert find_bundles(lonely, catalogue, support, lift, 100) == [], "one customer buys for a whole canteen"
    for bad in ({"support": 0.0, "lift": 2.0}, {"support": 0.1, "lift": 0.5}):
        with pytest.raises(InputError):
            find_bundles(baskets, catalogue, **bad, k=5)
    assert doctest.testmod(bundles).failed == 0


# The commands


def test_the_commands(fedrec: Fedrec, shop: Path, here: MerchantRecommender) -> None:
    done = fedrec("basket", shop, "--items", "i4, i10", "--k", 3, "--json")
    assert done.status == 0, done.err
    shown = json.loads(done.out)
    assert [one["item_id"] for one in shown["items"]] == [item for item, _ in here.basket(["i4", "i10"], k=3).items]
    why = fedrec("basket", shop, "--items", "i4", "--k", 3, "--explain", "--view", "shopper", "--json")
    assert json.loads(why.out)["view"] == "shopper" and "score" not in why.out
    assert_refused(fedrec("basket", shop, "--items", " , "), "items", "at least one item id")
    found = fedrec("merchant", "bundles", shop, "--lift", "1.5", "--json")
    assert found.status == 0, found.err
    bundle = json.loads(found.out)["bundles"][0]
    assert bundle["customers"] >= FEWEST_CUSTOMERS and bundle["lift"] >= 1.5 and " + " in bundle["title"]
    assert "yours alone" in fedrec("merchant", "bundles", shop).out
    assert "no set of items" in fedrec("merchant", "bundles", shop, "--lift", "1000").out
