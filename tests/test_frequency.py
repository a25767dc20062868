"""Where people buy again: personal frequency in a list, how it is chosen, kept, measured and erased, each against a loop."""

# ruff: noqa: F811

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedrec.config import RunConfig
from fedrec.data import Histories
from fedrec.data.roles import Roles
from fedrec.evaluation import EvaluationSet, best_decay
from fedrec.evaluation.protocol import metrics_of
from fedrec.model import ranking
from fedrec.recommender import MerchantRecommender, Person, Recommender, Wish, measuring
from fedrec.recommender import frequency as module
from fedrec.recommender.blend import FEWEST, Blend, Fold, TextPart, choose_blend, scores
from fedrec.recommender.contest import ALONE, HERE, Contender, folds_of, popularity_here, users_as_group
from fedrec.recommender.ease import Ease
from fedrec.recommender.fitting import _ndcg
from fedrec.recommender.frequency import NONE, SHARED, PersonalFrequency, choose_frequency
from fedrec.recommender.measuring import GLOBAL, PERSONAL, measure_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_layer import bought_by, choose_kind
from fedrec.recommender.own_model import FILE, OwnModel
from fedrec.recommender.past import Past, bought_events

from .conftest import make_catalogue
from .helpers import naive_ranks
from .test_answers import HISTORY, ids, recommender  # noqa: F401
from .test_blend import histories_of
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_forget import Forget, forget  # noqa: F401
from .test_merchant_recommender import ITEMS, SECRET, fit, loaded, make_shop, with_settings

DOMINANT = 1e4
"""A weight beside which no other part of a score counts."""
Baskets = list[list[int]]


def regulars(seed: int, users: int, items: int = ITEMS, again: float = 0.8) -> list[Baskets]:
    """Users with three items of their own, which they buy with probability `again`; else something that they never had."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(users):
        own, had, baskets = rng.choice(items, 3, replace=False).tolist(), set[int](), []
        for _ in range(int(rng.integers(2, 6))):
            fresh = [item for item in range(items) if item not in had]
            basket = {int(rng.choice(own)) if rng.random() < again else int(rng.choice(fresh)) for _ in range(2)}
            had |= basket
            baskets.append(sorted(basket))
        found.append(baskets)
    return found


def frequency_by_hand(baskets: Baskets, decay: float) -> dict[int, float]:
    """The sum of exp(-decay * baskets ago) of each item."""
    found: dict[int, float] = {}
    for ago, basket in enumerate(reversed(baskets)):
        for item in basket:
            found[item] = found.get(item, 0.0) + math.exp(-decay * ago)
    return found


def make_regulars(folder: Path, bert: Path, users: int, again: float = 0.8, **changes: Any) -> Path:
    """`make_shop` where people buy again."""
    make_shop(folder, bert, users=1, **changes)
    names = make_catalogue(ITEMS).item_ids
    rows = [
        (f"customer-{user}-secret", names[item], f"2026-01-{day + 1:02}")
        for user, baskets in enumerate(regulars(2, users, again=again))
        for day, basket in enumerate(baskets)
        for item in basket
    ]
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "events.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def shop(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merchant whose people buy again, fitted; nothing changes it."""
    folder = make_regulars(tmp_path_factory.mktemp("regulars") / "shop", tiny_bert_folder, 400)
    fit(folder)
    return folder


def with_frequency(folder: Path, frequency: PersonalFrequency) -> MerchantRecommender:
    """The merchant's recommender, had it chosen this."""
    found = loaded(folder)
    found._ranks = replace(found._ranks, frequency=frequency)
    return found


def own_of(folder: Path) -> OwnModel:
    found = OwnModel.read(folder / "own")
    assert found is not None
    return found


# In a list


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_what_is_added_is_that_of_a_loop(decay: float) -> None:
    users = regulars(0, 12)
    past = [(u, item, len(b) - 1 - at) for u, b in enumerate(users) for at, basket in enumerate(b) for item in basket]
    found = PersonalFrequency(decay, 3.0).scores(np.array(past), (len(users), ITEMS))
    expected = [[3.0 * math.log1p(frequency_by_hand(b, decay).get(item, 0.0)) for item in range(ITEMS)] for b in users]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not PersonalFrequency(decay, 0.0).scores(np.array(past), found.shape).any()


