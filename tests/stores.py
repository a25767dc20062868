"""A merchant whose service is tested: a catalogue with prices and brands, an own layer, and a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from starlette.testclient import TestClient

from fedrec.recommender.fitting import fit_merchant
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.serve.app import create_app
from fedrec.serve.settings import ServeSettings

from .test_merchant_recommender import make_shop

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
