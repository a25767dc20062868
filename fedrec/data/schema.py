"""The columns of a merchant folder and of a federation folder, named once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedrec.errors import InputError

__all__ = ["Columns", "folded", "known_columns"]


class Columns:
    """Column names that readers, writers and messages share."""

    ITEM = "item_id"
    TITLE = "title"
    BRAND = "brand"
    CATEGORY = "category"
    DESCRIPTION = "description"
    PRICE = "price"

    USER = "user_id"
    TIME = "timestamp"
    EVENT = "event"
    QUERY = "query"
    VALUE = "value"
    QUANTITY = "quantity"
    BASKET = "basket_id"

    MERCHANT = "merchant"

    ITEM_REQUIRED = (ITEM, TITLE)
    EVENT_REQUIRED = (USER, ITEM, TIME)
    IDS = (MERCHANT, USER, ITEM, BASKET)
    TEXT = (TITLE, BRAND, CATEGORY, DESCRIPTION)
    """What an item's text is made of, in this order; absent parts are left out."""
    ALL = (*IDS, *TEXT, PRICE, TIME, EVENT, QUERY, VALUE, QUANTITY)
    """What is read of a table; other columns stay where they are."""


def folded(name: str) -> str:
    """A column's name without what a spreadsheet may change in it: `Item ID` is like `item_id`."""
    return re.sub(r"[\W_]+", "", name).casefold()


def known_columns(names: Sequence[str], where: str, hint: str = "rename one of them") -> list[str]:
    """The names among `names` that are in `Columns.ALL`.

    Raises:
        InputError: one of them is there twice.
    """
    known = [name for name in names if name in Columns.ALL]
    if twice := [name for name in known if known.count(name) > 1]:
        raise InputError(f"column {twice[0]!r} is there twice", where=where, hint=hint)
    return known