@pytest.mark.parametrize("decay", [0.1, 0.7])
def test_a_dominant_weight_lists_personal_frequency(shop: Path, decay: float) -> None:
    """A known user, a history with times and one without: what was bought by frequency, then all else as it ranks anyway."""
    found = with_frequency(shop, PersonalFrequency(decay, DOMINANT))
    names, histories = found.catalogue.item_ids, found._data.histories
    compared = 0
    for user in range(60):
        items, baskets = histories.of(user)
        per_basket = [items[baskets == number].tolist() for number in range(int(baskets[-1]) + 1)]
        history = [names[item] for item in items]
        one_each = [[item] for item in items.tolist()]
        for asked, past in (
            ({"user_id": histories.user_ids[user]}, per_basket),
            ({"history": history, "times": baskets.tolist()}, per_basket),
            ({"history": history}, one_each),
        ):
            frequency = frequency_by_hand(past, decay)
            answer = found.recommend(**asked, k=ITEMS, repeats=True)  # type: ignore[arg-type]
            assert len(answer.items) == ITEMS
            first, rest = ids(answer)[: len(frequency)], ids(answer)[len(frequency) :]
            values = [frequency[names.index(name)] for name in first]
            assert values == sorted(values, reverse=True)
            assert rest == ids(found.recommend(**asked, k=ITEMS))[: len(rest)]  # type: ignore[arg-type]
            compared += len(set(values)) > 2
    assert compared > 60, "lists in which there is an order to get wrong"


def test_a_runs_list_is_by_the_shared_defaults(recommender: Recommender) -> None:
    ranker = recommender._ranker(None)
    assert ranker.frequency == SHARED
    history, times = [*HISTORY, "i3"], [1, 2, 3, 4]
    past = Past(np.array([3, 11, 5, 3]), np.arange(4))
    expected = ranker.scores([past], None)[0].astype(float)
    for item, value in frequency_by_hand([[3], [11], [5], [3]], SHARED.decay).items():
        expected[item] += SHARED.weight * math.log1p(value)
    found = dict(recommender.recommend(history, times=times, k=30, repeats=True).items)
    assert found == pytest.approx({f"i{item}": expected[item] for item in range(30)}, abs=1e-4)
    people = [Person(history), Person(), Person(HISTORY)]
    one, nobody, other = recommender.recommend_many(people, Wish(k=30, repeats=True))
    assert dict(one.items) == pytest.approx(found, abs=1e-5) and nobody.source == "popularity"
    assert dict(other.items) == pytest.approx(dict(recommender.recommend(HISTORY, k=30, repeats=True).items), abs=1e-5)


def test_words_ask_for_something_and_not_for_the_usual(shop: Path) -> None:
    found, none = (with_frequency(shop, PersonalFrequency(0.1, weight)) for weight in (DOMINANT, 0.0))
    asked: dict[str, Any] = {"user_id": "customer-3-secret", "query": "red lamp", "k": ITEMS, "repeats": True}
    assert found.recommend(**asked) == none.recommend(**asked)
    for asked in ({"user_id": "customer-3-secret"}, {"history": ["i3"]}):
        assert found.recommend(**asked) == none.recommend(**asked), "and without repeats nothing is added"
        assert found.recommend(**asked, repeats=True) != none.recommend(**asked, repeats=True)


def test_filters_and_what_is_not_offered_stay_out(recommender: Recommender) -> None:
    answer = recommender.recommend(["i3", "i20", "i20"], k=30, repeats=True, merchant="half", exclude=["i3"])
    assert set(ids(answer)) == {f"i{item}" for item in range(15)} - {"i3"}


# Choosing


def chosen_on(users: list[Baskets], items: int = 12, default: PersonalFrequency = SHARED) -> tuple[PersonalFrequency, list[Fold]]:
    """What is chosen where half of the users choose, and their fold; the text says nothing and popularity little."""
    histories = histories_of(users)
    middle = len(users) // 2
    roles = Roles(np.arange(middle), np.arange(middle, len(users)), np.arange(0))
    folds = folds_of(histories, roles, items, 50, 0)
    return choose_frequency(folds, *silent(items), 10 if items > 12 else 3, default), folds


def silent(items: int) -> tuple[TextPart, Blend]:
    nothing = np.zeros((items, 2), dtype=np.float32)
    prior = np.zeros(items, dtype=np.float32)
    return TextPart(nothing, nothing, {HERE: prior}), Blend({0.1: 1.0}, {HERE: 0.1}, 0.0, Ease.strengths[0])


