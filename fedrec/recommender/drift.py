"""Whether what customers buy has moved away from what the model learned; computed at the merchant and shown to its people alone.

Time is cut into windows of equal length that end with the last purchase. Of each window is said how far its mix of categories is
from that of all other windows, how much of what it bought the window before had not, and how long histories were. A shop's mix
always moves, and a distance between samples is larger the smaller they are; so one purchase each of the same number of buyers is
drawn from every window, and the last one is unusual if it is further away than every other: by chance, in one of as many
windows as there are. Beside that stands what matters: how often the model's list held what was bought next.

The model is the text with the federation's popularity, under weights in which no user of this merchant had a part, for users who
are in no round of training. The own layer is left out: it was fitted on all events, those of these very weeks among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from fedrec.data import CentralGroup, Histories, MerchantData
from fedrec.errors import InputError
from fedrec.evaluation.protocol import group_of
from fedrec.recommender.blend import Blend, TextPart, measure

__all__ = ["Drift", "HitRate", "Window", "measure_drift"]

LEAST_WINDOWS = 4
"""Other windows without which nothing can be called unusual."""
LEAST_USERS = 30
"""Fewer say nothing: neither of a window's mix nor of a change of the hit rate."""
PERMUTATIONS = 2000
MOST_CASES = 4000
"""Baskets that are ranked: more of them narrow an interval that is narrow already."""


@dataclass(frozen=True)
class HitRate:
    """How often a list of `k` held one of the new items that were bought next.

    Attributes:
        mean: over the users of a window, each user's baskets averaged.
        low, high: 95% interval of Wilson's, as if a user's mean were a hit or a miss, which is the widest that it can be.
        users: how many.
    """

    mean: float
    low: float
    high: float
    users: int


@dataclass(frozen=True)
class Window:
    """Some weeks.

    Attributes:
        start, end: the first moment and the one after the last.
        baskets: how many baskets were bought in it.
        buyers: by how many users; with fewer than `LEAST_USERS`, `mix` and `unknown` are None.
        mix: Jensen-Shannon distance (base 2, 0 to 1) of its purchases by category to those of all other windows.
        unknown: share of its purchases whose item was not bought in the window before; None in the first one too.
        history: median number of baskets that its buyers had before, at each basket.
        hits: None where nobody who is measured bought anything new.
    """

    start: datetime
    end: datetime
    baskets: int
    buyers: int
    mix: float | None
    unknown: float | None
    history: float
    hits: HitRate | None


@dataclass(frozen=True)
class Drift:
    """What `measure_drift` found.

    Attributes:
        weeks: length of a window.
        k: length of the lists.
        by: what the mix is of: `category`, or `item` where the catalogue has no categories.
        windows: the earliest first; the last one is held against the others.
        unusual: names (`mix`, `unknown`) of what is higher in the last window than in every other, where there are enough.
        change: of the hit rate, last window over the earlier ones together, minus one; None where either has too few users.
        p_value: of that difference, by a permutation test over users.
        held_back: whether those who were ranked for are in no round of training.
    """

    weeks: int
    k: int
    by: str
    windows: tuple[Window, ...]
    unusual: tuple[str, ...]
    change: float | None
    p_value: float | None
    held_back: bool


def measure_drift(
    data: MerchantData, part: TextPart, blend: Blend, users: np.ndarray, *, weeks: int, windows: int, length: int, k: int
) -> Drift:
    """The last weeks against those before.

    Args:
        part: the text that ranks, with the popularities that `blend` has weights for.
        blend: of the text, without an own layer.
        users: (users,) numbers of those who are in no round of training; where there are none everybody is ranked for.
        weeks: in a window.
        windows: at most so many, the last ones.
        length: most events of a history that the text pools.
        k: length of the lists.

    Raises:
        InputError: the events span less than two windows.
    """
    bought = _purchases(data)
    edges = _edges(bought["time"], weeks, windows)
    number = np.searchsorted(edges, bought["time"].to_numpy(), side="right") - 1  # -1 is before the first window
    categories, by = _categories(data)
    bought = bought.assign(window=number, kind=categories[bought["item"].to_numpy()])
    hits = _hits(
        data, _cases(data.histories, edges, users if len(users) else np.arange(len(data.histories))), part, blend, length, k
    )
    mixes, unknowns = _moved(bought, len(edges) - 1)
    found = []
    for window in range(len(edges) - 1):
        baskets = bought[number == window].drop_duplicates(["user", "basket"])
        history = float(baskets["basket"].median()) if len(baskets) else 0.0
        start, end = (edge.astype("datetime64[us]").item().replace(tzinfo=UTC) for edge in edges[window : window + 2])
        rate = _rate(_of_users(hits[hits["window"] == window]))
        buyers = int(baskets["user"].nunique())
        found.append(Window(start, end, len(baskets), buyers, mixes[window], unknowns[window], history, rate))
    change, p_value = _change(hits, len(found) - 1)
    return Drift(weeks, k, by, tuple(found), _unusual(found), change, p_value, bool(len(users)))


