"""Off-policy evaluation: estimators against their exact expectations, intervals against known truth, logs and their faults."""

# ruff: noqa: F811

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import InputError
from fedrec.explore.estimators import direct_method, doubly_robust, effective_sample_size, ips, snips
from fedrec.explore.evaluating import evaluate
from fedrec.explore.intervals import bootstrap, normal, positive
from fedrec.explore.log import read_log
from fedrec.explore.rewards import fit_rewards
from fedrec.explore.targets import Rows, Target

from .test_cli_errors import Fedrec, assert_refused, fedrec  # noqa: F401

CELLS, ITEMS = 3, 6


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_expectations_are_the_truth_exactly(seed: int) -> None:
    """Every outcome once, counted by its probability: what an estimator gives then is its expectation."""
    rng = np.random.default_rng(seed)
    p, pi = rng.dirichlet(np.ones(ITEMS), CELLS), rng.dirichlet(np.ones(ITEMS), CELLS)
    true, wrong = rng.random((CELLS, ITEMS)), rng.random((CELLS, ITEMS))
    worth = float((pi * true).sum(axis=1).mean())
    cell, item, reward = (one.ravel() for one in np.meshgrid(range(CELLS), range(ITEMS), [0.0, 1.0], indexing="ij"))
    chance = p[cell, item] * np.where(reward == 1, true[cell, item], 1 - true[cell, item]) / CELLS
    weights = (pi / p)[cell, item]
    assert ips(weights, reward, chance) == pytest.approx(worth)
    assert snips(weights, reward, chance) == pytest.approx(worth)

    def robust(model: np.ndarray, weights: np.ndarray) -> float:
        return doubly_robust((pi * model).sum(axis=1)[cell], weights, reward, model[cell, item], chance)

    assert robust(wrong, weights) == pytest.approx(worth)  # the propensities are right
    assert robust(true, weights * rng.random((CELLS, ITEMS))[cell, item]) == pytest.approx(worth)  # the model is
    assert direct_method((pi * true).sum(axis=1)[cell], chance) == pytest.approx(worth)