def ndcg(folds: list[Fold], frequency: PersonalFrequency) -> float:
    return float(ndcgs(folds, frequency).mean())


def ndcgs(folds: list[Fold], frequency: PersonalFrequency, k: int = 3) -> np.ndarray:
    part, blend = silent(12)
    (fold,) = folds
    again = fold.again
    assert again is not None and again.past is not None
    found = scores(again, fold.seen(part), fold.layers[blend.strength], blend)
    return metrics_of(again, found + frequency.scores(again.past, found.shape), k).ndcg


def test_who_buys_again_gets_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    users = regulars(4, 200, items=12)
    found, folds = chosen_on(users)
    assert found.weight > 0 and found.users == sum(len(baskets) > 1 for baskets in users[100:]) > FEWEST
    assert ndcg(folds, found) >= ndcg(folds, SHARED) > ndcg(folds, NONE) + 0.2
    assert chosen_on(users)[0] == found, "the same users choose the same"
    monkeypatch.setattr(ranking, "FLOATS", 1)  # sixteen users a block
    assert chosen_on(users)[0] == found


def test_the_decay_is_the_people_s() -> None:
    """Who always goes back to what came last, and who to what was most often, however long ago."""
    rng = np.random.default_rng(0)
    last, most = [], []
    for _ in range(80):
        a, b, c, d = rng.choice(12, 4, replace=False).tolist()
        last.append([[a], [a], [b], [b, c]])
        most.append([[a], [a], [b], [a, d]])
    assert chosen_on(last)[0].decay > chosen_on(most)[0].decay
    assert math.exp(-chosen_on(last)[0].decay) + math.exp(-2 * chosen_on(last)[0].decay) < 1


def test_where_nobody_buys_again_nothing_is_added() -> None:
    found, folds = chosen_on(regulars(5, 200, items=12, again=0.0))
    assert found.weight == 0 and found.users > FEWEST and ndcg(folds, found) > ndcg(folds, SHARED)


@pytest.mark.parametrize("again", [0.05, 0.3, 0.8])
def test_on_those_who_choose_nothing_is_lost(again: float) -> None:
    found, folds = chosen_on(regulars(6, 120, items=12, again=again))
    assert ndcg(folds, found) >= max(ndcg(folds, NONE), ndcg(folds, SHARED))


def test_the_defaults_stay_unless_another_pair_is_clearly_better() -> None:
    """By hand, over users of several kinds: the best pair where it is two standard errors better than the better of the two."""
    pairs = [SHARED, NONE, *(PersonalFrequency(d, w) for d in module.DECAYS for w in module.WEIGHTS)]
    seen = set()
    for seed, again in [(seed, again) for seed in range(6) for again in (0.0, 0.2, 0.5, 0.9)]:
        found, folds = chosen_on(regulars(seed, 90, items=12, again=again))
        per_user = [ndcgs(folds, pair) for pair in pairs]
        start = 0 if per_user[0].mean() > per_user[1].mean() else 1
        best = max(range(len(pairs)), key=lambda at: per_user[at].mean())
        difference = per_user[best] - per_user[start]
        clear = difference.mean() > 2 * math.sqrt(difference.var() / len(difference))
        assert found == replace(pairs[best if clear else start], users=len(difference))
        seen.add("best" if clear else start)
    assert seen == {"best", 0, 1}


def faithful(users: int, seed: int = 0) -> list[Baskets]:
    """Users who buy nothing but their own three items, which some of them, by turns, leave out once."""
    rng = np.random.default_rng(seed)
    own = [sorted(rng.choice(12, 3, replace=False).tolist()) for _ in range(users)]
    return [[items, items, items[user % 2 :], items] for user, items in enumerate(own)]


def test_who_buys_nothing_new_chooses_a_frequency_and_no_blend(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    found, (fold,) = chosen_on(faithful(80))
    assert found.users == 40 and found.weight > 0 and not len(fold.users.items) and fold.again is not None
    part, blend = silent(12)
    for own in (True, False):
        assert choose_blend([fold], part, blend, 3, own=own) == blend
    (other,) = chosen_on(regulars(4, 80, items=12))[1]
    contender = Contender(part, blend, True)
    assert _ndcg(contender, blend, [fold, other], 3) == _ndcg(contender, blend, [other], 3)
    one_more, folds = chosen_on([*faithful(79), [[0], [0, 1]]])
    assert one_more == found and len(folds[0].users.items) == 1
    folder = make_regulars(tmp_path / "shop", tiny_bert_folder, 1)
    names = make_catalogue(ITEMS).item_ids
    rows = [(f"customer-{user}-secret", names[item], f"2026-01-{day + 1:02}")
            for user, baskets in enumerate(faithful(400)) for day, basket in enumerate(baskets) for item in basket]  # fmt: skip
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "events.csv", index=False)
    place = MerchantPlace(folder)
    choosing = len(place.roles(place.data()).choose)
    said = fedrec("merchant", "fit", folder)
    assert said.status == 0 and "too few users to choose on, so shared defaults hold" in said.out, said.err
    assert own_of(folder).frequency.users == choosing > FEWEST and f"chosen on {choosing} users of your own" in said.out