def _moved(bought: pd.DataFrame, windows: int) -> tuple[list[float | None], list[float | None]]:
    """`mix` and `unknown` of each window, of as many buyers as the smallest window has that has enough.

    They are drawn once: a mean over draws would vary less for a window with many buyers than for one that is drawn whole.
    """
    parts = [bought.loc[bought["window"] == window, ["user", "item", "kind"]].to_numpy() for window in range(windows)]
    buyers = [np.unique(part[:, 0]) for part in parts]
    enough = [len(one) >= LEAST_USERS for one in buyers]
    many = min((len(one) for one, some in zip(buyers, enough, strict=True) if some), default=0)
    sizes = int(bought["kind"].max()) + 1
    counts = np.array([np.bincount(part[:, 2], minlength=sizes) for part in parts])
    rng = np.random.default_rng(0)

    def drawn(window: int) -> np.ndarray:
        """(many, 3): one purchase of each of so many buyers, since neither who buys much nor a busy month may count for more."""
        part = parts[window][rng.permutation(len(parts[window]))]
        return part[rng.permutation(np.unique(part[:, 0], return_index=True)[1])[:many]]

    mixes: list[float | None] = [None] * windows
    unknowns: list[float | None] = [None] * windows
    for window in range(windows):
        others = counts.sum(axis=0) - counts[window]
        if enough[window] and others.any():
            mixes[window] = _distance(drawn(window)[:, 2], others)
        if window and enough[window] and enough[window - 1]:
            unknowns[window] = float(np.mean(~np.isin(drawn(window)[:, 1], drawn(window - 1)[:, 1])))
    return mixes, unknowns


def _purchases(data: MerchantData) -> pd.DataFrame:
    """One row for each item of each basket that was bought: user, basket (how many came before), item, time."""
    targets = data.histories.targets()
    assert targets.times is not None, "a merchant's events have times"
    user = np.repeat(np.arange(len(targets)), np.diff(targets.offsets))
    frame = pd.DataFrame({"user": user, "basket": targets.baskets, "item": targets.items, "time": targets.times})
    frame["basket"] = frame.groupby("user")["basket"].rank("dense").astype(int) - 1
    return frame


def _edges(times: pd.Series, weeks: int, windows: int) -> np.ndarray:
    """(windows + 1,) datetime64: the last one is just after the last purchase."""
    last = times.max().to_datetime64() + np.timedelta64(1, "us")
    step = np.timedelta64(7 * weeks, "D")
    many = int((last - times.min().to_datetime64()) // step)
    if many < 2:
        raise InputError(
            f"the purchases span less than {2 * weeks} weeks", where="events", expected="two windows at least",
            hint="take shorter ones with --weeks, or wait",
        )  # fmt: skip
    return last.astype("datetime64[us]") - step * np.arange(min(many, windows), -1, -1)


def _categories(data: MerchantData) -> tuple[np.ndarray, str]:
    """(items,) a number for the category of each item, or for the item itself where none has a category."""
    category = data.details.category
    if category is None or not any(category):
        return np.arange(len(data.catalogue)), "item"
    return pd.factorize(pd.Series(category).fillna(""))[0], "category"


def _distance(kinds: np.ndarray, counts: np.ndarray) -> float:
    """Between the shares of `kinds` (purchases,) and those that are counted, (kinds,)."""
    here = np.bincount(kinds, minlength=len(counts))
    return float(np.nan_to_num(jensenshannon(here / here.sum(), counts / counts.sum(), base=2)))


def _unusual(windows: Sequence[Window]) -> tuple[str, ...]:
    def higher(name: str) -> bool:
        values = [value for window in windows if (value := getattr(window, name)) is not None]
        return len(values) > LEAST_WINDOWS and values[-1] > max(values[:-1])

    return tuple(name for name in ("mix", "unknown") if higher(name))


@dataclass(frozen=True)
class _Cases:
    """Baskets to be ranked: user `user[c]`, all up to and with basket `basket[c]`, in window `window[c]`."""

    user: np.ndarray
    basket: np.ndarray
    window: np.ndarray


def _cases(histories: Histories, edges: np.ndarray, users: np.ndarray) -> _Cases:
    """Every basket of these users that was bought in a window and has something before it; a sample where there are too many."""
    assert histories.times is not None
    user = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    kept = histories.is_target & np.isin(user, users) & (histories.baskets > 0)
    window = np.searchsorted(edges, histories.times[kept].astype("datetime64[us]"), side="right") - 1
    rows = np.unique(np.stack([user[kept], histories.baskets[kept], window], axis=1)[window >= 0], axis=0)
    if len(rows) > MOST_CASES:
        rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), MOST_CASES, replace=False))]
    return _Cases(*rows.T)


