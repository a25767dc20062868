"""Records: the same arrays as a user at a time, however they are chunked; and memory that a server cannot choose."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import Histories
from fedrec.model.towers import recency_weights
from fedrec.training import Examples, Records, build_examples, build_records, merged

from .conftest import make_catalogue, make_histories
from .helpers import last_positions

ARRAYS = ("items", "weights", "target", "target_weight", "seen")
histories_ = st.builds(
    lambda users, items, baskets, seed: make_histories(users, make_catalogue(items), baskets, seed),
    st.integers(1, 9), st.integers(2, 12), st.integers(1, 8), st.integers(0, 10_000),
)  # fmt: skip
shapes = st.fixed_dictionaries(
    {
        "history": st.integers(1, 6), "positions": st.integers(1, 5), "decay": st.sampled_from([0.0, 0.1, 1.0, 900.0]),
        "unit": st.sampled_from(["user", "event"]),
    }
)  # fmt: skip


def one_at_a_time(histories: Histories, *, history: int, positions: int, decay: float, unit: str) -> Examples:
    """Each user on its own, in loops."""
    count, length = len(histories), 2 * history
    items = np.zeros((count, length), dtype=np.int64)
    baskets = np.full((count, length), np.iinfo(np.int64).max)
    at = np.full((count, positions), -1, dtype=np.int64)
    target, weight, seen = [], [], []
    for user in range(count):
        own, basket = histories.of(user)
        chosen = last_positions(own, basket, positions)
        if not chosen:
            continue
        before = np.flatnonzero(basket < chosen[0][0])[-length:]
        chosen = [(number, new) for number, new in chosen if basket[before[0]] < number]
        items[user, : len(before)], baskets[user, : len(before)] = own[before], basket[before]
        for place, (number, new) in enumerate(chosen):
            at[user, place] = number
            target += [(user, place, item) for item in new]
            weight += [1 / (len(new) * (len(chosen) if unit == "user" else 1))] * len(new)
            seen += [(user, place, item) for item in np.unique(own[basket < number])]
    earlier = baskets[:, None, :] < at[:, :, None]
    valid = earlier & (earlier.sum(-1, keepdims=True) - np.cumsum(earlier, axis=-1) < history)
    weights = recency_weights((at[:, :, None] - 1 - baskets[:, None, :]).astype(np.float64), valid, decay)
    rows = (np.array(value, dtype=np.int64).reshape(-1, 3) for value in (target, seen))
    targets, known = rows
    if unit == "user":
        return Examples(items, weights, targets, np.array(weight, dtype=np.float32), known)
    user, place = np.nonzero(at >= 0)
    record = np.full(at.shape, -1)
    record[user, place] = np.arange(len(user))

    def flat(of: np.ndarray) -> np.ndarray:
        return np.column_stack([record[of[:, 0], of[:, 1]], np.zeros(len(of), dtype=np.int64), of[:, 2]])

    return Examples(items[user], weights[user, place][:, None], flat(targets), np.array(weight, dtype=np.float32), flat(known))


def same(found: Examples, wanted: Examples) -> None:
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes() and one.shape == other.shape, name


@given(histories_, shapes)
@settings(max_examples=60, deadline=None)
def test_the_arrays_are_to_the_bit_those_of_a_user_at_a_time(histories: Histories, shape: dict) -> None:
    wanted = one_at_a_time(histories, **shape)
    same(build_examples(histories, **shape), wanted)
    same(build_records(histories, **shape).padded(), wanted)
    same(build_records(histories, merge=True, **shape).padded(), merged(wanted))


@pytest.mark.parametrize("seed", range(25))
def test_what_is_padded_anew_for_each_lot_is_what_would_have_been_kept(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    histories = make_histories(int(rng.integers(2, 12)), make_catalogue(9), 6, seed)
    shape = {"history": 3, "positions": 3, "decay": 0.3, "unit": ("user", "event")[seed % 2]}
    for merge in (False, True):
        kept = build_records(histories, merge=merge, **shape)
        with monkeypatch.context() as patch:
            patch.setattr("fedrec.objectives.records.NUMBERS_PADDED", 1)  # a record a chunk
            patch.setattr("fedrec.objectives.records.NUMBERS_KEPT", 0)
            lazy = build_records(histories, merge=merge, **shape)
        assert isinstance(kept, Examples) and isinstance(lazy, Records) and len(kept) == len(lazy)
        some = np.flatnonzero(rng.random(len(kept)) < 0.6)
        for records in (some, some[:0], np.arange(len(kept))):
            alike(lazy.take(records).padded(), kept.take(records))


def alike(found: Examples, wanted: Examples) -> None:
    """Equal to the bit, but for columns at the end in which nobody has anything."""
    width = found.items.shape[1]
    assert not wanted.weights[:, :, width:].any()
    narrow = Examples(wanted.items[:, :width], wanted.weights[:, :, :width], wanted.target, wanted.target_weight, wanted.seen)
    same(Examples(*(np.ascontiguousarray(getattr(found, name)) for name in ARRAYS)),
         Examples(*(np.ascontiguousarray(getattr(narrow, name)) for name in ARRAYS)))  # fmt: skip


def peak(users: int) -> int:
    """Bytes at most while a merchant of so many users makes its records and pads a lot chunk by chunk."""
    histories = make_histories(users, make_catalogue(20), 6, 0)
    tracemalloc.start()
    try:
        records = build_records(histories, history=250, positions=50, decay=0.1, merge=True)
        for start in range(0, len(records), 10):
            records.take(np.arange(start, min(start + 10, len(records)))).padded()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_users_times_positions_times_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's padded arrays are 25,000 numbers: 200 KB in float64, and some of them at once."""
    monkeypatch.setattr("fedrec.objectives.records.NUMBERS_PADDED", 250_000)
    monkeypatch.setattr("fedrec.objectives.records.NUMBERS_KEPT", 1_000_000)
    few, many = peak(50), peak(250)
    assert few < 30e6 and many - few < 200 * 3000


def test_memory_does_not_grow_with_items_times_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest positions over one event: what a user knows would be looked at a thousand times at once."""
    monkeypatch.setattr("fedrec.objectives.records.NUMBERS_PADDED", 250_000)
    histories = make_histories(100, make_catalogue(400), 60, 0)
    tracemalloc.start()
    try:
        records = build_records(histories, history=1, positions=1000, decay=0.1)
        records.take(np.arange(100)).padded()
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
