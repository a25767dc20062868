"""The encoder's LoRA, adapted to public texts: pairs, loss, and the folder that comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedrec import Recommender
from fedrec.adaptation import KINDS, Schedule, adapt
from fedrec.adaptation.contrast import Contrast
from fedrec.adaptation.items import PublicItems
from fedrec.adaptation.pairs import Pairs
from fedrec.config import RunConfig
from fedrec.errors import InputError
from fedrec.model.adapter import CENTRE
from fedrec.model.encoder import TextEncoder, load_encoder
from fedrec.model.saved import read_adapter
from fedrec.model.towers import init_base, init_trained
from server.given_start import check_start, open_start

from .conftest import WORDS, make_encoder, write_source
from .helpers import settings_of

SCHEDULE = Schedule(KINDS, epochs=2, batch=8, temperature=0.1, learning_rate=0.01, seed=3)


@pytest.fixture(scope="module")
def items_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of items, with one text twice, one item without brand and one with a title alone; and nobody's events."""
    folder, rng = tmp_path_factory.mktemp("items"), np.random.default_rng(0)
    rows = [
        (f"i{i}", " ".join(rng.choice(WORDS, 4)), f"brand {i % 3}", " ".join(rng.choice(WORDS, 3)), float(i)) for i in range(30)
    ]
    rows[1] = ("i1", *rows[0][1:])
    rows[2], rows[3] = (*rows[2][:2], None, *rows[2][3:]), (*rows[3][:2], None, None, 3.0)  # type: ignore[assignment]
    pd.DataFrame(rows, columns=["item_id", "title", "brand", "description", "price"]).to_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def config(tiny_bert_folder: Path) -> RunConfig:
    return settings_of(tiny_bert_folder, device="cpu", seed=3)


@pytest.fixture(scope="module")
def adapted(items_alone: Path, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("adapted") / "out"
    return out, adapt(items_alone, out, config, SCHEDULE)


@pytest.fixture
def encoder(tiny_bert_folder: Path) -> TextEncoder:
    return make_encoder(tiny_bert_folder)


def test_items_are_read_where_events_cannot_be(items_alone: Path, tmp_path: Path) -> None:
    central = tmp_path / "federation" / "central"
    central.mkdir(parents=True)
    (central / "items.parquet").write_bytes((items_alone / "items.parquet").read_bytes())
    (central / "events.parquet").write_bytes(b"nobody may look at this")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "site.json").write_text(json.dumps({"federation": str(central.parent)}))
    first, *others = (PublicItems.read(folder) for folder in (items_alone, central.parent, tmp_path / "run"))
    assert [one.catalogue.texts for one in others] == [first.catalogue.texts] * 2
    assert first.titles[5] and first.catalogue.texts[5] == f"{first.titles[5]}, {first.others[5]}"
    assert first.others[3] == ""


@pytest.mark.parametrize("damaged", [b"{}", b"[]", b"{bad", b"\xff", b'{"federation": 3}'])
def test_a_damaged_run_is_one_error(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / "site.json").write_bytes(damaged)
    with pytest.raises(InputError, match="which federation was run"):
        PublicItems.read(tmp_path)


