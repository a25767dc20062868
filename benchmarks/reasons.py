"""Are the reasons true? What is named is taken away, and what is left is ranked again.

    python -m benchmarks.reasons OUT NAME=FOLDER... [--users 300] [--pairs 200]

Each NAME=FOLDER is a run of a simulation, whose central users are asked for, or a merchant's folder, with its own users. For
each user the best five new items are explained; then the items of the history that are named are deleted, the 1 to 5 with the
largest shares, against as many at random and the nearest to the item by cosine, and the item's score, its rank (among all that
the whole history does not hold) and its probability (the softmax over these) are read again. Comprehensiveness is what the
probability loses without what was named, sufficiency what it loses with nothing else (DeYoung et al., ACL 2020, section 4), so
the first should be large and the second small. The same for the words of the best item's text: as `fedrec explain --words`
shows them, by what the score loses without each word, by each word alone, by integrated gradients, and at random. With the
trained part of a run's adapter replaced by noise the reasons must change (Adebayo et al., NeurIPS 2018): rank correlation of the
shares before and after. Writes OUT/reasons.md and OUT/reasons.json; intervals are 95% bootstrap intervals over users.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.measure import alternate, environment
from benchmarks.reasons_cases import FEWEST, MOST, Case, Subject, cases_of, deleted, seen
from benchmarks.reasons_words import WORD_WAYS, word_deletion
from fedrec.cli.terminal import quiet_libraries, quiet_models
from fedrec.recommender import Person, Recommender, Wish
from fedrec.recommender.answers import answer_many
from fedrec.recommender.reasons.words import split_words, words_of

__all__ = ["main"]

WAYS = ("named", "random", "nearest")
REPLICATES = 1000


def deletion(subject: Subject, cases: Sequence[Case]) -> np.ndarray:
    """(users, ways, MOST, 2, 3) what score, rank and probability lose without some items, and with nothing else."""
    ranker, random = subject.ranker, np.random.default_rng(1)
    unit = ranker.vectors / np.maximum(np.linalg.norm(ranker.vectors, axis=1, keepdims=True), 1e-12)
    found = np.zeros((len(cases), len(WAYS), MOST, 2, 3))
    for user, case in enumerate(cases):
        for item, named in zip(case.items, case.named, strict=True):
            nearest = named[np.argsort(-(unit[named] @ unit[item]), kind="stable")]
            orders = (named, random.permutation(named), nearest)
            pasts = [
                deleted(case.past, order[:k], keep) for order in orders for k in range(1, MOST + 1) for keep in (False, True)
            ]
            scores = ranker.scores(pasts, None)
            scores[:, case.past.items] = -np.inf
            after = np.array([seen(row, item) for row in scores]).reshape(len(WAYS), MOST, 2, 3)
            found[user] += (seen(case.scores, item) - after) / len(case.items)
    found[..., 1] *= -1  # a rank is worse the larger it is
    return found


def randomised(subject: Subject, cases: Sequence[Case], words: int) -> dict[str, Any]:
    """Rank correlation of the shares with those under a random adapter of the same norm, and of ten times it."""
    one = subject.recommender
    if not isinstance(one, Recommender):
        return {}
    found: dict[str, Any] = {}
    for times in (1, 10):
        random, arrays = np.random.default_rng(3), dict(one.arrays)
        for name, array in one.arrays.items():
            if name.endswith(".B") or "lora_B" in name:
                noise = random.normal(size=array.shape).astype(np.float32)
                arrays[name] = noise * np.float32(times * np.linalg.norm(array) / max(float(np.linalg.norm(noise)), 1e-12))
        other = Recommender(one.encoder, arrays, one.settings, one.table)
        ranker = other._ranker(None)
        items, of_words = [], []
        for number, case in enumerate(cases):
            shares = [who.shares(case.past, None, np.array(case.items[:1])) for who in (subject.ranker, ranker)]
            items.append(spearmanr(*(each.history[:, 0] for each in shares)).statistic)
            text = one.catalogue.texts[case.items[0]]
            if number < words and len(split_words(text)) >= FEWEST:
                told = [
                    words_of([text], each.direction, who._reader())[0] for who, each in zip((one, other), shares, strict=True)
                ]
                of_words.append(spearmanr(*(each.shares for each in told)).statistic)
        found[str(times)] = {"items": interval(np.array(items)), "words": interval(np.array(of_words))}
    return found


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and its 95% bootstrap interval; what is no number does not count."""
    values = values[np.isfinite(values)]
    drawn = np.random.default_rng(0).choice(values, (REPLICATES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def cost(subject: Subject, cases: Sequence[Case], repeats: int) -> dict[str, float]:
    """Seconds a person of a list of ten: without reasons, with them, and with them put in words for staff."""
    ids = subject.ranker.catalogue.item_ids
    people = [Person([ids[item] for item in case.past.items]) for case in cases[:50]]

    def each(explain: bool, told: bool) -> None:
        for person in people:
            (answer,) = answer_many(subject.ranker, [person], Wish(explain=explain))
            if told:
                [one.for_staff() for one in answer.reasons]

    ways = {"without": partial(each, False, False), "with": partial(each, True, False), "in words": partial(each, True, True)}
    return {name: took / len(people) for name, took in alternate(ways, repeats).items()}


def table(name: str, lost: np.ndarray, ways: Sequence[str]) -> list[str]:
    """What each way loses, and how much more the first does, user by user.

    Args:
        lost: (users, ways, MOST, 2, 3).
    """
    head = [f"| {name}, deleted | " + " | ".join(ways) + " | " + " | ".join(f"more than {way}" for way in ways[1:]) + " |"]
    rows = [*head, "|" + "---|" * (2 * len(ways))]
    metrics = (
        ("score lost, top {}", 0, 0),
        ("ranks lost, top {}", 0, 1),
        ("comprehensiveness, top {}", 0, 2),
        ("sufficiency, top {}", 1, 2),
    )
    for said, how, metric in metrics:
        for k in [*range(1, MOST + 1), 0]:
            values = lost[:, :, k - 1, how, metric] if k else lost[:, :, :, how, metric].mean(2)
            cells = [f"{mean:.4f}" for mean in values.mean(axis=0)]
            more = [interval(values[:, 0] - values[:, way]) for way in range(1, len(ways))]
            cells += [f"{one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]" for one in more]
            rows.append(f"| {said.format(k) if k else said.format('1 to 5')} | " + " | ".join(cells) + " |")
    return rows


def measure(subject: Subject, users: int, pairs: int, repeats: int) -> tuple[dict[str, Any], list[str]]:
    """All figures of one subject, and their tables."""
    cases = cases_of(subject, subject.pasts(users))
    lost, words = deletion(subject, cases), word_deletion(subject, cases[:pairs])
    changed, seconds = randomised(subject, cases, pairs), cost(subject, cases, repeats)
    lines = [f"## {subject.name}", "", f"{len(cases)} users, {len(subject.ranker.catalogue):,} items.", ""]
    lines += [*table("items of the history", lost, WAYS), "", f"{words['pairs']} texts.", ""]
    lines += [*table("words of the text", words.pop("lost"), WORD_WAYS), ""]
    took = ", ".join(f"{way} {1000 * value:.0f} ms" for way, value in words["seconds"].items())
    lines += [f"A text takes: {took}. Left by the shares: {words['gap']:.3f} as shown, {words['completeness']:.4f} by "
              "gradients (mean of the absolute value)."]  # fmt: skip
    for times, found in changed.items():
        said = [f"{what} {one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for what, one in found.items()]
        lines.append(f"Rank correlation with a random adapter of {times} times the norm: {', '.join(said)}.")
    plain, full, told = (1000 * seconds[name] for name in ("without", "with", "in words"))
    lines += [f"A list of ten takes {plain:.2f} ms, with reasons {full:.2f} ms ({full / plain:.2f} times), in words for staff "
              f"{told:.2f} ms.", ""]  # fmt: skip
    return {"users": len(cases), "words": words, "randomised": changed, "seconds": seconds}, lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each subject, and write both files after each."""
    quiet_libraries()
    quiet_models()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("subjects", nargs="+", metavar="NAME=FOLDER", help="a run of a simulation, or a merchant's folder")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=200, help="of them whose item's words are looked at")
    parser.add_argument("--repeats", type=int, default=5, help="turns of the clock that count")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    lines: list[str] = []
    for text in args.subjects:
        subject = Subject.parse(text)
        figures[subject.name], more = measure(subject, args.users, args.pairs, args.repeats)
        lines += more
        (args.out / "reasons.md").write_text("\n".join(lines), encoding="utf-8")
        (args.out / "reasons.json").write_text(json.dumps({**figures, "environment": environment()}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
