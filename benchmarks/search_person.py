"""A person's search: what a history adds to words, on graded queries and on a merchant's own customers.

    python -m benchmarks.search_person OUT --data FOLDER [--run office=FOLDER] [--merchant uk-1=FOLDER]

DATA is that of `benchmarks.search`. No history comes with it, so histories are made of relevant products of *other* queries,
never of one that is judged for the query itself:

    related     of the three other queries whose words are nearest in meaning; measured by the query's own grades
    query       of one other query that shares relevant products with it: who is interested in that one. What is relevant to
                both is then relevant, and nothing else
    brand       of one brand, whatever the query: who buys that brand. The query's relevant products of the brand are relevant
    unrelated   of three queries of far meaning without a product in common; measured by the query's own grades

The weight is the largest under which the query's own grades lose no more than `RELATED` with related and `UNRELATED` with
unrelated histories over the whole catalogue; it is chosen on four fifths of the queries and told of the fifth that had no part in
it. The history's items are left out of every ranking, that of words alone too. Intervals are over queries. `--merchant` is a
folder with an own layer: `benchmarks.search_shoppers`. Writes OUT/search_person.md and OUT/search_person.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import environment
from benchmarks.search import UNTRAINED, Meaning, meanings
from benchmarks.search_fusions import REPEATS, Queries, interval
from benchmarks.search_shoppers import shoppers
from fedrec.cli.terminal import quiet_libraries, quiet_models
from fedrec.data import Columns, ItemDetails
from fedrec.model.saved import read_adapter
from fedrec.model.towers import Scoring, role_table
from fedrec.recommender.asking import WEIGHT, Asking
from fedrec.recommender.of_run import RunRanker
from fedrec.recommender.past import Past
from fedrec.recommender.shelf import Shelf
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser

__all__ = ["main"]

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
RELATED, UNRELATED = 0.01, 0.003
"""NDCG over the whole catalogue that the query's own grades may lose."""
LONGEST, NEAREST, ALIKE, DRAWS = 8, 3, 0.3, 5
"""Items of a history; queries that it is of, and how near they are at least; unrelated histories of a query."""
KINDS = ("related", "query", "brand", "unrelated")


@dataclass(frozen=True)
class Case:
    """A query of somebody.

    Attributes:
        number: of the query.
        history: positions of the history's items.
        gains: of the query's judged items, what they are worth to this person.
    """

    number: int
    history: np.ndarray
    gains: np.ndarray


@dataclass(frozen=True)
class Makers:
    """Makes histories."""

    queries: Queries
    near: np.ndarray
    brands: np.ndarray
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @classmethod
    def of(cls, queries: Queries, said: np.ndarray, brands: np.ndarray) -> Makers:
        """From the queries' vectors (queries, hidden) and the items' brands (items,)."""
        near = said @ said.T
        np.fill_diagonal(near, -1)
        return cls(queries, near, brands)

    def cases(self) -> dict[str, list[Case]]:
        """By kind of history."""
        found: dict[str, list[Case]] = {kind: [] for kind in KINDS}
        for number in range(len(self.queries.words)):
            gains, own = self.queries.gains[number], self._relevant(number)
            close = [other for other in np.argsort(-self.near[number])[:NEAREST] if self.near[number, other] > ALIKE]
            found["related"] += self._case(number, close, gains)
            for other in range(len(self.queries.words)):
                common = np.intersect1d(own, self._relevant(other))
                if other != number and len(common) >= 2 and len(own) - len(common) >= 2:
                    found["query"] += self._case(number, [other], self._worth(number, common))
            for brand in sorted(set(self.brands[own]) - {""}):
                common = own[self.brands[own] == brand]
                if len(common) >= 2 and len(own) - len(common) >= 2:
                    everyone = [other for other in range(len(self.queries.words)) if other != number]
                    found["brand"] += self._case(number, everyone, self._worth(number, common), brand)
            far = [other for other in self._far(number) if len(self._relevant(other))]
            for _ in range(DRAWS):
                found["unrelated"] += self._case(number, self.rng.permutation(far)[:NEAREST], gains)
        return found

    def _case(self, number: int, others: Sequence[int], gains: np.ndarray, brand: str | None = None) -> list[Case]:
        held = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *map(self._relevant, others)]))
        held = np.setdiff1d(held, self.queries.judged[number])
        if brand is not None:
            held = held[self.brands[held] == brand]
        return [Case(number, self.rng.permutation(held)[:LONGEST], gains)] if len(held) >= 2 else []

    def _relevant(self, number: int) -> np.ndarray:
        """What has grade 2 or 3."""
        return self.queries.judged[number][self.queries.gains[number] >= 3]

    def _worth(self, number: int, relevant: np.ndarray) -> np.ndarray:
        return np.where(np.isin(self.queries.judged[number], relevant), self.queries.gains[number], 0.0)

    def _far(self, number: int) -> list[int]:
        judged, near = self.queries.judged, self.near[number]
        far = np.flatnonzero(near < np.median(near)).tolist()
        return [other for other in far if not len(np.intersect1d(judged[number], judged[other]))]


