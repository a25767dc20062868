"""The same code on a GPU: same gradients, same tables, where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.merchant import Merchant

from .merchants import open_shop, public_and_trained, task, write_merchant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("part", ["heads", "encoder"])
def test_a_round_on_the_gpu_equals_one_on_the_processor(tiny_bert_folder: Path, tmp_path: Path, part: str) -> None:
    folder = write_merchant(tmp_path / "shop", epsilon=50.0)
    updates = []
    for device in ("cpu", "cuda"):
        shop = open_shop(folder, tiny_bert_folder, tmp_path / device)
        model = shop.site.model.model_copy(update={"device": device})
        shop = Merchant(shop.name, shop.data, shop.policy, replace(shop.site, model=model))
        public, trained = public_and_trained(shop)
        reply = shop.train(task(shop, part=part), trained, public)
        assert reply.statement.status == "ok"
        updates.append(np.concatenate([reply.arrays[name].ravel() for name in sorted(reply.arrays)]))
    # The noise is the same, so what differs is the gradient's rounding (bf16 in the encoder).
    assert np.abs(updates[0] - updates[1]).max() <= 0.02 * np.abs(updates[0]).max()
