"""Settings: their file, `--set`, the schedule of rounds, and writing without half-written files."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.config import RunConfig, load_config, parse_overrides, read_toml, save_config, writable_cache, write_atomically
from fedrec.errors import InputError


def fault(overrides: dict[str, Any]) -> str:
    with pytest.raises(InputError) as raised:
        load_config(overrides=overrides)
    return str(raised.value)


def test_a_saved_config_loads_as_the_same(tmp_path: Path) -> None:
    config = RunConfig(rounds=7, noise_multiplier=1.25, encoder='a "quoted" name', weighting="equal", calibrate=False)
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("rounds = 9\nseed = 3\n")
    config = load_config(tmp_path / "config.toml", {"seed": 4})
    assert (config.rounds, config.seed) == (9, 4)


def test_overrides_are_read_as_toml_and_else_as_text() -> None:
    pairs = ["rounds=3", "epsilon = 2.5", "heads=false", "encoder=minilm-l6", 'device="cpu"', "lora_init=a=b", "delta=1e-6"]
    assert parse_overrides(pairs) == {
        "rounds": 3, "epsilon": 2.5, "heads": False, "encoder": "minilm-l6", "device": "cpu", "lora_init": "a=b", "delta": 1e-6,
    }  # fmt: skip


def test_an_override_without_an_equals_sign_is_refused() -> None:
    with pytest.raises(InputError, match=r"--set: found 'rounds'; expected key=value"):
        parse_overrides(["rounds"])


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    message = fault({"epsilom": 3})
    assert "'epsilom'" in message and "did you mean 'epsilon'?" in message


def test_an_unknown_setting_far_from_all_gets_no_hint() -> None:
    assert fault({"zzzz": 3}) == "settings: there is no setting 'zzzz'"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0), ("sample_rate", 0), ("sample_rate", 1.5), ("clip_norm", 0), ("epsilon", -1), ("delta", 1),
        ("rank", 0), ("noise_multiplier", 0), ("unit", "household"), ("server_optimizer", "sgd"), ("rounds", "many"),
        ("epsilon", float("nan")),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_setting(name: str, value: object) -> None:
    assert f"{name} = {value!r}" in fault({name: value})


@pytest.mark.parametrize(
    "name", ["epsilon", "clip_norm", "noise_multiplier", "learning_rate", "server_learning_rate", "temperature", "round_timeout"]
)
def test_infinity_is_no_setting(name: str) -> None:
    assert name in fault({name: float("inf")})


def test_all_faults_are_told_at_once() -> None:
    message = fault({"rounds": 0, "epsilom": 3})
    assert "rounds = 0" in message and "'epsilom'" in message


def test_more_encoder_rounds_than_rounds_are_refused() -> None:
    assert "encoder_rounds (5) is more than rounds (4)" in fault({"rounds": 4, "encoder_rounds": 5})
    assert "positions times history (101000) is more than 100000" in fault({"positions": 1000, "history": 101})


@given(rounds=st.integers(1, 10_000))
def test_a_fifth_of_the_rounds_trains_the_encoder_by_default(rounds: int) -> None:
    config = load_config(overrides={"rounds": rounds})
    assert abs(5 * config.encoder_rounds - rounds) <= 2 if rounds >= 5 else config.encoder_rounds == 0
    assert load_config(overrides={"rounds": rounds, "encoder_rounds": 0}).encoder_rounds == 0


def test_the_default_run_has_four_rounds_on_the_encoder_and_says_so_in_its_file(tmp_path: Path) -> None:
    assert (RunConfig().rounds, RunConfig().encoder_rounds) == (18, 4)
    save_config(RunConfig(rounds=10), tmp_path / "config.toml")
    assert "encoder_rounds = 2\n" in (tmp_path / "config.toml").read_text()


def test_a_run_that_trains_nothing_is_refused() -> None:
    assert "nothing to train" in fault({"heads": False, "encoder_layers": 0})


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({"rounds": 5, "encoder_rounds": 2}, "HHHEE"),
        ({"rounds": 3, "encoder_rounds": 3}, "EEE"),
        ({"rounds": 3, "encoder_rounds": 0}, "HHH"),
        ({"rounds": 3, "encoder_rounds": 1, "heads": False}, "EEE"),
        ({"rounds": 3, "encoder_rounds": 9, "encoder_layers": 0}, "HHH"),
    ],
)
def test_the_last_rounds_train_the_encoder(settings: dict[str, Any], schedule: str) -> None:
    config = RunConfig(**settings)
    assert "".join(config.part(number)[0].upper() for number in range(1, config.rounds + 1)) == schedule
    assert (config.rounds_of("heads"), config.rounds_of("encoder")) == (schedule.count("H"), schedule.count("E"))


def test_each_part_has_its_own_sample_rate() -> None:
    config = RunConfig(sample_rate=0.5, encoder_sample_rate=0.25)
    assert (config.sample_rate_of("heads"), config.sample_rate_of("encoder")) == (0.5, 0.25)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().rounds = 2  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    lines = (Path(load_config.__code__.co_filename)).read_text().splitlines()
    for name in RunConfig.model_fields:
        declared = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}: "))
        assert lines[declared + 1].startswith('    """'), name


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        load_config(tmp_path / "none.toml")


