"""From one tidy pair of tables to a federation folder with held-out users."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import tomli_w
from pydantic import ValidationError

from fedrec.config import write_atomically
from fedrec.data.catalogue import ambiguous_id
from fedrec.data.rated import check_rated
from fedrec.data.rows import LeftOut, check_events, check_items
from fedrec.data.schema import Columns as C
from fedrec.data.shown import as_events, check_shown
from fedrec.data.tables import find_table, read_table, write_table
from fedrec.errors import InputError
from fedrec.privacy.policy import Policy

__all__ = ["public_population", "split_source", "write_federation"]


def public_population(users: int) -> int:
    """A merchant's number of users rounded to one significant digit and a half (1, 1.5, 2, 2.5 ...).

    The population is declared in public (it is the denominator of the expected lot), so it
    must not move with one user; see the privacy contract, line 9.
    """
    if users <= 0:
        raise ValueError(f"expected a positive number of users, found {users}")
    step = 10 ** math.floor(math.log10(users)) / 2
    return max(1, round(round(users / step) * step))


def split_source(
    source: Path,
    out: Path,
    holdout: float,
    policy: dict[str, object],
    *,
    strict: bool = False,
    tell: Callable[[LeftOut], object] = lambda _: None,
) -> pd.DataFrame:
    """Turn `events` (with a `merchant` column) and `items` in `source` into a federation folder.

    Args:
        source: folder with the two tables; where `items` has a `merchant` column too, each
            merchant gets its own catalogue, else all share one.
        out: folder to make; it must not exist or be empty.
        holdout: share of each merchant's users who go to `central/` with all of their events.
        policy: the `[privacy]` table of every `merchant.toml`; `population` is added.
        strict: refuse the first row that would be left out, unless it is a return or of a kind that does not count.
        tell: is told what was left out, before anything is written.

    Returns:
        One row a merchant: users, events, items, held-out users, population.

    Raises:
        InputError: bad tables, a bad policy, or `out` is not empty; nothing has been written.
    """
    items_path, events_path = find_table(source, "items"), find_table(source, "events")
    table = read_table(items_path)
    own_catalogues = C.MERCHANT in table.columns
    items = check_items(table, items_path.name, (C.MERCHANT, C.ITEM) if own_catalogues else (C.ITEM,), strict=strict)
    read = read_table(events_path)
    events, left_out = check_events(read, items, merchants=True, strict=strict)
    shown, no_answers = check_shown(read, items, merchants=True, strict=strict)
    _, no_numbers = check_rated(read, items, merchants=True, strict=strict)  # they are among the events, with their values
    for one in items.left_out + left_out + no_answers + no_numbers:
        tell(one)
    return write_federation(items.frame, with_shown(events, shown), out, holdout, policy)


def with_shown(events: pd.DataFrame, shown: pd.DataFrame | None) -> pd.DataFrame:
    """Checked events, and the impressions of their users as rows of the same table."""
    if shown is None:
        return events
    users = pd.MultiIndex.from_frame(events[[C.MERCHANT, C.USER]].drop_duplicates())
    known = pd.MultiIndex.from_frame(shown[[C.MERCHANT, C.USER]]).isin(users)
    return pd.concat([events, as_events(shown[known])], ignore_index=True)


def write_federation(
    items: pd.DataFrame,
    events: pd.DataFrame,
    out: Path,
    holdout: float,
    policy: dict[str, object],
    progress: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Write checked tables as a federation folder; see `split_source`.

    Held-out users are chosen by a hash of merchant and user, so the choice is the same on
    every machine and does not depend on the order of rows.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is already there", where=str(out), hint="give a new folder, or remove it first")
    if not 0 < holdout < 1:
        raise InputError(f"found {holdout}", where="--holdout", expected="a share between 0 and 1")
    users = events[[C.MERCHANT, C.USER]].astype(str).drop_duplicates()
    held = pd.Series(
        [_share(merchant, user) < holdout for merchant, user in users.itertuples(index=False)],
        index=pd.MultiIndex.from_frame(users),
    )
    is_held = held.reindex(pd.MultiIndex.from_frame(events[[C.MERCHANT, C.USER]].astype(str))).to_numpy()
    # Faults come before the first file, so that a refused split leaves nothing behind.
    if not is_held.any():
        raise InputError("no user is held out", where="--holdout", hint="raise it: the central evaluation needs users")
    emptied = set(events[C.MERCHANT]) - set(events.loc[~is_held, C.MERCHANT])
    if emptied:
        raise InputError(f"merchant {min(emptied)} has no user left after the hold-out", hint="lower --holdout or drop it")
    counts = events[~is_held].groupby(C.MERCHANT)[C.USER].nunique()
    policies = {str(name): _policy(str(name), {**policy, "population": public_population(n)}) for name, n in counts.items()}
    summary = []
    for name, rows in events.groupby(C.MERCHANT):
        progress(str(name))
        own = rows[~is_held[rows.index]].drop(columns=C.MERCHANT)
        catalogue = items[items[C.MERCHANT] == name].drop(columns=C.MERCHANT) if C.MERCHANT in items.columns else items
        folder = out / "merchants" / str(name)
        settings = {"name": str(name), "privacy": policies[str(name)]}
        write_table(catalogue, folder / "items.parquet")
        write_table(own, folder / "events.parquet")
        write_atomically(folder / "merchant.toml", tomli_w.dumps(settings).encode())
        held_out, population = int(held[str(name)].sum()), policies[str(name)]["population"]
        summary.append((str(name), int(counts[name]), len(own), len(catalogue), held_out, population))
    central_items, central_events = items, events[is_held]
    if C.MERCHANT in items.columns and ambiguous_id(items) is not None:
        # Merchants use the same ids for different things: at the server an id names its merchant too.
        central_items, central_events = (_with_merchant_in_id(table) for table in (central_items, central_events))
    write_table(central_items, out / "central" / "items.parquet")
    write_table(central_events, out / "central" / "events.parquet")
    return pd.DataFrame(summary, columns=["merchant", "users", "events", "items", "held_out_users", "population"])


def _policy(merchant: str, values: dict[str, object]) -> dict[str, object]:
    """`values`, if they are a policy that merchants may have."""
    try:
        Policy.model_validate(values).check_delta(where=f"the policy of merchant {merchant}")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key} = {first['input']!r}: {first['msg'].lower()}", where="the merchants' policy") from None
    return values


def _with_merchant_in_id(table: pd.DataFrame) -> pd.DataFrame:
    named = table[C.MERCHANT].astype(str) + ":" + table[C.ITEM].astype(str)
    return table.assign(**{C.ITEM: named.where(table[C.ITEM].notna())})  # a search has no item


def _share(merchant: str, user: str) -> float:
    digest = hashlib.blake2b(f"{merchant}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
