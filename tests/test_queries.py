"""What users search for: events of the history tower, whose words never leave, and nobody's but their user's."""

# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from torch.nn.functional import normalize

from fedrec.data import Catalogue, Columns, DataSource, Histories, load_central, load_merchant
from fedrec.data.split import split_source
from fedrec.model import load_encoder
from fedrec.model.adapter import HEAD_A, HEAD_B
from fedrec.model.encoder import PACKAGED
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior
from fedrec.objectives.examples import distinct_items, merged
from fedrec.objectives.records import build_examples
from fedrec.recommender import MerchantRecommender
from fedrec.recommender.blend import own_scores
from fedrec.recommender.contest import popularity_here, users_as_group
from fedrec.recommender.fitting import fit_merchant, up_to_date
from fedrec.recommender.forgetting import erase, find_traces, renew_layer
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.own_model import OwnModel
from fedrec.recommender.past import Past
from fedrec.recommender.pooled import Pooled
from fedrec.recommender.reasons.reasons import SEARCHED
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.heads import HeadsTrainer
from fedrec.training.round import _trainer
from server.evaluation import CentralEvaluator
from simulations.checks import nothing_to_learn

from .conftest import WORDS, make_catalogue, make_encoder, make_events, write_source
from .helpers import settings_of, with_searches
from .merchants import TASK
from .test_cli_errors import Fedrec, fedrec  # noqa: F401
from .test_data import TOML, fault, write_csv
from .test_merchant_recommender import make_shop, with_settings
from .test_per_user_gradients import check_factors, compare, flat_gradients, head, in_order, one_text

ITEMS = "item_id,title\na,red mug\nb,blue pen\n"
EVENTS = (
    "user_id,item_id,timestamp,event,query\n"
    "u,a,2026-01-01,purchase,\n"
    "u,,2026-01-02,search,  blue   pen for school\n"
    "u,b,2026-01-03,,ignored on a purchase\n"
    "v,b,2026-01-01,Search,mug\n"
    "v,a,2026-01-04,purchase,\n"
)


def shop(folder: Path, events: str = EVENTS) -> Path:
    write_csv(folder, ITEMS, events)
    (folder / "merchant.toml").write_text(TOML)
    return folder


def searching(users: int, catalogue: Catalogue, baskets: int = 6, seed: int = 0) -> Histories:
    return Histories.from_table(with_searches(make_events(users, catalogue, baskets, seed), seed=seed), catalogue)


# Reading


def test_a_search_is_history_and_no_target(tmp_path: Path) -> None:
    data = load_merchant(shop(tmp_path))
    found = data.histories
    assert found.queries == ("blue pen for school", "mug"), "one space between words; not those of a purchase"
    assert found.items.tolist() == [0, 2, 1, 3, 0] and found.baskets.tolist() == [0, 1, 2, 0, 1]
    assert found.is_target.tolist() == [True, False, True, False, True]
    assert found.targets().items.tolist() == [0, 1, 0] and not data.left_out
    assert nothing_to_learn(found) is None and vars(data.searches) == {"events": 2, "users": 2, "distinct": 2, "longest": 19}
    assert "pen" not in repr(found)
    assert found.take(np.array([1])).of(0)[0].tolist() == [3, 0] and found.take(np.array([1])).queries == found.queries


@pytest.mark.parametrize(
    ("row", "reason", "column"),
    [
        ("u,,2026-01-05,search,", "a search has no query", "query, line 7"),
        ("u,a,2026-01-05,search,NULL", "a search has no query", "query, line 7"),
        ("u,,2026-01-05,purchase,mug", "item_id is empty", "item_id, line 7"),
        ("u,,,search,mug", "timestamp is empty", "timestamp, line 7"),
    ],
)
def test_what_is_missing_is_named_once(row: str, reason: str, column: str, tmp_path: Path) -> None:
    folder = shop(tmp_path, EVENTS + row + "\n")
    (left_out,) = load_merchant(folder).left_out
    assert left_out.reason == reason and left_out.rows == 1
    said = fault(lambda: load_merchant(folder, strict=True))
    assert column in said and ("is empty, and the event is a search" in said) == (column[0] == "q")


