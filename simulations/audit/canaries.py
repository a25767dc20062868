"""Made-up users whom an auditor would recognise, and histories with them."""

from __future__ import annotations

import numpy as np

from fedrec.data import Catalogue, Histories
from fedrec.data.shown import Shown
from fedrec.errors import InputError

__all__ = ["disjoint_canaries", "joined", "make_canaries", "pair_canaries", "shown_canaries"]

FEWEST = 8
CANARY_STREAM = 0xCA9A
"""Keeps the canaries apart from whatever else a seed is used for."""


def make_canaries(catalogue: Catalogue, count: int, seed: int, positions: int = 1) -> Histories:
    """Made-up users who bought one random item of the public catalogue, and later others, one at a time.

    No two begin with the same pair, so no two have the same gradient.

    Args:
        positions: baskets to predict: items after the first, all different.

    Raises:
        InputError: `count` is under 8, or more than the ordered pairs of items; or there are too few items.
    """
    items = len(catalogue)
    pairs = items * (items - 1)
    if not FEWEST <= count <= pairs:
        expected = f"{FEWEST} to {pairs}, the ordered pairs of {items} items"
        raise InputError(f"found {count}", where="--canaries", expected=expected)
    if positions >= items:
        raise InputError(f"found {positions}", where="positions", expected=f"under {items}, the items of the catalogue")
    rng = np.random.default_rng([seed, CANARY_STREAM])
    first, second = np.divmod(rng.permutation(pairs)[:count], items - 1)
    bought = np.stack([first, second + (second >= first)], axis=1)
    rest = [rng.choice(np.setdiff1d(np.arange(items), pair), positions - 1, replace=False) for pair in bought]
    return _users(np.concatenate([bought, np.array(rest).reshape(count, -1)], axis=1))


def shown_canaries(catalogue: Catalogue, count: int, seed: int, impressions: int) -> Histories:
    """Made-up users who bought one random item of the public catalogue and were then shown others, with random answers.

    No two begin with the same pair of what was bought and what was shown first.

    Args:
        impressions: shown to each, all different.

    Raises:
        InputError: see `make_canaries`.
    """
    planted = make_canaries(catalogue, count, seed, impressions)
    items, rng = planted.items.reshape(count, -1), np.random.default_rng([seed, CANARY_STREAM, impressions])
    offsets = impressions * np.arange(count + 1, dtype=np.int64)
    answer = rng.random(count * impressions) < 0.5
    shown = Shown(offsets, items[:, 1:].reshape(-1), np.ones(count * impressions, dtype=np.int64), answer)
    return Histories(
        _names(count), np.arange(count + 1, dtype=np.int64), items[:, 0].copy(), np.zeros(count, np.int64), shown=shown
    )


def disjoint_canaries(catalogue: Catalogue, count: int, seed: int) -> Histories:
    """Made-up users who share no text: each bought all items of as many texts as there are for each.

    Raises:
        InputError: `count` is under 8, or more than the catalogue's texts.
    """
    texts = np.unique(catalogue.keys)
    if not FEWEST <= count <= len(texts):
        raise InputError(f"found {count}", where="--canaries", expected=f"{FEWEST} to {len(texts)}, the texts of the catalogue")
    each = len(texts) // count
    shuffled = np.random.default_rng([seed, CANARY_STREAM]).permutation(texts)[: count * each].reshape(count, each)
    bought = [np.flatnonzero(np.isin(catalogue.keys, own)) for own in shuffled]
    offsets = np.cumsum([0, *map(len, bought)]).astype(np.int64)
    return Histories(_names(count), offsets, np.concatenate(bought), np.zeros(offsets[-1], dtype=np.int64))


def pair_canaries(catalogue: Catalogue, count: int, seed: int) -> Histories:
    """Made-up users with one basket of two items each, no two of them with the same pair.

    Raises:
        InputError: `count` is under 8, or more than the pairs of items.
    """
    items = len(catalogue)
    first, second = np.triu_indices(items, 1)
    if not FEWEST <= count <= len(first):
        raise InputError(f"found {count}", where="--canaries", expected=f"{FEWEST} to {len(first)}, the pairs of {items} items")
    drawn = np.random.default_rng([seed, CANARY_STREAM]).permutation(len(first))[:count]
    bought = np.stack([first[drawn], second[drawn]], axis=1)
    offsets = 2 * np.arange(count + 1, dtype=np.int64)
    return Histories(_names(count), offsets, bought.reshape(-1).astype(np.int64), np.zeros(2 * count, dtype=np.int64))


def joined(first: Histories, second: Histories) -> Histories:
    """The users of both; those of one of them may have searched."""
    return Histories(
        first.user_ids + second.user_ids,
        np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        np.concatenate([first.items, second.items]),
        np.concatenate([first.baskets, second.baskets]),
        None if first.target is None and second.target is None else np.concatenate([first.is_target, second.is_target]),
        queries=first.queries or second.queries,
        shown=_both(first, second),
    )


def _both(first: Histories, second: Histories) -> Shown | None:
    """What the users of both were shown; None where nothing is known of either."""
    if first.shown is None and second.shown is None:
        return None
    one, other = (histories.shown or _nothing(len(histories)) for histories in (first, second))
    return Shown(
        np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]),
        *(np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("items", "before", "answer")),
    )


def _nothing(users: int) -> Shown:
    none = np.zeros(0, dtype=np.int64)
    return Shown(np.zeros(users + 1, dtype=np.int64), none, none, none.astype(bool))


def _users(bought: np.ndarray) -> Histories:
    """One user a row of (users, baskets) items."""
    count, baskets = bought.shape
    numbers = np.tile(np.arange(baskets, dtype=np.int64), count)
    return Histories(_names(count), baskets * np.arange(count + 1, dtype=np.int64), bought.reshape(-1).astype(np.int64), numbers)


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"canary-{number}" for number in range(count))