@given(seed=st.integers(0, 10**6), rows=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_counts_are_rows_that_are_there_several_times(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    weights, rewards, values, modelled = rng.random((4, rows)) + 0.01
    counts = rng.integers(0, 3, rows)
    counts[0] = 1
    w, r, v, q = (np.repeat(one, counts) for one in (weights, rewards, values, modelled))
    assert ips(weights, rewards, counts) == pytest.approx(ips(w, r))
    assert snips(weights, rewards, counts) == pytest.approx(snips(w, r))
    assert doubly_robust(values, weights, rewards, modelled, counts) == pytest.approx(doubly_robust(v, w, r, q))
    assert effective_sample_size(w) <= len(w) + 1e-9 and effective_sample_size(np.ones(rows)) == pytest.approx(rows)
    cell, item = rng.integers(0, 2, rows), rng.integers(0, 3, rows)
    found = fit_rewards(cell, item, rewards, np.array([0, 0]), 3, counts)
    again = fit_rewards(np.repeat(cell, counts), np.repeat(item, counts), r, np.array([0, 0]), 3)
    np.testing.assert_allclose(found, again)


def test_a_reward_model_finds_what_is_there_and_no_more() -> None:
    rng = np.random.default_rng(0)
    cell, item = rng.integers(0, CELLS, 40_000), rng.integers(0, ITEMS, 40_000)
    true = np.array([0.1, 0.2, 0.3])[:, None] + np.linspace(-0.08, 0.08, ITEMS)
    found = fit_rewards(cell, item, (rng.random(40_000) < true[cell, item]).astype(float), np.zeros(CELLS, dtype=int), ITEMS)
    np.testing.assert_allclose(found, true, atol=0.025)
    nothing = fit_rewards(cell[:500], item[:500], (rng.random(500) < 0.3).astype(float), np.zeros(CELLS, dtype=int), ITEMS)
    assert np.ptp(nothing, axis=1).max() < 0.1  # items that do not differ are drawn together


def drawn(rng: np.random.Generator, requests: int, p: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Request, cell, item and reward of lists of `CELLS` places; who clicks once clicks more."""
    request, cell = np.repeat(np.arange(requests), CELLS), np.tile(np.arange(CELLS), requests)
    item = np.minimum((rng.random(len(cell))[:, None] > p.cumsum(axis=1)[cell]).sum(axis=1), ITEMS - 1)
    eager = np.repeat(rng.choice([0.2, 1.8], requests), CELLS)
    return request, cell, item, (rng.random(len(cell)) < true[cell, item] * eager).astype(float)


@pytest.mark.slow
def test_intervals_cover_at_their_rate() -> None:
    rng = np.random.default_rng(0)
    p, pi = rng.dirichlet(np.full(ITEMS, 2.0), CELLS), rng.dirichlet(np.full(ITEMS, 2.0), CELLS)
    p = 0.7 * p + 0.3 / ITEMS
    true = rng.uniform(0.1, 0.4, (CELLS, ITEMS))
    worth, covered, values, count = float((pi * true).sum(axis=1).mean()), np.zeros(5), np.zeros(2), 500
    for _ in range(count):
        request, cell, item, reward = drawn(rng, 300, p, true)
        weights = (pi / p)[cell, item]
        value, own = ips(weights, reward), snips(weights, reward)
        pull = weights * (reward - own) / weights.mean()
        alone = np.arange(len(request))
        found = [normal(value, weights * reward - value, request, 0.9), normal(own, pull, request, 0.9)]
        found += [normal(own, pull, alone, 0.9), bootstrap(lambda counts: snips(weights, reward, counts), request, 0.9, 40, rng)]
        found.append(positive(value, weights * reward - value, request, 0.9))
        covered += [low <= worth <= high for low, high in found]
        values += value, own
    ips_rate, snips_rate, rows_rate, bootstrap_rate, positive_rate = covered / count
    assert (
        0.87 <= ips_rate <= 0.93
        and 0.87 <= positive_rate <= 0.93
        and 0.87 <= snips_rate <= 0.93
        and 0.84 <= bootstrap_rate <= 0.93
    )
    assert rows_rate < snips_rate - 0.02  # rows of one request are no independent ones
    np.testing.assert_allclose(values / count, worth, rtol=0.01)


@pytest.fixture(scope="module")
def two_policies() -> tuple[pd.DataFrame, float, np.ndarray]:
    """A log of a policy `a` and of another, `b`; what `b` is worth, and its probabilities."""
    rng = np.random.default_rng(1)
    p, pi = np.full((CELLS, ITEMS), 1 / ITEMS), rng.dirichlet(np.ones(ITEMS), CELLS)
    true, parts = rng.uniform(0.05, 0.5, (CELLS, ITEMS)), []
    for name, chance in (("a", p), ("b", pi)):
        request, cell, item, reward = drawn(rng, 1000, chance, true)
        parts.append(pd.DataFrame({
            "request_id": [f"{name}{one}" for one in request], "position": cell + 1, "item_id": [f"i{one}" for one in item],
            "propensity": chance[cell, item], "click": reward.astype(int), "policy": name,
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True), float((pi * true).sum(axis=1).mean()), pi


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    return path


@pytest.mark.slow
def test_a_policy_is_estimated_from_the_log_of_another(
    two_policies: tuple[pd.DataFrame, float, np.ndarray], tmp_path: Path, fedrec: Fedrec
) -> None:
    frame, worth, pi = two_policies
    frame = frame.rename(columns={"position": "place"})  # no place depends on those above it
    found = [
        evaluate(read_log(write(frame, tmp_path / f"log{suffix}")), "a", "b", ["place"])
        for suffix in (".csv", ".parquet", ".jsonl")
    ]
    first = found[0]
    for other in found[1:]:
        assert [one.value for one in other.estimates] == pytest.approx([one.value for one in first.estimates])
    assert [one.name for one in first.estimates] == ["IPS", "SNIPS", "DM", "DR"]
    assert len(first.notes) == 1 and first.notes[0].startswith("without position every row stands alone")
    assert first.on_policy is not None
    for one in (*first.estimates, first.on_policy):
        assert one.low < worth < one.high, one
    assert (first.rows, first.requests, first.unseen) == (3000, 1000, 0.0)
    assert 50 < first.effective_rewards < first.effective < 3000
    # The same policy told by its probabilities, for the shown item alone and for all of them.
    logged = frame[frame["policy"] == "a"].drop(columns="policy")
    numbers = logged["item_id"].str[1:].astype(int).to_numpy(), logged["place"].to_numpy() - 1
    told = logged.assign(target=pi[numbers[1], numbers[0]])
    alone = evaluate(read_log(write(told, tmp_path / "told.csv")), by=["place"])
    assert [one.name for one in alone.estimates] == ["IPS", "SNIPS"] and "no direct method" in alone.notes[0]
    whole = logged.assign(target=[{f"i{item}": float(pi[cell, item]) for item in range(ITEMS)} for cell in numbers[1]])
    every = evaluate(read_log(write(whole, tmp_path / "whole.jsonl")), by=["place"])
    assert [one.value for one in every.estimates[:2]] == pytest.approx([one.value for one in alone.estimates])
    for mine, theirs in zip(every.estimates, first.estimates, strict=True):
        assert (mine.value, mine.low) == pytest.approx((theirs.value, theirs.low), rel=1e-6)
    shown = fedrec("explore", "evaluate", "log.csv", "--logged", "a", "--target", "b", "--by", "place", "--json")
    assert json.loads(shown.out)["estimates"][3]["value"] == pytest.approx(first.estimates[3].value)
    text = fedrec("explore", "evaluate", "log.csv", "--logged", "a", "--target", "b", "--by", "place")
    assert text.status == 0 and "b itself" in text.out and "effective sample size" in text.out


def test_a_policy_that_went_on_learning_counts_as_what_it_showed(two_policies: tuple[pd.DataFrame, float, np.ndarray]) -> None:
    frame, _, pi = two_policies
    changing = frame.copy()
    theirs = (changing["policy"] == "b").to_numpy()
    changing.loc[theirs, "propensity"] *= np.random.default_rng(0).uniform(0.5, 1.0, int(theirs.sum()))
    shares = frame[theirs].groupby("position")["item_id"].value_counts(normalize=True)
    for table, expected in (
        (changing, lambda cell, item: shares[cell + 1, f"i{item}"]),
        (frame, lambda cell, item: pi[cell, item]),
    ):
        everything = Rows.of(as_table(table), ())
        rows = everything.take(~theirs)
        found = Target.of_policy(rows, everything.take(theirs)).probability[:50]
        cells = zip(rows.cell[:50].tolist(), rows.item[:50].tolist(), strict=True)
        np.testing.assert_allclose(found, [expected(cell, item) for cell, item in cells])


def as_table(frame: pd.DataFrame):  # type: ignore[no-untyped-def]
    from fedrec.explore.log import LogTable

    renamed = frame.rename(columns={"click": "reward"}).reset_index(drop=True)
    return LogTable(renamed, "log", lambda row: f"row {row}")


def test_what_was_never_shown_cannot_be_estimated(two_policies: tuple[pd.DataFrame, float, np.ndarray]) -> None:
    frame = two_policies[0].drop(columns="request_id")
    gone = frame[(frame["policy"] == "b") | (frame["item_id"] != "i2")]
    with pytest.raises(InputError, match="items that the log never shows"):
        evaluate(as_table(gone), "a", "b")
    wrong = frame.assign(propensity=np.where(frame["policy"] == "a", 0.5, frame["propensity"]))
    with pytest.raises(InputError, match="the weights average"):
        evaluate(as_table(wrong), "a", "b")


def test_a_policy_that_looks_at_who_asks_is_said_to_be_taken_as_one_that_does_not() -> None:
    """Two kinds of people, of whom each likes another item; the judged policy shows each what that kind likes."""
    rng = np.random.default_rng(0)
    kind, own = rng.integers(0, 2, 2000), rng.random(2000) < 0.5
    first = np.where(own, np.where(kind == 0, 0.9, 0.1), 0.5)
    item = (rng.random(2000) >= first).astype(int)
    frame = pd.DataFrame({
        "item_id": item.astype(str), "propensity": np.where(item == 0, first, 1 - first),
        "reward": (rng.random(2000) < np.where(item == kind, 0.5, 0.05)) * 1.0, "policy": np.where(own, "own", "uniform"),
    })  # fmt: skip
    said = "the propensities of own for one item at one place vary"
    assert any(note.startswith(said) for note in evaluate(as_table(frame), "uniform", "own").notes)
    assert not any("vary" in note for note in evaluate(as_table(frame), "own", "uniform").notes)


LINES = ["item_id,propensity,reward,target,policy", "a,.5,1,.5,x", "b,.5,0,.5,x"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines, "a,0,1,.5,x"], "log.csv, column propensity, line 4: found '0'; expected a number above 0"),
        (lambda lines: [*lines, "a,,1,.5,x"], "log.csv, column propensity, line 4: is missing"),
        (lambda lines: [*lines, "", "a,1.5,1,.5,x"], "log.csv, column propensity, line 5: found '1.5'"),
        (lambda lines: [*lines, "a,.5,nan,.5,x"], "log.csv, column reward, line 4"),
        (lambda lines: [*lines, "a,.5,\x1b[2J,.5,x"], "column reward, line 4: found '\\x1b[2J'"),
        (lambda lines: [*lines, "a,.5,1,-1,x"], "log.csv, column target, line 4: found '-1'"),
        (lambda lines: [*lines, ",.5,1,.5,x"], "log.csv, column item_id, line 4: is missing"),
        (lambda lines: [*lines, "a,.5,1"], "log.csv, line 4: 3 fields where the header has 5"),
        (lambda lines: [*lines, '"a,.5'], "log.csv, line 4: cannot be read"),
        (lambda lines: [line.replace("propensity", "chance") for line in lines], "column 'propensity' is missing"),
        (lambda lines: [line.replace("policy", "target") for line in lines], "column 'target' is there twice"),
        (lambda lines: [line.replace("target", "other") for line in lines], "column 'target' is missing"),
        (lambda lines: lines[:1], "log.csv: there is no row"),
    ],
)
def test_a_fault_of_a_log_is_named_with_its_place(
    change: Callable[[list[str]], list[str]], said: str, fedrec: Fedrec, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text("\n".join(change(LINES)) + "\n")
    answer = fedrec("explore", "evaluate", "log.csv")
    assert_refused(answer)
    assert said in answer.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "log.jsonl, line 1: is no JSON"),
        ("3", "log.jsonl, line 1: is no object"),
        ('{"item_id": "a", "propensity": 1, "reward": NaN}', "column reward, line 1: is missing"),
        ('{"item_id": "a", "propensity": 1e999, "reward": 1}', "column propensity, line 1: found 'inf'"),
        ('{"item_id": "a", "propensity": 1, "reward": 1' + "0" * 400 + "}", "column reward, line 1"),
        ('{"item_id": "a", "propensity": [1], "reward": 1}', "column propensity, line 1: found '[1]'"),
        ('{"item_id": "a", "propensity": 1, "reward": 1, "target": {"a": 0.5}}', "column target, line 1: they add up to 0.5"),
        ('{"item_id": "a", "propensity": 1, "reward": 1, "target": {"a": "b"}}', "column target, line 1: found {'a': 'b'}"),
    ],
)
def test_a_fault_of_json_lines_is_named_with_its_place(text: str, said: str, fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    answer = fedrec("explore", "evaluate", "log.jsonl")
    assert_refused(answer)
    assert said in answer.err


def test_wrong_use_is_refused(fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\n".join(LINES))
    for arguments, said in (
        (["log.txt"], "LOG: found log.txt"),
        (["gone.csv"], "gone.csv: cannot be read"),
        (["log.csv", "--logged", "y"], "there is no policy 'y'"),
        (["log.csv", "--confidence", 1], "confidence: found 1"),
        (["log.csv", "--by", "campaign"], "column 'campaign' is missing"),
    ):
        answer = fedrec("explore", "evaluate", *arguments)
        assert_refused(answer)
        assert said in answer.err, answer.err