def test_pairs_are_made_of_an_items_own_words(items_alone: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    items = PublicItems.read(items_alone)
    pairs = Pairs.make(items, KINDS, 0)
    texts = [*items.catalogue.texts, *pairs.added.texts]
    assert len(pairs.states(encoder, tmp_path)) == len(pairs.keys) == len(texts)
    dropout, fields, words, order = ([(texts[left], texts[right]) for left, right in sides.T] for sides in pairs.sides)
    distinct = list(dict.fromkeys(items.catalogue.texts))
    assert len(distinct) == 29 and dropout == [(text, text) for text in distinct]
    assert set(fields) <= set(zip(items.titles, items.others, strict=True)) and len(fields) == len(distinct) - 1
    assert [left for left, _ in words] == [left for left, _ in order] == distinct
    assert all(set(right.split()) <= set(left.split()) and right for left, right in words)
    assert 0.1 < 1 - sum(len(right.split()) for _, right in words) / sum(len(text.split()) for text in distinct) < 0.3
    assert all(sorted(right.split()) == sorted(left.split()) for left, right in order) and any(a != b for a, b in order)


def test_the_loss_is_the_mean_of_both_directions_and_no_text_is_a_negative_of_itself(
    items_alone: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    items = PublicItems.read(items_alone)
    base = init_base(encoder, encoder.states(items.catalogue), False, 4, "principal", 0)
    pairs = Pairs.make(items, ("dropout",), 0)
    training = Contrast(encoder, pairs, pairs.states(encoder, tmp_path), base, SCHEDULE)
    left, right = np.array([0, 4, 5, 1, 6]), np.array([7, 8, 9, 10, 11])  # items 0 and 1 have one text
    e = encoder.pooled(encoder.states(items.catalogue)).numpy().astype(np.float64) - base[CENTRE]
    e /= np.linalg.norm(e, axis=1, keepdims=True)

    def one_way(rows: np.ndarray, columns: np.ndarray) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            others = [j for j in range(5) if j == i or {i, j} != {0, 3}]
            exponents = [np.exp(e[row] @ e[columns[j]] / SCHEDULE.temperature) for j in others]
            total -= np.log(exponents[others.index(i)] / sum(exponents))
        return total / 5

    expected = (one_way(left, right) + one_way(right, left)) / 2
    assert float(training._loss(left, right).detach()) == pytest.approx(expected, abs=1e-4)


def test_every_pair_is_seen_once_an_epoch(items_alone: Path) -> None:
    pairs = Pairs.make(PublicItems.read(items_alone), KINDS, 0)
    steps = replace(SCHEDULE, epochs=1).steps(pairs)
    for kind, sides in enumerate(pairs.sides):
        seen = np.concatenate([rows for one, rows in steps if one == kind])
        assert sorted(seen) == list(range(sides.shape[1]))  # 29 and 28 pairs: the last batch of 8 has half or more
    assert len(replace(SCHEDULE, batch=16).steps(pairs)) == 2 * 8
    assert [kind for kind, _ in SCHEDULE.steps(pairs)[: len(steps)]] != [kind for kind, _ in SCHEDULE.steps(pairs)[len(steps) :]]


def test_what_comes_of_it_is_an_adapter_that_ranks(
    adapted: tuple[Path, dict[str, Any]], items_alone: Path, config: RunConfig
) -> None:
    out, record = adapted
    assert sorted(path.name for path in out.iterdir()) == ["adaptation.json", "adapter"]
    assert json.loads((out / "adaptation.json").read_text()) == record
    assert len(record["losses"]) == record["steps"] == 2 * 4 * 4
    for kind in ("words", "order"):
        losses = [one["loss"] for one in record["losses"] if one["pairs"] == kind]
        assert sum(losses[4:]) < 0.9 * sum(losses[:4])  # the second epoch's
    arrays, settings, table = read_adapter(out / "adapter")
    assert settings["encoder_layers"] == 1 and len(table) == 30
    encoder = load_encoder(config.encoder, 1, config.encoder_rank, config.max_tokens, "cpu", config.texts_per_batch)
    items = PublicItems.read(items_alone)
    before = init_base(encoder, encoder.states(items.catalogue), True, config.rank, "principal", 3)
    for name in encoder.frozen():
        assert np.array_equal(arrays[name], before[name])
    assert all(arrays[name].any() for name in encoder.trained())
    untrained = init_trained(encoder, True, config.rank)
    assert not any(arrays[name].any() for name in untrained if name.startswith("heads."))
    base, trained = check_start(open_start(out), config, encoder)  # a run can start from it
    assert base.keys() == before.keys() and trained.keys() == untrained.keys()
    encoder.load(arrays)
    assert np.allclose(arrays[CENTRE], encoder.pooled(encoder.states(items.catalogue)).mean(0), atol=1e-5)
    assert not np.allclose(arrays[CENTRE], before[CENTRE], atol=1e-3)
    recommender = Recommender.load(out)
    assert len(recommender.rank(["i5", "i6"], k=4)) == 4
    assert recommender.search(items.titles[5], k=1).items[0][0] == "i5"


def test_interrupted_it_goes_on_to_the_same_adapter(
    adapted: tuple[Path, dict[str, Any]], items_alone: Path, config: RunConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop(at: int) -> Any:
        def progress(done: int, of: int) -> None:
            if done == at:
                raise KeyboardInterrupt

        return progress

    for at, resume in ((0, False), (9, True), (27, True)):
        with pytest.raises(KeyboardInterrupt):
            adapt(items_alone, out, config, SCHEDULE, resume, stop(at))
    with pytest.raises(InputError, match="another seed"):
        adapt(items_alone, out, config, replace(SCHEDULE, seed=4), resume=True)
    assert (out / "checkpoint.safetensors").is_file() and not (out / "adapter").exists()
    began: list[int] = []
    record = adapt(items_alone, out, config, SCHEDULE, True, lambda done, of: began.append(done))
    assert began[0] == 20  # of the 26 steps that were done, those after the last checkpoint are done again
    assert adapt(items_alone, out, config, SCHEDULE, True, stop(0)) == record
    assert record["digest"] == adapted[1]["digest"] and record["losses"] == adapted[1]["losses"]
    assert adapt(items_alone, tmp_path / "other", config, replace(SCHEDULE, seed=4))["digest"] != record["digest"]


BAD: dict[str, tuple[list[str], str]] = {
    "no such kind": (["--pairs", "synonyms"], "--pairs"),
    "a kind twice": (["--pairs", "order", "--pairs", "order"], "--pairs"),
    "no epoch": (["--epochs", "0"], "--epochs"),
    "a pair alone": (["--batch", "1"], "--batch"),
    "no temperature": (["--temperature", "0"], "--temperature"),
    "not a rate": (["--learning-rate", "nan"], "--learning-rate"),
    "wider than the encoder": (["--set", "rank=33"], "rank"),
    "no LoRA": (["--set", "encoder_layers=0"], "encoder_layers"),
    "too few items": (["--batch", "90"], "too few pairs"),
    "nothing to go on with": (["--batch", "16", "--resume"], "nothing to go on with"),
}


@pytest.mark.parametrize(("options", "names"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_error(
    options: list[str], names: str, items_alone: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    from fedrec.cli.main import app

    command = ["adapt", str(items_alone), str(tmp_path / "out"), "--set", f"encoder={tiny_bert_folder}"]
    done = CliRunner().invoke(app, [*command, "--set", "encoder_rank=2", "--set", "rank=4", *options])
    assert isinstance(done.exception, InputError) and names in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import adaptation

    source = write_source(tmp_path / "source", items=80)
    arguments = ["adaptation", str(tmp_path / "out"), f"small={source}", "--pairs", "order"]
    monkeypatch.setattr("sys.argv", arguments)
    adaptation.main()
    table = (tmp_path / "out" / "adaptation.md").read_text()
    cells = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [line[1] for line in cells] == ["untrained", "order"] and "(+0.0000 [+0.0000, +0.0000])" in table
    for path in (tmp_path / "out").glob("small-*/adapter"):
        (path / "fedrec.safetensors").unlink()
    adaptation.main()
    assert (tmp_path / "out" / "adaptation.md").read_text() == table
    monkeypatch.setattr("sys.argv", [*arguments, "--epochs", "2"])
    with pytest.raises(InputError, match="other items or settings"):
        adaptation.main()


def test_the_command_says_what_it_did_and_takes_no_folder_that_is_there(
    items_alone: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    from fedrec.cli.main import app

    small = ["--set", "encoder_rank=2", "--set", "rank=4", "--batch", "16", "--set", f"encoder={tiny_bert_folder}"]
    done = CliRunner().invoke(app, ["adapt", str(items_alone), str(tmp_path / "out"), *small])
    assert done.exit_code == 0 and "30 texts" in done.stdout and "loss of order: " in done.stdout
    again = CliRunner().invoke(app, ["adapt", str(items_alone), str(tmp_path / "out"), *small])
    assert isinstance(again.exception, InputError) and "--resume" in str(again.exception)
    nothing = CliRunner().invoke(app, ["adapt", str(tmp_path / "nowhere"), str(tmp_path / "new"), *small])
    assert isinstance(nothing.exception, InputError) and not (tmp_path / "new").exists()
