"""What users search for: events of the history tower, whose words never leave, and nobody's but their user's."""

# ruff: noqa: F811

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from fedrec.data import Catalogue, Columns, DataSource, Histories, load_central, load_merchant
from fedrec.data.split import split_source
from fedrec.model.adapter import HEAD_A, HEAD_B
from fedrec.model.towers import Scoring, centred, init_base, init_trained, log_prior
from fedrec.training.encoder import EncoderTrainer
from fedrec.training.examples import merged
from fedrec.training.heads import HeadsTrainer
from fedrec.training.records import build_examples
from simulations.checks import nothing_to_learn

from .conftest import WORDS, make_catalogue, make_encoder, make_events, write_source
from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401
from .test_data import TOML, fault, write_csv
from .test_per_user_gradients import check_factors, compare, head, in_order, one_text

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


def with_searches(events: pd.DataFrame, share: float = 0.7, seed: int = 0, words: list[str] = WORDS) -> pd.DataFrame:
    """A search of a few words half a day before some of the baskets."""
    rng = np.random.default_rng(seed)
    keys = [name for name in ("merchant", Columns.USER, Columns.TIME) if name in events]
    visits = events[keys].drop_duplicates()
    visits = visits[rng.random(len(visits)) < share]
    queries = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(len(visits))]
    searches = visits.assign(event="search", query=queries, timestamp=visits[Columns.TIME] - pd.Timedelta(hours=12))
    return pd.concat([events.assign(event="purchase"), searches], ignore_index=True)


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
    assert column in fault(lambda: load_merchant(folder, strict=True))


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
    (tmp_path / "shop" / "events.csv").write_text(EVENTS + "u,,2026-01-05,search,\n")
    assert_refused(fedrec("data", "check", "shop", "--strict"), "query, line 7: is empty, and the event is a search")


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


@pytest.mark.parametrize("seed", range(4))
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
    base, trained = ({k: v.astype(np.float32) for k, v in arrays.items()} for arrays in (base, trained))
    losses = HeadsTrainer(e.float(), prior, base, trained, scoring, queries=asked.float()).losses(single)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
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
