"""Logs of whole lists: what a place is worth under another policy follows from the places above it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from fedrec.errors import InputError
from fedrec.explore.estimators import doubly_robust, ips, snips
from fedrec.explore.evaluating import evaluate
from fedrec.explore.intervals import positive
from fedrec.explore.log import LogTable
from fedrec.explore.places import FLOOR, Thompson, draw_places, shares_of
from fedrec.explore.steps import product_above

ITEMS, PLACES = 6, 3
CLICKS = np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
MEAN, SD, PLAIN = np.log(CLICKS / (1 - CLICKS)), np.full(ITEMS, 0.8), [0, 1, 2]


def chances(above: tuple[int, ...], share: float) -> np.ndarray:
    """(items,) of what comes next, as `draw_places` documents it."""
    found = np.zeros(ITEMS)
    left = [item for item in range(ITEMS) if item not in above]
    share = shares_of(share, PLACES)[len(above)]
    for item in left:
        values = Thompson(MEAN, SD, PLACES)
        for gone in above:
            values.take(gone)
        found[item] = share * (FLOOR / len(left) + (1 - FLOOR) * values.take(item))
    found[next(item for item in PLAIN if item not in above)] += 1 - share
    return found


@pytest.fixture(scope="module")
def every_list() -> pd.DataFrame:
    """A row for each place of each list that there is, with its chances under a log of share .5 and a target of 0.05."""
    known = {above: (chances(above, 0.5), chances(above, 0.05))
             for length in range(PLACES) for above in permutations(range(ITEMS), length)}  # fmt: skip
    rows = []
    for number, items in enumerate(permutations(range(ITEMS), PLACES)):
        for place, item in enumerate(items):
            logged, target = known[items[:place]]
            rows.append((number, place, item, logged[item], target[item], float(target @ CLICKS)))
    frame = pd.DataFrame(rows, columns=["request", "place", "item", "p", "pi", "v"])
    of_list = frame.groupby("request")[["p", "pi"]].prod()
    return frame.join(of_list, on="request", rsuffix="_list")


def test_step_by_step_the_expectation_is_the_truth(every_list: pd.DataFrame) -> None:
    """Every list once, by its probability under the log: an estimate is then its expectation."""
    frame = every_list
    worth = float(np.average(CLICKS[frame["item"]], weights=frame["pi_list"]))
    counts, reward = frame["p_list"].to_numpy(), CLICKS[frame["item"]]
    steps = (frame["pi"] / frame["p"]).to_numpy()
    before = product_above(steps, frame["request"].to_numpy(), frame["place"].to_numpy())
    weights = before * steps
    assert ips(weights, reward, counts) == pytest.approx(worth, abs=1e-8)
    assert snips(weights, reward, counts) == pytest.approx(worth, abs=1e-8)
    for place in range(PLACES):
        here = (frame["place"] == place).to_numpy()
        assert np.average(weights[here], weights=counts[here]) == pytest.approx(1, abs=1e-8)
    # Doubly robust with a model that is wrong by a constant: v moves by as much as q.
    robust = doubly_robust(before * (frame["v"].to_numpy() + 0.3), weights, reward, reward + 0.3, counts)
    assert robust == pytest.approx(worth, abs=1e-8)
    assert abs(ips(steps, reward, counts) - worth) > 0.01  # a place alone does not say what stood above it


def drawn(lists: int, rng: np.random.Generator) -> pd.DataFrame:
    """A log of `draw_places`, with the chances of a target of share .05 as objects."""
    known: dict[tuple[int, ...], dict[str, float]] = {}
    rows = []
    for request in range(lists):
        above: tuple[int, ...] = ()
        for place, (item, propensity) in enumerate(draw_places(PLAIN, MEAN, SD, 0.5, rng), 1):
            if above not in known:
                known[above] = {str(i): float(one) for i, one in enumerate(chances(above, 0.05)) if i not in above}
            rows.append((str(request), place, str(item), propensity, float(rng.random() < CLICKS[item]), known[above]))
            above += (item,)
    return pd.DataFrame(rows, columns=["request_id", "position", "item_id", "propensity", "reward", "target"])


def as_table(frame: pd.DataFrame) -> LogTable:
    return LogTable(frame.reset_index(drop=True), "log.csv", "row {}".format)


@pytest.mark.slow
def test_a_log_of_lists_is_judged_step_by_step(every_list: pd.DataFrame) -> None:
    worth = float(np.average(CLICKS[every_list["item"]], weights=every_list["pi_list"]))
    frame = drawn(4000, np.random.default_rng(0))
    found = evaluate(as_table(frame.sample(frac=1, random_state=0)))
    assert [one.name for one in found.estimates] == ["IPS", "SNIPS", "DM", "DR"] and not found.notes
    for one in found.estimates:
        assert one.low < worth < one.high, one
    assert 1000 < found.effective < found.rows and found.mean_weight == pytest.approx(1, abs=0.05)
    alone = evaluate(as_table(frame.drop(columns="request_id")))
    assert any(note.startswith("without request_id every row stands alone") for note in alone.notes)
    assert not alone.estimates[0].low < worth < alone.estimates[0].high


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(index=1), "found 3; expected 2 as the next place of this request"),
        (lambda frame: frame.assign(position=1), "found 1; expected 2"),
        (lambda frame: frame.assign(position=frame["position"] + 0.5), "column position, row 0: found '1.5'; expected a whole"),
        (lambda frame: frame.assign(request_id=""), "column request_id, row 0: is missing"),
        (lambda frame: frame.assign(request_id=None), "column request_id, row 0: is missing"),
        (lambda frame: frame.head(3), "there is one request of the log"),
        (lambda frame: frame.assign(reward=0.0), "no row that the policy would have shown was rewarded"),
        (lambda frame: frame.assign(propensity=0.99), "the weights average"),
    ],
)
def test_lists_that_cannot_be_judged_are_refused(change: object, said: str) -> None:
    frame = drawn(400, np.random.default_rng(1))
    assert callable(change)
    with pytest.raises(InputError, match=said):
        evaluate(as_table(change(frame)))


@pytest.mark.slow
def test_intervals_over_lists_cover_at_their_rate(every_list: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of 600 lists each, of a policy whose worth is known; a place's own weight is for comparison."""
    monkeypatch.setattr("fedrec.explore.evaluating.DRAWS", 2)  # of the bootstrap, whose interval is not counted here
    rng, logs, lists = np.random.default_rng(0), 200, 600
    worth = float(np.average(CLICKS[every_list["item"]], weights=every_list["pi_list"]))
    of_list = every_list.groupby("request")["p_list"].first().to_numpy()
    tables = every_list.sort_values(["request", "place"])
    places = {name: tables[name].to_numpy().reshape(-1, PLACES) for name in ("item", "p", "pi")}
    known = {above: {str(i): float(one) for i, one in enumerate(chances(above, 0.05)) if i not in above}
             for length in range(PLACES) for above in permutations(range(ITEMS), length)}  # fmt: skip
    target = np.array(
        [[known[tuple(items[:place])] for place in range(PLACES)] for items in places["item"].tolist()], dtype=object
    )
    covered, alone = {"IPS": 0, "SNIPS": 0, "DR": 0}, 0
    for _ in range(logs):
        drawn = rng.choice(len(of_list), lists, p=of_list / of_list.sum())
        item = places["item"][drawn].ravel()
        frame = pd.DataFrame({
            "request_id": np.repeat(np.arange(lists), PLACES).astype(str), "position": np.tile(np.arange(PLACES) + 1, lists),
            "item_id": item.astype(str), "propensity": places["p"][drawn].ravel(), "target": target[drawn].ravel(),
            "reward": (rng.random(len(item)) < CLICKS[item]).astype(float),
        })  # fmt: skip
        found = {one.name: one for one in evaluate(as_table(frame)).estimates}
        for name in covered:
            covered[name] += found[name].low <= worth <= found[name].high
        steps = (places["pi"] / places["p"])[drawn].ravel()
        value = ips(steps, frame["reward"].to_numpy())
        low, high = positive(value, steps * frame["reward"].to_numpy() - value, np.repeat(np.arange(lists), PLACES), 0.95)
        alone += low <= worth <= high
    assert all(0.91 * logs <= count <= 0.99 * logs for count in covered.values()), covered
    assert alone < 0.85 * logs
