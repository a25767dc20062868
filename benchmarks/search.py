"""Search by words: what each way of ranking is worth on graded queries, and how soon an answer is there.

    python -m benchmarks.search OUT --data FOLDER [--run office=FOLDER] [--sizes 5000 20000 100000]

DATA holds `items.parquet` (as a merchant's) and `relevance.parquet` (query, item_id, rating from 0 to 3). One ranking is
measured in two ways: over the whole catalogue, where an item that nobody judged is worth nothing, and among the judged items of
each query. Ways to join words and meaning are chosen by cross-validation over queries, by the mean of the two figures, and
what is told of them is of the held-out queries. The oracle takes the best way for each query after the fact. `--run` adds the
encoder after a private federated run on other data. A typo is one edit in one word of each query of four letters or more.
Embedding 20,000 texts takes minutes on a processor; the vectors are kept in OUT. Writes OUT/search.md and OUT/search.json.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import environment
from benchmarks.search_fusions import FAMILIES, MIN_MAX, Queries, held_out, interval, oracles
from benchmarks.search_speed import speed
from fedrec.cli.terminal import quiet_libraries, quiet_models
from fedrec.errors import InputError
from fedrec.model.adapter import CENTRE
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.saved import encoder_of, read_adapter
from fedrec.model.towers import centred
from fedrec.recommender.words import BM25Index, Searcher, Tokeniser
from fedrec.recommender.words.lexical import Lexical

__all__ = ["main"]

Scores = Callable[[int, str], np.ndarray]
UNTRAINED = "untrained"
SHORTEST = 4
"""Letters of a word that is misspelt."""
ORDERS = 20


@dataclass(frozen=True)
class Meaning:
    """A catalogue through an encoder.

    Attributes:
        vectors: (items, hidden) unit vectors.
        queries: (queries, hidden).
        encode: passing words, (1, hidden).
    """

    vectors: np.ndarray
    queries: np.ndarray
    encode: Callable[[str], np.ndarray]

    @classmethod
    def of(cls, name: str, encoder: TextEncoder, centre: np.ndarray | None, queries: Queries, out: Path) -> Meaning:
        """Read from `out`, or made and kept there."""
        kept = out / f"vectors-{name}.npz"
        held = dict(np.load(kept)) if kept.is_file() else {}
        if held.get("digest") != queries.catalogue.digest:
            texts, step = queries.catalogue.texts, 2048
            parts = [encoder.encode(texts[at : at + step]) for at in range(0, len(texts), step)]
            held = {"pooled": torch.cat(parts).cpu().numpy(), "digest": np.array(queries.catalogue.digest)}
            np.savez(kept, **held)
        pooled = torch.from_numpy(held["pooled"])
        base = {CENTRE: held["pooled"].mean(axis=0) if centre is None else centre}

        def encode(words: str) -> np.ndarray:
            found: np.ndarray = centred(encoder.encode([words]), base).cpu().numpy()
            return found

        return cls(centred(pooled, base).numpy(), np.concatenate([encode(words) for words in queries.words]), encode)


def meanings(queries: Queries, runs: Sequence[str], out: Path) -> dict[str, Meaning]:
    """The untrained encoder, and that of each NAME=FOLDER."""
    found = {UNTRAINED: Meaning.of(UNTRAINED, load_encoder(layers=0, device="cpu"), None, queries, out)}
    for run in runs:
        name, _, folder = run.partition("=")
        if not folder:
            raise InputError(f"found {run!r}", where="--run", expected="NAME=FOLDER")
        arrays, settings, _ = read_adapter(Path(folder) / "adapter")
        encoder = encoder_of(settings, "cpu")
        encoder.load(arrays)
        found[name] = Meaning.of(name, encoder, arrays[CENTRE], queries, out)
    return found


def misspelt(words: str, rng: np.random.Generator) -> str:
    """One letter of one word left out, doubled, replaced or swapped with the next, so that it changes; short words stay."""
    parts = words.split()
    able = [place for place, word in enumerate(parts) if len(word) >= SHORTEST and word.isalpha()]
    if not able:
        return words
    place = able[rng.integers(len(able))]
    word = parts[place]
    while parts[place] == word:
        at, other = int(rng.integers(1, len(word) - 1)), string.ascii_lowercase[rng.integers(26)]
        ways = (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + other + word[at + 1 :],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :])  # fmt: skip
        parts[place] = ways[rng.integers(len(ways))]
    return " ".join(parts)


def figures(queries: Queries, scores: Scores) -> np.ndarray:
    """(queries, 2) NDCG over the catalogue and among judged items."""
    return np.array([queries.ndcg(number, scores(number, words)) for number, words in enumerate(queries.words)])


def row(name: str, values: np.ndarray, **more: Any) -> dict[str, Any]:
    """A line of the table."""
    whole, judged = values.mean(axis=0)
    return {
        "way": name,
        "whole": float(whole),
        "whole_interval": interval(values[:, 0]),
        "judged": float(judged),
        "judged_interval": interval(values[:, 1]),
        **more,
    }


def quality(queries: Queries, index: BM25Index, found: dict[str, Meaning], folds: int) -> list[dict[str, Any]]:
    """All rows."""
    rng, size = np.random.default_rng(0), len(queries.catalogue)
    lexical = [index.search(words) for words in queries.words]
    chance = np.mean([figures(queries, lambda *_: rng.random(size)) for _ in range(ORDERS)], axis=0)
    rows = [row("random order", chance), row("BM25", figures(queries, lambda number, _: lexical[number].scores))]
    for name, meaning in found.items():
        cosines = [meaning.vectors @ query for query in meaning.queries]
        rows.append(row(f"{name} encoder", figures(queries, lambda number, _, cosines=cosines: cosines[number])))
        rows += joined(queries, lexical, cosines, name, folds)
        searcher = Searcher(queries.catalogue, index, meaning.vectors, meaning.encode)
        rows.append(row(f"`fedrec search`, {name}", figures(queries, lambda _, words, by=searcher: by.search(words).scores)))
    typos = [misspelt(words, rng) for words in queries.words]
    plain = figures(queries, lambda number, _: index.search(typos[number]).scores)
    first = Searcher(queries.catalogue, index, found[UNTRAINED].vectors, found[UNTRAINED].encode)
    blind = [replaced(index, typo) for typo in typos]
    rows += [
        row("typos: BM25, no spelling", figures(queries, lambda number, _: blind[number])),
        row("typos: BM25", plain),
        row("typos: `fedrec search`", figures(queries, lambda number, _: first.search(typos[number]).scores)),
    ]
    return rows


def replaced(index: BM25Index, typo: str) -> np.ndarray:
    """Scores of the words that the catalogue has alone."""
    unknown = set(index.search(typo).unknown)
    return index.search(" ".join(word for word in typo.split() if word not in unknown)).scores


def joined(
    queries: Queries, lexical: Sequence[Lexical], cosines: Sequence[np.ndarray], name: str, folds: int
) -> list[dict[str, Any]]:
    """Each kind of fusion on held-out queries, and the oracle over all of them."""
    rows, everything, lengths = [], [], np.array([len(words.split()) > 1 for words in queries.words])
    for family, ways in FAMILIES.items():
        measured = np.stack(
            [figures(queries, lambda number, _, way=way: way(lexical[number], cosines[number])) for way in ways.values()]
        )
        everything.append(measured)
        single = held_out(measured, np.zeros(len(queries.words)), folds)
        rows.append(row(f"{name} + {family}", single.figures, chosen=list(ways)[single.chosen], fitted=single.fitted.tolist()))
        if family == MIN_MAX:
            each = held_out(measured, lengths, folds)
            rows.append(row(f"{name} + {family}, a weight for one word and one for more", each.figures))
    rows += [row(f"{name} + oracle: {what}", values) for what, values in oracles(np.concatenate(everything)).items()]
    return rows


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    data = found["data"]
    lines = [
        f"{data['queries']} queries ({data['without']} without a relevant item left out) over {data['items']:,} items; "
        f"NDCG@10 with 95% bootstrap intervals over queries. Rows with + are of held-out queries, but for the oracle's; "
        f"{data['typos']} queries have a word that can be misspelt.\n",
        "| ranking | whole catalogue | judged products | chosen on all queries |",
        "|---|---|---|---|",
    ]
    for one in found["rows"]:
        whole, judged = (_cell(one[key], one[f"{key}_interval"]) for key in ("whole", "judged"))
        lines.append(f"| {one['way']} | {whole} | {judged} | {one.get('chosen', '')} |")
    lines += [
        "\n| items | index built in, s | its arrays, MB | vectors, MB | first two answers, s | p50, ms | p95, ms "
        "| p95 of processor time | of it the encoder "
        "| for a person p50, ms | p95, ms | p95 of processor time | with reasons p50, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["speed"]:
        lines.append(
            f"| {one['items']:,} | {one['build_s']:.1f} | {one['index_mb']:.1f} | {one['vectors_mb']:.1f} | {one['first_s']:.2f} "
            f"| {one['p50_ms']:.1f} | {one['p95_ms']:.1f} | {one['p95_processor_ms']:.1f} | {one['encoding_processor_ms']:.1f} "
            f"| {one['person_p50_ms']:.1f} | {one['person_p95_ms']:.1f} | {one['person_p95_processor_ms']:.1f} "
            f"| {one['explained_p50_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _cell(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4f} ({interval[0]:.3f} to {interval[1]:.3f})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", action="append", default=[], help="NAME=FOLDER of a finished run; may be given again")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[5_000, 20_000, 100_000])
    parser.add_argument("--turns", type=int, default=3, help="times that each query is asked for its latency")
    arguments = parser.parse_args()
    quiet_libraries()
    quiet_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    queries = Queries.read(arguments.data)
    found = meanings(queries, arguments.run, arguments.out)
    texts, plain = queries.catalogue.texts, found[UNTRAINED]
    rows = quality(queries, BM25Index(texts, Tokeniser()), found, arguments.folds)
    sizes = [speed(size, texts, plain.vectors, plain.encode, queries.words, arguments.turns) for size in arguments.sizes]
    able = sum(misspelt(words, np.random.default_rng(0)) != words for words in queries.words)
    data = {"queries": len(queries.words), "without": queries.without, "items": len(texts), "typos": able}
    told = {"data": data, "folds": arguments.folds, "rows": rows, "speed": sizes, "environment": environment()}
    (arguments.out / "search.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    (arguments.out / "search.md").write_text(page(told), encoding="utf-8")


if __name__ == "__main__":
    main()