def test_too_few_choose_nothing() -> None:
    few = regulars(7, 2 * FEWEST - 2, items=12)
    for default in (SHARED, NONE):
        assert chosen_on(few, default=default)[0] == default
    part, blend = silent(12)
    assert choose_frequency([], part, blend, 10) == SHARED


# At a merchant


def test_a_fit_chooses_it_and_says_so(fedrec: Fedrec, shop: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    kept = own_of(shop).frequency
    place = MerchantPlace(shop)
    data = place.data()
    histories, roles = data.histories, place.roles(data)
    assert kept.weight > 0
    assert kept.users == sum(histories.of(user)[1][-1] > 0 for user in roles.choose) > FEWEST, "all who came twice"
    assert loaded(shop)._ranks.frequency == kept
    for folder, users, again, expected in (
        ("again", 400, 0.8, f"personal frequency counts with weight {kept.weight:g} and decay {kept.decay:g} a basket"),
        ("never", 400, 0.0, "personal frequency does not count (chosen on"),
        ("few", 40, 0.8, "personal frequency counts with weight 8 and decay 0.2 a basket (too few users to choose on, so"),
        ("few-never", 40, 0.0, "personal frequency does not count (nobody has bought anything again)"),
    ):
        place = make_regulars(tmp_path / folder, tiny_bert_folder, users, again)
        shown, said = fedrec("merchant", "fit", place), fedrec("merchant", "fit", place, "--force", "--json")
        assert shown.status == 0 and f"with --repeats: {expected}" in shown.out, shown.out
        assert json.loads(said.out)["frequency"] == asdict(own_of(place).frequency)
    assert own_of(tmp_path / "again").frequency == kept


def test_a_file_from_before_has_the_shared_defaults(shop: Path, tmp_path: Path) -> None:
    model = replace(own_of(shop), frequency=PersonalFrequency(0.5, 3.0, 77))
    model.write(tmp_path / "own")
    assert own_of(tmp_path).frequency == model.frequency
    with safe_open(tmp_path / "own" / FILE, framework="numpy") as file:
        said = json.loads(file.metadata()["fedrec"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del said["frequency"]
    save_file(arrays, tmp_path / FILE, {"fedrec": json.dumps(said)})
    old = OwnModel.read(tmp_path)
    assert old is not None and old.frequency == SHARED and old.blend == model.blend


def test_without_the_own_layer_nothing_of_the_customers_is_in_it(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_regulars(tmp_path / "shop", tiny_bert_folder, 400)
    assert loaded(folder)._ranks.frequency == SHARED, "before a fit there is no choice"
    fit(folder)
    replace(own_of(folder), frequency=PersonalFrequency(0.5, 3.0, 77)).write(folder / "own")
    assert loaded(folder)._ranks.frequency == PersonalFrequency(0.5, 3.0, 77)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, recommender={"own_layer": False})
    assert loaded(folder)._ranks.frequency == SHARED


def test_the_command_line_uses_it(fedrec: Fedrec, shop: Path) -> None:
    asked = ("recommend", shop, "--user", "customer-7-secret", "--k", ITEMS, "--json")
    repeated = json.loads(fedrec(*asked, "--repeats").out)["items"]
    found = loaded(shop)
    expected = found.recommend(user_id="customer-7-secret", k=ITEMS, repeats=True)
    assert [one["item_id"] for one in repeated] == ids(expected)
    items = {found.catalogue.item_ids[item] for item in found._data.histories.of(found._ranks._numbers["customer-7-secret"])[0]}
    assert items <= {one["item_id"] for one in repeated}
    assert not items & {one["item_id"] for one in json.loads(fedrec(*asked).out)["items"]}


def test_a_person_who_is_forgotten_has_chosen_nothing(forget: Forget, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """One who chose: everything is as if they had never been there, the frequency too."""
    folder = make_regulars(tmp_path / "shop", tiny_bert_folder, 400)
    fit(folder)
    before, place = own_of(folder).frequency, MerchantPlace(folder)
    data = place.data()
    name = data.histories.user_ids[next(u for u in place.roles(data).choose if data.histories.of(u)[1][-1] > 0)]
    assert forget(folder, name, "--yes")[0] == 0
    after = (folder / "own" / FILE).read_bytes()
    assert own_of(folder).frequency.users == before.users - 1
    clean = make_regulars(tmp_path / "clean", tiny_bert_folder, 400)
    assert (clean / "own" / "users.key").read_bytes() == SECRET == (folder / "own" / "users.key").read_bytes()
    events = pd.read_csv(clean / "events.csv")
    events[events["user_id"] != name].to_csv(clean / "events.csv", index=False)
    fit(clean)
    assert (clean / "own" / FILE).read_bytes() == after


# Measuring


def test_the_second_table_is_that_of_a_loop(fedrec: Fedrec, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLEARLY", 0.0)  # so that what is chosen here is not the defaults
    place = MerchantPlace(shop)
    data = place.data()
    found = measure_merchant(place, data)
    again = found["repeats"]
    rows = {row["name"]: row for row in again["rows"]}
    assert (again["chosen"]["decay"], again["chosen"]["weight"]) != (SHARED.decay, SHARED.weight)
    assert list(rows) == [GLOBAL, PERSONAL, ALONE, f"{ALONE} + {PERSONAL}"]
    roles, histories, k = place.roles(data), data.histories, found["k"]
    known = histories.take(roles.train)
    here, bought = popularity_here(known, ITEMS), bought_by(known, ITEMS)
    weights = found["chosen"][ALONE]
    blend = Blend({float(d): w for d, w in weights["pooling"].items()}, weights["priors"], weights["own"], weights["strength"])
    layer = choose_kind(bought).fit(bought, blend.strength)
    own = OwnModel(layer, data.catalogue.item_ids, blend, None, NONE, {}).placed(data.catalogue)
    ranker = replace(loaded(shop)._ranks, part=place.plain(data.catalogue, here), layer=own, blend=blend)
    choosing = users_as_group(histories, roles.choose, ITEMS, RunConfig().history, repeats=True)
    assert choosing is not None
    decay = best_decay(EvaluationSet((choosing,), 0), here, k)
    expected: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    for user in roles.measure:
        items, baskets = histories.of(user)
        before = baskets < baskets[-1]
        if not before.any():
            continue
        truth, had = items[~before].tolist(), set(items[before].tolist())
        without = ranker.scores([Past(items[before], baskets[before])])[0].astype(float)
        past = [items[baskets == number].tolist() for number in range(int(baskets[-1]))]
        more = without.copy()
        for item, value in frequency_by_hand(past, again["chosen"]["decay"]).items():
            more[item] += again["chosen"]["weight"] * math.log1p(value)
        personal = 1e-9 * here.astype(float)
        for item, value in frequency_by_hand(past, decay).items():
            personal[item] += 1 + round(value, 9)
        for name, values in zip(rows, (here, personal, without, more), strict=True):
            ranks = dict(zip(truth, naive_ranks(values, [], truth), strict=True))
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(truth))))
            per = {"ndcg": sum(1 / math.log2(rank + 2) for rank in ranks.values() if rank < k) / ideal}
            for what, kind in (("recall", truth), ("repeat_recall", [i for i in truth if i in had]),
                               ("explore_recall", [i for i in truth if i not in had])):  # fmt: skip
                if kind:
                    per[what] = sum(ranks[item] < k for item in kind) / len(kind)
            for what, value in per.items():
                expected[name].setdefault(what, []).append(value)
    for name, figures in expected.items():
        assert rows[name]["users"] == len(figures["ndcg"]) > 20
        for what, values in figures.items():
            assert rows[name][f"{what}@{k}"] == pytest.approx(np.mean(values), abs=2e-3), (name, what)
            assert rows[name][f"{what}@{k}_low"] <= rows[name][f"{what}@{k}"] <= rows[name][f"{what}@{k}_high"]
    last, without_it = rows[f"{ALONE} + {PERSONAL}"], rows[ALONE]
    assert last[f"ndcg@{k}"] > without_it[f"ndcg@{k}"] + 0.05, "there is something to find"
    assert again["gain"]["mean"] == pytest.approx(last[f"ndcg@{k}"] - without_it[f"ndcg@{k}"])
    assert again["gain"]["low"] <= again["gain"]["mean"] <= again["gain"]["high"]
    assert again["chosen"]["users"] == own_of(shop).frequency.users
    page = tmp_path / "page.html"
    assert json.loads(fedrec("merchant", "evaluate", shop, "--json", "--html", page).out)["repeats"] == again
    html, shown = unescape(page.read_text()), fedrec("merchant", "evaluate", shop).out
    assert "What personal frequency adds" in shown and f"whole last baskets of {int(last['users'])} such users" in shown
    assert "Where people buy again" in html and "Where people buy again" in shown and f"EXPLORE RECALL@{k}" in html
    assert all(f"{row[f'repeat_recall@{k}']:.4f}" in html and name in html for name, row in rows.items())
    assert "customer-" not in html + shown


def test_where_nobody_buys_again_there_is_no_second_table(fedrec: Fedrec, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = make_regulars(tmp_path / "shop", tiny_bert_folder, 400, again=0.0)
    page = tmp_path / "page.html"
    assert json.loads(fedrec("merchant", "evaluate", folder, "--json", "--html", page).out)["repeats"] is None
    assert "buy again" not in fedrec("merchant", "evaluate", folder).out + page.read_text()


def test_who_is_measured_chooses_no_frequency(
    shop: Path, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, chose = MerchantPlace(shop), list[int]()

    def watched(dataset: EvaluationSet, counts: np.ndarray, k: int) -> float:
        chose.append(dataset.users)
        return best_decay(dataset, counts, k)

    monkeypatch.setattr(measuring, "best_decay", watched)
    before = measure_merchant(place, place.data())["repeats"]
    assert chose == [own_of(shop).frequency.users], "nor the decay of personal frequency alone"
    folder = make_regulars(tmp_path / "shop", tiny_bert_folder, 400)
    data = place.data()
    theirs = {data.histories.user_ids[user] for user in place.roles(data).measure}
    events = pd.read_csv(folder / "events.csv")
    their = events["user_id"].isin(theirs)
    events.loc[their, "item_id"] = events.loc[their, "item_id"].map(lambda name: f"i{(int(name[1:]) * 5 + 1) % ITEMS}")
    events.to_csv(folder / "events.csv", index=False)
    changed = MerchantPlace(folder)
    after = measure_merchant(changed, changed.data())["repeats"]
    assert after["chosen"] == before["chosen"] and after["rows"] != before["rows"]


def test_what_was_only_looked_at_is_nothing_bought_again() -> None:
    looked = Past(np.array([3, 5, 3]), np.array([0, 1, 2]), np.array([True, True, False]))
    assert bought_events([Past(np.array([7]), np.array([4])), looked]).tolist() == [[0, 7, 0], [1, 3, 1], [1, 5, 0]]


def test_what_is_looked_at_makes_no_purchase_older(shop: Path) -> None:
    """Served and measured: views before, between and after purchases, in baskets of their own and in those of purchases."""
    rng, found = np.random.default_rng(0), with_frequency(shop, PersonalFrequency(0.3, 5.0))
    for baskets in regulars(3, 40):
        rows = [(item, number, True) for number, basket in enumerate(baskets) for item in basket]
        with_views, number = list[tuple[int, int, bool]](), 0
        for basket in baskets:
            for _ in range(int(rng.integers(4))):
                with_views.append((int(rng.integers(ITEMS)), number, False))
                number += 1
            with_views += [(item, number, True) for item in basket]
            with_views += [(item, number, False) for item in {0, 1} - set(basket)]
            number += 1
        with_views.append((2, number, False))
        pasts = [Past(*(np.array(column) for column in zip(*each, strict=True))) for each in (rows, with_views)]
        bought, looked = (found._ranks.frequency.scores(bought_events([past]), (1, ITEMS))[0] for past in pasts)
        assert bought.tobytes() == looked.tobytes()
        groups = []
        for past in pasts:
            assert past.target is not None
            histories = Histories(("u",), np.array([0, len(past.items)]), past.items, past.baskets, past.target)
            groups.append(users_as_group(histories, np.arange(1), ITEMS, 50, repeats=True))
        assert groups[0] is not None and groups[1] is not None
        np.testing.assert_array_equal(groups[0].past, groups[1].past)
