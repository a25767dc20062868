"""The public items that an encoder is adapted on: a catalogue and its parts, and never what anybody did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedrec.data import Catalogue, Columns, ItemDetails
from fedrec.data.rows import check_items
from fedrec.data.tables import find_table, read_table
from fedrec.errors import InputError

__all__ = ["PublicItems"]


@dataclass(frozen=True)
class PublicItems:
    """Items by their text.

    Attributes:
        catalogue: one item an id.
        titles: (items,) its title.
        others: (items,) brand, category and description; empty where there are none.
        details: brand, category and price.
    """

    catalogue: Catalogue
    titles: tuple[str, ...]
    others: tuple[str, ...]
    details: ItemDetails

    @classmethod
    def read(cls, source: Path) -> PublicItems:
        """The items of a federation folder, of a run's, or of a folder with a table `items`; events are not looked at.

        Raises:
            InputError: there is no such table, or it or the run's `site.json` cannot be read.
        """
        folder = _folder_of(source)
        table = read_table(find_table(folder, "items"))
        key = (Columns.MERCHANT, Columns.ITEM) if Columns.MERCHANT in table.columns else (Columns.ITEM,)
        items = check_items(table, str(folder / "items"), key).frame.drop_duplicates(Columns.ITEM)
        catalogue = Catalogue.from_table(items)
        titles = tuple(items[Columns.TITLE].fillna("").astype(str).str.strip())
        rest = items.assign(**{Columns.TITLE: ""})
        return cls(catalogue, titles, Catalogue.from_table(rest).texts, ItemDetails.from_table(items))


def _folder_of(source: Path) -> Path:
    site = source / "site.json"
    if site.is_file():
        try:
            source = Path(json.loads(site.read_text(encoding="utf-8"))["federation"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "it does not say which federation was run", where=str(site), expected="the file as the run wrote it",
                hint="give the federation folder",
            ) from None  # fmt: skip
    for folder in (source / "central", source):
        if any((folder / f"items.{kind}").is_file() for kind in ("parquet", "csv")):
            return folder
    raise InputError(
        "there are no items",
        where=str(source),
        expected="a federation folder, a run's, or a folder with items.parquet or items.csv",
    )
