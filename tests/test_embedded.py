"""The embedded catalogue beside the adapter: a fresh process reads it, and makes it again only where it is another's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from fedrec.data import load_central
from fedrec.model import TextEncoder
from fedrec.model.adapter import HEAD_B, load_arrays, save_arrays
from fedrec.model.saved import save_adapter, settings_of_run, table_of_run
from fedrec.recommender import Recommender
from server.run_folder import RunFolder
from server.start import load_encoder_for
from simulations.run import simulate

from .helpers import make_federation, settings_of

HISTORY = ["i3", "i11", "i5"]


@pytest.fixture(scope="module")
def run(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    federation = make_federation(tmp_path_factory.mktemp("federation"), merchants=2, users=20)
    return simulate(federation, settings_of(tiny_bert_folder, rounds=2), tmp_path_factory.mktemp("run") / "a")


@pytest.fixture
def recommender(run: RunFolder) -> Recommender:
    return Recommender.load(run.path, device="cpu")


@pytest.fixture
def copy(recommender: Recommender, tmp_path: Path) -> Path:
    recommender.save(tmp_path / "copy")
    return tmp_path / "copy"


def kept(folder: Path) -> Path:
    (path,) = folder.glob("items-*.safetensors")
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each pass through the encoder's top had."""
    calls: list[int] = []
    run_top = TextEncoder.run_top

    def counted(self: TextEncoder, hidden: Tensor, mask: Tensor) -> Tensor:
        calls.append(len(hidden))
        return run_top(self, hidden, mask)

    monkeypatch.setattr(TextEncoder, "run_top", counted)
    return calls


def test_a_run_keeps_its_embedded_catalogue(run: RunFolder, encoded: list[int]) -> None:
    fresh = Recommender.load(run.path, device="cpu")
    fresh.encoder._embedded.clear()  # as in a process that has made none
    assert len(fresh.rank(HISTORY, 5)) == 5
    assert encoded == []
    assert len(fresh.rank(HISTORY, 5, query="red lamp")) == 5
    assert encoded == [1]


def test_a_fresh_process_ranks_a_history_without_loading_a_model(run: RunFolder) -> None:
    code = (
        "import json, sys, fedrec; first = 'torch' in sys.modules;"
        f"r = fedrec.Recommender.load({str(run.path)!r}, device='cpu').rank({HISTORY!r}, 30);"
        "print(json.dumps([r, first, [name in sys.modules for name in ('transformers', 'peft', 'flwr')]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    ranked, torch_first, heavy = json.loads(done.stdout)
    assert not torch_first and heavy == [False, False, False]
    expected = Recommender.load(run.path, device="cpu").rank(HISTORY, 30)
    assert [item for item, _ in ranked] == [item for item, _ in expected]
    assert dict(map(tuple, ranked)) == pytest.approx(dict(expected), abs=1e-5)


def other_texts(folder: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(folder / "catalogue.parquet")
    table.loc[7, "text"] = "a text of its own"
    table.to_parquet(folder / "catalogue.parquet", index=False)


def other_lora(folder: Path) -> None:
    arrays = load_arrays(folder / "fedrec.safetensors")
    (name, *_) = (name for name in arrays if "lora_B" in name)
    save_arrays({**arrays, name: arrays[name] + 0.5}, folder / "fedrec.safetensors")


@pytest.mark.parametrize("change", [other_texts, other_lora])
def test_of_another_adapter_or_catalogue_it_is_made_again(change: Callable[[Path], None], copy: Path) -> None:
    old, before = kept(copy), load_arrays(kept(copy))["items"]
    change(copy)
    changed = Recommender.load(copy, device="cpu")
    changed.rank(HISTORY)
    assert kept(copy) != old
    found = load_arrays(kept(copy))["items"]
    expected = changed.encoder.pooled(changed.encoder.states(changed.catalogue)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, before)


def test_a_round_on_the_heads_leaves_it_as_it_is(run: RunFolder, tmp_path: Path) -> None:
    state, central = run.load(), load_central(Path(json.loads((run.path / "site.json").read_text())["federation"]))
    assert state is not None
    encoder, scoring = load_encoder_for(run.config, state), run.metrics()[-1]["scoring"]
    settings = settings_of_run(run.config, encoder, state.public, scoring)
    table = table_of_run(central, state.public)
    public = {name: value for name, value in state.public.items() if not name.startswith("prior.")}
    save_adapter(tmp_path, encoder, {**public, **state.trained}, settings, table)
    before, stat = kept(tmp_path), kept(tmp_path).stat()
    first = Recommender.load(tmp_path, device="cpu").rank(HISTORY, 9)
    heads = {name: state.trained[name] + 1 for name in HEAD_B.values()}
    save_adapter(tmp_path, encoder, {**public, **state.trained, **heads}, settings, table)
    assert kept(tmp_path) == before and kept(tmp_path).stat() == stat
    assert Recommender.load(tmp_path, device="cpu").rank(HISTORY, 9) != first


def as_float64(path: Path) -> None:
    save_arrays({"items": load_arrays(path)["items"].astype(np.float64)}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "of fewer items": lambda path: save_arrays({"items": load_arrays(path)["items"][:-1]}, path),
    "of other numbers": as_float64,
    "of something else": lambda path: save_arrays({"other": np.zeros(3)}, path),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again(damage: str, copy: Path, recommender: Recommender) -> None:
    path = kept(copy)
    whole = path.read_bytes()
    DAMAGE[damage](path)
    assert Recommender.load(copy, device="cpu").rank(HISTORY, 9) == recommender.rank(HISTORY, 9)
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_still_answers(copy: Path, recommender: Recommender) -> None:
    path = kept(copy)
    path.unlink()
    path.mkdir()  # whoever runs the tests, nothing can be renamed to this name
    for index in (False, True):
        assert [item for item, _ in Recommender.load(copy, device="cpu", index=index).rank(HISTORY, 9)] == [
            item for item, _ in recommender.rank(HISTORY, 9)
        ]
    (copy / "items.faiss").unlink()
    (copy / "items.faiss").mkdir()
    assert len(Recommender.load(copy, device="cpu", index=True).rank(HISTORY, 9)) == 9
    assert not list(copy.glob(".*"))
