"""With the own layer turned off nothing that a customer is shown was computed from other customers without noise."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from fedrec import Recommender
from fedrec.cli import main
from fedrec.recommender.merchant_text import MerchantPlace
from fedrec.recommender.of_merchant import MerchantRecommender
from simulations.run import simulate

from .helpers import make_federation, settings_of

LAYER = Path("own/layer.safetensors")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A merchant of a federation, with the adapter that came home."""
    folder = tmp_path_factory.mktemp("alone")
    federation = make_federation(folder, users=160)
    run = simulate(federation, settings_of(tiny_bert_folder), folder / "run")
    shop = federation / "merchants" / "m0"
    shutil.copytree(run.path / "models" / "m0", shop / "model")
    with (shop / "merchant.toml").open("a") as toml:
        toml.write(f'\n[model]\nencoder = "{tiny_bert_folder}"\ndevice = "cpu"\n')
    return shop


@pytest.fixture
def shop(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "shop"))


def turn_off(shop: Path) -> None:
    with (shop / "merchant.toml").open("a") as toml:
        toml.write("\n[recommender]\nown_layer = false\n")


def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["fedrec", "merchant", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main.run()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out


def shown(shop: Path) -> list[list[tuple[str, float]]]:
    """Lists for a history, for nobody, and for a query."""
    ranks = Recommender.load(shop)
    assert isinstance(ranks, MerchantRecommender)
    items = ranks.catalogue.item_ids
    found = [ranks.recommend(items[:2], k=8), ranks.recommend([], k=8), ranks.recommend(items[:1], query="red", k=8)]
    return [[(item, round(score, 5)) for item, score in answer.items] for answer in found]


def others_change(shop: Path) -> None:
    """The same catalogue, and other customers."""
    events = pd.read_parquet(shop / "events.parquet")
    events["item_id"] = events["item_id"].iloc[0]
    events.to_parquet(shop / "events.parquet", index=False)


@pytest.mark.parametrize("version", ["came home", "untrained"])
def test_what_is_shown_does_not_depend_on_other_customers(
    shop: Path, version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = MerchantPlace(shop).versions
    versions.use(versions.newest if version == "came home" else None)
    fedrec(monkeypatch, capsys, "fit", shop)
    versions.use(versions.newest if version == "came home" else None)
    on = shown(shop)
    turn_off(shop)
    off = shown(shop)
    assert off != on and (shop / LAYER).exists()
    others_change(shop)
    assert shown(shop) == off


def test_fit_removes_the_layer_and_compares_what_arrived(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = MerchantPlace(shop).versions
    turn_off(shop)
    with (shop / "merchant.toml").open("a") as toml:
        toml.write("\n[users]\nchoose = 0.4\n")
    (shop / LAYER).parent.mkdir(exist_ok=True)
    (shop / LAYER).write_bytes(b"a layer from before")
    arrived = versions.arrived()
    assert arrived is not None
    found = json.loads(fedrec(monkeypatch, capsys, "fit", shop, "--json"))
    assert found["changed"] and found["own_layer"] is False and not (shop / LAYER).exists()
    compared = found["compared"]
    assert set(compared) == {arrived, "untrained"} and found["version"] == max(compared, key=compared.get)
    verdict = versions.verdict(arrived)
    assert verdict is not None and verdict["ranks"] == (found["version"] == arrived) and versions.arrived() is None
    assert (versions.current or "untrained") == found["version"]
    assert json.loads(fedrec(monkeypatch, capsys, "fit", shop, "--json")) == {
        "changed": False, "own_layer": False, "changed_roles": None,
    }  # fmt: skip
    assert not (shop / LAYER).exists()
    out = fedrec(monkeypatch, capsys, "evaluate", shop)
    assert "turned off" in out and "federated text" in out


def test_forget_removes_a_layer_that_is_turned_off(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn_off(shop)
    (shop / LAYER).parent.mkdir(exist_ok=True)
    (shop / LAYER).write_bytes(b"a layer from before")
    found = json.loads(fedrec(monkeypatch, capsys, "forget", shop, "nobody", "--yes", "--json"))
    assert found["own_layer"] == "removed" and not (shop / LAYER).exists()
