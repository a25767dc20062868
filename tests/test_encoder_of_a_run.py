"""A run belongs to the encoder it was made with: other weights or another tokenizer are refused by whatever goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedrec.cli import main
from fedrec.errors import InputError
from fedrec.model.encoder import _load, cache_folder
from fedrec.recommender import Recommender
from server.run_folder import RunFolder
from simulations.run import resume, simulate

from .helpers import make_federation, settings_of


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_federation(tmp_path_factory.mktemp("federation"), merchants=2, users=20)


@pytest.fixture(scope="module")
def made(federation: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bert/`, and `run/` that was made with it, from this folder and by a relative name."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_bert_folder, folder / "bert")
    config = folder / "bert" / "config.json"  # as old files have it: where their maker's copy was
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "somebody/bert"}))
    before = Path.cwd()
    os.chdir(folder)
    try:
        simulate(federation, settings_of(Path("bert"), rounds=2), Path("run"))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def bert(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encoder's folder, as it was made again afterwards; the working directory is another one."""
    shutil.copytree(made / "bert", tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    yield made / "bert"  # type: ignore[misc]
    shutil.rmtree(made / "bert", ignore_errors=True)
    shutil.copytree(tmp_path / "kept", made / "bert")


@pytest.fixture
def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("FEDREC_SITE", "")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return call


def other_weights(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, bert / "model.safetensors", metadata={"format": "pt"})


def other_tokenizer(bert: Path) -> None:
    rules = json.loads((bert / "tokenizer.json").read_text())
    words = rules["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (bert / "tokenizer.json").write_text(json.dumps(rules))
    (bert / "vocab.txt").unlink(missing_ok=True)


COMMANDS = {
    "recommend by history": ["recommend", "RUN", "--history", "i3,i5"],
    "recommend by words": ["recommend", "RUN", "--query", "red lamp"],
    "evaluate": ["evaluate", "RUN"],
    "resume": ["simulate", "--resume", "--out", "RUN"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", [other_weights, other_tokenizer])
def test_another_encoder_is_refused(
    command: str, change: Callable[[Path], None], bert: Path, made: Path, fedrec: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = [made / "run" if part == "RUN" else part for part in COMMANDS[command]]
    before = {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()}
    change(bert)
    status, out, err = fedrec(*arguments)
    assert (status, out) == (2, "") and "Traceback" not in err
    assert "encoder: its weights, its tokenizer or max_tokens are not those that the run was made with" in err
    assert {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["recommend by history", "recommend by words", "evaluate"])
def test_the_same_encoder_is_found_from_another_folder(
    command: str, bert: Path, made: Path, fedrec: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = fedrec(*(made / "run" if part == "RUN" else part for part in COMMANDS[command]))
    assert status == 0, err


def test_a_relative_encoder_is_absolute_in_everything_that_a_run_keeps(made: Path) -> None:
    run = RunFolder.open(made / "run")
    assert run.config.encoder == str(made / "bert")
    assert json.loads((run.path / "site.json").read_text())["model"]["encoder"] == str(made / "bert")
    assert json.loads((run.path / "adapter" / "fedrec.json").read_text())["encoder"] == str(made / "bert")
    adapter = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(made / "bert")
    state = run.load()
    assert state is not None and len(state.encoder_fingerprint) == 24


def test_an_encoder_that_is_gone_is_missed_where_a_text_is_read(
    bert: Path, made: Path, fedrec: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.rmtree(bert)
    assert fedrec("recommend", made / "run", "--history", "i3,i5")[0] == 0
    for arguments in (["recommend", made / "run", "--query", "red"], ["evaluate", made / "run"]):
        status, _, err = fedrec(*arguments)
        assert status == 2 and f"'{bert}' is no folder" in err.replace("\n", " ")


def test_a_home_that_cannot_be_written_is_noted(
    bert: Path, made: Path, fedrec: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", os.devnull)
    for cache in (None, ""):
        monkeypatch.delenv("FEDREC_CACHE") if cache is None else monkeypatch.setenv("FEDREC_CACHE", cache)
        _load.cache_clear()  # as in a fresh process
        caplog.clear()
        assert fedrec("evaluate", made / "run")[0] == 0
        assert f"{os.devnull}/.cache/fedrec/trunk: cannot be written" in caplog.text and "set FEDREC_CACHE" in caplog.text


def test_no_home_at_all_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDREC_CACHE")
    monkeypatch.setattr(Path, "home", classmethod(lambda _: (_ for _ in ()).throw(RuntimeError("no home"))))
    with pytest.raises(InputError, match="FEDREC_CACHE: this user has no home folder"):
        cache_folder()


def test_the_same_weights_written_otherwise_are_the_same(bert: Path, made: Path) -> None:
    expected = Recommender.load(made / "run", device="cpu").rank(["i3"], 30, query="red")
    weights = load_file(bert / "model.safetensors")
    save_file({f"bert.{name}": value for name, value in weights.items()}, bert / "model.safetensors", metadata={"format": "pt"})
    assert Recommender.load(made / "run", device="cpu").rank(["i3"], 30, query="red") == expected


def test_a_run_from_before_fingerprints_were_kept_opens(bert: Path, made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "old"))
    path = run / "adapter" / "fedrec.json"
    settings = json.loads(path.read_text())
    del settings["encoder_fingerprint"], settings["encoder_files"]
    path.write_text(json.dumps(settings))
    for checkpoint in (run / "checkpoints").iterdir():
        with safe_open(checkpoint, framework="numpy") as file:
            meta = {name: value for name, value in file.metadata().items() if name != "encoder_fingerprint"}
        save_file(load_file(checkpoint), checkpoint, metadata=meta)
    expected = Recommender.load(made / "run", device="cpu").rank(["i3", "i5"], 9)
    assert Recommender.load(run, device="cpu").rank(["i3", "i5"], 9) == expected
    assert resume(run).load() is not None
    other_weights(bert)
    Recommender.load(run, device="cpu").rank(["i3", "i5"], 9)


def test_a_run_that_was_interrupted_does_not_go_on_with_another_encoder(
    bert: Path, made: Path, federation: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "short"))
    sorted((run / "checkpoints").glob("*.safetensors"))[-1].unlink()
    site = (run / "site.json").read_bytes()
    other_tokenizer(bert)
    with pytest.raises(InputError, match="not those that the run was made with"):
        resume(run)
    assert (run / "site.json").read_bytes() == site
