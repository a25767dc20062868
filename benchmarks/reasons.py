"""Are the reasons true? What is named is taken away, and what is left is ranked again.

    python -m benchmarks.reasons OUT RUN=FOLDER... [--users 300] [--pairs 200]

Each NAME=FOLDER is a run of a simulation, whose central users are asked for, or a merchant's folder, with its own users. For
each user the best new item is explained; then the named items of the history are deleted, the 1 to 5 with the largest shares,
against as many at random and the nearest to the item by cosine, and the item's score, its rank (everything is ranked that the whole history does
not hold) and its probability (the softmax over these) are read again. Comprehensiveness is what the probability loses without
what was named, sufficiency what it loses with nothing else (DeYoung et al., ACL 2020, section 4), so large and small are good.
The same for the words of the item's text: left out one by one, as `fedrec explain --words` does, against integrated gradients,
each word's own likeness to the person, and random ones. With the adapter's trained part replaced by noise of the same norm the
reasons must change (Adebayo et al., NeurIPS 2018): rank correlation of the shares before and after. Writes OUT/reasons.md and
OUT/reasons.json; intervals are 95% bootstrap intervals over users.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.measure import alternate, environment, timed
from benchmarks.reasons_words import Gradients
from fedrec.cli.terminal import quiet_libraries, quiet_models
from fedrec.data import Histories, load_central
from fedrec.errors import InputError
from fedrec.merchant import MERCHANT_FILE
from fedrec.model.adapter import Arrays
from fedrec.model.towers import centred, role_table
from fedrec.recommender import MerchantRecommender, Person, Recommender, Wish
from fedrec.recommender.answers import Ranker, answer_many
from fedrec.recommender.past import Past
from fedrec.recommender.reasons import reasons_of
from fedrec.recommender.reasons.reasons import HISTORY
from fedrec.recommender.reasons.words import split_words, without

__all__ = ["main"]

MOST = 5
"""Items and words that are deleted."""
FEWEST = 6
"""Of a history and of a text, so that something is left."""
WAYS = ("named", "random", "nearest")
WORD_WAYS = ("left out", "gradients", "alone", "random")
REPLICATES = 1000


@dataclass(frozen=True)
class Subject:
    """Who ranks, and for whom.

    Attributes:
        histories: users, items as positions in the ranker's catalogue.
    """

    name: str
    recommender: Recommender | MerchantRecommender
    histories: Histories

    @classmethod
    def parse(cls, text: str) -> Subject:
        """From NAME=FOLDER."""
        name, _, folder = text.partition("=")
        if not folder:
            raise InputError(f"found {text!r}", where="SUBJECT", expected="NAME=FOLDER")
        recommender = Recommender.load(folder)
        if (Path(folder) / MERCHANT_FILE).is_file():
            assert isinstance(recommender, MerchantRecommender)
            return cls(name, recommender, recommender.place.data().histories)
        central = load_central(Path(json.loads((Path(folder) / "site.json").read_text())["federation"]))
        if central.catalogue.item_ids != recommender.catalogue.item_ids:
            raise InputError("its catalogue is not that of its federation", where=folder)
        (histories, *_) = sorted((group.histories for group in central.groups), key=len, reverse=True)
        return cls(name, recommender, histories)

    @cached_property
    def ranker(self) -> Ranker:
        """Who scores."""
        return self.recommender._ranker(None)

    def pasts(self, users: int) -> list[Past]:
        """Of some users who have `FEWEST` items at least."""
        found = []
        for user in np.random.default_rng(0).permutation(len(self.histories)).tolist():
            one = self.histories.take(np.array([user]))
            if len(np.unique(one.items)) >= FEWEST:
                found.append(Past(one.items, one.baskets, one.target, one.times))
            if len(found) == users:
                break
        return found


@dataclass(frozen=True)
class Case:
    """A user and the best new item.

    Attributes:
        scores: (catalogue,) -inf for what the history holds.
        named: the items of the history, largest share first.
    """

    past: Past
    scores: np.ndarray
    item: int
    named: np.ndarray
    direction: np.ndarray


def cases_of(subject: Subject, pasts: Sequence[Past]) -> list[Case]:
    """The best new item of each user, and its reasons as staff and shopper have them."""
    ranker, found = subject.ranker, []
    for past in pasts:
        scores = ranker.scores([past], None)[0]
        scores[past.items] = -np.inf
        item = int(scores.argmax())
        (reasons,) = reasons_of(ranker, past, [(item, float(scores[item]))], None, False)
        ids = [share.name for share in reasons.shares if share.kind == HISTORY]
        found.append(Case(past, scores, item, ranker.catalogue.index.get_indexer(ids), reasons.direction))
    return found


def probability(scores: np.ndarray, item: int) -> float:
    """Softmax over what is offered."""
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    return float(shifted[item] / shifted.sum())


def seen(scores: np.ndarray, item: int) -> tuple[float, float, float]:
    """Score, rank from 1, probability."""
    return float(scores[item]), float((scores > scores[item]).sum() + 1), probability(scores, item)


def deleted(past: Past, items: np.ndarray, keep: bool) -> Past:
    """The past without these items, or with them alone."""
    kept = np.isin(past.items, items) == keep
    return Past(past.items[kept], past.baskets[kept], None if past.target is None else past.target[kept])


def deletion(subject: Subject, cases: Sequence[Case]) -> np.ndarray:
    """(users, ways, MOST, 2, 3) what score, rank and probability lose without some items, and with nothing else."""
    ranker, random = subject.ranker, np.random.default_rng(1)
    unit = ranker.vectors / np.maximum(np.linalg.norm(ranker.vectors, axis=1, keepdims=True), 1e-12)
    found = np.zeros((len(cases), len(WAYS), MOST, 2, 3))
    for user, case in enumerate(cases):
        nearest = case.named[np.argsort(-(unit[case.named] @ unit[case.item]), kind="stable")]
        orders = (case.named, random.permutation(case.named), nearest)
        pasts = [deleted(case.past, order[:k], keep) for order in orders for k in range(1, MOST + 1) for keep in (False, True)]
        scores = ranker.scores(pasts, None)
        scores[:, case.past.items] = -np.inf
        before = seen(case.scores, case.item)
        after = np.array([seen(row, case.item) for row in scores]).reshape(len(WAYS), MOST, 2, 3)
        found[user] = before - after
    found[..., 1] *= -1  # a rank is worse the larger it is
    return found


def reading(subject: Subject) -> tuple[Gradients, Callable[[Sequence[str]], np.ndarray]]:
    """Integrated gradients, and texts to their vectors."""
    one, reader = subject.recommender, subject.recommender._reader()
    reader.vectors(["so that the adapter is loaded"])
    if isinstance(one, Recommender):
        return Gradients(one.encoder, partial(_head, one.arrays, one.scoring.temperature)), reader.vectors
    encoder = one.place.encoder(one.adapter)
    arrays = {"centre": one._centre.numpy()} if one.adapter is None else one.adapter.arrays
    return Gradients(encoder, partial(_head, arrays, 1.0)), reader.vectors


def _head(arrays: Arrays, temperature: float, pooled: Any) -> Any:
    return role_table(centred(pooled, arrays), arrays, arrays, "candidate") * temperature


def word_deletion(subject: Subject, cases: Sequence[Case]) -> dict[str, Any]:
    """The words of the explained items' texts by several ways."""
    gradients, vectors = reading(subject)
    random, reader = np.random.default_rng(2), subject.recommender._reader()
    rows, gaps, errors, seconds = [], [], [], dict.fromkeys(WORD_WAYS, 0.0)
    for case in cases:
        text = subject.ranker.catalogue.texts[case.item]
        text = text[: reader.until(text)]
        spans = split_words(text)
        if len(spans) < FEWEST:
            continue

        def value(texts: Sequence[str], direction: np.ndarray = case.direction) -> np.ndarray:
            return vectors(texts).astype(np.float64) @ direction

        shares: dict[str, np.ndarray] = {}

        def left_out(text: str = text, spans: Any = spans, value: Any = value) -> tuple[np.ndarray, float]:
            values = value(["", text, *(without(text, [span]) for span in spans)])
            found = values[1] - values[2:]
            return found, float(values[1] - values[0] - found.sum())

        made: dict[str, Callable[[], Any]] = {
            "left out": left_out,
            "gradients": partial(gradients.shares, text, spans, case.direction),
            "alone": partial(value, [text[start:end] for start, end in spans]),
            "random": partial(random.random, len(spans)),
        }
        for way, make in made.items():
            box: list[Any] = []
            seconds[way] += timed(lambda make=make, box=box: box.append(make()))  # type: ignore[misc]
            shares[way] = box[0][0] if isinstance(box[0], tuple) else box[0]
            if way == "left out":
                gaps.append(box[0][1])
            elif way == "gradients":
                errors.append(box[0][1])
        asked = [text]
        for way in WORD_WAYS:
            order = np.argsort(-shares[way], kind="stable").tolist()
            for k in range(1, MOST + 1):
                asked += [without(text, [spans[word] for word in order[:k]]), without(text, [spans[word] for word in order[k:]])]
        values = value(asked)
        changed = []
        for lost in values[0] - values[1:]:
            scores = case.scores.copy()
            scores[case.item] -= lost
            changed.append(seen(scores, case.item))
        rows.append(np.array(seen(case.scores, case.item)) - np.array(changed).reshape(len(WORD_WAYS), MOST, 2, 3))
    found = np.stack(rows)
    found[..., 1] *= -1
    return {
        "lost": found, "pairs": len(rows), "gap": float(np.abs(gaps).mean()), "completeness": float(np.abs(errors).mean()),
        "seconds": {way: took / len(rows) for way, took in seconds.items()},
    }  # fmt: skip


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
            shares = [who.shares(case.past, None, np.array([case.item])) for who in (subject.ranker, ranker)]
            items.append(spearmanr(*(each.history[:, 0] for each in shares)).statistic)
            text = one.catalogue.texts[case.item]
            if number < words and len(spans := split_words(text)) >= FEWEST:
                asked = [text, *(without(text, [span]) for span in spans)]
                values = [who._reader().vectors(asked) @ each.direction for who, each in zip((one, other), shares, strict=True)]
                of_words.append(spearmanr(*(value[0] - value[1:] for value in values)).statistic)
        found[str(times)] = {"items": interval(np.array(items)), "words": interval(np.array(of_words))}
    return found


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and its 95% bootstrap interval; what is no number does not count."""
    values = values[np.isfinite(values)]
    drawn = np.random.default_rng(0).choice(values, (REPLICATES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def cost(subject: Subject, pasts: Sequence[Past], repeats: int) -> dict[str, float]:
    """Seconds a person of a list of ten, without and with reasons."""
    ids = subject.ranker.catalogue.item_ids
    people = [Person([ids[item] for item in past.items]) for past in pasts[:50]]

    def each(explain: bool) -> None:
        for person in people:
            answer_many(subject.ranker, [person], Wish(explain=explain))

    seconds = alternate({"ranking": partial(each, False), "with reasons": partial(each, True)}, repeats)
    return {name: took / len(people) for name, took in seconds.items()}


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
    changed, seconds = randomised(subject, cases, pairs), cost(subject, [case.past for case in cases], repeats)
    lines = [f"## {subject.name}", "", f"{len(cases)} users, {len(subject.ranker.catalogue):,} items.", ""]
    lines += [*table("items of the history", lost, WAYS), "", f"{words['pairs']} texts.", ""]
    lines += [*table("words of the text", words.pop("lost"), WORD_WAYS), ""]
    took = ", ".join(f"{way} {1000 * value:.0f} ms" for way, value in words["seconds"].items())
    lines += [f"A text takes: {took}. Left by the shares: {words['gap']:.3f} by leaving out, {words['completeness']:.4f} by "
              "gradients (mean of the absolute value)."]  # fmt: skip
    for times, found in changed.items():
        said = [f"{what} {one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for what, one in found.items()]
        lines.append(f"Rank correlation with a random adapter of {times} times the norm: {', '.join(said)}.")
    lines += [f"A list of ten takes {1000 * seconds['ranking']:.2f} ms, with reasons {1000 * seconds['with reasons']:.2f} ms: "
              f"{seconds['with reasons'] / seconds['ranking']:.2f} times.", ""]  # fmt: skip
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
