"""The benchmark of baskets, on two small merchants: who is measured, what is new, and the baselines against the same by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from benchmarks import baskets as benchmark
from benchmarks.baskets import Rules, shop_of, without
from benchmarks.baskets_rule import RATIOS, rule_pairs, rule_table
from fedrec.data import Columns

from .conftest import make_catalogue
from .test_baskets import drawn, text_of
from .test_merchant_recommender import make_shop


def test_rules_are_confidences() -> None:
    baskets = drawn(100, 8, 1)
    dense = baskets.bought.toarray()
    held = csr_array(np.eye(8, dtype=np.float32)[[2]] + np.eye(8, dtype=np.float32)[[5]])
    found = Rules(baskets, 3).scores(held)[0]
    for item in range(8):
        both = [(dense[:, [one, item]].all(axis=1).sum(), dense[:, one].sum()) for one in (2, 5) if one != item]
        best = max((n / of for n, of in both if n >= 3), default=0.0)
        assert found[item] == pytest.approx(best + 1e-6 * dense[:, item].sum() / dense.sum(axis=0).max(), abs=1e-9)


def test_pairs_are_counted_where_they_were_not_fitted() -> None:
    fitted, choosing, text = drawn(300, 8, 1), drawn(100, 8, 2), text_of(8)
    pairs, seen, expected = rule_pairs(fitted, choosing, text.candidate)
    dense, counts = choosing.bought.toarray(), choosing.counts()
    upper = np.triu_indices(8, 1)
    assert pairs.sum() == 28 and seen.sum() == (dense.T @ dense)[upper].sum()
    assert expected.sum() == pytest.approx(np.outer(counts, counts)[upper].sum() / 100)
    assert seen[:, -1].sum() / expected[:, -1].sum() > 1.5, "what was planted"
    assert rule_table([np.stack([pairs, seen, expected])] * 2).count("\n") == 6 and len(RATIOS) == 5


@pytest.mark.slow  # fits two merchants
def test_a_whole_run(tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        folder = make_shop(tmp_path / "merchants" / name, tiny_bert_folder, users=2)
        baskets, ids = drawn(300, 24, ord(name), owners=100), make_catalogue(24).item_ids
        rows = [
            (f"c{owner}", ids[item], f"2026-01-01T{number // 60:02}:{number % 60:02}")
            for number, owner in enumerate(baskets.owner.tolist())
            for item in baskets.bought.indices[baskets.bought.indptr[number] : baskets.bought.indptr[number + 1]].tolist()
        ]
        pd.DataFrame(rows, columns=[Columns.USER, Columns.ITEM, Columns.TIME]).to_csv(folder / "events.csv", index=False)
    shop = shop_of(tmp_path / "merchants" / "a", 0)
    assert not shop.fitted.counts()[shop.new].any() and not shop.choosing.counts()[shop.new].any()
    assert shop.measured.counts()[shop.new].any() and not without(shop.measured, shop.new).counts()[shop.new].any()
    assert len(shop.everyone) > len(shop.fitted) + len(shop.choosing) and np.bincount(shop.measured.owner).max() <= benchmark.EACH
    monkeypatch.setattr(sys, "argv", ["baskets", str(tmp_path / "out"), f"small={tmp_path}"])
    benchmark.main()
    found = json.loads((tmp_path / "out" / "baskets.json").read_text())["sets"]["small"]
    ours = found["warm, one"]["own baskets"]["recall"]["mean"]
    assert ours > found["warm, one"]["popularity"]["recall"]["mean"]
    assert set(found["warm, one"]["gains"]) == {"item-kNN", "association rules", "text alone"}
    assert found["new, shelf"]["popularity"]["recall"]["mean"] <= found["new, shelf"]["own baskets"]["recall"]["mean"]
    assert "repeat recall" in found["next basket"]["personal frequency"]
