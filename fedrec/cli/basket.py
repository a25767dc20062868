"""`fedrec basket`: what completes a basket."""

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
    comma_separated,
    excluded,
    ids_in,
)  # fmt: skip
from fedrec.cli.explain import View, show_reasons
from fedrec.cli.recommend import show_answer
from fedrec.cli.terminal import quiet_models

__all__ = ["basket"]


def basket(
    path: Folder,
    items: Annotated[str, typer.Option("--items", help="Item ids of the basket, separated by commas.")],
    query: Annotated[str | None, typer.Option("--query", help="Words for what is looked for; the basket orders them.")] = None,
    merchant: Merchant = None,
    k: K = 10,
    category: Category = None,
    brand: Brand = None,
    price_min: PriceMin = None,
    price_max: PriceMax = None,
    stock: Stock = None,
    exclude: Exclude = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, as `fedrec explain` does.")] = False,
    view: Annotated[View, typer.Option(help="With --explain: exact numbers for staff, or what a shopper may see.")] = View.staff,
    json: Json = False,
) -> None:
    """What goes with a basket, without what would only replace one of its items."""
    quiet_models()
    from fedrec.recommender import Filter, Recommender

    only = None if stock is None else ids_in(stock)
    wanted = Filter(category or (), brand or (), price_min, price_max, only)
    recommender = Recommender.load(path)
    answer = recommender.basket(comma_separated(items), k, query, wanted, excluded(exclude), merchant, explain)
    texts = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True))
    if explain:
        show_reasons(answer, view, texts, json)
    else:
        show_answer(answer, texts, json)
