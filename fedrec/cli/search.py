"""`fedrec search`: items for words."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrec.cli.asking import (
    Brand,
    Category,
    Exclude,
    Folder,
    Json,
    K,
    Merchant,
    PriceMax,
    PriceMin,
    Stock,
    excluded,
    ids_in,
)  # fmt: skip
from fedrec.cli.recommend import show_answer
from fedrec.cli.terminal import quiet_models

__all__ = ["search"]


def search(
    path: Folder,
    query: Annotated[str, typer.Argument(metavar="WORDS", help="Words, an item id, a title or a part number.")],
    merchant: Merchant = None,
    k: K = 10,
    category: Category = None,
    brand: Brand = None,
    price_min: PriceMin = None,
    price_max: PriceMax = None,
    stock: Stock = None,
    exclude: Exclude = "",
    language: Annotated[
        str | None, typer.Option(help="Of the items' texts; `none` takes words as they are. As set, by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Search a catalogue by words: what they name exactly first, then what they say and what they mean."""
    quiet_models()
    from fedrec.recommender import Filter, Recommender

    only = None if stock is None else ids_in(stock)
    wanted = Filter(category or (), brand or (), price_min, price_max, only)
    recommender = Recommender.load(path)
    answer = recommender.search(query, k, wanted, excluded(exclude), merchant, language)
    show_answer(answer, dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True)), json)