def _prefixes(histories: Histories, cases: _Cases) -> tuple[Histories, np.ndarray]:
    """A user for each case whose basket has something new for its user, that basket being the last; and which cases they are."""
    parts, kept = [], []
    target = histories.is_target
    for case, (user, basket) in enumerate(zip(cases.user, cases.basket, strict=True)):
        start, end = histories.offsets[user : user + 2]
        rows = np.arange(start, start + np.searchsorted(histories.baskets[start:end], basket, side="right"))
        bought, last = rows[target[rows]], histories.baskets[rows] == basket
        if len(
            np.setdiff1d(histories.items[rows[last & target[rows]]], histories.items[bought[histories.baskets[bought] < basket]])
        ):
            parts.append(rows)
            kept.append(case)
    offsets = np.append(0, np.cumsum([len(rows) for rows in parts])).astype(np.int64)
    at = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    found = replace(
        histories, user_ids=tuple(str(case) for case in kept), offsets=offsets, items=histories.items[at],
        baskets=histories.baskets[at], target=target[at], times=None,
    )  # fmt: skip
    return found, np.array(kept, dtype=np.int64)


def _hits(data: MerchantData, cases: _Cases, part: TextPart, blend: Blend, length: int, k: int) -> pd.DataFrame:
    """User, window and hit (0 or 1) of each case that has something new in its basket."""
    prefixes, kept = _prefixes(data.histories, cases)
    found = pd.DataFrame({"user": cases.user[kept], "window": cases.window[kept]})
    group, _ = group_of(CentralGroup("", pd.RangeIndex(len(data.catalogue)), prefixes), np.arange(len(prefixes)), length)
    if group is None:
        return found.assign(hit=0.0)
    assert len(group.items) == len(found), "each has a history and something new"
    return found.assign(hit=measure(group, part, None, blend, k).hr)


def _of_users(hits: pd.DataFrame) -> np.ndarray:
    """(users,) each user's mean hit."""
    return hits.groupby("user")["hit"].mean().to_numpy(np.float64)


def _rate(users: np.ndarray) -> HitRate | None:
    if not len(users):
        return None
    mean, many = float(users.mean()), len(users)
    squared = 1.96**2 / many
    middle, wide = mean + squared / 2, 1.96 * np.sqrt(mean * (1 - mean) / many + squared / (4 * many))
    low, high = (float(np.clip((middle + side * wide) / (1 + squared), 0.0, 1.0)) for side in (-1, 1))
    return HitRate(mean, low, high, many)


def _change(hits: pd.DataFrame, last: int) -> tuple[float | None, float | None]:
    """The last window's rate over that of the earlier ones together, minus one, and the p-value of the difference.

    Of users who are in both, what is theirs counts in both, which makes the two more alike than those of different people.
    """
    now, before = _of_users(hits[hits["window"] == last]), _of_users(hits[hits["window"] < last])
    if min(len(now), len(before)) < LEAST_USERS or not before.mean():
        return None, None
    found, all_of_them = float(now.mean() - before.mean()), np.concatenate([now, before])
    rng, many = np.random.default_rng(0), len(now)
    sums = np.array([rng.permutation(all_of_them)[:many].sum() for _ in range(PERMUTATIONS)])
    differences = sums / many - (all_of_them.sum() - sums) / len(before)
    further = int((np.abs(differences) >= abs(found) - 1e-12).sum())
    return float(now.mean() / before.mean() - 1), (1 + further) / (1 + PERMUTATIONS)
