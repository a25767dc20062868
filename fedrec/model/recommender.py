"""A trained recommender, from a run folder: load, rank, save.

`adapter/` holds the encoder's LoRA in PEFT's format, the heads and the public base as
safetensors, the scoring as JSON and the public catalogue as Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec.config import RunConfig, write_atomically
from fedrec.data import Catalogue, CentralData, Columns
from fedrec.data.tables import write_table
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, load_arrays, save_arrays
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.towers import Scoring, centred, log_prior, recency_weights, role_table

__all__ = ["Recommender", "save_recommender"]

COUNT, TEXT = "popularity", "text"


def save_recommender(
    folder: Path,
    config: RunConfig,
    encoder: TextEncoder,
    central: CentralData,
    public: Arrays,
    trained: Arrays,
    scoring: dict[str, float],
) -> None:
    """Write everything that `Recommender.load` needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.load({**public, **trained})
    encoder.save_peft(folder)
    arrays = {name: value for name, value in {**public, **trained}.items() if not name.startswith("prior.")}
    save_arrays(arrays, folder / "fedrec.safetensors")
    frame = pd.DataFrame({Columns.ITEM: central.catalogue.item_ids, TEXT: central.catalogue.texts, COUNT: public["prior.counts"]})
    for group in central.groups:
        if len(central.groups) > 1:
            frame[f"{Columns.MERCHANT}:{group.name}"] = np.isin(np.arange(len(frame)), group.positions)
    write_table(frame, folder / "catalogue.parquet")
    settings = {
        "encoder": config.encoder,
        "encoder_layers": config.encoder_layers,
        "encoder_rank": config.encoder_rank,
        "max_tokens": config.max_tokens,
        "history": config.history,
        "scoring": scoring,
        "floor": float(public["prior.floor"][0]),
    }
    write_atomically(folder / "fedrec.json", json.dumps(settings, indent=2).encode())


class Recommender:
    """Ranks a catalogue for a history of item ids."""

    def __init__(self, encoder: TextEncoder, arrays: Arrays, settings: dict[str, Any], table: pd.DataFrame) -> None:
        self.encoder, self.arrays, self.settings = encoder, arrays, settings
        self.scoring = Scoring(**settings["scoring"])
        self.table = table
        self.catalogue = Catalogue(tuple(table[Columns.ITEM]), tuple(table[TEXT]))

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Recommender:
        """Open a run folder, or its `adapter/`.

        Raises:
            InputError: there is no adapter, or its encoder cannot be loaded.
        """
        folder = Path(run) / "adapter" if (Path(run) / "adapter").is_dir() else Path(run)
        try:
            settings = json.loads((folder / "fedrec.json").read_text(encoding="utf-8"))
            table = pd.read_parquet(folder / "catalogue.parquet")
        except OSError:
            raise InputError("there is no trained adapter", where=str(folder), expected="a run folder with adapter/") from None
        encoder = load_encoder(
            settings["encoder"], settings["encoder_layers"], settings["encoder_rank"], settings["max_tokens"], device
        )
        return cls(encoder, load_arrays(folder / "fedrec.safetensors"), settings, table)

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.encoder.load(self.arrays)
        self.encoder.save_peft(path)
        save_arrays(self.arrays, path / "fedrec.safetensors")
        write_table(self.table, path / "catalogue.parquet")
        write_atomically(path / "fedrec.json", json.dumps(self.settings, indent=2).encode())

    def rank(
        self,
        history: Sequence[str],
        k: int = 10,
        query: str | None = None,
        catalogue: Catalogue | pd.DataFrame | None = None,
        merchant: str | None = None,
    ) -> list[tuple[str, float]]:
        """The `k` best items that the history does not hold.

        Args:
            history: item ids, most recent last; each counts as a basket of its own.
            query: words that count as one more, most recent, item. Who asks says what is wanted,
                so popularity, which is weighed for histories, is then left out.
            catalogue: rank these items instead (a `Catalogue`, or a table with `item_id` and
                `title`); without popularity, since none is known for them.
            merchant: rank only this merchant's items of the run's catalogue.

        Returns:
            (item id, score), best first.

        Raises:
            InputError: an unknown item or merchant, or neither history nor query.
        """
        known = self.catalogue if catalogue is None else _as_catalogue(catalogue)
        positions = self._positions(merchant) if catalogue is None else np.arange(len(known))
        asked = known.index.get_indexer(list(history))
        if (asked < 0).any():
            unknown = list(history)[int((asked < 0).argmax())]
            raise InputError(f"item {unknown!r} is not in the catalogue", where="history")
        if not len(asked) and not query:
            raise InputError("there is neither a history nor a query", expected="at least one of them")
        self.encoder.load(self.arrays)
        e = centred(self.encoder.embed(known), self.arrays)
        vectors = role_table(e, self.arrays, self.arrays, "history")[asked[-self.settings["history"] :]].cpu().numpy()
        if query:
            said = role_table(centred(self.encoder.encode([query]), self.arrays), self.arrays, self.arrays, "history")
            vectors = np.concatenate([vectors, said.cpu().numpy()])
        ages = np.arange(len(vectors))[::-1].astype(float)
        user = recency_weights(ages, np.ones(len(vectors), dtype=bool), self.scoring.decay) @ vectors
        user /= max(float(np.linalg.norm(user)), 1e-12)
        scores = self.scoring.temperature * (role_table(e, self.arrays, self.arrays, "candidate").cpu().numpy()[positions] @ user)
        if catalogue is None and not query:
            counts = self.table[COUNT].to_numpy()[positions]
            scores = scores + self.scoring.prior_weight * log_prior(counts, self.settings["floor"])
        scores[np.isin(positions, asked)] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return [(known.item_ids[positions[i]], float(scores[i])) for i in best if np.isfinite(scores[i])]

    def _positions(self, merchant: str | None) -> np.ndarray:
        if merchant is None:
            return np.arange(len(self.catalogue))
        column = f"{Columns.MERCHANT}:{merchant}"
        if column not in self.table:
            names = [name.split(":", 1)[1] for name in self.table.columns if name.startswith(f"{Columns.MERCHANT}:")]
            raise InputError(
                f"there is no merchant {merchant!r}", expected=f"one of {', '.join(names) or '(all share a catalogue)'}"
            )
        return np.flatnonzero(self.table[column].to_numpy())


def _as_catalogue(catalogue: Catalogue | pd.DataFrame) -> Catalogue:
    return catalogue if isinstance(catalogue, Catalogue) else Catalogue.from_table(catalogue)