def test_without_their_words_searches_are_what_they_were(tmp_path: Path) -> None:
    plain = "\n".join(",".join(line.split(",")[:4]) for line in EVENTS.splitlines()) + "\n"
    data = load_merchant(shop(tmp_path / "plain", plain))
    assert not data.histories.queries and data.histories.target is None and [one.rows for one in data.left_out] == [2]
    looked = load_merchant(shop(tmp_path / "looked", plain), DataSource(history_events=("search", "purchase")))
    assert looked.histories.of(1)[0].tolist() == [1, 0], "of the item, where it has one"
    without = load_merchant(shop(tmp_path / "named"), DataSource(history_events=("purchase",)))
    assert not without.histories.queries and len(without.histories.items) == 3
    asked = DataSource(history_events=("purchase", "search"), target_events=("purchase", "search"))
    assert load_merchant(shop(tmp_path / "asked"), asked).histories.is_target.sum() == 3


def test_a_check_counts_searches(fedrec: Fedrec, tmp_path: Path) -> None:
    shop(tmp_path / "shop")
    said = fedrec("data", "check", "shop")
    assert "2 searches by 2 users, 2 different ones, the longest of 19 characters" in said.out and "pen" not in said.out
    found = json.loads(fedrec("data", "check", "shop", "--json").out)
    assert found["searches"] == {"shop": {"events": 2, "users": 2, "distinct": 2, "longest": 19}}


