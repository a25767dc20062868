"""Central evaluation: ours against torchmetrics, and against ranx and pytrec_eval where they are installed.

    python -m benchmarks.evaluation --users 2000 --items 5000 --repeats 3 --device cuda

Every evaluator ranks the whole catalogue of every user without the history, and its means of HR@10,
NDCG@10, Recall@10 and MRR must equal ours to 1e-6, or nothing is reported. Two times are told apart:

* *given scores*: from the matrix of scores to the four metrics. The others get them in the form
  that they want, and what it takes to bring them into that form (for torchmetrics flat tensors,
  for ranx its `Run`, for pytrec_eval dictionaries) is a column of its own.
* *from embeddings*: the same and before it the matrix of scores, which for the others is computed
  as ours is, all at once. Bringing scores into form is not counted.

torchmetrics is used in both of its documented ways, as a `MetricCollection` and as functions a user. With `--device`
its tensors are there, and the matrix of scores is computed there for it; ours, ranx and pytrec_eval are for processors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchmetrics import MetricCollection, retrieval
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from benchmarks.clusters import clustered, tastes
from benchmarks.measure import CPU, options, report, timed
from fedrec.evaluation import METRICS, EvaluationSet, evaluate, metrics_from_ranks, pessimistic_ranks
from fedrec.evaluation.protocol import Group
from fedrec.model import Scoring
from fedrec.model.ranking import blocks, pairs_of, products
from fedrec.model.towers import user_vectors

__all__ = ["main"]

K, WIDTH, HISTORY = 10, 384, 20
# Without popularity, whose logarithms are negative: torchmetrics' recall leaves out items with a score below zero.
SCORING = Scoring(3.0, 0.1, 0.0)
Means = dict[str, float]


class Bench:
    """Users with twenty items behind them and one to eight still to come."""

    def __init__(self, users: int, items: int) -> None:
        self.table, cluster = clustered(items, WIDTH)
        chosen, rng = tastes(cluster, users, HISTORY + 8), np.random.default_rng(1)
        owner = np.arange(users)[:, None]
        masked = np.stack(np.broadcast_arrays(owner, chosen[:, :HISTORY]), axis=2).reshape(-1, 2)
        coming = np.arange(8) < rng.integers(1, 9, users)[:, None]
        relevant = np.stack(np.broadcast_arrays(owner, chosen[:, HISTORY:]), axis=2)[coming]
        shape = (users, HISTORY)
        ages = np.broadcast_to(np.arange(HISTORY - 1.0, -1, -1), shape)
        history = np.ascontiguousarray(chosen[:, :HISTORY])
        self.group = Group("all", np.arange(items), history, ages, np.ones(shape, dtype=bool), masked, relevant)
        self.dataset = EvaluationSet((self.group,), 0)
        self.counts = np.ones(items)

    def ours(self) -> Means:
        """From embeddings."""
        found = evaluate(self.dataset, self.table, self.table, SCORING, self.counts, 1.0, K)
        return {name: float(getattr(found, name).mean()) for name in METRICS}

    def scores(self) -> np.ndarray:
        """All scores at once, (users, items)."""
        group = self.group
        found = products(user_vectors(self.table, group.items, group.ages, group.valid, SCORING.decay), self.table)
        found *= SCORING.temperature
        return found

    def scores_on(self, device: torch.device) -> Callable[[], torch.Tensor]:
        """The same on a device, where the embeddings are beforehand."""
        group, table = self.group, torch.from_numpy(self.table).to(device)

        def run() -> torch.Tensor:
            users = user_vectors(self.table, group.items, group.ages, group.valid, SCORING.decay)
            return SCORING.temperature * (torch.from_numpy(users).to(device) @ table.T)

        return run

    def ours_given(self, scores: np.ndarray) -> Callable[[], Means]:
        """Ours from the same scores."""

        def run() -> Means:
            parts = []
            for rows in blocks(*scores.shape):
                relevant = pairs_of(self.group.relevant, rows)
                ranks = pessimistic_ranks(scores[rows], pairs_of(self.group.masked, rows), relevant)
                parts.append(metrics_from_ranks(ranks, relevant[:, 0], K))
            return {name: float(np.concatenate([getattr(part, name) for part in parts]).mean()) for name in METRICS}

        return run

    def ranked(self, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Items, scores and relevance of every user, without the history."""
        kept, target = np.ones(scores.shape, dtype=bool), np.zeros(scores.shape, dtype=bool)
        kept[tuple(self.group.masked.T)] = False
        target[tuple(self.group.relevant.T)] = True
        return [(np.flatnonzero(keep), row[keep], truth[keep]) for keep, row, truth in zip(kept, scores, target, strict=True)]


def collection(bench: Bench, scores: np.ndarray, device: torch.device) -> Callable[[], Means]:
    """torchmetrics' modules: flat predictions, targets and the user of each."""
    rows = bench.ranked(scores)
    preds, target = (torch.from_numpy(np.concatenate([row[part] for row in rows])).to(device) for part in (1, 2))
    indexes = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row[1]) for row in rows])).to(device)

    def run() -> Means:
        metrics = MetricCollection(
            {
                "hr": retrieval.RetrievalHitRate(top_k=K),
                "ndcg": retrieval.RetrievalNormalizedDCG(top_k=K),
                "recall": retrieval.RetrievalRecall(top_k=K),
                "mrr": retrieval.RetrievalMRR(),
            }
        ).to(device)
        metrics.update(preds, target, indexes=indexes)
        return {name: float(value) for name, value in metrics.compute().items()}

    return run


