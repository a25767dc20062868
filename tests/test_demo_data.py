"""The embedded demo: twelve merchants, catalogues from the product table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedrec.data import load_central, load_merchant, merchant_folders
from fedrec.data.demo import MerchantsBy, build_demo
from simulations.checks import check_federation

pytestmark = pytest.mark.slow

POLICY = {"epsilon": 8.0, "delta": 1e-5}


@pytest.fixture(scope="module")
def brands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("demo") / "manufacturer"
    return out, build_demo(out, POLICY)


def test_there_are_twelve_brand_shops(brands: tuple[Path, pd.DataFrame]) -> None:
    out, summary = brands
    merchants = check_federation(out)
    assert len(merchants) == len(summary) == 12
    assert sorted(merchants) == sorted(summary["merchant"])
    for row in summary.itertuples():
        data = merchants[row.merchant]
        assert (len(data.histories), len(data.catalogue)) == (row.users, row.items)


def test_a_catalogue_comes_from_the_product_table_not_from_the_events(brands: tuple[Path, pd.DataFrame]) -> None:
    out, _ = brands
    central = pd.read_parquet(out / "central" / "events.parquet")
    for folder in merchant_folders(out):
        data = load_merchant(folder)
        bought = {data.catalogue.item_ids[item] for item in data.histories.items}
        bought |= set(central.loc[central["merchant"] == folder.name, "item_id"])
        assert bought < set(data.catalogue.item_ids), folder.name


def test_items_are_unique_in_a_merchant(brands: tuple[Path, pd.DataFrame]) -> None:
    for folder in merchant_folders(brands[0]):
        catalogue = load_merchant(folder).catalogue
        assert len(set(catalogue.item_ids)) == len(set(catalogue.texts)) == len(catalogue), folder.name


def test_about_a_fifth_of_the_users_is_held_out_for_each_merchant(brands: tuple[Path, pd.DataFrame]) -> None:
    out, summary = brands
    share = summary["held_out_users"] / (summary["held_out_users"] + summary["users"])
    assert share.between(0.15, 0.25).all()
    groups = {group.name: len(group.histories) for group in load_central(out).groups}
    assert groups == dict(zip(summary["merchant"], summary["held_out_users"], strict=True))


@pytest.mark.parametrize(("by", "prefix"), [("store", "store-"), ("department", "")])
def test_other_kinds_of_merchant_build_and_check(by: MerchantsBy, prefix: str, tmp_path: Path) -> None:
    summary = build_demo(tmp_path / by, POLICY, by)
    merchants = check_federation(tmp_path / by)
    assert 1 < len(merchants) <= 12
    assert all(name.startswith(prefix) for name in merchants)
    assert len(load_central(tmp_path / by).groups) == (1 if by == "store" else len(summary))
