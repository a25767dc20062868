"""Do searches help: the same training with and without them, measured on who searched just before they bought.

    python -m benchmarks.queries OUT FEDERATION

FEDERATION is a federation folder whose merchants have events without searches. No public data set has a merchant's searches
beside its purchases, so they are **synthetic**: before a user's last basket, and before a third of those just before that,
stands a search of one to three words of the title of one item that is in the basket, each replaced with the chance `NOISE` by
a word of another title. So the figures say what the model makes of searches that mean what is bought next, and not how
often people search like that.

Everything is measured on the server's users, all of whom then have a search as their last event. `queries.json` has the rows;
interrupted, it goes on after the last of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.cli.terminal import print_json, quiet_libraries
from fedrec.config import RunConfig, parse_overrides, write_atomically
from fedrec.data import Columns, load_central
from fedrec.data.tables import write_table
from fedrec.evaluation import bootstrap_interval
from fedrec.model import Arrays, TextEncoder
from server.evaluation import CentralEvaluator
from server.start import first_state, load_encoder_for
from simulations.reference import Pooled, plain_counts, reference_rounds
from simulations.run import simulate

__all__ = ["main", "with_searches"]

NOISE, SHARE, EARLIER = 0.3, 1 / 3, 1
WORDS, ROWS = 3, "queries.json"
KINDS = NONE, PLANNED = "none", "planned"
"""Of noise: none, and no clipping, or what the settings' epsilon asks for."""
Trained = tuple[Arrays, Arrays]
"""The public part and what was trained."""


def main() -> None:
    """Train four times, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("federation", type=Path)
    parser.add_argument("--merchants", type=int, default=4, help="so many of the largest take part")
    parser.add_argument("--noise", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="a setting of the runs")
    args = parser.parse_args()
    quiet_libraries()
    plain, searched = args.out / "plain", args.out / "searched"
    if not (args.out / ROWS).exists():
        prepare(args.federation, plain, searched, args.merchants)
    settings = {"trust": "secure-aggregation", "encoder_rounds": 0, **parse_overrides(args.settings)}
    config = RunConfig.model_validate(settings)
    encoder = load_encoder_for(config)
    rows = json.loads((args.out / ROWS).read_text()) if (args.out / ROWS).exists() else []
    for noise in args.noise:
        train = _reference if noise == NONE else _private
        for name, federation in (("without", plain), ("with", searched)):
            if any((one["noise"], one["trained"]) == (noise, name) for one in rows):
                continue
            trained = train(federation, args.out / f"run-{name}", config, encoder)
            rows += [{"noise": noise, "trained": name, **one} for one in _measured(trained, plain, searched, config, encoder)]
            write_atomically(args.out / ROWS, json.dumps(rows, indent=1).encode())
    print_json(rows)


def with_searches(events: pd.DataFrame, titles: pd.Series, seed: int) -> pd.DataFrame:
    """The events with searches among them, as the head of this module says.

    Args:
        titles: by item id.
    """
    rng = np.random.default_rng(seed)
    words = titles.str.lower().str.findall(r"[a-z]{3,}")
    every = np.array(sorted({word for found in words for word in found}))
    times = pd.to_datetime(events[Columns.TIME])
    baskets = (
        events.assign(timestamp=times).groupby([Columns.USER, Columns.TIME], sort=True)[Columns.ITEM].agg(list).reset_index()
    )
    from_end = baskets.groupby(Columns.USER).cumcount(ascending=False)
    chosen = (from_end == 0) | ((from_end <= EARLIER) & (rng.random(len(baskets)) < SHARE))
    rows = []
    for user, time, items in baskets[chosen].itertuples(index=False):
        known = words[items[rng.integers(len(items))]]
        said = rng.choice(known, min(len(known), int(rng.integers(1, WORDS + 1))), replace=False) if known else []
        noisy = [str(rng.choice(every)) if rng.random() < NOISE else str(word) for word in said]
        if noisy:
            rows.append((user, time - pd.Timedelta(minutes=5), "search", " ".join(noisy)))
    searches = pd.DataFrame(rows, columns=[Columns.USER, Columns.TIME, Columns.EVENT, Columns.QUERY])
    return pd.concat([events.assign(event="purchase", timestamp=times), searches], ignore_index=True)


def prepare(federation: Path, plain: Path, searched: Path, merchants: int) -> None:
    """Two federation folders, of the largest merchants and of users who can be measured, with and without searches."""
    sizes = {path: len(pd.read_parquet(path / "events.parquet")) for path in (federation / "merchants").iterdir()}
    kept = sorted(sizes, key=lambda path: (-sizes[path], path.name))[:merchants]
    names = {path.name for path in kept}
    for out in (plain, searched):
        shutil.rmtree(out, ignore_errors=True)
        for place in (*kept, federation / "central"):
            folder = out / place.relative_to(federation)
            folder.mkdir(parents=True)
            for file in place.iterdir():
                if file.name in ("items.parquet", "events.parquet", "merchant.toml"):
                    shutil.copy(file, folder)
            events = pd.read_parquet(folder / "events.parquet")
            if Columns.MERCHANT in events:
                events = events[events[Columns.MERCHANT].isin(names)]
            if out == searched:
                items = pd.read_parquet(folder / "items.parquet").drop_duplicates(Columns.ITEM)
                titles = items.set_index(Columns.ITEM)[Columns.TITLE].fillna("").astype(str)
                events = with_searches(events, titles, len(place.name))
            write_table(events, folder / "events.parquet")


def _private(federation: Path, out: Path, config: RunConfig, _: TextEncoder) -> Trained:
    shutil.rmtree(out, ignore_errors=True)
    state = simulate(federation, config, out).load()
    assert state is not None
    return state.public, state.trained


def _reference(federation: Path, _: Path, config: RunConfig, encoder: TextEncoder) -> Trained:
    central, merchants = load_central(federation), Pooled.read(federation)
    evaluator, start = CentralEvaluator(central, config, encoder), first_state(config, central, encoder)
    keys = central.catalogue.keys
    counts = plain_counts(merchants, keys)
    public = {**start.public, "prior.keys": keys, "prior.counts": counts, "prior.floor": np.ones(1, dtype=np.float32)}
    under = evaluator.trains_under(public, start.trained)
    refit = partial(evaluator.trains_under, public)
    rounds = list(reference_rounds(config, merchants, encoder, public, start.trained, under, refit))
    return public, rounds[-1][1]


def _measured(trained: Trained, plain: Path, searched: Path, config: RunConfig, encoder: TextEncoder) -> list[dict[str, Any]]:
    """NDCG of the untrained start and of what was trained, for who ranks with searches and who does not."""
    public, after = trained
    before = {name: np.zeros_like(value) for name, value in after.items()}
    rows = []
    for ranks, federation in (("without", plain), ("with", searched)):
        evaluator = CentralEvaluator(load_central(federation), config, encoder)
        for what, arrays in (("start", before), ("trained", after)):
            values = evaluator.per_user(public, arrays, evaluator.scoring(public, arrays)).ndcg
            low, high = bootstrap_interval(values, config.bootstrap, config.seed)
            rows.append(
                {"text": what, "ranks": ranks, "users": len(values), "ndcg": float(values.mean()), "low": low, "high": high}
            )
    return rows


if __name__ == "__main__":
    main()
