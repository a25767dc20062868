"""`fedrec predict`: how likely a user responds to items that are shown, or how it would rate them."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrec.cli.asking import Folder, History, Json, User, comma_separated
from fedrec.cli.terminal import out, print_json, quiet_models, table
from fedrec.errors import InputError
from fedrec.text import visible

__all__ = ["predict"]


def predict(
    path: Folder,
    items: Annotated[str, typer.Option("--items", help="Item ids that are shown, separated by commas.")],
    history: History = None,
    user: User = None,
    merchant: Annotated[str | None, typer.Option("--merchant", help="Who shows them.")] = None,
    ratings: Annotated[
        str | None,
        typer.Option("--ratings", help="How the user rated the history, separated by commas; objective = 'rating' alone."),
    ] = None,
    json: Json = False,
) -> None:
    """Predict the probability of a response to each item, or its rating, from a run with that objective or what it delivered."""
    if (history is None) == (user is None):
        raise InputError("neither a history nor a user, or both", where="--history, --user", expected="one of them")
    quiet_models()
    from fedrec.recommender import MerchantRecommender, Recommender

    recommender, shown = Recommender.load(path), comma_separated(items)
    said = None if ratings is None else _numbers(comma_separated(ratings))
    held, what = None if history is None else comma_separated(history), "probability"
    if isinstance(recommender, MerchantRecommender):
        if said is not None:
            raise InputError("is a merchant's folder", where="--ratings", expected="a run with objective = 'rating'")
        found = recommender.predict(held, shown, merchant, user).tolist()
    elif held is None:
        raise InputError("a run knows no user", where="--user", expected="a merchant's folder, or --history")
    else:
        found = recommender.predict(held, shown, merchant, said).tolist()
        what = "probability" if "response" in recommender.settings["objective"] else "rating"
    if json:
        print_json({"predictions": [{"item_id": item, what: one} for item, one in zip(shown, found, strict=True)]})
        return
    texts = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.texts, strict=True))
    rows = [
        [visible(item), visible(texts[item]), f"{one:.5f}" if what == "probability" else f"{one:.3f}"]
        for item, one in zip(shown, found, strict=True)
    ]
    title = "Probability of a response" if what == "probability" else "Predicted rating"
    out.print(table(title, ["item", "text", what], rows))


def _numbers(texts: list[str]) -> list[float]:
    try:
        return [float(one) for one in texts]
    except ValueError as error:
        raise InputError(str(error), where="--ratings", expected="numbers, separated by commas") from None