@pytest.mark.parametrize("own_catalogues", [False, True])
def test_a_split_takes_searches_along(own_catalogues: bool, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", own_catalogues=own_catalogues)
    events = with_searches(pd.read_parquet(source / "events.parquet"))
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, tmp_path / "out", 0.3, {"epsilon": 8.0, "delta": 1e-5})
    central, folders = load_central(tmp_path / "out"), sorted((tmp_path / "out" / "merchants").iterdir())
    shops = [load_merchant(folder) for folder in folders]
    assert sum(data.searches.events for data in shops) > 100 and len(central.queries) > 30
    assert {group.histories.queries for group in central.groups} == {central.queries}
    assert {*central.queries, *(query for data in shops for query in data.histories.queries)} == set(events["query"].dropna())
    for path in (tmp_path / "out").rglob("events.parquet"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Gradients


def setup(folder: Path, seed: int):
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(int(rng.integers(8, 30)), seed)
    encoder = make_encoder(folder, int(rng.integers(1, 4)), int(rng.integers(1, 6)))
    base = init_base(encoder, encoder.states(catalogue), True, int(rng.integers(1, 9)), "principal", seed)
    trained = {
        name: rng.normal(0, 0.1, value.shape).astype(np.float32)
        for name, value in init_trained(encoder, True, base[HEAD_A].shape[1]).items()
    }
    encoder.load({**base, **trained})
    scoring = Scoring(float(rng.uniform(1, 15)), float(rng.uniform(0, 1)), float(rng.uniform(0, 2)))
    prior = log_prior(rng.exponential(3, len(catalogue)), 0.5)
    histories = searching(11, catalogue, seed=seed)
    history, positions = int(rng.integers(2, 12)), int(rng.integers(1, 4))
    examples = build_examples(histories, history=history, positions=positions, decay=scoring.decay)
    states = encoder.states(catalogue).followed_by(encoder.private_states(histories.queries))
    return rng, encoder, states, base, trained, scoring, prior, histories, examples, history, positions


def loss_of(histories, user, history, positions, h, c, scoring, prior, only=None):
    """One user's loss from the definition: searches are pooled, and only what was bought is predicted, masked or ranked."""
    items, baskets = histories.of(user)
    bought = histories.is_target[histories.offsets[user] : histories.offsets[user + 1]]
    fresh = []
    for number in np.unique(baskets[bought])[::-1]:
        new = np.setdiff1d(items[bought & (baskets == number)], items[bought & (baskets < number)])
        if number > 0 and len(new):
            fresh.append((int(number), new))
    fresh = fresh[:positions]
    start = np.flatnonzero(baskets < fresh[0][0])[-2 * history :][0] if fresh else 0
    fresh = [(number, new) for number, new in fresh if baskets[start] < number]
    total = torch.zeros(())
    for number, new in fresh:
        events = [i for i in range(len(items)) if i >= start and baskets[i] < number][-history:]
        w = torch.softmax(torch.tensor([-scoring.decay * float(number - 1 - baskets[i]) for i in events]), 0)
        u = normalize(sum(w[k] * h(items[i]) for k, i in enumerate(events)), dim=0)
        seen = set(items[bought & (baskets < number)].tolist())
        for item in new:
            against = [j for j in (only if only is not None else range(len(prior))) if j not in seen]
            if only is not None:
                against = [int(item), *(j for j in against if j not in set(new.tolist()))]
            logits = torch.stack([scoring.temperature * (u @ c(j)) + scoring.prior_weight * float(prior[j]) for j in against])
            total = total + (torch.logsumexp(logits, 0) - logits[against.index(int(item))]) / (len(new) * len(fresh))
    return total


@pytest.mark.parametrize("seed", range(1, 4))
def test_heads_equal_one_user_at_a_time(tiny_bert_folder: Path, seed: int) -> None:
    _, encoder, _, base, trained, scoring, prior, histories, examples, history, positions = setup(tiny_bert_folder, seed)
    catalogue = make_catalogue(len(prior), seed)
    e = centred(encoder.pooled(encoder.states(catalogue)), base).double()
    asked = centred(encoder.embed_private(histories.queries), base).double()
    base, trained = ({k: v.astype(np.float64) for k, v in arrays.items()} for arrays in (base, trained))
    trainer = HeadsTrainer(e, prior, base, trained, scoring, queries=asked)
    single, examples = examples, replace(examples, weights=examples.weights.astype(np.float64))
    found = list(trainer.gradients(examples))
    fast = [torch.cat([in_order(chunk, i) for chunk in found]) for i in range(2)]
    check_factors(found, fast)
    once = torch.cat([chunk.per_record() for chunk in trainer.gradients(merged(examples))])
    used = examples.weights.max(1) > 0
    order = np.argsort([len(set(row[on].tolist())) for row, on in zip(examples.items, used, strict=True)], kind="stable")
    torch.testing.assert_close(once, torch.cat([chunk.per_record() for chunk in found])[torch.as_tensor(order)])

    texts, a = torch.cat([e, asked]), torch.tensor(base[HEAD_A])
    slow, expected = [], []
    for user in range(len(histories)):
        b = {role: torch.tensor(trained[name], requires_grad=True) for role, name in HEAD_B.items()}
        role = lambda r, b=b: lambda j: normalize(texts[j] + (texts[j] @ a) @ b[r], dim=0)
        loss = loss_of(histories, user, history, positions, role("history"), role("candidate"), scoring, prior)
        slow.append(gradients_of(loss, list(b.values())))
        expected.append(loss.item())
    compare(fast, slow)
    trainer.fixed, trainer.events = True, 2 * history  # as on a GPU: all chunks of one size
    torch.testing.assert_close(torch.cat([chunk.per_record() for chunk in trainer.gradients(merged(examples))]), once)
    base, trained = ({k: v.astype(np.float32) for k, v in arrays.items()} for arrays in (base, trained))
    losses = HeadsTrainer(e.float(), prior, base, trained, scoring, queries=asked.float()).losses(single)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_encoder_equals_one_user_at_a_time(tiny_bert_folder: Path, seed: int) -> None:
    rng, encoder, states, base, trained, scoring, prior, histories, examples, history, positions = setup(tiny_bert_folder, seed)
    trainer = EncoderTrainer(encoder, states, prior, base, trained, scoring, history=2 * history)
    trainer.negatives = rng.integers(0, len(prior), 9)
    fast = [torch.cat(samples) for samples in zip(*(chunk.samples for chunk in trainer.gradients(examples)), strict=True)]
    slow = []
    for user in range(len(histories)):
        e = {j: one_text(encoder, states, base, j) for j in range(len(states))}
        role = lambda r, e=e: lambda j: head(e[int(j)], base, trained, r)
        loss = loss_of(
            histories, user, history, positions, role("history"), role("candidate"), scoring, prior, trainer.negatives.tolist()
        )
        slow.append(gradients_of(loss, trainer.parameters()))
    compare(fast, slow)


def gradients_of(loss: torch.Tensor, parameters: list) -> list[torch.Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(one) for one in parameters]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True))


