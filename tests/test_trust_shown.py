"""What a person sees of a run under secure aggregation: its steps as they go, a round that was abandoned, the trust model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message
from rich.console import Console
from rich.progress import Progress

from fedrec.cli.terminal import SECURE_STEPS, _Watcher, show_results
from fedrec.report.privacy_report import privacy_report
from fedrec.report.privacy_sources import find_sources
from fedrec.report.privacy_words import plain_words
from fedrec.report.run_report import write_report
from server.progress import watching
from server.results import write_results
from server.run_folder import RunFolder

from .helpers import make_federation, settings_of, simulate_with

ROUND_LOST = 2
"""In this round two of five merchants fail when they are asked for their masked sum, and one may."""


class Seen:
    """What a terminal showed of a run: its lines, and what the bar of the merchants said."""

    def __init__(self) -> None:
        self.text, self.bars = io.StringIO(), dict[str, None]()

    @contextmanager
    def watching(self) -> Iterator[None]:
        progress = Progress(console=Console(file=self.text, width=200))
        watcher = _Watcher(progress)

        def look(event: str, fields: dict[str, Any]) -> None:
            watcher(event, fields)
            self.bars |= {task.description.strip(): None for task in progress.tasks}

        with watching(look):
            yield


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> tuple[RunFolder, dict[str, Any], Seen]:
    """A run of three rounds whose second is abandoned, its results, and what was shown meanwhile."""
    folder, seen = tmp_path_factory.mktemp("trust"), Seen()
    federation = make_federation(folder, merchants=5, users=15, policy={"trust": "secure-aggregation"})
    config = settings_of(tiny_bert_folder, trust="secure-aggregation", encoder_rounds=0, encoder_layers=0)

    def fail(message: Message, context: Context, reply: Message) -> Message:
        asked = (message.metadata.message_type, message.metadata.group_id)
        if asked == ("train.mask", str(ROUND_LOST)) and int(context.node_config["partition-id"]) < 2:
            return Message(Error(1), reply_to=message)
        return reply

    with seen.watching():
        run = simulate_with(federation, config, folder / "run", fail)
        results = write_results(run, federation, simulation=True)
    return run, results, seen


def test_the_steps_of_a_secure_sum_are_shown_in_turn(shown: tuple[RunFolder, dict[str, Any], Seen]) -> None:
    bars = list(shown[2].bars)
    for what, steps in (
        ("popularity", ["announce", "share", "mask_histogram", "confirm", "reveal"]),
        ("round 1", ["announce", "share", "mask", "confirm", "reveal"]),
        ("round 2", ["announce", "share", "mask"]),
    ):
        said = [bar for bar in bars if bar.startswith(f"merchants, {what}:")]
        assert said == [f"merchants, {what}: {SECURE_STEPS[step]}" for step in steps]


def test_an_abandoned_round_is_seen_everywhere(
    shown: tuple[RunFolder, dict[str, Any], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    run, results, seen = shown
    reason = "3 of 5 merchants sent their masked sum, 4 are needed"
    assert [line.get("abandoned") for line in run.metrics()] == [None, None, reason, None]
    assert results["abandoned"] == {"2": reason} == json.loads((run.path / "results.json").read_text())["abandoned"]
    assert seen.text.getvalue().count(f"abandoned, no sum was opened: {reason}") == 1
    show_results(run.config, results, run.metrics())
    assert "Abandoned, with no sum opened and nothing learned: round 2." in " ".join(capsys.readouterr().out.split())
    html = write_report(run.path, run.config, run.metrics(), results).read_text()
    assert "1 of 4 rounds abandoned:" in html and f"abandoned: {reason}" in html


def test_the_trust_model_is_named_beside_what_was_spent(
    shown: tuple[RunFolder, dict[str, Any], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    run, results, _ = shown
    assert results["trust"] == "secure-aggregation"
    show_results(run.config, results, run.metrics())
    said = " ".join(capsys.readouterr().out.split())
    html = re.sub(r"\s+", " ", write_report(run.path, run.config, run.metrics(), results).read_text())
    assert "trust: secure-aggregation" in said and "Trust model: secure-aggregation" in html
    for text in (said, html):
        assert "all merchants in the roster but 2 at most are honest" in text
        assert "covered by the sum" not in text and "covered in total by the sum" not in text


def test_who_masked_in_an_abandoned_round_has_paid_and_the_report_counts_it(
    shown: tuple[RunFolder, dict[str, Any], Seen],
) -> None:
    report = privacy_report(find_sources([shown[0].path]))
    assert [len(merchant.rounds) for merchant in report.merchants] == [4] * 5
    assert {merchant.secure_terms[0].honest for merchant in report.merchants} == {3}
    assert "at least 3 of the 5 merchants in the roster" in dict(plain_words(report))["Trust model"]
    for merchant in report.merchants:
        # Own share over all of the noise is 1 / sqrt(3), but for the rounding up of the share to a whole step.
        ratios = [line.noise_multiplier_alone / line.noise_multiplier for line in merchant.rounds]
        assert ratios == pytest.approx([3**-0.5] * 4, rel=0.05)
        assert merchant.epsilon_alone > merchant.epsilon


def test_a_local_run_says_what_it_said(tiny_bert_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config, line = settings_of(tiny_bert_folder), {"took_part": ["a"], "declined": {}, "refused": {}, "bytes_up": {}}
    metrics = {f"{name}{end}": 0.1 for name in ("ndcg@10", "hr@10", "recall@10", "mrr") for end in ("", "_low", "_high")}
    spent = {"epsilon": 2.0, "budget": 8.0, "delta": 1e-5, "accountant": "prv", "population": 100}
    lines = [
        {**line, "round": number, "part": "heads", "seconds": 1.0, "bytes_down": {}, "privacy": {"a": spent}, "central": metrics}
        for number in (0, 1)
    ]
    rows = [{"name": "x", "private": True, "users": 9.0, **metrics}]
    results = {"rows": rows, "rounds": 1, "simulation": True, "model_bytes": 1, "gain": None}
    show_results(config, results, lines)
    said = " ".join(capsys.readouterr().out.split())
    assert "trust: local" in said and "covered by the sum of their epsilons: at most 2.0" in said
    html = write_report(tmp_path, config, lines, results).read_text()
    assert "Trust model: local: each merchant adds all of its own noise" in html
    assert "secure" not in html.split("<h2>Settings")[0] and "rounds abandoned" not in html
