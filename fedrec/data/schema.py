"""The columns of a merchant folder and of a federation folder, named once."""

from __future__ import annotations

__all__ = ["Columns"]


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
    VALUE = "value"
    QUANTITY = "quantity"
    BASKET = "basket_id"

    MERCHANT = "merchant"

    ITEM_REQUIRED = (ITEM, TITLE)
    EVENT_REQUIRED = (USER, ITEM, TIME)
    TEXT = (TITLE, BRAND, CATEGORY, DESCRIPTION)
    """What an item's text is made of, in this order; absent parts are left out."""
