"""The item table of a catalogue: ours against encoding every text through the whole encoder.

    python -m benchmarks.item_table --texts 5000 --repeats 5
    python -m benchmarks.item_table --texts 100000 --repeats 3 --device cuda

"New catalogue" has no cached text; "new adapter" is what every later round costs, when the LoRA has
changed and the texts have not. The obvious way is the same for both but for the tokeniser, which only a
new catalogue needs: PEFT's BERT in float32 over batches in catalogue order, padded, of the size that is
fastest. Texts are product descriptions of the embedded data, with a size that makes them distinct.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.bench import SHAPE, Shape
from benchmarks.measure import CPU, Way, alternate, device_memory, exponent, fastest, options, report
from benchmarks.obvious import Obvious
from fedrec.data import Catalogue, Columns, load_merchant, merchant_folders
from fedrec.data.demo import build_demo
from fedrec.model import TextEncoder, load_encoder
from fedrec.model.cache import TrunkCache

__all__ = ["compared", "main", "measure", "table"]

BATCHES = (128, 512, 2048)
"""Texts at a time that the obvious way tries, on as many texts as the largest."""


def catalogue(folder: Path, texts: int) -> Catalogue:
    """So many distinct texts from the demo's brand shops."""
    known = sorted({text for one in merchant_folders(folder) for text in load_merchant(one).catalogue.texts})
    titles = [f"{known[i % len(known)]} {i // len(known) + 1} OZ" for i in range(texts)]
    return Catalogue.from_table(pd.DataFrame({Columns.ITEM: [str(i) for i in range(texts)], Columns.TITLE: titles}))


def ways(encoder: TextEncoder, texts: Catalogue, scratch: Path, shape: Shape) -> dict[str, Way]:
    """Three ways to the same table, and the tokeniser that the obvious one has run beforehand."""
    kept = TrunkCache(scratch / "kept", encoder.fingerprint)
    arrays = {**encoder.frozen(), **encoder.trained()}

    def obvious_of(some: tuple[str, ...]) -> Obvious:
        return Obvious(shape.name, shape.layers, arrays, some, shape.rank, shape.max_tokens, encoder.device)

    few, obvious = obvious_of(texts.texts[: BATCHES[-1]]), obvious_of(texts.texts)
    batch = fastest({size: partial(few.table, size) for size in {min(size, len(texts)) for size in BATCHES}}, encoder.device)

    def new_catalogue() -> torch.Tensor:
        with tempfile.TemporaryDirectory(dir=scratch) as fresh:
            return encoder.pooled(encoder.states(texts, TrunkCache(Path(fresh), encoder.fingerprint)))

    return {
        "new catalogue": new_catalogue,
        "new adapter": lambda: encoder.pooled(encoder.states(texts, kept)),
        "obvious": lambda: obvious.table(batch),
        "tokeniser": obvious.tokenise,
    }


def compared(encoder: TextEncoder, texts: Catalogue, scratch: Path, shape: Shape, repeats: int) -> dict[str, Any]:
    """Seconds of each way on one catalogue, and the least cosine of two rows; on a GPU with the most that a way holds there."""
    all_ways, device = ways(encoder, texts, scratch, shape), encoder.device
    same = torch.nn.functional.cosine_similarity(all_ways["new adapter"](), all_ways["obvious"]())  # type: ignore[arg-type]
    row = {"texts": len(texts), "least_cosine": float(same.min()), "seconds": alternate(all_ways, repeats, device)}
    if device.type == "cuda":
        row["memory"] = {name: device_memory(all_ways[name], device) for name in ("obvious", "new adapter")}
    return row


def measure(sizes: list[int], repeats: int, device: torch.device = CPU) -> dict[str, Any]:
    """All of it by number of texts."""
    shape, rows = SHAPE, []
    encoder = load_encoder(shape.name, shape.layers, shape.rank, shape.max_tokens, str(device), shape.texts_per_batch)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build_demo(scratch / "demo", {"epsilon": 8.0, "delta": 1e-5})
        for size in sizes:
            rows.append(compared(encoder, catalogue(scratch / "demo", size), scratch / str(size), shape, repeats))
    return {"rows": rows}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    notes: list[str] = []
    out = [
        "| texts | obvious, s | its tokeniser, s | new catalogue, s | times faster | new adapter, s | times faster "
        "| least cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        names = ("obvious", "tokeniser", "new catalogue", "new adapter")
        obvious, tokens, first, later = (row["seconds"][name] for name in names)
        out.append(
            f"| {row['texts']} | {obvious:.1f} | {tokens:.1f} | {first:.1f} | {(obvious + tokens) / first:.1f} | {later:.2f} "
            f"| {obvious / later:.1f} | {row['least_cosine']:.4f} |"
        )
        if "memory" in row:
            peak = ", ".join(f"{name} {value:,.0f}" for name, value in row["memory"].items())
            notes.append(f"\nMost on the GPU at {row['texts']:,} texts, MB, with the weights of both: {peak}.")
    out += notes
    if len(found["rows"]) > 1:
        sizes = [row["texts"] for row in found["rows"]]
        for name in ("new catalogue", "new adapter"):
            out.append(f"\nExponent, {name}: {exponent(sizes, [row['seconds'][name] for row in found['rows']]):.2f}.")
    return "\n".join(out)


def main() -> None:
    """The command."""
    parser = options(__doc__, devices=True)
    parser.add_argument("--texts", type=int, nargs="+", default=[5000, 50000])
    arguments = parser.parse_args()
    found = measure(arguments.texts, arguments.repeats, arguments.device)
    report(found, table(found), arguments.json, arguments.device)


if __name__ == "__main__":
    main()
