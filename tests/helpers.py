"""What several test files share: naive oracles, a tiny federation and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from flwr.app import Context, Message

from fedrec.config import RunConfig
from fedrec.data import Columns, Histories
from fedrec.data.split import split_source
from fedrec.privacy import Ledger
from fedrec.wire import DELIVER
from server.run_folder import RunFolder
from simulations.engines import InlineGrid
from simulations.run import simulate

from .conftest import WORDS, write_source

USER = "customer-{}-secret"
"""A user id long enough that it does not turn up in random bytes by chance."""
QUERIES = [f"{word}-searched-secret" for word in WORDS]
"""And words of searches, which the encoder knows in part."""


def naive_ranks(scores: np.ndarray, masked: list[int], relevant: list[int]) -> list[int]:
    """Ranks by counting: others that are as good, and relevant items that are better or come earlier."""
    others = [j for j in range(len(scores)) if j not in masked and j not in relevant]
    out = []
    for place, item in enumerate(relevant):
        rank = sum(scores[j] >= scores[item] for j in others)
        rank += sum(
            scores[j] > scores[item] or (scores[j] == scores[item] and before < place)
            for before, j in enumerate(relevant)
            if j != item
        )
        out.append(int(rank))
    return out


def last_positions(items: np.ndarray, baskets: np.ndarray, most: int) -> list[tuple[int, np.ndarray]]:
    """A user's last baskets with something new: (basket number, its new items), latest first."""
    first = np.zeros(len(items), dtype=bool)
    first[np.unique(items, return_index=True)[1]] = True
    first &= baskets > 0  # the first basket has no history before it
    numbers = np.unique(baskets[first])[::-1][:most]
    return [(int(number), items[first & (baskets == number)]) for number in numbers]


def subset(histories: Histories, users: list[int]) -> Histories:
    """The same for some users only."""
    rows = [np.arange(histories.offsets[u], histories.offsets[u + 1]) for u in users]
    at = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Histories(tuple(histories.user_ids[u] for u in users), offsets, histories.items[at], histories.baskets[at])


def with_searches(events: pd.DataFrame, share: float = 0.7, seed: int = 0, words: Sequence[str] = WORDS) -> pd.DataFrame:
    """A search of a few words half a day before some of the baskets."""
    rng = np.random.default_rng(seed)
    keys = [name for name in ("merchant", Columns.USER, Columns.TIME) if name in events]
    visits = events[keys].drop_duplicates()
    visits = visits[rng.random(len(visits)) < share]
    queries = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(len(visits))]
    searches = visits.assign(event="search", query=queries, timestamp=visits[Columns.TIME] - pd.Timedelta(hours=12))
    return pd.concat([events.assign(event="purchase"), searches], ignore_index=True)


def with_impressions(events: pd.DataFrame) -> pd.DataFrame:
    """Events that are purchases, and impressions after them: users respond to every third of 30 items."""
    shown, rng = events.sample(frac=1.5, replace=True, random_state=0).reset_index(drop=True), np.random.default_rng(0)
    number = rng.integers(0, 30, len(shown))
    chance = np.where(number % 3 == 0, 0.8, 0.1)
    shown = shown.assign(
        item_id=[f"i{one}" for one in number], event="impression", value=(rng.random(len(shown)) < chance).astype(int).astype(str)
    )
    both = pd.concat([events.assign(event="purchase"), shown], ignore_index=True)
    both["timestamp"] = both["timestamp"] + pd.to_timedelta((both["event"] == "impression").astype(int), unit="h")
    return both


def make_federation(
    folder: Path,
    own_catalogues: bool = False,
    merchants: int = 3,
    users: int = 40,
    policy: dict[str, object] | None = None,
    searches: bool = False,
    impressions: bool = False,
) -> Path:
    """A federation folder of a few small merchants whose user ids, and searches, can be told from anything else."""
    source = write_source(folder / "source", merchants=merchants, users=users, own_catalogues=own_catalogues)
    events = pd.read_parquet(source / "events.parquet")
    events["user_id"] = [USER.format(name) for name in events["user_id"]]
    if searches:
        events = with_searches(events, words=QUERIES)
    if impressions:
        events = with_impressions(events)
    events.to_parquet(source / "events.parquet", index=False)
    split_source(source, folder / "federation", 0.3, {"epsilon": 8.5, "delta": 1e-5, **(policy or {})})
    return folder / "federation"


def set_policy(federation: Path, merchant: str, **values: object) -> None:
    """Change one merchant's `[privacy]` table."""
    import tomllib

    import tomli_w

    path = federation / "merchants" / merchant / "merchant.toml"
    settings = tomllib.loads(path.read_text())
    path.write_text(tomli_w.dumps({**settings, "privacy": {**settings["privacy"], **values}}))


PLANNED = {"histogram_noise_multiplier": 1.86, "noise_multiplier": 0.95, "encoder_noise_multiplier": 1.27}
"""The noise that `plan_noise` finds in seconds for three rounds, the last of them on the encoder, rounded up."""


def settings_of(bert: Path, **values: Any) -> RunConfig:
    """Settings of a run that takes a second."""
    small = {
        "server_optimizer": "adam",  # the other stands still where so few users say nothing over the noise
        "encoder": str(bert), "rounds": 3, "encoder_rounds": 1, "rank": 4, "encoder_rank": 2,
        "min_lot": 1, "encoder_sample_rate": 0.5, "bootstrap": 100,
    }  # fmt: skip
    planned = {} if values.keys() & {*small, *PLANNED, "epsilon", "local_steps", "heads"} else PLANNED
    return RunConfig(**{**small, **planned, **values})


def central(folder: RunFolder) -> list[dict[str, float]]:
    """The central metrics of each round."""
    return [line["central"] for line in folder.metrics()]


def ledgers(folder: RunFolder) -> dict[str, Ledger]:
    """Each merchant's ledger."""
    return {path.name.split(".")[0]: Ledger(path, 1e-5) for path in sorted((folder.path / "privacy").glob("*.ledger.jsonl"))}


def ledger_rounds(folder: RunFolder) -> dict[str, list[int]]:
    """The round of each line of each ledger."""
    return {name: [release.round for release in ledger.releases()] for name, ledger in ledgers(folder).items()}


@contextmanager
def recorded(deliveries: bool = False) -> Iterator[list[tuple[Message, Message]]]:
    """Every request and its reply, as they cross the grid.

    Args:
        deliveries: also those with which the adapter comes home; they are no part of the training.
    """
    crossed: list[tuple[Message, Message]] = []
    original = InlineGrid.push_messages

    def push(grid: InlineGrid, messages: Any) -> Any:
        sent = list(messages)
        ids = original(grid, sent)
        pairs = [(message, grid._replies[name]) for message, name in zip(sent, ids, strict=True)]
        crossed.extend(pair for pair in pairs if deliveries or pair[0].metadata.message_type != DELIVER)
        return ids

    with patch.object(InlineGrid, "push_messages", push):
        yield crossed


Tamper = Callable[[Message, Context, Message], Message]


def simulate_with(federation: Path, config: RunConfig, out: Path, tamper: Tamper) -> RunFolder:
    """A run in which `tamper(request, context, reply)` stands between the ClientApp and the server while it trains."""
    import clients.app

    honest = clients.app.app

    def between(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        return reply if message.metadata.message_type == DELIVER else tamper(message, context, reply)

    with patch.object(clients.app, "app", between):
        return simulate(federation, config, out)