def asking_of(queries: Queries, index: BM25Index, meaning: Meaning, run: str | None) -> Asking:
    """Text alone: the encoder's, or under the heads of NAME=FOLDER; nobody knows what is popular here."""
    history, candidate, scoring, length = meaning.vectors, meaning.vectors, Scoring(1.0, 0.0, 0.1), 50
    if run is not None:
        arrays, settings, _ = read_adapter(Path(run.partition("=")[2]) / "adapter")
        e = torch.from_numpy(meaning.vectors)
        history, candidate = (role_table(e, arrays, arrays, role).numpy() for role in ("history", "candidate"))
        scoring, length = Scoring(**settings["scoring"]), settings["history"]
    nothing, everything = np.zeros(len(candidate), dtype=np.float32), np.arange(len(candidate))
    shelf = Shelf.stocked(queries.catalogue, history, everything, candidate, nothing, scoring.temperature)
    searcher = Searcher(queries.catalogue, index, meaning.vectors, meaning.encode)
    return Asking(RunRanker(shelf, ItemDetails(), candidate, nothing, scoring.decay, length), lambda: searcher, 1.0)


def measured(queries: Queries, asking: Asking, cases: Sequence[Case]) -> np.ndarray:
    """(1 + weights, queries with a case, 2) NDCG, first of the history alone; the mean of a query's cases counts."""
    rows = []
    for case in cases:
        past, words = Past(case.history, np.arange(len(case.history))), queries.words[case.number]
        alone, nobody = asking.ranker.scores([past])[0], Past(*(np.zeros(0, dtype=np.int64),) * 2)
        search = asking.scores([nobody], words)[0]
        added, own = asking.scores([past], words)[0] - search, []
        for scores in (alone, *(search + np.float32(weight) * added for weight in WEIGHTS)):
            scores = scores.copy()
            scores[case.history] = -np.inf
            own.append(queries.ndcg(case.number, scores, case.gains))
        rows.append(own)
    numbers, found = np.array([case.number for case in cases]), np.array(rows)  # (cases, 1 + weights, 2)
    return np.stack([found[numbers == number].mean(axis=0) for number in np.unique(numbers)], axis=1)


def chosen(found: Mapping[str, np.ndarray], numbers: Mapping[str, np.ndarray], train: np.ndarray) -> int:
    """Which weight, by the queries `train` (queries,) of them."""
    best = 0
    for place in range(len(WEIGHTS)):
        lost = {kind: (found[kind][1] - found[kind][1 + place])[train[numbers[kind]], 0].mean() for kind in numbers}
        if lost["related"] <= RELATED and lost["unrelated"] <= UNRELATED:
            best = place
    return best


