"""The item table of a catalogue: ours against encoding every text through the whole encoder.

    python -m benchmarks.item_table --texts 5000 --repeats 5

"New catalogue" has no cached text; "new adapter" is what every later round costs, when the LoRA has
changed and the texts have not. The obvious way is the same for both: PEFT's BERT in float32 over
batches in catalogue order, padded. Texts are product descriptions of the embedded data, with a size
that makes them distinct.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.measure import Way, alternate, exponent, options, report
from benchmarks.obvious import Obvious
from fedrec.data import Catalogue, Columns, load_merchant, merchant_folders
from fedrec.data.demo import build_demo
from fedrec.model import TextEncoder, load_encoder
from fedrec.model.cache import TrunkCache

__all__ = ["main", "measure", "table"]

NAME, LAYERS, RANK, MAX_TOKENS, BATCH = "minilm-l6", 1, 8, 48, 128


def catalogue(folder: Path, texts: int) -> Catalogue:
    """So many distinct texts from the demo's brand shops."""
    known = sorted({text for one in merchant_folders(folder) for text in load_merchant(one).catalogue.texts})
    titles = [f"{known[i % len(known)]} {i // len(known) + 1} OZ" for i in range(texts)]
    return Catalogue.from_table(pd.DataFrame({Columns.ITEM: [str(i) for i in range(texts)], Columns.TITLE: titles}))


def ways(encoder: TextEncoder, texts: Catalogue, scratch: Path) -> dict[str, Way]:
    """Three ways to the same table."""
    kept = TrunkCache(scratch / "kept", encoder.fingerprint)
    arrays = {**encoder.frozen(), **encoder.trained()}
    obvious = Obvious(NAME, LAYERS, arrays, texts.texts, RANK, MAX_TOKENS)

    def new_catalogue() -> torch.Tensor:
        with tempfile.TemporaryDirectory(dir=scratch) as fresh:
            return encoder.pooled(encoder.states(texts, TrunkCache(Path(fresh), encoder.fingerprint)))

    return {
        "new catalogue": new_catalogue,
        "new adapter": lambda: encoder.pooled(encoder.states(texts, kept)),
        "obvious": lambda: obvious.table(BATCH),
    }


def measure(sizes: list[int], repeats: int) -> dict[str, Any]:
    """Seconds of each way by number of texts, and the largest difference of a cosine."""
    encoder = load_encoder(NAME, LAYERS, RANK, MAX_TOKENS, "cpu", BATCH)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build_demo(scratch / "demo", {"epsilon": 8.0, "delta": 1e-5})
        for size in sizes:
            texts = catalogue(scratch / "demo", size)
            all_ways = ways(encoder, texts, scratch / str(size))
            same = torch.nn.functional.cosine_similarity(all_ways["new adapter"](), all_ways["obvious"]())  # type: ignore[arg-type]
            rows.append({"texts": size, "least_cosine": float(same.min()), "seconds": alternate(all_ways, repeats)})
    return {"rows": rows}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    out = [
        "| texts | obvious, s | new catalogue, s | times faster | new adapter, s | times faster | least cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        obvious, first, later = (row["seconds"][name] for name in ("obvious", "new catalogue", "new adapter"))
        out.append(
            f"| {row['texts']} | {obvious:.1f} | {first:.1f} | {obvious / first:.1f} | {later:.2f} | {obvious / later:.1f} "
            f"| {row['least_cosine']:.4f} |"
        )
    if len(found["rows"]) > 1:
        sizes = [row["texts"] for row in found["rows"]]
        for name in ("new catalogue", "new adapter"):
            out.append(f"\nExponent, {name}: {exponent(sizes, [row['seconds'][name] for row in found['rows']]):.2f}.")
    return "\n".join(out)


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, nargs="+", default=[5000, 50000])
    arguments = parser.parse_args()
    found = measure(arguments.texts, arguments.repeats)
    report(found, table(found), arguments.json)


if __name__ == "__main__":
    main()