def without_others_searches(events: pd.DataFrame, user: str) -> pd.DataFrame:
    return events[events["event"].ne("search") | events[Columns.USER].eq(user)].reset_index(drop=True)


@pytest.mark.parametrize("part", ["heads", "encoder"])
@pytest.mark.parametrize("name", ["tiny", pytest.param(PACKAGED, marks=pytest.mark.slow)])
def test_what_others_searched_for_changes_no_bit_of_a_users_gradient(
    name: str, part: str, tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor how many they are, how long, or who is in the lot; with the low precision that a processor may have."""
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path))  # another test's encoder is as exact as it can be
    encoder = make_encoder(tiny_bert_folder, 1, 4) if name == "tiny" else load_encoder(name, 1, 4, 32, "cpu", 16)
    rng, catalogue, encoder.low_precision = np.random.default_rng(0), make_catalogue(50), True
    task = replace(TASK, part=part, history=6, positions=3, encoder_history=6, max_tokens=32, encoder_rank=4)
    base = init_base(encoder, encoder.states(catalogue), True, 8, "principal", 0)
    trained = {name: rng.normal(0, 0.05, a.shape).astype(np.float32) for name, a in init_trained(encoder, True, 8).items()}
    events, negatives = with_searches(make_events(40, catalogue, 9)), rng.integers(0, 50, 7)

    def gradients(events: pd.DataFrame, lot: np.ndarray) -> list[np.ndarray]:
        histories = Histories.from_table(events, catalogue)
        trainer = _trainer(task, catalogue, encoder, base, trained, np.zeros(50, dtype=np.float32), histories.queries)
        records = build_examples(histories, history=6, positions=3, decay=0.3).take(lot)
        if isinstance(trainer, EncoderTrainer):
            trainer.negatives = negatives
            return [row.numpy() for row in flat_gradients(trainer, records)]
        found = list(trainer.gradients(merged(records)))
        norms = torch.cat([chunk.squared_norms() for chunk in found])
        rows = torch.cat([torch.cat([chunk.per_record() for chunk in found]), norms[:, None]], dim=1)
        return list(rows[np.argsort(np.argsort(distinct_items(records), kind="stable"))].numpy())

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, everyone, searched = gradients(events, np.arange(40)), Histories.from_table(events, catalogue), 0
        for user in range(0, 40, 8):
            alone = without_others_searches(events, everyone.user_ids[user])
            searched += len(Histories.from_table(alone, catalogue).queries)
            lot = np.unique([user, *rng.choice(40, int(rng.integers(1, 9)))])
            found = gradients(alone, lot)[int(np.searchsorted(lot, user))]
            assert np.array_equal(found, whole[user]), user
    finally:
        torch.set_num_threads(before)
        encoder.low_precision = bool(torch.cpu._is_avx512_bf16_supported())
    assert searched > 10 and sum(np.any(one) for one in whole) > 30


def test_words_are_encoded_in_memory_alone(tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path))
    encoder = make_encoder(tiny_bert_folder)
    queries, catalogue = ("a warm red mug", "tea"), make_catalogue(5)
    states, pooled = encoder.states(catalogue).followed_by(encoder.private_states(queries)), encoder.embed_private(queries)
    assert len(states) == 7 and encoder.states(catalogue).followed_by(encoder.private_states(())) is encoder.states(catalogue)
    torch.testing.assert_close(pooled, encoder.encode(queries))
    torch.testing.assert_close(pooled, encoder.pooled(states, np.array([5, 6])))
    index = np.concatenate([np.load(path) for path in tmp_path.rglob("*.index.npy")])
    assert sorted(index["key"].tolist()) == sorted(catalogue.keys.tolist())


# Ranking


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant whose users say before each basket, by a word, which item comes next; fitted."""
    folder = make_shop(tmp_path_factory.mktemp("searched") / "shop", tiny_bert_folder, users=150)
    with_settings(folder, model={"encoder": str(tiny_bert_folder), "device": "cpu"}, users={"choose": 0.4, "measure": 0.1})
    events = pd.read_csv(folder / "events.csv", parse_dates=["timestamp"])
    with_searches(events, words=[f"{word}-secret" for word in WORDS]).to_csv(folder / "events.csv", index=False)
    fit_merchant(MerchantPlace(folder), MerchantPlace(folder).data())
    return folder


def test_a_known_users_searches_count_and_are_reasons(searched: Path) -> None:
    recommender = MerchantRecommender.load(searched)
    ranker, data = recommender._ranks, recommender._data
    size, histories = len(data.catalogue), data.histories
    part = MerchantPlace(searched).plain(data.catalogue, popularity_here(histories, size), histories.queries)
    assert part.history.shape[0] == size + len(histories.queries) and part.candidate.shape[0] == size
    users = [user for user in range(len(histories)) if (histories.of(user)[0] >= size).sum() > 1][:20]
    pasts = [ranker.past_of(histories.user_ids[user]) for user in users]
    whole = [Past(*histories.of(user), histories.is_target[slice(*histories.offsets[user : user + 2])]) for user in users]
    layer = ranker.layer
    assert layer is not None
    expected = np.zeros((len(users), size))
    events = Pooled.of(whole, part.history, ranker.length)
    for decay, weight in ranker.blend.pooling.items():
        expected += weight * events.users(decay) @ part.candidate.T
    for name, weight in ranker.blend.priors.items():
        expected += weight * part.priors[name]
    bought = csr_array([np.isin(np.arange(size), past.bought).astype(np.float32) for past in whole])
    expected += ranker.blend.own * own_scores(layer, bought)
    found = ranker.scores(pasts)
    assert found == pytest.approx(expected, abs=1e-4)
    nothing = [
        past._replace(items=past.items[past.items < size], baskets=past.baskets[past.items < size], queries=()) for past in pasts
    ]
    assert np.abs(ranker.scores([one._replace(target=None) for one in nothing]) - found).max() > 1e-3

    for user, past in zip(users, pasts, strict=True):
        answer = recommender.explain(user_id=histories.user_ids[user], k=size)
        assert {item for item, _ in answer.items}.isdisjoint(data.catalogue.item_ids[item] for item in past.bought)
        for reasons in answer.reasons:
            assert sum(share.value for share in reasons.shares) == pytest.approx(reasons.score, abs=1e-5)
            said = {share.name: share.sentence for share in reasons.shares if share.kind == SEARCHED}
            assert said.keys() == set(past.queries) and all("Because you searched for" in str(one) for one in said.values())
    for query in (WORDS[0], data.catalogue.texts[3]):
        answer = recommender.explain(user_id=histories.user_ids[users[0]], query=query, k=size)
        assert answer.items != recommender.explain(query=query, k=size).items
        for reasons in answer.reasons:
            assert sum(share.value for share in reasons.shares) == pytest.approx(reasons.score, abs=1e-5)
    only = Past(np.array([size]), np.array([0]), np.array([False]), None, (WORDS[0],))
    asking = recommender._ranker(None)
    assert np.array_equal(asking.scores([only], WORDS[1])[0], asking.searcher().search(WORDS[1]).scores)


def test_those_who_choose_are_ranked_with_their_searches(searched: Path) -> None:
    place = MerchantPlace(searched)
    data = place.data()
    group = users_as_group(data.histories, np.arange(len(data.histories)), len(data.catalogue), 50)
    assert group is not None and (group.items >= len(data.catalogue)).any()
    assert max(group.masked[:, 1].max(), group.relevant[:, 1].max()) < len(data.catalogue)
    model = OwnModel.read(place.own)
    assert model is not None and model.blend.users >= 30 and up_to_date(place, data)
    other = replace(data.histories, queries=tuple(f"{query}!" for query in data.histories.queries))
    assert not up_to_date(place, replace(data, histories=other)), "what was chosen was chosen with other words"
    assert not [path for path in (searched / "own").iterdir() if b"-secret" in path.read_bytes()]


def test_what_is_forgotten_was_never_searched_for(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(searched, folder)
    place, user = MerchantPlace(folder), "customer-3-secret"
    events = pd.read_csv(folder / "events.csv")
    events.loc[events[Columns.USER].eq(user) & events["event"].eq("search"), "query"] = "planted words"
    events.to_csv(folder / "events.csv", index=False)
    assert b"planted words" in (folder / "events.csv").read_bytes()
    erase(find_traces(place, user), user)
    assert renew_layer(place, erased=True).state == "fitted"
    assert not [path for path in folder.rglob("*") if path.is_file() and b"planted words" in path.read_bytes()]


@pytest.mark.parametrize("own_catalogues", [pytest.param(False, marks=pytest.mark.slow), True])
def test_central_users_are_ranked_with_their_searches(own_catalogues: bool, tmp_path: Path, tiny_bert_folder: Path) -> None:
    """The server's figures, and a simulation's at each merchant, are those of vectors that are looked up text by text."""
    source = write_source(tmp_path / "source", own_catalogues=own_catalogues)
    with_searches(pd.read_parquet(source / "events.parquet")).to_parquet(source / "events.parquet", index=False)
    split_source(source, tmp_path / "out", 0.4, {"epsilon": 8.0, "delta": 1e-5})
    central, encoder = load_central(tmp_path / "out"), make_encoder(tiny_bert_folder)
    config = settings_of(tiny_bert_folder, calibrate=False)
    evaluator = CentralEvaluator(central, config, encoder)
    base = init_base(encoder, encoder.states(central.catalogue), True, 4, "principal", 0)
    trained = init_trained(encoder, True, 4)
    history, candidate = evaluator.tables(base, trained)
    texts = [*central.catalogue.texts, *central.queries]
    # A catalogue's states may come from a cache that was written in bfloat16.
    assert history == pytest.approx(centred(encoder.encode(texts), base).numpy(), abs=0.05)
    assert candidate == pytest.approx(history[: len(candidate)], abs=1e-6)
    for group in evaluator.users.groups:
        assert (group.items[group.valid] >= len(central.catalogue)).any()
        (moved,) = [one for one in central.groups if one.name == group.name]
        mine = moved.histories.renumbered(np.arange(len(central.catalogue))[::-1].copy(), len(central.catalogue))
        assert (np.sort(mine.items) >= len(central.catalogue)).sum() == (moved.histories.items >= len(central.catalogue)).sum()
        without = moved.histories.without_searches(len(central.catalogue))
        assert (
            without.items.max() < len(central.catalogue)
            and without.targets().items.tolist() == moved.histories.targets().items.tolist()
        )
        assert [mine.queries, len(mine.items)] == [moved.histories.queries, len(moved.histories.items)]