def test_a_config_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds 3")
    with pytest.raises(InputError, match=r"bad\.toml: is not valid TOML"):
        load_config(tmp_path / "bad.toml")


BAD_TOML = {
    "not UTF-8": ("rounds = 3\n# caf\u00e9".encode("cp1252"), "bad.toml, line 2: is not UTF-8; save it as UTF-8"),
    "UTF-16": ("rounds = 3".encode("utf-16"), "bad.toml, line 1: is not UTF-8"),
    "a number without an end": (b"rounds = " + b"1" * 5_000, "is not valid TOML"),
    "brackets without an end": (b"rounds = " + b"[" * 5_000, "is not valid TOML"),
    "a second line that is none": (b"rounds = 3\nseed 4", "line 2"),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_what_is_not_toml_in_utf_8_is_named(case: str, tmp_path: Path) -> None:
    content, said = BAD_TOML[case]
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_config(tmp_path / "bad.toml")
    assert said in str(refused.value)


@given(content=st.binary(max_size=60))
def test_no_bytes_end_in_anything_but_a_table_or_an_input_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        assert isinstance(read_toml(path), dict)
    except InputError as error:
        assert "any.toml" in str(error)


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(codecs.BOM_UTF8 + b"rounds = 3\r\n")
    assert load_config(tmp_path / "run.toml").rounds == 3


@pytest.mark.parametrize("text", ["1" * 5_000, "[" * 5_000])
def test_a_value_that_is_no_toml_is_a_bare_string(text: str) -> None:
    assert parse_overrides([f"encoder={text}"]) == {"encoder": text}


def test_only_one_place_reads_toml() -> None:
    root = Path(load_config.__code__.co_filename).parents[1]
    rooms = [root / name for name in ("fedrec", "server", "clients", "simulations")]
    readers = {path.relative_to(root) for room in rooms for path in room.rglob("*.py") if "import tomllib" in path.read_text()}
    assert readers == {Path("fedrec/config.py")}


CACHES = {
    "a home that is no folder": ({"HOME": "/dev/null"}, "/dev/null/.cache/fedrec"),
    "a file in its place": ({"FEDREC_CACHE": __file__}, __file__),
    "a folder that nobody can make": ({"FEDREC_CACHE": "/proc/fedrec"}, "/proc/fedrec"),
    "a folder that nobody can write": ({"FEDREC_CACHE": "/proc"}, "/proc"),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_cache_that_cannot_be_written_is_named(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, where = CACHES[case]
    monkeypatch.delenv("FEDREC_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        writable_cache()
    assert refused.value.where == where and "set FEDREC_CACHE" in str(refused.value)


def test_the_cache_is_made_where_it_is_set_else_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in ((str(tmp_path / "a" / "b"), tmp_path / "a" / "b"), ("", tmp_path / ".cache" / "fedrec")):
        monkeypatch.setenv("FEDREC_CACHE", value)
        assert writable_cache() == folder and list(folder.iterdir()) == []


def test_a_fault_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("ruonds = 3")
    with pytest.raises(InputError, match=r"run\.toml: there is no setting 'ruonds' \(did you mean 'rounds'\?\)"):
        load_config(tmp_path / "run.toml")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    write_atomically(path, b"old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    for step in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, broken)
            with pytest.raises(OSError, match="disk full"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"a longer old content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
