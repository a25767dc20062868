"""The merchant folder and the federation folder: what a run reads.

Merchant folder: `merchant.toml`, and `items.{parquet,csv}` and `events.{parquet,csv}` unless
its `[data]` table names another folder or a database.
Federation folder: `merchants/<name>/` as above, and `central/` with `items`, the
consenting held-out users' `events`, both with a `merchant` column where merchants have
catalogues of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fedrec.data.catalogue import Catalogue, ambiguous_id
from fedrec.data.details import ItemDetails
from fedrec.data.feedback import with_feedback
from fedrec.data.histories import Histories, distinct_queries
from fedrec.data.kinds import asks, count_kinds, counts_as_target
from fedrec.data.rated import check_rated
from fedrec.data.rows import LeftOut, check_events, check_items
from fedrec.data.schema import Columns as C
from fedrec.data.shown import check_shown
from fedrec.data.source import DataSource
from fedrec.data.tables import find_table, read_table
from fedrec.errors import InputError

__all__ = [
    "CentralData", "CentralGroup", "MerchantData", "Searches", "group_by_merchant", "load_central", "load_merchant",
    "merchant_folders",
]  # fmt: skip

SHARED = "all"
"""Name of the one group of central users where merchants share a catalogue."""


@dataclass(frozen=True)
class Searches:
    """What there is of searches for words, in numbers: the merchant's own business, like all of its events.

    Attributes:
        events: how many.
        users: who searched.
        distinct: different texts.
        longest: of them, in characters.
    """

    events: int = 0
    users: int = 0
    distinct: int = 0
    longest: int = 0

    @classmethod
    def of(cls, events: pd.DataFrame, histories: Histories) -> Searches:
        """Those in checked events."""
        searches = events[asks(events)]
        longest = max(map(len, histories.queries), default=0)
        return cls(len(searches), int(searches[C.USER].nunique()), len(histories.queries), longest)


@dataclass(frozen=True)
class MerchantData:
    """A merchant's catalogue (public) and its users' histories (private).

    Attributes:
        left_out: the rows that could not be used, by reason; they leave the merchant as little as its events do.
        details: brand, category and price of the catalogue's items.
        kinds: rows of each kind of event in the table, used or not; private like the events.
        no_targets: of those that are used, rows of each kind that is history alone.
        searches: of these, those for words.
    """

    catalogue: Catalogue
    histories: Histories
    left_out: tuple[LeftOut, ...] = ()
    details: ItemDetails = field(default_factory=ItemDetails)
    kinds: Mapping[str, int] = field(default_factory=dict)
    no_targets: Mapping[str, int] = field(default_factory=dict)
    searches: Searches = Searches()


@dataclass(frozen=True)
class CentralGroup:
    """Central users who are ranked against the same catalogue.

    Attributes:
        name: the merchant, or `all` where merchants share a catalogue.
        positions: (items,) the group's items as positions in the central catalogue.
        histories: the users; item indices point into the *central* catalogue, those of searches into all groups' queries.
    """

    name: str
    positions: pd.Index
    histories: Histories


@dataclass(frozen=True)
class CentralData:
    """The server's own data: the union of the public catalogues and consenting users.

    Attributes:
        details: brand, category and price of the catalogue's items; an item that several merchants sell has the first one's.
        kinds: rows of each kind of event in the table, used or not.
        queries: the distinct texts that any of the users searched for.
    """

    catalogue: Catalogue
    groups: tuple[CentralGroup, ...]
    left_out: tuple[LeftOut, ...] = ()
    details: ItemDetails = field(default_factory=ItemDetails)
    kinds: Mapping[str, int] = field(default_factory=dict)
    queries: tuple[str, ...] = field(default=(), repr=False)


def merchant_folders(federation: Path) -> list[Path]:
    """The merchants' folders, by name.

    Raises:
        InputError: this is not a federation folder, or it has no merchant.
    """
    folder = federation / "merchants"
    if not folder.is_dir():
        raise InputError(
            "there is no folder merchants/",
            where=str(federation),
            expected="a federation folder: merchants/<name>/ and central/",
            hint="make one with `fedrec data split SOURCE OUT`",
        )
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if not found:
        raise InputError("there is no merchant", where=str(folder))
    return found


def load_merchant(folder: Path, source: DataSource | None = None, *, strict: bool = False) -> MerchantData:
    """Read and check a merchant's tables; a row that cannot be used is left out and counted.

    So one user's bad row fails nobody, and the server cannot see that there is one. What came in as feedback counts as events.

    Args:
        folder: the merchant folder.
        source: where its tables are, by default in the folder itself.
        strict: refuse the first row that would be left out, unless it is a return or of a kind that does not count.

    Raises:
        InputError: naming file or query, column and row; or the database cannot be read.
    """
    source = source or DataSource()
    if source.url is None:
        tables = folder / (source.path or "")
        paths = find_table(tables, "items"), find_table(tables, "events")
        items = check_items(read_table(paths[0]), paths[0].name, strict=strict)
        sold, events = items.frame, read_table(paths[1])
    else:
        from fedrec.data.sql import read_queries

        products, events = read_queries(source, folder)
        items = check_items(products, "the result of [data] items", strict=strict)
        # A database may answer in another order every time, and what is cached for a catalogue is for one order.
        sold = items.frame.sort_values(C.ITEM, ignore_index=True)
    catalogue, events = Catalogue.from_table(sold), with_feedback(events, folder)
    checked, left_out = check_events(events, items, history_events=source.history_events, strict=strict)
    target = counts_as_target(checked, source.target_events)
    if not target.any():
        raise InputError(
            f"none of {len(checked)} events is of the kind {' or '.join(source.target_events or ())}", where=events.name,
            expected="something to predict", hint="target_events in [data] says which kinds are targets",
        )  # fmt: skip
    shown, no_answers = check_shown(events, items, strict=strict)
    rated, no_numbers = check_rated(events, items, strict=strict)
    histories = Histories.from_table(checked, catalogue, target, shown=shown, rated=rated)
    return MerchantData(
        catalogue, histories, items.left_out + left_out + no_answers + no_numbers, ItemDetails.from_table(sold),
        count_kinds(events.frame), count_kinds(checked[~target]), Searches.of(checked, histories),
    )  # fmt: skip


def load_central(federation: Path, *, strict: bool = False) -> CentralData:
    """Read and check `central/`, as `load_merchant` does a merchant's tables.

    Raises:
        InputError: naming file, column and row.
    """
    folder = federation / "central"
    items_path, events_path = find_table(folder, "items"), find_table(folder, "events")
    table = read_table(items_path)
    own_catalogues = C.MERCHANT in table.columns
    items = check_items(table, items_path.name, (C.MERCHANT, C.ITEM) if own_catalogues else (C.ITEM,), strict=strict)
    if (ambiguous := ambiguous_id(items.frame)) is not None:
        raise InputError(
            f"item_id {ambiguous!r} has different texts at different merchants",
            where=f"{items_path}, column {C.ITEM}",
            expected="an id that means one thing",
            hint="put the merchant's name before the id, here and in the events",
        )
    sold = items.frame.drop_duplicates(C.ITEM)
    catalogue, read = Catalogue.from_table(sold), read_table(events_path)
    events, left_out = check_events(read, items, merchants=own_catalogues, strict=strict)
    shown, no_answers = check_shown(read, items, merchants=own_catalogues, strict=strict)
    rated, no_numbers = check_rated(read, items, merchants=own_catalogues, strict=strict)
    groups = tuple(_central_groups(items.frame, events, (shown, rated), catalogue, own_catalogues))
    return CentralData(
        catalogue, groups, items.left_out + left_out + no_answers + no_numbers, ItemDetails.from_table(sold),
        count_kinds(read.frame), distinct_queries(events),
    )  # fmt: skip


def group_by_merchant(federation: Path, central: CentralData) -> tuple[CentralGroup, ...]:
    """The central users by the merchant whose customers they are; none where the events do not say.

    Merchants with catalogues of their own have groups already; where they share one, it is each group's.

    Raises:
        InputError: the events cannot be read.
    """
    if len(central.groups) != 1 or central.groups[0].name != SHARED:
        return central.groups
    read = read_table(find_table(federation / "central", "events"))
    if C.MERCHANT not in read.frame:
        return ()
    known = check_items(read_table(find_table(federation / "central", "items")), "items")
    events, _ = check_events(read, known, merchants=True)
    positions = central.groups[0].positions
    return tuple(
        CentralGroup(str(name), positions, Histories.from_table(rows, central.catalogue, queries=central.queries))
        for name, rows in events.groupby(C.MERCHANT)
    )


def _central_groups(
    items: pd.DataFrame, events: pd.DataFrame, labels: tuple[pd.DataFrame | None, pd.DataFrame | None], catalogue: Catalogue,
    own_catalogues: bool,
) -> Iterator[CentralGroup]:  # fmt: skip
    """`labels`: impressions and ratings, as `check_shown` and `check_rated` find them."""
    queries = distinct_queries(events)
    if not own_catalogues:
        histories = Histories.from_table(events, catalogue, None, queries, *labels)
        yield CentralGroup(SHARED, pd.RangeIndex(len(catalogue)), histories)
        return
    for name, rows in events.groupby(C.MERCHANT):
        own = items.loc[items[C.MERCHANT] == name, C.ITEM]
        positions = pd.Index(sorted(catalogue.index.get_indexer(own)))
        here = [None if one is None else one[one[C.MERCHANT] == name] for one in labels]
        histories = Histories.from_table(rows, catalogue, None, queries, *here)
        yield CentralGroup(str(name), positions, histories)