def table(queries: Queries, asking: Asking, cases: Mapping[str, Sequence[Case]], folds: int) -> dict[str, Any]:
    """For each kind of history: words, history, both with the weight of other queries, and what the history adds to the words."""
    found = {kind: measured(queries, asking, some) for kind, some in cases.items()}
    numbers = {kind: np.unique([case.number for case in some]) for kind, some in cases.items()}
    both = {kind: np.zeros(values.shape[1:]) for kind, values in found.items()}
    for seed in range(REPEATS):
        fold = np.random.default_rng(seed).permutation(len(queries.words)) % folds
        for number in range(folds):
            place = 1 + chosen(found, numbers, fold != number)
            for kind, values in found.items():
                test = fold[numbers[kind]] == number
                both[kind][test] += values[place][test] / REPEATS
    rows = []
    for kind, values in found.items():
        ways = {"words": values[1], "history": values[0], "both": both[kind], "added": both[kind] - values[1]}
        served = values[1 + WEIGHTS.index(WEIGHT)] - values[1]
        rows.append({"kind": kind, "queries": len(numbers[kind]), "people": len(cases[kind])} | {
            name: {"mean": one.mean(axis=0).tolist(), "intervals": [interval(one[:, column]) for column in (0, 1)]}
            for name, one in (ways | {"served": served}).items()
        })  # fmt: skip
    every = chosen(found, numbers, np.ones(len(queries.words), dtype=bool))
    return {"rows": rows, "chosen": WEIGHTS[every]}


def page(told: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = []
    for name, one in told["graded"].items():
        lines += [
            f"\nEncoder: {name}. Weight chosen on all queries: {one['chosen']}, served: {WEIGHT}. Both: of held-out queries.\n",
            "| history | people, queries | ranking | words | history | both | both - words | served - words |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in one["rows"]:
            for column, where in enumerate(("whole", "judged")):
                means = [f"{row[way]['mean'][column]:.3f}" for way in ("words", "history", "both")]
                gains = [_difference(row[way], column) for way in ("added", "served")]
                lines.append(
                    f"| {row['kind']} | {row['people']}, {row['queries']} | {where} | {' | '.join(means)} | {' | '.join(gains)} |"
                )
    for name, rows in told["shoppers"].items():
        lines += [f"\nMerchant {name}.\n", "| ranking | NDCG@10 | - words |", "|---|---|---|"]
        lines += [f"| {row['way']} | {row['mean']:.3f} | {_signed(row['more'], row['interval'])} |" for row in rows]
    return "\n".join(lines) + "\n"


def _difference(found: Mapping[str, Any], column: int) -> str:
    return _signed(found["mean"][column], found["intervals"][column])


def _signed(value: float, between: Sequence[float]) -> str:
    return f"{value:+.3f} ({between[0]:+.3f} to {between[1]:+.3f})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", action="append", default=[], help="NAME=FOLDER of a finished run; may be given again")
    parser.add_argument("--merchant", action="append", default=[], help="NAME=FOLDER with an own layer; may be given again")
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    quiet_libraries()
    quiet_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    queries = Queries.read(arguments.data)
    found, index = meanings(queries, arguments.run, arguments.out), BM25Index(queries.catalogue.texts, Tokeniser())
    brands = pd.read_parquet(arguments.data / "items.parquet")[Columns.BRAND].fillna("").str.casefold().to_numpy()
    cases = Makers.of(queries, found[UNTRAINED].queries, brands).cases()
    runs = {run.partition("=")[0]: run for run in arguments.run}
    graded = {
        name: table(queries, asking_of(queries, index, meaning, runs.get(name)), cases, arguments.folds)
        for name, meaning in found.items()
    }
    people = {name: shoppers(Path(folder)) for name, _, folder in (one.partition("=") for one in arguments.merchant)}
    told = {"graded": graded, "shoppers": people, "folds": arguments.folds, "environment": environment()}
    (arguments.out / "search_person.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    (arguments.out / "search_person.md").write_text(page(told), encoding="utf-8")


if __name__ == "__main__":
    main()
