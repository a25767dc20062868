"""The trunk cache: every text computed once, shards shared without locks."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data import text_key
from fedrec.model import cache as module
from fedrec.model.cache import States, TrunkCache, prune_caches

HIDDEN = 4
TEXTS = [f"text {'x' * (i % 5)} {i}" for i in range(12)]


def state_of(text: str) -> np.ndarray:
    """States that tell texts apart: (tokens, HIDDEN), one token for each word and each x."""
    tokens = len(text.split()) + text.count("x")
    return np.random.default_rng(text_key(text)).normal(size=(tokens, HIDDEN)).astype(np.float16)


def keys_of(texts: Sequence[str]) -> np.ndarray:
    return np.array([text_key(text) for text in texts], dtype=np.uint64)


class Computer:
    """Counts what it is asked to compute."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        self.asked += texts
        yield from map(state_of, texts)


def read(cache: TrunkCache, texts: Sequence[str], compute: Any) -> States:
    return cache.states(texts, keys_of(texts), compute)


def assert_right(states: States, texts: Sequence[str]) -> None:
    assert len(states) == len(texts)
    for number, text in enumerate(texts):
        padded, lengths = states.padded(np.array([number]), len(state_of(text)))
        assert lengths.tolist() == [len(state_of(text))]
        np.testing.assert_array_equal(padded[0], state_of(text))


def test_a_text_is_computed_once(tmp_path: Path) -> None:
    cache, compute = TrunkCache(tmp_path, "f"), Computer()
    assert_right(read(cache, TEXTS[:6], compute), TEXTS[:6])
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert_right(read(cache, TEXTS[3:8], compute), TEXTS[3:8])
    assert compute.asked == TEXTS


def test_a_text_that_is_asked_for_twice_at_once_is_computed_once(tmp_path: Path) -> None:
    compute = Computer()
    asked = [TEXTS[0], TEXTS[1], TEXTS[0]]
    assert_right(read(TrunkCache(tmp_path, "f"), asked, compute), asked)
    assert compute.asked == TEXTS[:2]


def test_a_second_cache_on_the_same_folder_computes_nothing(tmp_path: Path) -> None:
    read(TrunkCache(tmp_path, "f"), TEXTS, Computer())
    compute = Computer()
    assert_right(read(TrunkCache(tmp_path, "f"), TEXTS, compute), TEXTS)
    assert compute.asked == []


def test_an_open_cache_sees_what_another_has_written_since(tmp_path: Path) -> None:
    first, second, compute = TrunkCache(tmp_path, "f"), TrunkCache(tmp_path, "f"), Computer()
    read(first, TEXTS[:2], Computer())
    read(second, TEXTS[2:], Computer())
    assert_right(read(first, TEXTS, compute), TEXTS)
    assert compute.asked == []


def test_shards_are_never_changed(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, "f")
    states = read(cache, TEXTS[:4], Computer())
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in cache.folder.iterdir()}
    read(cache, TEXTS, Computer())
    assert len(list(cache.folder.iterdir())) == 2 * len(before)
    for name, (content, changed) in before.items():
        assert (cache.folder / name).read_bytes() == content
        assert (cache.folder / name).stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match="read-only"):
        states.shards[0][0] = 0


def test_models_do_not_mix(tmp_path: Path) -> None:
    read(TrunkCache(tmp_path, "one"), TEXTS, Computer())
    compute = Computer()
    read(TrunkCache(tmp_path, "two"), TEXTS, compute)
    assert compute.asked == TEXTS


