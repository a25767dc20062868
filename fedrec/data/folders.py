"""The merchant folder and the federation folder: what a run reads.

Merchant folder: `merchant.toml`, and `items.{parquet,csv}` and `events.{parquet,csv}` unless
its `[data]` table names another folder or a database.
Federation folder: `merchants/<name>/` as above, and `central/` with `items`, the
consenting held-out users' `events`, both with a `merchant` column where merchants have
catalogues of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedrec.data.catalogue import Catalogue, ambiguous_id
from fedrec.data.histories import Histories
from fedrec.data.schema import Columns as C
from fedrec.data.source import DataSource
from fedrec.data.tables import check_events, check_items, check_merchants, find_table, read_table
from fedrec.errors import InputError

__all__ = ["CentralData", "CentralGroup", "MerchantData", "load_central", "load_merchant", "merchant_folders"]

SHARED = "all"
"""Name of the one group of central users where merchants share a catalogue."""


@dataclass(frozen=True)
class MerchantData:
    """A merchant's catalogue (public) and its users' histories (private)."""

    catalogue: Catalogue
    histories: Histories


@dataclass(frozen=True)
class CentralGroup:
    """Central users who are ranked against the same catalogue.

    Attributes:
        name: the merchant, or `all` where merchants share a catalogue.
        positions: (items,) the group's items as positions in the central catalogue.
        histories: the users; item indices point into the *central* catalogue.
    """

    name: str
    positions: pd.Index
    histories: Histories


@dataclass(frozen=True)
class CentralData:
    """The server's own data: the union of the public catalogues and consenting users."""

    catalogue: Catalogue
    groups: tuple[CentralGroup, ...]


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


def load_merchant(folder: Path, source: DataSource | None = None) -> MerchantData:
    """Read and check a merchant's tables.

    Args:
        folder: the merchant folder.
        source: where its tables are, by default in the folder itself.

    Raises:
        InputError: naming file or query, column and row; or the database cannot be read.
    """
    source = source or DataSource()
    if source.url is not None:
        return _from_database(folder, source)
    tables = folder / (source.path or "")
    items_path, events_path = find_table(tables, "items"), find_table(tables, "events")
    catalogue = Catalogue.from_table(check_items(read_table(items_path), items_path))
    events = check_events(read_table(events_path), events_path, catalogue.index, items_path.name)
    return MerchantData(catalogue, Histories.from_table(events, catalogue))


def _from_database(folder: Path, source: DataSource) -> MerchantData:
    from fedrec.data.sql import place_of, read_queries

    items, events = read_queries(source, folder)
    # A database may answer in another order every time, and what is cached for a catalogue is for one order.
    items = check_items(items, place_of(folder, "items")).sort_values(C.ITEM, ignore_index=True)
    catalogue = Catalogue.from_table(items)
    events = check_events(events, place_of(folder, "events"), catalogue.index, "the result of [data] items")
    return MerchantData(catalogue, Histories.from_table(events, catalogue))


def load_central(federation: Path) -> CentralData:
    """Read and check `central/`.

    Raises:
        InputError: naming file, column and row.
    """
    folder = federation / "central"
    items_path, events_path = find_table(folder, "items"), find_table(folder, "events")
    items, events = read_table(items_path), read_table(events_path)
    own_catalogues = C.MERCHANT in items.columns
    key = (C.MERCHANT, C.ITEM) if own_catalogues else (C.ITEM,)
    items = check_items(items, items_path, key)
    if (ambiguous := ambiguous_id(items)) is not None:
        raise InputError(
            f"item_id {ambiguous!r} has different texts at different merchants",
            where=f"{items_path}, column {C.ITEM}",
            expected="an id that means one thing",
            hint="put the merchant's name before the id, here and in the events",
        )
    catalogue = Catalogue.from_table(items.drop_duplicates(C.ITEM))
    events = check_events(events, events_path, catalogue.index, items_path.name)
    if own_catalogues:
        events = check_merchants(events, events_path, items)
    groups = tuple(_central_groups(items, events, catalogue, own_catalogues))
    return CentralData(catalogue, groups)


def _central_groups(
    items: pd.DataFrame, events: pd.DataFrame, catalogue: Catalogue, own_catalogues: bool
) -> Iterator[CentralGroup]:
    if not own_catalogues:
        yield CentralGroup(SHARED, pd.RangeIndex(len(catalogue)), Histories.from_table(events, catalogue))
        return
    for name, rows in events.groupby(C.MERCHANT):
        own = items.loc[items[C.MERCHANT] == name, C.ITEM]
        positions = pd.Index(sorted(catalogue.index.get_indexer(own)))
        yield CentralGroup(str(name), positions, Histories.from_table(rows, catalogue))
