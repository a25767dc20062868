"""`fedrec merchant bundles`: sets of items that sell together."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrec.cli.merchant_own import Folder, Json, opened
from fedrec.cli.terminal import out, print_json, table

__all__ = ["bundles"]


def bundles(
    folder: Folder,
    support: Annotated[
        float, typer.Option(help="Least share of the baskets that hold the set; ten baskets in any case.")
    ] = 0.005,
    lift: Annotated[
        float, typer.Option(help="How many times more often than by chance each item is bought with the rest.")
    ] = 2.0,
    k: Annotated[int, typer.Option("--k", min=1, help="How many.")] = 20,
    json: Json = False,
) -> None:
    """Sets of two to five items that sell together, each bought at once by ten customers or more. It stays on this machine."""
    place = opened(folder)
    data = place.data()
    from fedrec.recommender.baskets import Baskets
    from fedrec.recommender.baskets.bundles import find_bundles

    baskets = Baskets.of(data.histories, len(data.catalogue))
    found = find_bundles(baskets, data.catalogue, support, lift, k)
    if json:
        print_json({"merchant": place.settings.name, "baskets": len(baskets), "bundles": [one.to_json() for one in found]})
        return
    if not found:
        out.print("no set of items is bought together so often by ten customers; a lower --support or --lift finds more")
        return
    rows = [[one.title, " ".join(one.item_ids), f"{one.baskets:,}", f"{one.lift:.1f}", f"{one.customers:,}"] for one in found]
    out.print(
        table(f"{place.settings.name}: {len(baskets):,} baskets", ["bundle", "items", "baskets", "lift", "customers"], rows)
    )
    out.print("These figures come from your customers' data without noise: they are yours alone.", style="dim")