def test_what_an_interrupted_write_left_behind_is_ignored(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, "f")
    read(cache, TEXTS[:3], Computer())
    for path in list(cache.folder.glob("*.npy")):
        name, suffix, _ = path.name.split(".")
        (cache.folder / f".{name}0.{suffix}.tmp.npy").write_bytes(path.read_bytes()[:70])
    # The states were renamed and the process died before the index was.
    (cache.folder / "abc.states.npy").write_bytes(b"half")
    compute = Computer()
    assert_right(read(TrunkCache(tmp_path, "f"), TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS[3:]


def test_a_computation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(texts: Sequence[str]) -> Iterator[np.ndarray]:
        yield state_of(texts[0])
        raise RuntimeError("out of memory")

    cache = TrunkCache(tmp_path, "f")
    with pytest.raises(RuntimeError, match="out of memory"):
        read(cache, TEXTS, broken)
    assert list(tmp_path.rglob("*.npy")) == []
    assert_right(read(cache, TEXTS, Computer()), TEXTS)


def no_folder(tmp_path: Path) -> Path:
    """Where nothing can be made, whoever asks."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


def test_without_a_folder_to_write_a_text_is_still_computed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, compute = TrunkCache(no_folder(tmp_path), "f"), Computer()
    assert_right(read(cache, TEXTS[:6], compute), TEXTS[:6])
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS
    assert len(caplog.records) == 1 and "FEDREC_CACHE" in caplog.text and str(tmp_path / "file") in caplog.text


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    cache, compute = TrunkCache(tmp_path, "f"), Computer()
    read(cache, TEXTS[:3], compute)
    (tmp_path / "f").rename(tmp_path / "full")
    (tmp_path / "f").write_text("")
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS


@pytest.mark.parametrize("suffix", ["index", "states"])
@pytest.mark.parametrize("part", [0, 0.5])
def test_a_shard_that_a_power_cut_left_is_computed_again(suffix: str, part: float, tmp_path: Path) -> None:
    read(TrunkCache(tmp_path, "f"), TEXTS[:4], Computer())
    (path,) = (tmp_path / "f").glob(f"*.{suffix}.npy")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    compute = Computer()
    assert_right(read(TrunkCache(tmp_path, "f"), TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS


KEPT, GONE = "0123456789abcdef01234567", "f" * 24


def test_only_caches_of_other_models_are_deleted(tmp_path: Path) -> None:
    for name in (KEPT, GONE, "notes"):
        read(TrunkCache(tmp_path, name), TEXTS, Computer())
    (tmp_path / f".{'a' * 24}.interrupted.tmp").mkdir()
    (tmp_path / "file").touch()
    prune_caches(tmp_path, {KEPT})
    assert {path.name for path in tmp_path.iterdir()} == {KEPT, "notes", "file"}
    compute = Computer()
    assert_right(read(TrunkCache(tmp_path, KEPT), TEXTS, compute), TEXTS)
    assert compute.asked == []
    prune_caches(tmp_path / "nowhere", set())


def test_who_has_a_cache_open_goes_on_when_it_is_deleted(tmp_path: Path) -> None:
    cache, compute = TrunkCache(tmp_path, GONE), Computer()
    before = read(cache, TEXTS[:6], compute)
    prune_caches(tmp_path, {KEPT})
    assert not list(tmp_path.iterdir())
    assert_right(before, TEXTS[:6])
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS, "and computes nothing again"
    again = Computer()
    assert_right(read(TrunkCache(tmp_path, GONE), TEXTS, again), TEXTS)
    assert again.asked == TEXTS[:6], "a process that comes later does"


@pytest.mark.parametrize("after", ["states", "index"])
def test_a_cache_may_be_deleted_while_a_shard_is_written(after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, compute, replace = TrunkCache(tmp_path, GONE), Computer(), os.replace

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        if after in target.name:
            shutil.rmtree(target.parent)

    monkeypatch.setattr(module.os, "replace", replaced)
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert_right(read(cache, TEXTS, compute), TEXTS)
    assert compute.asked == TEXTS


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shards=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3))
def test_padded_states_equal_a_plain_loop(data: st.DataObject, shards: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    lengths = [np.array(shard) for shard in shards]
    states = States(
        shards=tuple(rng.normal(size=(shard.sum(), HIDDEN)).astype(np.float16) for shard in lengths),
        shard=np.concatenate([np.full(len(shard), number) for number, shard in enumerate(lengths)]),
        start=np.concatenate([shard.cumsum() - shard for shard in lengths]),
        length=np.concatenate(lengths),
    )
    texts = np.array(data.draw(st.lists(st.integers(0, len(states) - 1), min_size=1, max_size=12)))

    longest = max(int(states.length[text]) for text in texts) + data.draw(st.integers(0, 3))
    expected = np.zeros((len(texts), longest, HIDDEN), dtype=np.float16)
    for row, text in enumerate(texts):
        for token in range(states.length[text]):
            expected[row, token] = states.shards[states.shard[text]][states.start[text] + token]

    padded, found = states.padded(texts, longest)
    np.testing.assert_array_equal(padded, expected)
    np.testing.assert_array_equal(found, states.length[texts])


def fill(folder: Path, out: Path, barrier: Any, texts: list[str]) -> None:
    """What a second process does: wait for the other, then fill the cache together with it."""

    def slow(missing: Sequence[str]) -> Iterator[np.ndarray]:
        for text in missing:
            time.sleep(0.01)
            yield state_of(text)

    cache = TrunkCache(folder, "f")
    for end in range(2, len(texts) + 1, 2):
        barrier.wait(60)
        states = read(cache, texts[:end], slow)
    assert_right(states, texts)
    out.touch()


@pytest.mark.integration
@pytest.mark.slow
def test_two_processes_fill_one_cache_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    orders = [TEXTS, TEXTS[::-1]]
    outs = [tmp_path / f"done-{number}" for number in range(2)]
    processes = [
        spawn.Process(target=fill, args=(tmp_path / "cache", out, barrier, texts))
        for out, texts in zip(outs, orders, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    assert all(out.exists() for out in outs)
    compute = Computer()
    assert_right(read(TrunkCache(tmp_path / "cache", "f"), TEXTS, compute), TEXTS)
    assert compute.asked == []