def functions(bench: Bench, scores: np.ndarray, device: torch.device) -> Callable[[], Means]:
    """torchmetrics' functions, one user after the other."""
    rows = [
        (torch.from_numpy(values).to(device), torch.from_numpy(truth).to(device)) for _, values, truth in bench.ranked(scores)
    ]

    def run() -> Means:
        found = [
            torch.stack(
                [
                    retrieval_hit_rate(preds, target, top_k=K),
                    retrieval_normalized_dcg(preds, target, top_k=K),
                    retrieval_recall(preds, target, top_k=K),
                    retrieval_reciprocal_rank(preds, target),
                ]
            )
            for preds, target in rows
        ]
        return dict(zip(METRICS, torch.stack(found).double().mean(0).tolist(), strict=True))

    return run


def ranx(bench: Bench, scores: np.ndarray, _: torch.device) -> Callable[[], Means]:
    """ranx: a `Run` with every item of every user."""
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    qrels, run = dictionaries(bench, scores)
    truth, ranked = Qrels.from_dict(qrels), Run.from_dict(run)
    names = {"hr": f"hit_rate@{K}", "ndcg": f"ndcg@{K}", "recall": f"recall@{K}", "mrr": "mrr"}

    def measured() -> Means:
        found = ranx_evaluate(truth, ranked, list(names.values()))
        return {name: float(found[theirs]) for name, theirs in names.items()}

    return measured


def pytrec(bench: Bench, scores: np.ndarray, _: torch.device) -> Callable[[], Means]:
    """pytrec_eval: dictionaries of dictionaries."""
    import pytrec_eval

    qrels, run = dictionaries(bench, scores)
    names = {"hr": f"success_{K}", "ndcg": f"ndcg_cut_{K}", "recall": f"recall_{K}", "mrr": "recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"success.{K}", f"ndcg_cut.{K}", f"recall.{K}", "recip_rank"})

    def measured() -> Means:
        found = list(evaluator.evaluate(run).values())
        return {name: statistics.fmean(user[theirs] for user in found) for name, theirs in names.items()}

    return measured


def dictionaries(bench: Bench, scores: np.ndarray) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Truth and ranking in the form that comes from trec_eval."""
    ids = [f"i{item}" for item in range(scores.shape[1])]
    qrels: dict[str, dict[str, int]] = {}
    for user, item in bench.group.relevant.tolist():
        qrels.setdefault(f"u{user}", {})[ids[item]] = 1
    run = {
        f"u{user}": {ids[item]: score for item, score in zip(items.tolist(), values.tolist(), strict=True)}
        for user, (items, values, _) in enumerate(bench.ranked(scores))
    }
    return qrels, run


OTHERS = {"torchmetrics, collection": collection, "torchmetrics, functions": functions, "ranx": ranx, "pytrec_eval": pytrec}


def measure(users: int, items: int, repeats: int, device: torch.device = CPU) -> dict[str, Any]:
    """Medians of alternating repeats."""
    bench = Bench(users, items)
    scores = bench.scores()
    form: dict[str, float] = {}
    ways: dict[str, Callable[[], Any]] = {"ours": bench.ours, "ours, given": bench.ours_given(scores)}
    ways["scores"] = bench.scores_on(device)
    for name, prepare in OTHERS.items():
        started = time.perf_counter()
        try:
            ways[name] = prepare(bench, scores, device)
        except ModuleNotFoundError:
            continue
        form[name] = time.perf_counter() - started
    seconds, means = {name: list[float]() for name in ways}, dict[str, Any]()
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            took = timed(lambda name=name, way=way: means.update({name: way()}), device)  # type: ignore[misc]
            if repeat:  # the first warms up and compiles
                seconds[name].append(took)
    for name in form.keys() | {"ours, given"}:
        for metric, value in means["ours"].items():
            if abs(means[name][metric] - value) > 1e-6:
                raise SystemExit(f"{metric}: {name} says {means[name][metric]!r}, ours {value!r}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"users": users, "items": items, "means": means["ours"], "seconds": medians, "form": form}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    users, seconds = found["users"], found["seconds"]
    rows = [
        f"{users:,} users, {found['items']:,} items. "
        + ", ".join(f"{name} {value:.6f}" for name, value in found["means"].items()),
        "",
        "| evaluator | given scores, users/s | ours faster by | from embeddings, users/s | ours faster by | into its form, s |",
        "|---|---|---|---|---|---|",
        f"| ours | {users / seconds['ours, given']:,.0f} | 1 | {users / seconds['ours']:,.0f} | 1 | 0 |",
    ]
    for name, form in found["form"].items():
        given, whole = seconds[name], seconds[name] + seconds["scores"]
        rows.append(
            f"| {name} | {users / given:,.0f} | {given / seconds['ours, given']:.1f} "
            f"| {users / whole:,.0f} | {whole / seconds['ours']:.1f} | {form:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = options(__doc__, devices=True)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=5000)
    arguments = parser.parse_args()
    found = measure(arguments.users, arguments.items, arguments.repeats, arguments.device)
    report(found, table(found), arguments.json, arguments.device)


if __name__ == "__main__":
    main()
