"""A merchant whose service is tested: a catalogue with prices and brands, an own layer, and a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from starlette.testclient import TestClient

from fedrec.model import centred, init_base, init_trained
from fedrec.model.adapter import TERMS, Arrays
from fedrec.model.encoder import load_encoder
from fedrec.model.versions import FORMAT
from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.app import create_app
from fedrec.serve.settings import ServeSettings

from .test_merchant_recommender import make_shop

SHARE = 0.5
"""Of the impressions without a response that are in the data."""
HERE = "http://127.0.0.1:8000"


def make_store(folder: Path, bert: Path, users: int = 80, **changes: Any) -> Path:
    """A merchant's folder with an own layer."""
    make_shop(folder, bert, users, **changes)
    items = pd.read_csv(folder / "items.csv")
    items["price"], items["brand"] = range(len(items)), ["Acme" if row % 2 else "Best" for row in range(len(items))]
    items.to_csv(folder / "items.csv", index=False)
    place = MerchantPlace(folder)
    fit_merchant(place, place.data())
    return folder


@contextmanager
def client_of(
    path: Path, key_file: Path | None = None, key: str | None = None, onnx: Path | None = None, **settings: Any
) -> Iterator[TestClient]:
    """A client of a service in this process, open and ready."""
    app = create_app(path, key_file=key_file, settings=ServeSettings(**{"poll": 0.05, **settings}), onnx=onnx)
    with TestClient(app, HERE, raise_server_exceptions=False, headers=with_key(key)) as client:
        yield client


def with_key(key: str | None) -> dict[str, str]:
    """The header of a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def response_model(folder: Path, bert: Path) -> tuple[Arrays, dict[str, Any]]:
    """A model whose linear terms know that every third item of a merchant is responded to, and what is said of it as it comes
    home.
    """
    place, encoder = MerchantPlace(folder), load_encoder(str(bert), 0, 8, 48, "cpu")
    catalogue = place.data().catalogue
    base = init_base(encoder, encoder.states(catalogue), True, 4, "principal", 0)
    trained = init_trained(encoder, True, 4, terms=True)
    e = centred(encoder.embed(catalogue), base).numpy()
    wanted = np.where([int(name[1:]) % 3 == 0 for name in catalogue.item_ids], 1.8, -1.8)
    trained[TERMS][1, :-1] = np.linalg.lstsq(e, wanted, rcond=1e-3)[0]
    prior = {
        "prior.keys": catalogue.keys,
        "prior.counts": np.arange(1, len(catalogue) + 1, dtype=np.float32),
        "prior.floor": np.ones(1, np.float32),
    }
    settings = {
        "format": FORMAT, "run": "shown", "round": 3, "trust": "local", "unit": "user",
        "encoder_fingerprint": encoder.fingerprint, "encoder_layers": 0, "encoder_rank": 8, "max_tokens": 48, "history": 4,
        "objective": "response", "negative_share": SHARE, "floor": 1.0,
        "scoring": {"temperature": 0.3, "decay": 0.1, "prior_weight": 0.05, "bias": -0.3},
    }  # fmt: skip
    return {**base, **trained, **prior}, settings
